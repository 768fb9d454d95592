"""A dataset on disk: a folder of Parquet (or CSV, CSV.gz) tables and one `dataset.toml`."""

import contextlib
import csv
import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ranking.atomic import atomic_directory
from ranking.data.columns import Column, convert
from ranking.data.multi import split_multi
from ranking.data.schema import Schema, load_schema, parse_schema
from ranking.errors import UserError

__all__ = ["TABLES", "Dataset", "write_dataset"]

TABLES = ("impressions", "users", "items", "behaviors", "candidates", "requests")

_SUFFIXES = (".parquet", ".csv", ".csv.gz")


class Dataset:
    """The tables of one folder, each read and validated when it is first asked for.

    Ids come back exactly as declared (int64 or text), times as int64 (-1 = missing), labels as int8, categorical and
    multi features as text (missing = NaN), numbers as float64 (missing = NaN). Columns that nothing declares are left
    out. Tables this version does not know (and folders, such as a simulator's `truth`) are ignored.

    Args:
        directory: str or Path. The folder with `dataset.toml`.

    Raises:
        UserError: the folder, its `dataset.toml` or (on access) a table breaks a rule.

    Example:
        ```python
        dataset = Dataset("data/mine")
        dataset.impressions["click"].mean()
        ```
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)
        self.schema = load_schema(self.path / "dataset.toml")
        self._cache: dict[str, pd.DataFrame] = {}

    @property
    def impressions(self) -> pd.DataFrame:
        """What was shown, with labels."""
        return self.table("impressions")

    @property
    def users(self) -> pd.DataFrame:
        """One row a user."""
        return self.table("users")

    @property
    def items(self) -> pd.DataFrame:
        """One row an item."""
        return self.table("items")

    @property
    def behaviors(self) -> pd.DataFrame:
        """The users' behaviours, all fields in use; `behavior(field)` gives one field with exact value types."""
        return self.table("behaviors")

    @property
    def candidates(self) -> pd.DataFrame:
        """What could have been shown, with score parts and propensities."""
        return self.table("candidates")

    @property
    def requests(self) -> pd.DataFrame:
        """One row a request."""
        return self.table("requests")

    @property
    def observed_until(self) -> int:
        """When the log was closed: as declared, or just after the last impression."""
        declared = self.schema.observed_until
        return int(self.impressions["timestamp"].max()) + 1 if declared is None else declared

    def left_out(self, name: str) -> list[str]:
        """The stored columns of a table that nothing declares: they are not read."""
        path = self.file(name)
        return [column for column in _header(path) if column not in _columns(name, self.schema)] if path else []

    def stored_rows(self, name: str) -> int:
        """The rows of a table's file, before validation and before unused behaviour fields are left out."""
        path = self.file(name)
        if path is None:
            return 0
        if path.suffix == ".parquet":
            return int(pa.parquet.read_metadata(path).num_rows)
        return int(_read_csv(path, _header(path)[:1]).num_rows)

    def has(self, name: str) -> bool:
        """Whether the folder holds the table."""
        return self.file(name) is not None

    def file(self, name: str) -> Path | None:
        """The file of a table, or None where it is absent."""
        if name not in TABLES:
            raise UserError(f"`table` should be one of {', '.join(TABLES)}. Received: {name!r}.")
        found = [self.path / (name + suffix) for suffix in _SUFFIXES if (self.path / (name + suffix)).is_file()]
        if len(found) > 1:
            raise UserError(f"{self.path}: `{name}` should be one file. Received: {', '.join(f.name for f in found)}.")
        return found[0] if found else None

    def table(self, name: str) -> pd.DataFrame:
        """A table, validated and typed; the same object on every call.

        Raises:
            UserError: the table is absent, or a column or a value breaks a rule.
        """
        if name not in self._cache:
            path = self.file(name)
            if path is None:
                raise UserError(f"{self.path} should hold a table `{name}` ({', '.join(_SUFFIXES)}).")
            frame = _read(path, _columns(name, self.schema))
            for feature in self.schema.side("context" if name == "impressions" else name.removesuffix("s")):
                if feature.weights:
                    split_multi(frame[feature.name], feature, f"{path}: column `{feature.name}`")
            self._cache[name] = _CHECKS[name](frame, path, self.schema)
        return self._cache[name]

    def behavior(self, field: str) -> pd.DataFrame:
        """The rows of one behaviour field: user_id, value (an item id as declared, or text), timestamp, order."""
        vocabulary = self.schema.behavior_fields().get(field)
        if vocabulary is None:
            raise UserError(f"{self.path}: dataset.toml should use the behaviour `{field}` before it is asked for.")
        rows = self.behaviors
        rows = rows[rows["field"] == field].drop(columns="field").reset_index(drop=True)
        if vocabulary == "item" and self.schema.item_id == "int64" and rows["value"].dtype != np.int64:
            stored = pa.chunked_array([pa.array(rows["value"], pa.string())])
            rows["value"] = convert(
                stored, Column("int64"), f"{self.file('behaviors')}: field `{field}`, column `value`"
            )
        return rows


