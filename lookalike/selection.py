"""Who is chosen out of a population that passes by once: the cut, the reach, the best so far."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Cut", "Reach", "Selection"]

BINS = 10_000  # bins of the reach a unit of similarity
ROOM = 8_192  # rows a selection takes in before it drops those that fell out


@dataclass(frozen=True)
class Cut:
    """How large an audience is: exactly one of the four.

    Sizes are counted from the best: with the same seeds a smaller audience is the head of a larger one, and a band is
    what one has beyond the other.

    Args:
        size: int, optional. So many users.
        percent: float, optional. So many percent of the eligible population, in (0, 100], rounded up.
        threshold: float, optional. Everyone eligible with a similarity of at least this, in [-1, 1].
        band: two floats, optional. The audience of the higher percentage without that of the lower.

    Raises:
        ValueError: if none is given or more than one, or it is out of its range.
    """

    size: int | None = None
    percent: float | None = None
    threshold: float | None = None
    band: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        options = ("size", "percent", "threshold", "band")
        given = [name for name in options if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "a cut should be exactly one of `size`, `percent`, `threshold` and `band`. "
                f"Received: {' and '.join(given) or 'none'}."
            )
        if self.size is not None and (isinstance(self.size, bool) or self.size != int(self.size) or self.size < 1):
            raise ValueError(f"`size` should be a positive integer. Received: size={self.size}.")
        if self.percent is not None and not 0 < self.percent <= 100:
            raise ValueError(f"`percent` should be above 0 and at most 100. Received: percent={self.percent}.")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"`threshold` should be in [-1, 1]. Received: threshold={self.threshold}.")
        if self.band is not None and not (len(self.band) == 2 and 0 <= self.band[0] < self.band[1] <= 100):
            raise ValueError(f"`band` should be two percentages, 0 <= low < high <= 100. Received: band={self.band}.")

    def ranks(self, eligible: int) -> tuple[int, int]:
        """First and last rank (exclusive) of the audience among `eligible` users; all of them for a threshold."""
        if self.size is not None:
            return 0, min(int(self.size), eligible)
        if self.band is not None:
            return _share(self.band[0], eligible), _share(self.band[1], eligible)
        return 0, eligible if self.percent is None else _share(self.percent, eligible)


@dataclass(frozen=True)
class Reach:
    """How many of the eligible are how similar: known before one commits to a size.

    Args:
        counts: int64 `[20001]`. Eligible users by similarity, in bins of 1e-4 from -1 on; the last is for exactly 1.
    """

    counts: NDArray[np.int64]

    @property
    def eligible(self) -> int:
        """How many users there are in all."""
        return int(self.counts.sum())

    def at_least(self, threshold: float) -> int:
        """Users with a similarity of `threshold` or more: exact for multiples of 1e-4, else of the next above."""
        place = (threshold + 1) * BINS
        first = round(place) if abs(place - round(place)) < 1e-6 else math.ceil(place)
        return int(self.counts[max(first, 0) :].sum())

    def threshold(self, size: int) -> float:
        """The largest multiple of 1e-4 that at least `size` users reach.

        Raises:
            ValueError: if `size` is not between 1 and the eligible population.
        """
        if not 1 <= size <= self.eligible:
            raise ValueError(
                f"`size` should be between 1 and the {self.eligible} who are eligible. Received: size={size}."
            )
        reached = np.cumsum(self.counts[::-1])  # [bins], from the most similar down
        return _edge(len(self.counts) - 1 - int(np.searchsorted(reached, size)))

    def curve(self, points: int = 200) -> tuple[list[float], list[int]]:
        """Falling similarities, and how many users are at least so similar; empty where nobody is eligible.

        Args:
            points: int. At most so many, evenly spaced between the highest and the lowest similarity. Defaults to
                `200`.
        """
        used = np.flatnonzero(self.counts)
        if used.size == 0:
            return [], []
        bins = np.unique(np.linspace(used[-1], used[0], max(points, 2)).round().astype(np.int64))[::-1]
        sizes = np.cumsum(self.counts[::-1])[len(self.counts) - 1 - bins]
        return [_edge(number) for number in bins.tolist()], sizes.tolist()


class Selection:
    """The best rows so far of one list, by falling score and of equal scores by row; rows must come in rising order.

    What is kept is bounded by what can still be chosen, not by what passes by.

    Args:
        most: int or `None`. How many are kept; `None` keeps all that reach the threshold.
        threshold: float. Lower ones are never kept. Defaults to `-1.0`, below which there is no similarity.
    """

    def __init__(self, most: int | None, threshold: float = -1.0):
        self.counts = np.zeros(2 * BINS + 1, np.int64)
        self._most = most
        self._bar = np.nextafter(threshold, -np.inf)  # only what is above it may come in
        self._rows: list[NDArray[np.int64]] = []
        self._scores: list[NDArray[np.float32]] = []
        self._centroids: list[NDArray[np.int32]] = []
        self._held = 0

    def admit(self, scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Count the scores `[n]` of the rows in `mask`; the places of those that may be among the best."""
        places = np.empty(len(scores), np.int64)
        places = places[: _admit(scores, mask, self._bar, self.counts, places)]
        if self._most is None or self._held + len(places) <= self._most or len(places) <= self._most // 8:
            return places
        # Many came: raise the bar before anything is worked out about them.
        new = scores[places]
        self._bar = float(_last(np.concatenate([*self._scores, new]), self._most))
        return places[new >= self._bar]

    def add(self, rows: NDArray[np.int64], scores: NDArray[np.float32], centroids: NDArray[np.int32]) -> None:
        """Take in rows that were admitted."""
        self._rows.append(rows)
        self._scores.append(scores)
        self._centroids.append(centroids)
        self._held += len(rows)
        if self._most is not None and self._held > self._most + max(self._most, ROOM):
            self._drop()

    def best(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]:
        """Rows, scores and centroids, the best first."""
        if self._most is not None and self._held > self._most:
            self._drop()
        rows, scores, centroids = self._joined()
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order], centroids[order]

    def _drop(self) -> None:
        """Keep the best `most`; of those that tie for the last place, the first rows."""
        rows, scores, centroids = self._joined()
        most = self._most or 0
        last = _last(scores, most)
        above, tied = scores > last, np.flatnonzero(scores == last)
        above[tied[: most - int(above.sum())]] = True
        self._rows, self._scores, self._centroids = [rows[above]], [scores[above]], [centroids[above]]
        self._held = most
        self._bar = float(last)  # a later row with this score comes after all that are kept

    def _joined(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32]]:
        return (
            np.concatenate([np.empty(0, np.int64), *self._rows]),
            np.concatenate([np.empty(0, np.float32), *self._scores]),
            np.concatenate([np.empty(0, np.int32), *self._centroids]),
        )


def _last(scores: NDArray[np.float32], most: int) -> np.float32:
    """The lowest of the `most` highest scores."""
    return np.partition(scores, len(scores) - most)[len(scores) - most]


def _share(percent: float, eligible: int) -> int:
    """`percent` of `eligible`, rounded up; exact, as the percentage is written."""
    return math.ceil(Fraction(str(percent)) * eligible / 100)


def _edge(number: int) -> float:
    return (number - BINS) / BINS


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _admit(scores, mask, bar, counts, places):
    """Fill `counts` by score, and `places` with those above `bar`; how many those are."""
    found = 0
    for i in range(len(scores)):
        if mask[i]:
            score = np.float64(scores[i])
            counts[np.int64(np.floor(score * BINS)) + BINS] += 1  # in this order: score + 1 would lose digits
            places[found] = i
            found += score > bar
    return found
