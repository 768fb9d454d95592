"""The plot of items by click rate and conversion rate, of the quadrants page and of the replay page."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ranking.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, axis, layout, upright

__all__ = ["COLORS", "MEANING", "PLURALS", "Point", "certainty", "quadrants_figure"]

PLURALS = {"winner": "winners", "hidden gem": "hidden gems", "flashy": "flashy", "to retire": "to retire"}
COLORS = {"winner": BLUE, "hidden gem": GREEN, "flashy": ORANGE, "to retire": PURPLE}
MEANING = {
    "winner": "many click, and many of those convert",
    "hidden gem": "few click, but many of those convert",
    "flashy": "many click, but few of those convert",
    "to retire": "few click, and few of those convert",
}
# As `esmm.quadrants.QUADRANTS` has them, without importing TensorFlow.
_CORNERS = {"winner": (True, True), "hidden gem": (False, True), "flashy": (True, False), "to retire": (False, False)}
_SYMBOLS = {"winner": "circle", "hidden gem": "diamond", "flashy": "triangle-up", "to retire": "square"}


class Point(NamedTuple):
    """One item: its quadrant (or `undecided`), rates, impressions, and what a pointer over it reads (HTML)."""

    quadrant: str
    click_rate: float
    conversion_rate: float
    impressions: float
    text: str


def certainty(chance: float) -> str:
    """A probability as HTML; the rounded 100% would be too sure."""
    return "&gt;99%" if chance > 0.99 else f"{chance:.0%}"


def quadrants_figure(points: Sequence[Point], click_line: float, conversion_line: float) -> dict[str, Any]:
    """Plotly figure: a dot an item, its area the impressions, the two lines from where on a rate is high."""
    most = max((point.impressions for point in points), default=1) or 1
    data = []
    for name in ("undecided", "to retire", "flashy", "winner", "hidden gem"):  # the last is on top
        kept = [point for point in points if point.quadrant == name]
        if kept:
            data.append(_trace(kept, name, most))
    notes = []
    for name, (right, top) in _CORNERS.items():
        notes.append(
            {
                **{"x": float(right), "y": float(top), "xref": "paper", "yref": "paper", "showarrow": False},
                **{"xanchor": "right" if right else "left", "yanchor": "top" if top else "bottom"},
                "text": f"<b>{PLURALS[name]}</b>",
                "font": {"size": 14},
                "bgcolor": "rgba(255,255,255,0.75)",
            }
        )
    return {
        "data": data,
        "layout": layout(
            legend={"orientation": "h", "y": 1.02, "x": 0, "yanchor": "bottom", "itemsizing": "constant"},
            xaxis=_axis([point.click_rate for point in points], "clicks per impression"),
            yaxis=_axis([point.conversion_rate for point in points], "conversions per click"),
            shapes=[upright(click_line, GREY), upright(conversion_line, GREY, across="y")],
            annotations=notes,
        ),
    }


def _axis(rates: Sequence[float], title: str) -> dict[str, Any]:
    """A log scale; over a wide range with ticks at 1, 2 and 5, which do not run into each other."""
    there = [rate for rate in rates if rate > 0]
    wide = {"dtick": "D2"} if there and max(there) > 6 * min(there) else {}
    return axis(title, type="log", tickformat=".2~p", **wide)


def _trace(points: Sequence[Point], name: str, most: float) -> dict[str, Any]:
    hollow, color = name == "undecided", COLORS.get(name, GREY)
    return {
        "type": "scattergl" if len(points) > 2000 else "scatter",
        "mode": "markers",
        "name": PLURALS.get(name, name),
        "x": [float(f"{point.click_rate:.5g}") for point in points],
        "y": [float(f"{point.conversion_rate:.5g}") for point in points],
        "text": [point.text for point in points],
        "marker": {
            "color": color,
            "symbol": "circle-open" if hollow else _SYMBOLS[name],
            "size": [round(5 + 21 * (point.impressions / most) ** 0.5, 1) for point in points],
            "opacity": 0.7 if hollow else 0.8,
            "line": {"width": 1, "color": color if hollow else "white"},
        },
        "hovertemplate": "%{text}<br>click rate %{x:.3~p}, conversions per click %{y:.3~p}<extra></extra>",
    }
