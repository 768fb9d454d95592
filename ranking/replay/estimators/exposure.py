"""E3 and E5: labels of shown items over how much the logging policy had them looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ranking.fusion import FusionWeights
from ranking.replay.estimators.candidates import candidate_sums, examination_banner, looks_taken, looks_to_give
from ranking.replay.estimators.checks import checked_exposure
from ranking.replay.estimators.labels import labels_of
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import RankSums

__all__ = ["EXPOSURE_FLOOR", "E3ExposureIPS", "E5SelfNormalised", "check_clip", "gate_coefficients", "inverse_exposure"]

EXPOSURE_FLOOR = 0.01  # a candidate with a smaller exposure counts as never shown


def check_clip(clip: float | None) -> None:
    """Largest inverse propensity: a finite number of at least 1, or None."""
    if clip is not None and not 1 <= clip < np.inf:
        raise ValueError(f"`clip` should be a finite number >= 1, or None. Received: clip={clip}.")


def inverse_exposure(log: ReplayLog, propensity: np.ndarray, clip: float | None) -> np.ndarray:
    """`1/e0` of shown rows, at most `clip`, float64 `[n]`; 0 where not shown."""
    shown = log.position >= 0
    inverse = np.where(shown, 1 / np.where(shown, propensity, 1), 0)
    return inverse if clip is None else np.minimum(inverse, clip)


def gate_coefficients(
    log: ReplayLog, theta: np.ndarray, propensity: np.ndarray, floor: float, clip: float | None
) -> dict[str, np.ndarray]:
    """What the support gates need: `weight` (without clipping), `unsupported`, and the part of the weight `clipped`.

    All are over the examination that the request has to give, so that `weight` is 1 in expectation.
    """
    total = looks_to_give(log, theta)
    looked = looks_taken(log, theta) / total
    inverse = inverse_exposure(log, propensity, None)
    found = {"weight": looked * inverse, "unsupported": (propensity < floor) / total}
    if clip is not None:
        found["clipped"] = looked * np.maximum(inverse - clip, 0)
    return found


@dataclass(frozen=True)
class E3ExposureIPS:
    """Exposure inverse propensity: clicks, conversions and value a request, over all its candidates.

        1/R sum_r sum_{i shown} y_i theta_{sigma(i)} / e0(i),   e0(i) = sum_k theta_k P(i at place k)

    `new_items` is the share of examination on new and long-tail items, exact: it needs no label. Requests whose
    conversions are not final yet are left out of conversions and value.
    Assumes the position-based model (a click needs a look; looks depend on the place only), the examination `theta`
    of the log, and `e0 > 0` wherever the new order looks: the support gates watch the last.

    Args:
        exposure_floor: float. A candidate with a smaller `e0` counts as unsupported. Defaults to `0.01`.
        clip: float. Largest `1/e0`: less noise, and an estimate that is low by the weight it loses, which is
            reported. Defaults to none.

    Reference: Li et al., KDD 2018 (item-position model); Joachims et al., WSDM 2017 (position-based model).
    """

    exposure_floor: float = EXPOSURE_FLOOR
    clip: float | None = None
    name: ClassVar[str] = "E3"
    causal: ClassVar[bool] = True
    assumptions: ClassVar[str] = (
        "a click needs a look; looks depend on the place only; every candidate could have been shown"
    )
    formula: ClassVar[str] = "1/R sum_r sum_{i shown} y_i theta_sigma(i) / e0(i), e0(i) = sum_k theta_k P(i at k)"
    source: ClassVar[str] = "Li et al., KDD 2018; Joachims et al., WSDM 2017"

    def __post_init__(self) -> None:
        if not 0 < self.exposure_floor < 1:
            raise ValueError(f"`exposure_floor` should be in (0, 1). Received: exposure_floor={self.exposure_floor}.")
        check_clip(self.clip)

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return examination_banner(log)

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each request as a sum over its candidates, and what the gates need, see `RankSums`.

        Raises:
            UserError: no exposure propensities or no examination, propensities that are not positive or of another
                examination, clicks that are the same everywhere, or one user only.
        """
        theta, propensity = checked_exposure(log, self.name)
        inverse = inverse_exposure(log, propensity, self.clip)
        coefficients = {name: label * inverse for name, label in labels_of(log).items()}
        coefficients |= gate_coefficients(log, theta, propensity, self.exposure_floor, self.clip)
        return candidate_sums(log, production, theta, coefficients)


@dataclass(frozen=True)
class E5SelfNormalised:
    """E3 over its own weights: what they miss or have too much of in a log cancels.

        sum_r sum_{i shown} y_i v_i / (sum_r sum_{i shown} theta_pos(i) v_i / Theta_r),
        v_i = theta_{sigma(i)} / e0(i),   Theta_r = sum of theta over the places of the request

    The denominator carries the examination of the place the item *was* shown at: without it the ratio is off by a
    factor, since `theta_pos(i) v_i`, not `v_i`, adds up to what the request has to give. Bias of order 1/R.
    Assumes what E3 assumes.

    Args:
        clip: float. Largest `1/e0`, in the numerator and in the denominator. Defaults to none.

    Reference: Swaminathan & Joachims, NeurIPS 2015.
    """

    clip: float | None = None
    name: ClassVar[str] = "E5"
    causal: ClassVar[bool] = True
    assumptions: ClassVar[str] = E3ExposureIPS.assumptions
    formula: ClassVar[str] = "sum y_i v_i / (sum theta_pos(i) v_i / Theta_r), v_i = theta_sigma(i) / e0(i)"
    source: ClassVar[str] = "Swaminathan & Joachims, NeurIPS 2015"

    def __post_init__(self) -> None:
        check_clip(self.clip)

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return examination_banner(log)

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """Numerators and denominator as sums over the candidates of each request, see `RankSums`.

        Raises:
            UserError: as E3.
        """
        theta, propensity = checked_exposure(log, self.name)
        labels, inverse = labels_of(log), inverse_exposure(log, propensity, self.clip)
        coefficients = {name: label * inverse for name, label in labels.items()}
        coefficients |= gate_coefficients(log, theta, propensity, EXPOSURE_FLOOR, self.clip)
        divisor = "weight"
        if self.clip is not None:
            divisor, coefficients["kept"] = "kept", coefficients["weight"] - coefficients["clipped"]
        sums = candidate_sums(log, production, theta, coefficients)
        return replace(sums, ratios=dict.fromkeys(labels, divisor))
