"""Requests to look at: what two settings make of them, with all that the page needs to order them again."""

from __future__ import annotations

from typing import Any

import numpy as np

from ranking.fusion import FusionWeights
from ranking.replay.log import ReplayLog
from ranking.replay.settings import score_terms

__all__ = ["choose_examples", "examples_section"]

_REQUESTS = 20
_QUIET = 4  # of them without a click
_CANDIDATES = 100
_DIGITS = 6


def choose_examples(log: ReplayLog, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Requests that say something: first those where the two settings show different slates and something happened.

    Args:
        log: ReplayLog.
        before: int64 `[R, K]`. Slates of one setting.
        after: int64 `[R, K]`. Slates of the other.

    Returns:
        int64, at most 20 requests in the order of the log: those with a conversion first, then a click, four without
        either, spread evenly over the window; of all kinds rather such whose slates differ, and of at most 100
        candidates.
    """
    request = log.request_of_row
    clicked = np.bincount(request, weights=log.click, minlength=log.requests) > 0
    converted = np.bincount(request, weights=log.conversion, minlength=log.requests) > 0
    kind = clicked.astype(int) + converted  # 0 quiet, 1 clicked, 2 converted
    differ = (before != after).any(axis=1)
    small = np.diff(log.offsets) <= _CANDIDATES
    chosen: list[int] = []
    for wanted, room in ((2, 8), (1, _REQUESTS - _QUIET), (0, _REQUESTS)):
        for group in ((differ & small), (differ & ~small), (~differ)):
            found = np.flatnonzero((kind == wanted) & group & (log.slots > 0))
            take = min(room - len(chosen), len(found))
            if take > 0:
                chosen.extend(map(int, found[np.linspace(0, len(found) - 1, take).astype(np.int64)]))
    return np.array(sorted(chosen), np.int64)


def examples_section(
    log: ReplayLog, production: FusionWeights, before: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """Requests with their candidates, score terms, raw parts and labels, in the order of the log.

    Of a request with more candidates than 100 those are kept that were shown, that either setting shows, and then
    the first ones; `candidates` is how many there were.

    Args:
        log: ReplayLog.
        production: FusionWeights. Its constants standardise the parts.
        before: int64 `[R, K]`. Production's slates.
        after: int64 `[R, K]`. Those of the setting.
    """
    columns = score_terms(log, production)
    terms = np.stack(list(columns.values()), axis=1)  # [n, J]
    slots = log.slots
    requests = []
    for request in choose_examples(log, before, after):
        rows = np.arange(log.offsets[request], log.offsets[request + 1])
        if len(rows) > _CANDIDATES:
            first = (log.position[rows] >= 0) | np.isin(rows, before[request]) | np.isin(rows, after[request])
            rows = np.sort(rows[np.argsort(~first, kind="stable")[: max(_CANDIDATES, int(first.sum()))]])
        categories = [""] * len(rows)
        if log.category is not None:
            categories = [log.category_names[code] if code >= 0 else "" for code in log.category[rows]]
        requests.append(
            {
                "request": str(log.request_id[request]),
                "user": str(log.user_id[log.user[request]]),
                "segment": "" if log.segment is None else str(log.segment[request]),
                "slots": int(slots[request]),
                "candidates": int(log.offsets[request + 1] - log.offsets[request]),
                "items": [str(item) for item in log.item_id[log.item[rows]]],
                "categories": categories,
                "terms": [[round(float(z), _DIGITS) for z in row] for row in terms[rows]],
                "raw": {name: _numbers(log, name, rows) for name in columns},
                "position": log.position[rows].tolist(),
                "click": log.click[rows].tolist(),
                "conversion": log.conversion[rows].tolist(),
            }
        )
    return {"parts": list(columns), "requests": requests}


def _numbers(log: ReplayLog, name: str, rows: np.ndarray) -> list[float | None]:
    """A part as logged; None where it is missing: JSON has no NaN."""
    column = log.parts[name][rows]
    known = np.isfinite(column)
    if name == "similarity" and "has_similarity" in log.parts:
        known &= log.parts["has_similarity"][rows] > 0
    return [float(f"{value:.6g}") if there else None for value, there in zip(column, known, strict=True)]
