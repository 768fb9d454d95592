"""What a re-ordering would have earned: estimators, each with its formula and what it assumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import RankSums
from ranking.replay.settings import score_terms

__all__ = [
    "BIASED_BANNER",
    "EXAMINATION_BANNER",
    "GROUPS",
    "OBJECTIVES",
    "E0LabelNDCG",
    "E3ExposureIPS",
    "choose_estimator",
    "informative_groups",
]

OBJECTIVES = ("clicks", "conversions", "value", "new_items")
GROUPS = ("request", "user", "item")
BIASED_BANNER = "Re-ordering estimate, not causal: it favours weights that agree with the order of the logging policy."
EXAMINATION_BANNER = "Examination as stated by the log, not estimated."


def _labels(log: ReplayLog) -> dict[str, np.ndarray]:
    """The label of each objective that has one; labels that are not final yet are masked (0)."""
    mature = log.mature[log.request_of_row]
    labels = {
        "clicks": log.click.astype(np.float32),
        "conversions": np.where(mature, log.conversion, 0).astype(np.float32),
        "value": np.where(mature, log.value, 0).astype(np.float32),
    }
    if not labels["value"].any():
        del labels["value"]
    return labels


def _stack(columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(list(columns.values())))  # [J, n]


def informative_groups(log: ReplayLog, group: str = "request") -> dict[str, int]:
    """Groups of shown rows that have both a positive and a negative label: only those can order two settings.

    Args:
        log: ReplayLog.
        group: str. `"request"`, `"user"` or `"item"`.

    Returns:
        Dict of objective to count.
    """
    shown = log.position >= 0
    key = _group_of_row(log, group)[shown]
    counts = {}
    size = np.bincount(key)
    for name, label in _labels(log).items():
        positive = np.bincount(key, weights=label[shown] > 0, minlength=len(size))
        counts[name] = int(((positive > 0) & (positive < size)).sum())
    return counts


def _group_of_row(log: ReplayLog, group: str) -> np.ndarray:
    if group not in GROUPS:
        raise UserError(f"`group` should be one of {list(GROUPS)}. Received: {group!r}.")
    if group == "item":
        return log.item
    return log.request_of_row if group == "request" else log.user[log.request_of_row]


@dataclass(frozen=True)
class E0LabelNDCG:
    """Label NDCG: re-orders what was shown, with labels as relevance.

        1/G sum_g DCG(sigma_g) / IDCG_g,   DCG = sum_i y_i / log2(sigma(i) + 2) over the first `places`

    over the groups with a positive and a negative. `new_items` is the share of the discount on new items.
    Assumes that what was not shown is worth nothing and that labels do not depend on the place: **biased** to the
    order of the logging policy. For a log without propensities it is all there is.

    Args:
        group: str. What is ordered: the rows of a `"request"`, a `"user"` or an `"item"`. Defaults to `"request"`.
        places: int. Places that count. Defaults to `10`.

    Reference: Jarvelin & Kekalainen 2002.
    """

    group: str = "request"
    places: int = 10
    name: ClassVar[str] = "E0"
    causal: ClassVar[bool] = False
    assumptions: ClassVar[str] = "labels are relevance; what was not shown is worth nothing; places do not matter"

    def banners(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return (BIASED_BANNER,)

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each group as a sum over its rows, see `RankSums`."""
        shown = np.flatnonzero(log.position >= 0)
        key = _group_of_row(log, self.group)[shown]
        order = np.argsort(key, kind="stable")
        rows, (groups, first, key, size) = shown[order], _ragged(key[order])
        # Rows of an item belong to many users: there the item is what intervals resample.
        cluster = groups if self.group == "item" else log.user[log.request_of_row[rows[first]]]
        discount = 1 / np.log2(np.arange(self.places) + 2.0)
        cumulative = np.concatenate([[0.0], np.cumsum(discount)])
        coefficients, counted = {}, {}
        for name, label in _labels(log).items():
            gain = label[rows]
            positives = np.bincount(key, weights=gain > 0)
            ideal = self._ideal(gain, key, first, discount)  # [G]
            counted[name] = (positives > 0) & (positives < size)
            coefficients[name] = (gain / np.where(ideal > 0, ideal, 1)[key]).astype(np.float32)
        total = cumulative[np.minimum(size, self.places)]
        coefficients["new_items"] = (log.new[rows] / total[key]).astype(np.float32)
        counted["new_items"] = np.ones(len(groups), bool)
        return RankSums(
            offsets=np.concatenate([first, [len(rows)]]).astype(np.int64),
            terms=np.ascontiguousarray(_stack(score_terms(log, production))[:, rows]),
            gains=discount[None],
            slots=size,
            coefficients=coefficients,
            counted=counted,
            cluster=cluster,
        )

    @staticmethod
    def _ideal(gain: np.ndarray, key: np.ndarray, first: np.ndarray, discount: np.ndarray) -> np.ndarray:
        best = np.lexsort((-gain, key))  # groups are contiguous: `first` holds after this sort too
        place = np.arange(len(key)) - first[key]
        seen = place < len(discount)
        return np.bincount(key[seen], weights=gain[best][seen] * discount[place[seen]], minlength=len(first))


