"""The freshness page: how soon new items have a similarity, and what fresh tables are worth, in one HTML file."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ranking.freshness import Freshness
from ranking.freshness_rows import AGES, PHASES
from ranking.report import page as pages
from ranking.report.page import bullets, cell, plot, section, table
from ranking.report.plots import BLUE, GREEN, GREY, ORANGE, VERMILION, axis, bars, layout

__all__ = ["render", "verdict", "write_page"]

HOUR_MS = 3_600_000
NAMES = {
    "frozen": "frozen at the beginning",
    "daily": "exported once a tick",
    "daily seeds": "refreshed, but for the seeds",
    "refreshed": "refreshed",
}
SHORT = {"frozen": "frozen", "daily": "exported", "daily seeds": "all but seeds", "refreshed": "refreshed"}
PLACES = {
    "before": "nobody: before",
    "between": "refreshed only",
    "after": "both: after",
    "new": "all new items",
    "all": "all items",
}
PHASES_TOLD = (
    "Impressions of the items that gained a similarity meanwhile, by who had it at that moment: nobody (before), "
    "refreshed tables only (between), or those exported once a {} too (after). Every impression is judged with tables "
    "of clicks strictly before it. All arms are the same models on the same rows. Similar: the share of rows with a "
    "similarity. Gain: the AUC of refreshed tables minus this one, ± its standard error by a bootstrap over users; "
    "bars are 95 % intervals. "
)
COLORS = {"frozen": GREY, "daily": ORANGE, "daily seeds": GREEN, "refreshed": BLUE}


def write_page(found: Freshness, path: str | Path) -> Path:
    """Writes the page."""
    return pages.write_page(render(found), path)


def render(found: Freshness) -> str:
    """The page as text, see `write_page`."""
    about = found.about
    soft = '<p class="soft">{}</p>'.format
    born = (
        f"{about['items_born']:,} items were born, and {about['items_ready']:,} of them had {about['min_seeds']} users "
        "who clicked before the end: the others have no similarity in any tables. A curve ends below 100 % for that."
    )
    parts = [
        pages.verdict(verdict(found), _gain(found, "new", "daily")[0] > 0),
        section(
            "From birth to a similarity",
            soft(escape(born)),
            plot("births", "Share of new items with a similarity by hours since birth.", 380),
            soft(
                "Waits of the items that had a similarity in both before the end, and in the last row of all that did."
            ),
            _waits(found),
            soft(escape(_taken(found))),
        ),
        section(
            "Ranking quality before and after the similarity",
            soft(escape(PHASES_TOLD.format(_span(about["tick"])) + _truth_told(found))),
            plot("phases", "AUC before and after an item has a similarity, for tables of different ages.", 360),
            _quality(found, PHASES, "quality-by-phase"),
        ),
        section(
            "Ranking quality by age",
            soft(escape("The same for every item born meanwhile, by its age when it was shown.")),
            plot("ages", "AUC by hours since birth, for tables of different ages.", 360),
            _quality(found, [*map(str, AGES), "new", "all"], "quality-by-age"),
        ),
        section("How to read this", bullets(_caveats(found))),
    ]
    return pages.page(
        f"What fresh tables are worth: {Path(about['dataset']).resolve().name}",
        f"{_moment(about['since'])} to {_moment(about['until'])} (UTC), {about['refreshes']:,} refreshes, one every "
        f"{_span(about['every'])}.",
        "".join(parts),
        "Made by seedrank freshness.",
        {"births": _births(found), "phases": _drawn(found, PHASES), "ages": _drawn(found, [*map(str, AGES)])},
    )


def _gain(found: Freshness, where: str, arm: str, suffix: str = "") -> tuple[float, float]:
    rows = found.quality[(found.quality["where"] == where) & (found.quality["arm"] == arm)]
    if not len(rows) or f"gain{suffix}" not in rows:
        return np.nan, np.nan
    return float(rows[f"gain{suffix}"].iloc[0]), float(rows[f"gain_se{suffix}"].iloc[0])


def _truth_told(found: Freshness) -> str:
    if "ceiling" not in found.quality:
        return ""
    return (
        "By the truth: the AUC that counts each impression by the chance of a click that the simulator gave it, in "
        "place of the click: the same number without the luck of the labels. Best: that of the chances themselves, "
        "which nothing can pass."
    )


def _taken(found: Freshness) -> str:
    taken = found.refreshes()
    within = int((taken <= 1).sum())
    return (
        f"{within:,} of {len(taken):,} items had their similarity at the first refresh after the user who made enough "
        "seeds clicked" + (f"; the longest took {int(taken.max())} refreshes." if within < len(taken) else ".")
    )


def verdict(found: Freshness) -> str:
    """The sentence for everybody."""
    waits, about = found.waits(), found.about
    fresh, daily = (waits[f"enough seeds to similarity, {arm}"] for arm in ("refreshed, all items", "daily"))
    first = "No new item gained enough seeds in both. "
    if daily["items"]:
        first = (
            f"An item that has {about['min_seeds']} seeds has its similarity within {_hours(fresh['max'])}; with an "
            f"export every {_span(about['tick'])} it waits {_hours(daily['median'])} (median; at most "
            f"{_hours(daily['max'])}). "
        )
    gain, error = _gain(found, "new", "daily")
    seeds, seeds_error = _gain(found, "new", "daily seeds")
    surely = "" if abs(gain) > 1.96 * error else ", which chance may explain"
    between, between_error = _gain(found, "between", "daily seeds")
    meanwhile = ""
    if not np.isnan(between):
        meanwhile = (
            " While refreshed tables have an item's similarity and the export has not, the seeds alone change it by "
            f"{_signed(between)} ± {between_error:.4f}"
        )
        truth, truth_error = _gain(found, "between", "daily seeds", "_truth")
        meanwhile += "." if np.isnan(truth) else f" (by the truth {_signed(truth)} ± {truth_error:.4f})."
    return (
        f"{first}On impressions of new items the AUC of the click changes by {_signed(gain)} ± {error:.4f}{surely}; "
        f"fresh seeds alone make {_signed(seeds)} ± {seeds_error:.4f} of it, the rest are statistics, and items that "
        f"are known at all.{meanwhile}"
    )


def _waits(found: Freshness) -> str:
    rows = [
        [escape(name), str(int(told["items"])), *(_hours(told[part]) for part in ("median", "p90", "max"))]
        for name, told in found.waits().items()
    ]
    return table(
        ["From, to", "Items", "Median", "90 %", "Longest"],
        rows,
        style="number",
    )


def _quality(found: Freshness, places: Sequence[str], name: str) -> str:
    truth = "ceiling" in found.quality
    rows = []
    for row in found.quality[found.quality["where"].isin(places)].to_dict("records"):
        shown = f"{row['impressions']:,} / {row['clicks']:,}"
        place = row["where"] if row["where"] in PHASES else _place(row["where"])
        cells = [escape(place), escape(SHORT[row["arm"]]), cell(shown, row["impressions"])]
        cells += [f"{row['with_similarity']:.0%}", f"{row['value']:.4f}", _change(row, "")]
        if truth:
            cells += [f"{row['value_truth']:.4f}", _change(row, "_truth"), f"{row['ceiling']:.4f}"]
        rows.append(cells)
    head = ["When", "Tables", "Rows / clicks", "Similar", "AUC", "Gain"]
    head += ["By the truth", "Gain", "Best"] if truth else []
    return table(head, rows, style="number", name=name)


def _change(row: Mapping[Any, Any], suffix: str) -> str:
    gain = row[f"gain{suffix}"]
    return "" if np.isnan(gain) else f"{_signed(gain)} ± {row[f'gain_se{suffix}']:.4f}"


def _births(found: Freshness) -> dict[str, Any]:
    items = found.items
    end = found.about["until"]
    traces: list[dict[str, Any]] = []
    for name, label, color in (
        ("ready", f"{found.about['min_seeds']} users have clicked", VERMILION),
        ("refreshed", "has a similarity, refreshed", BLUE),
        ("daily", "has a similarity, exported once a tick", ORANGE),
    ):
        hours = ((items[name] - items["born"]) / HOUR_MS).to_numpy(np.float64, na_value=np.nan)
        hours = np.sort(hours[~np.isnan(hours)])
        longest = float((end - items["born"].min()) / HOUR_MS)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"shape": "hv", "color": color, "width": 2, "dash": "dot" if name == "ready" else "solid"},
                "name": label,
                "x": np.round([0.0, *hours, longest], 3).tolist(),
                "y": np.round(np.append(np.arange(len(hours) + 1), len(hours)) / len(items), 5).tolist(),
            }
        )
    drawn = layout(
        xaxis=axis("hours since birth", rangemode="tozero"),
        yaxis=axis("share of the items born", tickformat=".0%", rangemode="tozero"),
    )
    return {"data": traces, "layout": drawn}


def _drawn(found: Freshness, places: Sequence[str]) -> dict[str, Any]:
    """AUC by place, an arm a line; by the truth where it is known, which has less noise."""
    suffix = "_truth" if "ceiling" in found.quality else ""
    value, error = f"value{suffix}", f"se{suffix}"
    quality = found.quality[found.quality["where"].isin(places)]
    traces: list[dict[str, Any]] = []
    for arm, label in NAMES.items():
        rows = quality[(quality["arm"] == arm) & quality[value].notna()]
        middle = rows[value].round(5).tolist()
        low, high = ((rows[value] + sign * 1.96 * rows[error]).round(5).tolist() for sign in (-1, 1))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+lines",
                "marker": {"color": COLORS[arm], "size": 7},
                "line": {"color": COLORS[arm], "width": 1.5},
                "name": label,
                "x": [_place(name) for name in rows["where"]],
                "y": middle,
                "error_y": bars(middle, low, high, COLORS[arm]),
            }
        )
    title = "AUC by the truth" if suffix else "AUC"
    what = "who has the item's similarity" if places is PHASES else "age of the item"
    return {"data": traces, "layout": layout(xaxis=axis(what, type="category"), yaxis=axis(title))}


def _caveats(found: Freshness) -> list[str]:
    about = found.about
    ndcg = about["ndcg"]
    told = about["seconds_a_refresh"]
    return [
        "Simulated time: every click went through the click log, the seed store and the refresher, as of the moment of "
        "each refresh. What a refresh itself takes is left out: here "
        f"{told['median']:.1f} s (median), without the publishing of a version.",
        "The logged policy chose what was shown. Had fresh tables chosen it, new items would have been shown to other "
        "users, and would have gained seeds sooner or later: that is not in a log.",
        "'refreshed, but for the seeds' has the statistics, items and users of each refresh and the seeds of the last "
        "export: the difference to 'refreshed' is what the seeds alone are worth.",
        "NDCG of requests that showed an item in its first two days: "
        + ", ".join(f"{NAMES[arm]} {ndcg[arm]['value']:.4f}" for arm in NAMES)
        + f"; refreshed minus once a tick {_signed(ndcg['daily']['gain'])} ± {ndcg['daily']['gain_se']:.4f}.",
        "Users' own statistics are those of the beginning in every arm.",
    ]


def _place(name: str) -> str:
    return PLACES[name] if name in PLACES else f"from {name} h"


def _hours(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value * 60:.1f} min" if value < 2 else f"{value:.1f} h"


def _span(seconds: int) -> str:
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % size == 0:
            count = seconds // size
            return name if count == 1 else f"{count} {name}s"
    return f"{seconds} seconds"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
