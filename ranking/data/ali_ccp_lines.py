r"""Lines of Ali-CCP's files to columns: one compiled pass over the bytes of many lines.

A line is a few columns and a feature list, separated by commas; the list's entries are separated by \x01, each is
`field \x02 feature id \x03 value`.
"""

from dataclasses import dataclass

import numba
import numpy as np
import pyarrow as pa

__all__ = ["FEW_COLUMNS", "FINE", "MALFORMED", "Layout", "Lines", "parse"]

FINE, FEW_COLUMNS, MALFORMED = 0, 1, 2
_LINE, _CARRIAGE, _COMMA, _COLON, _ENTRY, _ID, _VALUE = 10, 13, 44, 58, 1, 2, 3
_DIGITS = 18  # of a feature id: more do not fit an int64
_FNV_START, _FNV_STEP = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


@dataclass(frozen=True)
class Layout:
    """What a file's lines hold.

    Args:
        head: int. Columns in front of the feature list; the last of them counts the list's entries.
        key: int. The column with the common_feature_index.
        single: tuple of str. Fields with one value: the first is kept.
        multi: tuple of str. Fields with several weighted values: the `keep` heaviest are kept.
        keep: int. Defaults to `16`.
    """

    head: int
    key: int
    single: tuple[str, ...]
    multi: tuple[str, ...]
    keep: int = 16

    def codes(self) -> np.ndarray:
        """The fields' names as uint64, single ones first; no field has more than eight letters."""
        return np.array([int.from_bytes(name.encode(), "little") for name in self.single + self.multi], np.uint64)


@dataclass(frozen=True)
class Lines:
    """Parsed lines.

    Attributes:
        status: int8 `[n]`. FINE, FEW_COLUMNS or MALFORMED.
        columns: int64 `[n, head + 1]`. Where the columns start; the last is where the list does.
        keys: uint64 `[n]`. The hash of the key column.
        counts: int64 `[n, 2]`. Entries that the line announces (-1: no number) and that it has.
        single: int64 `[n, fields]`. -1 is missing.
        multi: list of large_string arrays `[n]`: `id:value,id:value`, empty where there is none.
        unknown, repeated, cut: int. Entries of fields the layout does not name, later values of a single field, and
            values beyond `keep`.
        unknown_field: str. The first field not named.
    """

    data: np.ndarray
    status: np.ndarray
    columns: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    single: np.ndarray
    multi: list[pa.Array]
    unknown: int
    repeated: int
    cut: int
    unknown_field: str

    def text(self, column: int) -> pa.Array:
        """A head column as text, `[n]`; of lines with too few columns it is empty."""
        start, end = self.columns[:, column], np.maximum(self.columns[:, column + 1] - 1, self.columns[:, column])
        offsets = np.append(0, np.cumsum(end - start))
        return _texts(offsets, _joined(self.data, start, offsets))

    def digit(self, column: int) -> np.ndarray:
        """A head column that should be 0 or 1, int8 `[n]`; -1 where it is anything else."""
        start, end = self.columns[:, column], self.columns[:, column + 1] - 1
        value = self.data[np.minimum(start, len(self.data) - 1)].astype(np.int16) - ord("0")
        return np.where((end - start == 1) & (value >= 0) & (value <= 1), value, -1).astype(np.int8)


def parse(data: np.ndarray, layout: Layout) -> Lines:
    """Columns of whole lines (the last may lack its line end).

    Args:
        data: uint8 `[bytes]`.
        layout: Layout.
    """
    ends = np.flatnonzero(data == _LINE)
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1):
        ends = np.append(ends, len(data))
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    carriage = (ends > starts) & (data[np.maximum(ends - 1, 0)] == _CARRIAGE)
    found = _parse(
        data, starts, ends - carriage, layout.head, layout.key, layout.codes(), len(layout.single), layout.keep
    )
    status, columns, keys, counts, single, text, offsets, tally, unknown = found
    multi = [_texts(offsets[slot], text[slot, : offsets[slot, -1]]) for slot in range(len(layout.multi))]
    name = int(unknown).to_bytes(8, "little").rstrip(b"\0").decode("utf-8", "replace")
    strange, repeated, cut = (int(count) for count in tally)
    return Lines(data, status, columns, keys, counts, single, multi, strange, repeated, cut, name)