def _ragged(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of a sorted key: its distinct values, their first rows, a dense key, their sizes."""
    groups, first, dense, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    return groups, first, dense, size


@dataclass(frozen=True)
class E3ExposureIPS:
    """Exposure inverse propensity: clicks, conversions and value a request, over all its candidates.

        1/R sum_r sum_{i shown} y_i theta_{sigma(i)} / e0(i),   e0(i) = sum_k theta_k P(i at place k)

    `new_items` is the share of examination on new and long-tail items, exact: it needs no label. Requests whose
    conversions are not final yet are left out of conversions and value.
    Assumes the position-based model (a click needs a look; looks depend on the place only), the stated examination
    `theta`, and `e0 > 0` wherever the new order looks: the support gates watch the last.

    Args:
        exposure_floor: float. A candidate with a smaller `e0` counts as unsupported. Defaults to `0.01`.

    Reference: Li et al., KDD 2018 (item-position model); Joachims et al., WSDM 2017 (position-based model).
    """

    exposure_floor: float = 0.01
    name: ClassVar[str] = "E3"
    causal: ClassVar[bool] = True
    assumptions: ClassVar[str] = (
        "a click needs a look; looks depend on the place only, as stated; every candidate could have been shown"
    )

    def __post_init__(self) -> None:
        if not 0 < self.exposure_floor < 1:
            raise ValueError(f"`exposure_floor` should be in (0, 1). Received: exposure_floor={self.exposure_floor}.")

    def banners(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return (EXAMINATION_BANNER,)

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each request as a sum over its candidates, and what the gates need, see `RankSums`.

        Raises:
            UserError: no exposure propensities or no examination, or propensities of another examination.
        """
        theta, propensity = self._checked(log)
        slots, request = log.slots, log.request_of_row
        total = np.concatenate([[0.0], np.cumsum(theta)])[slots][request]  # [n]: examination a request has to give
        total = np.where(total > 0, total, 1)
        shown = log.position >= 0
        inverse = np.where(shown, 1 / np.where(shown, propensity, 1), 0)  # [n]
        looked = np.where(shown, theta[np.maximum(log.position, 0)], 0)  # [n]
        coefficients = {name: (label * inverse).astype(np.float32) for name, label in _labels(log).items()}
        coefficients["new_items"] = (log.new / total).astype(np.float32)
        coefficients["weight"] = (looked * inverse / total).astype(np.float32)
        coefficients["unsupported"] = ((propensity < self.exposure_floor) / total).astype(np.float32)
        late = ("conversions", "value")
        everything = np.ones(log.requests, bool)
        return RankSums(
            offsets=log.offsets,
            terms=_stack(score_terms(log, production)),
            gains=theta[None],
            slots=slots,
            coefficients=coefficients,
            counted={name: log.mature if name in late else everything for name in coefficients},
            cluster=log.user,
        )

    @staticmethod
    def _checked(log: ReplayLog) -> tuple[np.ndarray, np.ndarray]:
        """The examination and the propensities, after the check that the second was made with the first."""
        theta, propensity = log.examination, log.exposure_propensity
        if propensity is None:
            other = " (`position_propensity` is another number, for E4)" if log.position_propensity is not None else ""
            raise UserError(
                f"E3 needs the column `exposure_propensity` in candidates{other}. Received: no such column."
            )
        if theta is None:
            raise UserError("E3 needs `examination` under [replay] in dataset.toml. Received: nothing.")
        slots, shown = log.slots, log.position >= 0
        if slots.max() > len(theta) or log.position.max() >= len(theta):
            raise UserError(
                f"`examination` should have a value for each shown place, {slots.max()}. Received: {len(theta)}."
            )
        if not np.isfinite(propensity).all() or np.any(propensity < 0) or np.any(propensity[shown] <= 0):
            raise UserError(
                "`exposure_propensity` should be a number >= 0 on every candidate and > 0 on shown ones; a column that "
                "is empty where an item was not shown is a `position_propensity`."
            )
        # Each place is filled by exactly one candidate, so exposures of a request add up to its examination.
        wanted = np.concatenate([[0.0], np.cumsum(theta)])[slots]
        found = np.add.reduceat(propensity, log.offsets[:-1])
        wrong = np.flatnonzero(np.abs(found - wanted) > 0.01 * wanted)
        if len(wrong):
            first = wrong[0]
            raise UserError(
                f"`exposure_propensity` should add up to the examination of the shown places, {wanted[first]:.4g}, in "
                f"request {log.request_id[first]!r}. Received: {found[first]:.4g}, in {len(wrong)} of {log.requests} "
                "requests: the propensities are of another kind or were made with another `examination`."
            )
        return theta, propensity


def choose_estimator(log: ReplayLog, group: str = "request") -> E0LabelNDCG | E3ExposureIPS:
    """E3 where the log has exposure propensities of a policy that explored, else E0."""
    if group not in GROUPS:
        raise UserError(f"`group` should be one of {list(GROUPS)}. Received: {group!r}.")
    if log.exposure_propensity is None or set(log.exploration) == {"none"}:
        return E0LabelNDCG(group=group)
    return E3ExposureIPS()
