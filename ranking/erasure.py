"""Rows leave tables: which ones are a user's, and the same file without them."""

import csv
import gzip
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet  # noqa: F401  (pa.parquet is an attribute only once it has been imported)
from numpy.typing import NDArray

from ranking.errors import UserError
from ranking.seeds_file import fingerprint, normalised

__all__ = ["TABLE_SUFFIXES", "Person", "columns_of", "rows_of", "without_rows"]

TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
Test = Callable[[Any], NDArray[np.bool_]]  # a pyarrow array, or a list of text -> which of them


@dataclass(frozen=True)
class Person:
    """The user who is to be forgotten, as the command line names him.

    Args:
        text: str. The id.
    """

    text: str

    @property
    def number(self) -> int | None:
        """The id as a whole number, None where it is none."""
        return int(self.text) if _INTEGER.fullmatch(self.text.strip()) else None

    def id(self, kind: str, where: str) -> Any:
        """The id as a dataset declares ids.

        Raises:
            UserError: the ids there are numbers, and this one is not.
        """
        if kind == "string":
            return self.text
        if self.number is None:
            raise UserError(f"{where}: ids are whole numbers. Received: {self.text!r}.")
        return self.number

    def is_in(self, kind: str) -> Test:
        """Which ids of a table are his, by what the dataset declares: `"007"` and `"7"` are two texts, one number."""

        def test(values: Any) -> NDArray[np.bool_]:
            if isinstance(values, list):
                return np.array([self._is(value, kind) for value in values], bool)
            if pa.types.is_integer(values.type):
                return _equal(values, self.number)
            text = values.cast(pa.string())
            return _equal(text, self.text) if kind == "string" else test(text.to_pylist())

        return test

    def is_listed(self) -> Test:
        """Which entries of a list mean him: as written, trimmed and without case, as a number, or as SHA-256."""
        names, digests = {normalised(self.text)}, {fingerprint(self.text)}
        if self.number is not None:
            names.add(str(self.number))
            digests.add(fingerprint(self.number))

        def test(values: Any) -> NDArray[np.bool_]:
            if not isinstance(values, list):
                if pa.types.is_integer(values.type):
                    return _equal(values, self.number)
                values = values.cast(pa.string()).to_pylist()
            found = [
                value is not None
                and ((name := normalised(value)) in names or name in digests or self._is(name, "int64"))
                for value in values
            ]
            return np.array(found, bool)

        return test

    def _is(self, value: str | None, kind: str) -> bool:
        if value is None or kind == "string":
            return value == self.text
        return self.number is not None and _INTEGER.fullmatch(value.strip()) is not None and int(value) == self.number


def _equal(values: Any, value: Any) -> NDArray[np.bool_]:
    if value is None or (isinstance(value, int) and not -(2**63) <= value < 2**63):
        return np.zeros(len(values), bool)
    values = values.cast(pa.int64()) if isinstance(value, int) else values
    return pc.fill_null(pc.equal(values, pa.scalar(value, values.type)), False).to_numpy(zero_copy_only=False)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in (*TABLE_SUFFIXES, ".txt") if name.endswith(suffix)), "")


def columns_of(path: Path, *, named: bool = False) -> list[str]:
    """The columns of a table.

    Args:
        path: Path. Parquet, CSV, CSV.gz or text with an id a line.
        named: bool. Whether the first line of CSV always names the columns, as in a dataset; a list of ids may be one
            column without a name, which is `user_id` then. Defaults to `False`.
    """
    with _said(path):
        if _suffix(path) == ".parquet":
            return list(pa.parquet.read_schema(path).names)
        return _header(path, named)[0]


def _header(path: Path, named: bool) -> tuple[list[str], bool]:
    """Columns, and whether the first line names them."""
    if _suffix(path) == ".txt":
        return ["user_id"], False
    with _reading(path) as stream:
        first = [field.strip() for field in next(csv.reader(stream), [])]
    return (first, True) if named or "user_id" in first or len(first) > 1 else (["user_id"], False)


