"""The kernels behind Plackett-Luce propensities: items arrive like independent exponential clocks.

The order of a draw with odds exp(logit) is the order of arrival of independent exponential clocks with rates
exp(logit):

    P(i at k) = integral over t of rate_i exp(-rate_i t) P(exactly k of the others arrived before t) dt

The others' count is Poisson-binomial: a product of two-term polynomials, of all items before i and all items after i,
so that nothing is divided and all terms are positive. Time is stretched, t = (exp(x) - 1) / (sum of rates), and
integrated with Gauss-Legendre nodes: 64 of them reach 1e-10.
"""

import math

import numba
import numpy as np

__all__ = ["LARGEST_SPREAD", "expected_looks", "race"]

LARGEST_SPREAD = 600.0  # of the logits of one draw: beyond it rates leave the range of a float64

_PANEL = 6.0  # longest stretch of the transformed time axis for one set of nodes (1e-12 with 64 of them)
_LANES = 32  # nodes that `expected_looks` takes through a loop together: vector loops of a known width
_TAIL = 1e-15  # probability that the slots are not yet filled when the integral stops


@numba.njit(nogil=True, cache=True)
def _unfilled(rates: np.ndarray, slots: int, t: float, counts: np.ndarray) -> float:
    """P(fewer than `slots` items arrived by t)."""
    counts[:] = 0.0
    counts[0] = 1.0
    for rate in rates:
        late = math.exp(-rate * t)
        for k in range(slots - 1, 0, -1):
            counts[k] = late * counts[k] + (1.0 - late) * counts[k - 1]
        counts[0] *= late
    return counts.sum()


