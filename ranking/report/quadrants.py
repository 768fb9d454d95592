"""The quadrants page: one HTML file that shows which items deserve better and which worse, and needs no network."""

from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from esmm.quadrants import QUADRANTS
from ranking.quadrants import CERTAIN, ItemQuadrants
from ranking.report import page as pages
from ranking.report.page import bullets, cell, plot, section, table
from ranking.report.plots import plain
from ranking.report.quadrants_figure import COLORS, MEANING, PLURALS, Point, certainty, quadrants_figure

__all__ = ["PLURALS", "render", "write_page"]

_DRAWN, _LISTED = 5000, 50


def write_page(found: ItemQuadrants, path: str | Path) -> Path:
    """Writes the page of some items."""
    return pages.write_page(render(found), path)


def render(found: ItemQuadrants) -> str:
    """The page as text, see `write_page`."""
    about, counts = found.about, found.counts()
    drawn = _drawn(found.items)
    source = f"Predictions of the run {about['run']}" if about["source"] == "run" else "The log"
    soft = '<p class="soft">{}</p>'.format
    gems = (
        "Few click on them; of those who do, more convert than on average. Show them better: another picture, another "
        "title, another audience."
    )
    flashy = (
        "Many click on them, and fewer convert than on average. They take clicks that others would have made more of."
    )
    label = "Click rate and conversions per click of each item."
    parts = [
        pages.verdict(_verdict(counts), counts["hidden gem"] > 0),
        section("Where the items are", soft(escape(_caption(found, drawn))), plot("items", label, 560), _counts(found)),
        section("Hidden gems", soft(gems), _listed(found, "hidden gem")),
        section("Flashy", soft(flashy), _listed(found, "flashy")),
        section("How to read this", bullets(_caveats(found))),
    ]
    return pages.page(
        f"Items by clicks and conversions: {Path(about['dataset']).resolve().name}",
        f"{source}: {found.span()}{'' if about['ordinal'] else ' (UTC)'}.",
        "".join(parts),
        "Made by seedrank quadrants.",
        {"items": quadrants_figure(_points(drawn), found.click_threshold, found.conversion_threshold)},
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
        f"{MEANING['hidden gem']}; {flashy:,} {'is' if flashy == 1 else 'are'} flashy",
        f"{MEANING['flashy']}",
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


def _counts(found: ItemQuadrants) -> str:
    items, rows = found.items, []

    def line(name: str, kept: pd.Series, meaning: str, color: str) -> list[str]:
        of = items[kept]
        dot = f'<span class="dot" style="background:{color}"></span>'
        sums = [f"{int(of[column].sum()):,}" for column in ("impressions", "clicks", "conversions")]
        return [f"{dot}{escape(name)}", f"{len(of):,}", *sums, f'<div class="wrap">{escape(meaning)}</div>']

    for name in QUADRANTS:
        kept = items["decided"] & (items["quadrant"] == name)
        rows.append(line(PLURALS[name], kept, MEANING[name], COLORS[name]))
    if not items["decided"].all():
        rows.append(line("undecided", ~items["decided"], "too little has happened to tell", "transparent"))
    return table(["quadrant", "items", "impressions", "clicks", "conversions", "what it means"], rows, sortable=False)


def _listed(found: ItemQuadrants, quadrant: str) -> str:
    items = found.of(quadrant)
    if items.empty:
        return '<p class="soft">None that is certain enough.</p>'
    log = found.about["source"] == "log"
    head = ["item", "click rate", "conversions per click", "impressions", "clicks", "conversions"]
    rows = []
    for one in items.head(_LISTED).to_dict("records"):
        cells = [
            f'<div class="wrap">{escape(str(one["item_id"]))}</div>',
            _percent(one["click_rate"]),
            _percent(one["conversion_rate"]),
            *(f"{count:,}" for count in (one["impressions"], one["clicks"], one["conversions"])),
        ]
        rows.append([*cells, cell(certainty(one["certainty"]), one["certainty"])] if log else cells)
    more = len(items) - _LISTED
    order = "by conversions per click" if QUADRANTS[quadrant][1] else "by clicks"
    end = f'<p class="soft small">And {more:,} more; these are the first {_LISTED} {order}.</p>' if more > 0 else ""
    return table([*head, "certainty"] if log else head, rows, style="number", name=quadrant) + end


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


def _points(drawn: pd.DataFrame) -> list[Point]:
    """The items as the plot takes them, with what a pointer over one reads."""
    points = []
    for one in drawn.to_dict("records"):
        seems = "" if one["decided"] else f"seems {one['quadrant']}, "
        sure = "" if np.isnan(one["certainty"]) else f"<br>{seems}certainty {certainty(one['certainty'])}"
        counts = f"{one['impressions']:,} impressions, {one['clicks']:,} clicks, {one['conversions']:,} conversions"
        text = f"<b>{plain(str(one['item_id'])[:80])}</b><br>{counts}{sure}"
        group = one["quadrant"] if one["decided"] else "undecided"
        points.append(Point(group, one["click_rate"], one["conversion_rate"], one["impressions"], text))
    return points