def _texts(offsets: np.ndarray, text: np.ndarray) -> pa.Array:
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(text.copy()))


@numba.njit(nogil=True, cache=True)
def _joined(data, start, offsets):
    text = np.empty(offsets[-1], np.uint8)
    for row in range(len(start)):
        for place in range(offsets[row + 1] - offsets[row]):
            text[offsets[row] + place] = data[start[row] + place]
    return text


@numba.njit(nogil=True, cache=True)
def _whole(data, at, end):
    """A whole number and the place after it; -1 where there is none."""
    value, start = np.int64(0), at
    while at < end and 48 <= data[at] <= 57:
        value = value * 10 + np.int64(data[at] - 48)
        at += 1
    return (value if 0 < at - start <= _DIGITS else np.int64(-1)), at


@numba.njit(nogil=True, cache=True)
def _number(data, at, end):
    """A number of 0 or more, as 2.5 or 1e-05, and the place after it; NaN where there is none."""
    mantissa, digits, after, exponent, point = 0.0, 0, 0, 0, False
    while at < end and (48 <= data[at] <= 57 or (data[at] == 46 and not point)):
        if data[at] == 46:
            point = True
        else:
            mantissa = mantissa * 10 + (data[at] - 48)
            digits += 1
            after += point
        at += 1
    if at < end and (data[at] == 101 or data[at] == 69) and digits:
        at += 1
        minus = at < end and data[at] == 45
        if at < end and (data[at] == 45 or data[at] == 43):
            at += 1
        start = at
        exponent, at = _whole(data, at, min(end, at + 3))
        digits = 0 if at == start else digits
        exponent = -exponent if minus else exponent
    # one exactly rounded division where it can be: equal texts and equal numbers compare equal
    power = exponent - after
    value = mantissa / 10.0**-power if power < 0 else mantissa * 10.0**power
    return (value if digits and value < 3e38 else np.nan), at


@numba.njit(nogil=True, cache=True)
def _keep(value, entry, weights, spans, size, lightest):
    """Puts an entry among the heaviest, in the order of the line; of equals the earlier stays. Size and lightest."""
    keep = len(weights)
    if size == keep:
        if weights[lightest] >= value:
            return size, lightest
        for place in range(lightest, keep - 1):
            weights[place] = weights[place + 1]
            spans[place] = spans[place + 1]
        size -= 1
    weights[size] = value
    for part in range(4):
        spans[size, part] = entry[part]
    size += 1
    if size == keep:
        lightest = 0
        for place in range(1, keep):
            if weights[place] <= weights[lightest]:
                lightest = place
    return size, lightest


@numba.njit(nogil=True, cache=True)
def _entry(data, at, end, entry):
    r"""One `field \x02 id \x03 value`: (status, field code, id, value, the place after it); `entry` gets the spans."""
    code, shift = np.uint64(0), 0
    while at < end and data[at] != _ID and data[at] != _ENTRY:
        code |= np.uint64(data[at]) << np.uint64(shift) if shift < 64 else ~np.uint64(0)
        shift += 8
        at += 1
    if at >= end or data[at] != _ID or shift == 0:
        return MALFORMED, code, np.int64(-1), 0.0, at
    entry[0] = at + 1
    identity, at = _whole(data, at + 1, end)
    entry[1] = at
    if identity < 0 or at >= end or data[at] != _VALUE:
        return MALFORMED, code, identity, 0.0, at
    entry[2] = at + 1
    value, at = _number(data, at + 1, end)
    entry[3] = at
    good = not np.isnan(value) and (at == end or data[at] == _ENTRY)
    return (FINE if good else MALFORMED), code, identity, value, at + 1


