"""P(the logging policy put this item at this position), exactly: no Monte Carlo, no sum over orderings."""

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np

from ranking.errors import UserError
from ranking.replay.draws import Draws, draws_of
from serving.race import LARGEST_SPREAD, expected_looks, race

__all__ = [
    "check_policy",
    "epsilon_propensities",
    "log_propensities",
    "place_propensities",
    "plackett_luce_propensities",
]

_CHUNK = 256  # requests a thread takes at a time
_quadrature = functools.cache(np.polynomial.legendre.leggauss)  # a millisecond, more than the rest of a slate
_AGREEMENT = 1e-4  # relative, of a propensity in a log with what its score and policy give


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
    x, weight = _quadrature(nodes)
    out = np.zeros((logits.size, slots))
    race(_rates(logits), np.ones(logits.size, np.bool_), x, weight, out)
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
    temperature: Any = None,
    epsilon: Any = None,
    slots: Any = None,
    nodes: int = 64,
    pool: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The two propensity columns of a candidates log, from the scores as served and the policy's randomness.

    Args:
        scores: array `[n]`. All candidates, request after request.
        offsets: int array `[requests + 1]`. Where each request's candidates start.
        position: int array `[n]`. 0-based; -1 where the candidate was not shown.
        examination: array `[slots]`. P(the user looks at position k).
        temperature: float, or array `[requests]` with NaN where `epsilon` has a number. Plackett-Luce over score /
            temperature. Each request has this or `epsilon`.
        epsilon: float, or array `[requests]` with NaN where `temperature` has a number. The epsilon policy of
            `epsilon_propensities`.
        slots: int array `[requests]`. How many places each request filled. Defaults to all of `examination`.
        nodes: int. Gauss-Legendre nodes. Defaults to `64`.
        pool: int array `[n]`. Where the places of a request were filled by several draws (reserved places): the
            candidates of one pool were drawn, apart from the others, for the places that the pool is shown at.
            Defaults to one pool.

    Returns:
        `position_propensity` float64 `[n]`, P(item at its own position), NaN where not shown; and
        `exposure_propensity` float64 `[n]`, the sum over positions k of examination[k] * P(item at k).

    Raises:
        UserError: an argument breaks its rule.
    """
    theta = np.ascontiguousarray(examination, dtype=np.float64)
    slots = np.full(len(offsets) - 1, theta.size) if slots is None else slots
    draws = draws_of(offsets, position, theta.size, slots, pool)
    log = _log_of(draws, scores, theta.size, temperature, epsilon)
    x, weight = _quadrature(nodes)
    last = np.maximum.reduceat(log[2], log[1][:-1])
    filled = draws.filled
    if filled.shape != log[3].shape or (filled <= last).any() or filled.max() > theta.size:
        raise UserError(f"`slots` should hold for each request its filled places, at most {theta.size}.")
    at_position, exposure = np.full(log[0].size, np.nan), np.empty(log[0].size)
    looks = theta[draws.where]  # [draws, K]
    _in_threads(lambda a, b: _log(*log, filled, a, b, looks, x, weight, at_position, exposure), log[3].size)
    return draws.back(at_position), draws.back(exposure)


def place_propensities(
    scores: Any,
    offsets: Any,
    position: Any,
    places: int,
    *,
    temperature: Any = None,
    epsilon: Any = None,
    nodes: int = 40,
    pool: Any = None,
) -> np.ndarray:
    """P(row at place k) for the shown rows of a log: what an examination is estimated from.

    As `log_propensities`, which sums these over places; candidates that were not shown enter as one polynomial a
    request, so that a request of n candidates and s shown ones takes about `nodes places (2 n + 4 s + s places / 2)`
    multiplications.

    Args:
        scores: array `[n]`. All candidates, request after request.
        offsets: int array `[requests + 1]`. Where each request's candidates start.
        position: int array `[n]`. 0-based; -1 where the candidate was not shown.
        places: int. How many places are wanted, K.
        temperature: float or array `[requests]`, as in `log_propensities`.
        epsilon: float or array `[requests]`, as in `log_propensities`.
        nodes: int. Gauss-Legendre nodes: with 40 the error is below that of a float32 up to 20 places.
            Defaults to `40`.
        pool: int array `[n]`, as in `log_propensities`.

    Returns:
        float32 `[shown, K]`, in the order of `np.flatnonzero(position >= 0)`; 0 beyond the last place that a request
        filled.

    Raises:
        UserError: an argument breaks its rule.
    """
    draws = draws_of(offsets, position, places, None, pool)
    log = _log_of(draws, scores, places, temperature, epsilon)
    x, weight = _quadrature(nodes)
    shown = log[2] >= 0
    first = np.concatenate([[0], np.cumsum(shown)])[log[1]]  # [draws + 1]: where the shown rows of each start
    out = np.zeros((first[-1], places), np.float32)
    _in_threads(lambda a, b: _places(*log, draws.filled, a, b, first, x, weight, out), log[3].size)
    return draws.in_slate(out, shown)


def check_policy(places: np.ndarray, own: np.ndarray, theta: np.ndarray | None, stated: dict[str, np.ndarray]) -> None:
    """Refuses propensities that are not those of the scores and the policy that the log states.

    Args:
        places: float32 `[shown, K]`. From `place_propensities`.
        own: int `[shown]`. The place of each row.
        theta: array `[K]` or None. The examination; None: exposures are not checked.
        stated: dict of str to float64 `[shown]`. `position_propensity`, `exposure_propensity`: what the log says.

    Raises:
        UserError: one of them differs by more than 1e-4 of itself.
    """
    wanted = {"position_propensity": places[np.arange(len(own)), own].astype(np.float64)}
    if theta is not None and len(theta) == places.shape[1]:
        wanted["exposure_propensity"] = places @ np.asarray(theta)
    for name, column in stated.items():
        if name not in wanted:
            continue
        wrong = np.flatnonzero(~(np.abs(column - wanted[name]) <= _AGREEMENT * wanted[name] + 1e-8))
        if len(wrong):
            raise UserError(
                f"candidates: `{name}` should be what score, exploration, temperature and epsilon of the request give, "
                f"{wanted[name][wrong[0]]:.6g}. Received: {column[wrong[0]]:.6g} in {len(wrong)} of {len(own)} shown "
                "rows: the propensities are of another policy."
            )


def _in_threads(run: Callable[[int, int], None], requests: int) -> None:
    """Calls `run(first, end)` for stretches of requests, in as many threads as there are cores."""
    starts = range(0, requests, _CHUNK)
    if len(starts) == 1:
        run(0, requests)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda start: run(start, min(start + _CHUNK, requests)), starts))


def _log_of(
    draws: Draws, scores: Any, places: int, temperature: Any, epsilon: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`_checked_log` of the draws."""
    policy = (draws.of_request(temperature), draws.of_request(epsilon))
    return _checked_log(draws.ordered(scores), draws.offsets, draws.place, places, *policy)


