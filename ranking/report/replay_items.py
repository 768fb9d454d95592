"""Sections on the items that a study's details fill: each is empty where its details are absent."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ranking.report.page import cell, plot, section, table
from ranking.report.plots import plain
from ranking.report.quadrants_figure import COLORS, MEANING, PLURALS, Point, quadrants_figure

__all__ = ["diversity", "movers", "quadrants"]

_SOFT = '<p class="soft">{}</p>'.format


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
