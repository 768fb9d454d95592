"""The hot loops of the replay, 64 settings at a time: a place is counted, or the first places are selected."""

from __future__ import annotations

import numba
import numpy as np

__all__ = ["LANES", "accumulate"]

LANES = (
    64  # settings that go through a loop together: a vector loop is 64 wide, and what it reads stays in the L1 cache
)
_LEVEL = 2 * LANES  # of a selection: the scores of one place, then their rows
_CHUNK = 4 * _LEVEL


@numba.njit(nogil=True, cache=True)
def _score(weights, terms, row, out):
    """Scores of one row, float32, summed in the order of the parts; parts beyond `terms` have the weight 0."""
    last = len(terms) - 1
    for part in range(0, len(weights), 4):
        a, b = terms[part, row], terms[min(part + 1, last), row]
        c, d = terms[min(part + 2, last), row], terms[min(part + 3, last), row]
        u, v, w, x = weights[part], weights[part + 1], weights[part + 2], weights[part + 3]
        if part == 0:
            for lane in range(LANES):
                out[lane] = u[lane] * a + v[lane] * b + w[lane] * c + x[lane] * d
        else:
            for lane in range(LANES):
                out[lane] = out[lane] + u[lane] * a + v[lane] * b + w[lane] * c + x[lane] * d


@numba.njit(nogil=True, cache=True)
def _place(scores, row, rows, mine, place):
    """Counts the scores better than that of `row`; of equal ones the first is better, so earlier rows count at `>=`."""
    for lane in range(LANES):
        mine[lane] = scores[row, lane]
        place[lane] = 0
    whole = row // 4 * 4
    for j in range(0, whole, 4):
        for lane in range(LANES):
            v = mine[lane]
            place[lane] += (
                np.int32(scores[j, lane] >= v)
                + np.int32(scores[j + 1, lane] >= v)
                + np.int32(scores[j + 2, lane] >= v)
                + np.int32(scores[j + 3, lane] >= v)
            )
    for j in range(whole, row):
        for lane in range(LANES):
            place[lane] += np.int32(scores[j, lane] >= mine[lane])
    whole = row + 1 + (rows - row - 1) // 4 * 4
    for j in range(row + 1, whole, 4):
        for lane in range(LANES):
            v = mine[lane]
            place[lane] += (
                np.int32(scores[j, lane] > v)
                + np.int32(scores[j + 1, lane] > v)
                + np.int32(scores[j + 2, lane] > v)
                + np.int32(scores[j + 3, lane] > v)
            )
    for j in range(whole, rows):
        for lane in range(LANES):
            place[lane] += np.int32(scores[j, lane] > mine[lane])


@numba.njit(nogil=True, cache=True)
def _by_counting(weights, terms, start, stop, rows, places, gains, gain_of, place_of, coefficients, work, block):
    """Adds the outputs of one request: cost grows with the rows that have a coefficient."""
    scores, looked, mine, place = work
    for i in range(stop - start):
        _score(weights, terms, start + i, scores[i])
    match = len(looked) - 1  # `gain_of` is -1 there: the last row
    for row in rows:
        _place(scores, row, stop - start, mine, place)
        for table in range(match):
            gain = gains[table]
            for lane in range(LANES):
                looked[table, lane] = gain[place[lane]] if place[lane] < places else np.float32(0)
        if place_of.size:
            logged = place_of[start + row] if place_of[start + row] < places else -1
            for lane in range(LANES):
                looked[match, lane] = np.float32(place[lane] == logged)
        for output in range(len(coefficients)):
            coefficient = coefficients[output, start + row]
            if coefficient != 0:
                gain, total = looked[gain_of[output]], block[output]
                for lane in range(LANES):
                    total[lane] += coefficient * gain[lane]


@numba.njit(nogil=True, cache=True)
def _beats(score, chunk, level):
    found = np.int32(0)
    for lane in range(LANES):
        found += np.int32(score[lane] > chunk[level + lane])
    return found > 0


