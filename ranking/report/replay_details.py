"""Sections on the setting that a study's details fill: each is empty where its details are absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ranking.replay.evaluation import percent
from ranking.report.front import LABELS
from ranking.report.page import cell, plot, section, table
from ranking.report.plots import (
    BLUE,
    FLAT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    axis,
    bars,
    layout,
    plain,
    shaded,
    upright,
)

__all__ = ["calibration", "segments", "sensitivity"]

_LINES = {  # objective -> colour, dash, shape
    "conversions": (BLUE, "solid", "circle"),
    "clicks": (ORANGE, "dash", "square"),
    "value": (GREEN, "longdash", "diamond"),
    "new_items": (PURPLE, "dot", "triangle-up"),
    "diversity": (INK, "dashdot", "star"),
}
_SOFT = '<p class="soft">{}</p>'.format


def sensitivity(details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    """What each weight does alone, with the stretch shaded where the objective cannot tell the difference."""
    found = details.get("sensitivity")
    if not found or not found["curves"]:
        return ""
    panels = []
    for number, curve in enumerate(found["curves"]):
        name = f"sensitivity-{number}"
        figures[name] = _curve(curve, found["objective"])
        label = f"Change of each objective as the weight of {curve['part']} moves."
        flat = curve.get("flat")
        text = "No flat stretch." if not flat else f"Flat from {flat[0]:.3g} to {flat[1]:.3g}."
        panels.append(
            f'<div><h3>{escape(curve["part"])}</h3><p class="soft small">{text}</p>{plot(name, label, 320)}</div>'
        )
    text = (
        f"Exact curves on the {found['window']} window: one weight moves, the others stay as in {details['setting']}. "
        f"Shaded: where {LABELS[found['objective']]} stays within its error of the best, so that any weight there is "
        "as good. No line: refused for lack of support. Dotted: production; solid: the setting."
    )
    return section(
        "How sharp is the choice?",
        _SOFT(escape(text)),
        f'<div class="columns">{"".join(panels)}</div>',
        name="sensitivity",
    )


def _curve(curve: Mapping[str, Any], objective: str) -> dict[str, Any]:
    data = []
    for name in sorted(curve["delta"], key=lambda name: name != objective):
        color, dash = _LINES[name][0], "solid" if name == objective else _LINES[name][1]
        deltas = zip(curve["delta"][name], curve["supported"], strict=True)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": LABELS[name],
                "x": curve["t"],
                "y": [round(100 * delta, 3) if kept and delta is not None else None for delta, kept in deltas],
                "connectgaps": False,
                "line": {"color": color, "dash": dash, "width": 2.5 if name == objective else 1.5, "shape": "hv"},
                "hovertemplate": f"weight %{{x:.3g}}: {LABELS[name]} %{{y:+.1f}}%<extra></extra>",
            }
        )
    shapes = [upright(curve["production"], GREY), upright(curve["setting"], INK, dash="solid")]
    if curve.get("flat"):
        shapes.insert(0, shaded(curve["flat"][0], curve["flat"][1], GREEN))
    ends = [curve["low_bound"], curve["high_bound"]]
    x, y = axis(f"weight of {curve['part']}", range=ends), axis("change", ticksuffix="%")
    return {"data": data, "layout": layout(xaxis=x, yaxis=y, shapes=shapes)}


def segments(details: Mapping[str, Any], figures: dict[str, Any], objective: str) -> str:
    """A forest plot: each segment's change with its interval, those of the other sign than overall flagged."""
    found = details.get("segments")
    if not found or not found["rows"]:
        return ""
    rows = found["rows"]
    there = {name for one in rows for name in one["estimates"]}
    names = [name for name in dict.fromkeys((objective, *LABELS)) if name in there]
    figures["segments"] = _forest(rows, names)
    flips = [f"{one['segment']} ({', '.join(LABELS[name] for name in one['flip'])})" for one in rows if one["flip"]]
    text = f"Change against production on the test window, {details['setting']}, by {found['column']}; 95% intervals."
    text += f" Segments too small to be here: {found['left_out']}." if found.get("left_out") else ""
    flag = f"Other sign than overall: {'; '.join(flips)}." if flips else "No segment has another sign than overall."
    lines = []
    for one in rows:
        head = [cell(escape(str(one["segment"])), str(one["segment"])), f"{one['requests']:,}", f"{one['users']:,}"]
        if one["refused"]:
            span = f' colspan="{len(names)}" class="refused"'
            lines.append([*head, cell(f"refused: {escape(one['refused'])}", attributes=span)])
            continue
        lines.append([*head, *(_segment_cell(one, name) for name in names)])
    height = 100 + sum(26 + 20 * len(names) for one in rows if not one["refused"])
    drawn = plot("segments", f"Forest plot of the change in each segment. {flag}", max(height, 220))
    shown = table(["segment", "requests", "users", *(LABELS[name] for name in names)], lines, name="segments-table")
    flagged = f'<p class="{"down" if flips else "soft"}">{"&#9873; " if flips else ""}{escape(flag)}</p>'
    return section("Does it hold for everybody?", _SOFT(escape(text)), flagged, drawn, shown, name="segments-section")


