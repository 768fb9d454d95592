"""A file that grows, is rotated away or cut: which file goes on where reading stopped."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ranking.atomic import atomic_file
from ranking.errors import UserError

__all__ = ["Place", "continuation", "head_of", "load_place", "place_file", "save_place", "successor"]

HEAD = 256  # bytes at a file's start that tell it from another one


@dataclass(frozen=True)
class Place:
    """How far a file has been read.

    Args:
        device: int. Of the file.
        inode: int. Of the file.
        offset: int. Bytes that are dealt with.
        head: str. SHA-256 of the file's first `min(offset, 256)` bytes: they tell it from others, and hold ids.
        skipping: bool. Whether `offset` is inside of a line that is too long. Defaults to `False`.
    """

    device: int
    inode: int
    offset: int
    head: str
    skipping: bool = False


def place_file(folder: Path, path: Path) -> Path:
    """Where the place of a followed file is kept, in the log's folder."""
    return folder / "tails" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.json"


def save_place(file: Path, place: Place) -> None:
    """Writes a place, whole or not at all."""
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(asdict(place)) + "\n")


def load_place(file: Path) -> Place | None:
    """The place that was saved, None where none was.

    Raises:
        UserError: the file is not what `save_place` writes.
    """
    try:
        return Place(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: should be the place of a followed file; remove it to read the file from its start."
        ) from error


def head_of(descriptor: int, offset: int) -> str:
    """`Place.head` of an open file."""
    return hashlib.sha256(os.pread(descriptor, min(offset, HEAD), 0)).hexdigest()


def _files(path: Path) -> Iterator[Path]:
    """The file itself and those that rotation made of it: `NAME.1`, `NAME-20260131`."""
    pattern = re.compile(re.escape(path.name) + r"[.-]\d[\d.-]*")
    yield path
    if path.parent.is_dir():
        yield from (found for found in sorted(path.parent.iterdir()) if pattern.fullmatch(found.name))


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def continuation(path: Path, place: Place) -> int | None:
    """The file that goes on behind `place`, open: the same inode, wherever it was renamed to, or a copy of it.

    A file counts as the same only with the same first bytes, for inodes are used again, and when it is not shorter
    than what was read.
    """
    for copies in (False, True):
        if copies and place.offset < HEAD:
            return None  # too few bytes to know a copy by: a header of CSV is the same in all
        for file in _files(path):
            descriptor = _opened(file)
            if descriptor is None:
                continue
            found = os.fstat(descriptor)
            same = copies or (found.st_dev, found.st_ino) == (place.device, place.inode)
            if same and found.st_size >= place.offset and head_of(descriptor, place.offset) == place.head:
                return descriptor
            os.close(descriptor)
    return None


def successor(path: Path, descriptor: int) -> int | None:
    """The file that was begun after an open one, open; None where there is none yet."""
    now = os.fstat(descriptor)
    later = []
    for file in _files(path):
        try:
            found = file.stat()
        except FileNotFoundError:
            continue
        if (found.st_dev, found.st_ino) == (now.st_dev, now.st_ino):
            if file == path:
                return None  # nothing was rotated
        elif file == path or found.st_mtime_ns > now.st_mtime_ns:
            later.append((file == path, found.st_mtime_ns, file))
    return _opened(min(later)[2]) if later else None
