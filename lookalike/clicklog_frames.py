"""The bytes of a click log: checked frames of columns."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLICK",
    "ERASED",
    "FORGET",
    "HEADER",
    "MAGIC",
    "UNCLICK",
    "Columns",
    "Header",
    "Payload",
    "checked_columns",
    "decode",
    "encode",
    "keys_of",
    "pack_header",
    "parse_header",
]

CLICK, UNCLICK, FORGET, ERASED = 0, 1, 2, 255  # kinds of events; nobody appends ERASED, compaction leaves it

# Magic, version, kinds of ids, encoding, 0; log, base offset, count, payload bytes, received at, CRC of the payload.
_FIELDS = struct.Struct("<4s4BQqIIqI")
_CRC = struct.Struct("<I")
HEADER = _FIELDS.size + _CRC.size
MAGIC = b"\xc1CLK"  # the first byte is none of UTF-8's: no text id can hold it
_VERSION = 1
_USER_TEXT, _ITEM_TEXT = 1, 2  # kinds of ids
_NARROW, _ONE_KIND = 1, 2  # encoding: times as uint32 above the least of the frame; one kind for all
_EVENTS, _BYTES = 65_536, 16 << 20  # a frame's most
_LONGEST = 65_535  # bytes of a text id


class Header(NamedTuple):
    """What stands before a frame's columns.

    Args:
        user_text: bool. Whether user ids are text.
        item_text: bool. Likewise for items.
        encoding: int. How times and kinds are written.
        log: int. The log's own number: a frame of another log is none of this one.
        base: int. Offset of the first event.
        events: int. How many.
        length: int. Bytes of the columns.
        received: int. When the log took the frame, in ms since the epoch.
        crc: int. CRC-32 of the columns.
    """

    user_text: bool
    item_text: bool
    encoding: int
    log: int
    base: int
    events: int
    length: int
    received: int
    crc: int


@dataclass
class Columns:
    """Events as arrays of equal length.

    Args:
        user: int64 `[n]`. Keys of the users.
        item: int64 `[n]`. Keys of the items.
        time: int64 `[n]`. Milliseconds since the epoch.
        kind: uint8 `[n]`.
        user_ids: list of str, or None where ids are numbers (or the texts were not asked for).
        item_ids: likewise.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    kind: NDArray[np.uint8]
    user_ids: list[str] | None = None
    item_ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, part: slice) -> "Columns":
        texts = [None if ids is None else ids[part] for ids in (self.user_ids, self.item_ids)]
        return Columns(self.user[part], self.item[part], self.time[part], self.kind[part], *texts)


class Payload(NamedTuple):
    """A frame that waits for its offset."""

    events: int
    encoding: int
    data: bytes
    crc: int


def keys_of(ids: Any) -> NDArray[np.int64]:
    """Keys of ids, int64 `[n]`: int64 ids are their own; text has a 63-bit fingerprint, the same everywhere."""
    values = ids if isinstance(ids, np.ndarray) else np.array([*ids], object)  # no dtype "U": it drops a last "\0"
    if not values.size or isinstance(values[0], int | np.integer):
        return values.astype(np.int64)
    from pandas.util import hash_array  # only logs with text ids pay for its import

    fingerprints = hash_array(values.astype(object), hash_key="seedrank-clicks.", categorize=False)
    return (fingerprints >> np.uint64(1)).view(np.int64)


def checked_columns(user: Any, item: Any, time: Any, kind: Any, *, user_text: bool, item_text: bool) -> Columns:
    """Columns of what a caller gave.

    Raises:
        ValueError: lengths that differ, ids of the other kind, an empty or too long text, times that are no integers.
    """
    users, user_ids = _ids(user, "user", user_text)
    items, item_ids = _ids(item, "item", item_text)
    times = _integers(time, "time")
    kinds = np.zeros(len(users), np.uint8) if kind is None else _kinds(kind, len(users))
    lengths = [len(users), len(items), len(times), len(kinds)]
    if len(set(lengths)) > 1:
        raise ValueError(f"`user`, `item`, `time` and `kind` should have one length. Received: lengths {lengths}.")
    return Columns(users, items, times, kinds, user_ids, item_ids)


def _integers(values: Any, name: str) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"`{name}` should be one-dimensional. Received: shape {list(array.shape)}.")
    if not array.size:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or (array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max):
        raise ValueError(f"`{name}` should be int64. Received: {array.dtype}, as {array.flat[0]!r:.100}.")
    return array.astype(np.int64)


def _kinds(values: Any, count: int) -> NDArray[np.uint8]:
    array = np.full(count, values) if np.ndim(values) == 0 else np.asarray(values)
    wrong = [value for value in set(array.ravel().tolist()) if value not in (CLICK, UNCLICK, FORGET)]
    if wrong or array.ndim != 1:
        raise ValueError(f"`kind` should be {CLICK}, {UNCLICK} or {FORGET}. Received: {(wrong or [values])[0]!r:.100}.")
    return array.astype(np.uint8)