def rows_of(path: Path, column: str, test: Test, *, named: bool = False) -> NDArray[np.bool_]:
    """Which rows of a table a test of one column is true of.

    Args:
        path: Path. Parquet, CSV, CSV.gz or text with an id a line.
        column: str. Its name.
        test: callable from a pyarrow array or a list of text to bool `[n]`.
        named: bool. As in `columns_of`. Defaults to `False`.

    Returns:
        bool `[rows]`; an empty line of CSV or text is a row.

    Raises:
        UserError: the file cannot be read.
    """
    with _said(path):
        found = [test(values) for values in _column(path, column, named)]
    return np.concatenate(found) if found else np.zeros(0, bool)


def _column(path: Path, column: str, named: bool) -> Iterator[Any]:
    if _suffix(path) == ".parquet":
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(2**17, columns=[column]):
                values = batch.column(0)
                is_dictionary = pa.types.is_dictionary(values.type)
                yield values.cast(values.type.value_type) if is_dictionary else values
        return
    names, named = _header(path, named)
    place = names.index(column)
    block: list[str] = []
    for fields in _lines(path, named):
        block.append(fields[place] if place < len(fields) else "")
        if len(block) == 2**17:
            yield block
            block = []
    yield block


def _lines(path: Path, named: bool) -> Iterator[list[str]]:
    with _reading(path) as stream:
        if _suffix(path) == ".txt":
            yield from ([line.rstrip("\r\n")] for line in stream)
            return
        reader = csv.reader(stream)
        if named:
            next(reader)
        yield from reader


def without_rows(source: Path, target: Path, gone: NDArray[np.bool_], *, named: bool = False) -> None:
    """Writes a table without some rows; everything else stays as it is: types, order, compression.

    Args:
        source: Path. The table.
        target: Path. The new file; it is of the same format, whatever its name.
        gone: bool `[rows]`, as `rows_of` gives.
        named: bool. As in `columns_of`. Defaults to `False`.
    """
    with _said(source):
        if _suffix(source) == ".parquet":
            _parquet_without(source, target, gone)
        else:
            _text_without(source, target, gone, named)


def _parquet_without(source: Path, target: Path, gone: NDArray[np.bool_]) -> None:
    with pa.parquet.ParquetFile(source) as file:
        groups = file.num_row_groups
        codec = file.metadata.row_group(0).column(0).compression.lower() if groups else "snappy"
        compression = "none" if codec == "uncompressed" else codec
        start = 0
        with pa.parquet.ParquetWriter(target, file.schema_arrow, compression=compression) as writer:
            for group in range(groups):
                table = file.read_row_group(group)
                kept = table.filter(pa.array(~gone[start : start + len(table)]))
                start += len(table)
                if len(kept):
                    writer.write_table(_with_new_dictionaries(kept))


def _with_new_dictionaries(table: pa.Table) -> pa.Table:
    """Dictionaries of just the values in use: a filter leaves the others in them, and so in the file."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            encoded = table.column(place).cast(field.type.value_type).combine_chunks().dictionary_encode()
            if isinstance(encoded, pa.ChunkedArray):
                encoded = encoded.combine_chunks()
            indices = encoded.indices.cast(field.type.index_type)
            values = pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=field.type.ordered)
            table = table.set_column(place, field, values)
    return table


def _text_without(source: Path, target: Path, gone: NDArray[np.bool_], named: bool) -> None:
    packed = _suffix(source) == ".csv.gz"
    with _reading(source) as old, _opened(target, "wt", packed=packed) as new:
        if _suffix(source) == ".txt":
            new.writelines(line for line, left_out in zip(old, gone, strict=True) if not left_out)
            return
        end = "\r\n" if old.readline().endswith("\r\n") else "\n"
        old.seek(0)
        reader, writer = csv.reader(old), csv.writer(new, lineterminator=end)
        if _header(source, named)[1]:
            writer.writerow(next(reader))
        writer.writerows(fields for fields, left_out in zip(reader, gone, strict=True) if not left_out)


def _opened(path: Path, mode: str, *, packed: bool) -> TextIO:
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    if packed:
        return gzip.open(path, mode, encoding=encoding, newline="")  # type: ignore[return-value]
    return open(path, mode, encoding=encoding, newline="")  # type: ignore[return-value]


def _reading(path: Path) -> TextIO:
    return _opened(path, "rt", packed=_suffix(path) == ".csv.gz")


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, csv.Error, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