@numba.njit(nogil=True, cache=True)
def _insert(old, new, entering, leaving):
    """Puts one row at its place among four sorted levels; what drops out leaves. `old` and `new` differ, or no vectors.

    A level and its row are floats both: a row number is exact up to 16 million candidates a request.
    """
    for lane in range(LANES):
        v, r = entering[lane], entering[LANES + lane]
        a, p = old[lane], old[LANES + lane]
        better = v > a
        new[lane], new[LANES + lane] = (v if better else a), (r if better else p)
        v, r = (a if better else v), (p if better else r)
        a, p = old[_LEVEL + lane], old[_LEVEL + LANES + lane]
        better = v > a
        new[_LEVEL + lane], new[_LEVEL + LANES + lane] = (v if better else a), (r if better else p)
        v, r = (a if better else v), (p if better else r)
        a, p = old[2 * _LEVEL + lane], old[2 * _LEVEL + LANES + lane]
        better = v > a
        new[2 * _LEVEL + lane], new[2 * _LEVEL + LANES + lane] = (v if better else a), (r if better else p)
        v, r = (a if better else v), (p if better else r)
        a, p = old[3 * _LEVEL + lane], old[3 * _LEVEL + LANES + lane]
        better = v > a
        new[3 * _LEVEL + lane], new[3 * _LEVEL + LANES + lane] = (v if better else a), (r if better else p)
        leaving[lane], leaving[LANES + lane] = (a if better else v), (p if better else r)


@numba.njit(nogil=True, cache=True)
def _first(weights, lane, terms, start, stop, places, best, chosen):
    """The first places of one setting where scores are equal, row by row in their order."""
    best[: places + 1] = -np.inf
    for row in range(start, stop):
        score = weights[0, lane] * terms[0, row]
        for part in range(1, len(terms)):
            score += weights[part, lane] * terms[part, row]
        if score > best[places - 1]:
            k = places - 1
            while k > 0 and score > best[k - 1]:
                best[k], chosen[k, lane] = best[k - 1], chosen[k - 1, lane]
                k -= 1
            best[k], chosen[k, lane] = score, row - start


