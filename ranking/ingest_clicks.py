"""Clicks as producers send them, JSON lines, columns or CSV, checked value by value and taken as arrays."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.click_packing import Clicks
from lookalike.clicklog import CLICK, UNCLICK
from ranking.errors import UserError

__all__ = ["FIELDS", "ClickFormat", "WrongClick"]

FIELDS = ("user_id", "item_id", "time", "kind")
KINDS = {None: CLICK, "click": CLICK, "unclick": UNCLICK}
LONGEST_ID = 256  # characters
SHOWN = 60  # characters of a wrong value in a message
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST, _LATEST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000 for year in (2000, 2100))
# Control characters, line separators (they break lines of logs), and halves of UTF-16 pairs, which are no text.
_FORBIDDEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_RULES = {
    "int64": "should be a whole number from -2^63 to 2^63 - 1",
    "string": f"should be a text of 1 to {LONGEST_ID} characters without control characters",
    "time": "should be whole milliseconds since 1970, or ISO 8601 with its zone, and lie from 2000 to 2099",
    "kind": 'should be "click" or "unclick"',
}


class WrongClick(UserError):
    """A click that breaks a rule.

    Args:
        line: int. The line, or the row of columns, from 1.
        field: str or None. None where the whole line is meant.
        rule: str. What it should be.
        received: any. What it is; shown cut and escaped. Defaults to nothing.
    """

    def __init__(self, line: int, field: str | None, rule: str, received: Any = ...) -> None:
        place = f"line {line}" if field is None else f"line {line}, `{field}`"
        super().__init__(f"{place}: {rule}." + ("" if received is ... else f" Received: {_shown(received)}."))
        self.line, self.field = line, field


class ClickFormat:
    """Reads clicks; everything is right or nothing is taken.

    A field that is not one of `user_id`, `item_id`, `time` and `kind` is refused: a misspelt `time` or `kind` would
    change what a click means in silence. Of `time` and `kind` a missing one and null are the same.

    Args:
        user_ids: str. `"int64"` or `"string"`.
        item_ids: str. Likewise.
    """

    def __init__(self, user_ids: str, item_ids: str) -> None:
        self._kinds = {"user_id": user_ids, "item_id": item_ids, "time": "time", "kind": "kind"}

    def from_json(self, body: bytes, *, now: int | None) -> Clicks:
        """Clicks of JSON lines, or of one object of columns on one line: `{"user_id": [..], "item_id": [..], ..}`.

        Args:
            body: bytes. UTF-8; empty lines are passed over.
            now: int or None. The time of clicks without one, ms; with None they are wrong.

        Raises:
            WrongClick: the first that is wrong.
        """
        body = body.rstrip(b" \t\r\n")
        columns, lines, broken = _all_at_once(body), None, None
        if columns is None:
            rows, lines, broken = _line_by_line(body)
            if len(rows) == 1 and isinstance(rows[0].get("user_id"), list):
                columns, lines = _columnar(rows[0], lines[0]), None
            else:
                columns = {field: [row.get(field) for row in rows] for field in FIELDS}
        clicks = self._checked(columns, lines, now)
        if broken is not None:  # and no value before that line
            raise broken
        return clicks

    def from_csv(self, block: bytes, header: Sequence[str], *, now: int | None = None) -> Clicks:
        """Clicks of CSV lines.

        Args:
            block: bytes. UTF-8 lines without the header; empty lines are passed over.
            header: names of the columns.
            now: int or None. As in `from_json`. Defaults to `None`.

        Raises:
            WrongClick: the first that is wrong.
        """
        rows, lines = [], []
        for number, line in enumerate(block.split(b"\n"), 1):
            if not line.strip():
                continue
            try:  # one line at a time: an open quote ends with its line
                found = next(csv.reader([line.decode().rstrip("\r")], strict=True))
            except (UnicodeDecodeError, csv.Error):
                raise WrongClick(number, None, "should be one line of CSV in UTF-8", line) from None
            if len(found) != len(header):
                raise WrongClick(number, None, f"should have {len(header)} fields, as the header", len(found))
            rows.append(found)
            lines.append(number)
        texts = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
        columns: dict[str, list[Any]] = {}
        for field in FIELDS:
            values: Iterable[Any] = texts.get(field, [None] * len(rows))
            if field in ("time", "kind"):
                values = [value or None for value in values]
            if field == "time" or self._kinds[field] == "int64":
                values = [int(value) if value and _INTEGER.fullmatch(value) else value for value in values]
            columns[field] = list(values)
        return self._checked(columns, lines, now)

    def user(self, value: Any) -> Any:
        """One user's id, checked.

        Raises:
            WrongClick: it breaks a rule.
        """
        return self._checked_column("user_id", [value], [1], None)[0]

    def checked(self, user: Any, item: Any, time: NDArray[np.int64], kind: NDArray[np.uint8]) -> Clicks:
        """Clicks that are columns already: int64 arrays, or lists of texts.

        Raises:
            WrongClick: an id or a time breaks a rule.
        """
        for field, ids in (("user_id", user), ("item_id", item)):
            if self._kinds[field] == "string":
                self._checked_column(field, ids, None, None)
        wrong = np.flatnonzero((time < _EARLIEST) | (time >= _LATEST))
        if len(wrong):
            raise WrongClick(int(wrong[0]) + 1, "time", _RULES["time"], int(time[wrong[0]]))
        return Clicks(user, item, time, kind)

    def _checked(self, columns: Mapping[str, list[Any]], lines: list[int] | None, now: int | None) -> Clicks:
        found, wrong = [], []
        for field in FIELDS:
            try:
                found.append(self._checked_column(field, columns[field], lines, now))
            except WrongClick as error:
                wrong.append(error)
        if wrong:
            raise min(wrong, key=lambda error: error.line)
        return Clicks(*found)

    def _checked_column(self, field: str, values: list[Any], lines: list[int] | None, now: int | None) -> Any:
        kind = self._kinds[field]
        column = _COLUMNS[kind](values, now)
        if column is not None:
            return column
        good = []
        for place, value in enumerate(values):
            try:
                good.append(_VALUES[kind](value, now))
            except (ValueError, OverflowError):
                line = place + 1 if lines is None else lines[place]
                raise WrongClick(line, field, _RULES[kind], "nothing" if value is None else value) from None
        return good if kind == "string" else np.array(good, np.uint8 if kind == "kind" else np.int64)


def _all_at_once(body: bytes) -> dict[str, list[Any]] | None:
    """Columns of JSON lines, parsed as one list, which is four times as fast; None: look at each line.

    Anything unusual is for the slow way, which is the definition. A line break that is kept in front of each comma
    lets no text span two lines; a `{` at the start of each line lets no object do.
    """
    lines = body.count(b"\n") + 1
    if b"\\" in body or body[:1] != b"{" or body.count(b"\n{") != lines - 1:
        return None
    try:
        rows = json.loads("[" + body.replace(b"\n", b"\n,").decode() + "]")
    except (ValueError, RecursionError):
        return None
    if len(rows) != lines or set(map(type, rows)) != {dict}:
        return None
    if len(rows) == 1 and isinstance(rows[0].get("user_id"), list):
        return None
    columns = {field: [row.get(field) for row in rows] for field in FIELDS}
    known = len(FIELDS) * lines - sum(column.count(None) for column in columns.values())
    # More fields than those: unknown ones or nulls. More names in the text than fields: one was given twice.
    written = sum(body.count(b'"%s"' % field.encode()) for field in FIELDS)
    return columns if known == sum(map(len, rows)) == written else None


class _Twice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


def _line_by_line(body: bytes) -> tuple[list[dict[str, Any]], list[int], WrongClick | None]:
    """Rows to the first line that is none, the number of the line of each, and what is wrong with that one."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = _row(line)
        except ValueError as error:
            return rows, lines, WrongClick(number, None, *error.args)
        rows.append(row)
        lines.append(number)
    return rows, lines, None


