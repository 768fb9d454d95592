"""The append-only click log: what is acknowledged is on the disk, and what is damaged is said."""

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog_erasure import erase
from lookalike.clicklog_files import Damage, Format, Mark, Quarantine
from lookalike.clicklog_frames import (
    CLICK,
    ERASED,
    FORGET,
    UNCLICK,
    Columns,
    Header,
    Payload,
    checked_columns,
    decode,
    encode,
    keys_of,
    pack_header,
)
from lookalike.clicklog_segments import Frame, Gap, frames, segment_name, segments, sync_folder

__all__ = ["CLICK", "ERASED", "FORGET", "UNCLICK", "Batch", "ClickLog", "ClickLogError", "Damage", "keys_of"]

_BATCH = 131_072  # events of a batch that is read, about
_KINDS = ("int64", "string")
_logger = logging.getLogger("lookalike.clicklog")


class ClickLogError(RuntimeError):
    """The log cannot do what is asked: another writer holds it, it is of another kind, or its disk failed."""


@dataclass(frozen=True)
class Batch:
    """Events in the order of the log.

    Args:
        offset: int. Of the first; the others follow without a gap.
        user: int64 `[n]`. Keys of the users: int64 ids themselves, or `keys_of` texts.
        item: int64 `[n]`. Likewise.
        time: int64 `[n]`. When it happened, as the producer said: milliseconds since the epoch, not validated.
        kind: uint8 `[n]`. `CLICK`, `UNCLICK`, `FORGET`, or `ERASED`: an event whose user was erased, to be skipped.
        received: int64 `[n]`. When the log took it: milliseconds since the epoch.
        user_ids: the ids as they were given, int64 `[n]` or a list of texts; only from `read(raw=True)`.
        item_ids: likewise.
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


class _Waiting:
    """An append that waits for the sync that it shares with others."""

    def __init__(self, payloads: list[Payload]) -> None:
        self.payloads, self.first, self.done = payloads, -1, False
        self.count = sum(payload.events for payload in payloads)
        self.error: BaseException | None = None


class ClickLog:
    """Clicks in segment files, in the order they were acknowledged.

    Args:
        folder: str or Path. It is made where it is absent.
        user_ids: str, optional. `"int64"` or `"string"`. Defaults to what the log was made with; `"int64"` for a new
            one.
        item_ids: str, optional. Likewise.
        segment_bytes: int. A new segment file is begun above it. Defaults to `268_435_456`.
        write: bool. Whether this is the log's one writer. Any number of others, in any process, may open it with
            `write=False` meanwhile: they see what is durable. Defaults to `True`.
        create: bool. Whether an absent folder is made; a reader never makes one. Defaults to `True`.

    Raises:
        ClickLogError: there is no log, another process writes it, or it holds other kinds of ids.
        OSError: the folder cannot be written.

    Example:
        ```python
        with ClickLog("clicks") as log:
            first, after = log.append([7, 8], [1, 1], [now, now])
            for batch in log.read(first):
                store.apply(batch)
        ```
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        user_ids: str | None = None,
        item_ids: str | None = None,
        segment_bytes: int = 256 << 20,
        write: bool = True,
        create: bool = True,
    ) -> None:
        for name, kind in (("user_ids", user_ids), ("item_ids", item_ids)):
            if kind not in (None, *_KINDS):
                raise ValueError(f'`{name}` should be "int64" or "string". Received: {name}={kind!r}.')
        if segment_bytes < 1:
            raise ValueError(f"`segment_bytes` should be a positive integer. Received: segment_bytes={segment_bytes}.")
        self.folder = Path(folder)
        self.writes = write
        self._segment_bytes = segment_bytes
        self._queue: list[_Waiting] = []
        self._enter, self._commit, self._keep = threading.Lock(), threading.Lock(), threading.Lock()
        self._descriptor = self._lock_file = -1
        self._base = self._size = self._end = 0
        self._refusal: str | None = None
        self._quarantine = Quarantine(self.folder)
        self._places: dict[int, tuple[int, int, int]] = {}
        self.counters = dict.fromkeys(("events", "bytes", "syncs", "failures"), 0)
        if write and create:
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self.folder.is_dir():
            raise ClickLogError(f"{self.folder}: there is no click log.")
        if write:
            self._take_lock()
        try:
            self._format = self._opened_format(user_ids, item_ids)
            self.user_ids, self.item_ids = self._format.user_ids, self._format.item_ids
            self._mark = Mark(self.folder, self._format.log)
            if write:
                self._recover()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "ClickLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends writing; the log can then be opened by another writer."""
        with self._commit:
            self._refusal = self._refusal or f"{self.folder}: the log is closed."
            for descriptor in (self._descriptor, self._lock_file):
                if descriptor >= 0:
                    os.close(descriptor)
            self._descriptor = self._lock_file = -1
            if hasattr(self, "_mark"):
                self._mark.close()

    @property
    def start(self) -> int:
        """The first offset that is kept."""
        found = segments(self.folder)
        return found[0] if found else 0

    @property
    def end(self) -> int:
        """The offset behind the last durable event."""
        if self.writes:
            return self._end
        mark = self._mark.read()
        if mark is not None:
            return mark
        found = segments(self.folder)
        return self._scan_last(found[-1], None)[1] if found else 0

    @property
    def damage(self) -> list[Damage]:
        """Events that were acknowledged and are lost, as far as anything that was read has met them."""
        return self._quarantine.damages()

    def check(self) -> list[Damage]:
        """Reads the whole log and returns its damage."""
        for _ in self._frames(self.start, self.end):
            pass
        return self.damage

    # Writing.

    def append(self, user: Any, item: Any, time: Any, kind: Any = None) -> tuple[int, int]:
        """Appends events; when it returns they are durable. Safe from any thread: those that wait share one sync.

        Args:
            user: int64 `[n]`, or texts, as declared.
            item: likewise.
            time: int64 `[n]`. Milliseconds since the epoch; any number: who reads the log judges it.
            kind: int or uint8 `[n]`. `CLICK`, `UNCLICK` (takes the user's clicks on the item back, up to that time)
                or `FORGET` (on all items; the item is ignored). Defaults to `CLICK`.

        Returns:
            Offsets of the first event and behind the last.

        Raises:
            ValueError: an argument breaks its rule; nothing was appended.
            OSError: it could not be written; nothing was appended, and the log can be used again.
            ClickLogError: the log is closed, only read, or of no use after a failure.
        """
        user_text, item_text = self.user_ids == "string", self.item_ids == "string"
        columns = checked_columns(user, item, time, kind, user_text=user_text, item_text=item_text)
        waiting = _Waiting(list(encode(columns)) if len(columns) else [])
        with self._enter:
            self._queue.append(waiting)
        with self._commit:
            if not waiting.done:
                with self._enter:
                    group, self._queue = self._queue, []
                self._write_group(group)
        if isinstance(waiting.error, OSError):
            raise OSError(waiting.error.errno, waiting.error.strerror, str(self.folder)) from waiting.error
        if waiting.error is not None:
            raise ClickLogError(str(waiting.error)) from waiting.error
        return waiting.first, waiting.first + waiting.count

    def _write_group(self, group: list[_Waiting]) -> None:
        """Writes what waits, syncs once and says to each how it went."""
        try:
            if not self.writes or self._refusal:
                raise ClickLogError(self._refusal or f"{self.folder}: the log was opened for reading.")
            offset, pieces, now = self._end, [], time.time_ns() // 1_000_000
            for waiting in group:
                waiting.first = offset
                for payload in waiting.payloads:
                    pieces += [self._header(payload, offset, now), payload.data]
                    offset += payload.events
            if pieces:
                self._write(b"".join(pieces), offset)
        except BaseException as error:
            for waiting in group:
                waiting.error, waiting.done = error, True
            self.counters["failures"] += 1
            if not isinstance(error, Exception):
                raise
        for waiting in group:
            waiting.done = True

    def _header(self, payload: Payload, offset: int, now: int) -> bytes:
        texts = self.user_ids == "string", self.item_ids == "string"
        fields = payload.encoding, self._format.log, offset, payload.events, len(payload.data), now, payload.crc
        return pack_header(Header(*texts, *fields))

    def _write(self, data: bytes, end: int) -> None:
        if self._size and self._size + len(data) > self._segment_bytes:
            self._begin_segment(self._end)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fdatasync(self._descriptor)
        except BaseException:
            self._take_back()
            raise
        self._size += len(data)
        self.counters["events"] += end - self._end
        self.counters["bytes"] += len(data)
        self.counters["syncs"] += 1
        self._end = end
        self._move_mark()

    def _take_back(self) -> None:
        """Cuts off what was written and not acknowledged."""
        try:
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
        except OSError as error:
            self._refusal = f"{self.folder}: a failed write could not be taken back ({error}): open the log again."

    def _move_mark(self) -> None:
        try:
            self._mark.write(self._end)
        except OSError as error:
            _logger.error("%s: other processes do not see new events, the mark is stuck: %s", self.folder, error)

    def _begin_segment(self, base: int) -> None:
        path = self.folder / segment_name(base)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            sync_folder(self.folder)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._base, self._size = descriptor, base, 0

    # Opening.

    def _take_lock(self) -> None:
        self._lock_file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock_file)
            raise ClickLogError(f"{self.folder}: process {holder} writes this log.") from None
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, f"{os.getpid()}\n".encode(), 0)

    def _opened_format(self, user_ids: str | None, item_ids: str | None) -> Format:
        found = Format.read(self.folder) or self._format_of_frames()
        if found is None and not self.writes:
            raise ClickLogError(f"{self.folder}: there is no click log.")
        if found is None:
            found = Format(secrets.randbits(64), user_ids or "int64", item_ids or "int64")
        for name, asked, kept in (("user_ids", user_ids, found.user_ids), ("item_ids", item_ids, found.item_ids)):
            if asked not in (None, kept):
                raise ClickLogError(f'{self.folder}: the log has {name}="{kept}". Received: {name}={asked!r}.')
        if self.writes and Format.read(self.folder) is None:
            found.write(self.folder)
        return found

    def _format_of_frames(self) -> Format | None:
        """The format as the first frame tells it, for a folder whose file of it is lost."""
        for base in segments(self.folder):
            with self._opened(base) as descriptor:
                for found in frames(descriptor, 0, base, log=None, bound=None):
                    if isinstance(found, Frame):
                        kinds = [_KINDS[text] for text in (found.header.user_text, found.header.item_text)]
                        return Format(found.header.log, *kinds)
        return None

    def _recover(self) -> None:
        """Finds the end, cuts off a torn tail and sets damage aside."""
        for stale in self.folder.glob(".tmp-*"):
            stale.unlink(missing_ok=True)
        found = segments(self.folder)
        mark = self._mark.read()
        last = found[-1] if found else None
        if last is None:
            self._end = mark or 0
            self._begin_segment(self._end)
        else:
            size, end, broken = self._scan_last(last, mark)
            self._end = max(end, mark or 0)
            if broken or self._end > end:  # acknowledged events are gone: nothing is written behind a wound
                self._begin_segment(self._end)
            else:
                self._descriptor = os.open(self.folder / segment_name(last), os.O_WRONLY | os.O_CLOEXEC)
                self._base, self._size = last, size
                if os.fstat(self._descriptor).st_size > size:
                    _logger.warning("%s: a torn tail is cut off", self.folder / segment_name(last))
                    os.ftruncate(self._descriptor, size)
                os.lseek(self._descriptor, size, os.SEEK_SET)
                os.fsync(self._descriptor)
        self._mark.write(self._end)

    def _scan_last(self, base: int, mark: int | None) -> tuple[int, int, bool]:
        """Of the last segment: bytes and offset behind the last frame, and whether acknowledged frames are missing."""
        size, end = 0, base
        with self._opened(base) as descriptor:
            for found in frames(descriptor, 0, base, log=self._format.log, bound=None):
                if isinstance(found, Frame):
                    size, end = found.byte + 48 + found.header.length, found.header.base + found.header.events
                elif found.lost is not None:
                    self._quarantine.add(base, found, descriptor)
                elif mark is not None and mark > found.offset:
                    gap = Gap(found.byte, found.size, found.offset, mark - found.offset)
                    self._quarantine.add(base, gap, descriptor)
                    return size, end, True
            if mark is not None and mark > end:
                self._quarantine.add(base, Gap(size, 0, end, mark - end), descriptor)
        return size, end, False

    # Reading.

    def read(self, offset: int | None = None, *, until: int | None = None, raw: bool = False) -> Iterator[Batch]:
        """Events in order. What is damaged is left out, and listed in `damage`: a batch then starts behind a gap.

        Args:
            offset: int, optional. Where to start. Defaults to the first event that is kept.
            until: int, optional. The offset to stop at. Defaults to the end as it is now.
            raw: bool. Whether texts of ids come along. Defaults to `False`.

        Raises:
            ValueError: an offset that is not in the log.
            ClickLogError: retention removed what was being read.
        """
        start, end = self.start, self.end
        offset = start if offset is None else offset
        until = end if until is None else until
        if not start <= offset <= end:
            raise ValueError(f"`offset` should be from {start} to {end}. Received: offset={offset}.")
        if not offset <= until <= end:
            raise ValueError(f"`until` should be from {offset} to {end}. Received: until={until}.")
        return self._batches(offset, until, raw)

    def _batches(self, offset: int, until: int, raw: bool) -> Iterator[Batch]:
        held: list[tuple[Columns, int]] = []
        first = after = offset
        for frame in self._frames(offset, until):
            header = frame.header
            columns = decode(header, frame.data, texts=raw)
            low, high = max(offset - header.base, 0), min(until - header.base, header.events)
            if low > 0 or high < header.events:
                columns = columns[low:high]
            if held and (header.base + low != after or after - first >= _BATCH):
                yield self._batch(first, held, raw)
                held = []
            if not held:
                first = header.base + low
            held.append((columns, header.received))
            after = header.base + high
        if held:
            yield self._batch(first, held, raw)

    def _batch(self, offset: int, held: list[tuple[Columns, int]], raw: bool) -> Batch:
        parts = [columns for columns, _ in held]
        user, item, times, kind = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "item", "time", "kind")
        )
        received = np.repeat([moment for _, moment in held], [len(part) for part in parts])
        batch = Batch(offset, user, item, times, kind, received)
        if not raw:
            return batch
        ids: list[Any] = []
        for keys, name in ((user, "user_ids"), (item, "item_ids")):
            texts = [getattr(part, name) for part in parts]
            ids.append(keys if texts[0] is None else [text for part in texts for text in part])
        return Batch(offset, user, item, times, kind, received, *ids)

    def _frames(self, offset: int, until: int) -> Iterator[Frame]:
        """Frames with events from `offset` to `until`; gaps on the way are set aside."""
        found = segments(self.folder)
        for base, after in zip(found, [*found[1:], None], strict=True):
            if (after is not None and after <= offset) or base >= until:
                continue
            with self._opened(base) as descriptor:
                inode = os.fstat(descriptor).st_ino
                hint = self._places.get(base)
                byte, place = hint[1:] if hint and hint[0] == inode and hint[2] <= offset else (0, base)
                bound = after if after is not None else max(until, self.end)
                for piece in frames(descriptor, byte, place, log=self._format.log, bound=bound):
                    if isinstance(piece, Gap):
                        self._quarantine.add(base, piece, descriptor)
                        continue
                    header = piece.header
                    if header.base >= until:
                        break
                    if header.base + header.events > offset:
                        self._places[base] = (inode, piece.byte, header.base)
                        yield piece

    @contextlib.contextmanager
    def _opened(self, base: int) -> Iterator[int]:
        try:
            descriptor = os.open(self.folder / segment_name(base), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ClickLogError(f"{self.folder}: {segment_name(base)} was removed while it was read.") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # Keeping house.

    def retain(self, before: int) -> int:
        """Removes whole segments below an offset, never the one that is written.

        Args:
            before: int. Events from this offset on are all kept.

        Returns:
            int. The first offset that is kept now.
        """
        self._refuse_reader()
        with self._keep:
            found = segments(self.folder)
            for base, after in zip(found, found[1:], strict=False):
                if after <= before:
                    (self.folder / segment_name(base)).unlink()
                    self._places.pop(base, None)
            sync_folder(self.folder)
            return self.start

    def compact(self, without_users: Any) -> int:
        """Erases users: their events keep their offsets and nothing else. Their ids are then nowhere in the log.

        Segments are rewritten one by one, each atomically; appends go on meanwhile. Copies of damaged bytes are
        removed, for nobody can tell whose they hold.

        Args:
            without_users: ids of the users, int64 `[n]` or texts.

        Returns:
            int. Events erased.
        """
        self._refuse_reader()
        if self.user_ids == "string":
            wanted: Any = np.array([*without_users], object)
        else:
            wanted = np.asarray(without_users, np.int64).ravel()
        with self._keep:
            with self._commit:
                if self._refusal:
                    raise ClickLogError(self._refusal)
                if self._size:
                    self._begin_segment(self._end)
            erased = 0
            found = segments(self.folder)
            for base, after in zip(found, found[1:], strict=False):
                with self._opened(base) as descriptor:
                    pieces = list(frames(descriptor, 0, base, log=self._format.log, bound=after))
                    for piece in pieces:
                        if isinstance(piece, Gap):
                            self._quarantine.add(base, piece, descriptor)
                    erased += erase(self.folder / segment_name(base), pieces, wanted)
            self._quarantine.forget_bytes()
            return erased

    def _refuse_reader(self) -> None:
        if not self.writes or self._refusal:
            raise ClickLogError(self._refusal or f"{self.folder}: the log was opened for reading.")
