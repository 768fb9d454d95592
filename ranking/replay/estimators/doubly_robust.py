"""E6: the model's own prediction, corrected by what was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators.candidates import candidate_sums, examination_banner, looks_taken
from ranking.replay.estimators.checks import checked_exposure
from ranking.replay.estimators.exposure import EXPOSURE_FLOOR, check_clip, gate_coefficients, inverse_exposure
from ranking.replay.estimators.labels import LATE, labels_of
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import RankSums

__all__ = ["E6DoublyRobust"]


@dataclass(frozen=True)
class E6DoublyRobust:
    """Doubly robust: right when either the propensities or the reward model is.

        1/R sum_r [ sum_i theta_{sigma(i)} m_i + sum_{i shown} theta_{sigma(i)} / e0(i) (y_i - theta_pos(i) m_i) ]

    `m` is what the log's own model says of a look: `pctr` for clicks, `pctr pcvr` for conversions, `pctr pcvr price`
    (without a price, `pctr pcvr`) for value; each times one factor that makes it add up to the labels, found on the
    **other** half of the users, so that no label is compared with a prediction that has seen it.
    Assumes the position-based model with the examination of the log, and right propensities *or* a right `m`.

    Args:
        clip: float. Largest `1/e0` of the correction. Defaults to none.

    Reference: Dudik, Langford & Li, ICML 2011; Oosterhuis, WWW 2022 (position-based model).
    """

    clip: float | None = None
    name: ClassVar[str] = "E6"
    causal: ClassVar[bool] = True
    assumptions: ClassVar[str] = (
        "a click needs a look; looks depend on the place only; the propensities or the model of rewards is right"
    )
    formula: ClassVar[str] = (
        "1/R sum_r [sum_i theta_sigma(i) m_i + sum_{i shown} theta_sigma(i) / e0(i) (y_i - theta_pos(i) m_i)]"
    )
    source: ClassVar[str] = "Dudik, Langford & Li, ICML 2011; Oosterhuis, WWW 2022"

    def __post_init__(self) -> None:
        check_clip(self.clip)

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return examination_banner(log)

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each request as a sum over its candidates, and what the gates need, see `RankSums`.

        Raises:
            UserError: as E3, or the log lacks the score part `pctr`.
        """
        theta, propensity = checked_exposure(log, self.name)
        looked, inverse = looks_taken(log, theta), inverse_exposure(log, propensity, self.clip)
        rewards = _rewards(log)
        coefficients = {}
        for name, label in labels_of(log).items():
            model = rewards[name] * _factor(log, label, looked * rewards[name], final_only=name in LATE)
            coefficients[name] = model + inverse * (label - looked * model)
        coefficients |= gate_coefficients(log, theta, propensity, EXPOSURE_FLOOR, self.clip)
        return candidate_sums(log, production, theta, coefficients)


def _rewards(log: ReplayLog) -> dict[str, np.ndarray]:
    """What the log's score parts say of a look at each candidate, float64 `[n]`, up to a factor."""
    if "pctr" not in log.parts:
        raise UserError("E6 needs the score part `pctr` as its model of rewards. Received: no such part in the log.")
    for name in ("pctr", "pcvr"):
        column = log.parts.get(name, np.ones(1))
        if not (np.isfinite(column).all() and column.min() >= 0):
            raise UserError(f"E6 needs a probability in each row of `{name}`. Received: a missing or negative one.")
    clicks = log.parts["pctr"].astype(np.float64)
    conversions = clicks * log.parts["pcvr"] if "pcvr" in log.parts else clicks
    price = log.parts.get("price")
    if price is None or np.isnan(price).all():
        return {"clicks": clicks, "conversions": conversions, "value": conversions}
    known = np.where(np.isnan(price), np.nanmean(price), price)
    return {"clicks": clicks, "conversions": conversions, "value": conversions * known}


def _factor(log: ReplayLog, label: np.ndarray, predicted: np.ndarray, *, final_only: bool) -> np.ndarray:
    """Sum of labels over sum of predictions, of the users of the other half, float64 `[n]`; 0 where none is predicted.

    Args:
        log: ReplayLog.
        label: array `[n]`.
        predicted: array `[n]`. 0 where not shown.
        final_only: bool. Whether only requests with final labels tell it.
    """
    request = log.request_of_row
    half = (np.unique(log.user, return_inverse=True)[1] % 2)[request]  # [n]: every second user
    told = log.mature[request] if final_only else np.ones(len(half), bool)
    labels = np.bincount(half[told], weights=label[told], minlength=2)
    predictions = np.bincount(half[told], weights=predicted[told], minlength=2)
    factor = np.divide(labels, predictions, out=np.zeros(2), where=predictions > 0)
    return factor[1 - half]
