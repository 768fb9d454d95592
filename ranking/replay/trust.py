"""What a reader may check before believing the numbers: weights, examination, other estimators side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators import ESTIMATORS
from ranking.replay.evaluation import Evaluator
from ranking.replay.ranks import RankSums
from ranking.replay.settings import weight_matrix
from ranking.replay.study import Entry

__all__ = ["trust_section"]

_BINS = 30
_TAIL = 0.995  # the last bin holds what is beyond this quantile
_COMPARED = ("E0", "E2", "E3", "E5", "E6")


def trust_section(
    evaluator: Evaluator, setting: FusionWeights, entries: Sequence[Entry], weights: Mapping[str, FusionWeights],
    objective: str,
) -> dict[str, Any]:  # fmt: skip
    """Importance weights of the setting, the examination, and the objective under every estimator the log allows.

    Args:
        evaluator: Evaluator. Of the test window.
        setting: FusionWeights. The setting that the page is about, supported.
        entries: sequence of Entry. Production first.
        weights: dict of name -> FusionWeights. Of the entries that have weights.
        objective: str.

    Returns:
        `{"weights": ..., "clipped": ..., "examination": ..., "estimators": [...]}`; the first two only where the
        estimator weighs, relative changes only of settings that are not refused.
    """
    found: dict[str, Any] = {}
    log = evaluator.log
    if "weight" in evaluator.sums.coefficients:
        row = weight_matrix([setting], evaluator.production, evaluator.parts, list(log.parts))
        values = evaluator.sums.values(row, ["weight"])["weight"][0]
        found["weights"] = _histogram(values)
    if log.examination is not None:
        covariance = log.examination_covariance
        found["examination"] = {
            "method": log.examination_method,
            "theta": [float(theta) for theta in log.examination],
            "error": [] if covariance is None else np.sqrt(np.maximum(np.diag(covariance), 0)).tolist(),
        }
    found["estimators"] = _side_by_side(evaluator, entries, weights, objective)
    return found


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    body = float(np.quantile(values, _TAIL))
    edges = np.linspace(0, body if body > 0 else 1.0, _BINS)
    edges = np.append(edges, max(float(values.max()), edges[-1] * (1 + 1e-6)))
    counts = np.histogram(values, edges)[0]
    return {"edges": edges.round(6).tolist(), "counts": counts.tolist()}


def _side_by_side(
    evaluator: Evaluator, entries: Sequence[Entry], weights: Mapping[str, FusionWeights], objective: str
) -> list[dict[str, Any]]:
    """Relative changes; those of the study's own estimator and of E0 are in the entries already."""
    rows: dict[str, dict[str, Any]] = {entry.name: {"setting": entry.name} for entry in entries}
    told = [entry for entry in entries if entry.name in weights and not entry.test.refused]
    own = evaluator.estimator.name
    for entry in told:
        if objective in entry.test.estimates:
            rows[entry.name][own] = entry.test.estimates[objective].delta
        if objective in entry.reordering:
            rows[entry.name]["E0"] = entry.reordering[objective]
    settings = [*(weights[entry.name] for entry in told), evaluator.production]
    matrix = weight_matrix(settings, evaluator.production, evaluator.parts, list(evaluator.log.parts))
    for name in _COMPARED:
        if name in ("E0", own) or not told:
            continue
        try:
            sums = ESTIMATORS[name]().sums(evaluator.log, evaluator.production)
        except UserError:  # the log lacks what this estimator needs
            continue
        if objective in sums.outputs and objective in evaluator.objectives:
            for entry, delta in zip(told, _changes(sums, matrix, objective), strict=True):
                if np.isfinite(delta):
                    rows[entry.name][name] = float(delta)
    return list(rows.values())


def _changes(sums: RankSums, matrix: np.ndarray, objective: str) -> np.ndarray:
    """Relative changes of all rows but the last, which is production; NaN where that is not positive."""
    below = sums.ratios.get(objective)
    found = sums.totals(matrix, [objective, *([below] if below else [])]).sum
    value = found[objective]
    if below:  # of means over the same requests
        value = np.divide(value, found[below], out=np.full_like(value, np.nan), where=found[below] > 0)
    return value[:-1] / value[-1] - 1 if value[-1] > 0 else np.full(len(value) - 1, np.nan)
