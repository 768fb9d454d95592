"""Lists of user ids as people have them: CSV, text or Parquet; raw or hashed; with blanks, doubles and slips."""

import csv
import gzip
import hashlib
import io
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet  # noqa: F401  (pa.parquet is an attribute only once it has been imported)
from numpy.typing import NDArray

from ranking.errors import UserError

__all__ = ["Ids", "fingerprint", "ids_of", "normalised", "read_ids"]

_SUFFIXES = (".csv", ".csv.gz", ".txt", ".parquet")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_Row = tuple[int, Any, Any, str]  # line, id, weight or None, what is wrong with the line or ""


@dataclass(frozen=True)
class Ids:
    """The ids of one list, each once, in the order of the file.

    Every row is one of: kept, blank, malformed, a duplicate.

    Args:
        name: str. What the list is called: the file's name without its suffix.
        source: str. Where it came from, for messages.
        hashed: bool. Whether the keys are SHA-256 hex digests of normalised ids.
        keys: int64 array, or object array of str `[n]`.
        lines: int64 `[n]`. The line (in Parquet: the row) of each, from 1.
        weights: float32 `[n]` or `None`, where the list has no weights.
        rows: int. Rows of the file, without a header.
        blank: int. Empty rows.
        malformed: int. Rows without a readable id or with an unusable weight.
        duplicates: int. Rows whose id had come before.
    """

    name: str
    source: str
    hashed: bool
    keys: NDArray[Any]
    lines: NDArray[np.int64]
    weights: NDArray[np.float32] | None
    rows: int
    blank: int = 0
    malformed: int = 0
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class _Layout:
    """How the rows of a list are read: ids of a kind, perhaps hashed, perhaps weighted, in lines, rows or places."""

    name: str
    source: str
    kind: str
    hashed: bool
    weighted: bool
    noun: str


def normalised(text: str) -> str:
    """An id without surrounding white space and without case: what is hashed."""
    return text.strip().casefold()


def fingerprint(user: Any) -> str:
    """SHA-256 of a normalised id, as 64 hex digits; a whole number counts as its decimal text."""
    return hashlib.sha256(normalised(str(user)).encode("utf-8", "surrogatepass")).hexdigest()


