"""From the log that `serving.slate_log` writes, and the clicks on it, to a dataset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ranking.data.import_report import ImportReport
from ranking.data.schema import load_schema
from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError

__all__ = ["import_served"]

_CLICK_COLUMNS = ("click_time", "conversion_time", "value")
_KEY = ["request_id", "item_id"]


def import_served(
    log: str | Path, clicks: str | Path, like: str | Path, out: str | Path, *, overwrite: bool = False
) -> ImportReport:
    """Writes the dataset of a slate log: what was shown are its impressions, what could have been its candidates.

    `users`, `items` and `behaviors` are those of `like`, and so is dataset.toml: its windows and `observed_until`
    should be those of the log.

    Args:
        log: str or Path. A folder of a `SlateLog`; parts that are being written are not read.
        clicks: str or Path. Parquet or CSV, a row a click: request_id, item_id, and where known click_time,
            conversion_time (ms, empty where it did not convert) and value. Of several rows the first times count.
        like: str or Path. A dataset folder.
        out: str or Path. The folder to make.
        overwrite: bool. Whether a dataset that exists is replaced. Defaults to `False`.

    Returns:
        `ImportReport`. Read are the shown rows; those of a request_id that was logged before are rejected.

    Raises:
        UserError: no parts, parts of different columns, or a file that breaks a rule.
    """
    load_schema(like)
    tables = {name: _parts(Path(log), name) for name in ("requests", "candidates")}
    report = ImportReport(str(out), "what the clicks file says")
    requests, candidates = (tables[name].to_pandas(types_mapper=_exact) for name in ("requests", "candidates"))
    report.read = int((candidates["position"] >= 0).sum())
    twice = requests["request_id"].duplicated()
    if twice.any():
        # Which candidates belong to which of the two is not known: the request goes whole.
        names = requests.loc[twice, "request_id"]
        requests = requests[~requests["request_id"].isin(names)]
        again = candidates["request_id"].isin(names)
        report.reject("request_id logged twice", int((candidates["position"][again] >= 0).sum()))
        candidates = candidates[~again]
    if candidates["exposure_propensity"].isna().any():
        candidates = candidates.drop(columns="exposure_propensity")  # the replay makes it for all
    shown = candidates.loc[candidates["position"] >= 0, [*_KEY, "position"]]
    context = [name for name in requests if name not in _POLICY]
    impressions = shown.merge(requests[["request_id", *context]], on="request_id", validate="many_to_one")
    impressions = impressions.sort_values("timestamp", kind="stable")
    impressions = _joined(impressions, _clicks(Path(clicks), tables["candidates"].schema), report)
    report.accepted = len(impressions)
    report.clicks, report.conversions = int(impressions["click"].sum()), int(impressions["conversion"].sum())
    found = {"impressions": impressions, "candidates": candidates, "requests": requests}

    def stream() -> Iterator[tuple[str, Any]]:
        yield from found.items()
        dataset = Dataset(like)
        for name in ("users", "items", "behaviors"):
            if dataset.has(name):
                yield name, dataset.table(name)

    text = (Path(like) / "dataset.toml").read_text(encoding="utf-8")
    write_dataset(out, text, stream(), overwrite=overwrite)
    report.rows = {name: len(frame) for name, frame in found.items()}
    return report


_POLICY = ("request_id", "segment", "policy_id", "exploration", "epsilon", "temperature", "slots")


def _exact(kind: pa.DataType) -> Any:
    """Integers with gaps stay integers."""
    return pd.Int64Dtype() if pa.types.is_integer(kind) else None


def _parts(log: Path, name: str) -> pa.Table:
    """One table of all parts, in the order of their times."""
    files = sorted(log.glob(f"part-*/{name}.parquet"))
    if not files:
        raise UserError(f"{log} should hold parts of a slate log, part-*/{name}.parquet. Received: none.")
    tables = [pa.parquet.read_table(path) for path in files]
    for path, table in zip(files, tables, strict=True):
        if table.schema != tables[0].schema:
            raise UserError(f"{path} should have the columns of {files[0]}. Received: {', '.join(table.column_names)}.")
    return pa.concat_tables(tables)


def _clicks(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """The clicks, ids of the types of the log."""
    types = {name: schema.field(name).type for name in _KEY}
    types |= {"click_time": pa.int64(), "conversion_time": pa.int64(), "value": pa.float64()}
    try:
        if path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
        else:
            options = pa.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
            table = pa.csv.read_csv(path, convert_options=options)
        missing = [name for name in _KEY if name not in table.column_names]
        if missing:
            raise UserError(f"{path}: should have a column `{missing[0]}`. Received: {', '.join(table.column_names)}.")
        columns = [name for name in types if name in table.column_names]
        table = table.select(columns).cast(pa.schema([(name, types[name]) for name in columns]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    return table.to_pandas(types_mapper=_exact)


def _joined(impressions: pd.DataFrame, clicks: pd.DataFrame, report: ImportReport) -> pd.DataFrame:
    """The impressions with their labels; clicks on what was not shown are counted."""
    times = clicks.groupby(_KEY, sort=False, as_index=False).min()
    first = times if len(clicks.columns) > len(_KEY) else clicks.drop_duplicates()
    report.note("clicks more than once on one impression", len(clicks) - len(first))
    joined = impressions.merge(first.assign(click=1), on=_KEY, how="left", validate="one_to_one")
    joined["click"] = joined["click"].fillna(0).astype("int8")
    report.note("clicks on what the log did not show", len(first) - int(joined["click"].sum()))
    converted = joined["conversion_time"].notna() if "conversion_time" in joined else joined["click"] < 0
    joined["conversion"] = converted.astype("int8")
    return joined
