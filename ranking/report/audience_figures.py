"""The plots of the audience page, as the JSON that plotly.js draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from ranking.report.plots import BLUE, FLAT, GREEN, GREY, ORANGE, PURPLE, axis, layout, plain, shaded, upright

__all__ = ["BARS", "LEAST", "METHODS", "figures", "standing_out", "trait"]

LEAST = 20  # fewer people than these are not shown of a segment
METHODS = {  # name -> color, width, dash
    "look-alike": (BLUE, 3, "solid"),
    "average embedding": (ORANGE, 1.5, "solid"),
    "classifier": (PURPLE, 1.5, "solid"),
    "random": (GREY, 1.5, "dash"),
}
_SEEDS, _AUDIENCE, _POPULATION = BLUE, GREEN, "#b9c4d0"
BARS = 12
_HALF = {"thickness": 1, "width": 3, "symmetric": False}


def figures(found: Mapping[str, Any], name: str, edges: Sequence[float] = ()) -> dict[str, dict[str, Any]]:
    """The plots of one list of an `Expansion.as_dict()`: element id -> figure.

    Args:
        found: dict. The list.
        name: str. Ends the element ids: `reach-<name>`, `recall-<name>`, `lift-<name>` and `who-<name>`, each only
            where there is something to draw.
        edges: sequence of float. Where the audience lies, in percent of the users who can be reached: marked in the
            curves of the hold-out. Defaults to none.
    """
    drawn = {}
    if any(size >= LEAST for size in found["reach"]["size"]):
        drawn[f"reach-{name}"] = _reach(found)
    if "refused" not in found["holdout"]:
        drawn[f"recall-{name}"] = _curve(found, "recall", edges)
        drawn[f"lift-{name}"] = _curve(found, "lift", edges)
    if rows := standing_out(found):
        drawn[f"who-{name}"] = _who(rows)
    return drawn


def standing_out(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The traits of a list that may be shown, the largest lift first."""
    rows = [row for row in found["over_indexing"] if row["seeds"] is not None and row["seeds"] >= LEAST]
    return sorted(rows, key=lambda row: -row["lift"])


def trait(feature: str, value: Any, limit: int = 0) -> str:
    """A feature's value as plain text, not escaped; cut to `limit` characters where that is above 0."""
    text = f"{feature} = {value}"
    return text if not limit or len(text) <= limit else text[: limit - 1] + "…"


def _reach(found: Mapping[str, Any]) -> dict[str, Any]:
    """How many have at least a similarity; the chosen ones shaded."""
    reach = found["reach"]
    pairs = [pair for pair in zip(reach["similarity"], reach["size"], strict=True) if pair[1] >= LEAST]
    curve = {
        "type": "scatter",
        "mode": "lines",
        "x": [round(x, 5) for x, _ in pairs],
        "y": [size for _, size in pairs],
        "line": {"color": _SEEDS, "width": 2.5},
        "hovertemplate": "%{y:,} users have a similarity of<br>at least %{x:.3f}<extra></extra>",
        "showlegend": False,
    }
    shapes = []
    low, high = found["similarity"]["lowest"], found["similarity"]["highest"]
    if low is not None:
        shapes = [shaded(low, high, _AUDIENCE), upright(low, _AUDIENCE)]
    return {
        "data": [curve],
        "layout": layout(
            xaxis=axis("similarity to the seeds, at least"),
            yaxis=axis("users", type="log", dtick="D2", tickformat=",d"),
            shapes=shapes,
        ),
    }


def _curve(found: Mapping[str, Any], what: str, edges: Sequence[float]) -> dict[str, Any]:
    """Recall or lift of hidden seeds at each size, of every method."""
    data = []
    for method, curve in found["holdout"]["methods"].items():
        color, width, dash = METHODS.get(method, (GREY, 1.5, "solid"))
        trace = {
            "type": "scatter",
            "mode": "lines" if method == "random" else "lines+markers",
            "name": plain(method),
            "x": curve["percent"],
            "y": [round(value, 5) for value in curve[what]],
            "line": {"color": color, "width": width, "dash": dash},
            "hovertemplate": "%{fullData.name}: "
            + ("%{y:.1%}" if what == "recall" else "%{y:.2f} times chance")
            + " in the best %{x}%<extra></extra>",
        }
        if method != "random":
            scale = [1.96 if what == "recall" else 196 / percent for percent in curve["percent"]]
            half = [round(se * by, 5) for se, by in zip(curve["se"], scale, strict=True)]
            below = [min(pair) for pair in zip(half, trace["y"], strict=True)]  # nothing is found less than never
            trace["error_y"] = {**_HALF, "type": "data", "array": half, "arrayminus": below, "color": color}
        data.append(trace)
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    y = axis("hidden seeds found", tickformat=".0%", rangemode="tozero")
    if what == "lift":
        y = axis("times as often as by chance", rangemode="tozero")
    texts = [f"{tick:g}" for tick in ticks]
    x = axis("size, % of those who can be reached", type="log", tickvals=ticks, ticktext=texts, tickangle=0)
    edge = [upright(percent, _AUDIENCE) for percent in edges if percent > 0]
    return {"data": data, "layout": layout(xaxis=x, yaxis=y, shapes=edge)}


def _who(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of seeds, audience and population that have each trait, the strongest on top."""
    shown = rows[:BARS]
    places = list(range(len(shown)))
    labels = [plain(f"{trait(row['feature'], row['value'], 22)}  {row['lift']:.1f}×") for row in shown]
    hover = [plain(trait(row["feature"], row["value"], 80)) for row in shown]
    data = []
    groups = {"seeds": ("seed", _SEEDS), "audience": ("audience", _AUDIENCE), "population": ("population", _POPULATION)}
    for group, (key, color) in groups.items():
        few = [key == "audience" and (row["audience"] or 0) < LEAST for row in shown]
        shares = [None if hidden else row[f"{key}_share"] for hidden, row in zip(few, shown, strict=True)]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": group,
                "y": places,
                "x": [None if share is None else round(share, 5) for share in shares],
                "text": hover,
                "textposition": "none",
                "marker": {"color": color},
                "hovertemplate": "%{text}<br>%{x:.1%} of the %{fullData.name}<extra></extra>",
            }
        )
    return {
        "data": data,
        "layout": layout(
            barmode="group",
            bargap=0.3,
            height=110 + 44 * len(shown),
            xaxis=axis(tickformat=".0%", rangemode="tozero"),
            yaxis=axis(tickvals=places, ticktext=labels, range=[len(shown) - 0.5, -0.5], **FLAT),
            margin={"l": 50, "r": 14, "t": 12, "b": 36},
        ),
    }
