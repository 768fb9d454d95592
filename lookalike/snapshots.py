"""Snapshots of the seed store, and the store as it is after a restart: the newest good snapshot and a replay."""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import ClickLog
from lookalike.clicklog_files import Format
from lookalike.seeds import Counts, SeedStore

__all__ = ["SnapshotError", "Snapshots", "catch_up", "open_store", "state_of"]

_logger = logging.getLogger("lookalike.snapshots")

_MAGIC = b"seedrank snapshot 1\n"
_HEAD = struct.Struct("<4sIQ")  # kind of the block, checksum of this and all before it, bytes that follow
_BLOCK = 1 << 20  # entries, about
_ENDING = ".snapshot"


class SnapshotError(RuntimeError):
    """A snapshot and the log do not belong together; the message says what to do."""


class _Damaged(Exception):
    """A file is not what was written."""


class Snapshots:
    """Snapshots of a store in a folder, each with the offset of the log at which to go on.

    A file appears whole or not at all. It begins with the state, which is a function of the set of events alone:
    whatever their order was, `state_of` gives the same bytes. Offset, counts and marks of change follow. Every block's
    checksum covers all before it.

    Args:
        folder: str or Path. It is made where it is absent.
        keep: int. Snapshots kept. Defaults to `2`.

    Attributes:
        damaged: list of Path. Files that `load` found damaged and set aside, under another name.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"`keep` should be a positive integer. Received: keep={keep}.")
        self.folder, self.keep = Path(folder), keep
        self.damaged: list[Path] = []

    def paths(self) -> list[Path]:
        """The files, the newest first."""
        return sorted(self.folder.glob(f"*{_ENDING}"), reverse=True)

    def save(self, store: SeedStore, *, alone: bool = False) -> Path:
        """Writes a snapshot.

        The store may go on meanwhile: it is held for a block of about a million entries at a time. What comes in
        between may get into the file already, which does no harm: the replay brings it again.

        Args:
            store: SeedStore.
            alone: bool. Whether all older snapshots are removed, as after `SeedStore.erase`. Defaults to `False`.

        Returns:
            Path. The file.

        Raises:
            OSError: it could not be written; the others are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".tmp-*"):
            stale.unlink(missing_ok=True)
        offset, counts, n, (items, sizes, changed) = store.position()
        path = self.folder / f"{offset:020d}{_ENDING}"
        temporary = self.folder / f".tmp-{secrets.token_hex(8)}"
        try:
            with open(temporary, "wb") as file:
                writer = _Writer(file)
                names = ("latest", "byte_budget", "future_seconds")
                writer.json(b"head", {**{name: getattr(store, name) for name in names}, "n": n})
                block = (np.cumsum(sizes) - sizes) // _BLOCK
                for low, high in _runs(block):
                    writer.arrays(b"item", items[low:high], *store.entries(items[low:high]))
                writer.arrays(b"gone", *store.forgotten())
                writer.json(b"done", {"offset": offset, "counts": asdict(counts), "log": store.log})
                writer.arrays(b"mark", changed)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.folder)
        for old in self.paths():
            if old != path and (alone or old not in self.paths()[: self.keep]):
                old.unlink()
        return path

    @contextlib.contextmanager
    def held(self, *, alone: bool = False) -> Iterator[None]:
        """While the block runs, nobody erases users from these snapshots: a store in use would bring them back.

        Args:
            alone: bool. Whether nobody else uses them at all, as erasure asks. Defaults to `False`.

        Raises:
            SnapshotError: users are being erased; with `alone`, somebody uses the snapshots.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if alone:
                raise
            _logger.warning("%s: cannot be held against erasure: %s", self.folder, error)  # nor can it be saved to
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                who = "another process uses these snapshots" if alone else "users are being erased from these snapshots"
                raise SnapshotError(f"{self.folder}: {who}.") from None
            yield
        finally:
            os.close(descriptor)

    def holding(self, users: Any) -> list[Path]:
        """Files that hold anything of some users; those that cannot be read, and what was left half-written, may.

        Args:
            users: int64 `[n]`. Keys of users.
        """
        users = np.asarray(users, np.int64)
        unreadable = [*self.folder.glob("*.damaged"), *self.folder.glob(".tmp-*")]
        return [path for path in self.paths() if _holds(path, users)] + sorted(unreadable)

    def load(self) -> SeedStore | None:
        """The store of the newest good snapshot, None where there is none; damaged ones are renamed and reported."""
        for path in self.paths():
            try:
                return _load(path)
            except _Damaged as error:
                aside = path.with_suffix(".damaged")
                os.replace(path, aside)
                self.damaged.append(aside)
                _logger.error("%s is damaged (%s) and set aside as %s", path, error, aside.name)
        return None


def open_store(
    log: ClickLog,
    snapshots: Snapshots,
    *,
    latest: int = 3_000_000,
    byte_budget: int | None = None,
    future_seconds: int = 300,
    accept_loss: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SeedStore:
    """The store as of the end of the log: from the newest good snapshot, or else from the log's beginning.

    Args:
        log: ClickLog.
        snapshots: Snapshots.
        latest: int. Most users kept of an item. Defaults to `3_000_000`.
        byte_budget: int, optional. Bytes for all seeds at 16 each. Defaults to no limit.
        future_seconds: int. How far an event's time may be after the log received it. Defaults to `300`.
        accept_loss: bool. Whether to go on without events that neither a snapshot nor the log holds. Defaults to
            `False`.
        progress: callable, optional. Called with the events replayed so far and all to replay.

    Raises:
        SnapshotError: the snapshot is ahead of the log or of another log; or events in between were removed.
    """
    settings: dict[str, Any] = {"latest": latest, "byte_budget": byte_budget, "future_seconds": future_seconds}
    store = snapshots.load()
    told = Format.read(log.folder)
    number = told.log if told else None
    if store is not None:
        _refuse_other(store, log, number, snapshots)
        try:
            store.adapt(**settings)
        except ValueError as error:
            if log.start > 0:
                raise SnapshotError(
                    f"{snapshots.folder}: {error} The log has lost the events before {log.start}: keep the settings."
                ) from error
            store = None
    if store is None:
        store = SeedStore(**settings)
    if store.offset < log.start:
        if not accept_loss:
            raise SnapshotError(
                f"{log.folder} begins at offset {log.start} and the newest good snapshot in {snapshots.folder} ends at "
                f"{store.offset}: the events between are gone. Bring a later snapshot back, or accept the loss "
                "(--accept-loss; in Python accept_loss=True)."
            )
        _logger.warning("%s: events %d to %d are gone, and passed over", log.folder, store.offset, log.start)
        store.skip(log.start)
    store.log = number
    catch_up(store, log, progress=progress)
    return store


def _refuse_other(store: SeedStore, log: ClickLog, number: int | None, snapshots: Snapshots) -> None:
    advice = f"Bring the right log back, or move {snapshots.folder} away to start again from what this log holds."
    if store.log is not None and number is not None and store.log != number:
        raise SnapshotError(f"{snapshots.folder}: the snapshots are of another log than {log.folder}. {advice}")
    if store.offset > log.end:
        raise SnapshotError(
            f"{snapshots.folder}: the newest snapshot is of offset {store.offset}, ahead of {log.folder}, which ends "
            f"at {log.end}: events that were acknowledged are missing from the log. {advice}"
        )


def catch_up(store: SeedStore, log: ClickLog, *, progress: Callable[[int, int], None] | None = None) -> int:
    """Applies what the log holds beyond the store's offset; events that the log lists as damaged are passed over.

    Args:
        store: SeedStore.
        log: ClickLog.
        progress: callable, optional. Called with the events applied so far and all to apply.

    Returns:
        int. Events passed over.

    Raises:
        SnapshotError: events are missing and the log does not say why.
    """
    first, end, lost = store.offset, log.end, 0
    for batch in log.read(first, until=end):
        lost += _pass_over(store, log, batch.offset)
        store.apply(batch)
        if progress is not None:
            progress(store.offset - first, end - first)
    return lost + _pass_over(store, log, end)


def _pass_over(store: SeedStore, log: ClickLog, until: int) -> int:
    missing = until - store.offset
    if missing <= 0:
        return 0
    place = store.offset
    for damage in sorted(log.damage, key=lambda damage: damage.offset):
        if damage.offset <= place:
            place = max(place, damage.offset + damage.lost)
    if place < until:
        raise SnapshotError(f"{log.folder}: events {place} to {until} are missing, and its damage does not name them.")
    store.skip(until)
    return missing


def state_of(path: str | Path) -> bytes:
    """The bytes of a snapshot that are a function of the set of events alone: all but offset, counts and marks."""
    path = Path(path)
    with open(path, "rb") as file:
        _check_magic(file)
        for kind, _ in _blocks(file, path.stat().st_size):
            if kind == b"gone":
                end = file.tell()
                file.seek(0)
                return file.read(end)
    raise SnapshotError(f"{path}: the snapshot is not complete.")


class _Writer:
    """Blocks of a file, each with the checksum of all before it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._crc = file, zlib.crc32(_MAGIC)
        file.write(_MAGIC)

    def arrays(self, kind: bytes, *arrays: NDArray[np.int64]) -> None:
        lengths = struct.pack(f"<B{len(arrays)}Q", len(arrays), *map(len, arrays))
        self._block(kind, [lengths, *(np.ascontiguousarray(array, "<i8").data.cast("B") for array in arrays)])

    def json(self, kind: bytes, told: dict[str, Any]) -> None:
        self._block(kind, [json.dumps(told, sort_keys=True).encode()])

    def _block(self, kind: bytes, parts: list[Any]) -> None:
        size = sum(len(part) for part in parts)
        crc = zlib.crc32(_HEAD.pack(kind, 0, size), self._crc)
        for part in parts:
            crc = zlib.crc32(part, crc)
        self._crc = crc
        self._file.write(_HEAD.pack(kind, crc, size))
        for part in parts:
            self._file.write(part)


