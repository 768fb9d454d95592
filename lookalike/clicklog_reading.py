"""Events of a click log in order, as large batches."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog_columns import Columns, decode, joined
from lookalike.clicklog_damage import Quarantine
from lookalike.clicklog_segments import Frame, Gap, frames, segment_name, segments

__all__ = ["Batch", "ClickLogError", "Reader", "opened"]

_BATCH = 131_072  # events of a batch, about


class ClickLogError(RuntimeError):
    """The log cannot do what is asked: another writer has it, it has other ids, or its disk failed."""


@dataclass(frozen=True)
class Batch:
    """Events in the order of the log.

    Args:
        offset: int. Of the first; the others follow without a gap.
        user: int64 `[n]`. Keys of the users: int64 ids themselves, `keys_of` texts.
        item: int64 `[n]`. Likewise.
        time: int64 `[n]`. When it happened, as the producer said, in ms since the epoch: not validated.
        kind: uint8 `[n]`. `CLICK`, `UNCLICK`, `FORGET`, or `ERASED`: an event of an erased user, to be skipped.
        received: int64 `[n]`. When the log took it, in ms since the epoch: the same at every reading.
        user_ids: int64 `[n]` or list of str, optional. The ids as they were given; only from `read(raw=True)`.
        item_ids: int64 `[n]` or list of str, optional. Likewise.
    """

    offset: int
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    time: NDArray[np.int64]
    kind: NDArray[np.uint8]
    received: NDArray[np.int64]
    user_ids: Any = None
    item_ids: Any = None

    def __len__(self) -> int:
        return len(self.user)

    @property
    def next(self) -> int:
        """The offset behind the last event."""
        return self.offset + len(self.user)


@contextlib.contextmanager
def opened(folder: Path, base: int) -> Iterator[int]:
    """A segment's descriptor, for reading.

    Raises:
        ClickLogError: there is no such segment.
    """
    try:
        descriptor = os.open(folder / segment_name(base), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ClickLogError(f"{folder}: {segment_name(base)} was removed while the log was read.") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Reader:
    """Reads a log's segments, and remembers where it stopped.

    Args:
        folder: Path. The log's.
        log: int. The log's number.
        quarantine: `Quarantine`. Takes the damage that is met.
    """

    def __init__(self, folder: Path, log: int, quarantine: Quarantine) -> None:
        self._folder, self._log, self._quarantine = folder, log, quarantine
        self._last: tuple[int, int, int] | None = None  # segment, byte and offset of the last frame read

    def frames(self, offset: int, until: int, end: int) -> Iterator[Frame]:
        """Frames with events from `offset` to `until`, of a log that ends at `end`; gaps on the way are noted."""
        found = segments(self._folder)
        if offset < until and (not found or found[0] > offset):
            raise ClickLogError(f"{self._folder}: events from offset {offset} were removed while the log was read.")
        for base, after in zip(found, [*found[1:], None], strict=True):
            if base >= until or (after is not None and after <= offset):
                continue
            with opened(self._folder, base) as descriptor:
                place = self._place(base, offset, descriptor)
                bound = end if after is None else after
                for piece in frames(descriptor, *place, log=self._log, bound=bound):
                    if isinstance(piece, Gap):
                        self._quarantine.add(base, piece, descriptor)
                        continue
                    if piece.header.base >= until:
                        break
                    if piece.header.next > offset:
                        self._last = base, piece.byte, piece.header.base
                        yield piece

    def _place(self, base: int, offset: int, descriptor: int) -> tuple[int, int]:
        """Byte and offset to read a segment from: the last frame read, if it is not behind `offset`."""
        last = self._last
        if last is not None and last[0] == base and last[2] <= offset:
            piece = next(frames(descriptor, last[1], last[2], log=self._log), None)
            if isinstance(piece, Frame):  # else compaction has moved it
                return last[1], last[2]
        return 0, base

    def batches(self, offset: int, until: int, end: int, *, raw: bool) -> Iterator[Batch]:
        """The events of those frames; a gap ends a batch."""
        held: list[tuple[Columns, int]] = []
        first = after = offset
        for frame in self.frames(offset, until, end):
            header = frame.header
            columns = decode(header, frame.data, texts=raw)
            low, high = max(offset - header.base, 0), min(until - header.base, header.events)
            if high - low < header.events:
                columns = columns.part(low, high)
            if held and (header.base + low != after or after - first >= _BATCH):
                yield _batch(first, held, raw)
                held = []
            if not held:
                first = header.base + low
            held.append((columns, header.received))
            after = header.base + high
        if held:
            yield _batch(first, held, raw)


def _batch(offset: int, held: list[tuple[Columns, int]], raw: bool) -> Batch:
    parts = [columns for columns, _ in held]
    whole = joined(parts)
    received = np.repeat(np.array([moment for _, moment in held]), [len(part) for part in parts])
    ids: list[Any] = [None, None]
    if raw:
        pairs = (whole.user, whole.user_ids), (whole.item, whole.item_ids)
        ids = [keys if texts is None else [text.decode() for text in texts] for keys, texts in pairs]
    return Batch(offset, whole.user, whole.item, whole.time, whole.kind, received, *ids)
