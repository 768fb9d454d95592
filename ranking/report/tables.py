"""Terminal tables of what the commands found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

__all__ = ["evaluation_table", "ranking_table", "training_table"]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _cell(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _with_error(metrics: Mapping[str, float], name: str, digits: int = 4) -> str:
    value, error = metrics[name], metrics[f"{name}_se"]
    return _cell(value) if value != value else f"{value:.{digits}f} ±{_cell(error, digits).removeprefix('0')}"


def evaluation_table(found: Mapping[str, Any]) -> Group:
    """The metrics of every model with their standard errors, the paired differences and the similarity alone."""
    heads = {
        "click": "click, all rows",
        "cvr": "conversion, clicked rows",
        "ctcvr": "click and conversion, all rows",
        "ctcvr_common": "click and conversion, all rows: own pcvr, the pctr of base for all (order only)",
    }
    parts: list[Any] = [
        f"{found['rows']:,} rows of {found['window']}, state {found['state']}; value ± standard error over users"
    ]
    for head, words in heads.items():
        models = {model: metrics[head] for model, metrics in found["models"].items() if head in metrics}
        if not models:
            continue
        table = _table(words, "model", "AUC", "GAUC", "NDCG", "log loss", "PCOC", "ECE")
        for column in table.columns[1:]:
            column.no_wrap = False  # the error goes under the value where the terminal is narrow
        for model, of_head in models.items():
            cells = [_with_error(of_head, name) for name in ("auc", "gauc", "ndcg", "logloss")]
            table.add_row(model, *cells, _with_error(of_head, "pcoc", 2), _with_error(of_head, "ece"))
        parts += ["", table]
    rows = [d for d in found["differences"] if d["from"] == "no_similarity" and d["metric"] == "auc"]
    if rows:
        table = _table(
            "effect of the similarity: AUC of seedrank minus no_similarity, paired by user",
            "head",
            "items",
            "difference",
            "s.e.",
        )
        for row in rows:
            table.add_row(row["head"], row["items"], f"{row['difference']:+.4f}", _cell(row["se"]))
        parts += ["", table]
    similarity = found["similarity"]
    parts += [
        "",
        f"similarity alone: click AUC {_cell(similarity['auc'])} (s.e. {_cell(similarity['auc_se'])}) on "
        f"{similarity['rows']:,} rows that have one; precision@10 over the exposed users of each item "
        f"{_cell(similarity['precision_at_10'])} (random order {_cell(similarity['precision_at_10_random'])})",
        f"unknown ids: {found['unknown']['users']:,} rows by user, {found['unknown']['items']:,} by item",
    ]
    return Group(*parts)


def training_table(info: Mapping[str, Any], out: Path) -> Group:
    """What each stage saw and how fast."""
    table = _table("training", "stage", "examples", "examples/s", "loss by epoch", "AUC, held-out users")
    for stage, found in info["stages"].items():
        losses, areas = (" ".join(f"{value:.4f}" for value in found.get(name, [])) for name in ("loss", "auc"))
        table.add_row(stage, f"{found['examples']:,}", f"{found['examples_per_second']:,.0f}", losses, areas or "-")
    fields = _table("field attention: what speaks for a user", "field", "has it", "mean weight", "10 %", "90 %")
    for row in info["stages"]["representation"]["field_attention"]:
        cells = (_cell(row[name], 3) for name in ("mean", "low", "high"))
        fields.add_row(row["field"], f"{row['present']:.0%}", *cells)
    esmm, rows = info["stages"]["esmm"], info["rows"]
    lines = [
        "ESMM: "
        + ", ".join(f"{n} pass(es) for the {task}" for task, n in esmm["epochs"].items())
        + " chosen on the calibrate window"
        + (", then fitted again on train + calibrate + tune" if info["refit"] else ""),
        f"rows: {rows['trained']:,} trained, {rows['repeats_dropped']:,} dropped (the user was a seed already), "
        f"{rows['immature']:,} without a final conversion label, {rows['with_similarity']:.0%} with a similarity",
        f"wrote {out} in {info['seconds']:.0f} s. Next: seedrank evaluate --run {out} --data {info['dataset']}",
    ]
    parts: list[Any] = [table, "", fields] if fields.row_count else [table]
    return Group(*parts, "", *lines)


def ranking_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Candidates of one request, the best first."""
    table = _table("", "item", "score", "similarity", "pctr", "pcvr", "pctcvr", "known")
    for row in rows:
        known = "yes" if row["known_item"] and row["known_user"] else "no"
        similarity = _cell(row["similarity"]) if row["has_similarity"] else "-"
        table.add_row(
            str(row["item_id"]),
            _cell(row["score"]),
            similarity,
            *(_cell(row[name], 5) for name in ("pctr", "pcvr", "pctcvr")),
            known,
        )
    return table
