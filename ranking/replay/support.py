"""Support gates: whether a log can say anything about a setting. Two states, and a refused number is never shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ranking.replay.log import ReplayLog

__all__ = ["Support", "SupportGates", "matured_conversions", "support", "support_of_sums"]


@dataclass(frozen=True)
class Support:
    """The verdict of the gates on one setting.

    Args:
        reason: str. Why it is refused; empty where it is supported.
        weight_mean: float. Mean importance weight of a request; 1 in expectation where the log supports the setting.
        standard_error: float. Of the weight mean.
        effective: float. Effective sample size over the number of requests.
        unsupported: float. Share of the new order's examination on candidates the log almost never shows.
        largest: float. Share of the largest request in all the weight.
    """

    reason: str
    weight_mean: float
    standard_error: float
    effective: float
    unsupported: float
    largest: float

    @property
    def state(self) -> str:
        """`"supported"` or `"refused"`."""
        return "refused" if self.reason else "supported"


@dataclass(frozen=True)
class SupportGates:
    """Limits of the gates.

    Args:
        max_deviation: float. Standard errors that the weight mean may be away from 1. Defaults to `3.0`.
        max_standard_error: float. Above it there are too few requests. Defaults to `0.05`.
        min_effective: float. Bootstrap intervals are too narrow below it. Defaults to `0.2`.
        max_unsupported: float. Share of examination on candidates under the exposure floor. Defaults to `0.1`.
        max_largest: float. One request may not decide. Defaults to `0.05`.
        min_conversions: int. Matured conversions, for the objectives made of them. Defaults to `100`.
    """

    max_deviation: float = 3.0
    max_standard_error: float = 0.05
    min_effective: float = 0.2
    max_unsupported: float = 0.1
    max_largest: float = 0.05
    min_conversions: int = 100

    def __post_init__(self) -> None:
        for name in ("max_deviation", "max_standard_error", "min_effective", "max_unsupported", "max_largest"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` should be positive. Received: {name}={getattr(self, name)}.")
        if self.min_conversions < 1:
            raise ValueError(f"`min_conversions` should be positive. Received: {self.min_conversions}.")


def support(weight: np.ndarray, unsupported: np.ndarray, gates: SupportGates | None = None) -> list[Support]:
    """Applies the gates to values of each request.

    Args:
        weight: float32 `[S, R]`. `q`, the output `weight` of an estimator.
        unsupported: float32 `[S, R]`. Examination on candidates under the exposure floor, the output of that name.
        gates: SupportGates. Limits. Defaults to `SupportGates()`.

    Returns:
        List of `Support`, one a setting.
    """
    weight = np.asarray(weight, np.float64)
    share = np.asarray(unsupported, np.float64).sum(axis=1)
    sums = (weight.sum(axis=1), (weight**2).sum(axis=1), weight.max(axis=1))
    return support_of_sums(*sums, share, weight.shape[1], gates)


def support_of_sums(
    total: np.ndarray,
    squares: np.ndarray,
    largest: np.ndarray,
    unsupported: np.ndarray,
    requests: int,
    gates: SupportGates | None = None,
) -> list[Support]:
    """Applies the gates.

    With `q_r = sum_{i shown} theta_{pos(i)} theta_{sigma(i)} / (e0(i) Theta_r)`, whose expectation is 1 for **each**
    request of a supported setting whatever the requests are (so its standard error needs no clustering):

        ESS / n = (sum q)^2 / (n sum q^2)

    Args:
        total: float64 `[S]`. Sum of `q` over the requests.
        squares: float64 `[S]`. Sum of its squares.
        largest: float64 `[S]`. The largest `q`.
        unsupported: float64 `[S]`. Sum of the examination on candidates under the exposure floor.
        requests: int. How many there are.
        gates: SupportGates. Limits. Defaults to `SupportGates()`.

    Returns:
        List of `Support`, one a setting.
    """
    gates = gates or SupportGates()
    mean = total / requests
    spread = np.maximum(squares - requests * mean**2, 0)
    error = np.sqrt(spread / (requests - 1) / requests) if requests > 1 else np.full(len(total), np.inf)
    effective = np.divide(total**2, requests * squares, out=np.zeros_like(total), where=squares > 0)
    share = np.divide(largest, total, out=np.ones_like(total), where=total > 0)
    found = []
    for row in zip(mean, error, effective, unsupported / requests, share, strict=True):
        numbers = Support("", *(float(number) for number in row))
        found.append(replace(numbers, reason=_reason(numbers, gates)))
    return found


def _reason(found: Support, gates: SupportGates) -> str:
    if found.unsupported > gates.max_unsupported:
        return (
            f"{found.unsupported:.0%} of the new order's examination is on candidates that the log almost never shows "
            f"(limit {gates.max_unsupported:.0%})"
        )
    error = found.standard_error
    if error >= gates.max_standard_error:
        return f"too few requests: standard error of the weight mean {error:.3f} (limit {gates.max_standard_error})"
    if abs(found.weight_mean - 1) > gates.max_deviation * max(error, 1e-6):
        limit = f"{gates.max_deviation:g} standard errors of {error:.3f}"
        return f"weight mean {found.weight_mean:.3f} is not 1 within {limit}"
    if found.effective < gates.min_effective:
        return f"effective sample size is {found.effective:.0%} of the requests (limit {gates.min_effective:.0%})"
    if found.largest > gates.max_largest:
        return f"one request holds {found.largest:.0%} of the weight (limit {gates.max_largest:.0%})"
    return ""


def matured_conversions(log: ReplayLog) -> int:
    """Conversions of requests whose attribution window is over."""
    return int(log.conversion[log.mature[log.request_of_row]].sum())