def _check_magic(file: BinaryIO) -> None:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise _Damaged("no snapshot, or one of another version")


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    crc = zlib.crc32(_MAGIC)
    while head := file.read(_HEAD.size):
        if len(head) < _HEAD.size:
            raise _Damaged("it ends in a block")
        kind, told, length = _HEAD.unpack(head)
        if length > size - file.tell():
            raise _Damaged("it ends in a block")
        payload = file.read(length)
        crc = zlib.crc32(payload, zlib.crc32(_HEAD.pack(kind, 0, length), crc))
        if crc != told:
            raise _Damaged(f"wrong checksum at byte {file.tell() - length}")
        yield kind, payload


def _arrays(payload: bytes) -> list[NDArray[np.int64]]:
    count = payload[0]
    lengths = struct.unpack_from(f"<{count}Q", payload, 1)
    found, place = [], 1 + 8 * count
    for length in lengths:
        found.append(np.frombuffer(payload, "<i8", length, place).astype(np.int64, copy=False))
        place += 8 * length
    return found


def _load(path: Path) -> SeedStore:
    with open(path, "rb") as file:
        _check_magic(file)
        store, n, rest = None, 0, {}
        for kind, payload in _blocks(file, path.stat().st_size):
            if kind == b"head":
                told = json.loads(payload)
                n = told.pop("n")
                store = SeedStore(**told)
            elif kind == b"item" and store is not None:
                store.restore_entries(n, *_arrays(payload))
            else:
                rest[kind] = payload
    if store is None or b"mark" not in rest:
        raise _Damaged("it is not complete")
    done = json.loads(rest[b"done"])
    store.restore_progress(done["offset"], Counts(**done["counts"]), *_arrays(rest[b"gone"]), *_arrays(rest[b"mark"]))
    store.log = done["log"]
    return store


def _holds(path: Path, users: NDArray[np.int64]) -> bool:
    try:
        with open(path, "rb") as file:
            _check_magic(file)
            place = {b"item": 2, b"gone": 0}  # of the users among a block's arrays
            whole = False
            for kind, payload in _blocks(file, path.stat().st_size):
                if kind in place and np.isin(_arrays(payload)[place[kind]], users).any():
                    return True
                whole |= kind == b"mark"
            return not whole
    except _Damaged:
        return True


def _runs(labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of equal labels."""
    bounds = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return list(zip(bounds[:-1], bounds[1:], strict=True)) if len(labels) else []


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
