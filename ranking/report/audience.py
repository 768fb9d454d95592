"""The audience page: one HTML file that opens with how good the audience is, and needs no network."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ranking.report import page as pages
from ranking.report.audience_figures import BARS, LEAST, figures, standing_out, trait
from ranking.report.page import bullets, cell, plot, section, table

__all__ = ["render", "write_page"]

_CAVEATS = (
    "Similarity is not uplift. It says who resembles the seeds, not who does more because of being reached. Leave a "
    "random part of the audience alone and compare: only that tells what reaching the others was worth.",
    "The hold-out asks one question: are people like these seeds found? Whatever is one-sided about the seeds is "
    "one-sided in the audience too.",
    "Sensitive attributes. An audience may lean towards an age, a sex, an origin, a health or a religion that nobody "
    "asked for, by features that stand for them as well. Look at the bars before it decides about housing, credit, "
    "work, prices or anything that the law protects.",
    "The traits are the strongest of many that were compared, so some of them stand out by chance.",
    f"Numbers under {LEAST} people are left out, so that nobody is pointed at; the tables need not add up.",
)


def write_page(found: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the page of an expansion, what `Expansion.as_dict()` returns."""
    return pages.write_page(render(found), path)


def render(found: Mapping[str, Any]) -> str:
    """The page as text, see `write_page`."""
    lists = found["lists"]
    drawn: dict[str, Any] = {}
    for number, one in enumerate(lists):
        drawn |= figures(one, str(number), _edges(found["cut"], one))
    names = ", ".join(one["name"] for one in lists[:3]) + (f" and {len(lists) - 3} more" if len(lists) > 3 else "")
    parts = [
        _chooser(found) if len(lists) > 1 else "",
        *(_article(found, one, number) for number, one in enumerate(lists)),
        _overlaps(found["overlaps"]),
        section("What this does not say", bullets(_CAVEATS)),
    ]
    footer = f"Made by seedrank expand in {found['seconds']:,.1f} seconds."
    return pages.page(f"Audience: {names}", _subtitle(found), "".join(parts), footer, drawn)


def _subtitle(found: Mapping[str, Any]) -> str:
    text = f"Run {found['run']}. {found['eligible']:,} of {found['population']:,} users can be reached"
    text += f", where {found['where']}." if found["where"] else "."
    reasons = {"seeds": "seeds themselves", "lists": "on a list of exclusions", "where": "outside the filter"}
    left = [f"{found['excluded'][key]:,} {what}" for key, what in reasons.items() if found["excluded"].get(key)]
    return text + (f" Left out: {', '.join(left)}." if left else "")


def _band(cut: Mapping[str, Any]) -> tuple[float, float]:
    """The two percents of a band, given as a pair or as the text 1-2."""
    value = cut["value"]
    low, high = value.split("-") if isinstance(value, str) else value
    return float(low), float(high)


