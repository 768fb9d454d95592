"""The quadrants page: one HTML file that shows which items deserve better and which worse, and needs no network."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from esmm.quadrants import QUADRANTS
from ranking.atomic import atomic_file
from ranking.quadrants import CERTAIN, ItemQuadrants
from ranking.report.page import fill, in_script, row

__all__ = ["PLURALS", "render", "write_page"]

PLURALS = {"winner": "winners", "hidden gem": "hidden gems", "flashy": "flashy", "to retire": "to retire"}
_COLORS = {"winner": "#2457a6", "hidden gem": "#1a7f4b", "flashy": "#e0912f", "to retire": "#7f8fa1"}
_MEANING = {
    "winner": "many click, and many of those convert",
    "hidden gem": "few click, but many of those convert",
    "flashy": "many click, but few of those convert",
    "to retire": "few click, and few of those convert",
}
_DRAWN, _LISTED = 5000, 50
_GRID = {"gridcolor": "#e8ecf0", "zerolinecolor": "#9aa6b2", "automargin": True}


def write_page(found: ItemQuadrants, path: str | Path) -> Path:
    """Writes the page of some items.

    Args:
        found: ItemQuadrants.
        path: str or Path. The HTML file.

    Returns:
        Path. The file.
    """
    text = render(found)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def render(found: ItemQuadrants) -> str:
    """The page as text, see `write_page`."""
    about, counts = found.about, found.counts()
    drawn = _drawn(found.items)
    source = f"Predictions of the run {about['run']}" if about["source"] == "run" else "The log"
    return fill(
        "quadrants.html",
        title=escape(Path(about["dataset"]).resolve().name),
        subtitle=escape(f"{source}: {found.span()}{'' if about['ordinal'] else ' (UTC)'}."),
        verdict=escape(_verdict(counts)),
        color="pick" if counts["hidden gem"] else "keep",
        plot_caption=escape(_caption(found, drawn)),
        counts=_counts(found),
        gems=_listed(found, "hidden gem"),
        flashy=_listed(found, "flashy"),
        caveats="".join(f"<li>{escape(text)}</li>" for text in _caveats(found)),
        footer="Made by seedrank quadrants.",
        figure=in_script(_figure(found, drawn)),
    )


def _items(count: int) -> str:
    return f"{count:,} item{'' if count == 1 else 's'}"


def _verdict(counts: dict[str, int]) -> str:
    """The sentence for everybody."""
    total, open_ = sum(counts.values()), counts["undecided"]
    if open_ == total:
        return f"None of {_items(total)} can be placed yet: too little has happened to them."
    gems, flashy = counts["hidden gem"], counts["flashy"]
    parts = [
        f"{gems:,} of {_items(total)} {'is a hidden gem' if gems == 1 else 'are hidden gems'}",
        f"{_MEANING['hidden gem']}; {flashy:,} {'is' if flashy == 1 else 'are'} flashy",
        f"{_MEANING['flashy']}",
    ]
    end = f" Of {open_:,} it cannot be told yet." if open_ else ""
    return f"{': '.join(parts)}.{end}"


def _drawn(items: pd.DataFrame) -> pd.DataFrame:
    """As many items as a browser draws with ease: the decided ones first, then by impressions."""
    return items.sort_values(["decided", "impressions"], ascending=False, kind="stable").head(_DRAWN)


def _caption(found: ItemQuadrants, drawn: pd.DataFrame) -> str:
    text = "Each dot an item, its area the impressions; the lines are the rates of all of it: click rate "
    text += f"{_percent(found.click_threshold)}, conversions per click {_percent(found.conversion_threshold)}."
    if found.about["source"] == "log":
        text += f" Hollow: undecided, the chance that it is where it seems to be is under {CERTAIN:.0%}."
    if len(drawn) < len(found.items):
        text += f" {len(drawn):,} of {_items(len(found.items))} are drawn, those that are decided and shown most."
    return text


def _percent(rate: float) -> str:
    """A share with three digits that count."""
    return f"{100 * rate:#.3g}".rstrip(".") + "%"


def _certainty(chance: float) -> str:
    return "&gt;99%" if chance > 0.99 else f"{chance:.0%}"


def _counts(found: ItemQuadrants) -> str:
    rows = [row(["quadrant", "items", "impressions", "clicks", "conversions", "what it means"], "th")]
    items = found.items

    def line(name: str, kept: pd.Series, meaning: str, color: str) -> str:
        of = items[kept]
        dot = f'<span class="dot" style="background:{color}"></span>'
        sums = [f"{int(of[column].sum()):,}" for column in ("impressions", "clicks", "conversions")]
        return row([f"{dot}{escape(name)}", f"{len(of):,}", *sums, f'<div class="wrap">{escape(meaning)}</div>'])

    for name in QUADRANTS:
        kept = items["decided"] & (items["quadrant"] == name)
        rows.append(line(PLURALS[name], kept, _MEANING[name], _COLORS[name]))
    if not items["decided"].all():
        rows.append(line("undecided", ~items["decided"], "too little has happened to tell", "transparent"))
    return f"<table>{''.join(rows)}</table>"


def _listed(found: ItemQuadrants, quadrant: str) -> str:
    items = found.of(quadrant)
    if items.empty:
        return '<p class="soft">None that is certain enough.</p>'
    log = found.about["source"] == "log"
    head = ["item", "click rate", "conversions per click", "impressions", "clicks", "conversions"]
    rows = [row([*head, "certainty"] if log else head, "th")]
    for one in items.head(_LISTED).to_dict("records"):
        cells = [
            f'<div class="wrap">{escape(str(one["item_id"]))}</div>',
            _percent(one["click_rate"]),
            _percent(one["conversion_rate"]),
            *(f"{count:,}" for count in (one["impressions"], one["clicks"], one["conversions"])),
        ]
        rows.append(row([*cells, _certainty(one["certainty"])] if log else cells))
    more = len(items) - _LISTED
    order = "by conversions per click" if QUADRANTS[quadrant][1] else "by clicks"
    end = f'<p class="soft small">And {more:,} more; these are the first {_LISTED} {order}.</p>' if more > 0 else ""
    return f'<table class="number">{"".join(rows)}</table>{end}'


def _caveats(found: ItemQuadrants) -> list[str]:
    about = found.about
    if about["source"] == "run":
        texts = [
            "The rates are the run's: the mean predicted click rate, as if the item had been seen at the top, and the "
            "mean predicted conversion rate of all who saw the item, clicked or not.",
            "A prediction is not an observation. Nothing here says how far the run is off for a single item, so none "
            "is undecided; look at the impressions before an item is dropped.",
        ]
    else:
        click, conversion = about["priors"]["click"], about["priors"]["conversion"]
        texts = [
            "The rates are smoothed: an item starts as an average one and moves with what happens to it. A click rate "
            f"starts with {click['strength']:,.3g} impressions at {_percent(click['mean'])}, a conversion rate with "
            f"{conversion['strength']:,.3g} clicks at {_percent(conversion['mean'])}: as far as items differ in this "
            "log.",
            "Certainty is the chance that the item is in its quadrant, given its counts and taking its two rates as "
            "independent.",
            "An item that was shown in bad positions, or to the wrong people, looks duller than it is. Rates of a run "
            "(--run) are without the position where the log has it.",
        ]
        if about["immature_clicks"]:
            texts.append(
                f"{about['immature_clicks']:,} clicks may still convert; conversions per click are without them."
            )
    if about["left_out"]:
        texts.append(
            f"{_items(about['left_out'])} shown less than {about['min_impressions']:,} times are left out of the plot, "
            "the tables and the counts, but not of the overall rates."
        )
    return texts


def _plain(text: str) -> str:
    """Text for plotly, which reads a little HTML; it knows no entities of quotes."""
    return escape(text, quote=False)


def _figure(found: ItemQuadrants, drawn: pd.DataFrame) -> dict[str, Any]:
    most = max(int(drawn["impressions"].max()), 1)
    data = [_trace(drawn[~drawn["decided"]], "undecided", "#8a97a5", most)]
    for name in ("to retire", "flashy", "winner", "hidden gem"):  # the last is on top
        data.append(_trace(drawn[drawn["decided"] & (drawn["quadrant"] == name)], name, _COLORS[name], most))
    thresholds = {"x": found.click_threshold, "y": found.conversion_threshold}
    dotted: dict[str, Any] = {
        "type": "line",
        "line": {"color": "#5b6876", "width": 1.5, "dash": "dot"},
        "layer": "below",
    }
    shapes = []
    for axis, at in thresholds.items():
        other = "y" if axis == "x" else "x"
        place = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
        shapes.append({**dotted, **place})
    notes = []
    for name, (right, top) in QUADRANTS.items():
        corner: dict[str, Any] = {"x": float(right), "y": float(top), "xanchor": "right" if right else "left"}
        notes.append(
            {
                "xref": "paper",
                "yref": "paper",
                "showarrow": False,
                "yanchor": "top" if top else "bottom",
                "text": f"<b>{PLURALS[name]}</b>",
                "font": {"color": _COLORS[name], "size": 14},
                "bgcolor": "rgba(255,255,255,0.75)",
                **corner,
            }
        )
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": {
            "font": {"family": "system-ui, Segoe UI, Roboto, Arial, sans-serif", "size": 13, "color": "#1d2733"},
            "margin": {"l": 56, "r": 14, "t": 12, "b": 48},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "legend": {"orientation": "h", "y": 1.02, "x": 0, "yanchor": "bottom", "itemsizing": "constant"},
            "hovermode": "closest",
            "xaxis": _axis(drawn["click_rate"], "clicks per impression"),
            "yaxis": _axis(drawn["conversion_rate"], "conversions per click"),
            "shapes": shapes,
            "annotations": notes,
        },
    }


def _axis(rates: pd.Series, title: str) -> dict[str, Any]:
    """A log scale; over a wide range with ticks at 1, 2 and 5, which do not run into each other."""
    wide = {"dtick": "D2"} if rates.max() > 6 * rates.min() else {}
    return {**_GRID, **wide, "type": "log", "tickformat": ".2~%", "title": {"text": title}}


def _trace(items: pd.DataFrame, name: str, color: str, most: int) -> dict[str, Any]:
    """The dots of one color; the area of a dot grows with the impressions."""
    hollow = name == "undecided"
    texts = []
    for one in items.to_dict("records"):
        seems = f"seems {one['quadrant']}, " if hollow else ""
        certainty = "" if np.isnan(one["certainty"]) else f"<br>{seems}certainty {_certainty(one['certainty'])}"
        counts = f"{one['impressions']:,} impressions, {one['clicks']:,} clicks, {one['conversions']:,} conversions"
        texts.append(f"<b>{_plain(str(one['item_id'])[:80])}</b><br>{counts}{certainty}")
    return {
        "type": "scattergl" if len(items) > 2000 else "scatter",
        "mode": "markers",
        "name": PLURALS.get(name, name),
        "x": [float(f"{rate:.5g}") for rate in items["click_rate"]],
        "y": [float(f"{rate:.5g}") for rate in items["conversion_rate"]],
        "text": texts,
        "marker": {
            "color": color,
            "symbol": "circle-open" if hollow else "circle",
            "size": [round(5 + 21 * float(np.sqrt(count / most)), 1) for count in items["impressions"]],
            "opacity": 0.7 if hollow else 0.8,
            "line": {"width": 1, "color": color if hollow else "white"},
        },
        "hovertemplate": "%{text}<br>click rate %{x:.3~%}, conversions per click %{y:.3~%}<extra></extra>",
    }
