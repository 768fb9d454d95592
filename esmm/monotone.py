"""A strictly increasing function of a logit, and the one under which labels are likeliest."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize

__all__ = ["MonotoneMap", "fit_map"]

# Standard deviations of the prior, in logits: of the shift, of the mean log slope, of a bend's change of log slope.
SHIFT, SLOPE, BEND = 3.0, 1.0, 0.5
STEEPEST = 20.0  # slopes stay within [1 / 20, 20], so that the order of logits survives float32


@dataclasses.dataclass(frozen=True)
class MonotoneMap:
    """A strictly increasing, piecewise-linear function of a logit.

    Outside the knots the end pieces go on with their slopes; two knots make a line, Platt's scaling.

    Args:
        knots: sequence of float `[k]`, k >= 2, strictly increasing.
        values: sequence of float `[k]`, strictly increasing: the function at the knots.
    """

    knots: Sequence[float]
    values: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("knots", "values"):
            points = tuple(float(value) for value in getattr(self, name))
            if len(points) < 2 or not np.isfinite(points).all() or not (np.diff(points) > 0).all():
                raise ValueError(f"`{name}` should be at least two numbers, strictly increasing. Received: {points}.")
            object.__setattr__(self, name, points)
        if len(self.knots) != len(self.values):
            raise ValueError(
                f"`values` should be one a knot. Received: {len(self.values)} values, {len(self.knots)} knots."
            )

    @property
    def slopes(self) -> np.ndarray:
        """Of each piece, float64 `[k - 1]`."""
        return np.diff(self.values) / np.diff(self.knots)

    def apply(self, logit: Any) -> np.ndarray:
        """The function of an array, in float64."""
        logit, knots, values = (np.asarray(array, np.float64) for array in (logit, self.knots, self.values))
        piece = np.searchsorted(knots[1:-1], logit, side="right")
        mapped = values[piece] + self.slopes[piece] * (logit - knots[piece])
        return np.minimum(mapped, np.append(values[1:-1], np.inf)[piece])  # rounding must not pass the next knot


def fit_map(
    logit: np.ndarray, label: np.ndarray, given: np.ndarray, *, pieces: int = 1, prior: float = 1.0
) -> MonotoneMap:
    """The map under which the labels are likeliest, given that another event must come first.

    With `p = sigmoid(given)` and `q = sigmoid(map(logit))`, it maximises, by L-BFGS over the value at the middle knot
    and the log slopes of the pieces,

        sum over rows of y log(p q) + (1 - y) log(1 - p q)  -  prior

    where the prior, weak, keeps the map near the identity and its pieces near one line: few positives bend nothing.

    Args:
        logit: float64 array `[n]`.
        label: float64 array `[n]` of 0 and 1.
        given: float64 array `[n]`. Logit of the event that must come first; infinite where nothing must.
        pieces: int. At most; they share the expected positives equally. Defaults to `1`, Platt's scaling.
        prior: float. Its weight; 0 for the likelihood alone. Defaults to `1.0`.
    """
    knots = _knots(logit, np.exp(-np.logaddexp(0, -given) - np.logaddexp(0, -logit)), pieces)
    start = np.append(knots[(len(knots) - 1) // 2], np.zeros(len(knots) - 1))
    bounds = [(None, None)] + [(-np.log(STEEPEST), np.log(STEEPEST))] * (len(knots) - 1)
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-10}
    loss = _loss(logit, label, given, knots, prior)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return MonotoneMap(knots.tolist(), _values(found.x, knots).tolist())


def _knots(logit: np.ndarray, expected: np.ndarray, pieces: int) -> np.ndarray:
    """Ends of pieces that share the expected positives equally; of one piece, their mean and a point beside it."""
    order = np.argsort(logit, kind="stable")
    mass = np.cumsum(expected[order])
    inner = logit[order][np.searchsorted(mass, mass[-1] * np.arange(1, pieces) / pieces)]
    knots = np.unique([logit[order[0]], *inner, logit[order[-1]]])
    if len(knots) > 2:
        return knots
    centre = np.average(logit, weights=expected)
    return np.array([centre, centre + 1])


def _values(parameters: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Values at the knots `[k]` of (value at the middle knot, log slopes `[k - 1]`)."""
    risen = np.concatenate([[0.0], np.cumsum(np.exp(parameters[1:]) * np.diff(knots))])
    return parameters[0] + risen - risen[(len(knots) - 1) // 2]


def _loss(logit: np.ndarray, label: np.ndarray, given: np.ndarray, knots: np.ndarray, prior: float) -> Any:
    """Negative log posterior a positive, and its gradient, as a function of the parameters of `_values`.

    log(1 - p q) is taken as log((1 - p) + p (1 - q)), in which nothing cancels.
    """
    pieces, middle = len(knots) - 1, (len(knots) - 1) // 2
    piece = np.searchsorted(knots[1:-1], logit, side="right")  # [n]
    offset, width = logit - knots[piece], np.diff(knots)
    log_p, log_no_p = -np.logaddexp(0, -given), -np.logaddexp(0, given)
    positive, scale = label > 0, 1 / max(label.sum(), 1)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_slopes, shift = parameters[1:], parameters[0] - knots[middle]
        slopes = np.exp(log_slopes)
        z = _values(parameters, knots)[piece] + slopes[piece] * offset  # [n]
        log_q, log_no_q = -np.logaddexp(0, -z), -np.logaddexp(0, z)
        log_none = np.logaddexp(log_no_p, log_p + log_no_q)
        value = -np.sum(np.where(positive, log_p + log_q, log_none))
        by_row = np.where(positive, -np.exp(log_no_q), np.exp(log_p + log_q + log_no_q - log_none))  # d value / d z
        by_piece = np.bincount(piece, by_row, pieces)
        beyond = by_piece.sum() * (np.arange(pieces) >= middle) - np.cumsum(by_piece)  # rows that a slope lifts
        by_slope = slopes * (np.bincount(piece, by_row * offset, pieces) + width * beyond)
        bends = np.diff(log_slopes) / BEND**2
        value += prior * (shift**2 / SHIFT**2 + log_slopes.mean() ** 2 / SLOPE**2 + bends @ np.diff(log_slopes)) / 2
        by_slope += prior * (log_slopes.mean() / pieces / SLOPE**2 - np.diff(bends, prepend=0.0, append=0.0))
        gradient = np.append(by_piece.sum() + prior * shift / SHIFT**2, by_slope)
        return scale * value, scale * gradient

    return loss
