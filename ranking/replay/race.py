"""The kernel behind Plackett-Luce propensities: items arrive like independent exponential clocks."""

import math

import numba
import numpy as np

__all__ = ["race"]

_PANEL = 6.0  # longest stretch of the transformed time axis for one set of nodes (1e-12 with 64 of them)
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
    """Fills out [wanted, slots] with P(item at place); `plackett_luce_propensities` has the formula.

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
