"""What the estimators over all candidates of a request share: one assembly of their sums."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ranking.fusion import FusionWeights
from ranking.replay.estimators.labels import counted_requests
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import MATCH, RankSums
from ranking.replay.settings import score_terms

__all__ = [
    "BIASED_BANNER",
    "EXAMINATION_BANNER",
    "candidate_sums",
    "examination_banner",
    "looks_to_give",
    "looks_taken",
]

BIASED_BANNER = "Re-ordering estimate, not causal: it favours weights that agree with the order of the logging policy."
EXAMINATION_BANNER = "Examination as stated by the log, not estimated."


def examination_banner(log: ReplayLog) -> tuple[str, ...]:
    """The banner of an examination that nobody estimated."""
    return (EXAMINATION_BANNER,) if log.examination_method == "stated" else ()


def looks_to_give(log: ReplayLog, theta: np.ndarray) -> np.ndarray:
    """Examination that the request of each row has to give, `Theta_r`, float64 `[n]`; 1 where it showed nothing."""
    total = np.concatenate([[0.0], np.cumsum(theta)])[log.slots][log.request_of_row]
    return np.where(total > 0, total, 1.0)


def looks_taken(log: ReplayLog, theta: np.ndarray) -> np.ndarray:
    """Examination of the place each row was shown at, `theta_pos`, float64 `[n]`; 0 where not shown."""
    return np.where(log.position >= 0, theta[np.maximum(log.position, 0)], 0.0)


def candidate_sums(
    log: ReplayLog,
    production: FusionWeights,
    theta: np.ndarray,
    coefficients: Mapping[str, np.ndarray],
    *,
    matched: bool = False,
    ratios: Mapping[str, str] | None = None,
) -> RankSums:
    """Sums over the candidates of each request; adds `new_items`, the share of examination on new items, exact.

    Args:
        log: ReplayLog.
        production: FusionWeights.
        theta: float64 `[K]`. What a place is worth.
        coefficients: dict of str to array `[n]`.
        matched: bool. Whether they count where the new place is the logged one, instead of `theta`. Defaults to
            `False`.
        ratios: dict of str to str. See `RankSums`. Defaults to none.
    """
    columns = {name: np.asarray(column, np.float32) for name, column in coefficients.items()}
    columns["new_items"] = (log.new / looks_to_give(log, theta)).astype(np.float32)
    return RankSums(
        offsets=log.offsets,
        terms=np.ascontiguousarray(np.stack(list(score_terms(log, production).values()))),  # [J, n]
        slots=log.slots,
        cluster=log.user,
        gains=theta[None],
        coefficients=columns,
        gain_of={name: MATCH for name in coefficients} if matched else {},
        counted=counted_requests(log, list(columns)),
        ratios=dict(ratios or {}),
        place=log.position.astype(np.int32) if matched else None,
        category=log.category,
    )
