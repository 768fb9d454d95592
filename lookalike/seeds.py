"""The latest clickers of each item, as a pure function of the set of events that came."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import CLICK, ERASED, FORGET, UNCLICK, Batch

__all__ = ["EARLIEST", "LATEST", "Counts", "SeedStore"]

EARLIEST, LATEST = 946_684_800_000, 4_102_444_800_000  # 2000-01-01 and 2100-01-01, half-open
SEED_BYTES = 16


@dataclass(frozen=True)
class Counts:
    """What became of the events; `accepted = applied + late + invalid + duplicate` at every moment.

    Args:
        accepted: int. Events at or above the store's offset when they came; an erased event is none.
        applied: int. It told something new: a click (or its taking back) later than what was known of the user and
            the item, or a FORGET later than the user's last.
        late: int. It came too late to count: older than the oldest entry of a full item, or a click that had been taken
            back or forgotten before it came.
        invalid: int. Of no kind, or its time is before 2000, from 2100 on, or more than `future_seconds` after the log
            received it.
        duplicate: int. Known already: of the same user and item (for FORGET: of the user) with a time not newer than
            the known one.
    """

    accepted: int = 0
    applied: int = 0
    late: int = 0
    invalid: int = 0
    duplicate: int = 0


class SeedStore:
    """The latest distinct clickers of every item, in memory.

    For each item and user the latest event counts: a CLICK makes the user a seed, an UNCLICK at or after it takes him
    out, and so does a FORGET of his at or after it. An item keeps the `n` users whose latest events on it are the
    latest by (time, user). A user who took his click back keeps his place among the `n`, but is no seed: so every
    order, every repetition and every interleaving of the same events gives the same state, nothing needs to be read
    again from a log that may have been cut, and what is remembered of removals is bounded as the clicks are.

    `n` is the largest number up to `latest` with 16 bytes * (sum over items of min(n, users with an event on it))
    within the byte budget. It only falls. Should it reach 0 (more items than the budget has room for seeds), the store
    is empty: an alarm should ring long before.

    Times are judged against the moment that the log received the event, so that a replay judges as the first time.

    Args:
        latest: int. Most users kept of an item. Defaults to `3_000_000`.
        byte_budget: int, optional. Bytes for all seeds at 16 each. Defaults to no limit.
        future_seconds: int. How far an event's time may be after the log received it. Defaults to `300`.

    Reference: SPEC 3.4 of the project; Liu et al., KDD 2019, section 4.3.
    """

    def __init__(self, *, latest: int = 3_000_000, byte_budget: int | None = None, future_seconds: int = 300) -> None:
        if latest < 1:
            raise ValueError(f"`latest` should be a positive integer. Received: latest={latest}.")
        if byte_budget is not None and byte_budget < SEED_BYTES:
            raise ValueError(f"`byte_budget` should be at least {SEED_BYTES}. Received: byte_budget={byte_budget}.")
        if future_seconds < 0:
            raise ValueError(f"`future_seconds` should be 0 or more. Received: future_seconds={future_seconds}.")
        self.latest, self.byte_budget, self.future_seconds = latest, byte_budget, future_seconds
        self._lock = threading.RLock()
        self._offset: int | None = None
        self._n = latest
        self._entries: dict[int, dict[int, tuple[int, bool]]] = {}  # item -> user -> (time, removed)
        self._forgotten: dict[int, int] = {}
        self._changed: dict[int, int] = {}
        self._counts = dict.fromkeys(("applied", "late", "invalid", "duplicate"), 0)

    @property
    def offset(self) -> int:
        """Offset of the next event to apply; 0 for a new store."""
        return self._offset or 0

    @property
    def counts(self) -> Counts:
        """What became of the events, those of earlier processes included where a snapshot was loaded."""
        with self._lock:
            return Counts(sum(self._counts.values()), **self._counts)

    @property
    def effective_latest(self) -> int:
        """The `n` in force."""
        return self._n

    @property
    def nbytes(self) -> int:
        """Bytes held, as far as the arrays go."""
        return sum(SEED_BYTES * len(entries) for entries in self._entries.values())

    def apply(self, batch: Batch) -> None:
        """Takes in events. What lies below `offset` is known and passed over, without being counted again.

        Args:
            batch: Batch. As the click log yields it.

        Raises:
            ValueError: it starts above `offset`: events between are missing. `skip` says that they are lost.
        """
        with self._lock:
            if batch.offset > self.offset:
                raise ValueError(f"`batch` should start at {self.offset} or below. Received: offset={batch.offset}.")
            for number in range(self.offset - batch.offset, len(batch)):
                self._offset = batch.offset + number + 1
                kind = int(batch.kind[number])
                if kind == ERASED:
                    continue
                outcome = self._event(
                    int(batch.user[number]), int(batch.item[number]), int(batch.time[number]), kind,
                    int(batch.received[number]),
                )  # fmt: skip
                self._counts[outcome] += 1
            self._cut()

    def _event(self, user: int, item: int, time: int, kind: int, received: int) -> str:
        if kind not in (CLICK, UNCLICK, FORGET) or not EARLIEST <= time < LATEST:
            return "invalid"
        if time > received + 1000 * self.future_seconds:
            return "invalid"
        if kind == FORGET:
            if time <= self._forgotten.get(user, 0):
                return "duplicate"
            self._forgotten[user] = time
            for number, entries in self._entries.items():
                if user in entries and entries[user][0] <= time and not entries[user][1]:
                    entries[user] = (entries[user][0], True)
                    self._changed[number] = self.offset
            return "applied"
        forgotten = kind == CLICK and time <= self._forgotten.get(user, 0)
        entries = self._entries.setdefault(item, {})
        known = entries.get(user)
        if known and (time, kind == UNCLICK) <= known:
            return "late" if known[1] and kind == CLICK else "duplicate"
        if not known and len(entries) >= self._n and (time, user) < min((t, u) for u, (t, _) in entries.items()):
            return "late"
        entries[user] = (time, kind == UNCLICK or time <= self._forgotten.get(user, 0))
        if not forgotten:
            self._changed[item] = self.offset
        return "late" if forgotten else "applied"

    def _cut(self) -> None:
        if self.byte_budget is not None:
            sizes = [len(entries) for entries in self._entries.values()]
            while self._n and SEED_BYTES * sum(min(self._n, size) for size in sizes) > self.byte_budget:
                self._n = min(self._n, max(sizes)) - 1
        for item, entries in self._entries.items():
            if len(entries) > self._n:
                kept = sorted(entries, key=lambda user: (entries[user][0], user))[len(entries) - self._n :]
                self._entries[item] = {user: entries[user] for user in kept}
                self._changed[item] = self.offset

    def skip(self, until: int) -> None:
        """Goes on at a later offset: the events between are lost, as the log's `damage` says.

        Args:
            until: int. The offset of the next event there is.
        """
        with self._lock:
            self._offset = max(self.offset, until)

    def items(self) -> NDArray[np.int64]:
        """Items with at least one seed, ascending, int64 `[items]`."""
        with self._lock:
            live = (k for k, entries in self._entries.items() if any(not gone for _, gone in entries.values()))
            return np.array(sorted(live), np.int64)

    def seed_counts(self, items: Any) -> NDArray[np.int64]:
        """Seeds of each of some items, int64 `[n]`; 0 for an item without."""
        offsets = self.seeds(items)[0]
        return np.diff(offsets)

    def seeds(
        self, items: Any, *, newest: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Seeds of some items, the newest first, of equal times the larger user first.

        Args:
            items: int64 `[n]`. Items; one may be unknown.
            newest: int, optional. At most so many of each. Defaults to all.

        Returns:
            offsets int64 `[n + 1]`, users int64 `[seeds]`, times int64 `[seeds]`: the seeds of item `i` are at
            `offsets[i]:offsets[i + 1]`.
        """
        if newest is not None and newest < 1:
            raise ValueError(f"`newest` should be a positive integer. Received: newest={newest}.")
        found: list[tuple[int, int]] = []
        offsets = [0]
        with self._lock:
            for item in np.asarray(items, np.int64).tolist():
                entries = self._entries.get(item, {})
                live = sorted(((t, u) for u, (t, gone) in entries.items() if not gone), reverse=True)
                found += live[:newest]
                offsets.append(len(found))
        pairs = np.array(found, np.int64).reshape(-1, 2)
        return np.array(offsets, np.int64), pairs[:, 1].copy(), pairs[:, 0].copy()

    def mark(self) -> int:
        """A mark for `changed_since`: the offset. It stays good after a restart."""
        return self.offset

    def changed_since(self, mark: int) -> NDArray[np.int64]:
        """Items whose seeds changed after a mark was taken, ascending, int64 `[items]`."""
        with self._lock:
            return np.array(sorted(item for item, at in self._changed.items() if at > mark), np.int64)

    def erase(self, users: Iterable[int]) -> int:
        """Takes every trace of some users out for good, as `ClickLog.compact` does from the log.

        On an item that had more than `n` users their places stay free until others click.

        Args:
            users: ids of users, int64 `[n]`.

        Returns:
            int. Entries erased.
        """
        erased = 0
        with self._lock:
            for user in users:
                self._forgotten.pop(int(user), None)
                for item, entries in self._entries.items():
                    if entries.pop(int(user), None) is not None:
                        erased += 1
                        self._changed[item] = self.offset
        return erased