def _segment_cell(one: Mapping[str, Any], name: str) -> str:
    estimate = one["estimates"].get(name)
    if estimate is None:
        return cell("&ndash;")
    style = "up" if estimate["low"] > 0 else "down" if estimate["high"] < 0 else ""
    flip = " &#9873; sign flip" if name in one["flip"] else ""
    interval = f"<small>{percent(estimate['low'])} to {percent(estimate['high'])}{flip}</small>"
    return cell(f'<span class="{style}">{percent(estimate["delta"])}</span>{interval}', f"{estimate['delta']:.6f}")


def _forest(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    kept = [one for one in rows if not one["refused"]]
    data, flips = [], []
    for number, name in enumerate(names):
        color, _, symbol = _LINES[name]
        there = [(place, one) for place, one in enumerate(kept) if name in one["estimates"]]
        found = [one["estimates"][name] for _, one in there]
        at = [round(place + 0.22 * (number - (len(names) - 1) / 2), 3) for place, _ in there]
        middle = [round(100 * estimate["delta"], 3) for estimate in found]
        ends = ([100 * estimate["low"] for estimate in found], [100 * estimate["high"] for estimate in found])
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": LABELS[name],
                "x": middle,
                "y": at,
                "text": [plain(str(one["segment"])) for _, one in there],
                "error_x": bars(middle, *ends, color),
                "marker": {"color": color, "symbol": symbol, "size": 9},
                "hovertemplate": f"%{{text}}<br>{LABELS[name]} %{{x:+.1f}}%<extra></extra>",
            }
        )
        marks = zip(there, ends[1], at, strict=True)
        flips += [(right, y) for (_, one), right, y in marks if name in one["flip"]]
    notes = [
        {
            **{"x": round(right, 3), "y": y, "xanchor": "left", "showarrow": False, "xshift": 4},
            "text": "⚑ sign flip",
            "font": {"color": "#b04300", "size": 12},
        }
        for right, y in flips
    ]
    labels = [plain(str(one["segment"])) for one in kept]
    y = axis(tickvals=list(range(len(kept))), ticktext=labels, range=[len(kept) - 0.5, -0.5], **FLAT)
    x = axis("change against production", ticksuffix="%")
    return {"data": data, "layout": layout(xaxis=x, yaxis=y, shapes=[upright(0, INK, dash="solid")], annotations=notes)}


def calibration(details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    """Whether predicted chances are those observed."""
    found = details.get("calibration")
    if not found or not found["heads"]:
        return ""
    panels, rows = [], []
    for head, one in found["heads"].items():
        figures[f"calibration-{head}"] = _reliability(one["bins"])
        label = f"Observed against predicted {head}."
        panels.append(f"<div><h3>{escape(head)}</h3>{plot(f'calibration-{head}', label, 340)}</div>")
        rows.append([escape(head), f"{one['pcoc']:.3f}", f"{one['ece']:.4f}"])
    text = (
        f"Rows of the {found.get('window', 'test')} window in groups by prediction; on the line, what was predicted is "
        "what happened. PCOC is predicted over observed in sum: above 1 promises too much. ECE is the mean gap."
    )
    note = _SOFT(escape(found["note"])) if found.get("note") else ""
    drawn = f'<div class="columns">{"".join(panels)}</div>'
    shown = f'<div class="short">{table(["head", "PCOC", "ECE"], rows, sortable=False, style="number")}</div>'
    return section("Are the predictions calibrated?", _SOFT(escape(text)), note, drawn, shown, name="calibration")


def _reliability(bins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [one for one in bins if one["predicted"] > 0 and one["observed"] > 0]
    x, y = [one["predicted"] for one in kept], [one["observed"] for one in kept]
    half = [1.96 * (one["observed"] * max(1 - one["observed"], 0) / max(one["rows"], 1)) ** 0.5 for one in kept]
    ends = [min([*x, *y], default=0.01), max([*x, *y], default=1)]
    low = [max(o - h, ends[0] / 2) for o, h in zip(y, half, strict=True)]  # the scale knows no 0
    high = [o + h for o, h in zip(y, half, strict=True)]
    data: list[dict[str, Any]] = [
        {
            **{"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"},
            "line": {"color": GREY, "dash": "dash", "width": 1.5},
        },
        {
            **{"type": "scatter", "mode": "markers", "x": x, "y": y, "error_y": bars(y, low, high, BLUE)},
            "text": [f"{one['rows']:,} rows" for one in kept],
            "marker": {"color": BLUE, "size": 8},
            "hovertemplate": "predicted %{x:.2~p}, observed %{y:.2~p}<br>%{text}<extra></extra>",
        },
    ]
    scale = {"type": "log", "tickformat": ".1~p", "dtick": "D2"}
    return {
        "data": data,
        "layout": layout(xaxis=axis("predicted", **scale), yaxis=axis("observed", **scale), showlegend=False),
    }
