"""The freshness page: how soon new items have a similarity, and what fresh tables are worth, in one HTML file."""

from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ranking.freshness import Freshness
from ranking.report import page as pages
from ranking.report.page import bullets, plot, section, table
from ranking.report.plots import BLUE, GREEN, GREY, ORANGE, VERMILION, axis, bars, layout

__all__ = ["render", "verdict", "write_page"]

HOUR_MS = 3_600_000
NAMES = {
    "frozen": "frozen at the beginning",
    "daily": "exported once a tick",
    "daily seeds": "refreshed, but for the seeds",
    "refreshed": "refreshed",
}
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
    after = (
        "AUC of the click on impressions of items born meanwhile, by the age of the item when it was shown; bars are "
        "95 % intervals by a bootstrap over users. All arms are the same models on the same rows."
    )
    parts = [
        pages.verdict(verdict(found), _gain(found, "new", "daily")[0] > 0),
        section(
            "From birth to a similarity",
            soft(escape(born)),
            plot("births", "Share of new items with a similarity by hours since birth.", 380),
            _waits(found),
        ),
        section(
            "Ranking quality by age",
            soft(escape(after)),
            plot("quality", "AUC by hours since birth, for tables of different ages.", 380),
            _quality(found),
        ),
        section("How to read this", bullets(_caveats(found))),
    ]
    return pages.page(
        f"What fresh tables are worth: {Path(about['dataset']).resolve().name}",
        f"{_moment(about['since'])} to {_moment(about['until'])} (UTC), {about['refreshes']:,} refreshes, one every "
        f"{_span(about['every'])}.",
        "".join(parts),
        "Made by seedrank freshness.",
        {"births": _births(found), "quality": _by_age(found)},
    )


def _gain(found: Freshness, where: str, arm: str) -> tuple[float, float]:
    rows = found.quality[(found.quality["from_hours"] == where) & (found.quality["arm"] == arm)]
    return (float(rows["gain"].iloc[0]), float(rows["gain_se"].iloc[0])) if len(rows) else (np.nan, np.nan)


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
    return (
        f"{first}On impressions of new items the AUC of the click changes by {_signed(gain)} ± {error:.4f}{surely}; "
        f"fresh seeds alone make {_signed(seeds)} ± {seeds_error:.4f} of it, the rest are statistics, and items that "
        "are known at all."
    )


def _waits(found: Freshness) -> str:
    rows = [
        [escape(name), str(int(told["items"])), *(_hours(told[part]) for part in ("median", "p90", "max"))]
        for name, told in found.waits().items()
    ]
    return table(
        ["Items that had a similarity in both before the end", "Items", "Median", "90 %", "Longest"],
        rows,
        style="number",
    )


def _quality(found: Freshness) -> str:
    rows = []
    for row in found.quality.to_dict("records"):
        gain = "" if np.isnan(row["gain"]) else f"{_signed(row['gain'])} ± {row['gain_se']:.4f}"
        rows.append(
            [
                escape(_age(row["from_hours"])),
                escape(NAMES[row["arm"]]),
                f"{row['impressions']:,}",
                f"{row['clicks']:,}",
                f"{row['with_similarity']:.0%}",
                f"{row['auc']:.4f}",
                gain,
            ]
        )
    head = ["Age", "Tables", "Impressions", "Clicks", "With similarity", "AUC", "Refreshed minus this, ± error"]
    return table(head, rows, style="number", name="quality-by-age")


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


def _by_age(found: Freshness) -> dict[str, Any]:
    quality = found.quality[~found.quality["from_hours"].isin(["new", "all"])]
    traces: list[dict[str, Any]] = []
    for arm, label in NAMES.items():
        rows = quality[(quality["arm"] == arm) & quality["auc"].notna()]
        middle = rows["auc"].round(5).tolist()
        low, high = ((rows["auc"] + sign * 1.96 * rows["auc_se"]).round(5).tolist() for sign in (-1, 1))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+lines",
                "marker": {"color": COLORS[arm], "size": 7},
                "line": {"color": COLORS[arm], "width": 1.5},
                "name": label,
                "x": [_age(name) for name in rows["from_hours"]],
                "y": middle,
                "error_y": bars(middle, low, high, COLORS[arm]),
            }
        )
    return {"data": traces, "layout": layout(xaxis=axis("age of the item", type="category"), yaxis=axis("AUC"))}


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


def _age(name: str) -> str:
    return {"new": "all new items", "all": "all items"}.get(name, f"from {name} h")


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