def read_ids(
    path: str | Path, kind: str, *, hashed: bool = False, drop_bad: bool = False, repeats: bool = False
) -> Ids:
    """Reads a list of ids.

    Args:
        path: str or Path. CSV with a header that names `user_id` (and `weight`), or of one column without a header;
            .txt with an id a line; or Parquet with a column `user_id` (and `weight`).
        kind: str. `"int64"` or `"string"`: what the ids of the population are.
        hashed: bool. Whether the list holds SHA-256 digests of normalised ids. An audience file of ours holds ids all
            the same. Defaults to `False`.
        drop_bad: bool. Whether duplicate and malformed rows are left out and counted. Defaults to `False`: refused.
        repeats: bool. Whether duplicates are no mistake, as among users to leave out. Defaults to `False`.

    Raises:
        UserError: the file cannot be read as such a list, or has duplicate or malformed rows.
    """
    path = Path(path)
    if not path.name.lower().endswith(_SUFFIXES):
        raise UserError(f"{path}: a list of ids should be one of {', '.join(_SUFFIXES)}. Received: {path.name!r}.")
    if not path.is_file():
        raise UserError(f"{path} should be a file with user ids. Received: no such file.")
    name = re.sub(r"(\.csv|\.csv\.gz|\.txt|\.parquet)$", "", path.name, flags=re.IGNORECASE)
    try:
        if path.suffix.lower() == ".parquet":
            rows, weighted, ours = _parquet_rows(path)
            layout = _Layout(name, str(path), kind, hashed and not ours, weighted, "row")
        else:
            rows, weighted = _text_rows(path)
            layout = _Layout(name, str(path), kind, hashed, weighted, "line")
        return _collect(layout, rows, drop_bad=drop_bad, repeats=repeats)
    except UserError:
        raise
    except (pa.ArrowException, csv.Error, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def ids_of(
    values: Iterable[Any],
    kind: str,
    *,
    name: str = "seeds",
    hashed: bool = False,
    drop_bad: bool = False,
    repeats: bool = False,
) -> Ids:
    """The same from ids in memory.

    Args:
        values: iterable of int or str.
        kind: str. As in `read_ids`.
        name: str. What the list is called. Defaults to `"seeds"`.
        hashed: bool. As in `read_ids`. Defaults to `False`.
        drop_bad: bool. As in `read_ids`. Defaults to `False`.
        repeats: bool. As in `read_ids`. Defaults to `False`.
    """
    plain = (value.item() if isinstance(value, np.generic) else value for value in values)
    rows = ((number, value, None, "") for number, value in enumerate(plain, start=1))
    layout = _Layout(name, f"the list {name!r}", kind, hashed, False, "place")
    return _collect(layout, rows, drop_bad=drop_bad, repeats=repeats)


def _text_rows(path: Path) -> tuple[Iterator[_Row], bool]:
    """The rows of CSV or text, and whether they have weights."""
    data = path.read_bytes()
    content = gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    stream = io.StringIO(content.decode("utf-8-sig"), newline="")
    if path.suffix.lower() == ".txt":
        lines = enumerate((text.rstrip("\r\n") for text in stream), start=1)
        return ((line, text, None, "") for line, text in lines if (line, text.strip()) != (1, "user_id")), False
    reader = csv.reader(stream)
    first = next(reader, [])
    header = [field.strip() for field in first]
    if "user_id" not in header:
        if len(first) > 1:
            raise UserError(
                f"{path}: should have a header with a column `user_id`, or be one column. "
                f"Received: {len(first)} columns, {', '.join(header)}."
            )
        return _csv_rows(reader, 0, None, 1, first), False
    _once(header, path)
    weight = header.index("weight") if "weight" in header else None
    return _csv_rows(reader, header.index("user_id"), weight, len(header), None), weight is not None


def _csv_rows(reader: Any, user: int, weight: int | None, width: int, first: list[str] | None) -> Iterator[_Row]:
    if first is not None:
        yield 1, (first[0] if first else ""), None, ""
    for fields in reader:
        if not any(field.strip() for field in fields):
            yield reader.line_num, "", None, ""
        elif len(fields) != width:
            yield reader.line_num, ",".join(fields), None, f"{len(fields)} columns instead of {width}"
        else:
            yield reader.line_num, fields[user], None if weight is None else fields[weight], ""


def _parquet_rows(path: Path) -> tuple[Iterator[_Row], bool, bool]:
    """The rows, whether they have weights, and whether the file is an audience that we wrote."""
    schema = pa.parquet.read_schema(path)
    _once(schema.names, path)
    if "user_id" not in schema.names:
        raise UserError(f"{path}: should have a column `user_id`. Received: {', '.join(schema.names) or 'none'}.")
    weighted = "weight" in schema.names
    table = pa.parquet.read_table(path, columns=["user_id", "weight"] if weighted else ["user_id"])
    users = table.column("user_id")
    if pa.types.is_dictionary(users.type):
        users = users.cast(users.type.value_type)
    text = pa.types.is_string(users.type) or pa.types.is_large_string(users.type)
    if not (text or pa.types.is_integer(users.type) or pa.types.is_null(users.type)):
        raise UserError(f"{path}: `user_id` should be text or whole numbers. Received: a column of type {users.type}.")
    weights = table.column("weight").to_pylist() if weighted else [None] * len(users)
    rows = ((row, *pair, "") for row, pair in enumerate(zip(users.to_pylist(), weights, strict=True), start=1))
    return rows, weighted, {"list", "rank", "similarity"} <= set(schema.names)


def _once(names: list[str], path: Path) -> None:
    for name in ("user_id", "weight"):
        if names.count(name) > 1:
            raise UserError(f"{path}: should have one column `{name}`. Received: {names.count(name)} of them.")


def _key(value: Any, kind: str, hashed: bool) -> tuple[Any, str]:
    """What an id is looked up by, or why it is none."""
    text = str(value)
    if isinstance(value, bool | float) or "\0" in text:
        return None, "no id"
    if hashed:
        found = text.strip()
        return (found.lower(), "") if _SHA256.fullmatch(found) else (None, "not 64 hex digits, as SHA-256 has")
    if kind == "string":
        return text, ""
    found = text.strip()
    if not _INTEGER.fullmatch(found):
        return None, "not a whole number, as the ids of the population are"
    number = int(found)
    return (number, "") if -(2**63) <= number < 2**63 else (None, "above 64 bits")


def _weight(value: Any) -> tuple[float, str]:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    # float32 is what is clustered: what underflows there weighs nothing.
    usable = math.isfinite(weight) and 0 < np.float32(min(abs(weight), 3e38)) and 0 < weight <= 3e38
    return weight, "" if usable else "the weight should be a positive number"


def _collect(layout: _Layout, rows: Iterable[_Row], *, drop_bad: bool, repeats: bool) -> Ids:
    places: dict[Any, int] = {}
    weights: list[float] = []
    total = blank = malformed = duplicates = 0
    first = ""
    for line, value, given, wrong in rows:
        total += 1
        if not wrong and (value is None or not str(value).strip()):
            blank += 1
            continue
        key, why = (None, wrong) if wrong else _key(value, layout.kind, layout.hashed)
        weight, unusable = _weight(given) if layout.weighted and not why else (1.0, "")
        why = why or unusable
        if why:
            malformed += 1
            shown = given if unusable else value
            first = first or f"{layout.noun} {line}: {shown!r}: {why}"
        elif key in places:
            duplicates += 1
            if not repeats:
                first = first or f"{layout.noun} {line}: {value!r} came before, in {layout.noun} {places[key]}"
        else:
            places[key] = line
            weights.append(weight)
    if first and not drop_bad:
        raise UserError(
            f"{layout.source}: {malformed:,} malformed and {duplicates:,} duplicate ids; the first in {first}. "
            "Repair the list, or leave them out with --drop-bad."
        )
    return Ids(
        name=layout.name,
        source=layout.source,
        hashed=layout.hashed,
        keys=np.array(list(places), np.int64 if layout.kind == "int64" and not layout.hashed else object),
        lines=np.array(list(places.values()), np.int64),
        weights=np.array(weights, np.float32) if layout.weighted else None,
        rows=total,
        blank=blank,
        malformed=malformed,
        duplicates=duplicates,
    )
