"""Tuning of the fusion weights: search on one window, decide on a later one, or keep production."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.replay.estimators import (
    BIASED_BANNER,
    OBJECTIVES,
    E0LabelNDCG,
    choose_estimator,
    informative_groups,
)
from ranking.replay.evaluation import Estimate, Evaluation, Evaluator, percent
from ranking.replay.log import ReplayLog
from ranking.replay.search import Trials, search
from ranking.replay.shortlist import shortlist
from ranking.replay.study import Entry, LogSummary, Study
from ranking.replay.support import matured_conversions

__all__ = ["pick", "summarize", "tune", "verdict"]


def tune(
    log_tune: ReplayLog,
    log_test: ReplayLog,
    *,
    production: FusionWeights,
    objective: str = "conversions",
    guardrails: dict[str, float] | None = None,
    trials: int = 1000,
    group: str = "request",
    minimum_groups: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    allow_biased: bool = False,
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
        objective: str. `"clicks"`, `"conversions"`, `"value"` or `"new_items"`. Defaults to `"conversions"`.
        guardrails: dict of str to float. Least relative change of other objectives, as in `{"clicks": -0.01}` (the
            default).
        trials: int. Settings to try. Defaults to `1000`.
        group: str. What counts as an informative group (and what E0 orders). Defaults to `"request"`.
        minimum_groups: int. Informative groups that each objective with a label needs. Defaults to `2000`.
        seed: int. Random seed. Defaults to `0`.
        progress: callable of (done, total). Defaults to `None`.
        allow_biased: bool. Tune on E0 where the log has no propensities. Defaults to `False`.

    Returns:
        A `Study`.

    Raises:
        UserError: a wrong argument, too few informative groups or conversions, windows out of order, no propensities
            without `allow_biased`, or a log that does not support production itself.
    """
    guardrails = {"clicks": -0.01} if guardrails is None else dict(guardrails)
    guardrails.pop(objective, None)
    _check_arguments(objective, guardrails, trials, minimum_groups)
    if log_test.window[0] < log_tune.window[1]:
        raise UserError(
            f"The test window should begin where the tune window ends or later. Received: tune {log_tune.window}, "
            f"test {log_test.window}."
        )
    estimator = choose_estimator(log_tune, group)
    if choose_estimator(log_test, group) != estimator:
        raise UserError("The tune and the test window should both have exposure propensities, or both have none.")
    if not estimator.causal and not allow_biased:
        raise UserError(
            "The log has no exposure propensities of a policy that explored, so a replay can only re-order what was "
            "shown; pass `allow_biased` (--allow-biased) to tune on that estimate all the same."
        )
    wanted = [objective, *guardrails]
    for log, where in ((log_tune, "tune"), (log_test, "test")):
        _check_labels(log, where, wanted, group, minimum_groups if where == "tune" else 1)

    on_tune = Evaluator(log_tune, production, estimator, seed=seed)
    on_test = Evaluator(log_test, production, estimator, seed=seed + 1)
    for name in wanted:
        for evaluator, where in ((on_tune, "tune"), (on_test, "test")):
            if name not in evaluator.objectives or not evaluator.production_values[name].any():
                raise UserError(f"The {where} window has too little of the objective {name!r} to tune on it.")
    axes = _axes(objective, on_tune)
    found = search(on_tune, axes, guardrails, trials, seed=seed, progress=progress)
    names, settings, roles, tuned = shortlist(on_tune, found, objective, guardrails, axes)
    tested = on_test.evaluate(settings)  # the one look
    reordering = _reordering(log_test, production, settings, tested, group)
    entries = [Entry(*row) for row in zip(names, roles, tuned, tested, reordering, strict=True)]
    chosen = pick(entries, objective, guardrails)
    entries = [replace(e, roles=(*e.roles, "pick")) if e is chosen else e for e in entries]
    sentence = verdict(chosen, objective, guardrails, entries)
    if not estimator.causal:
        sentence = f"{sentence} {BIASED_BANNER}"
    return Study(
        objective=objective,
        guardrails=guardrails,
        production=production,
        verdict=sentence,
        pick=chosen.name if chosen else "",
        estimator=estimator.name,
        assumptions=estimator.assumptions,
        banners=estimator.banners(),
        tune=summarize(log_tune, production, group),
        test=summarize(log_test, production, group),
        shortlist=tuple(entries),
        trials=_trial_rows(found, on_tune.parts),
        settings={
            "trials": trials,
            "group": group,
            "minimum_groups": minimum_groups,
            "seed": seed,
            "axes": list(axes),
            "versions": {name: version(name) for name in ("numpy", "optuna", "scipy")},
        },
        looks=(uuid.uuid4().hex,),
    )


