"""A learned fusion to compare the weights with: a curve for each part instead of a weight, each of them rising."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize

from ranking.errors import UserError
from ranking.fusion import FusionWeights, terms
from ranking.replay.log import ReplayLog
from ranking.replay.settings import score_terms

__all__ = ["LABELLED", "MonotoneFusion"]

LABELLED = ("clicks", "conversions", "value")
PIECES = 8  # of a curve
ROUGHNESS = 2.0  # of two neighbouring slopes, a priori: they differ by half a unit (1 / (2 * .5 ** 2))
RIDGE = 0.1  # of each slope, a priori: a little more than 2 units
_LARGEST = 30.0  # of the logarithm of a rate, relative to the mean: keeps a bold step of the line search finite


@dataclass(frozen=True)
class MonotoneFusion:
    """`score = sum over j of f_j(z_j)` with increasing, piecewise linear `f_j`, learned from what was shown.

    With knots t_1 < ... < t_M a curve is a sum of ramps, each with a slope that is not negative:

        f(z) = a_0 min(z - t_1, 0) + sum over m of a_m min(max(z - t_m, 0), t_(m+1) - t_m) + a_M max(z - t_M, 0)

    so that a better part never makes a worse score, and equal slopes are a plain weight. exp(score + b) is fitted to
    the outcome y of an item that is looked at, by the Poisson likelihood of the position-based model,

        sum over shown i of (theta_pos exp(score_i + b) - y_i (score_i + b)) / e0(i)

    whose expectation is that of all candidates, had each been looked at once: `e0(i)` is the chance that the logging
    policy got candidate i looked at. Neighbouring slopes are pulled together, and a little to 0.

    Args:
        weights: FusionWeights. Their form, mu and sd make the `z`; their weights are not used.
        knots: dict of part -> float64 `[M]`, rising.
        slopes: dict of part -> float64 `[M + 1]`, not negative.

    Reference: Joachims, Swaminathan and Schnabel, WSDM 2017 (position-based model, inverse propensity).
    """

    weights: FusionWeights
    knots: dict[str, np.ndarray]
    slopes: dict[str, np.ndarray]

    @classmethod
    def fit(cls, log: ReplayLog, production: FusionWeights, objective: str) -> MonotoneFusion:
        """Learns the curves on a log; deterministic.

        Without exposure propensities each shown row counts once: like everything on such a log, that is about the order
        of what was shown.

        Args:
            log: ReplayLog.
            production: FusionWeights. Their constants are used.
            objective: str. `"clicks"`, `"conversions"` or `"value"`.

        Raises:
            UserError: another objective, or none of its outcome in the log.
        """
        if objective not in LABELLED:
            raise UserError(f"`objective` should be one of {list(LABELLED)} to learn from. Received: {objective!r}.")
        column = {"clicks": log.click, "conversions": log.conversion, "value": log.value}[objective]
        final = np.ones(log.requests, bool) if objective == "clicks" else log.mature
        rows = np.flatnonzero((log.position >= 0) & final[log.request_of_row])
        y = column[rows].astype(np.float64)
        if not y.any():
            raise UserError(f"The log should have {objective} to learn a fusion from. Received: none.")
        theta = np.ones(len(rows)) if log.examination is None else log.examination[log.position[rows]]
        inverse = np.ones(len(rows)) if log.exposure_propensity is None else 1 / log.exposure_propensity[rows]

        z = {name: values[rows].astype(np.float64) for name, values in score_terms(log, production).items()}
        levels = np.arange(1, PIECES) / PIECES
        knots = {name: np.unique(np.quantile(values, levels)) for name, values in z.items()}
        basis = np.concatenate([ramps(z[name], knots[name]) for name in z], axis=1)
        sizes = [len(knots[name]) + 1 for name in z]
        slopes = _fitted(basis, theta * inverse, y * inverse, _penalty(sizes))
        return cls(production, knots, dict(zip(z, np.split(slopes, np.cumsum(sizes)[:-1]), strict=True)))

    def score(self, log: ReplayLog) -> np.ndarray:
        """The score of each candidate of a log, float32 `[n]`: its order counts, not its size."""
        z = terms(log.parts, self.weights, offsets=log.offsets)
        found = np.zeros(len(log.item))
        for name, slopes in self.slopes.items():
            found += ramps(z[name].astype(np.float64), self.knots[name]) @ slopes
        return found.astype(np.float32)


def ramps(z: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """The pieces of the curves: one below the first knot, one between two, one above the last; they add up to z - t_1.

    Args:
        z: float64 `[n]`.
        knots: float64 `[M]`, rising.

    Returns:
        float64 `[n, M + 1]`, each column not falling in `z`.
    """
    below = np.minimum(z - knots[0], 0)
    between = [np.clip(z - low, 0, high - low) for low, high in zip(knots[:-1], knots[1:], strict=True)]
    return np.stack([below, *between, np.maximum(z - knots[-1], 0)], axis=1)


def poisson_loss(
    parameters: np.ndarray, basis: np.ndarray, looks: np.ndarray, outcome: np.ndarray, penalty: np.ndarray
) -> tuple[float, np.ndarray]:
    """The loss and its gradient; the last parameter is the intercept.

        (sum_i looks_i exp(eta_i) - outcome_i eta_i) / sum_i outcome_i + slopes^T penalty slopes

    Args:
        parameters: float64 `[P + 1]`. Slopes, then the intercept.
        basis: float64 `[n, P]`.
        looks: float64 `[n]`. theta_pos / e0.
        outcome: float64 `[n]`. y / e0.
        penalty: float64 `[P, P]`.
    """
    slopes, total = parameters[:-1], outcome.sum()
    eta = np.minimum(basis @ slopes + parameters[-1], _LARGEST)  # [n]
    expected = looks * np.exp(eta)  # [n]
    residual = (expected - outcome) / total
    loss = (expected.sum() - outcome @ eta) / total + slopes @ penalty @ slopes
    return loss, np.append(basis.T @ residual + 2 * penalty @ slopes, residual.sum())


def _penalty(sizes: list[int]) -> np.ndarray:
    """Of squared differences of neighbouring slopes of a part, and of squared slopes; `[P, P]`."""
    total = sum(sizes)
    found = RIDGE * np.eye(total)
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        step = np.diff(np.eye(size), axis=0)  # [size - 1, size]
        found[start : start + size, start : start + size] += ROUGHNESS * step.T @ step
    return found


def _fitted(basis: np.ndarray, looks: np.ndarray, outcome: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """The slopes of least loss; a prior counts as one outcome, however the outcomes are weighted."""
    outcomes = outcome.sum() ** 2 / (outcome**2).sum()
    rate = outcome.sum() / looks.sum()
    start = np.append(np.full(basis.shape[1], 0.1), np.log(rate))
    found = scipy.optimize.minimize(
        poisson_loss,
        start,
        (basis, looks, outcome, penalty / outcomes),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * basis.shape[1] + [(None, None)],
        options={"maxiter": 500},
    )
    return found.x[:-1]
