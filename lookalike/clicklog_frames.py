"""Headers of a click log's frames: what a frame holds, and a check of every byte of it."""

import struct
import zlib
from typing import NamedTuple

__all__ = ["HEADER", "MAGIC", "Header", "pack_header", "parse_header"]

# Magic, version, kinds of ids, encoding, 0; log, base offset, events, bytes of the columns, received, their CRC.
_FIELDS = struct.Struct("<4s4BQqIIqI")
_CRC = struct.Struct("<I")
HEADER = _FIELDS.size + _CRC.size  # 48 bytes
MAGIC = b"\xc1CLK"  # the first byte is none of UTF-8's: no text id can hold it
_VERSION = 1
_USER_TEXT, _ITEM_TEXT = 1, 2


class Header(NamedTuple):
    """What stands before a frame's columns.

    Args:
        user_text: bool. Whether user ids are text.
        item_text: bool. Likewise for items.
        encoding: int. How times and kinds are written.
        log: int. The log's own number, drawn at random: nobody's ids can look like a frame of it.
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

    @property
    def next(self) -> int:
        """The offset behind the last event."""
        return self.base + self.events

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        return HEADER + self.length


def pack_header(header: Header) -> bytes:
    """The bytes of a header, its own CRC last."""
    kinds = header.user_text * _USER_TEXT | header.item_text * _ITEM_TEXT
    packed = _FIELDS.pack(MAGIC, _VERSION, kinds, header.encoding, 0, *header[3:])
    return packed + _CRC.pack(zlib.crc32(packed))


def parse_header(data: bytes | memoryview) -> Header | None:
    """The header in some bytes; None where they are none."""
    if len(data) < HEADER or data[:4] != MAGIC:
        return None
    if zlib.crc32(data[: _FIELDS.size]) != _CRC.unpack_from(data, _FIELDS.size)[0]:
        return None
    _, version, kinds, encoding, _, *rest = _FIELDS.unpack_from(data)
    return Header(bool(kinds & _USER_TEXT), bool(kinds & _ITEM_TEXT), encoding, *rest) if version == _VERSION else None
