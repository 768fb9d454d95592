"""The items of a log by click rate and conversion rate, smoothed, without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from ranking.replay.log import ReplayLog

__all__ = ["quadrants_section", "smoothed"]

_MOST = 2000
_NAMES = np.array([["to retire", "hidden gem"], ["flashy", "winner"]])  # [click rate high, conversion rate high]


def smoothed(events: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Empirical Bayes rates: an item of few trials is near the mean, one of many is what it has shown to be.

        (mean * strength + e) / (strength + n)

    `strength` fits the spread of the raw rates (Kleinman's moments, weights n): that of chance alone makes it large.

    Args:
        events: int64 `[items]`.
        trials: int64 `[items]`.

    Returns:
        float64 `[items]`; NaN where no item has a trial.

    Reference: Kleinman, JASA 1973. `esmm.quadrants` fits by maximum likelihood, and imports Keras.
    """
    e, n = np.asarray(events, np.float64), np.asarray(trials, np.float64)
    total = n.sum()
    if total == 0:
        return np.full(len(n), np.nan)
    mean = e.sum() / total
    tried = n > 0
    share, rate = n[tried] / total, e[tried] / n[tried]
    noise = mean * (1 - mean)
    spread = share @ (rate - mean) ** 2 / noise if noise > 0 else 0.0
    chance = (share * (1 - share)) @ (1 / n[tried])
    slope = (share * (1 - share)) @ ((n[tried] - 1) / n[tried])
    correlation = np.clip((spread - chance) / slope if slope > 0 else 0.0, 1e-6, 0.99)
    strength = 1 / correlation - 1
    return (mean * strength + e) / (strength + n)


def quadrants_section(log: ReplayLog) -> dict[str, Any]:
    """The most shown items, each in one of four quadrants by its smoothed rates; a rate is high from the log's on.

    Args:
        log: ReplayLog. The tune window: the test window decides nothing.

    Returns:
        `{"ctr_line": ..., "cvr_line": ..., "items": [...]}`; empty where nothing was clicked for good.
    """
    shown = log.position >= 0
    final = shown & log.mature[log.request_of_row]
    items = len(log.item_id)
    counts = [
        np.bincount(log.item[rows & (label > 0)], minlength=items)
        for rows, label in ((shown, shown), (shown, log.click), (final, log.click), (final, log.conversion))
    ]
    impressions, clicks, final_clicks, conversions = counts
    if clicks.sum() == 0 or final_clicks.sum() == 0:
        return {}
    ctr, cvr = smoothed(clicks, impressions), smoothed(conversions, final_clicks)
    ctr_line, cvr_line = clicks.sum() / impressions.sum(), conversions.sum() / final_clicks.sum()
    quadrant = _NAMES[(ctr >= ctr_line).astype(int), (cvr >= cvr_line).astype(int)]
    order = np.argsort(-impressions, kind="stable")
    rows = [
        {
            "item": str(log.item_id[item]),
            "impressions": int(impressions[item]),
            "ctr": round(float(ctr[item]), 6),
            "cvr": round(float(cvr[item]), 6),
            "quadrant": str(quadrant[item]),
        }
        for item in order[:_MOST]
        if impressions[item]
    ]
    return {"ctr_line": float(ctr_line), "cvr_line": float(cvr_line), "items": rows}
