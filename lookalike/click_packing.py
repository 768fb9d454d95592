"""Clicks as the value of a stream's entry: packed columns, JSON lines, or the fields of one event."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import CLICK, FORGET, UNCLICK

__all__ = ["MAGIC", "Clicks", "pack", "unpack", "unpack_fields"]

MAGIC = b"SRC1"  # packed columns begin with it
_HEAD = struct.Struct("<4sBI")  # magic, which columns are texts or there, events
_USER_TEXTS, _ITEM_TEXTS, _KINDS = 1, 2, 4
_NAMES = {"click": CLICK, "unclick": UNCLICK, "forget": FORGET}
_FIELDS = {"user_id", "item_id", "time", "kind"}
_INT64 = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Clicks:
    """Events as `ClickLog.append` takes them.

    Args:
        user: int64 `[n]`, or a list of texts.
        item: int64 `[n]`, or a list of texts.
        time: int64 `[n]`. Milliseconds since the epoch.
        kind: uint8 `[n]`.
    """

    user: Any
    item: Any
    time: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.time)


def pack(user: Any, item: Any, time: Any, kind: Any = None) -> bytes:
    """Events as one value, for a producer: 24 bytes an event with int64 ids, 25 with kinds.

    100 to 1,000 events in a value are a good number. The format is `SRC1`, a byte (1: users are texts, 2: items are
    texts, 4: there are kinds), the number of events as uint32, and the columns user, item, time (int64) and kind
    (uint8); a column of texts is their lengths (uint32), then their UTF-8. All little-endian.

    Args:
        user: int64 `[n]`, or texts.
        item: likewise.
        time: int64 `[n]`. Milliseconds since the epoch.
        kind: int `[n]`, optional. `CLICK`, `UNCLICK` or `FORGET`. Defaults to `CLICK` for all.

    Raises:
        ValueError: columns of different lengths, or ids that are neither.
    """
    columns, flags = [], 0
    for values, flag in ((user, _USER_TEXTS), (item, _ITEM_TEXTS)):
        texts = len(values) > 0 and isinstance(values[0], str)
        flags |= flag if texts else 0
        columns.append(_packed_texts(values) if texts else _integers(values).astype("<i8").tobytes())
    columns.append(_integers(time).astype("<i8").tobytes())
    lengths = {len(user), len(item), len(time)}
    if kind is not None:
        flags |= _KINDS
        columns.append(_integers(kind).astype(np.uint8).tobytes())
        lengths.add(len(kind))
    if len(lengths) > 1:
        raise ValueError(f"Columns should have one length. Received: lengths={sorted(lengths)}.")
    return _HEAD.pack(MAGIC, flags, len(time)) + b"".join(columns)


def unpack(value: bytes, *, user_ids: str, item_ids: str) -> Clicks:
    """The events of a value: packed ones, or JSON lines with user_id, item_id, time and perhaps kind.

    Args:
        value: bytes. Of an entry.
        user_ids: str. `"int64"` or `"string"`.
        item_ids: str. Likewise.

    Raises:
        ValueError: it is neither, or holds ids of the other kind. Nothing of it is to be taken.
    """
    if value.startswith(MAGIC):
        return _unpacked(value, user_ids, item_ids)
    try:
        rows = [json.loads(line) for line in value.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise ValueError("neither packed events nor JSON lines") from None
    if not rows:
        raise ValueError("no event")
    return _clicks([_row(row) for row in rows], user_ids, item_ids)


def unpack_fields(fields: Mapping[bytes, bytes], *, user_ids: str, item_ids: str) -> Clicks:
    """One event, given as fields: user_id, item_id, time and perhaps kind.

    Args:
        fields: dict of bytes. An entry of a Redis stream.
        user_ids: str. `"int64"` or `"string"`.
        item_ids: str. Likewise.

    Raises:
        ValueError: a field is missing, unknown, or no number where it should be one.
    """
    try:
        row: dict[str, Any] = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError:
        raise ValueError("fields that are not UTF-8") from None
    for name, ids in (("user_id", user_ids), ("item_id", item_ids), ("time", "int64"), ("kind", "int64")):
        text = row.get(name, "")
        if ids == "int64" and len(text) <= 20 and text.removeprefix("-").isascii() and text.removeprefix("-").isdigit():
            row[name] = int(text)
    return _clicks([_row(row)], user_ids, item_ids)


def _row(row: Any) -> tuple[Any, Any, Any, int]:
    if not isinstance(row, dict) or not set(row) <= _FIELDS:
        raise ValueError(f"an event should have the fields {', '.join(sorted(_FIELDS))} and no others")
    kind = row.get("kind", CLICK)
    kind = _NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if type(kind) is not int or kind not in (CLICK, UNCLICK, FORGET):
        raise ValueError("`kind` should be click, unclick or forget")
    item = row.get("item_id")
    return row.get("user_id"), item, row.get("time"), kind


def _clicks(rows: list[tuple[Any, Any, Any, int]], user_ids: str, item_ids: str) -> Clicks:
    user, item, time, kind = (list(column) for column in zip(*rows, strict=True))
    # The item of a FORGET means nothing and may be left out.
    nothing = 0 if item_ids == "int64" else "-"
    item = [nothing if one is None and k == FORGET else one for one, k in zip(item, kind, strict=True)]
    return Clicks(
        _checked(user, "user_id", user_ids),
        _checked(item, "item_id", item_ids),
        _checked(time, "time", "int64"),
        np.array(kind, np.uint8),
    )


def _checked(values: list[Any], name: str, ids: str) -> Any:
    wanted = int if ids == "int64" else str
    if any(type(value) is not wanted for value in values):
        raise ValueError(f"`{name}` should be {'an integer' if wanted is int else 'a text'}")
    if wanted is str:
        return values
    if any(not _INT64[0] <= value <= _INT64[1] for value in values):
        raise ValueError(f"`{name}` should be an int64")
    return np.array(values, np.int64)


def _integers(values: Any) -> NDArray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"A column should be integers or texts. Received: {array.dtype}, shape {list(array.shape)}.")
    return array


def _packed_texts(texts: Any) -> bytes:
    encoded = [text.encode() for text in texts]
    return np.array([*map(len, encoded)], "<u4").tobytes() + b"".join(encoded)


def _unpacked(value: bytes, user_ids: str, item_ids: str) -> Clicks:
    if len(value) < _HEAD.size:
        raise ValueError("packed events that end too early")
    _, flags, count = _HEAD.unpack_from(value)
    for flag, ids, name in ((_USER_TEXTS, user_ids, "user_id"), (_ITEM_TEXTS, item_ids, "item_id")):
        if bool(flags & flag) != (ids == "string"):
            raise ValueError(f"`{name}` should be {ids}")
    if not count or flags > 7:
        raise ValueError("packed events without an event, or of an unknown kind")
    place = _HEAD.size
    try:
        user, place = (_text_column if flags & _USER_TEXTS else _int_column)(value, place, count)
        item, place = (_text_column if flags & _ITEM_TEXTS else _int_column)(value, place, count)
        time, place = _int_column(value, place, count)
        kind = np.full(count, CLICK, np.uint8)
        if flags & _KINDS:
            kind = np.frombuffer(value, np.uint8, count, place)
            place += count
    except (ValueError, UnicodeDecodeError):
        raise ValueError("packed events that end too early or are not UTF-8") from None
    if place != len(value):
        raise ValueError("packed events with something behind them")
    return Clicks(user, item, time, kind)


def _int_column(value: bytes, place: int, count: int) -> tuple[Any, int]:
    return np.frombuffer(value, "<i8", count, place).astype(np.int64), place + 8 * count


def _text_column(value: bytes, place: int, count: int) -> tuple[Any, int]:
    ends = np.cumsum(np.frombuffer(value, "<u4", count, place), dtype=np.int64) + place + 4 * count
    if ends[-1] > len(value):
        raise ValueError
    starts = [place + 4 * count, *ends.tolist()]
    return [value[start:stop].decode() for start, stop in zip(starts, starts[1:], strict=False)], starts[-1]
