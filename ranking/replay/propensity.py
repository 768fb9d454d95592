"""P(the logging policy put this item at this position), exactly: no Monte Carlo, no sum over orderings."""

import math
from typing import Any

import numba
import numpy as np

from ranking.errors import UserError

__all__ = ["epsilon_propensities", "log_propensities", "plackett_luce_propensities"]

_PANEL = 6.0  # longest stretch of the transformed time axis for one set of nodes (1e-12 with 64 of them)
_TAIL = 1e-15  # probability that the slots are not yet filled when the integral stops
_LARGEST_SPREAD = 600.0


def plackett_luce_propensities(logits: Any, slots: int, nodes: int = 64) -> np.ndarray:
    """P(item i at position k) when `slots` items are drawn one after the other, each with odds exp(logit).

    The order of a Plackett-Luce draw is the order of arrival of independent exponential clocks with
    rates exp(logit), so that

        P(i at k) = integral over t of rate_i exp(-rate_i t) P(exactly k of the others arrived before t) dt

    where the others' count is Poisson-binomial: a product of two-term polynomials, from all items before i and all
    items after i, so that nothing is divided and all terms are positive. With t = (exp(x) - 1) / (sum of rates)
    Gauss-Legendre nodes reach 1e-10; a wide spread of logits takes several panels of `nodes`.

    Args:
        logits: array `[n]`. Score / temperature; finite, spread below 600.
        slots: int. How many positions are filled.
        nodes: int. Gauss-Legendre nodes a panel. Defaults to `64`.

    Returns:
        float64 `[n, slots]`: columns sum to 1 (0 beyond the n-th position); rows to P(i is shown).

    Raises:
        UserError: an argument breaks its rule.
    """
    logits = _checked_scores(logits, "logits", slots)
    if nodes < 2:
        raise UserError(f"`nodes` should be at least 2. Received: nodes={nodes}.")
    x, weight = np.polynomial.legendre.leggauss(nodes)
    out = np.zeros((logits.size, slots))
    _plackett_luce(_rates(logits), x, weight, out)
    return out


def epsilon_propensities(scores: Any, slots: int, epsilon: float) -> np.ndarray:
    """P(item i at position k) when the slate is a uniform order with probability epsilon, else sorted by score.

        P(i at k) = epsilon / n + (1 - epsilon) [rank of i is k]

    One draw decides for the whole slate. Equal scores keep the order of the candidates. `epsilon=1` is the
    uniform policy, `epsilon=0` the deterministic one.

    Args:
        scores: array `[n]`. As served; finite.
        slots: int. How many positions are filled.
        epsilon: float. In [0, 1].

    Returns:
        float64 `[n, slots]`.

    Raises:
        UserError: an argument breaks its rule.
    """
    scores = _checked_scores(scores, "scores", slots)
    if not 0 <= epsilon <= 1:
        raise UserError(f"`epsilon` should be in [0, 1]. Received: epsilon={epsilon}.")
    out = np.zeros((scores.size, slots))
    _epsilon(scores, float(epsilon), out)
    return out


