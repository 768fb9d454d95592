"""The search for weights: a Sobol batch over ratios, then NSGA-II on from the best of it. No verdict here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from scipy.stats import qmc

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.checkpoint import Checkpoint, Deltas
from ranking.replay.evaluation import Evaluator
from ranking.replay.support import Support

__all__ = ["Space", "Trials", "pareto", "search"]

_POPULATION = 64  # as many as the kernel takes at a time
_BATCH = 64
_ZERO = 0.1  # share of the unit interval that means "without this part"
_DECADES = 2.0  # ratios are searched over so many powers of ten


@dataclass(frozen=True)
class Space:
    """Maps the unit cube to canonical weights: log-uniform ratios, or exactly zero where the bounds hold it.

    A part is searched on the side of zero that production's weight is on: a part is a score, more of it is better
    (or, for a price, worse), and which is known.

    Args:
        names: tuple of str. Parts that are weighed.
        low: float64 `[J]`. Bounds of the size of the canonical weights.
        high: float64 `[J]`.
        sign: float64 `[J]`. 1 or -1.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    sign: np.ndarray

    @classmethod
    def of(cls, production: FusionWeights, names: Sequence[str]) -> Space:
        """The bounds in production's file, of the parts that order anything."""
        bounds = np.array([production.bounds[name] for name in names], np.float64)  # [J, 2]
        sign = np.where(np.array([production.weights[name] for name in names]) < 0, -1.0, 1.0)
        low, high = np.sort(bounds * sign[:, None], axis=1).T
        if np.all(high < 1):
            raise UserError(
                f"`bounds` of the production weights should let one of {list(names)} reach 1, the largest weight. "
                f"Received: {dict(production.bounds)}."
            )
        return cls(tuple(names), np.maximum(low, 0), high, sign)

    def weights(self, unit: np.ndarray) -> np.ndarray:
        """Canonical weights `[S, J]` of points `[S, J]` of the unit cube; NaN rows fall outside the bounds."""
        floor = np.maximum(self.low, self.high * 10**-_DECADES)
        free = self.low == 0
        size = floor * (self.high / np.where(floor > 0, floor, 1)) ** np.where(free, (unit - _ZERO) / (1 - _ZERO), unit)
        size = np.where(free & (unit < _ZERO), 0.0, size)
        largest = size.max(axis=1, keepdims=True)
        size = np.divide(size, largest, out=np.full_like(size, np.nan), where=largest > 0)
        outside = (size < self.low - 1e-9) | (size > self.high + 1e-9)
        size = np.clip(size, self.low, self.high)
        size[outside.any(axis=1)] = np.nan
        return size * self.sign


@dataclass(frozen=True)
class Trials:
    """Everything the search tried; row 0 is production.

    Args:
        weights: float64 `[T, J]`.
        deltas: dict of str to float64 `[T]`. Point estimates of the changes on the tune window.
        supports: list of Support or None.
        feasible: bool `[T]`. Supported and within the guardrails, as point estimates.
    """

    weights: np.ndarray
    deltas: dict[str, np.ndarray]
    supports: list[Support | None]
    feasible: np.ndarray


def pareto(points: np.ndarray) -> np.ndarray:
    """Which rows of `[T, O]` no other row beats: more is better, bool `[T]`.

    A row comes after all that beat it in lexical order, so that the first row left is always of the front; what it
    beats goes. As many passes as the front has distinct rows.
    """
    front = np.zeros(len(points), bool)
    left = np.lexsort(-points.T[::-1])
    while len(left):
        first = points[left[0]]
        front[left[(points[left] == first).all(axis=1)]] = True
        left = left[(points[left] > first).any(axis=1)]
    return front


