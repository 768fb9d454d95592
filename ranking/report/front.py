"""The plot of the trade-off, as the JSON that plotly.js draws."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ranking.replay.search import pareto
from ranking.replay.study import Entry, Study

__all__ = ["LABELS", "front_figure"]

LABELS = {"clicks": "clicks", "conversions": "conversions", "value": "value", "new_items": "new and long-tail items"}
_CLOUD, _FRONT, _LISTED, _PICK, _PRODUCTION = "#b9c4d0", "#7f8fa1", "#2457a6", "#1a7f4b", "#e0912f"


def _hover(name: str, weights: dict[str, float]) -> str:
    return f"<b>{escape(name)}</b><br>" + "<br>".join(
        f"{escape(part)} {weight:.3g}" for part, weight in weights.items()
    )


def front_figure(study: Study) -> dict[str, Any]:
    """Plotly figure: the guarded (or rival) objective across, the objective up, both as changes in percent."""
    axes = study.settings.get("axes", [study.objective])
    across, up = (axes[1] if len(axes) > 1 else "new_items"), study.objective
    drawn = [t for t in study.trials if "deltas" in t and across in t["deltas"] and up in t["deltas"]]
    points = [(100 * t["deltas"][across], 100 * t["deltas"][up]) for t in drawn]
    front = sorted(point for point, best in zip(points, pareto(np.array(points).reshape(-1, 2)), strict=True) if best)
    hover = "%{text}<br>" + f"{LABELS[across]} %{{x:+.1f}}%<br>{LABELS[up]} %{{y:+.1f}}%<extra></extra>"
    data: list[dict[str, Any]] = [
        {
            "type": "scattergl" if len(points) > 5000 else "scatter",
            "mode": "markers",
            "name": "tried (tune)",
            "x": [round(x, 3) for x, _ in points],
            "y": [round(y, 3) for _, y in points],
            "text": [_hover("tried", t["weights"]) for t in drawn],
            "hovertemplate": hover,
            "marker": {"size": 5, "color": _CLOUD, "opacity": 0.6},
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front (tune)",
            "x": [round(x, 3) for x, _ in front],
            "y": [round(y, 3) for _, y in front],
            "line": {"color": _FRONT, "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        },
    ]
    groups = {
        "shortlist (test, 95%)": ("circle", 9, _LISTED, lambda e: e.name != "production" and "pick" not in e.roles),
        "production": ("star", 17, _PRODUCTION, lambda e: e.name == "production"),
        "pick (test, 95%)": ("diamond", 15, _PICK, lambda e: "pick" in e.roles),
    }
    for name, (symbol, size, color, member) in groups.items():
        entries = [e for e in study.shortlist if member(e) and across in e.test.estimates and up in e.test.estimates]
        if entries:
            data.append(_points(name, entries, across, up, hover, {"symbol": symbol, "size": size, "color": color}))
    return {"data": data, "layout": _layout(study, across, up, np.array(front))}


def _points(
    name: str, entries: Sequence[Entry], across: str, up: str, hover: str, marker: dict[str, Any]
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "text": [_hover(entry.name, entry.test.weights) for entry in entries],
        "hovertemplate": hover,
        "marker": {**marker, "line": {"color": "white", "width": 1}},
    }
    for axis, objective in (("x", across), ("y", up)):
        found = [entry.test.estimates[objective] for entry in entries]
        trace[axis] = [round(100 * estimate.delta, 3) for estimate in found]
        if name != "production":
            half = [round(100 * (estimate.high - estimate.delta), 3) for estimate in found]
            trace[f"error_{axis}"] = {
                "type": "data",
                "array": half,
                "thickness": 1,
                "width": 3,
                "color": marker["color"],
            }
    return trace


def _layout(study: Study, across: str, up: str, front: np.ndarray) -> dict[str, Any]:
    line = {"gridcolor": "#e8ecf0", "zerolinecolor": "#9aa6b2", "ticksuffix": "%", "automargin": True}
    layout: dict[str, Any] = {
        "font": {"family": "system-ui, Segoe UI, Roboto, Arial, sans-serif", "size": 13, "color": "#1d2733"},
        "margin": {"l": 60, "r": 20, "t": 10, "b": 50},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "legend": {"orientation": "h", "y": 1.08, "x": 0},
        "hovermode": "closest",
        "xaxis": {**line, "title": {"text": f"{LABELS[across]}: change against production"}},
        "yaxis": {**line, "title": {"text": f"{LABELS[up]}: change against production"}},
        "shapes": [],
        "annotations": [],
    }
    for axis, ends in zip(("xaxis", "yaxis"), _view(study, (across, up), front), strict=True):
        layout[axis]["range"] = [round(float(end), 2) for end in ends]
    if across in study.guardrails:
        least = 100 * study.guardrails[across]
        layout["shapes"].append(
            {
                "type": "line",
                "x0": least,
                "x1": least,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": "#b3372f", "width": 1.5, "dash": "dash"},
            }
        )
        layout["annotations"].append(
            {
                "x": least,
                "y": 0.02,
                "yref": "paper",
                "text": f"guardrail {least:+.1f}%",
                "showarrow": False,
                "xanchor": "right",
                "font": {"color": "#b3372f", "size": 12},
            }
        )
    return layout


def _view(study: Study, axes: Sequence[str], front: np.ndarray) -> np.ndarray:
    """What the plot opens on, `[2, 2]`: the front `[P, 2]`, production, and the shortlist where it is near."""
    corners = np.vstack([front.reshape(-1, 2), np.zeros((1, 2))])
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
    return np.stack([low - edge, high + edge], axis=1)
