"""Tuning of the fusion weights: search on one window, decide on a later one, or keep production."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ranking.fusion import FusionWeights, fuse
from ranking.replay.checkpoint import Checkpoint
from ranking.replay.details import make_details
from ranking.replay.estimators import BIASED_BANNER, E0LabelNDCG, informative_groups
from ranking.replay.evaluation import Evaluation, Evaluator
from ranking.replay.log import ReplayLog
from ranking.replay.search import Trials, search
from ranking.replay.shortlist import shortlist
from ranking.replay.study import Entry, LogSummary, Study
from ranking.replay.support import matured_conversions
from ranking.replay.tuning_checks import check_arguments, check_labels, check_objectives, estimator_of
from ranking.replay.verdict import pick, verdict

if TYPE_CHECKING:  # it comes with TensorFlow
    from ranking.rivals import Rival

__all__ = ["summarize", "tune"]


def tune(
    log_tune: ReplayLog,
    log_test: ReplayLog,
    *,
    production: FusionWeights,
    objective: str = "conversions",
    guardrails: dict[str, float] | None = None,
    trials: int = 2000,
    group: str = "request",
    minimum_groups: int = 2000,
    estimator: str = "auto",
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    allow_biased: bool = False,
    rivals: Sequence[Rival] = (),
    checkpoint: str | Path | None = None,
    source: dict[str, Any] | None = None,
) -> Study:
    """Searches weights on one window and decides on a later one.

    A Sobol batch and NSGA-II propose settings on the tune window; at most ten of them, chosen by the lower bounds of
    their changes (see `shortlist`), are evaluated **once** on the test window. Recommended is the one with the best
    lower bound of the objective among those that keep every guardrail with *its* lower bound; where none gains for
    sure, the verdict is to keep production.

    Args:
        log_tune: ReplayLog. The window to search on.
        log_test: ReplayLog. A later window.
        production: FusionWeights. What every change is against; its `bounds` limit the search.
        objective: str. One of `OBJECTIVES`. Defaults to `"conversions"`.
        guardrails: dict of str to float. Least relative change of other objectives, as in `{"clicks": -0.01}` (the
            default).
        trials: int. Settings to try. Defaults to `2000`.
        group: str. What counts as an informative group (and what E0 orders). Defaults to `"request"`.
        minimum_groups: int. Informative groups that each objective with a label needs. Defaults to `2000`.
        estimator: str. `"E0"` to `"E6"`, or the best that the log allows. Defaults to `"auto"`.
        seed: int. Random seed. Defaults to `0`.
        progress: callable of (stage, done, total). Defaults to `None`.
        allow_biased: bool. Tune on an estimate that is not causal. Defaults to `False`.
        rivals: sequence of Rival. Other scores, to be judged beside the settings. Defaults to none.
        checkpoint: str or Path. A file for what was tried: where it exists the search goes on from it, and it is
            removed at the end. Defaults to `None`.
        source: dict. Kept in the study: where the logs came from. Defaults to nothing.

    Returns:
        A `Study`.

    Raises:
        UserError: a wrong argument, too few informative groups, users or conversions, windows out of order, no
            propensities without `allow_biased`, a checkpoint of another search, or a log that does not support
            production itself.
    """
    guardrails = {"clicks": -0.01} if guardrails is None else dict(guardrails)
    guardrails.pop(objective, None)
    check_arguments(
        objective=objective,
        guardrails=guardrails,
        trials=trials,
        minimum_groups=minimum_groups,
        group=group,
        estimator=estimator,
    )
    logs = {"tune": log_tune, "test": log_test}
    chosen = estimator_of(logs, group, estimator, allow_biased)
    wanted = [objective, *guardrails]
    for where, log in logs.items():
        check_labels(log, where, wanted, group, minimum_groups if where == "tune" else 1)
    on_tune = Evaluator(log_tune, production, chosen, seed=seed)
    on_test = Evaluator(log_test, production, chosen, seed=seed + 1)
    check_objectives({"tune": on_tune, "test": on_test}, wanted)
    axes = _axes(objective, on_tune)
    report = progress or _silent
    settings = {
        "trials": trials,
        "group": group,
        "minimum_groups": minimum_groups,
        "estimator": estimator,
        "seed": seed,
        "axes": axes,
        "diversity": log_tune.category_column,
        "versions": {name: version(name) for name in ("numpy", "optuna", "scipy")},
    }
    about: dict[str, Any] = {
        "objective": objective,
        "guardrails": guardrails,
        "settings": settings,
        "log_hashes": {where: log.hash for where, log in logs.items()},
        "examination": _examination(log_tune),
    }
    kept = None if checkpoint is None else Checkpoint(checkpoint, {**about, "production": production.hash})
    found = search(
        on_tune, axes, guardrails, trials, seed=seed, progress=partial(report, "settings tried"), checkpoint=kept
    )
    report("the test window", 0, 1)
    entries = _judge(on_tune, on_test, found, objective, guardrails, axes, group)
    beside = _rivals(rivals, on_tune, on_test)
    report("the test window", 1, 1)
    best = next((entry for entry in entries if "pick" in entry.roles), None)
    name = best.name if best else ""
    sentence = verdict(best, objective, guardrails, entries)
    report("details", 0, 1)
    details = make_details(log_tune, log_test, on_tune, on_test, entries, production, objective, guardrails, name)
    report("details", 1, 1)
    study = Study(
        **about,
        production=production,
        verdict=sentence if chosen.causal else f"{sentence} {BIASED_BANNER}",
        pick=name,
        estimator=chosen.name,
        assumptions=chosen.assumptions,
        banners=chosen.banners(log_tune),
        tune=summarize(log_tune, production, group),
        test=summarize(log_test, production, group),
        shortlist=tuple(entries),
        rivals=tuple(beside),
        trials=_trial_rows(found, on_tune.parts),
        looks=(uuid.uuid4().hex,),
        source=source or {},
        details=details,
    )
    if kept is not None:
        kept.remove()
    return study


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _judge(
    on_tune: Evaluator,
    on_test: Evaluator,
    found: Trials,
    objective: str,
    guardrails: dict[str, float],
    axes: Sequence[str],
    group: str,
) -> list[Entry]:
    """The shortlist on both windows, the pick with its role: the one look at the test window."""
    names, settings, roles, tuned = shortlist(on_tune, found, objective, guardrails, axes)
    tested = on_test.evaluate(settings)
    reordering = _reordering(on_test, settings, tested, group)
    entries = [Entry(*row) for row in zip(names, roles, tuned, tested, reordering, strict=True)]
    chosen = pick(entries, objective, guardrails)
    return [replace(entry, roles=(*entry.roles, "pick")) if entry is chosen else entry for entry in entries]


def _rivals(rivals: Sequence[Rival], on_tune: Evaluator, on_test: Evaluator) -> list[Entry]:
    if not rivals:
        return []
    tuned = on_tune.evaluate_scores({rival.name: rival.tune for rival in rivals})
    tested = on_test.evaluate_scores({rival.name: rival.test for rival in rivals})
    return [
        Entry(rival.name, ("rival",), on_one, on_other, description=rival.description)
        for rival, on_one, on_other in zip(rivals, tuned, tested, strict=True)
    ]


def _examination(log: ReplayLog) -> dict[str, Any]:
    """How often each place is looked at, with standard errors where it is estimated."""
    if log.examination is None:
        return {}
    found: dict[str, Any] = {"method": log.examination_method, "theta": log.examination.tolist()}
    if log.examination_covariance is not None:
        found["error"] = np.sqrt(np.diag(log.examination_covariance)).tolist()
    return found


def _axes(objective: str, evaluator: Evaluator) -> list[str]:
    """Objectives of the front: the one asked for, what it is usually at odds with, new items, and diversity."""
    axes = [objective, {"clicks": "conversions"}.get(objective, "clicks"), "new_items", "diversity"]
    return [
        name for name in dict.fromkeys(axes) if name in evaluator.objectives and evaluator.production_values[name].any()
    ]


def _reordering(
    on_test: Evaluator, settings: Sequence[FusionWeights], tested: Sequence[Evaluation], group: str
) -> list[dict[str, float]]:
    """E0 beside the estimator, for those that the test window supports."""
    found = Evaluator(on_test.log, on_test.production, E0LabelNDCG(group=group)).evaluate(settings)
    return [
        {} if row.refused else {name: estimate.delta for name, estimate in biased.estimates.items()}
        for row, biased in zip(tested, found, strict=True)
    ]


def _trial_rows(found: Trials, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Every trial for the file; a refused one has its reason in place of numbers."""
    rows: list[dict[str, Any]] = []
    for index, gate in enumerate(found.supports):
        weights = dict(zip(parts, map(float, found.weights[index].round(6)), strict=True))
        row: dict[str, Any] = {"weights": weights, "feasible": bool(found.feasible[index])}
        if gate is not None and gate.reason:
            row["reason"] = gate.reason
        else:
            deltas = {name: float(delta[index]) for name, delta in found.deltas.items()}
            row["deltas"] = {name: round(delta, 6) for name, delta in deltas.items() if np.isfinite(delta)}
        rows.append(row)
    return rows


def summarize(log: ReplayLog, production: FusionWeights, group: str = "request") -> LogSummary:
    """A window in numbers, with the share of logged scores that the production weights reproduce to 1e-4."""
    reproduced = None
    if log.logged_score is not None and np.isfinite(log.logged_score).all():
        segment = None if log.segment is None else log.segment[log.request_of_row]
        score = np.asarray(fuse(log.parts, production, segment=segment, offsets=log.offsets), np.float64)
        reproduced = float(np.isclose(score, log.logged_score, rtol=1e-4, atol=1e-4).mean())
    return LogSummary(
        window=log.window,
        requests=log.requests,
        users=len(np.unique(log.user)),
        candidates=len(log.item),
        shown=int((log.position >= 0).sum()),
        clicks=int(log.click.sum()),
        conversions=matured_conversions(log),
        immature_requests=int((~log.mature).sum()),
        informative=informative_groups(log, group),
        score_reproduced=reproduced,
    )