def write_dataset(
    directory: str | Path,
    toml_text: str,
    tables: Mapping[str, pd.DataFrame] | Iterable[tuple[str, pd.DataFrame | pa.Table]],
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a dataset folder at once: it appears complete, or not at all.

    Args:
        directory: str or Path. The folder to make.
        toml_text: str. The text of its `dataset.toml`; it is parsed first.
        tables: dict of name -> DataFrame; or an iterable of (name, DataFrame or pyarrow Table) pairs, a stream:
            those of one name are written one after the other. A name may have a folder, as in `truth/impressions`.
        overwrite: bool. Whether a folder that exists is replaced. Defaults to `False`.

    Returns:
        Path. The folder.
    """
    parse_schema(toml_text, "dataset.toml")
    with atomic_directory(directory, overwrite=overwrite) as temporary, contextlib.ExitStack() as stack:
        (temporary / "dataset.toml").write_text(toml_text, encoding="utf-8")
        writers: dict[str, pa.parquet.ParquetWriter] = {}
        for name, frame in tables.items() if isinstance(tables, Mapping) else tables:
            schema = writers[name].schema if name in writers else None
            ready = isinstance(frame, pa.Table)
            table = (
                pa.Table.from_pandas(frame, schema, preserve_index=False) if isinstance(frame, pd.DataFrame) else frame
            )
            table = table.replace_schema_metadata(None)
            if name not in writers:
                path = temporary / f"{name}.parquet"
                path.parent.mkdir(exist_ok=True)
                # Without the stored schema a dictionary column comes back as the plain column it stands for.
                writer = pa.parquet.ParquetWriter(path, table.schema, compression="zstd", store_schema=not ready)
                writers[name] = stack.enter_context(writer)
            writers[name].write_table(table)
    return Path(directory)


def _columns(name: str, schema: Schema) -> dict[str, Column]:
    """Column name -> what it should hold, for one table."""
    user, item = Column(schema.user_id), Column(schema.item_id)
    request, time = Column("request"), Column("time")
    optional_time = Column("time", required=False, nullable=True)
    optional_number = Column("numeric", required=False, nullable=True)
    optional_text = Column("categorical", required=False, nullable=True)
    optional_count = Column("integer", required=False, nullable=True)

    def features(side: str, required: bool = True) -> dict[str, Column]:
        return {feature.name: Column(feature.kind, required, nullable=True) for feature in schema.side(side)}

    if name == "impressions":
        labels = {label: Column("label") for label in schema.funnel}
        times = {f"{label}_time": optional_time for label in schema.funnel}
        fixed = {"request_id": request, "timestamp": time, "user_id": user, "item_id": item, "position": optional_count}
        return {**fixed, **labels, **times, "value": optional_number, **features("context")}
    if name == "users":
        return {"user_id": user, **features("user")}
    if name == "items":
        return {"item_id": item, "price": optional_number, "born": optional_time, **features("item")}
    if name == "behaviors":
        fields = schema.behavior_fields().values()
        value = item if all(vocabulary == "item" for vocabulary in fields) else Column("categorical")
        order = Column("integer", required=False)
        return {"user_id": user, "field": Column("string"), "value": value, "timestamp": time, "order": order}
    if name == "candidates":
        numbers = ("similarity", "pctr", "pcvr", "price", "score", "position_propensity", "exposure_propensity")
        scored = dict.fromkeys(numbers, optional_number)
        counts = {"position": optional_count, "pool": optional_count}
        return {"request_id": request, "item_id": item, **counts, **scored}
    text = dict.fromkeys(("segment", "policy_id", "exploration"), optional_text)
    number = {"epsilon": optional_number, "temperature": optional_number, "slots": optional_count}
    return {"request_id": request, "timestamp": time, "user_id": user, **text, **number, **features("context", False)}


def _read(path: Path, columns: Mapping[str, Column]) -> pd.DataFrame:
    try:
        table = _read_parquet(path, columns) if path.suffix == ".parquet" else _read_csv(path, columns)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    for name, column in columns.items():
        if column.required and name not in table.column_names:
            raise UserError(f"{path}: should have a column `{name}`. Received: {', '.join(_header(path))}.")
    frame = {}
    for name in table.column_names:
        frame[name] = convert(table.column(name), columns[name], f"{path}: column `{name}`")
    return pd.DataFrame(frame)


def _header(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(pa.parquet.read_schema(path).names)
    opened = gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else None
    with opened or open(path, encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(stream), [])


def _wanted(path: Path, columns: Iterable[str]) -> list[str]:
    header = _header(path)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path}: should have one column of each name. Received: `{twice}` more than once.")
    return [name for name in columns if name in header]


def _read_parquet(path: Path, columns: Iterable[str]) -> pa.Table:
    return pa.parquet.read_table(path, columns=_wanted(path, columns))


def _read_csv(path: Path, columns: Iterable[str]) -> pa.Table:
    wanted = _wanted(path, columns)
    convert_options = pa.csv.ConvertOptions(
        include_columns=wanted,
        column_types=dict.fromkeys(wanted, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    parse_options = pa.csv.ParseOptions(newlines_in_values=True)
    return pa.csv.read_csv(path, convert_options=convert_options, parse_options=parse_options)


def _first(broken: pd.Series, path: Path, rule: str, frame: pd.DataFrame, column: str) -> None:
    """Raises the error for the first broken row, if there is one."""
    if broken.any():
        row = int(np.flatnonzero(broken)[0])
        value = frame[column].iloc[row]
        value = value.item() if isinstance(value, np.generic) else value
        more = f" ({int(broken.sum()):,} such rows)" if broken.sum() > 1 else ""
        raise UserError(f"{path}: column `{column}`: {rule}. Received: {value!r} in row {row + 1}{more}.")


def _check_impressions(frame: pd.DataFrame, path: Path, schema: Schema) -> pd.DataFrame:
    if frame.empty:
        raise UserError(f"{path}: should have at least one row. Received: none.")
    rule = "a conversion should be 0 where click is 0 (drop such labels, and count what was dropped)"
    _first((frame["conversion"] == 1) & (frame["click"] == 0), path, rule, frame, "conversion")
    for label in schema.funnel:
        column = f"{label}_time"
        if column in frame:
            given = frame[column] >= 0
            _first(given & (frame[label] == 0), path, f"should be empty where {label} is 0", frame, column)
            early = given & (frame[column] < frame["timestamp"])
            _first(early, path, "should not be before the impression's timestamp", frame, column)
    return frame


def _check_ids(frame: pd.DataFrame, path: Path, key: list[str]) -> pd.DataFrame:
    rule = f"a row's {' and '.join(key)} should be unique in the table"
    _first(frame.duplicated(key), path, rule, frame, key[-1])
    return frame


def _check_behaviors(frame: pd.DataFrame, path: Path, schema: Schema) -> pd.DataFrame:
    used = schema.behavior_fields()
    frame = frame[frame["field"].isin(list(used))].reset_index(drop=True)
    frame["field"] = frame["field"].astype("category")
    if "order" not in frame:
        frame["order"] = np.int64(0)
    return frame


def _check_candidates(frame: pd.DataFrame, path: Path, schema: Schema) -> pd.DataFrame:
    if "position_propensity" in frame:
        outside = (frame["position_propensity"] <= 0) | (frame["position_propensity"] > 1 + 1e-9)
        _first(outside, path, "should be above 0 and at most 1", frame, "position_propensity")
    if "exposure_propensity" in frame:
        outside = (frame["exposure_propensity"] < 0) | (frame["exposure_propensity"] > 1 + 1e-9)
        _first(outside, path, "should be from 0 to 1", frame, "exposure_propensity")
    for column in ("similarity", "pctr", "pcvr", "score"):
        if column in frame:
            frame[column] = frame[column].astype(np.float32)
    return _check_ids(frame, path, ["request_id", "item_id"])


_CHECKS = {
    "impressions": _check_impressions,
    "users": lambda frame, path, schema: _check_ids(frame, path, ["user_id"]),
    "items": lambda frame, path, schema: _check_ids(frame, path, ["item_id"]),
    "behaviors": _check_behaviors,
    "candidates": _check_candidates,
    "requests": lambda frame, path, schema: _check_ids(frame, path, ["request_id"]),
}
