"""Scores of other kinds, to compare the fusion weights with: learned curves, and a separate model an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import qmc

from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.learned_fusion import LABELLED, MonotoneFusion
from ranking.replay.evaluation import Evaluator
from ranking.replay.log import ReplayLog

if TYPE_CHECKING:
    from ranking.data.tables import Dataset
    from ranking.run import Run

__all__ = ["Rival", "learned_rival", "multi_model_rival"]

SETTINGS = 256  # of each batch of the search
STEPS = (1.0, 0.4, 0.15)  # how far a batch reaches from the best so far; the first one everywhere


@dataclass(frozen=True)
class Rival:
    """A score of another kind on the two windows of a replay.

    Args:
        name: str.
        description: str. How the scores are made, a sentence.
        tune: float32 `[n]`. Scores of the candidates of the tune window.
        test: float32 `[m]`. Scores of the candidates of the test window.
    """

    name: str
    description: str
    tune: np.ndarray
    test: np.ndarray


def learned_rival(
    log_tune: ReplayLog, log_test: ReplayLog, production: FusionWeights, objective: str
) -> tuple[Rival | None, str]:
    """A `MonotoneFusion` learned on the tune window.

    Args:
        log_tune: ReplayLog.
        log_test: ReplayLog.
        production: FusionWeights. Their constants are used.
        objective: str.

    Returns:
        The rival and an empty string, or `None` and why there is none.
    """
    try:
        fusion = MonotoneFusion.fit(log_tune, production, objective)
    except UserError as error:
        return None, str(error)
    description = f"A rising curve for each part, learned for {objective} on the tune window."
    return Rival("learned fusion", description, fusion.score(log_tune), fusion.score(log_test)), ""


def multi_model_rival(
    run: Run,
    dataset: Dataset,
    log_tune: ReplayLog,
    log_test: ReplayLog,
    production: FusionWeights,
    objective: str,
    *,
    windows: tuple[str, str] = ("tune", "test"),
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Rival | None, str]:
    """A separate model an objective: the run's variant "base", a network for clicks and another for conversions.

    Their probabilities, with similarity and price as they are, are fused in production's form with constants of their
    own; the weights are the best that a search on the tune window finds.

    Args:
        run: Run. Trained with baselines.
        dataset: Dataset. What the logs were read from.
        log_tune: ReplayLog.
        log_test: ReplayLog.
        production: FusionWeights. Their form is used, and their weights to start from.
        objective: str.
        windows: tuple of str. The names of the two windows. Defaults to `("tune", "test")`.
        seed: int. Random seed of the search. Defaults to `0`.
        progress: callable of (stage, done, total). Defaults to `None`.

    Returns:
        The rival and an empty string, or `None` and why there is none.
    """
    if objective not in LABELLED:
        return None, f"A model an objective is for one of {list(LABELLED)}. Received: {objective!r}."
    if "base" not in run.models:
        return None, "The run has no separate models; `seedrank train --with-baselines` makes them."
    report = progress or (lambda *_: None)
    logs = [
        _with_parts(log, run, dataset, window, report)
        for log, window in zip((log_tune, log_test), windows, strict=True)
    ]
    try:
        weights = _searched(logs[0], _own_constants(logs[0], production), objective, seed)
    except UserError as error:
        return None, str(error)
    scores = [np.asarray(fuse(log.parts, weights, offsets=log.offsets), np.float32) for log in logs]
    description = f"One network for clicks and another for conversions, fused with weights found for {objective}."
    return Rival("a model an objective", description, *scores), ""


def _with_parts(log: ReplayLog, run: Run, dataset: Dataset, window: str, report: Callable[..., None]) -> ReplayLog:
    """The same log with the probabilities of the separate models."""
    from ranking.scoring import score_candidates  # brings TensorFlow

    found = score_candidates(run, dataset, window, report, variant="base")
    names = [name for name in ("similarity", "has_similarity", "pctr", "pcvr", "price") if name in log.parts]
    again = ReplayLog.from_dataset(dataset, window, {name: found[name] for name in names})
    if not np.array_equal(again.request_id, log.request_id):
        raise UserError(f"The log should be the window {window!r} of {dataset.path}. Received: other requests.")
    return dataclasses.replace(log, parts=again.parts)


def _own_constants(log: ReplayLog, production: FusionWeights) -> FusionWeights:
    """Production's form and weights with constants of other parts; nothing bounds the weights of a rival."""
    weights = {name: weight for name, weight in production.weights.items() if name in log.parts}
    return FusionWeights.fit(log.parts, production.form, weights, offsets=log.offsets)


def _searched(log: ReplayLog, start: FusionWeights, objective: str, seed: int) -> FusionWeights:
    """The setting with the largest change that the log supports, out of some Sobol batches.

    Raises:
        UserError: the log does not support the start, or says too little of the objective.
    """
    evaluator = Evaluator(log, start, seed=seed)
    if objective not in evaluator.objectives:
        raise UserError(f"The tune window has too little of the objective {objective!r} to search on it.")
    best = np.array([start.weights[name] for name in evaluator.parts])
    center = np.zeros(len(best))
    points = qmc.Sobol(len(best), rng=seed)
    for step in STEPS:
        batch = np.clip(center + step * (2 * points.random(SETTINGS) - 1), -1, 1)
        settings = np.concatenate([best[None], batch])  # [S, J]; the first is supported
        changes, gates = evaluator.deltas(settings.astype(np.float32))
        refused = [gate is not None and bool(gate.reason) for gate in gates]
        best = settings[np.argmax(np.where(refused, -np.inf, np.nan_to_num(changes[objective], nan=-np.inf)))]
        best = center = best / np.abs(best).max()
    return dataclasses.replace(
        start, weights=dict.fromkeys(start.weights, 0.0) | dict(zip(evaluator.parts, best, strict=True))
    )
