"""Segment files of a click log, read frame by frame, whatever became of their bytes."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lookalike.clicklog_frames import HEADER, MAGIC, Header, parse_header

__all__ = ["Frame", "Gap", "frames", "segment_name", "segments"]

_ENDING = ".clicks"
_CHUNK = 4 << 20


class Frame(NamedTuple):
    """A frame whose checks hold.

    Args:
        byte: int. Its place in the segment.
        header: `Header`.
        data: memoryview. Its columns.
    """

    byte: int
    header: Header
    data: memoryview


class Gap(NamedTuple):
    """A place where a frame should be and none is.

    Args:
        byte: int. Its place in the segment.
        size: int. Bytes that are there, and no frame.
        offset: int. The first event it should hold.
        lost: int or None. How many events; None at the end of a segment that nothing tells the end of.
    """

    byte: int
    size: int
    offset: int
    lost: int | None


def segment_name(base: int) -> str:
    """File name of the segment that starts at an offset."""
    return f"{base:020d}{_ENDING}"


def segments(folder: Path) -> list[int]:
    """Offsets that the segments of a folder start at, in order."""
    names = [name.removesuffix(_ENDING) for name in os.listdir(folder) if name.endswith(_ENDING)]
    return sorted(int(name) for name in names if name.isdecimal())


class _Window:
    """A file's bytes, read in large pieces. No memory map: a file that shrinks under one kills the process."""

    def __init__(self, descriptor: int, log: int | None) -> None:
        self._descriptor, self._log = descriptor, log
        self._start, self._data = 0, memoryview(b"")

    def get(self, byte: int, size: int) -> memoryview:
        """Up to `size` bytes: fewer at the file's end."""
        low = byte - self._start
        if low < 0 or low + size > len(self._data):
            self._data = memoryview(os.pread(self._descriptor, max(size, _CHUNK), byte))
            self._start, low = byte, 0
        return self._data[low : low + size]

    def header(self, byte: int) -> Header | None:
        """The header at a place; None where there is none of this log."""
        found = parse_header(self.get(byte, HEADER))
        return found if found is None or self._log in (None, found.log) else None

    def next_header(self, byte: int, least: int) -> int | None:
        """Place of the first header at `byte` or later whose offset is `least` or above."""
        while True:
            piece = bytes(self.get(byte, _CHUNK))
            place = piece.find(MAGIC)
            while place >= 0:
                found = self.header(byte + place)
                if found is not None and found.base >= least:
                    return byte + place
                place = piece.find(MAGIC, place + 1)
            if len(piece) < _CHUNK:
                return None
            byte += len(piece) - len(MAGIC) + 1


def frames(
    descriptor: int, byte: int, offset: int, *, log: int | None = None, bound: int | None = None
) -> Iterator[Frame | Gap]:
    """Frames of a segment, in order, and the gaps between them.

    A frame is searched for behind a damaged one by its header, which carries its offset: so the events lost between
    two frames are counted exactly.

    Args:
        descriptor: int. The open segment.
        byte: int. Where to start: a frame's place.
        offset: int. The offset of that frame.
        log: int, optional. The log's number. Defaults to any.
        bound: int, optional. The offset at which the segment ends. Where it is not known, what is no frame at the end
            is a gap with `lost` None.
    """
    size, window = os.fstat(descriptor).st_size, _Window(descriptor, log)
    while bound is None or offset < bound:
        header = window.header(byte)
        if header is not None and header.base == offset and (bound is None or header.next <= bound):
            data = window.get(byte + HEADER, header.length)
            if len(data) == header.length and zlib.crc32(data) == header.crc:
                yield Frame(byte, header, data)
                byte, offset = byte + header.size, header.next
                continue
        place, base = _next_frame(window, byte, offset, header, size)
        if base is None and bound is None and byte >= size:
            return
        end = bound if base is None or (bound is not None and base > bound) else base
        yield Gap(byte, max(place - byte, 0), offset, None if end is None else end - offset)
        if base is None or end is None:
            return
        byte, offset = place, end


def _next_frame(window: _Window, byte: int, offset: int, header: Header | None, size: int) -> tuple[int, int | None]:
    """Where frames go on behind a place that has not the one it should: byte and offset, None where they don't."""
    if header is not None and header.base > offset:
        return byte, header.base  # frames are missing, and no bytes of them are left
    if header is not None and header.base == offset:
        follower = window.header(byte + header.size)
        if follower is not None and follower.base == header.next:
            return byte + header.size, header.next
    place = window.next_header(byte + 1, offset) if byte < size else None
    found = None if place is None else window.header(place)
    return (size, None) if place is None or found is None else (place, found.base)
