"""What the plots of all pages share: colours, a layout, axes, bars of error."""

from collections.abc import Sequence
from html import escape
from typing import Any

__all__ = [
    "BLUE",
    "FLAT",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "axis",
    "bars",
    "layout",
    "plain",
    "shaded",
    "upright",
]

# Okabe and Ito: told apart with any kind of colour vision.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
GREY, INK = "#8a97a5", "#1d2733"
FLAT: dict[str, Any] = {"zeroline": False, "showgrid": False, "fixedrange": True}  # an axis of names


def layout(**parts: Any) -> dict[str, Any]:
    """A plotly layout: dark text on white, the legend above, little margin."""
    return {
        "font": {"family": "system-ui, Segoe UI, Roboto, Arial, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 54, "r": 14, "t": 12, "b": 46},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "legend": {"orientation": "h", "y": 1.02, "x": 0, "yanchor": "bottom"},
        "hovermode": "closest",
        **parts,
    }


def axis(title: str = "", **parts: Any) -> dict[str, Any]:
    """An axis with a light grid and a visible zero."""
    return {
        "gridcolor": "#e8ecf0",
        "zerolinecolor": "#7d8a97",
        "automargin": True,
        "title": {"text": plain(title)},
        **parts,
    }


def bars(
    middle: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None], color: str
) -> dict[str, Any]:
    """Bars of error from `low` to `high`."""
    rows = list(zip(middle, low, high, strict=True))
    above = [None if m is None or h is None else round(h - m, 8) for m, _, h in rows]
    below = [None if m is None or b is None else round(m - b, 8) for m, b, _ in rows]
    line = {"thickness": 1.2, "width": 3, "color": color}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **line}


def upright(at: float, color: str, *, dash: str = "dot", across: str = "x") -> dict[str, Any]:
    """A line through the whole plot at `at` of the axis `across`."""
    other = "y" if across == "x" else "x"
    ends = {f"{across}0": at, f"{across}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", "layer": "below", "line": {"color": color, "width": 1.5, "dash": dash}, **ends}


def shaded(low: float, high: float, color: str) -> dict[str, Any]:
    """A stretch of the x axis, shaded through the whole plot."""
    ends = {"x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "rect", "layer": "below", "fillcolor": color, "opacity": 0.13, "line": {"width": 0}, **ends}


def plain(text: str) -> str:
    """Text for plotly, which reads a little HTML; it knows no entities of quotes."""
    return escape(text, quote=False)
