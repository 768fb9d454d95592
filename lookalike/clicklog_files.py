"""The small files beside a click log's segments: its format, the durable mark, the quarantine."""

import contextlib
import json
import logging
import os
import secrets
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from lookalike.clicklog_segments import Gap, segment_name, sync_folder

__all__ = ["Damage", "Format", "Mark", "Quarantine", "write_whole"]

_logger = logging.getLogger("lookalike.clicklog")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Format:
    """What a log was made as.

    Args:
        log: int. Its own number, drawn once: its frames carry it.
        user_ids: str. `"int64"` or `"string"`.
        item_ids: str. Likewise.
    """

    log: int
    user_ids: str
    item_ids: str

    @classmethod
    def read(cls, folder: Path) -> "Format | None":
        """The format of a folder; None where its file is missing or damaged."""
        try:
            told = json.loads((folder / "format.json").read_bytes())
            return cls(int(told["log"], 16), told["user_ids"], told["item_ids"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Writes it."""
        told = {"format": 1, "log": f"{self.log:016x}", "user_ids": self.user_ids, "item_ids": self.item_ids}
        write_whole(folder / "format.json", json.dumps(told, indent=1).encode() + b"\n")


class Mark:
    """The offset up to which events are durable: other processes read no further.

    A frame that is whole may still be taken back, when its sync fails. The mark need not be durable itself: an old
    one only hides events until the writer opens the log again.
    """

    _FIELDS = struct.Struct("<QqI")

    def __init__(self, folder: Path, log: int) -> None:
        self._path, self._log, self._descriptor = folder / "durable", log, -1

    def read(self) -> int | None:
        """The offset; None where there is no mark, or none of this log."""
        for _ in range(3):  # a reader may meet the writer in the middle of its 20 bytes
            with contextlib.suppress(FileNotFoundError, struct.error):
                log, offset, crc = self._FIELDS.unpack(self._path.read_bytes())
                if log == self._log and crc == zlib.crc32(self._FIELDS.pack(log, offset, 0)):
                    return offset
        return None

    def write(self, offset: int) -> None:
        """Moves the mark."""
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        crc = zlib.crc32(self._FIELDS.pack(self._log, offset, 0))
        os.pwrite(self._descriptor, self._FIELDS.pack(self._log, offset, crc), 0)

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True)
class Damage:
    """A place of the log where acknowledged events are lost.

    Args:
        segment: str. The file.
        byte: int. The place in it.
        size: int. Bytes that are no valid frame; 0 where frames are simply not there.
        offset: int. The first event lost.
        lost: int. How many.
        quarantined: bool. Whether the bytes were copied to the log's quarantine folder.
    """

    segment: str
    byte: int
    size: int
    offset: int
    lost: int
    quarantined: bool


class Quarantine:
    """Copies of damaged bytes, each with a note, that stay until someone removes them by hand."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "quarantine"
        self._found: dict[tuple[str, int], Damage] = {}

    def damages(self) -> list[Damage]:
        """All damage noted so far, by any process, in the order of offsets."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                damage = Damage(**json.loads(path.read_bytes()))
                self._found.setdefault((damage.segment, damage.offset), damage)
        return sorted(self._found.values(), key=lambda damage: damage.offset)

    def add(self, base: int, gap: Gap, descriptor: int) -> None:
        """Notes a gap, unless it is known, and copies its bytes. Where the folder can't be written, it is kept here."""
        name = segment_name(base)
        if (name, gap.offset) in self._found:
            return
        path = self._folder / f"{base:020d}-{gap.offset:020d}"
        if path.with_suffix(".json").exists():
            self.damages()
            return
        damage = Damage(name, gap.byte, gap.size, gap.offset, gap.lost or 0, True)
        try:
            self._folder.mkdir(exist_ok=True)
            write_whole(path.with_suffix(".bytes"), os.pread(descriptor, gap.size, gap.byte))
            write_whole(path.with_suffix(".json"), json.dumps(asdict(damage), indent=1).encode() + b"\n")
        except OSError as error:
            damage = Damage(name, gap.byte, gap.size, gap.offset, gap.lost or 0, False)
            _logger.error("%s: the damaged bytes could not be copied to quarantine: %s", self._folder, error)
        self._found[name, gap.offset] = damage
        _logger.error(
            "%s: %d bytes at byte %d are no valid frame: %d events from offset %d are lost",
            self._folder.parent / name, gap.size, gap.byte, damage.lost, gap.offset,
        )  # fmt: skip

    def forget_bytes(self) -> None:
        """Removes the copied bytes, for an erasure; the notes stay."""
        for path in self._folder.glob("*.bytes"):
            path.unlink(missing_ok=True)