def _row(line: bytes) -> dict[str, Any]:
    """ValueError with the rule, and what was received, where a line is not one object of the known fields."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object)
    except _Twice:
        raise ValueError("should have each field once", line.strip()) from None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError("should be one JSON object on one line", line.strip())
    unknown = [field for field in row if field not in FIELDS]
    if unknown:
        raise ValueError(f"should have no other fields than {', '.join(FIELDS)}", unknown[0])
    return row


def _columnar(row: Mapping[str, Any], line: int) -> dict[str, list[Any]]:
    count = len(row["user_id"])
    columns = {}
    for field in FIELDS:
        values = row.get(field)
        if values is None and field in ("time", "kind"):
            values = [None] * count
        if not isinstance(values, list) or len(values) != count:
            received = f"{len(values)} values" if isinstance(values, list) else values
            raise WrongClick(line, field, f"should be a list of {count} values, as `user_id`", received)
        columns[field] = values
    return columns


# Whole columns at once: None where the values have to be looked at one by one.


def _int_column(values: list[Any], now: int | None) -> NDArray[np.int64] | None:
    if set(map(type, values)) != {int}:
        return None
    try:
        return np.array(values, np.int64)
    except OverflowError:
        return None


def _text_column(values: list[Any], now: int | None) -> list[str] | None:
    if set(map(type, values)) != {str}:
        return None
    sizes = list(map(len, values))
    return None if min(sizes) < 1 or max(sizes) > LONGEST_ID or _FORBIDDEN.search("".join(values)) else values


def _time_column(values: list[Any], now: int | None) -> NDArray[np.int64] | None:
    if now is not None and values.count(None) == len(values):
        return np.full(len(values), now, np.int64)
    column = _int_column(values, now)
    return None if column is None or column.min() < _EARLIEST or column.max() >= _LATEST else column


def _kind_column(values: list[Any], now: int | None) -> NDArray[np.uint8] | None:
    try:
        return np.array([KINDS[value] for value in values], np.uint8)
    except (KeyError, TypeError):
        return None


# One value: ValueError or OverflowError where it is wrong.


def _int_value(value: Any, now: int | None) -> int:
    if type(value) is not int:  # a bool is none
        raise ValueError
    return int(np.int64(value))


def _text_value(value: Any, now: int | None) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_ID or _FORBIDDEN.search(value):
        raise ValueError
    return value


def _time_value(value: Any, now: int | None) -> int:
    if value is None and now is not None:
        return now
    if isinstance(value, str):
        if len(value) > SHOWN or (moment := datetime.fromisoformat(value)).tzinfo is None:
            raise ValueError
        value = (moment - _EPOCH) // timedelta(milliseconds=1)
    if type(value) is not int or not _EARLIEST <= value < _LATEST:
        raise ValueError
    return value


def _kind_value(value: Any, now: int | None) -> int:
    if not isinstance(value, str | None) or value not in KINDS:
        raise ValueError
    return KINDS[value]


_COLUMNS: dict[str, Callable[[list[Any], int | None], Any]] = {
    "int64": _int_column,
    "string": _text_column,
    "time": _time_column,
    "kind": _kind_column,
}
_VALUES: dict[str, Callable[[Any, int | None], Any]] = {
    "int64": _int_value,
    "string": _text_value,
    "time": _time_value,
    "kind": _kind_value,
}


def _shown(value: Any) -> str:
    """A wrong value as a message may hold it: one line, ASCII, cut."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, bytes):
        value = value[: 4 * SHOWN].decode("utf-8", "replace")
    if isinstance(value, str):
        return json.dumps(value[:SHOWN])[: 2 * SHOWN] + ("..." if len(value) > SHOWN else "")
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
