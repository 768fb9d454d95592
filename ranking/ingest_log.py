"""The click log as an ingest uses it: one place that appends, counts, knows whether it can, and opens it again."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.click_packing import Clicks
from lookalike.clicklog import FORGET, ClickLog, ClickLogError
from ranking.forget_aside import without_lines
from ranking.ingest_metrics import IngestMetrics

__all__ = ["LogNotWritable", "LogWriter"]

_PROBE = ".ingest-probe"
_PROBE_BYTES = 65_536
_PROBE_SECONDS = 1.0  # between two looks at a disk that failed


class LogNotWritable(RuntimeError):
    """Nothing was appended: the disk is full, failing or read-only. Another try, later, is right."""


class LogWriter:
    """The one writer of a click log.

    Args:
        folder: Path.
        metrics: IngestMetrics.
        user_ids: str or None. As for `ClickLog`. Defaults to `None`.
        item_ids: str or None. Likewise. Defaults to `None`.

    Attributes:
        aside: Lock. Held by who writes the files of lines that are set aside.
    """

    def __init__(
        self,
        folder: str | Path,
        metrics: IngestMetrics,
        *,
        user_ids: str | None = None,
        item_ids: str | None = None,
    ) -> None:
        self._metrics = metrics
        self._log = ClickLog(folder, user_ids=user_ids, item_ids=item_ids)
        self.folder, self.user_ids, self.item_ids = self._log.folder, self._log.user_ids, self._log.item_ids
        self._lock, self.aside = threading.Lock(), threading.Lock()
        self._failing = self._closed = False
        self._probed = 0.0

    @property
    def log(self) -> ClickLog:
        """The log as it is open now."""
        return self._log

    def append(self, clicks: Clicks, source: str) -> tuple[int, int]:
        """Appends; when it returns, the clicks are durable.

        Args:
            clicks: Clicks.
            source: str. `"http"` or `"tail"`, for the counters.

        Returns:
            The offset of the first and the one behind the last.

        Raises:
            LogNotWritable: nothing was appended.
        """
        found = self._append(clicks.user, clicks.item, clicks.time, clicks.kind)
        self._metrics.count("accepted", source, len(clicks))
        return found

    def forget(self, user: Any, now: int) -> tuple[int, int]:
        """Appends that a user's clicks up to `now` (ms) are taken back, on all items."""
        number = self.user_ids == "int64"
        item: Any = np.zeros(1, np.int64) if self.item_ids == "int64" else ["-"]
        return self._append(np.array([user], np.int64) if number else [user], item, np.array([now]), [FORGET])

    def erase(self, user: Any) -> dict[str, int]:
        """Takes a user's ids out of the log's files and out of the lines set aside; how many events and lines it were.

        Raises:
            ClickLogError: the log is closed.
            OSError: a file could not be rewritten. Those before it are done, and another call does the rest.
        """
        erased = self._log.compact([user])
        with self.aside:
            return {"erased": erased, "set_aside": without_lines(self.folder, user)}

    def _append(self, user: Any, item: Any, moment: Any, kind: Any) -> tuple[int, int]:
        started, log = time.monotonic(), self._log
        try:
            found = log.append(user, item, moment, kind)
        except (OSError, ClickLogError) as error:
            with self._lock:
                self._failing = True
                if isinstance(error, ClickLogError) and log is self._log and not self._closed:
                    self._open_again()
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is closed"
            raise LogNotWritable(f"The click log can not be written ({reason}): nothing was taken.") from error
        self._failing = False
        self._metrics.observe_append(time.monotonic() - started)
        return found

    def _open_again(self) -> None:
        """A log that could not take a failed write back is of no use until it is opened again, which repairs it."""
        self._log.close()
        with contextlib.suppress(OSError, ClickLogError):
            self._log = ClickLog(self.folder, user_ids=self.user_ids, item_ids=self.item_ids, create=False)

    def writable(self) -> bool:
        """Whether the last append worked, or, after a failure, whether the disk takes a small file by now."""
        with self._lock:
            if self._closed:
                return False
            if self._failing and time.monotonic() - self._probed >= _PROBE_SECONDS:
                self._probed = time.monotonic()
                self._failing = not self._probe()
            return not self._failing

    def _probe(self) -> bool:
        path = self.folder / _PROBE
        try:
            with path.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
            return True
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process write the log."""
        with self._lock:
            self._closed = True
            self._log.close()
