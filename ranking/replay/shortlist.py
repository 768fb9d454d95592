"""Which of the settings tried are worth a look on the test window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Evaluation, Evaluator
from ranking.replay.search import Trials, pareto

__all__ = ["shortlist"]

_POOL = 60  # settings that get intervals on the tune window, and as many of the front
_SHORTLIST = 10
_DISTINCT = 0.03  # largest difference of a weight under which two settings count as one
_STEPS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0)  # standard errors by which lower bounds are asked to keep the guardrails


def _setting(evaluator: Evaluator, row: np.ndarray) -> FusionWeights:
    weights = dict.fromkeys(evaluator.production.weights, 0.0)
    weights.update(zip(evaluator.parts, map(float, row), strict=True))
    return replace(evaluator.production, weights=weights, segments={})


def shortlist(
    evaluator: Evaluator, found: Trials, objective: str, guardrails: dict[str, float], axes: Sequence[str]
) -> tuple[list[str], list[FusionWeights], list[tuple[str, ...]], list[Evaluation]]:
    """Production, a ladder of ever safer settings, and the landmarks of the front.

    A step of the ladder is the setting with the best lower bound of the objective among those whose lower bounds keep
    every guardrail at so many standard errors: the best of one window by a hair breaks a guardrail on the next.

    Returns:
        Names, settings, roles and evaluations on the tune window, of at most ten settings after production.
    """
    supported = np.flatnonzero([gate is None or not gate.reason for gate in found.supports])
    front = supported[_front(found, supported, axes)]
    landmarks = {f"best {name}": int(supported[np.argmax(found.deltas[name][supported])]) for name in axes}
    landmarks["knee"] = _knee(front, found, axes)
    feasible = np.flatnonzero(found.feasible)
    feasible = feasible[np.argsort(-found.deltas[objective][feasible], kind="stable")]
    safe = feasible[_front(found, feasible, [objective, *guardrails])][:_POOL]
    pool = list(dict.fromkeys([*map(int, safe), *map(int, feasible[:_POOL])]))
    settings = [_setting(evaluator, found.weights[index]) for index in pool]
    # Who is worth a look is told without the error of the examination: ten times as fast, and the look itself has it.
    stated = replace(evaluator.log, examination_covariance=None)
    quick = Evaluator(stated, evaluator.production, evaluator.estimator, seed=evaluator.seed)
    ladder = [pool[place] for place in _ladder(quick.evaluate(settings, together=False), objective, guardrails)]

    reserved = set(landmarks.values())
    chosen: list[int] = [0]  # production is row 0
    for index in dict.fromkeys([*ladder, *landmarks.values()]):
        room = 1 + _SHORTLIST - (0 if index in reserved else len(reserved - set(chosen)))
        distance = np.abs(found.weights[chosen] - found.weights[index]).max(axis=1)
        if len(chosen) < room and distance.min() > _DISTINCT:
            chosen.append(index)
    names = ["production", *(f"setting {place}" for place in range(1, len(chosen)))]
    roles: list[list[str]] = [[] for _ in chosen]
    for role, index in landmarks.items():
        near = np.abs(found.weights[chosen] - found.weights[index]).max(axis=1)
        roles[int(np.argmin(near))].append(role)
    settings = [evaluator.production, *(_setting(evaluator, found.weights[index]) for index in chosen[1:])]
    return names, settings, [tuple(role) for role in roles], evaluator.evaluate(settings)


def _front(found: Trials, rows: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    return pareto(np.stack([found.deltas[name][rows] for name in axes], axis=1))


def _ladder(evaluated: Sequence[Evaluation], objective: str, guardrails: dict[str, float]) -> list[int]:
    """Places in `evaluated`: one a step, then the others, the most hopeful first."""
    places, gains, margins = [], [], []
    for place, row in enumerate(evaluated):
        if all(name in row.estimates for name in (objective, *guardrails)):
            errors = []
            for name, least in guardrails.items():
                estimate = row.estimates[name]
                one = (estimate.high - estimate.low) / (2 * NormalDist().inv_cdf(0.975))
                errors.append((estimate.delta - least) / one if one > 0 else np.inf)
            places.append(place)
            gains.append(row.estimates[objective].low)
            margins.append(min(errors, default=np.inf))
    gain, margin = (
        np.array(gains),
        np.array(margins),
    )  # of the gain: its lower bound; of the guardrails: standard errors
    steps = []
    for step in _STEPS:
        inside = np.flatnonzero(margin >= step)
        if len(inside):
            steps.append(places[inside[np.argmax(gain[inside])]])
    rest = np.lexsort((-gain, margin < _STEPS[0]))
    return list(dict.fromkeys([*steps, *(places[index] for index in rest)]))


def _knee(front: np.ndarray, found: Trials, axes: Sequence[str]) -> int:
    """The point of the front with the largest sum of its objectives, each scaled to [0, 1] over the front."""
    points = np.stack([found.deltas[name][front] for name in axes], axis=1)
    span = np.ptp(points, axis=0)
    return int(front[np.argmax(((points - points.min(axis=0)) / np.where(span > 0, span, 1)).sum(axis=1))])
