"""One setting against production in each segment of the requests: whom a change on average hides."""

from __future__ import annotations

from typing import Any

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Evaluation, Evaluator

__all__ = ["segments_section"]

_MOST = 12  # segments, the largest first
_LEAST = 100  # requests of a segment that is looked at


def segments_section(evaluator: Evaluator, setting: FusionWeights, overall: Evaluation) -> dict[str, Any]:
    """Changes of each objective in each segment, with intervals, by the estimator and the gates of the whole log.

    A segment where production or the setting is refused has the reason and no number. `flip` names the objectives
    that surely move against the overall change: both intervals are beyond 0, on different sides. Each interval holds
    for itself: of many segments some flip by chance.

    Args:
        evaluator: Evaluator. Of the whole log, which has segments.
        setting: FusionWeights.
        overall: Evaluation. Of the setting on the whole log.

    Returns:
        `{"column": ..., "rows": [...], "left_out": ...}`, the largest segment first; `left_out` counts small ones.
    """
    log = evaluator.log
    if log.segment is None:
        raise ValueError("`evaluator` should be of a log with segments. Received: none.")
    names, of, counts = np.unique(log.segment.astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    kept = [int(index) for index in order[:_MOST] if counts[index] >= _LEAST]
    rows = []
    for index in kept:
        part = log.take(of == index)
        row: dict[str, Any] = {
            "segment": str(names[index]),
            "requests": part.requests,
            "users": len(np.unique(part.user)),
            "refused": "",
            "estimates": {},
            "flip": [],
        }
        try:
            inside = Evaluator(part, evaluator.production, evaluator.estimator, gates=evaluator.gates, seed=index)
            found = inside.evaluate([setting])[0]
        except UserError as error:
            row["refused"] = str(error)
        else:
            row["refused"] = found.refused
            for name, estimate in found.estimates.items():
                row["estimates"][name] = {"delta": estimate.delta, "low": estimate.low, "high": estimate.high}
                whole = overall.estimates.get(name)
                if whole is not None and (
                    (whole.low > 0 and estimate.high < 0) or (whole.high < 0 and estimate.low > 0)
                ):
                    row["flip"].append(name)
        rows.append(row)
    return {"column": log.segment_column, "rows": rows, "left_out": len(names) - len(kept)}
