"""Nothing is written half: temporary name, fsync, rename."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ranking.errors import UserError

__all__ = ["atomic_directory", "atomic_file", "refuse_existing", "refuse_file"]

OURS = ("dataset.toml", "run.json")  # what a folder that may be replaced holds


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; on a clean exit it is synced and renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}-{path.name}"
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_file(path: Path, overwrite: bool) -> None:
    """Raises UserError where a file may not be written; said before the work, not after."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: choose the name of a file.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: choose another name, or pass --overwrite to replace it.")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises UserError where `path` exists and may not be replaced; said before minutes of work, not after."""
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists already: choose another folder, or pass --overwrite to replace it.")
    if not path.is_dir() or (any(path.iterdir()) and not any((path / name).is_file() for name in OURS)):
        raise UserError(f"{path} is neither a dataset nor a run, so --overwrite leaves it; choose another folder.")


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on a clean exit all its files are synced and it becomes `path`.

    Args:
        path: str or Path. The folder to make.
        overwrite: bool. Whether a folder of ours that exists is replaced. Defaults to `False`.

    Raises:
        UserError: `path` exists and `overwrite` is `False`, or it is not a folder of ours.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}-{path.name}"
    old = temporary.with_name(f"{temporary.name}-old")
    temporary.mkdir()
    try:
        yield temporary
        for found in sorted(temporary.rglob("*"), reverse=True):
            _fsync(found)
        _fsync(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two renames
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
