"""The first places of every request while scores are lines: from meeting to meeting of two candidates."""

from __future__ import annotations

import numba
import numpy as np

from ranking.replay.ranks import MATCH

__all__ = ["PAIRS", "follow"]

PAIRS = -2  # in the tables of gains: the output is diversity, made of pairs of places


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
        if tables[output] == PAIRS:
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
        if table == PAIRS:
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
def follow(
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
