"""What the report page shows beyond the tables: made once, with the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ranking.fusion import FusionWeights
from ranking.replay.calibration import calibration_section
from ranking.replay.evaluation import Evaluator
from ranking.replay.examples import examples_section
from ranking.replay.log import ReplayLog
from ranking.replay.quadrants import quadrants_section
from ranking.replay.segments import segments_section
from ranking.replay.sensitivity import sensitivity_section
from ranking.replay.slates import diversity_section, movers_section, slates
from ranking.replay.study import Entry
from ranking.replay.trust import trust_section

__all__ = ["make_details"]


def make_details(
    log_tune: ReplayLog,
    log_test: ReplayLog,
    on_tune: Evaluator,
    on_test: Evaluator,
    entries: Sequence[Entry],
    production: FusionWeights,
    objective: str,
    guardrails: dict[str, float],
    pick: str,
) -> dict[str, Any]:
    """The sections of the page, ready for JSON; one that cannot be made is absent.

    They are about the pick, or where the verdict is to keep production about the best tested setting, so that a
    reader sees what was given up. Curves and quadrants are of the tune window, all else of the test window.

    Args:
        log_tune: ReplayLog.
        log_test: ReplayLog.
        on_tune: Evaluator. Of the tune window.
        on_test: Evaluator. Of the test window.
        entries: sequence of Entry. Production first.
        production: FusionWeights.
        objective: str. What was maximised.
        guardrails: dict of str to float. Least change of other objectives.
        pick: str. Name of the recommended entry; empty where the verdict is to keep production.

    Returns:
        Dict of plain values. No number of a refused setting is in it.
    """
    weights = {row.name: replace(production, weights=dict(row.test.weights)) for row in entries if row.test.weights}
    name = pick or _best([entry for entry in entries if entry.name in weights], objective)
    entry = _entry(entries, name)
    first = entries[0].name
    names = [objective, *(key for key in (*guardrails, *on_tune.objectives) if key != objective)]
    names = [key for key in dict.fromkeys(names) if key in on_tune.objectives]
    found: dict[str, Any] = {"setting": name}
    if not entry.tune.refused and objective in names:
        found["sensitivity"] = sensitivity_section(on_tune, weights[name], objective, names, guardrails)
    if log_test.segment is not None and name != first:
        found["segments"] = segments_section(on_test, weights[name], entry.test)
    found["calibration"] = calibration_section(log_test)
    found["quadrants"] = quadrants_section(log_tune)
    told = {key: setting for key, setting in weights.items() if not _entry(entries, key).test.refused}
    if first in told and (log_test.slots < np.diff(log_test.offsets)).any():
        shown = slates(log_test, production, told)
        found["diversity"] = diversity_section(log_test, shown)
        if name != first and name in shown:
            found["movers"] = movers_section(log_test, shown[first], shown[name])
        found["examples"] = examples_section(log_test, production, shown[first], shown.get(name, shown[first]))
    if name in told:
        found["trust"] = trust_section(on_test, weights[name], entries, told, objective)
        if on_test.estimator.causal:
            found["trust"]["clipped"] = float(getattr(entry.test, "clipped", 0.0))
    return {key: section for key, section in found.items() if section}


def _entry(entries: Sequence[Entry], name: str) -> Entry:
    return next(entry for entry in entries if entry.name == name)


def _best(entries: Sequence[Entry], objective: str) -> str:
    """Name of the tested setting with the best lower bound of the objective; production where all are refused."""
    tested = [entry for entry in entries[1:] if objective in entry.test.estimates]
    best = max(tested, key=lambda entry: entry.test.estimates[objective].low, default=entries[0])
    return best.name
