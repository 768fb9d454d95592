"""Whether the predicted probabilities of a log happened: reliability by bins of equal mass."""

from __future__ import annotations

from typing import Any

import numpy as np

from ranking.metrics import ece, pcoc
from ranking.replay.log import ReplayLog
from ranking.replay.slates import place_looks

__all__ = ["calibration_section"]

_BINS = 15


def calibration_section(log: ReplayLog) -> dict[str, Any]:
    """Reliability of pctr and pctcvr on the shown rows: a click needs a look, so predicted is `theta[place] * p`.

    pctcvr (pctr * pcvr) is judged on requests whose conversions are final. PCOC is predicted over observed; ECE the
    mean distance of the two over bins of equal mass.

    Args:
        log: ReplayLog. With the part `pctr`, and `pcvr` for pctcvr.

    Returns:
        `{"heads": {"pctr": {...}, "pctcvr": {...}}, "note": ...}`; without the heads that the log cannot tell of.
    """
    shown = np.flatnonzero(log.position >= 0)
    by_place = place_looks(log)
    theta = np.ones(len(shown)) if by_place is None else by_place[log.position[shown]]
    heads = {}
    if "pctr" in log.parts:
        click = np.minimum(theta * log.parts["pctr"][shown], 1)  # an estimated theta may be above that of the first
        heads["pctr"] = _reliability(click, log.click[shown])
        if "pcvr" in log.parts:
            final = log.mature[log.request_of_row[shown]]
            both = click * log.parts["pcvr"][shown]
            heads["pctcvr"] = _reliability(both[final], log.conversion[shown][final])
    note = "On what the logging policy showed; predicted is examination of the place times the probability."
    if by_place is None:
        note = "On what the logging policy showed, whatever its place: the log has no examination."
    return {"heads": {name: found for name, found in heads.items() if found}, "note": note}


def _reliability(predicted: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Empty where nothing happened or a prediction is no probability: nothing can be said."""
    if not label.any() or not np.isfinite(predicted).all() or predicted.min() < 0 or predicted.max() > 1:
        return {}
    order = np.argsort(predicted, kind="stable")
    bins = [rows for rows in np.array_split(order, _BINS) if len(rows)]
    return {
        "pcoc": float(pcoc(label, predicted)),
        "ece": float(ece(label, predicted, bins=_BINS)),
        "bins": [
            {"predicted": float(predicted[rows].mean()), "observed": float(label[rows].mean()), "rows": len(rows)}
            for rows in bins
        ],
    }
