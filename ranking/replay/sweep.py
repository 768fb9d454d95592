"""All values that sums over ranks take as one weight moves: exact, by following the order from crossing to crossing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from ranking.replay.ranks import MATCH, RankSums

__all__ = ["Curve", "Line", "Moments"]

DIVERSITY = -2  # in the tables of gains: the output is made of pairs of places


@numba.njit(nogil=True, cache=True)
def _meeting(base, slope, above, below, now):
    """When the line below reaches the one above, infinity where never. Two lines change places once at most."""
    gain = slope[below] - slope[above]
    return max(now, (base[above] - base[below]) / gain) if gain > 0 else np.inf


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "nsz"})
def _challenger(base, slope, outside, last, now, times):
    """The first line outside the top that reaches its last one, and when; of several at once the steepest."""
    mine, level = slope[last], base[last]
    soonest = np.inf
    for i in range(base.size):  # no branches: this loop stays in vector registers
        gain = outside[i] - mine
        time = (level - base[i]) / gain
        time = now if time < now else time
        time = time if gain > 0 else np.inf
        times[i] = time
        soonest = time if time < soonest else soonest
    found = -1
    if soonest < np.inf:
        for i in range(base.size):
            if times[i] == soonest and (found < 0 or slope[i] > slope[found]):
                found = i
    return soonest, found


@numba.njit(nogil=True, cache=True)
def _top(base, slope, at, outside, order):
    """The best lines just above `at`, into `order`: of equal ones the steeper, then the first.

    `outside` becomes the slope of the others, minus infinity for those in the top: they can never come in.
    """
    outside[:] = slope
    for place in range(order.size):
        best, most = -1, -np.inf
        for i in range(base.size):
            if outside[i] > -np.inf:
                score = base[i] + at * slope[i]
                if score > most or (score == most and slope[i] > slope[best]):
                    best, most = i, score
        order[place], outside[best] = best, -np.inf


@numba.njit(nogil=True, cache=True)
def _worth(gains, table, rank, place):
    """The gain of a rank; beyond the last place none."""
    if table == MATCH:
        return 1.0 if rank == place and rank < gains.shape[1] - 1 else 0.0
    return gains[table, rank]


@numba.njit(nogil=True, cache=True)
def _note(values, points, at, before, user, moments, chosen, by_cluster):
    """Adds a request's values to all points from `at` on that lie before a time; the next point."""
    end = at
    while end < points.size and points[end] < before:
        end += 1
    if end > at:
        for output in range(values.size):
            value = values[output]
            for point in range(at, end):
                moments[0, output, point] += value
                moments[1, output, point] += value * value
                moments[2, output, point] = max(moments[2, output, point], value)
        for index in range(chosen.size):
            value = values[chosen[index]]
            for point in range(at, end):
                by_cluster[index, user, point] += value
    return end


@numba.njit(nogil=True, cache=True)
def _start(order, first, gains, tables, place, coefficients, category, values):
    """The outputs of a request whose places are filled by `order`, into `values`."""
    values[:] = 0.0
    for output in range(values.size):
        if tables[output] == DIVERSITY:
            values[output] = _diversity(order, first, gains[0], category)
            continue
        for rank in range(order.size):
            row = first + order[rank]
            values[output] += coefficients[output, row] * _worth(gains, tables[output], rank, place[row])


@numba.njit(nogil=True, cache=True)
def _diversity(order, first, gain, category):
    """The chance that two looks at different places fall on different categories; 0 where there is one place."""
    apart, pairs = 0.0, 0.0
    for k in range(order.size):
        for other in range(k):
            both = gain[k] * gain[other]
            pairs += both
            if category[first + order[k]] != category[first + order[other]]:
                apart += both
    return apart / pairs if pairs > 0 else 0.0


@numba.njit(nogil=True, cache=True)
def _swap(order, first, rank, under, above, below, gains, tables, place, coefficients, category, values, change):
    """What each output gains when `below` takes the place of `above`, into `change`; whether anything changes."""
    moved = False
    high, low = first + below, first + above  # rows that go up and down
    for output in range(values.size):
        change[output] = 0.0
        table = tables[output]
        if table == DIVERSITY:
            if category[high] != category[low]:
                order[rank] = below
                if under < order.size:
                    order[under] = above
                change[output] = _diversity(order, first, gains[0], category) - values[output]
                order[rank] = above
                if under < order.size:
                    order[under] = below
        else:
            up, down = coefficients[output, high], coefficients[output, low]
            if up != 0:
                change[output] += up * (
                    _worth(gains, table, rank, place[high]) - _worth(gains, table, under, place[high])
                )
            if down != 0:
                change[output] -= down * (
                    _worth(gains, table, rank, place[low]) - _worth(gains, table, under, place[low])
                )
        moved |= change[output] != 0
    return moved