def _check_arguments(objective: str, guardrails: dict[str, float], trials: int, minimum_groups: int) -> None:
    for name in (objective, *guardrails):
        if name not in OBJECTIVES:
            raise UserError(f"`objective` and `guardrails` should be among {list(OBJECTIVES)}. Received: {name!r}.")
    for name, least in guardrails.items():
        if not -1 <= least <= 0:
            raise UserError(
                f"`guardrails[{name!r}]` should be the least relative change, in [-1, 0]. Received: {least}."
            )
    if trials < 16:
        raise UserError(f"`trials` should be at least 16. Received: trials={trials}.")
    if minimum_groups < 1:
        raise UserError(f"`minimum_groups` should be a positive integer. Received: minimum_groups={minimum_groups}.")


def _check_labels(log: ReplayLog, where: str, wanted: Sequence[str], group: str, minimum: int) -> None:
    groups = informative_groups(log, group)
    for name in wanted:
        if name != "new_items" and groups.get(name, 0) < minimum:
            raise UserError(
                f"The {where} window has {groups.get(name, 0)} informative groups ({group}s with a positive and a "
                f"negative) for {name!r}; `minimum_groups` should be reached. Received: minimum_groups={minimum}."
            )


def _axes(objective: str, evaluator: Evaluator) -> list[str]:
    """Objectives of the front: the one asked for, its usual rival, and new items."""
    rivals = {"clicks": "conversions"}
    axes = [objective, rivals.get(objective, "clicks"), "new_items"]
    return [
        name for name in dict.fromkeys(axes) if name in evaluator.objectives and evaluator.production_values[name].any()
    ]


def _reordering(
    log: ReplayLog,
    production: FusionWeights,
    settings: Sequence[FusionWeights],
    tested: Sequence[Evaluation],
    group: str,
) -> list[dict[str, float]]:
    """E0 beside E3, for those that the test window supports."""
    found = Evaluator(log, production, E0LabelNDCG(group=group)).evaluate(settings)
    return [
        {} if row.refused else {name: estimate.delta for name, estimate in biased.estimates.items()}
        for row, biased in zip(tested, found, strict=True)
    ]


def pick(entries: Sequence[Entry], objective: str, guardrails: dict[str, float]) -> Entry | None:
    """The entry with the best lower bound of the objective, among those that surely gain and keep the guardrails.

    Args:
        entries: sequence of Entry. Production first.
        objective: str.
        guardrails: dict of str to float.

    Returns:
        `Entry`, or None: keep production.
    """
    best: Entry | None = None
    for entry in entries[1:]:
        found = entry.test.estimates
        if not all(name in found for name in (objective, *guardrails)) or found[objective].low <= 0:
            continue
        if any(found[name].low < least for name, least in guardrails.items()):
            continue
        if best is None or found[objective].low > best.test.estimates[objective].low:
            best = entry
    return best


def _change(name: str, estimate: Estimate) -> str:
    return f"{name.replace('_', ' ')} {percent(estimate.delta)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def verdict(chosen: Entry | None, objective: str, guardrails: dict[str, float], entries: Sequence[Entry]) -> str:
    """The outcome in a sentence."""
    limits = " and ".join(f"{name.replace('_', ' ')} {percent(least)}" for name, least in guardrails.items())
    if chosen is None:
        reason = f"no setting surely raises {objective.replace('_', ' ')} on the test window"
        if guardrails:
            reason += f" while keeping {limits} on the lower bound"
        refused = sum(bool(entry.test.refused) for entry in entries[1:])
        more = f" ({refused} of {len(entries) - 1} refused for lack of support)" if refused else ""
        return f"Keep production: {reason}{more}."
    before = entries[0].test.weights
    used = {name: weight for name, weight in chosen.test.weights.items() if weight or before[name]}
    weights = ", ".join(f"{name}={weight:.3g}" for name, weight in used.items())
    parts = [_change(objective, chosen.test.estimates[objective])]
    for name, least in guardrails.items():
        parts.append(f"{_change(name, chosen.test.estimates[name])} (guardrail {percent(least)}: kept)")
    return f"Recommend {weights}: {', '.join(parts)}."


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
        score = np.asarray(fuse(log.parts, production), np.float64)
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
