"""The slates that settings would show, and what users would see in them: diversity, overlap, movers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

from ranking.diversity import gini
from ranking.fusion import FusionWeights
from ranking.replay.log import ReplayLog
from ranking.replay.settings import score_terms

__all__ = ["diversity_section", "looks", "movers_section", "place_looks", "slates"]

_MOVERS = 15


@numba.njit(nogil=True, cache=True)
def _best(offsets, terms, weights, segment, slots, out):
    """Fills `out [R, K]` with the rows of the best scores, by insertion; of equal ones the first is better."""
    kept = np.empty(out.shape[1], np.float32)
    for request in range(len(slots)):
        weight, top, count = weights[segment[request]], min(slots[request], out.shape[1]), 0
        for row in range(offsets[request], offsets[request + 1]):
            score = weight[0] * terms[0, row]
            for part in range(1, len(terms)):
                score += weight[part] * terms[part, row]
            if count < top:
                at = count
                count += 1
            elif top > 0 and score > kept[top - 1]:
                at = top - 1
            else:
                continue
            while at > 0 and score > kept[at - 1]:
                kept[at], out[request, at] = kept[at - 1], out[request, at - 1]
                at -= 1
            kept[at], out[request, at] = score, row


def slates(log: ReplayLog, production: FusionWeights, settings: Mapping[str, FusionWeights]) -> dict[str, np.ndarray]:
    """What each setting would show: as many candidates as the request has shown, best first.

    Args:
        log: ReplayLog.
        production: FusionWeights. Its constants standardise the parts.
        settings: dict of name -> FusionWeights. Their differences by segment count.

    Returns:
        Dict of name -> int64 `[R, K]`, rows of the log, -1 beyond the places of a request.
    """
    columns = score_terms(log, production)
    terms = np.stack(list(columns.values()))  # [J, n]
    segment, names = np.zeros(log.requests, np.int64), np.array([None], object)
    if log.segment is not None and any(setting.segments for setting in settings.values()):
        texts = log.segment.astype(str)
        names, segment = np.unique(texts, return_inverse=True)
    slots = log.slots
    found = {}
    for name, setting in settings.items():
        by_segment = [setting.of_segment(None if key is None else str(key)) for key in names]
        weights = np.array([[row.get(part, 0.0) for part in columns] for row in by_segment], np.float32)
        found[name] = np.full((log.requests, int(slots.max())), -1, np.int64)
        _best(log.offsets, terms, weights, segment, slots, found[name])
    return found


def place_looks(log: ReplayLog) -> np.ndarray | None:
    """P(the user looks at place k), float64 `[K]`; None where the log does not say it of every place."""
    theta = log.examination
    return theta if theta is not None and len(theta) > log.position.max() else None


def looks(log: ReplayLog, slate: np.ndarray) -> np.ndarray:
    """How often each item is expected to be looked at in a slate of every request, float64 `[items]`.

    A place counts as much as it is examined; all count 1 where the log has no examination.
    """
    theta = place_looks(log)
    theta = np.ones(slate.shape[1]) if theta is None else theta
    request, place = np.nonzero(slate >= 0)
    return np.bincount(log.item[slate[request, place]], weights=theta[place], minlength=len(log.item_id))


def diversity_section(log: ReplayLog, shown: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What users see in the slates of each setting, production's first.

    `entropy` is the mean over requests of the entropy of the categories in a slate, in nats (0: one category).
    `gini` is of expected looks over all items that were candidates (0: even), `coverage` the share of these items
    that some slate shows, `long_tail` the share of places with new and long-tail items, `overlap` the share of a
    slate that production's slate of the request has too.

    Args:
        log: ReplayLog.
        shown: dict of name -> int64 `[R, K]`, from `slates`.

    Returns:
        `{"category": ..., "unit": "nats", "rows": [...]}`; without entropies where the log has no categories.
    """
    catalogue = np.unique(log.item)
    rows = []
    first = next(iter(shown.values()))
    for name, slate in shown.items():
        request, place = np.nonzero(slate >= 0)
        chosen = slate[request, place]
        exposure = looks(log, slate)[catalogue]
        row: dict[str, Any] = {"setting": name}
        if log.category is not None:
            row["entropy"] = _entropy(request, log.category[chosen], log.requests)
        row["gini"] = gini(exposure)
        row["coverage"] = float(np.count_nonzero(exposure) / len(catalogue))
        row["long_tail"] = float(log.new[chosen].mean())
        mark = np.zeros(len(log.item), bool)
        mark[first[first >= 0]] = True  # rows belong to one request each
        row["overlap"] = float(mark[chosen].mean())
        rows.append(row)
    return {"category": log.category_column, "unit": "nats", "rows": rows}


def _entropy(request: np.ndarray, category: np.ndarray, requests: int) -> float:
    """Mean over the requests with a place of the entropy of their categories; no category is one of its own."""
    key, counts = np.unique(request * (int(category.max(initial=0)) + 2) + category + 1, return_counts=True)
    of = key // (int(category.max(initial=0)) + 2)
    size = np.bincount(request, minlength=requests)
    share = counts / size[of]
    return float(-(share * np.log(share)).sum() / max(np.count_nonzero(size), 1))


def movers_section(log: ReplayLog, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """The items that gain and lose the most expected looks, the largest change first.

    Args:
        log: ReplayLog.
        before: int64 `[R, K]`. Production's slates.
        after: int64 `[R, K]`. Those of the setting.
    """
    old, new = (looks(log, slate) * 1000 / log.requests for slate in (before, after))
    change = new - old
    category = np.full(len(change), -1)
    if log.category is not None:
        category[log.item] = log.category

    def rows(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "item": str(log.item_id[item]),
                "category": log.category_names[category[item]] if category[item] >= 0 else "",
                "before": round(float(old[item]), 4),
                "after": round(float(new[item]), 4),
            }
            for item in order[:_MOVERS]
        ]

    order = np.argsort(-change, kind="stable")
    falling = np.argsort(change, kind="stable")
    unit = "impressions per 1,000 requests" if place_looks(log) is None else "looks per 1,000 requests"
    return {
        "unit": unit,
        "gaining": rows(order[change[order] > 0]),
        "losing": rows(falling[change[falling] < 0]),
    }