@numba.njit(nogil=True, cache=True)
def _follow(
    offsets, base, slope, low, high, slots, gains, tables, place, coefficients, category, counted, cluster,
    points, chosen, by_cluster,
):  # fmt: skip
    """The start at `low`, every change with its time, and moments of every output at `points`."""
    outputs, wide = len(coefficients), gains.shape[1] - 1  # the last column of gains is 0: beyond the last place
    start, moments = np.zeros(outputs), np.zeros((3, outputs, points.size))
    times, changes, count = np.empty(1024), np.empty((1024, outputs)), 0
    biggest = np.max(offsets[1:] - offsets[:-1])
    mask, scratch, ranking, meetings = np.empty(biggest), np.empty(biggest), np.empty(wide, np.int64), np.empty(wide)
    values, change = np.empty(outputs), np.empty(outputs)
    for request in range(len(offsets) - 1):
        first, size = offsets[request], offsets[request + 1] - offsets[request]
        b, s, outside = base[first : first + size], slope[first : first + size], mask[:size]
        top = min(slots[request], size, wide)
        order, user, at = ranking[:top], cluster[request], 0
        _top(b, s, low, outside, order)
        _start(order, first, gains, tables, place, coefficients, category, values)
        values *= counted[:, request]
        start += values
        for rank in range(top - 1):
            meetings[rank] = _meeting(b, s, order[rank], order[rank + 1], low)
        soonest, newcomer = np.inf, -1
        if top:
            soonest, newcomer = _challenger(b, s, outside, order[top - 1], low, scratch)
        while top:
            rank, now = top - 1, soonest
            for k in range(top - 1):
                if meetings[k] < now:
                    rank, now = k, meetings[k]
            if now >= high:
                break
            enters = rank == top - 1
            above, below = order[rank], newcomer if enters else order[rank + 1]
            under = wide if enters else rank + 1
            if _swap(
                order, first, rank, under, above, below, gains, tables, place, coefficients, category, values, change
            ):  # fmt: skip
                change *= counted[:, request]
                at = _note(values, points, at, now, user, moments, chosen, by_cluster)
                values += change
                if count == times.size:
                    times, changes = np.append(times, times), np.concatenate((changes, changes))  # room for more
                times[count], changes[count] = now, change
                count += 1
            order[rank] = below
            if enters:
                outside[above], outside[below] = s[above], -np.inf
            else:
                order[rank + 1] = above
            for k in range(max(rank - 1, 0), min(rank + 2, top - 1)):
                meetings[k] = _meeting(b, s, order[k], order[k + 1], now)
            if rank >= top - 2:
                soonest, newcomer = _challenger(b, s, outside, order[top - 1], now, scratch)
        _note(values, points, at, np.inf, user, moments, chosen, by_cluster)
    return start, times[:count], changes[:count], moments


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


@dataclass(frozen=True)
class Moments:
    """Sums over the requests that count, at some weights.

    Args:
        total: dict of str to float64 `[P]`. Sum of the values of the requests.
        squares: dict of str to float64 `[P]`. Sum of their squares.
        largest: dict of str to float64 `[P]`. The largest of them, at least 0.
        by_cluster: dict of str to float64 `[U, P]`. Sums of each cluster, of the outputs asked for.
    """

    total: dict[str, np.ndarray]
    squares: dict[str, np.ndarray]
    largest: dict[str, np.ndarray]
    by_cluster: dict[str, np.ndarray]


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
        known = [*sums.coefficients, *(["diversity"] if sums.category is not None else [])]
        if not names or not set(names) <= set(known):
            raise ValueError(f"`names` should be among {known}. Received: {list(names)}.")
        self.sums, self.low, self.high = sums, float(low), float(high)
        self.names = tuple(names)
        self._outputs = tuple(dict.fromkeys([*names, *(sums.ratios[name] for name in names if name in sums.ratios)]))
        self._slope = sums.terms[part].astype(np.float64)
        self._base = np.zeros(len(self._slope))
        for index, weight in enumerate(setting):
            if index != part and weight:
                self._base += weight * sums.terms[index]
        _, self._cluster = np.unique(sums.cluster, return_inverse=True)
        everything = np.ones(len(sums.offsets) - 1, bool)
        self._counted = np.stack([sums.counted.get(name, everything) for name in self._outputs])  # [O, R]

    def trace(self, points: Sequence[float] | np.ndarray = (), by_cluster: Sequence[str] = ()) -> tuple[Curve, Moments]:
        """The whole line, exact, and sums over the requests at some points without holding every request.

        Args:
            points: array `[P]`. Ascending weights. Defaults to none.
            by_cluster: sequence of str. Outputs whose sums by cluster are wanted. Defaults to none.
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
        total, squares, largest = (dict(zip(self._outputs, block, strict=True)) for block in found)
        moments = Moments(total, squares, largest, dict(zip(by_cluster, clusters, strict=True)))
        return Curve(self.low, self.high, times[last][1:], self.means(running)), moments

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
        tables = [DIVERSITY if name not in sums.coefficients else sums.gain_of.get(name, 0) for name in self._outputs]
        return _follow(
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
