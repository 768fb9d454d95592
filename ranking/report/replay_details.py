"""Sections of the replay page that a study's details fill: each is empty where its details are absent."""

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
from ranking.report.quadrants_figure import COLORS, MEANING, PLURALS, Point, quadrants_figure

__all__ = ["LINES", "calibration", "diversity", "movers", "quadrants", "segments", "sensitivity"]

LINES = {  # objective -> colour, dash, shape
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
        color, dash = LINES[name][0], "solid" if name == objective else LINES[name][1]
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


def segments(details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    """A forest plot: each segment's change with its interval, those of the other sign than overall flagged."""
    found = details.get("segments")
    if not found or not found["rows"]:
        return ""
    rows = found["rows"]
    names = [name for name in LABELS if any(name in one["estimates"] for one in rows)]
    figures["segments"] = _forest(rows, names)
    flips = [f"{one['segment']} ({', '.join(LABELS[name] for name in one['flip'])})" for one in rows if one["flip"]]
    text = f"Change against production on the test window, {details['setting']}, by {found['column']}; 95% intervals."
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
        color, _, symbol = LINES[name]
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
        f"Rows of the {found['window']} window in groups by prediction; on the line, what was predicted is what "
        "happened. PCOC is predicted over observed in sum: above 1 promises too much. ECE is the mean gap."
    )
    note = _SOFT(escape(found["note"])) if found.get("note") else ""
    drawn = f'<div class="columns">{"".join(panels)}</div>'
    shown = f'<div class="short">{table(["head", "PCOC", "ECE"], rows, sortable=False, style="number")}</div>'
    return section("Are the predictions calibrated?", _SOFT(escape(text)), note, drawn, shown, name="calibration")


def _reliability(bins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = [one for one in bins if one["predicted"] > 0 and one["observed"] > 0]
    x, y = [one["predicted"] for one in kept], [one["observed"] for one in kept]
    half = [1.96 * (one["observed"] * max(1 - one["observed"], 0) / max(one["rows"], 1)) ** 0.5 for one in kept]
    low, high = (
        [max(o - h, o / 20) for o, h in zip(y, half, strict=True)],
        [o + h for o, h in zip(y, half, strict=True)],
    )
    ends = [min([*x, *y], default=0.01), max([*x, *y], default=1)]
    data: list[dict[str, Any]] = [
        {
            **{"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"},
            "line": {"color": GREY, "dash": "dash", "width": 1.5},
        },
        {
            **{"type": "scatter", "mode": "markers", "x": x, "y": y, "error_y": bars(y, low, high, BLUE)},
            "text": [f"{one['rows']:,} rows" for one in kept],
            "marker": {"color": BLUE, "size": 8},
            "hovertemplate": "predicted %{x:.2~%}, observed %{y:.2~%}<br>%{text}<extra></extra>",
        },
    ]
    scale = {"type": "log", "tickformat": ".2~%", "dtick": "D2"}
    return {
        "data": data,
        "layout": layout(xaxis=axis("predicted", **scale), yaxis=axis("observed", **scale), showlegend=False),
    }


def diversity(details: Mapping[str, Any]) -> str:
    """How varied the slates of each setting are."""
    found = details.get("diversity")
    if not found or not found["rows"]:
        return ""
    columns = {
        "entropy": ("entropy", ".3f"),
        "gini": ("Gini of looks", ".3f"),
        "coverage": ("items seen", ".1%"),
        "long_tail": ("long tail", ".1%"),
        "overlap": ("same as production", ".1%"),
    }
    kept = [name for name in columns if any(one.get(name) is not None for one in found["rows"])]
    rows = []
    for one in found["rows"]:
        cells = [
            cell("&ndash;") if one.get(name) is None else cell(f"{one[name]:{columns[name][1]}}", one[name])
            for name in kept
        ]
        rows.append([cell(escape(one["setting"]), one["setting"]), *cells])
    by = f"Entropy of the looks over {found['category']}" if found.get("category") else "Entropy of the looks"
    text = (
        f"{by}: the higher, the more varied. Gini: 0 where all items are looked at alike, 1 where one has all looks. "
        "Items seen: share of the items in any slate. Same as production: share of the slate that production shows too."
    )
    shown = table(["setting", *(columns[name][0] for name in kept)], rows, style="number", name="diversity-table")
    return section("Diversity", _SOFT(escape(text)), shown, name="diversity")


def quadrants(details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    """Items by click rate and conversion rate."""
    found = details.get("quadrants")
    if not found or not found["items"]:
        return ""
    points = [Point(one["quadrant"], one["ctr"], one["cvr"], one["impressions"], _item(one)) for one in found["items"]]
    figures["quadrants-plot"] = quadrants_figure(points, found["ctr_line"], found["cvr_line"])
    rows = []
    for name in (*PLURALS, "undecided"):
        kept = [one for one in found["items"] if one["quadrant"] == name]
        if kept or name in PLURALS:
            dot = f'<span class="dot" style="background:{COLORS.get(name, "white")}"></span>'
            meaning = f'<div class="wrap">{MEANING.get(name, "too little has happened to tell")}</div>'
            shown = sum(one["impressions"] for one in kept)
            rows.append([f"{dot}{PLURALS.get(name, name)}", f"{len(kept):,}", f"{shown:,.0f}", meaning])
    text = f"Each mark one of {len(points):,} items, its area the impressions; from the lines on a rate is high."
    drawn = plot("quadrants-plot", "Items by clicks per impression and conversions per click.", 520)
    shown = table(["quadrant", "items", "impressions", "what it means"], rows, sortable=False)
    return section("Four quadrants of items", _SOFT(text), drawn, shown, name="quadrants")


def _item(one: Mapping[str, Any]) -> str:
    return f"<b>{plain(str(one['item'])[:80])}</b><br>{one['impressions']:,} impressions"


def movers(details: Mapping[str, Any]) -> str:
    """The items that gain and lose most looks by the setting."""
    found = details.get("movers")
    if not found or not (found["gaining"] or found["losing"]):
        return ""
    most = max(abs(one["after"] - one["before"]) for one in (*found["gaining"], *found["losing"])) or 1
    panels = []
    for name in ("gaining", "losing"):
        rows = [_mover(one, most) for one in found[name]]
        shown = table(["item", "before", "after", "change"], rows, style="number", name=name)
        panels.append(f"<div><h3>{name.capitalize()}</h3>{shown}</div>")
    text = f"In {found['unit']}, under production and under {details['setting']}, on the test window."
    return section(
        "Items gaining and losing impressions",
        _SOFT(escape(text)),
        f'<div class="columns">{"".join(panels)}</div>',
        name="movers",
    )


def _mover(one: Mapping[str, Any], most: float) -> list[str]:
    gap = one["after"] - one["before"]
    style = "up" if gap > 0 else "down"
    category = f"<small>{escape(str(one['category']))}</small>" if one.get("category") not in (None, "") else ""
    width = max(1.0, round(60 * abs(gap) / most, 1))
    size = 'width="60" height="6" aria-hidden="true"'
    bar = f'<svg class="interval {style}" {size}><rect x="{60 - width}" width="{width}" height="6"/></svg>'
    return [
        cell(f'<div class="wrap">{escape(str(one["item"]))}{category}</div>', str(one["item"])),
        f"{one['before']:,.1f}",
        f"{one['after']:,.1f}",
        cell(f'<span class="{style}">{gap:+,.1f}</span>{bar}', round(gap, 4)),
    ]
