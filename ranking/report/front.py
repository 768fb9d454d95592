"""The plot of the trade-off, as the JSON that plotly.js draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ranking.replay.search import pareto
from ranking.replay.study import Entry, Study
from ranking.report.plots import GREY, INK, ORANGE, VERMILION, axis, bars, layout, plain, upright

__all__ = ["LABELS", "across", "front_figure"]

LABELS = {
    "clicks": "clicks",
    "conversions": "conversions",
    "value": "value",
    "new_items": "new and long-tail items",
    "diversity": "diversity",
}
_CLOUD = "#a3b1bf"
# What a listed setting is -> its shape and size; its colour is its support.
_SHAPES = {"production": ("star", 17), "pick": ("diamond", 15), "knee": ("square", 11), "": ("circle", 10)}

_SCALE = {
    "title": {"text": "colour: support, effective sample in %", "side": "top", "font": {"size": 12}},
    **{"orientation": "h", "x": 1, "xanchor": "right", "y": -0.2, "yanchor": "top", "len": 0.6},
    "thickness": 8,
    "outlinewidth": 0,
    "tickfont": {"size": 11},
}


def across(study: Study) -> str:
    """The objective that the trade-off is drawn against."""
    axes = study.settings.get("axes", [study.objective])
    return axes[1] if len(axes) > 1 else "new_items"


def _hover(name: str, weights: dict[str, float]) -> str:
    return f"<b>{plain(name)}</b><br>" + "<br>".join(f"{plain(part)} {weight:.3g}" for part, weight in weights.items())


def front_figure(study: Study) -> dict[str, Any]:
    """Plotly figure: the guarded (or rival) objective across, the objective up, both as changes in percent."""
    x, y = across(study), study.objective
    drawn = [t for t in study.trials if "deltas" in t and x in t["deltas"] and y in t["deltas"]]
    points = np.array([(100 * t["deltas"][x], 100 * t["deltas"][y]) for t in drawn]).reshape(-1, 2)
    front = points[pareto(points)] if len(points) else points
    front = front[np.argsort(front[:, 0])]
    hover = f"%{{text}}<br>{LABELS[x]} %{{x:+.1f}}%<br>{LABELS[y]} %{{y:+.1f}}%<extra></extra>"
    listed = [e for e in study.shortlist if x in e.test.estimates and y in e.test.estimates]
    moved = [e for e in listed if e.name != "production" and x in e.tune.estimates and y in e.tune.estimates]
    data = [
        *_tried(drawn, points, hover),
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front (tune)",
            "x": front[:, 0].round(3).tolist(),
            "y": front[:, 1].round(3).tolist(),
            "line": {"color": GREY, "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        },
        *([_arrows(moved, x, y)] if moved else []),
        *_listed(listed, x, y, hover),
    ]
    return {"data": data, "layout": _layout(study, x, y, front)}


def _tried(trials: Sequence[dict[str, Any]], points: np.ndarray, hover: str) -> list[dict[str, Any]]:
    """The settings tried: dots where the guardrails hold on tune, crosses where not."""
    data = []
    for name, symbol, feasible in (
        ("tried: breaks a guardrail", "x-thin-open", False),
        ("tried (tune)", "circle", True),
    ):
        kept = [index for index, trial in enumerate(trials) if trial["feasible"] == feasible]
        if not kept:
            continue
        data.append(
            {
                "type": "scattergl" if len(kept) > 5000 else "scatter",
                "mode": "markers",
                "name": name,
                "x": points[kept, 0].round(3).tolist(),
                "y": points[kept, 1].round(3).tolist(),
                "text": [_hover("tried", trials[index]["weights"]) for index in kept],
                "hovertemplate": hover,
                "marker": {"size": 5, "symbol": symbol, "color": _CLOUD, "opacity": 0.7},
            }
        )
    return data


def _arrows(entries: Sequence[Entry], x: str, y: str) -> dict[str, Any]:
    """From where the tune window saw a setting to where the test window sees it."""
    ends: dict[str, list[float | None]] = {x: [], y: []}
    for entry in entries:
        for name, values in ends.items():
            pair = entry.tune.estimates[name].delta, entry.test.estimates[name].delta
            values += [round(100 * pair[0], 3), round(100 * pair[1], 3), None]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "from tune to test",
        "x": ends[x],
        "y": ends[y],
        "line": {"color": INK, "width": 1},
        "marker": {"symbol": "arrow", "angleref": "previous", "standoff": 8, "size": [0, 9, 0] * len(entries)},
        "hoverinfo": "skip",
    }


def _kind(entry: Entry) -> str:
    if entry.name == "production":
        return "production"
    return next((role for role in ("pick", "knee") if role in entry.roles), "")


def _listed(entries: Sequence[Entry], x: str, y: str, hover: str) -> list[dict[str, Any]]:
    """The shortlist on the test window: the shape says what a setting is, the colour how well it is supported."""
    data, scaled = [], False
    for kind, (symbol, size) in _SHAPES.items():
        kept = [entry for entry in entries if _kind(entry) == kind]
        if not kept:
            continue
        marker: dict[str, Any] = {"symbol": symbol, "size": size, "line": {"color": INK, "width": 1}}
        supports = [entry.test.support for entry in kept]
        if kind == "production" or any(found is None for found in supports):
            marker["color"] = ORANGE
        else:
            colors = [round(100 * found.effective, 1) for found in supports if found]
            marker |= {"color": colors, "colorscale": "Cividis", "cmin": 0, "cmax": 100, "showscale": not scaled}
            marker["colorbar"] = _SCALE
            scaled = True
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": "production" if kind == "production" else f"{kind or 'shortlist'} (test, 95%)",
            "text": [_told(entry) for entry in kept],
            "hovertemplate": hover,
            "marker": marker,
        }
        for place, name in (("x", x), ("y", y)):
            found = [entry.test.estimates[name] for entry in kept]
            trace[place] = [round(100 * estimate.delta, 3) for estimate in found]
            if kind != "production":
                ends = ([100 * estimate.low for estimate in found], [100 * estimate.high for estimate in found])
                trace[f"error_{place}"] = bars(trace[place], *ends, "#566270")
        data.append(trace)
    return data


def _told(entry: Entry) -> str:
    support = entry.test.support
    sample = "" if support is None else f"<br>effective sample {support.effective:.0%}"
    return _hover(entry.name, entry.test.weights) + sample


def _layout(study: Study, x: str, y: str, front: np.ndarray) -> dict[str, Any]:
    ranges = _view(study, (x, y), front)
    found = layout(
        xaxis=axis(f"{LABELS[x]}: change against production", ticksuffix="%", range=ranges[0]),
        yaxis=axis(f"{LABELS[y]}: change", ticksuffix="%", range=ranges[1]),
        shapes=[],
        annotations=[],
    )
    for name, along in ((x, "x"), (y, "y")):
        if name in study.guardrails:
            least = 100 * study.guardrails[name]
            found["shapes"].append(upright(least, VERMILION, dash="dash", across=along))
            place = {"y": 0.02, "yref": "paper", "xanchor": "right"} if along == "x" else {"x": 0.02, "xref": "paper"}
            text = {"text": f"guardrail {least:+.1f}%", "font": {"color": "#b04300", "size": 12}, "showarrow": False}
            found["annotations"].append({along: least, **place, **text})
    return found


def _view(study: Study, axes: Sequence[str], front: np.ndarray) -> list[list[float]]:
    """What the plot opens on, a range an axis: the front `[P, 2]`, production, and the shortlist where it is near."""
    corners = np.vstack([front, np.zeros((1, 2))])
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.15 * (high - low) + 1
    for entry in study.shortlist:
        if all(name in entry.test.estimates for name in axes):
            found = [entry.test.estimates[name] for name in axes]
            at = 100 * np.array([[estimate.delta, estimate.low, estimate.high] for estimate in found])  # [2, 3]
            if np.all((at[:, 0] >= low - margin) & (at[:, 0] <= high + margin)):
                corners = np.vstack([corners, at[:, 1], at[:, 2]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    edge = 0.05 * (high - low) + 0.5
    return np.stack([low - edge, high + edge], axis=1).round(2).tolist()