def log_propensities(
    scores: Any,
    offsets: Any,
    position: Any,
    examination: Any,
    *,
    temperature: float | None = None,
    epsilon: float | None = None,
    nodes: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """The two propensity columns of a candidates log, from the scores as served and the policy's randomness.

    Args:
        scores: array `[n]`. All candidates, request after request.
        offsets: int array `[requests + 1]`. Where each request's candidates start.
        position: int array `[n]`. 0-based; -1 where the candidate was not shown.
        examination: array `[slots]`. P(the user looks at position k).
        temperature: float. Plackett-Luce over score / temperature. Give this or `epsilon`.
        epsilon: float. The epsilon policy of `epsilon_propensities`.
        nodes: int. Gauss-Legendre nodes. Defaults to `64`.

    Returns:
        `position_propensity` float64 `[n]`, P(item at its own position), NaN where not shown; and
        `exposure_propensity` float64 `[n]`, the sum over positions k of examination[k] * P(item at k).

    Raises:
        UserError: an argument breaks its rule.
    """
    if (temperature is None) == (epsilon is None):
        raise UserError(
            f"give either `temperature` or `epsilon`. Received: temperature={temperature}, epsilon={epsilon}."
        )
    if temperature is not None and not 0 < temperature < math.inf:
        raise UserError(f"`temperature` should be a positive number. Received: temperature={temperature}.")
    if epsilon is not None and not 0 <= epsilon <= 1:
        raise UserError(f"`epsilon` should be in [0, 1]. Received: epsilon={epsilon}.")
    theta = np.ascontiguousarray(examination, dtype=np.float64)
    scores = _checked_scores(scores, "scores", theta.size)
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    position = np.ascontiguousarray(position, dtype=np.int64)
    if offsets.size < 2 or offsets[0] != 0 or offsets[-1] != scores.size or (np.diff(offsets) < 1).any():
        raise UserError("`offsets` should rise from 0 to the number of scores, with no empty request.")
    if position.shape != scores.shape or position.min() < -1 or position.max() >= theta.size:
        raise UserError(f"`position` should hold one place in -1 .. {theta.size - 1} for each score.")
    x, weight = np.polynomial.legendre.leggauss(nodes)
    logits = scores if temperature is None else scores / temperature
    if temperature is not None:
        spread = np.maximum.reduceat(logits, offsets[:-1]) - np.minimum.reduceat(logits, offsets[:-1])
        _check_spread(float(spread.max()))
    at_position, exposure = np.full(scores.size, np.nan), np.empty(scores.size)
    _log(logits, offsets, position, theta, -1.0 if epsilon is None else epsilon, x, weight, at_position, exposure)
    return at_position, exposure


def _checked_scores(values: Any, name: str, slots: int) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise UserError(f"`{name}` should be a vector of finite numbers, not empty. Received: shape {values.shape}.")
    if slots < 1:
        raise UserError(f"`slots` should be a positive integer. Received: slots={slots}.")
    return values


def _check_spread(spread: float) -> None:
    if spread > _LARGEST_SPREAD:
        raise UserError(
            f"`logits` of one request should span less than {_LARGEST_SPREAD:.0f}; raise the temperature or use the "
            f"deterministic policy. Received: {spread:.1f}."
        )


def _rates(logits: np.ndarray) -> np.ndarray:
    _check_spread(float(logits.max() - logits.min()))
    return np.exp(logits - logits.max())


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
def _plackett_luce(rates: np.ndarray, x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Fills out [n, slots]. Inner loops run over the nodes, which lie side by side in memory."""
    n, slots = rates.size, min(out.shape[1], rates.size)
    nodes = x.size
    out[:] = 0.0
    total = rates.sum()
    length = math.log1p(_horizon(rates, slots))
    panels = int(math.ceil(length / _PANEL))
    half = 0.5 * length / panels
    arrived, late = np.empty((n, nodes)), np.empty((n, nodes))
    before = np.zeros((n, slots, nodes))  # P(exactly k of the items before i arrived)
    after, other = np.empty((slots, nodes)), np.empty(nodes)
    t, jacobian = np.empty(nodes), np.empty(nodes)
    for panel in range(panels):
        for m in range(nodes):
            place = half * (2 * panel + 1 + x[m])
            t[m] = math.expm1(place) / total
            jacobian[m] = weight[m] * half * math.exp(place) / total
        for i in range(n):
            for m in range(nodes):
                minus = math.expm1(-rates[i] * t[m])
                arrived[i, m] = -minus
                late[i, m] = 1.0 + minus if minus > -0.5 else math.exp(-rates[i] * t[m])
        before[0, 0, :] = 1.0
        for i in range(n - 1):
            for m in range(nodes):
                before[i + 1, 0, m] = before[i, 0, m] * late[i, m]
            for k in range(1, slots):
                for m in range(nodes):
                    before[i + 1, k, m] = before[i, k, m] * late[i, m] + before[i, k - 1, m] * arrived[i, m]
        after[:] = 0.0
        after[0, :] = 1.0
        for i in range(n - 1, -1, -1):
            for k in range(slots):
                other[:] = 0.0
                for a in range(k + 1):
                    for m in range(nodes):
                        other[m] += before[i, a, m] * after[k - a, m]
                total_k = 0.0
                for m in range(nodes):
                    total_k += other[m] * jacobian[m] * late[i, m]
                out[i, k] += rates[i] * total_k
            for k in range(slots - 1, 0, -1):
                for m in range(nodes):
                    after[k, m] = after[k, m] * late[i, m] + after[k - 1, m] * arrived[i, m]
            for m in range(nodes):
                after[0, m] *= late[i, m]


@numba.njit(nogil=True, cache=True)
def _epsilon(scores: np.ndarray, epsilon: float, out: np.ndarray) -> None:
    n, slots = scores.size, min(out.shape[1], scores.size)
    out[:] = 0.0
    out[:, :slots] = epsilon / n
    order = np.argsort(-scores, kind="mergesort")  # stable: equal scores keep the order of the candidates
    for k in range(slots):
        out[order[k], k] += 1.0 - epsilon


@numba.njit(nogil=True, cache=True)
def _log(
    logits: np.ndarray,
    offsets: np.ndarray,
    position: np.ndarray,
    theta: np.ndarray,
    epsilon: float,
    x: np.ndarray,
    weight: np.ndarray,
    at_position: np.ndarray,
    exposure: np.ndarray,
) -> None:
    """Request after request; epsilon < 0 stands for Plackett-Luce."""
    for request in range(offsets.size - 1):
        start, end = offsets[request], offsets[request + 1]
        out = np.empty((end - start, theta.size))
        if epsilon < 0:
            _plackett_luce(np.exp(logits[start:end] - logits[start:end].max()), x, weight, out)
        else:
            _epsilon(logits[start:end], epsilon, out)
        for i in range(start, end):
            exposure[i] = np.dot(out[i - start], theta)
            if position[i] >= 0:
                at_position[i] = out[i - start, position[i]]
