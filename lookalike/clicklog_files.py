"""The small files beside a click log's segments: its format and the durable mark; and files written whole."""

import contextlib
import json
import os
import secrets
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Format", "Mark", "sync_folder", "write_whole"]


def sync_folder(folder: Path) -> None:
    """Makes the list of a folder's files durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.writelines(pieces)
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
        log: int. Its own number, drawn once; every frame carries it.
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
            found = cls(int(told["log"], 16), told["user_ids"], told["item_ids"])
            return found if told == found._told() else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Writes it."""
        write_whole(folder / "format.json", [json.dumps(self._told(), indent=1).encode(), b"\n"])

    def _told(self) -> dict[str, object]:
        told = {"format": 1, "log": f"{self.log:016x}", "user_ids": self.user_ids, "item_ids": self.item_ids}
        return told | {"crc": zlib.crc32(json.dumps(told).encode())}


class Mark:
    """The offset up to which events are durable: other processes read no further, for a failed sync takes frames back.

    The mark itself is not synced. After a power loss it may be an old one, which hides events until the log's writer
    opens it again, and no more.
    """

    _FIELDS = struct.Struct("<QqI")  # log, offset, CRC

    def __init__(self, folder: Path, log: int) -> None:
        self._path, self._log, self._descriptor = folder / "durable", log, -1

    def _packed(self, offset: int) -> bytes:
        return self._FIELDS.pack(self._log, offset, zlib.crc32(self._FIELDS.pack(self._log, offset, 0)))

    def read(self) -> int | None:
        """The offset; None where there is no mark, or none of this log."""
        for _ in range(3):  # a reader may meet the writer amid its 20 bytes
            with contextlib.suppress(FileNotFoundError, struct.error):
                data = self._path.read_bytes()
                offset = self._FIELDS.unpack(data)[1]
                if data == self._packed(offset):
                    return offset
        return None

    def write(self, offset: int) -> None:
        """Moves the mark."""
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.pwrite(self._descriptor, self._packed(offset), 0)

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
