"""How often each place is looked at, estimated from the clicks of a log whose policy put items at several places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.replay.log import Examination, ReplayLog
from ranking.replay.reading import PARTS, rows_of

__all__ = ["Examination", "estimate_examination", "examination_window", "read_examination"]

_STEPS = 60
_CONVERGED = 1e-10  # of the largest Newton step, in log theta
_INFORMATION = 1e-3  # smallest curvature a click, in any direction: below it places do not vary


def estimate_examination(log: ReplayLog, *, minimum_clicks: int = 30) -> Examination:
    """Examination by conditional maximum likelihood: where was the item, given that it was clicked?

    Under the position-based model a click at place k has probability `P(i at k) theta_k rho_i`, so that given the click

        P(place k | click on i) = theta_k P(i at k) / sum over l of theta_l P(i at l)

    where the relevance `rho_i` cancels: better items on top do no harm. With exact `P(i at k)` of the logging policy
    (`log.places`) nothing else is assumed. The likelihood is concave in log theta; Newton's method finds its top.
    The covariance is that of a sum over users (sandwich): a user's clicks resemble each other, and two items of a
    request are never at one place.

    **Harvested**: a log without policies has no `P(i at k)`. The share of the item's impressions at place k stands in,
    which assumes that, given the item, its place has nothing to do with who asks.

    Args:
        log: ReplayLog. Of a window of its own, before that of tuning: `examination_window`.
        minimum_clicks: int. Clicks that each place needs. Defaults to `30`.

    Returns:
        `Examination` of the places that the log filled.

    Raises:
        UserError: a place has too few clicks, or the places of the items hardly vary.

    Reference: McFadden 1974 (conditional logit). Agarwal et al., WSDM 2019, harvest all pairs of places instead.
    """
    if minimum_clicks < 1:
        raise UserError(f"`minimum_clicks` should be at least 1. Received: minimum_clicks={minimum_clicks}.")
    rows = np.flatnonzero(log.position >= 0)
    clicked = np.flatnonzero(log.click[rows])
    size = int(log.position.max(initial=0)) + 1
    chance = _shares(log, rows, size)[clicked] if log.places is None else log.places[clicked, :size].astype(np.float64)
    place = log.position[rows[clicked]]
    possible = chance[np.arange(len(place)), place] > 0  # not so where the log's order is not that of its scores
    chance, place, rows = chance[possible], place[possible], rows[clicked][possible]
    found = np.bincount(place, minlength=size)
    if size < 2 or found.min() < minimum_clicks:
        few = f"{found.min()} at place {found.argmin()}" if size > 1 else "one place only"
        raise UserError(
            f"Examination needs at least {minimum_clicks} clicks at each of two or more places. Received: {few}."
        )
    eta, scores, information = _maximum(chance, place, size)
    _, user = np.unique(log.user[log.request_of_row[rows]], return_inverse=True)
    by_user = np.stack([np.bincount(user, weights=column) for column in scores.T], axis=1)  # [U, K - 1]
    bread = np.linalg.inv(information)
    covariance = np.zeros((size, size))
    users = len(by_user)
    covariance[1:, 1:] = bread @ (by_user.T @ by_user) @ bread * users / max(users - 1, 1)
    theta = np.exp(eta)
    method = "harvested" if log.places is None else "estimated"
    return Examination(theta, covariance * np.outer(theta, theta), method, len(place))


def _shares(log: ReplayLog, rows: np.ndarray, size: int) -> np.ndarray:
    """Share of the impressions of a row's item at each place, float64 `[rows, K]`."""
    items = int(log.item.max()) + 1
    counts = np.bincount(log.item[rows] * size + log.position[rows], minlength=items * size).reshape(items, size)
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[log.item[rows]]


def _maximum(chance: np.ndarray, place: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log theta `[K]`, the score of each click `[clicks, K - 1]` and the information `[K - 1, K - 1]` at the top."""
    own = np.zeros_like(chance)
    own[np.arange(len(place)), place] = 1
    eta, level = np.zeros(size), -np.inf
    step = np.zeros(size)
    for _ in range(_STEPS):
        # A step that falls is halved: the likelihood is concave, Newton's step points upward.
        while (reached := _likelihood(chance, own, eta + step)) < level - 1e-9:
            step /= 2
        eta, level = eta + step, reached
        mix = chance * np.exp(eta - eta.max())
        mix /= mix.sum(axis=1, keepdims=True)
        scores = (own - mix)[:, 1:]
        information = np.diag(mix[:, 1:].sum(axis=0)) - mix[:, 1:].T @ mix[:, 1:]
        if np.linalg.eigvalsh(information)[0] < _INFORMATION * len(place) / size:
            raise UserError(
                "Examination needs items that were shown at several places. Received: a log whose places hardly vary; "
                "explore (plackett_luce, epsilon), or state `examination`."
            )
        step = np.concatenate([[0.0], np.linalg.solve(information, scores.sum(axis=0))])
        if np.abs(step).max() < _CONVERGED:
            return eta, scores, information
    raise UserError(f"Examination should be found in {_STEPS} steps. Received: a likelihood that still rises.")


def _likelihood(chance: np.ndarray, own: np.ndarray, eta: np.ndarray) -> float:
    """Logarithm of the conditional likelihood, up to a constant."""
    return float((own @ eta).sum() - np.log(chance @ np.exp(eta)).sum())


def examination_window(dataset: Dataset) -> tuple[int, int]:
    """Everything before the window `tune` that has candidates (else impressions): start and end, half-open.

    Raises:
        UserError: no window `tune`, or nothing before it.
    """
    if "tune" not in dataset.schema.windows:
        raise UserError("`windows` of dataset.toml should have `tune`: examination is estimated on what is before it.")
    end = dataset.schema.windows["tune"][0]
    times = (dataset.requests if dataset.has("requests") else dataset.impressions)[["request_id", "timestamp"]]
    if dataset.has("candidates"):
        times = times[times["request_id"].isin(dataset.candidates["request_id"])]
    start = int(times["timestamp"].min()) if len(times) else end
    if start >= end:
        raise UserError("Examination needs requests with candidates before the window `tune`. Received: none.")
    return start, end


def read_examination(
    dataset: Dataset,
    *,
    minimum_clicks: int = 30,
    progress: Callable[[str, int, int], None] | None = None,
) -> Examination:
    """Estimates the examination of a dataset on its `examination_window`.

    Args:
        dataset: Dataset.
        minimum_clicks: int. As in `estimate_examination`. Defaults to `30`.
        progress: callable or None. Called with (words, steps done, steps in all).

    Raises:
        UserError: as `examination_window` and `estimate_examination`.
    """
    tell = progress or (lambda words, done, total: None)
    tell("examination", 0, 2)
    window = examination_window(dataset)
    parts = None
    if not dataset.has("candidates") or not set(PARTS) & set(dataset.candidates):
        parts = {"pctr": np.zeros(len(rows_of(dataset, *window)[1]), np.float32)}  # a log has parts; here none is used
    log = ReplayLog.from_dataset(dataset, window, parts)
    tell("examination", 1, 2)
    found = estimate_examination(log, minimum_clicks=minimum_clicks)
    tell("examination", 2, 2)
    return found
