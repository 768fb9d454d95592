"""The one writer of a click log: its lock, its recovery, and appends that share a sync."""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lookalike.clicklog_columns import Columns, encode, joined
from lookalike.clicklog_damage import Quarantine
from lookalike.clicklog_files import Format, Mark, sync_folder
from lookalike.clicklog_frames import Header, pack_header
from lookalike.clicklog_reading import ClickLogError, opened
from lookalike.clicklog_segments import Frame, Gap, frames, segment_name, segments

__all__ = ["Writer", "take_lock"]

_logger = logging.getLogger("lookalike.clicklog")


def take_lock(folder: Path) -> int:
    """Makes this process the log's writer. The kernel frees the lock when its holder dies, however it dies.

    Raises:
        ClickLogError: another one is.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ClickLogError(f"{folder}: process {holder} writes this log already.") from None
    with contextlib.suppress(OSError):  # only for the message above; in place, for a full disk refuses a new block
        os.pwrite(descriptor, f"{os.getpid():<20}\n".encode(), 0)
    return descriptor


class _Waiting:
    """An append that waits for its sync."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.first = -1
        self.done = False
        self.error: BaseException | None = None


class Writer:
    """Appends to the last segment of a log.

    Args:
        folder: Path. The log's, locked.
        format: `Format`.
        mark: `Mark`.
        quarantine: `Quarantine`. Takes the damage that is met in the last segment.
        segment_bytes: int. A new segment is begun above it.
    """

    def __init__(self, folder: Path, format: Format, mark: Mark, quarantine: Quarantine, segment_bytes: int) -> None:
        self._folder, self._format, self._mark, self._quarantine = folder, format, mark, quarantine
        self._segment_bytes = segment_bytes
        self._queue: list[_Waiting] = []
        self._turn, self._busy = threading.Condition(), False
        self._descriptor = -1
        self._durable = 0, 0  # bytes of the last segment, offset of the log's end: one tuple, set at once
        self._refusal: str | None = None
        self.counters = {"events": 0, "bytes": 0, "syncs": 0, "failures": 0}
        self._recover()

    @property
    def end(self) -> int:
        """The offset behind the last durable event."""
        return self._durable[1]

    def append(self, columns: Columns) -> int:
        """Makes events durable and returns the offset of the first. Threads that come during a sync share the next.

        Raises:
            OSError: it could not be written; the log is as it was before.
            ClickLogError: the log is closed, or of no use after a failure.
        """
        waiting = _Waiting(columns)
        with self._turn:
            self._queue.append(waiting)
        with self._alone(waiting) as leads:
            if leads:
                with self._turn:
                    group, self._queue = self._queue, []
                self._write_group(group)
        error = waiting.error
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(self._folder)) from error
        if error is not None:
            raise ClickLogError(str(error)) from error
        return waiting.first

    @contextlib.contextmanager
    def _alone(self, waiting: _Waiting | None = None) -> Iterator[bool]:
        """Waits for the turn to write and yields True; or False, once another thread has written for this one."""
        leads = False
        try:
            with self._turn:
                while self._busy and not (waiting and waiting.done):
                    self._turn.wait()
                if not (waiting and waiting.done):
                    leads = self._busy = True
            yield leads
        finally:
            if leads:
                with self._turn:
                    self._busy = False
                    self._turn.notify_all()

    def seal(self) -> None:
        """Begins a new segment, unless the last one is empty: all events are then in segments that are not written."""
        with self._alone():
            self.refuse()
            if self._durable[0]:
                self._begin_segment(self.end)

    def refuse(self) -> None:
        """Raises ClickLogError if the log takes nothing any more."""
        if self._refusal:
            raise ClickLogError(self._refusal)

    def close(self) -> None:
        """Waits for the sync that runs, if any; later appends are refused."""
        with self._alone():
            self._refusal = f"{self._folder}: the log is closed."
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _write_group(self, group: list[_Waiting]) -> None:
        """Writes what waits, syncs once, and leaves with each how it went."""
        try:
            self.refuse()
            offset = self.end
            for waiting in group:
                waiting.first = offset
                offset += len(waiting.columns)
            pieces, base, now = [], self.end, time.time_ns() // 1_000_000
            texts = self._format.user_ids == "string", self._format.item_ids == "string"
            for events, encoding, data, crc in encode(joined([waiting.columns for waiting in group])):
                header = Header(*texts, encoding, self._format.log, base, events, len(data), now, crc)
                pieces += [pack_header(header), data]
                base += events
            if pieces:
                self._write(b"".join(pieces), offset)
        except BaseException as error:
            self.counters["failures"] += 1
            for waiting in group:
                waiting.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for waiting in group:
                waiting.done = True

    def _write(self, data: bytes, end: int) -> None:
        size, before = self._durable
        if size and size + len(data) > self._segment_bytes:
            self._begin_segment(before)
            size = 0
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fdatasync(self._descriptor)
            self._durable = size + len(data), end
        except BaseException:
            self._take_back()
            raise
        for name, more in (("events", end - before), ("bytes", len(data)), ("syncs", 1)):
            self.counters[name] += more
        try:
            self._mark.write(end)
        except OSError as error:  # the events are durable all the same
            _logger.error("%s: other processes do not see new events: %s", self._folder, error)

    def _take_back(self) -> None:
        """Cuts off what was not acknowledged."""
        try:
            os.ftruncate(self._descriptor, self._durable[0])
            os.lseek(self._descriptor, self._durable[0], os.SEEK_SET)
        except OSError as error:
            self._refusal = f"{self._folder}: a failed write could not be taken back ({error}): open the log anew."

    def _begin_segment(self, base: int) -> None:
        path = self._folder / segment_name(base)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            sync_folder(self._folder)
        except BaseException:
            os.close(descriptor)
            try:
                path.unlink()
            except OSError as error:  # the segment that is written would seem to end here
                self._refusal = f"{self._folder}: a new segment could not be taken back ({error}): open the log anew."
            raise
        old, self._descriptor, self._durable = self._descriptor, descriptor, (0, base)
        if old >= 0:
            os.close(old)

    def _recover(self) -> None:
        """Finds the end; a torn tail is cut off, acknowledged events that are gone are noted."""
        for stale in [*self._folder.glob(".tmp-*"), *self._folder.glob("quarantine/.tmp-*")]:
            stale.unlink(missing_ok=True)
        found, mark = segments(self._folder), self._mark.read() or 0
        size, end = self._last_frame(found[-1], mark) if found else (0, -1)
        if mark > end:  # no log yet; or acknowledged events are gone, and nothing is written behind a wound
            self._begin_segment(mark)
        else:
            self._go_on(self._folder / segment_name(found[-1]), size, end)
        self._mark.write(self.end)

    def _go_on(self, path: Path, size: int, end: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self._durable = size, end
        torn = os.fstat(self._descriptor).st_size - size
        if torn:
            _logger.warning("%s: a torn tail of %d bytes is cut off", path, torn)
        self._take_back()
        self.refuse()
        os.fsync(self._descriptor)  # its last frames may have been written and never synced
        sync_folder(self._folder)

    def _last_frame(self, base: int, mark: int) -> tuple[int, int]:
        """Byte and offset behind the last frame of a segment; acknowledged events that are missing are noted."""
        size, end = 0, base
        with opened(self._folder, base) as descriptor:
            for piece in frames(descriptor, 0, base, log=self._format.log):
                if isinstance(piece, Frame):
                    size, end = piece.byte + piece.header.size, piece.header.next
                elif piece.lost is not None:
                    self._quarantine.add(base, piece, descriptor)
            if mark > end:
                left = os.fstat(descriptor).st_size - size
                self._quarantine.add(base, Gap(size, left, end, mark - end), descriptor)
        return size, end
