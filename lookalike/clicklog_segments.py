"""Files of a click log: segments read frame by frame, whatever became of their bytes."""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lookalike.clicklog_frames import HEADER, MAGIC, Header, parse_header

__all__ = ["Frame", "Gap", "frames", "segment_name", "segments", "sync_folder"]

_ENDING = ".clicks"
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Frame:
    """A frame whose checks hold.

    Args:
        byte: int. Its place in the segment.
        header: `Header`.
        data: memoryview. Its columns.
    """

    byte: int
    header: Header
    data: memoryview


@dataclass(frozen=True)
class Gap:
    """A place where frames should be and none is.

    Args:
        byte: int. Its place in the segment.
        size: int. Bytes of it that are there, and no frame.
        offset: int. The first event it should hold.
        lost: int or None. How many events; None at the end of a segment that nothing says the end of.
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
    return sorted(int(name) for name in names if name.isdigit())


def sync_folder(folder: Path) -> None:
    """Makes the folder's list of files durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Window:
    """A file's bytes, read in large pieces. No memory map: a file that shrinks under one kills the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._start, self._data = descriptor, 0, memoryview(b"")

    def get(self, byte: int, size: int) -> memoryview:
        """Up to `size` bytes: fewer at the file's end."""
        low = byte - self._start
        if low < 0 or low + size > len(self._data):
            self._data = memoryview(os.pread(self._descriptor, max(size, _CHUNK), byte))
            self._start, low = byte, 0
        return self._data[low : low + size]

    def header(self, byte: int, log: int | None) -> Header | None:
        found = parse_header(self.get(byte, HEADER))
        return found if found is None or log in (None, found.log) else None

    def next_header(self, byte: int, log: int | None, least: int) -> int | None:
        """Place of the first header at `byte` or later whose offset is `least` or above."""
        while True:
            piece = bytes(self.get(byte, _CHUNK))
            place = piece.find(MAGIC)
            while place >= 0:
                found = self.header(byte + place, log)
                if found is not None and found.base >= least:
                    return byte + place
                place = piece.find(MAGIC, place + 1)
            if len(piece) < _CHUNK:
                return None
            byte += len(piece) - len(MAGIC) + 1


def frames(
    descriptor: int, byte: int, offset: int, *, log: int | None, bound: int | None, size: int | None = None
) -> Iterator[Frame | Gap]:
    """Frames of a segment, in order, and the gaps between them.

    Args:
        descriptor: int. The open segment.
        byte: int. Where to start: a frame's place.
        offset: int. The offset of that frame.
        log: int or None. The log's number; None takes any.
        bound: int or None. The offset at which the segment ends. None where it is not known: then what is no frame at
            the end is a gap with `lost` None.
        size: int, optional. Bytes of the segment to look at. Defaults to all there are now.
    """
    size = os.fstat(descriptor).st_size if size is None else size
    window = _Window(descriptor)
    while bound is None or offset < bound:
        header = window.header(byte, log)
        if header is not None and header.base >= offset and (bound is None or header.base + header.events <= bound):
            if header.base > offset:
                yield Gap(byte, 0, offset, header.base - offset)
                offset = header.base
            data = window.get(byte + HEADER, header.length)
            if len(data) == header.length and zlib.crc32(data) == header.crc:
                yield Frame(byte, header, data)
                byte, offset = byte + HEADER + header.length, offset + header.events
                continue
            follower = window.header(byte + HEADER + header.length, log)
            if follower is not None and follower.base == offset + header.events:
                yield Gap(byte, HEADER + header.length, offset, header.events)
                byte, offset = byte + HEADER + header.length, offset + header.events
                continue
        place = window.next_header(byte + 1, log, offset) if byte < size else None
        if place is None:
            if bound is not None or byte < size:
                yield Gap(byte, max(size - byte, 0), offset, None if bound is None else bound - offset)
            return
        following = window.header(place, log)
        base = offset if following is None else following.base
        base = base if bound is None else min(base, bound)
        yield Gap(byte, place - byte, offset, base - offset)
        byte, offset = place, base
