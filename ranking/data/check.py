"""`seedrank data check`: what is in a dataset, what is broken, and what looks wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranking.data.schema import LABEL_COLUMNS, Schema
from ranking.data.tables import TABLES, Dataset
from ranking.errors import UserError

__all__ = ["CheckReport", "check", "print_report"]

_EARLIEST_MS = 10**11  # March 1973: smaller times are most likely seconds
_PURE_ROWS_A_VALUE = 10


@dataclass
class CheckReport:
    """What a check found.

    Args:
        path: str. The folder.
        tables: dict. Table -> its numbers: rows stored, accepted and rejected, and what suits the table.
        windows: dict. Window -> impressions, clicks, conversions.
        errors: list of str. Broken rules: such a dataset can't be used.
        warnings: list of str. What can be used, and should be looked at.
    """

    path: str
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    windows: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {"ok": self.ok, **vars(self)}


def check(directory: str | Path, *, progress: Callable[[str, int, int], None] | None = None) -> CheckReport:
    """Reads every table of a dataset and reports counts, rates, broken rules and oddities.

    Args:
        directory: str or Path. The dataset.
        progress: callable or None. Called with (table, tables done, tables in all).

    Returns:
        CheckReport. A broken table is one of its `errors`; the other tables are still read.

    Raises:
        UserError: `dataset.toml` itself is absent or broken.
    """
    dataset = Dataset(directory)
    report = CheckReport(str(directory))
    describe = {
        "impressions": _impressions,
        "users": _side,
        "items": _side,
        "behaviors": _behaviors,
        "candidates": _candidates,
        "requests": _requests,
    }
    for done, name in enumerate(TABLES):
        if progress is not None:
            progress(name, done, len(TABLES))
        try:
            if dataset.has(name) or name == "impressions":
                frame = dataset.table(name)
                read = dataset.stored_rows(name)
                numbers: dict[str, Any] = {"read": read, "accepted": len(frame), "rejected": read - len(frame)}
                report.tables[name] = numbers
                if dataset.left_out(name):
                    numbers["columns left out"] = dataset.left_out(name)
                describe[name](dataset, name, numbers, report)
        except UserError as error:
            report.errors.append(str(error))
    if progress is not None:
        progress("", len(TABLES), len(TABLES))
    return report


def _moment(value: int, schema: Schema) -> str | int:
    if schema.time == "ordinal":
        return int(value)
    return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _impressions(dataset: Dataset, name: str, numbers: dict[str, Any], report: CheckReport) -> None:
    schema, rows = dataset.schema, dataset.impressions
    time, click, conversion = rows["timestamp"], rows["click"], rows["conversion"]
    until = dataset.observed_until
    numbers |= {
        "users": rows["user_id"].nunique(),
        "items": rows["item_id"].nunique(),
        "requests": rows["request_id"].nunique(),
        "clicks": int(click.sum()),
        "click rate": round(float(click.mean()), 6),
        "conversions": int(conversion.sum()),
        "conversion rate of clicks": round(float(conversion.sum() / max(click.sum(), 1)), 6),
        "first": _moment(time.min(), schema),
        "last": _moment(time.max(), schema),
        "immature": int((time + schema.attribution_ms["conversion"] > until).sum()),
        "exact duplicate rows": int(rows.duplicated().sum()),
    }
    if schema.time == "epoch" and time.max() < _EARLIEST_MS:
        report.warnings.append(f"{name}: the last timestamp is {time.max()}: seconds? Times should be milliseconds.")
    for column in ("timestamp", *(f"{label}_time" for label in schema.funnel)):
        future = int((rows[column] > until).sum()) if column in rows else 0
        if future:
            told = f"{name}: {future:,} values of `{column}` are after observed_until ({_moment(until, schema)})."
            report.warnings.append(told)
    inside = np.zeros(len(rows), bool)
    for window, (start, end) in schema.windows.items():
        within = ((time >= start) & (time < end)).to_numpy()
        inside |= within
        counts = {"impressions": within.sum(), "clicks": click[within].sum(), "conversions": conversion[within].sum()}
        report.windows[window] = {what: int(count) for what, count in counts.items()}
        if not within.any() and not (window == "lookalike" and schema.seed_sample.startswith("behaviors.")):
            report.warnings.append(f"[windows] {window}: no impression falls into it.")
    report.windows["(outside)"] = {
        "impressions": int((~inside).sum()),
        "clicks": int(click[~inside].sum()),
        "conversions": int(conversion[~inside].sum()),
    }
    for feature in schema.side("context"):
        _look_at_feature(rows[feature.name], f"context feature `{feature.name}`", numbers, report)
        values = rows.groupby(feature.name, dropna=False)["click"].agg(["min", "max"])
        decided = bool((values["min"] == values["max"]).all()) and 0 < click.mean() < 1
        if decided and len(values) * _PURE_ROWS_A_VALUE < len(rows):
            told = f"context feature `{feature.name}` decides `click` alone: a label among the features?"
            report.warnings.append(told)


def _look_at_feature(values: pd.Series, what: str, numbers: dict[str, Any], report: CheckReport) -> None:
    missing = float(values.isna().mean())
    if missing == 1:
        report.warnings.append(f"{what} is empty in every row.")
    elif values.nunique() == 1 and not missing:
        report.warnings.append(f"{what} has one value only: {values.iloc[0]!r}.")
    elif missing:
        numbers.setdefault("missing", {})[what.split("`")[1]] = f"{missing:.1%}"


def _side(dataset: Dataset, name: str, numbers: dict[str, Any], report: CheckReport) -> None:
    side = name.removesuffix("s")
    table = dataset.table(name)
    for feature in dataset.schema.side(side):
        _look_at_feature(table[feature.name], f"{side} feature `{feature.name}`", numbers, report)
    for column in dataset.left_out(name):
        if column in LABEL_COLUMNS:
            report.warnings.append(f"{name}: the column `{column}` is a label's name; it is not read.")
    if "impressions" in report.tables:
        shown = dataset.impressions[f"{side}_id"].drop_duplicates()
        absent = int((~shown.isin(table[f"{side}_id"])).sum())
        numbers["shown but absent"] = absent
        if absent:
            report.warnings.append(f"{name}: {absent:,} of {len(shown):,} {name} of the impressions have no row.")


def _behaviors(dataset: Dataset, name: str, numbers: dict[str, Any], report: CheckReport) -> None:
    schema, rows = dataset.schema, dataset.behaviors
    numbers["rejected"] = 0
    numbers["of fields not in use"] = numbers["read"] - len(rows)
    numbers["fields"] = {str(value): int(count) for value, count in rows["field"].value_counts().items()}
    numbers["users"] = rows["user_id"].nunique()
    for used in schema.behavior_fields():
        if used not in numbers["fields"]:
            report.errors.append(f"{dataset.file(name)}: dataset.toml uses the field `{used}`, and no row has it.")
    if "impressions" in report.tables:
        future = int((rows["timestamp"] > dataset.observed_until).sum())
        if future:
            report.warnings.append(f"{name}: {future:,} timestamps are after observed_until.")


def _candidates(dataset: Dataset, name: str, numbers: dict[str, Any], report: CheckReport) -> None:
    rows = dataset.candidates
    numbers["requests"] = rows["request_id"].nunique()
    numbers["candidates a request"] = round(len(rows) / max(numbers["requests"], 1), 2)
    if "position" in rows:
        numbers["shown"] = int((rows["position"] >= 0).sum())
    for column in ("position_propensity", "exposure_propensity"):
        shown = rows["position"] >= 0 if "position" in rows else np.ones(len(rows), bool)
        missing = int(rows.loc[shown, column].isna().sum()) if column in rows else None
        numbers[f"shown without {column}"] = "no such column" if missing is None else missing
    if not dataset.has("requests"):
        report.errors.append(f"{dataset.path}: a `candidates` table should come with a `requests` table.")
        return
    known = rows["request_id"].drop_duplicates().isin(dataset.requests["request_id"])
    if not known.all():
        told = f"{dataset.file(name)}: {int((~known).sum()):,} request ids should be in `requests`, and are not."
        report.errors.append(told)


def _requests(dataset: Dataset, name: str, numbers: dict[str, Any], report: CheckReport) -> None:
    rows = dataset.requests
    numbers["users"] = rows["user_id"].nunique()
    for column in ("policy_id", "exploration", "segment"):
        if column in rows:
            numbers[column] = {str(value): int(count) for value, count in rows[column].value_counts().head(10).items()}


def print_report(report: CheckReport) -> None:
    """Prints a report as tables for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for name, numbers in report.tables.items():
        table = Table(title=name, title_justify="left", show_header=False)
        for what, value in numbers.items():
            if isinstance(value, dict):
                value = ", ".join(f"{key} {count}" for key, count in value.items())
            elif isinstance(value, list):
                value = ", ".join(value)
            table.add_row(what, escape(f"{value:,}" if isinstance(value, int) else str(value)))
        console.print(table)
    table = Table("window", "impressions", "clicks", "conversions", title="windows", title_justify="left")
    for window, counts in report.windows.items():
        table.add_row(window, *(f"{count:,}" for count in counts.values()))
    console.print(table)
    for told in report.warnings:
        console.print(f"[yellow]warning[/] {escape(told)}")
    for told in report.errors:
        console.print(f"[red]error[/] {escape(told)}")
    console.print("[green]no rule is broken[/]" if report.ok else f"[red]{len(report.errors)} rules are broken[/]")