def search(
    evaluator: Evaluator,
    axes: Sequence[str],
    guardrails: dict[str, float],
    trials: int,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Trials:
    """Tries `trials` settings, production first.

    Args:
        evaluator: Evaluator. Of the tune window.
        axes: sequence of str. Objectives of the front, the main one first.
        guardrails: dict of str to float. Least change of an objective.
        trials: int. Settings to try.
        seed: int. Random seed. Defaults to `0`.
        progress: callable of (done, total). Defaults to `None`.
        checkpoint: Checkpoint. What an earlier search, that was stopped, found. Defaults to `None`.

    Returns:
        `Trials`.
    """
    space = Space.of(evaluator.production, evaluator.parts)
    production = np.array([[evaluator.production.weights[name] for name in space.names]])
    sobol = qmc.Sobol(len(space.names), scramble=True, seed=seed)
    wanted = 1 << max(3, int(np.log2(max(trials // 2, 8))))
    unit = sobol.random(wanted)
    weights = space.weights(unit)
    inside = np.isfinite(weights).all(axis=1)
    unit, weights = unit[inside], weights[inside]

    rows: list[np.ndarray] = []
    batches: list[tuple[dict[str, np.ndarray], list[Support | None], np.ndarray]] = []
    evaluate = evaluator.deltas if checkpoint is None else partial(checkpoint.deltas, evaluator.deltas)

    def run(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluates a batch: the axes `[S, A]` and the violations `[S]`."""
        found: list[Deltas] = []
        for begin in range(0, len(batch), _BATCH):
            found.append(evaluate(batch[begin : begin + _BATCH].astype(np.float32)))
            if progress:
                progress(min(sum(len(row) for row in rows) + begin + _BATCH, trials), trials)
        deltas = {name: np.concatenate([part[0][name] for part in found]) for name in evaluator.objectives}
        supports = [gate for part in found for gate in part[1]]
        violation = np.array([float(gate is not None and bool(gate.reason)) for gate in supports])
        for name, least in guardrails.items():
            violation += np.maximum(least - deltas[name], 0)
        rows.append(batch)
        batches.append((deltas, supports, violation))
        return np.stack([deltas[name] for name in axes], axis=1), violation

    points, violation = run(np.concatenate([production, weights]))
    _evolve(run, space, unit, points[1:], violation[1:], trials - 1 - len(weights), seed)

    violations = np.concatenate([violation for _, _, violation in batches])
    return Trials(
        weights=np.concatenate(rows),
        deltas={name: np.concatenate([deltas[name] for deltas, _, _ in batches]) for name in evaluator.objectives},
        supports=[gate for _, supports, _ in batches for gate in supports],
        feasible=violations <= 0,
    )


def _evolve(
    run: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    space: Space,
    unit: np.ndarray,
    points: np.ndarray,
    violation: np.ndarray,
    budget: int,
    seed: int,
) -> None:
    """NSGA-II in memory, a population a kernel call; its first generation is the best of the Sobol batch."""
    if budget < 1 or len(unit) == 0:
        return
    study = _new_study(points.shape[1], seed)
    feasible = violation <= 0
    front = np.zeros(len(unit), bool)
    front[feasible] = pareto(points[feasible])
    best = np.lexsort((-points[:, 0], violation, ~front))[:_POPULATION]
    for row in unit[best]:
        study.enqueue_trial({name: float(u) for name, u in zip(space.names, row, strict=True)})
    while budget > 0:
        asked = [study.ask() for _ in range(min(_POPULATION, budget))]
        budget -= len(asked)
        proposed = np.array([[trial.suggest_float(name, 0, 1) for name in space.names] for trial in asked])
        weights = space.weights(proposed)
        inside = np.isfinite(weights).all(axis=1)
        values, violations = run(weights[inside]) if inside.any() else (points[:0], violation[:0])
        index = 0
        for trial, good in zip(asked, inside, strict=True):
            if not good:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            trial.set_user_attr("violation", float(violations[index]))
            study.tell(trial, [float(value) for value in values[index]])
            index += 1


def _new_study(axes: int, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        # Optuna 5 prefers Trial.set_constraint, which Optuna 4 does not have.
        warnings.simplefilter("ignore", FutureWarning)
        sampler = optuna.samplers.NSGAIISampler(
            population_size=_POPULATION,
            seed=seed,
            constraints_func=lambda trial: (trial.user_attrs["violation"],),
        )
    return optuna.create_study(directions=["maximize"] * axes, sampler=sampler)