def _ids(values: Any, name: str, text: bool) -> tuple[NDArray[np.int64], list[str] | None]:
    if not text:
        return _integers(values, name), None
    if isinstance(values, str | bytes):
        raise ValueError(f"`{name}` should be a list of texts. Received: {values!r:.100}.")
    texts = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for value in texts:
        if not isinstance(value, str) or not value:
            raise ValueError(f"`{name}` should be texts, none of them empty. Received: {value!r:.100}.")
    if max(map(len, texts), default=0) > _LONGEST:
        raise ValueError(f"`{name}` should be at most {_LONGEST} bytes long. Received: {max(map(len, texts))}.")
    try:
        return keys_of(np.array(texts, object)), texts
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` should be text that UTF-8 can write. Received: a lone surrogate.") from error


def encode(columns: Columns) -> Iterator[Payload]:
    """Frames of the columns, as many as their size asks for."""
    count = len(columns)
    if count > _EVENTS:
        for low in range(0, count, _EVENTS):
            yield from encode(columns[low : low + _EVENTS])
        return
    least = int(columns.time.min())
    narrow = int(columns.time.max()) - least < 1 << 32
    one_kind = bool((columns.kind == columns.kind[0]).all())
    parts = [columns.user.tobytes(), _text_bytes(columns.user_ids), columns.item.tobytes()]
    parts.append(_text_bytes(columns.item_ids))
    if narrow:
        parts += [least.to_bytes(8, "little", signed=True), (columns.time - least).astype(np.uint32).tobytes()]
    else:
        parts.append(columns.time.tobytes())
    parts.append(columns.kind[:1].tobytes() if one_kind else columns.kind.tobytes())
    data = b"".join(parts)
    if len(data) > _BYTES and count > 1:
        yield from encode(columns[: count // 2])
        yield from encode(columns[count // 2 :])
        return
    yield Payload(count, narrow * _NARROW | one_kind * _ONE_KIND, data, zlib.crc32(data))


def _text_bytes(texts: list[str] | None) -> bytes:
    if texts is None:
        return b""
    encoded = [text.encode() for text in texts]
    longest = max(map(len, encoded))
    if longest > _LONGEST:
        raise ValueError(f"An id should be at most {_LONGEST} bytes long. Received: {longest}.")
    return np.array([len(text) for text in encoded], np.uint16).tobytes() + b"".join(encoded)


def decode(header: Header, data: memoryview, *, texts: bool) -> Columns:
    """Columns of a frame, as views of its bytes where they can be."""
    count, place = header.events, 0

    def take(dtype: Any, number: int) -> NDArray[Any]:
        nonlocal place
        values = np.frombuffer(data, dtype, number, place)
        place += values.nbytes
        return values

    def take_ids(text: bool) -> tuple[NDArray[np.int64], list[str] | None]:
        nonlocal place
        keys = take(np.int64, count)
        if not text:
            return keys, None
        lengths = take(np.uint16, count)
        start, total = place, int(lengths.sum(dtype=np.int64))
        place += total
        if not texts:
            return keys, None
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        joined = bytes(data[start : start + total])
        return keys, [joined[low:high].decode() for low, high in zip([0, *ends[:-1]], ends, strict=True)]

    user, user_ids = take_ids(header.user_text)
    item, item_ids = take_ids(header.item_text)
    if header.encoding & _NARROW:
        time = take(np.int64, 1) + take(np.uint32, count)
    else:
        time = take(np.int64, count)
    kind = take(np.uint8, 1).repeat(count) if header.encoding & _ONE_KIND else take(np.uint8, count)
    return Columns(user, item, time, kind, user_ids, item_ids)


def pack_header(header: Header) -> bytes:
    """The 48 bytes of a header."""
    kinds = header.user_text * _USER_TEXT | header.item_text * _ITEM_TEXT
    packed = _FIELDS.pack(MAGIC, _VERSION, kinds, header.encoding, 0, *header[3:])
    return packed + _CRC.pack(zlib.crc32(packed))


def parse_header(data: bytes | memoryview) -> Header | None:
    """The header in 48 bytes; None where they are no header."""
    if len(data) < HEADER or data[:4] != MAGIC:
        return None
    if zlib.crc32(data[: _FIELDS.size]) != _CRC.unpack_from(data, _FIELDS.size)[0]:
        return None
    _, version, kinds, encoding, _, *rest = _FIELDS.unpack_from(data)
    if version != _VERSION:
        return None
    return Header(bool(kinds & _USER_TEXT), bool(kinds & _ITEM_TEXT), encoding, *rest)
