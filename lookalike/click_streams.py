"""From a stream of clicks into the click log: at least once, whatever is malformed set aside."""

import base64
import contextlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lookalike.click_packing import Clicks, unpack, unpack_fields
from lookalike.redis_link import StoreUnavailable

__all__ = ["Entry", "Log", "Pump", "Source"]

_logger = logging.getLogger("lookalike.click_streams")
_LONGEST_PAUSE = 10.0  # seconds between two tries


@dataclass(frozen=True)
class Entry:
    """One entry of a stream, with one event or many.

    Args:
        place: str. Where in the stream, for people.
        receipt: what its source acknowledges it by.
        value: bytes, or fields of bytes of one event.
    """

    place: str
    receipt: Any
    value: bytes | Mapping[bytes, bytes]


class Source(Protocol):
    """A stream that gives an entry again until it was acknowledged. Failures are `StoreUnavailable`."""

    def pull(self, wait: float) -> list[Entry]:
        """Next entries, after at most `wait` seconds; none: nothing came."""

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Those entries are durable elsewhere and need not be given again."""

    def again(self) -> None:
        """Gives what was pulled and not acknowledged once more."""

    def close(self) -> None:
        """Leaves the stream."""


class Log(Protocol):
    """What a `Pump` needs of a click log."""

    folder: Path

    @property
    def user_ids(self) -> str:
        """`"int64"` or `"string"`."""

    @property
    def item_ids(self) -> str:
        """`"int64"` or `"string"`."""

    def append(self, user: Any, item: Any, time: Any, kind: Any) -> Any:
        """When it returns, the events are durable. ValueError: one breaks a rule, none is taken."""


class Pump:
    """Moves entries from a source into a click log, and acknowledges them when the log has them on the disk.

    A crash between the two gives entries twice, which the seed store notices; none is lost. An entry that is malformed,
    or that the log refuses, is counted and set aside as a JSON line with its reason and its bytes, and the stream goes
    on. The file may hold ids of users: an erasure has to remove them from it.

    Args:
        source: Source. The stream.
        log: ClickLog, or what writes to one. Its one writer.
        set_aside: str or Path, optional. Defaults to `set-aside.jsonl` in the folder of the log.
        set_aside_bytes: int. When the file is as large, more is counted and not kept. Defaults to `67_108_864`.
        lock: Lock, optional. Held while that file is written, for others who write it. Defaults to none.

    Attributes:
        counters: `entries`, `events`, `malformed`, `dropped` (malformed and not kept), `failures`.

    Example:
        ```python
        with ClickLog("clicks") as log:
            Pump(RedisStreamSource("redis://localhost", stream="clicks", group="seedrank"), log).run(stop)
        ```
    """

    def __init__(
        self,
        source: Source,
        log: Log,
        *,
        set_aside: str | Path | None = None,
        set_aside_bytes: int = 67_108_864,
        lock: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        self._source, self._log = source, log
        self.set_aside = Path(set_aside) if set_aside else log.folder / "set-aside.jsonl"
        self._most, self._lock = set_aside_bytes, lock or threading.Lock()
        self.counters: Counter[str] = Counter(entries=0, events=0, malformed=0, dropped=0, failures=0)

    def run(self, stop: threading.Event) -> None:
        """Moves entries until told to stop. What fails is tried again, less and less often.

        Args:
            stop: threading.Event. Set it to stop within about a second.
        """
        pause = 0.1
        while not stop.is_set():
            try:
                self.once()
                pause = 0.1
            except (StoreUnavailable, OSError) as error:
                _logger.warning("clicks wait in their stream: %s", error)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def once(self, wait: float = 1.0) -> int:
        """Moves what is there.

        Args:
            wait: float. Seconds to wait for something. Defaults to `1.0`.

        Returns:
            int. Events appended.

        Raises:
            StoreUnavailable: the stream does not answer.
            OSError: the log or the file cannot be written. The entries come again.
        """
        try:
            entries = self._source.pull(wait)
            if not entries:
                return 0
            try:
                events = self._append(entries)
            except BaseException:
                self._source.again()
                raise
            self._source.acknowledge(entries)
        except (StoreUnavailable, OSError):
            self.counters["failures"] += 1
            raise
        self.counters["entries"] += len(entries)
        self.counters["events"] += events
        return events

    def _append(self, entries: Sequence[Entry]) -> int:
        good: list[tuple[Entry, Clicks]] = []
        wrong: list[tuple[Entry, str]] = []
        for entry in entries:
            try:
                good.append((entry, self._clicks(entry.value)))
            except ValueError as error:
                wrong.append((entry, str(error)))
        try:
            if good:
                self._log.append(*_together([clicks for _, clicks in good]))
        except ValueError:  # an entry breaks a rule of the log: the others are taken without it
            kept = []
            for entry, clicks in good:
                try:
                    self._log.append(clicks.user, clicks.item, clicks.time, clicks.kind)
                    kept.append((entry, clicks))
                except ValueError as error:
                    wrong.append((entry, str(error)))
            good = kept
        if wrong:
            with self._lock:
                self._put_aside(wrong)
        return sum(len(clicks) for _, clicks in good)

    def _clicks(self, value: bytes | Mapping[bytes, bytes]) -> Clicks:
        ids = {"user_ids": self._log.user_ids, "item_ids": self._log.item_ids}
        return unpack(value, **ids) if isinstance(value, bytes) else unpack_fields(value, **ids)

    def _put_aside(self, wrong: list[tuple[Entry, str]]) -> None:
        lines = []
        size = self.set_aside.stat().st_size if self.set_aside.exists() else 0
        room = self._most - size
        for entry, reason in wrong:
            value = entry.value
            whole = _text(value) if isinstance(value, bytes) else {_text(k): _text(v) for k, v in value.items()}
            line = json.dumps({"place": entry.place, "reason": reason[:500], "base64": whole}).encode() + b"\n"
            room -= len(line)
            if room >= 0:
                lines.append(line)
        try:
            with open(self.set_aside, "ab", buffering=0) as file:
                file.write(b"".join(lines))
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.set_aside, size)
            raise
        self.counters["malformed"] += len(wrong)
        self.counters["dropped"] += len(wrong) - len(lines)
        _logger.warning("%d malformed entries, the first at %s: %s", len(wrong), wrong[0][0].place, wrong[0][1])


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _together(parts: list[Clicks]) -> tuple[Any, Any, Any, Any]:
    user, item = (
        np.concatenate(ids) if isinstance(ids[0], np.ndarray) else [one for part in ids for one in part]
        for ids in ([clicks.user for clicks in parts], [clicks.item for clicks in parts])
    )
    return user, item, np.concatenate([clicks.time for clicks in parts]), np.concatenate([one.kind for one in parts])
