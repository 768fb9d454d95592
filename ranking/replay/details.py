"""What the report page shows beyond the tables: made once, with the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Evaluator
from ranking.replay.log import ReplayLog
from ranking.replay.study import Entry

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

    Args:
        log_tune: ReplayLog.
        log_test: ReplayLog.
        on_tune: Evaluator.
        on_test: Evaluator.
        entries: sequence of Entry. Production first.
        production: FusionWeights.
        objective: str. What was maximised.
        guardrails: dict of str to float. Least change of other objectives.
        pick: str. Name of the recommended entry; empty where the verdict is to keep production.

    Returns:
        Dict. No number of a refused setting is in it.
    """
    return {"setting": pick or _best(entries, objective)}


def _best(entries: Sequence[Entry], objective: str) -> str:
    """Name of the tested setting with the best lower bound of the objective; production where all are refused."""
    tested = [entry for entry in entries[1:] if objective in entry.test.estimates]
    best = max(tested, key=lambda entry: entry.test.estimates[objective].low, default=entries[0])
    return best.name
