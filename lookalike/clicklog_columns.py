"""Events of a click log as columns: checked, keyed, written to bytes and read from them."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog_frames import Header

__all__ = [
    "CLICK",
    "ERASED",
    "FORGET",
    "UNCLICK",
    "Columns",
    "Payload",
    "checked_columns",
    "decode",
    "encode",
    "joined",
    "keys_of",
]

CLICK, UNCLICK, FORGET, ERASED = 0, 1, 2, 255  # kinds of events; ERASED is what compaction leaves
_NARROW, _ONE_KIND = 1, 2  # encodings: times as uint32 above the frame's least one; one kind for all
_EVENTS, _BYTES = 65_536, 16 << 20  # a frame's most
_LONGEST = 65_535  # bytes of a text id
_KEY = "seedrank-clicks."  # of the fingerprints, which are in logs and snapshots: never another one


@dataclass
class Columns:
    """Events as arrays of equal length.

    Args:
        user: int64 `[n]`. Keys of the users.
        item: int64 `[n]`. Keys of the items.
        time: int64 `[n]`. Milliseconds since the epoch.
        kind: uint8 `[n]`.
        user_ids: list of bytes, optional. The texts in UTF-8; None where ids are numbers, or were not asked for.
        item_ids: list of bytes, optional. Likewise.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    kind: NDArray[np.uint8]
    user_ids: list[bytes] | None = None
    item_ids: list[bytes] | None = None

    def __len__(self) -> int:
        return len(self.user)

    def part(self, low: int, high: int) -> "Columns":
        """The events from `low` to `high`."""
        texts = [None if ids is None else ids[low:high] for ids in (self.user_ids, self.item_ids)]
        return Columns(self.user[low:high], self.item[low:high], self.time[low:high], self.kind[low:high], *texts)


class Payload(NamedTuple):
    """A frame's columns as bytes, before the frame has its offset.

    Args:
        events: int. How many.
        encoding: int. How times and kinds are written.
        data: bytes.
        crc: int. CRC-32 of `data`.
    """

    events: int
    encoding: int
    data: bytes
    crc: int


def keys_of(ids: Any) -> NDArray[np.int64]:
    """Keys of ids: int64 ids are their own, texts have a 63-bit fingerprint, the same on every machine.

    Args:
        ids: int64 `[n]`, or texts (a list, or an array of objects or of texts).

    Returns:
        int64 `[n]`.
    """
    values = ids if isinstance(ids, np.ndarray) else np.array([*ids], object)  # dtype "U" would drop a last "\0"
    if not len(values) or isinstance(values[0], int | np.integer):
        return values.astype(np.int64)
    from pandas.util import hash_array  # only logs with text ids pay for its import

    hashes = hash_array(values.astype(object), hash_key=_KEY, categorize=False)
    return (hashes >> np.uint64(1)).view(np.int64)


def checked_columns(user: Any, item: Any, time: Any, kind: Any, *, user_text: bool, item_text: bool) -> Columns:
    """Columns of what a caller gave.

    Raises:
        ValueError: lengths that differ, ids of the other kind, an empty or too long text, times that are no integers.
    """
    users, user_ids = _texts(user, "user") if user_text else (_integers(user, "user"), None)
    items, item_ids = _texts(item, "item") if item_text else (_integers(item, "item"), None)
    times = _integers(time, "time")
    kinds = np.full(len(users), CLICK, np.uint8) if kind is None else _kinds(kind)
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
        raise ValueError(f"`{name}` should be int64. Received: {array.dtype}, as {array[0]!r:.100}.")
    return array.astype(np.int64)


def _kinds(values: Any) -> NDArray[np.uint8]:
    array = _integers(values, "kind")
    wrong = array[~np.isin(array, (CLICK, UNCLICK, FORGET))]
    if wrong.size:
        raise ValueError(f"`kind` should be {CLICK}, {UNCLICK} or {FORGET}. Received: {wrong[0]}.")
    return array.astype(np.uint8)