def _edges(cut: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[float, ...]:
    return _band(cut) if cut["kind"] == "band" else (one["percent_of_eligible"],)


def _at_size(cut: Mapping[str, Any], one: Mapping[str, Any], method: str) -> tuple[float, float, float]:
    """Recall of a method in the audience's place, its standard error, and the share of the users there.

    Between the sizes that were measured recall is taken as a straight line; nobody is found at 0 %, all at 100 %.
    """
    curve, hidden = one["holdout"]["methods"][method], one["holdout"]["hidden"]
    percent = [0.0, *curve["percent"], 100.0]
    recall = [0.0, *curve["recall"], 1.0]
    low, high = _band(cut) if cut["kind"] == "band" else (0.0, one["percent_of_eligible"])
    found = float(np.interp(high, percent, recall) - np.interp(low, percent, recall))
    inside = max((high - low) / 100, 1e-12)
    return found, float(np.sqrt(max(found * (1 - found), 0.0) / max(hidden, 1))), inside


def _who_they_are(cut: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    size, seeds = f"{one['size']:,} users", f"your {one['match']['matched']:,} seeds"
    if cut["kind"] == "band":
        low, high = _band(cut)
        return f"{size} resemble {seeds} more than most: within the best {high:g}% but not the best {low:g}%"
    if cut["kind"] == "threshold":
        return f"{size} have a similarity of {float(cut['value']):g} or more to {seeds}"
    return f"{size} look most like {seeds}"


def _verdict(cut: Mapping[str, Any], one: Mapping[str, Any]) -> tuple[str, str]:
    """The sentence for everybody, and its color."""
    if not one["size"]:
        return f"No user qualifies: nobody is similar enough to your {one['match']['matched']:,} seeds.", "keep"
    who = _who_they_are(cut, one)
    if "refused" in one["holdout"]:
        return f"{who}. How well this finds hidden seeds was not measured: {one['holdout']['refused']}", "keep"
    recall, error, share = _at_size(cut, one, "look-alike")
    if recall - 1.96 * error <= share:
        times = f"{recall / share:.1f} times as often as by chance, give or take {1.96 * error / share:.1f}"
        return f"{who}, but the hold-out cannot tell this from chance: a hidden seed is found {times}.", "keep"
    return f"{who}; at this size a hidden seed is found {recall / share:.1f} times as often as by chance.", "pick"


def _chooser(found: Mapping[str, Any]) -> str:
    """All lists in one sentence and one table, and the choice of one."""
    rows = []
    lifts = []
    for one in found["lists"]:
        times = "not measured"
        if "refused" not in one["holdout"] and one["size"]:
            recall, _, share = _at_size(found["cut"], one, "look-alike")
            times = f"{recall / share:.1f} times chance"
            lifts.append(recall / share)
        low = "&ndash;" if one["similarity"]["lowest"] is None else f"{one['similarity']['lowest']:.3f}"
        size, seeds = f"{one['size']:,}", f"{one['match']['matched']:,}"
        percent = f"{one['percent_of_eligible']:.3g}%"
        name = f'<div class="wrap">{escape(one["name"])}</div>'
        rows.append([name, seeds, size, percent, low, times])
    options = "".join(
        f'<option value="list-{number}">{escape(one["name"])}</option>' for number, one in enumerate(found["lists"])
    )
    sizes = _span([one["size"] for one in found["lists"]], ",")
    text = f"{len(found['lists'])} audiences of {sizes} users, each of those who look most like the seeds of its list"
    text += f"; a hidden seed is found {_span(lifts, '.1f')} times as often as by chance." if lifts else "."
    head = ["list", "seeds", "audience", "share", "lowest similarity", "hidden seeds found"]
    choice = f'<p class="screen" style="margin-top:12px"><label>Show <select id="chosen">{options}</select></label></p>'
    return pages.verdict(text, False) + section("The lists", table(head, rows, style="number"), choice)


def _span(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _article(found: Mapping[str, Any], one: Mapping[str, Any], number: int) -> str:
    sentence, color = _verdict(found["cut"], one)
    name = f"<h2>{escape(one['name'])}</h2>" if len(found["lists"]) > 1 else ""
    soft = '<p class="soft">{}</p>'.format
    matched = table(["seeds", "ids"], _match(one["match"]), style="number", sortable=False)
    reach = plot(f"reach-{number}", "How many users have at least each similarity.")
    parts = [
        pages.verdict(sentence, color == "pick", name),
        section("Were the seeds found?", f'<div class="short">{matched}</div>'),
        section("How many are how similar?", soft(_shaded(one)), reach),
        section("Does it find people like the seeds?", _holdout(found["cut"], one, number)),
        section("Who they are", _who(one, number)),
    ]
    if one["centroids"]:
        text = "The seeds fall into groups; each member of the audience is nearest to one of them."
        head = ["group", "seeds", "audience", "share", "what stands out"]
        parts.append(section("Which seeds they are like", soft(text), table(head, _centroids(one["centroids"]))))
    return f'<article id="list-{number}">{"".join(parts)}</article>'


def _shaded(one: Mapping[str, Any]) -> str:
    text = "Each point: how many users have at least this similarity."
    if one["similarity"]["lowest"] is None:
        return text
    ends = " to ".join(f"{one['similarity'][end]:.3f}" for end in ("lowest", "highest"))
    return f"{text} The audience is shaded: {one['size']:,} users, similarity {ends}."


def _match(match: Mapping[str, Any]) -> list[list[str]]:
    by = match.get("by") or {}
    names = {"raw": "as they stand", "normalised": "after trimming, in lower case", "sha256": "by SHA-256"}
    how = ", ".join(f"{by[key]:,} {text}" for key, text in names.items() if by.get(key))
    lines = {
        "rows in the file": match["rows"],
        "empty": match["blank"],
        "not readable as an id": match["malformed"],
        "given more than once": match["duplicates"],
        "unknown here": match["unmatched"],
        "also among the negatives": match.get("contradicting", 0),
    }
    rows = [[name, f"{count:,}"] for name, count in lines.items() if count or name == "rows in the file"]
    share = f" <small>{match['match_rate']:.1%} of the ids</small>"
    found = f"<b>{match['matched']:,}</b>{share}"
    return [*rows, [f"<b>found</b>{f'<small>{escape(how)}</small>' if how else ''}", found]]


def _holdout(cut: Mapping[str, Any], one: Mapping[str, Any], number: int) -> str:
    held = one["holdout"]
    if "refused" in held:
        return f'<p class="refused">Not measured: {escape(str(held["refused"]))}</p>'
    text = (
        f"{held['hidden']:,} seeds were hidden and the audience made again from the others. The curves say how many of "
        "the hidden ones it then holds, and how many times as many as a random choice of that size would. Bars: 95% "
        "intervals. Dotted line: this audience."
    )
    rows = []
    for method, curve in held["methods"].items():
        recall, error, share = _at_size(cut, one, method)
        exact = method == "random"
        spread = "" if exact else f"<small>&plusmn; {1.96 * error / share:.2g}</small>"
        auc = "&ndash;" if curve.get("auc") is None else f"{curve['auc']:.3f}"
        lift = cell(f"{recall / share:.2f}{spread}", recall / share)
        rows.append([escape(method), cell(f"{recall:.1%}", recall), lift, auc])
    what = {"recall": "Share of the hidden seeds found, by size.", "lift": "Times as many as by chance, by size."}
    plots = "".join(f"<div>{plot(f'{name}-{number}', label)}</div>" for name, label in what.items())
    found = table(["method", "found at this size", "times chance", "AUC"], rows, style="number")
    better = f"<p>{escape(_beaten(cut, one))}</p>" if _beaten(cut, one) else ""
    return f'<p class="soft">{text}</p>{better}<div class="columns">{plots}</div>{found}'


def _beaten(cut: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Which simpler methods find clearly more of the hidden seeds in the audience's place."""
    ours, error, _ = _at_size(cut, one, "look-alike")
    others = {name: _at_size(cut, one, name) for name in one["holdout"]["methods"] if name != "look-alike"}
    # The methods share the hidden seeds, so that their difference varies less than this.
    better = [name for name, (recall, se, _) in others.items() if recall - ours > 1.96 * float(np.hypot(error, se))]
    names = " and ".join(f"the {name}" for name in better)
    verb = "finds" if len(better) == 1 else "find"
    return f"For these seeds, at this size, {names} {verb} more than the look-alike." if better else ""


def _who(one: Mapping[str, Any], number: int) -> str:
    shown = standing_out(one)
    if not shown:
        return f'<p class="soft">No trait of {LEAST} seeds or more is known of these users.</p>'
    text = "Traits that are more frequent among the seeds than in the population, by how many times (the lift)."
    rows = []
    for found in shown:
        few = found["audience"] is None or found["audience"] < LEAST
        audience = f"&lt; {LEAST}" if few else f"{found['audience']:,}<small>{found['audience_share']:.1%}</small>"
        seeds = f"{found['seeds']:,}<small>{found['seed_share']:.1%}</small>"
        name = f'<div class="wrap">{escape(trait(found["feature"], found["value"]))}</div>'
        values = [found["lift"], found["seeds"], None if few else found["audience"], found["population_share"]]
        texts = [f"{found['lift']:.2f}&times;", seeds, audience, f"{found['population_share']:.1%}"]
        rows.append(
            [name, *(cell(*pair) if pair[1] is not None else pair[0] for pair in zip(texts, values, strict=True))]
        )
    drawn = plot(
        f"who-{number}", "Shares of seeds, audience and population with each trait.", 110 + 44 * len(shown[:BARS])
    )
    head = ["trait", "lift", "seeds", "audience", "population"]
    return f'<p class="soft">{text}</p>{drawn}{table(head, rows, style="number")}'


def _centroids(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for group in sorted(groups, key=lambda group: -(group["members"] or 0)):
        traits = ", ".join(f"{trait(t['feature'], t['value'])} ({t['lift']:.1f}\u00d7)" for t in group["traits"])
        counts = [_count(group["seeds"]), _count(group["members"])]
        shared = group["members"] is not None and group["members"] >= LEAST and group["share"] is not None
        share = f"{group['share']:.1%}" if shared else "&ndash;"
        text = f'<div class="wrap">{escape(traits) or "&ndash;"}</div>'
        rows.append([str(group["centroid"]), *counts, share, text])
    return rows


def _count(count: int | None) -> str:
    return f"&lt; {LEAST}" if count is None or count < LEAST else f"{count:,}"


def _overlaps(overlaps: Sequence[Mapping[str, Any]]) -> str:
    if not overlaps:
        return ""
    rows = []
    for pair in overlaps:
        few = pair["both"] is None or pair["both"] < LEAST
        shares = ["&ndash;"] * 3 if few else [f"{pair['of_a']:.1%}", f"{pair['of_b']:.1%}", f"{pair['jaccard']:.3f}"]
        name = f"{escape(pair['a'])} and {escape(pair['b'])}"
        rows.append([f'<div class="wrap">{name}</div>', _count(pair["both"]), *shares])
    head = ["audiences", "in both", "of the first", "of the second", "Jaccard"]
    return section("How far the audiences overlap", table(head, rows, style="number"))
