"""All values that sums over ranks take as one weight moves: exact, by following the order from crossing to crossing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ranking.replay.ranks import DIVERSITY, RankSums, Totals
from ranking.replay.sweep_kernels import PAIRS, follow

__all__ = ["Curve", "Line"]


@dataclass(frozen=True)
class Curve:
    """What some outputs are on average over their requests, as one weight moves: constant between breakpoints.

    Args:
        low: float. Where the weight begins.
        high: float. Where it ends.
        breakpoints: float64 `[B]`, ascending, between the two.
        values: dict of str to float64 `[B + 1]`. Of each stretch between two breakpoints.
    """

    low: float
    high: float
    breakpoints: np.ndarray
    values: dict[str, np.ndarray]

    def at(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The values at some weights; at a breakpoint those of the stretch that it begins."""
        stretch = np.searchsorted(self.breakpoints, weights, side="right")
        return {name: values[stretch] for name, values in self.values.items()}

    @property
    def middles(self) -> np.ndarray:
        """A weight inside of each stretch, float64 `[B + 1]`."""
        edges = np.concatenate([[self.low], self.breakpoints, [self.high]])
        return (edges[:-1] + edges[1:]) / 2


class Line:
    """One weight of a setting moves over a range, the others are held.

    Scores are linear in it, so that the order of a request changes only where two candidates meet. The first places
    are followed from meeting to meeting: which pair is next, swap it, note what the outputs gained. Every change of
    every output is found, whatever the number of candidates that carry a coefficient.

    Args:
        sums: RankSums.
        setting: float32 `[J]`. The weights that are held.
        part: int. Which weight moves.
        low: float. Where it begins.
        high: float. Where it ends.
        names: sequence of str. Outputs, with those that `sums.ratios` divides them by.

    Reference: Basch, Guibas & Hershberger 1997 (kinetic data structures); REPLAY's exact line sweep.
    """

    def __init__(
        self, sums: RankSums, setting: np.ndarray, part: int, low: float, high: float, names: Sequence[str]
    ) -> None:
        setting = np.asarray(setting, np.float64)
        if setting.shape != (len(sums.terms),):
            raise ValueError(f"`setting` should have shape [{len(sums.terms)}]. Received: {list(setting.shape)}.")
        if not 0 <= part < len(setting):
            raise ValueError(f"`part` should be in [0, {len(setting)}). Received: part={part}.")
        if not -np.inf < low < high < np.inf:
            raise ValueError(f"`low` should be below `high`, both finite. Received: low={low}, high={high}.")
        if not names or not set(names) <= set(sums.outputs):
            raise ValueError(f"`names` should be among {list(sums.outputs)}. Received: {list(names)}.")
        self.sums, self.low, self.high = sums, float(low), float(high)
        self.names = tuple(names)
        self._outputs = tuple(dict.fromkeys([*names, *(sums.ratios[name] for name in names if name in sums.ratios)]))
        self._slope = sums.terms[part].astype(np.float64)
        self._base = np.zeros(len(self._slope))
        for index, weight in enumerate(setting):
            if index != part and weight:
                self._base += weight * sums.terms[index]
        _, self._cluster = np.unique(sums.cluster, return_inverse=True)
        self._counted = np.stack([sums.requests_counted(name) for name in self._outputs])  # [O, R]

    def trace(
        self, points: Sequence[float] | np.ndarray = (), by_cluster: Sequence[str] = ()
    ) -> tuple[Curve, Totals, dict[str, np.ndarray]]:
        """The whole line, exact, and sums over the requests at some points without holding every request.

        Args:
            points: array `[P]`. Ascending weights. Defaults to none.
            by_cluster: sequence of str. Outputs whose sums by cluster are wanted. Defaults to none.

        Returns:
            `Curve`; `Totals` at the points; dict of str to float64 `[U, P]`, sums of each cluster at the points.
        """
        points = np.asarray(points, np.float64)
        if np.any(np.diff(points) <= 0):
            raise ValueError("`points` should ascend.")
        clusters = np.zeros((len(by_cluster), int(self._cluster.max()) + 1, len(points)))
        start, times, changes, found = self._follow(points, by_cluster, clusters)
        order = np.argsort(times, kind="stable")
        times = np.concatenate([[self.low], times[order]])
        last = np.flatnonzero(np.r_[times[1:] > times[:-1], True])  # of changes at one time, the last
        running = {}
        for index, name in enumerate(self._outputs):
            running[name] = (start[index] + np.concatenate([[0.0], np.cumsum(changes[order, index])]))[last]
        totals = Totals(*(dict(zip(self._outputs, block, strict=True)) for block in found))
        curve = Curve(self.low, self.high, times[last][1:], self.means(running))
        return curve, totals, dict(zip(by_cluster, clusters, strict=True))

    def requests(self, name: str) -> int:
        """How many requests an output is averaged over, at least 1."""
        return max(int(self._counted[self._outputs.index(name)].sum()), 1)

    def means(self, totals: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Averages of the names out of sums of the outputs; ratios of averages where the sums say so."""
        found = {}
        for name in self.names:
            found[name] = totals[name] / self.requests(name)
            if name in self.sums.ratios:
                other = self.sums.ratios[name]
                under = totals[other] / self.requests(other)
                found[name] = np.divide(found[name], under, out=np.full_like(under, np.nan), where=under > 0)
        return found

    def _follow(
        self, points: np.ndarray, by_cluster: Sequence[str], clusters: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        sums, rows = self.sums, len(self._slope)
        nothing = np.zeros(rows, np.float32)
        gains = np.asarray(sums.gains, np.float64)
        tables = [PAIRS if name == DIVERSITY else sums.gain_of.get(name, 0) for name in self._outputs]
        return follow(
            sums.offsets,
            self._base,
            self._slope,
            self.low,
            self.high,
            np.asarray(sums.slots, np.int64),
            np.concatenate([gains, np.zeros((len(gains), 1))], axis=1),
            np.array(tables, np.int64),
            np.full(rows, -1, np.int32) if sums.place is None else sums.place,
            np.stack([sums.coefficients.get(name, nothing) for name in self._outputs]),
            np.full(rows, -1, np.int32) if sums.category is None else sums.category,
            self._counted,
            self._cluster,
            points,
            np.array([self._outputs.index(name) for name in by_cluster], np.int64),
            clusters,
        )