def _checked_log(
    scores: Any, offsets: Any, position: Any, places: int, temperature: Any, epsilon: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits (scores, where the policy sorts) `[n]`, offsets, position, and the epsilon of each request, -1: none."""
    if temperature is None and epsilon is None:
        raise UserError("give either `temperature` or `epsilon`. Received: temperature=None, epsilon=None.")
    scores = _checked_scores(scores, "scores", places)
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    position = np.ascontiguousarray(position, dtype=np.int64)
    if offsets.size < 2 or offsets[0] != 0 or offsets[-1] != scores.size or (np.diff(offsets) < 1).any():
        raise UserError("`offsets` should rise from 0 to the number of scores, with no empty request.")
    if position.shape != scores.shape or position.min() < -1 or position.max() >= places:
        raise UserError(f"`position` should hold one place in -1 .. {places - 1} for each score.")
    heat, chance = (
        np.broadcast_to(np.asarray(np.nan if given is None else given, np.float64), offsets.size - 1)
        for given in (temperature, epsilon)
    )
    both = np.flatnonzero(np.isnan(heat) == np.isnan(chance))
    if len(both):
        found = f"temperature={heat[both[0]]:g}, epsilon={chance[both[0]]:g}"
        raise UserError(f"give either `temperature` or `epsilon` for each request. Received: {found}.")
    for name, column, good, rule in (
        ("temperature", heat, (heat > 0) & (heat < math.inf), "a positive number"),
        ("epsilon", chance, (chance >= 0) & (chance <= 1), "in [0, 1]"),
    ):
        wrong = column[~good & ~np.isnan(column)]
        if len(wrong):
            raise UserError(f"`{name}` should be {rule}. Received: {name}={wrong[0]}.")
    random = np.isnan(chance)
    logits = scores / np.repeat(np.where(random, heat, 1.0), np.diff(offsets))
    spread = np.maximum.reduceat(logits, offsets[:-1]) - np.minimum.reduceat(logits, offsets[:-1])
    _check_spread(float(spread[random].max(initial=0.0)))
    return logits, offsets, position, np.where(random, -1.0, chance)


def _checked_scores(values: Any, name: str, slots: int) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise UserError(f"`{name}` should be a vector of finite numbers, not empty. Received: shape {values.shape}.")
    if slots < 1:
        raise UserError(f"`slots` should be a positive integer. Received: slots={slots}.")
    return values


def _check_spread(spread: float) -> None:
    if spread > LARGEST_SPREAD:
        raise UserError(
            f"`logits` of one request should span less than {LARGEST_SPREAD:.0f}; raise the temperature or use the "
            f"deterministic policy. Received: {spread:.1f}."
        )


def _rates(logits: np.ndarray) -> np.ndarray:
    _check_spread(float(logits.max() - logits.min()))
    return np.exp(logits - logits.max())


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
    epsilon: np.ndarray,
    slots: np.ndarray,
    first: int,
    end: int,
    theta: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    at_position: np.ndarray,
    exposure: np.ndarray,
) -> None:
    """Draw after draw, `theta` [draws, K]; epsilon < 0 stands for Plackett-Luce."""
    for draw in range(first, end):
        start, stop = offsets[draw], offsets[draw + 1]
        looks = theta[draw, : slots[draw]]
        if epsilon[draw] < 0:
            rates = np.exp(logits[start:stop] - logits[start:stop].max())
            expected_looks(rates, position[start:stop], looks, x, weight, exposure[start:stop], at_position[start:stop])
            continue
        out = np.empty((stop - start, slots[draw]))
        _epsilon(logits[start:stop], epsilon[draw], out)
        for i in range(start, stop):
            exposure[i] = np.dot(out[i - start], looks)
            if position[i] >= 0:
                at_position[i] = out[i - start, position[i]]


@numba.njit(nogil=True, cache=True)
def _places(
    logits: np.ndarray,
    offsets: np.ndarray,
    position: np.ndarray,
    epsilon: np.ndarray,
    slots: np.ndarray,
    first: int,
    end: int,
    first_shown: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    places: np.ndarray,
) -> None:
    """Fills the rows of `places` that belong to requests `first` to `end`."""
    for request in range(first, end):
        start, stop = offsets[request], offsets[request + 1]
        if slots[request] == 0:
            continue
        shown = position[start:stop] >= 0
        rows = places[first_shown[request] : first_shown[request + 1], : slots[request]]
        if epsilon[request] < 0:
            out = np.empty(rows.shape)
            race(np.exp(logits[start:stop] - logits[start:stop].max()), shown, x, weight, out)
            rows[:] = out
        else:
            everything = np.empty((stop - start, slots[request]))
            _epsilon(logits[start:stop], epsilon[request], everything)
            rows[:] = everything[shown]
