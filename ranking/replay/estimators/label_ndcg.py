"""E0: what was shown, re-ordered, with labels as relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators.candidates import BIASED_BANNER
from ranking.replay.estimators.labels import GROUPS, group_of_row, labels_of
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import RankSums
from ranking.replay.settings import score_terms

__all__ = ["E0LabelNDCG"]


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

    Reference: Jarvelin & Kekalainen, TOIS 2002.
    """

    group: str = "request"
    places: int = 10
    name: ClassVar[str] = "E0"
    causal: ClassVar[bool] = False
    assumptions: ClassVar[str] = "labels are relevance; what was not shown is worth nothing; places do not matter"
    formula: ClassVar[str] = "1/G sum_g DCG(sigma_g) / IDCG_g"
    source: ClassVar[str] = "Jarvelin & Kekalainen, TOIS 2002"

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise UserError(f"`group` should be one of {list(GROUPS)}. Received: {self.group!r}.")
        if self.places < 1:
            raise ValueError(f"`places` should be a positive integer. Received: places={self.places}.")

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return (BIASED_BANNER,)

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each group as a sum over its rows, see `RankSums`.

        Raises:
            UserError: clicks are the same everywhere, or one user only.
        """
        shown = np.flatnonzero(log.position >= 0)
        labels = labels_of(log)
        key = group_of_row(log, self.group)[shown]
        order = np.argsort(key, kind="stable")
        rows, (groups, first, key, size) = shown[order], _ragged(key[order])
        # Rows of an item belong to many users: there the item is what intervals resample.
        cluster = groups if self.group == "item" else log.user[log.request_of_row[rows[first]]]
        discount = 1 / np.log2(np.arange(self.places) + 2.0)
        cumulative = np.concatenate([[0.0], np.cumsum(discount)])
        coefficients, counted = {}, {}
        for name, label in labels.items():
            gain = label[rows]
            positives = np.bincount(key, weights=gain > 0)
            ideal = _ideal(gain, key, first, discount)  # [G]
            counted[name] = (positives > 0) & (positives < size)
            coefficients[name] = (gain / np.where(ideal > 0, ideal, 1)[key]).astype(np.float32)
        total = cumulative[np.minimum(size, self.places)]
        coefficients["new_items"] = (log.new[rows] / total[key]).astype(np.float32)
        counted["new_items"] = np.ones(len(groups), bool)
        # Of a slate diversity is a property, of all that a user or an item ever met it is not.
        category = log.category[rows] if log.category is not None and self.group == "request" else None
        return RankSums(
            offsets=np.concatenate([first, [len(rows)]]).astype(np.int64),
            terms=np.ascontiguousarray(np.stack(list(score_terms(log, production).values()))[:, rows]),  # [J, n]
            gains=discount[None],
            slots=size,
            coefficients=coefficients,
            counted=counted,
            cluster=cluster,
            category=category,
        )


def _ideal(gain: np.ndarray, key: np.ndarray, first: np.ndarray, discount: np.ndarray) -> np.ndarray:
    """DCG of the best order of each group."""
    best = np.lexsort((-gain, key))  # groups are contiguous: `first` holds after this sort too
    place = np.arange(len(key)) - first[key]
    seen = place < len(discount)
    return np.bincount(key[seen], weights=gain[best][seen] * discount[place[seen]], minlength=len(first))


def _ragged(key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of a sorted key: its distinct values, their first rows, a dense key, their sizes."""
    groups, first, dense, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    return groups, first, dense, size