@numba.njit(nogil=True, cache=True)
def _entries(data, at, end, codes, single, weights, spans, sizes, tally):
    """A feature list into one line's single values and heaviest multi values: (status, entries, unknown code)."""
    entry = np.empty(4, np.int64)
    lows = np.zeros(len(sizes), np.int64)
    found, unknown, singles, keep = 0, np.uint64(0), len(single), weights.shape[1]
    while at < end:
        status, code, identity, value, at = _entry(data, at, end, entry)
        if status != FINE:
            return status, found, unknown
        found += 1
        field = 0
        while field < len(codes) and codes[field] != code:
            field += 1
        if field == len(codes):
            tally[0] += 1
            unknown = code if unknown == 0 else unknown
        elif field < singles:
            tally[1] += single[field] >= 0
            single[field] = identity if single[field] < 0 else single[field]
        else:
            slot = field - singles
            tally[2] += sizes[slot] == keep
            sizes[slot], lows[slot] = _keep(value, entry, weights[slot], spans[slot], sizes[slot], lows[slot])
    return FINE, found, unknown


@numba.njit(nogil=True, cache=True)
def _write(data, spans, text, place):
    """`id:value,id:value` of the spans, from a place on; the place after it."""
    for kept in range(len(spans)):
        if kept:
            text[place] = _COMMA
            place += 1
        for source in range(spans[kept, 0], spans[kept, 1]):
            text[place] = data[source]
            place += 1
        text[place] = _COLON
        place += 1
        for source in range(spans[kept, 2], spans[kept, 3]):
            text[place] = data[source]
            place += 1
    return place


@numba.njit(nogil=True, cache=True)
def _head(data, at, end, key, columns):
    """Starts of the columns in front of the list: (status, hash of the key, announced entries)."""
    columns[:] = at
    column, head = 0, len(columns) - 1
    while at < end and column < head:
        if data[at] == _COMMA:
            column += 1
            columns[column] = at + 1
        at += 1
    if column < head:
        columns[:] = columns[0]
        return FEW_COLUMNS, np.uint64(0), np.int64(-1)
    mixed = _FNV_START
    for place in range(columns[key], columns[key + 1] - 1):
        mixed = (mixed ^ np.uint64(data[place])) * _FNV_STEP
    announced, stop = _whole(data, columns[head - 1], at - 1)
    return FINE, mixed, (announced if stop == at - 1 else np.int64(-1))


@numba.njit(nogil=True, cache=True)
def _parse(data, starts, ends, head, key, codes, singles, keep):
    lines, multis = len(starts), len(codes) - singles
    status = np.zeros(lines, np.int8)
    columns = np.zeros((lines, head + 1), np.int64)
    keys = np.zeros(lines, np.uint64)
    counts = np.zeros((lines, 2), np.int64)
    single = np.full((lines, singles), -1, np.int64)
    text = np.empty((multis, len(data) + 1), np.uint8)  # what is written of an entry is never longer than the entry
    offsets = np.zeros((multis, lines + 1), np.int64)
    tally = np.zeros(3, np.int64)  # unknown, repeated, cut
    unknown = np.uint64(0)
    weights = np.empty((multis, keep), np.float64)
    spans = np.empty((multis, keep, 4), np.int64)
    for line in range(lines):
        sizes, here = np.zeros(multis, np.int64), np.zeros(3, np.int64)
        status[line], keys[line], counts[line, 0] = _head(data, starts[line], ends[line], key, columns[line])
        if status[line] == FINE:
            at = columns[line, head]
            status[line], counts[line, 1], strange = _entries(
                data, at, ends[line], codes, single[line], weights, spans, sizes, here
            )
            unknown = strange if unknown == 0 else unknown
        if status[line] == FINE:
            tally += here
        else:
            single[line] = -1
            sizes[:] = 0
        for slot in range(multis):
            place = _write(data, spans[slot, : sizes[slot]], text[slot], offsets[slot, line])
            offsets[slot, line + 1] = place
    return status, columns, keys, counts, single, text, offsets, tally, unknown
