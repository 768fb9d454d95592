"""Terminal tables of an audience expansion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

__all__ = ["expansion_table"]

TOLD = 10  # over-indexing values of a list
PROFILED = 5  # lists whose over-indexing values are shown; the report has all
FEW = "<20"  # stands for a count that is not told
SHOWN = (1, 5, 10)  # percent of the population: columns of the hold-out
_HOW = {"normalised": "found without case and white space", "sha256": "found by digest"}


def _table(title: str, words: int, columns: Sequence[str]) -> Table:
    """A table whose first `words` columns are text, and the others numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < words else "right", no_wrap=number >= words)
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))  # a name is no markup


def _count(value: int | None) -> str:
    return FEW if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def expansion_table(found: Mapping[str, Any], out: Path) -> Group:
    """Matches, audiences, hold-out, who the seeds are, and overlaps."""
    lists, excluded = found["lists"], found["excluded"]
    unknown = f" (ids that nobody has: {excluded['unknown']:,})" if excluded["unknown"] else ""
    parts: list[Any] = [
        Text(
            f"{found['population']:,} users, {found['eligible']:,} to choose from: {excluded['lists']:,} are on a list "
            f"to leave out{unknown}; {_count(excluded['where'])} do not meet the filter"
        ),
        *("", _matches(lists), "", _audiences(lists), "", _holdouts(lists)),
    ]
    for one in lists[:PROFILED]:
        parts += ["", _profile(one)] if one["over_indexing"] else []
    if found["overlaps"]:
        parts += ["", _overlaps(found["overlaps"])]
    return Group(*parts, "", Text(f"wrote {out} in {found['seconds']:.1f} s"))


def _matches(lists: Sequence[Mapping[str, Any]]) -> Group:
    """What became of the rows of each list."""
    names = {
        "rows": "rows",
        "matched": "seeds",
        "unmatched": "unknown",
        "duplicates": "twice",
        "malformed": "bad",
        "blank": "empty",
        "contradicting": "negative",
    }
    table = _table("seeds", 1, ["list", *names.values(), "match rate"])
    notes = []
    for one in lists:
        match = one["match"]
        _row(table, one["name"], *(f"{match[name]:,}" for name in names), _share(match["match_rate"]))
        by = [f"{count:,} {_HOW[how]}" for how, count in match["by"].items() if count and how != "raw"]
        by += [f"{match['ambiguous']:,} of the unknown fit several users"] if match["ambiguous"] else []
        notes += [Text(f"{one['name']}: {', '.join(by)}")] if by else []
    return Group(table, *notes)


def _audiences(lists: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("audience", 1, ["list", "users", "of eligible", "similarity from", "median", "to"])
    for one in lists:
        ends = (_number(one["similarity"][name]) for name in ("lowest", "median", "highest"))
        _row(table, one["name"], f"{one['size']:,}", f"{one['percent_of_eligible']:.2f}%", *ends)
    return table


def _holdouts(lists: Sequence[Mapping[str, Any]]) -> Group:
    """Recall and lift of hidden seeds at some sizes."""
    title = "hold-out: hidden seeds among the most similar users (times chance)"
    table = _table(title, 2, ["list", "method", *(f"in {percent}%" for percent in SHOWN), "AUC"])
    refused = []
    for one in lists:
        if "refused" in one["holdout"]:
            refused.append(Text(f"{one['name']}: no hold-out: {one['holdout']['refused']}"))
            continue
        for method, curve in one["holdout"]["methods"].items():
            places = [curve["percent"].index(percent) for percent in SHOWN]
            cells = [f"{curve['recall'][at]:.1%} ({curve['lift'][at]:.1f}x)" for at in places]
            _row(table, one["name"], method, *cells, _number(curve["auc"]))
    return Group(*([table] if table.row_count else []), *refused)


def _profile(one: Mapping[str, Any]) -> Table:
    heads = ["attribute", "value", "seeds", "of seeds", "of population", "of audience", "lift"]
    table = _table(f"who the seeds of {one['name']} are", 2, heads)
    for row in one["over_indexing"][:TOLD]:
        shares = (_share(row[name]) for name in ("seed_share", "population_share", "audience_share"))
        _row(table, row["feature"], row["value"], _count(row["seeds"]), *shares, _number(row["lift"], 2))
    return table


def _overlaps(overlaps: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("overlap of audiences", 2, ["a", "b", "in both", "of a", "of b", "Jaccard"])
    for row in overlaps:
        shares = (_share(row[name]) for name in ("of_a", "of_b"))
        _row(table, row["a"], row["b"], _count(row["both"]), *shares, _number(row["jaccard"], 3))
    return table