@numba.njit(nogil=True, cache=True)
def _select(weights, terms, start, stop, order, places, work, chosen):
    """The rows of the first places of each setting, `chosen [places, LANES]`, best first.

    Rows enter in the order of an average setting, so that most of them beat nobody and are dropped after one look.
    That loses the tie rule: one level more than asked shows where scores are equal, and there `_first` decides.
    """
    levels, side, entering, leaving, best = work
    chunks = places // 4 + 1
    for chunk in range(chunks):
        side[chunk] = 0
        levels[chunk, 0] = -np.inf
    last, level = places // 4, places % 4 * _LEVEL
    for row in order:
        _score(weights, terms, start + row, entering)
        if not _beats(entering, levels[last, side[last]], level):
            continue
        for lane in range(LANES):
            entering[LANES + lane] = row
        for chunk in range(chunks):
            old = levels[chunk, side[chunk]]
            if _beats(entering, old, 3 * _LEVEL):
                side[chunk] = 1 - side[chunk]
                _insert(old, levels[chunk, side[chunk]], entering, leaving)
                entering, leaving = leaving, entering
    for k in range(places):
        above, under = levels[k // 4, side[k // 4]], levels[(k + 1) // 4, side[(k + 1) // 4]]
        a, b = k % 4 * _LEVEL, (k + 1) % 4 * _LEVEL
        for lane in range(LANES):
            chosen[k, lane] = np.int32(above[a + LANES + lane])
            if k == 0:
                best[lane] = 0
            best[lane] += np.float32(above[a + lane] == under[b + lane])
    for lane in range(LANES):
        if best[lane] > 0:
            _first(weights, lane, terms, start, stop, places, best[LANES:], chosen)


@numba.njit(nogil=True, cache=True)
def _of_selected(chosen, start, places, gains, gain_of, place_of, coefficients, block):
    """Adds the outputs of one request from the rows at its first places."""
    for output in range(len(coefficients)):
        column, total = coefficients[output, start:], block[output]
        for k in range(places):
            rows = chosen[k]
            if gain_of[output] < 0:
                for lane in range(LANES):
                    total[lane] += column[rows[lane]] * np.float32(place_of[start + rows[lane]] == k)
            else:
                gain = gains[gain_of[output], k]
                for lane in range(LANES):
                    total[lane] += column[rows[lane]] * gain


@numba.njit(nogil=True, cache=True)
def _diversity(chosen, start, places, gain, category, block):
    """Chance that two looks at different places fall on different categories."""
    pairs = np.float32(0)
    for k in range(places):
        for other in range(k):
            pairs += gain[k] * gain[other]
    if pairs <= 0:
        return
    for k in range(places):
        for other in range(k):
            share = gain[k] * gain[other] / pairs
            for lane in range(LANES):
                a, b = category[start + chosen[k, lane]], category[start + chosen[other, lane]]
                block[lane] += share * np.float32(a != b)


@numba.njit(nogil=True, cache=True)
def _add(block, begin, sums):
    for lane in range(min(LANES, sums.size - begin)):
        sums[begin + lane] += block[lane]


@numba.njit(nogil=True, cache=True)
def _add_moments(block, begin, moments):
    total, squares, largest = moments[0], moments[1], moments[2]
    for lane in range(min(LANES, total.size - begin)):
        value = np.float64(block[lane])
        total[begin + lane] += value
        squares[begin + lane] += value * value
        largest[begin + lane] = max(largest[begin + lane], value)


@numba.njit(nogil=True, cache=True)
def accumulate(
    offsets, terms, weights, center, slots, gains, gain_of, place_of, category, coefficients, needed, counted,
    requests, bucket, sums, moments,
):  # fmt: skip
    """Adds the outputs of some requests under all settings; requests outside, so that their terms stay in the L1 cache.

    Per request the cheaper way is taken: counting costs `rows with a coefficient * candidates`, selecting
    `candidates * a little more than places`; measured, they meet at twice as many rows as places.

    Args:
        offsets: int64 `[R + 1]`.
        terms: float32 `[J, n]`.
        weights: float32 `[blocks, J rounded up to 4, LANES]`.
        center: float32 `[J]`. Mean of the settings.
        slots: int64 `[R]`. At most the length of `gains` and the candidates of the request.
        gains: float32 `[G, K]`.
        gain_of: int64 `[O]`. Row of `gains`, or -1 for a match.
        place_of: int32 `[n]`, or of no element where no output is a match.
        category: int32 `[n]`, or of no element: then there is no diversity.
        coefficients: float32 `[O, n]`.
        needed: bool `[n]`. Whether any output has a coefficient there.
        counted: bool `[O or O + 1, R]`. Diversity comes last.
        requests: int64 `[r]`. Which requests.
        bucket: int64 `[r]`. Where in `sums` each goes.
        sums: float32 `[O or O + 1, buckets, S]`, or of no bucket.
        moments: float64 `[O or O + 1, 3, S]`, or of no row: sum, sum of squares and largest value.
    """
    longest, most = np.max(offsets[1:] - offsets[:-1]), gains.shape[1]
    looked = np.zeros((len(gains) + 1, LANES), np.float32)
    counting = (np.empty((longest, LANES), np.float32), looked, np.empty(LANES, np.float32), np.empty(LANES, np.int32))
    entering, leaving = np.zeros(_LEVEL, np.float32), np.zeros(_LEVEL, np.float32)
    levels = np.zeros((most // 4 + 1, 2, _CHUNK), np.float32)
    best = np.empty(LANES + most + 1, np.float32)
    selecting = (levels, np.zeros(most // 4 + 1, np.int64), entering, leaving, best)
    chosen = np.zeros((most, LANES), np.int32)
    block = np.empty((len(counted), LANES), np.float32)
    average = np.empty(longest, np.float32)
    diverse = category.size > 0
    for index in range(requests.size):
        request = requests[index]
        start, stop, places = offsets[request], offsets[request + 1], slots[request]
        rows = np.flatnonzero(needed[start:stop])
        if places == 0 or (rows.size == 0 and not diverse):
            continue
        select = diverse or rows.size > 2 * places
        if select:
            average[: stop - start] = 0
            for part in range(len(terms)):
                for i in range(stop - start):
                    average[i] -= center[part] * terms[part, start + i]
        order = np.argsort(average[: stop - start] if select else average[:0])
        for number in range(len(weights)):
            block[:] = 0
            if select:
                _select(weights[number], terms, start, stop, order, places, selecting, chosen)
                _of_selected(chosen, start, places, gains, gain_of, place_of, coefficients, block)
                if diverse:
                    _diversity(chosen, start, places, gains[0], category, block[-1])
            else:
                _by_counting(
                    weights[number], terms, start, stop, rows, places, gains, gain_of, place_of, coefficients,
                    counting, block,
                )  # fmt: skip
            for output in range(len(counted)):
                if counted[output, request]:
                    if sums.shape[1]:
                        _add(block[output], number * LANES, sums[output, bucket[index]])
                    if moments.shape[1]:
                        _add_moments(block[output], number * LANES, moments[output])
