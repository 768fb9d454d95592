"""One column of a table: from what is stored (Parquet types or CSV text) to what is declared, or a UserError.

A stored column comes as a pyarrow array; CSV columns come as text, so that nothing has been guessed on the way:
`007` is still `007`, and 9007199254740993 is still exact.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ranking.errors import UserError

__all__ = ["Column", "convert"]


@dataclass(frozen=True)
class Column:
    """What a column should hold.

    Args:
        kind: str. `"int64"`, `"string"` (ids), `"request"` (an id of either type), `"label"` (0/1 as int8), `"time"`
            (int64, -1 = missing where nullable), `"integer"` (int64, -1 = missing), `"numeric"` (float64, NaN =
            missing), `"categorical"` or `"multi"` (text, missing = NaN).
        required: bool. Whether the table should have the column. Defaults to `True`.
        nullable: bool. Whether values may be missing. Defaults to `False`.
    """

    kind: str
    required: bool = True
    nullable: bool = False


def convert(array: pa.ChunkedArray, column: Column, where: str) -> Any:
    """The values of a stored column as a numpy array (or a pandas text Series).

    Args:
        array: pyarrow array as stored.
        column: `Column`. What it should hold.
        where: str. File and column, for the message.

    Raises:
        UserError: a value breaks the rule; the message names the file, the column, the row and the value.
    """
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_null(array.type):
        array = array.cast(pa.string())
    if _is_text(array.type):
        array = pc.if_else(pc.equal(array, ""), pa.scalar(None, array.type), array)
    if not column.nullable and array.null_count:
        row = int(np.flatnonzero(_plain(pc.is_null(array)))[0])
        raise UserError(f"{where}: row {row + 1} is empty, and this column should have a value in every row.")
    values = _CONVERTERS[column.kind](array, where)
    if column.kind == "time" and (values < (-1 if column.nullable else 0)).any():
        row = int(np.flatnonzero(values < (-1 if column.nullable else 0))[0])
        raise UserError(f"{where}: a time should be 0 or more. Received: {values[row]} in row {row + 1}.")
    return values


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _plain(array: pa.ChunkedArray) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False) if isinstance(array, pa.Array) else array.to_numpy()


def _bad(array: pa.ChunkedArray, valid: Any, where: str, rule: str) -> UserError:
    """The error for the first value that is neither missing nor `valid` (a boolean array)."""
    good = _plain(pc.fill_null(valid, True)) if isinstance(valid, pa.ChunkedArray | pa.Array) else valid
    row = int(np.flatnonzero(~np.asarray(good, dtype=bool))[0])
    return UserError(f"{where}: {rule}. Received: {array[row].as_py()!r} in row {row + 1}.")


def _integers(array: pa.ChunkedArray, where: str, rule: str) -> pa.ChunkedArray:
    """Text or integers of any width -> int64, exactly."""
    if _is_text(array.type):
        valid = pc.match_substring_regex(array, r"^-?[0-9]{1,19}$")
        if not pc.all(valid, min_count=0).as_py():
            raise _bad(array, valid, where, rule)
    elif not pa.types.is_integer(array.type):
        raise UserError(f"{where}: {rule}. Received: a column of type {array.type}.")
    try:
        return array.cast(pa.int64())
    except pa.ArrowInvalid:
        within = [value is None or -(2**63) <= int(value) < 2**63 for value in array.to_pylist()]
        raise _bad(array, np.array(within), where, "should fit in 64 bits, signed") from None


def _int64_id(array: pa.ChunkedArray, where: str) -> np.ndarray:
    if pa.types.is_floating(array.type):
        raise UserError(
            f"{where}: a float id column: ids above 2^53 are already damaged in it; "
            f"write the column as int64 (in CSV: digits only). Received: type {array.type}."
        )
    return _plain(_integers(array, where, 'should be whole numbers, because dataset.toml declares these ids "int64"'))


def _string_id(array: pa.ChunkedArray, where: str) -> pd.Series:
    if not _is_text(array.type):
        kind = "a float id column: " if pa.types.is_floating(array.type) else ""
        raise UserError(
            f'{where}: {kind}dataset.toml declares these ids "string", and the column is stored as {array.type}; '
            f'write it as text, or declare "int64".'
        )
    return _text(array)


def _request_id(array: pa.ChunkedArray, where: str) -> Any:
    return _string_id(array, where) if _is_text(array.type) else _int64_id(array, where)


def _text(array: pa.ChunkedArray) -> pd.Series:
    return array.cast(pa.large_string()).to_pandas(types_mapper=lambda _: pd.StringDtype(na_value=np.nan))


def _label(array: pa.ChunkedArray, where: str) -> np.ndarray:
    rule = "a label should be 0 or 1"
    values = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else _whole(array, where, rule)
    valid = pc.is_in(values, value_set=pa.array([0, 1], values.type))
    if not pc.all(valid, min_count=0).as_py():
        raise _bad(array, valid, where, rule)
    return _plain(values.cast(pa.int8()))


def _time(array: pa.ChunkedArray, where: str) -> np.ndarray:
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms", tz=array.type.tz), safe=False).cast(pa.int64())
    values = _whole(
        array, where, "a time should be whole milliseconds since the epoch (or, with ordinal time, an integer)"
    )
    return _plain(pc.fill_null(values, -1))


def _integer(array: pa.ChunkedArray, where: str) -> np.ndarray:
    return _plain(pc.fill_null(_whole(array, where, "should be whole numbers"), -1))


def _whole(array: pa.ChunkedArray, where: str, rule: str) -> pa.ChunkedArray:
    """Integers that a tool may have written as floats because some were missing: 1.0 is 1, 1.5 is refused."""
    if _is_text(array.type) and not pc.all(pc.match_substring_regex(array, r"^-?[0-9]{1,19}$"), min_count=0).as_py():
        valid = pc.match_substring_regex(array, r"^-?[0-9]{1,15}(\.0*)?$")
        if not pc.all(valid, min_count=0).as_py():
            raise _bad(array, valid, where, rule)
        array = array.cast(pa.float64())
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        valid = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**53))
        if not pc.all(valid, min_count=0).as_py():
            raise _bad(array, valid, where, rule)
    elif not _is_text(array.type):
        return _integers(array, where, rule)
    return array.cast(pa.int64())


def _number(array: pa.ChunkedArray, where: str) -> np.ndarray:
    rule = "should be finite numbers"
    if _is_text(array.type):
        valid = pc.match_substring_regex(array, r"^([+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[nN][aA][nN])$")
        if not pc.all(valid, min_count=0).as_py():
            raise _bad(array, valid, where, rule)
    elif not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise UserError(f"{where}: {rule}. Received: a column of type {array.type}.")
    values = array.cast(pa.float64(), safe=False)
    infinite = pc.is_inf(values)
    if pc.any(infinite, min_count=0).as_py():
        raise _bad(array, pc.invert(infinite), where, rule)
    return _plain(values)


def _categorical(array: pa.ChunkedArray, where: str) -> pd.Series:
    """Values as text, the same from Parquet integers, from floats that are integers with gaps, and from CSV."""
    kind = array.type
    if pa.types.is_floating(kind):
        array = _whole(array, where, "a categorical column should hold text or whole numbers")
    elif not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise UserError(
            f"{where}: should be text or whole numbers (several values: one text, joined by the separator). "
            f"Received: a column of type {kind}."
        )
    return _text(array if _is_text(kind) else array.cast(pa.string()))


_CONVERTERS = {
    "int64": _int64_id,
    "string": _string_id,
    "request": _request_id,
    "label": _label,
    "time": _time,
    "integer": _integer,
    "numeric": _number,
    "categorical": _categorical,
    "multi": _categorical,
}