@numba.njit(nogil=True, cache=True)
def _horizon(rates: np.ndarray, slots: int) -> float:
    """A time by which the slots are filled but for `_TAIL`, within a factor 1.3 of the earliest such."""
    counts = np.empty(slots)
    low = 0.0  # log of the time, in units of 1 / (sum of rates)
    total = rates.sum()
    high = 1.0
    while _unfilled(rates, slots, math.exp(high) / total, counts) > _TAIL:
        low, high = high, high + max(high, 1.0)
    while high - low > 0.25:
        middle = 0.5 * (low + high)
        if _unfilled(rates, slots, math.exp(middle) / total, counts) > _TAIL:
            low = middle
        else:
            high = middle
    return math.exp(high)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _add(poly: np.ndarray, arrived: np.ndarray, late: np.ndarray) -> None:
    """Multiplies the polynomial [slots, nodes] of how many arrived by one item's, in place."""
    slots, nodes = poly.shape
    for k in range(slots - 1, 0, -1):
        for m in range(nodes):
            poly[k, m] = poly[k, m] * late[m] + poly[k - 1, m] * arrived[m]
    for m in range(nodes):
        poly[0, m] *= late[m]


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def race(rates: np.ndarray, wanted: np.ndarray, x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Fills out [wanted, slots] with P(item at place).

    Inner loops run over the nodes, which lie side by side in memory. The unwanted items are all "before" the first
    wanted one: the order of the product is free.
    """
    n, slots = rates.size, min(out.shape[1], rates.size)
    rows, nodes = out.shape[0], x.size
    out[:] = 0.0
    total = rates.sum()
    length = math.log1p(_horizon(rates, slots))
    panels = int(math.ceil(length / _PANEL))
    half = 0.5 * length / panels
    arrived, late = np.empty((rows + 1, nodes)), np.empty((rows + 1, nodes))
    before = np.empty((rows, slots, nodes))  # P(exactly k of the items before i arrived)
    product, other = np.empty((slots, nodes)), np.empty(nodes)
    rate = np.empty(rows)
    t, jacobian = np.empty(nodes), np.empty(nodes)
    for panel in range(panels):
        for m in range(nodes):
            place = half * (2 * panel + 1 + x[m])
            t[m] = math.expm1(place) / total
            jacobian[m] = weight[m] * half * math.exp(place) / total
        product[:] = 0.0
        product[0, :] = 1.0
        found = 0
        for i in range(n):
            # An unwanted item uses the place of the next wanted one, which writes over it; at the end, the spare one.
            for m in range(nodes):
                minus = math.expm1(-rates[i] * t[m])
                arrived[found, m] = -minus
                late[found, m] = 1.0 + minus if minus > -0.5 else math.exp(-rates[i] * t[m])
            if wanted[i]:
                rate[found] = rates[i]
                found += 1
            else:
                _add(product, arrived[found], late[found])
        for i in range(rows):
            before[i] = product
            _add(product, arrived[i], late[i])
        product[:] = 0.0  # from here on of the items after i
        product[0, :] = 1.0
        for i in range(rows - 1, -1, -1):
            for k in range(slots):
                other[:] = 0.0
                for a in range(k + 1):
                    for m in range(nodes):
                        other[m] += before[i, a, m] * product[k - a, m]
                total_k = 0.0
                for m in range(nodes):
                    total_k += other[m] * jacobian[m] * late[i, m]
                out[i, k] += rate[i] * total_k
            _add(product, arrived[i], late[i])


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _fade(rate: float, t: np.ndarray, out: np.ndarray) -> None:
    """exp(-rate t) at rising times: a Taylor polynomial below a half, then squared; compilers make vectors of that."""
    most, halvings = min(rate * t[-1], 1000.0), 0
    while most > 0.5:
        most, halvings = 0.5 * most, halvings + 1
    scale = -rate / 2.0**halvings
    for m in range(_LANES):
        y = max(scale * t[m], -0.5)
        a = 1 + y * (1 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y * (1 / 120 + y * (1 / 720 + y * (1 / 5040)))))))
        y4 = y * y * y * y
        b = 1 / 40320 + y * (1 / 362880 + y * (1 / 3628800 + y * (1 / 39916800 + y * (1 / 479001600 + y / 6227020800))))
        out[m] = a + y4 * y4 * b
    for _ in range(halvings):
        for m in range(_LANES):
            out[m] *= out[m]


@numba.njit(nogil=True, cache=True, inline="always", fastmath={"reassoc", "contract"})
def _arrivals(rates, order, t, late, before):
    """Fills before[j] [slots, lanes], P(exactly k of the items earlier in `order` arrived), and late[j] [lanes].

    Inlined, as `_collect`: of arrays that are arguments the compiler has to expect that they overlap.
    """
    slots = before.shape[1]
    product = np.zeros((slots, _LANES))
    product[0, :] = 1.0
    for j in range(order.size):
        row, kept = late[j], before[j]
        _fade(rates[order[j]], t, row)
        for m in range(_LANES):
            kept[0, m] = product[0, m]
            product[0, m] = product[0, m] * row[m]
        for k in range(1, slots):
            for m in range(_LANES):
                kept[k, m] = product[k, m]
                product[k, m] = product[k, m] * row[m] + kept[k - 1, m] * (1.0 - row[m])


@numba.njit(nogil=True, cache=True, inline="always", fastmath={"reassoc", "contract"})
def _collect(rates, order, place, theta, jacobian, late, before, exposure, own):
    """Goes back through the items; `worth[k]` is the theta of place k plus what arrives later in `order`, expected.

    So an item's exposure is one sum over k of before[k] worth[k], not one for each place. The polynomial of the items
    after it, `after`, is needed for the shown ones only: they are the last of the order.
    """
    slots = before.shape[1]
    worth, after, sums = np.zeros((slots + 1, _LANES)), np.zeros((slots, _LANES)), np.empty(_LANES)
    after[0, :] = 1.0
    for k in range(slots):
        worth[k, :] = theta[k]
    for j in range(order.size - 1, -1, -1):
        i, row, kept = order[j], late[j], before[j]
        if place[i] >= 0:
            sums[:] = 0.0
            for k in range(place[i] + 1):
                for m in range(_LANES):
                    sums[m] += kept[k, m] * after[place[i] - k, m]
            found = 0.0
            for m in range(_LANES):
                found += sums[m] * jacobian[m] * row[m]
            own[i] += rates[i] * found
            for k in range(slots - 1, 0, -1):
                for m in range(_LANES):
                    after[k, m] = after[k, m] * row[m] + after[k - 1, m] * (1.0 - row[m])
            for m in range(_LANES):
                after[0, m] *= row[m]
        sums[:] = 0.0
        for k in range(slots):
            for m in range(_LANES):
                sums[m] += kept[k, m] * worth[k, m]
                worth[k, m] = worth[k, m] * row[m] + worth[k + 1, m] * (1.0 - row[m])
        found = 0.0
        for m in range(_LANES):
            found += sums[m] * jacobian[m] * row[m]
        exposure[i] += rates[i] * found


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def expected_looks(
    rates: np.ndarray,
    place: np.ndarray,
    theta: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    exposure: np.ndarray,
    own: np.ndarray,
) -> None:
    """Fills exposure [n] with the sum over places of theta(k) P(item at k), and own [n] with P(item at its own place).

    Five times as fast as `race` for all items, which fills [n, slots]. `place` is -1 where an item was not shown: own
    is NaN there. As many places are filled as `theta` has.
    """
    n, slots = rates.size, min(theta.size, rates.size)
    exposure[:] = 0.0
    own[:] = np.nan
    shown = place >= 0
    own[shown] = 0.0
    if slots == 0:
        return
    order = np.concatenate((np.flatnonzero(~shown), np.flatnonzero(shown)))
    total = rates.sum()
    length = math.log1p(_horizon(rates, slots))
    panels = int(math.ceil(length / _PANEL))
    half = 0.5 * length / panels
    late, before = np.empty((n, _LANES)), np.empty((n, slots, _LANES))
    t, jacobian = np.empty(_LANES), np.empty(_LANES)
    for panel in range(panels):
        for first in range(0, x.size, _LANES):
            for m in range(_LANES):
                node = min(first + m, x.size - 1)  # what is over in the last group counts nothing
                stretched = half * (2 * panel + 1 + x[node])
                t[m] = math.expm1(stretched) / total
                jacobian[m] = weight[node] * half * math.exp(stretched) / total if first + m < x.size else 0.0
            _arrivals(rates, order, t, late, before)
            _collect(rates, order, place, theta, jacobian, late, before, exposure, own)