def _texts(values: Any, name: str) -> tuple[NDArray[np.int64], list[bytes]]:
    texts = values.tolist() if isinstance(values, np.ndarray) else [values] if isinstance(values, str) else [*values]
    for value in texts:
        if not isinstance(value, str) or not value:
            raise ValueError(f"`{name}` should be texts, none of them empty. Received: {value!r:.100}.")
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` should be texts that UTF-8 can write. Received: {error.object!r:.100}.") from error
    longest = max(map(len, encoded), default=0)
    if longest > _LONGEST:
        raise ValueError(f"`{name}` should be at most {_LONGEST} bytes long. Received: {longest} bytes.")
    return keys_of(np.array(texts, object)), encoded


def joined(parts: Sequence[Columns]) -> Columns:
    """Columns one behind the other: always new arrays, aligned ones that may be written."""
    names = ("user", "item", "time", "kind")
    user, item, time, kind = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    texts: list[list[bytes] | None] = [None, None]
    for index, name in enumerate(("user_ids", "item_ids")):
        if getattr(parts[0], name) is not None:
            texts[index] = [text for part in parts for text in getattr(part, name)]
    return Columns(user, item, time, kind, *texts)


def encode(columns: Columns) -> Iterator[Payload]:
    """Columns as bytes, for as many frames as their size asks for; none for no events."""
    count = len(columns)
    if not count:
        return
    if count > _EVENTS:
        for low in range(0, count, _EVENTS):
            yield from encode(columns.part(low, low + _EVENTS))
        return
    parts = [columns.user.tobytes(), *_text_bytes(columns.user_ids)]
    parts += [columns.item.tobytes(), *_text_bytes(columns.item_ids)]
    least = int(columns.time.min())
    narrow = int(columns.time.max()) - least < 1 << 32
    if narrow:
        parts += [least.to_bytes(8, "little", signed=True), (columns.time - least).astype(np.uint32).tobytes()]
    else:
        parts.append(columns.time.tobytes())
    one_kind = bool((columns.kind == columns.kind[0]).all())
    parts.append(columns.kind[: 1 if one_kind else count].tobytes())
    data = b"".join(parts)
    if len(data) > _BYTES and count > 1:
        yield from encode(columns.part(0, count // 2))
        yield from encode(columns.part(count // 2, count))
        return
    yield Payload(count, narrow * _NARROW | one_kind * _ONE_KIND, data, zlib.crc32(data))


def _text_bytes(texts: list[bytes] | None) -> list[bytes]:
    return [] if texts is None else [np.fromiter(map(len, texts), np.uint16, len(texts)).tobytes(), *texts]


class _Cursor:
    """Arrays out of a frame's bytes, one behind the other, as views."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._place = data, 0

    def take(self, dtype: Any, count: int) -> NDArray[Any]:
        values = np.frombuffer(self._data, dtype, count, self._place)
        self._place += values.nbytes
        return values

    def take_texts(self, count: int, wanted: bool) -> list[bytes] | None:
        lengths = self.take(np.uint16, count)
        ends = np.cumsum(lengths, dtype=np.int64)
        start, self._place = self._place, self._place + int(ends[-1])
        if not wanted:
            return None
        text, bounds = bytes(self._data[start : self._place]), ends.tolist()
        return [text[low:high] for low, high in zip([0, *bounds[:-1]], bounds, strict=True)]


def decode(header: Header, data: memoryview, *, texts: bool) -> Columns:
    """A frame's columns, as views of its bytes where they can be; the texts of ids where they are wanted."""
    count, cursor = header.events, _Cursor(data)
    user = cursor.take(np.int64, count)
    user_ids = cursor.take_texts(count, texts) if header.user_text else None
    item = cursor.take(np.int64, count)
    item_ids = cursor.take_texts(count, texts) if header.item_text else None
    if header.encoding & _NARROW:
        time = cursor.take(np.int64, 1) + cursor.take(np.uint32, count)
    else:
        time = cursor.take(np.int64, count)
    if header.encoding & _ONE_KIND:
        kind = cursor.take(np.uint8, 1).repeat(count)
    else:
        kind = cursor.take(np.uint8, count)
    return Columns(user, item, time, kind, user_ids, item_ids)
