"""Follows a growing file of clicks, JSON lines or CSV, into the log."""

import csv
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import cast

from lookalike.click_packing import Clicks
from ranking.errors import UserError
from ranking.ingest_clicks import FIELDS, ClickFormat, WrongClick
from ranking.ingest_files import (
    Place,
    continuation,
    head_of,
    load_place,
    place_file,
    save_place,
    successor,
)
from ranking.ingest_log import LogNotWritable, LogWriter
from ranking.ingest_metrics import IngestMetrics

__all__ = ["Tail"]

_logger = logging.getLogger("ranking.ingest")
BLOCK = 1 << 20  # bytes read at once; the longest line
LOOK_SECONDS = 0.2  # between two looks at a file that has not grown
RETRY_SECONDS = 1.0  # after a failure
QUIET_SECONDS = 1.0  # a file that was rotated away is done when it has not grown for so long
_KEPT = 10_000  # bytes of a wrong line that are set aside


class Tail:
    """One followed file. No line is lost and none is read half.

    A block of whole lines is appended to the log; when it is durable, wrong lines are set aside in
    `tails/NAME.rejects` of the log's folder, and then the place is saved, atomically. A crash in between has the
    block read once more: its clicks are in the log twice, and the seed store takes each once. For that a line has to
    be the same click every time, so `time` is required here.

    A file that is rotated away is read to its end first, under its new name too; a copy that rotation leaves is known
    by its first bytes. What was written between the last look and a cut, with no copy left, is gone, and counted.

    Args:
        path: Path. A name that ends with `.csv` is CSV with a header, any other is JSON lines. It may be absent yet.
        log: LogWriter.
        metrics: IngestMetrics.

    Raises:
        UserError: the place that was saved, or the header of a file that is there, is wrong.
    """

    def __init__(self, path: str | Path, log: LogWriter, metrics: IngestMetrics) -> None:
        self._path = Path(path).absolute()
        if self._path.is_dir():
            raise UserError(f"--tail {path}: should be a file.")
        self._log, self._metrics = log, metrics
        self._format = ClickFormat(log.user_ids, log.item_ids)
        self._csv = self._path.suffix.lower() == ".csv"
        self._place_file = place_file(log.folder, self._path)
        self.rejects = self._place_file.with_suffix(".rejects")
        self._descriptor: int | None = None
        self._header: list[str] = []
        self._offset, self._skipping = 0, False
        self._appended = -1  # the block at this offset is in the log, though its wrong lines are not set aside yet
        self._size, self._grown = 0, time.monotonic()
        self._place = load_place(self._place_file)
        self.failing = ""  # why it does not go on, in a word or two; empty while it does
        self._open()
        self._read_header()

    @property
    def behind(self) -> int:
        """Bytes of the file that are not in the log yet."""
        descriptor = self._descriptor
        try:
            return max(os.fstat(descriptor).st_size - self._offset, 0) if descriptor is not None else 0
        except OSError:  # closed meanwhile
            return 0

    def run(self, stop: threading.Event) -> None:
        """Follows the file until `stop` is set; a block that was begun is ended."""
        while not stop.is_set():
            pause, failing = 0.0, ""
            try:
                if not self.step():
                    pause = LOOK_SECONDS
            except Exception as error:  # a thread that ended would stop taking clicks in silence
                pause, failing = RETRY_SECONDS, _reason(error)
                if failing != self.failing:
                    _logger.error("a followed file waits: %s", failing)
            self.failing = failing
            stop.wait(pause)
        self._close()

    def step(self) -> bool:
        """Takes the next block, or sees that there is none; whether there may be more at once.

        Raises:
            LogNotWritable: nothing was taken.
            OSError: the file can not be read, or the place or wrong lines can not be written.
            UserError: the header is wrong.
        """
        if self._descriptor is None and not self._open():
            return False
        descriptor = cast(int, self._descriptor)
        if self._was_cut(descriptor):
            self._close()
            return True
        size = os.fstat(descriptor).st_size
        if size != self._size:
            self._size, self._grown = size, time.monotonic()
        try:
            headed = self._read_header()
        except UserError:
            return self._give_up(descriptor)
        block = os.pread(descriptor, BLOCK, self._offset)
        whole = block.rfind(b"\n") + 1 if headed else 0
        if whole:
            self._take(block[:whole])
            return True
        if len(block) == BLOCK:
            self._skip(block)
            return True
        return self._go_on(descriptor, block)

    def _open(self) -> bool:
        """Opens the file where it was left; the first time, or where that is gone, from its start."""
        place = self._place
        found = None if place is None else continuation(self._path, place)
        if place is not None and found is None and self._path.exists():
            self._metrics.count("tail_lost", "gone")
            _logger.warning("a followed file was cut, or is gone: what it held behind byte %d is lost", place.offset)
        if place is None or found is None:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
            self._begin(descriptor)
        else:
            self._descriptor, self._offset, self._skipping = found, place.offset, place.skipping
            self._header, self._appended = [], -1
        return True

    def _begin(self, descriptor: int) -> None:
        self._close()
        self._descriptor, self._offset, self._skipping = descriptor, 0, False
        self._header, self._appended, self._size, self._grown = [], -1, 0, time.monotonic()
        self._save()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _save(self) -> None:
        if self._descriptor is not None:
            found = os.fstat(self._descriptor)
            head = head_of(self._descriptor, self._offset)
            self._place = Place(found.st_dev, found.st_ino, self._offset, head, self._skipping)
            save_place(self._place_file, self._place)

    def _was_cut(self, descriptor: int) -> bool:
        place = self._place
        short = os.fstat(descriptor).st_size < self._offset
        return short or (place is not None and head_of(descriptor, place.offset) != place.head)

    def _read_header(self) -> bool:
        """Reads the header of CSV; False while it is not whole."""
        if not self._csv or self._header or self._descriptor is None:
            return True
        line, ended, _ = os.pread(self._descriptor, BLOCK, 0).partition(b"\n")
        if not ended and len(line) < BLOCK:
            return False
        try:
            header = next(csv.reader([line.decode("utf-8-sig").rstrip("\r")], strict=True), [])
        except (UnicodeDecodeError, csv.Error):
            header = []
        known = set(header)
        if len(known) != len(header) or known - {*FIELDS} or not {*FIELDS[:3]} <= known:
            raise UserError(
                f"--tail {self._path}: the header should name user_id, item_id, time and, if need be, kind, and "
                f"nothing else. Received: {', '.join(header)!r:.100}."
            )
        self._header = header
        if self._offset == 0:
            self._offset = len(line) + 1
        return True

    def _take(self, block: bytes) -> None:
        skip = block.find(b"\n") + 1 if self._skipping else 0
        self._enter(*self._sorted(block[skip:]), at=self._offset + skip, size=len(block))
        self._offset, self._skipping = self._offset + len(block), False
        self._save()

    def _enter(self, clicks: Clicks, wrong: list[tuple[int, bytes, str]], *, at: int, size: int) -> None:
        if len(clicks) and self._appended != self._offset:
            self._log.append(clicks, "tail")
            self._appended = self._offset
        self._set_aside(wrong, at)
        self._metrics.count("bytes", "tail", size)
        self._metrics.count("received", "tail", len(clicks) + len(wrong))

    def _sorted(self, block: bytes) -> tuple[Clicks, list[tuple[int, bytes, str]]]:
        """The clicks of a block, and its wrong lines: place in the block, line, why."""
        try:
            return self._parsed(block), []
        except WrongClick:
            pass
        right, wrong, at = [], [], 0
        for line in block.split(b"\n"):
            try:
                self._parsed(line)
                right.append(line)
            except WrongClick as error:
                wrong.append((at, line, str(error).split(": ", 1)[-1]))
            at += len(line) + 1
        return self._parsed(b"\n".join(right)), wrong

    def _parsed(self, block: bytes) -> Clicks:
        if self._csv:
            return self._format.from_csv(block, self._header)
        return self._format.from_json(block, now=None)

    def _set_aside(self, wrong: list[tuple[int, bytes, str]], offset: int) -> None:
        if not wrong:
            return
        with self._log.aside, self.rejects.open("a", encoding="utf-8") as file:
            for at, line, why in wrong:
                text = line[:_KEPT].decode("utf-8", "backslashreplace")
                file.write(json.dumps({"byte": offset + at, "why": why, "line": text}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._metrics.count("refused", "tail", len(wrong))

    def _skip(self, block: bytes) -> None:
        """Passes over a piece of a line that is longer than a block."""
        wrong = [] if self._skipping else [(0, block, f"should not be longer than {BLOCK} bytes")]
        self._enter(self._parsed(b""), wrong, at=self._offset, size=len(block))
        self._offset, self._skipping = self._offset + len(block), True
        self._save()

    def _go_on(self, descriptor: int, half: bytes) -> bool:
        """At the end of the file: goes to the next one where this one was rotated away and is quiet."""
        following = successor(self._path, descriptor)
        if following is None:
            return False
        if self._offset + len(half) != self._size or time.monotonic() - self._grown < QUIET_SECONDS:
            os.close(following)
            return False
        if half.strip() and not self._skipping:
            # The last line, without a line break: an object is whole or it is not, of CSV nobody can tell.
            cut = self._parsed(b""), [(0, half, "should end with a line break")]
            self._enter(*(cut if self._csv else self._sorted(half)), at=self._offset, size=len(half))
        self._begin(following)
        return True

    def _give_up(self, descriptor: int) -> bool:
        """A header that is wrong: waits for it to be put right, or for the next file."""
        following = successor(self._path, descriptor)
        if following is None:
            raise UserError("the header is wrong")
        self._metrics.count("tail_lost", "header")
        self._begin(following)
        return True


def _reason(error: Exception) -> str:
    """Words for the log and for /healthz: without paths and ids."""
    if isinstance(error, LogNotWritable):
        return "the log can not be written"
    if isinstance(error, UserError):
        return "the header is wrong"
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
