"""The latest clickers of each item, as a pure function of the set of events that came."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import FORGET, Batch
from lookalike.seed_kernels import EARLIEST, LATEST, cut, erase, take, void
from lookalike.seed_memory import Tables
from lookalike.seed_order import gather, order
from lookalike.seed_tables import APPLIED, DUPLICATE, FORGOTTEN, INVALID, LATE, TOTAL, restore

__all__ = ["EARLIEST", "LATEST", "Counts", "SeedStore"]

SEED_BYTES = 16
_CHUNK = 16_384  # events that room is made for at once
_Seeds = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Counts:
    """What became of the events; `accepted = applied + late + invalid + duplicate` at every moment.

    Args:
        accepted: int. Events at or above the store's offset when they came; an erased event is none.
        applied: int. It told something new: a click (or its taking back) later than what was known of the user and
            the item, or a FORGET later than the user's last.
        late: int. It came too late to count: a click that had been taken back or forgotten before it came, or an event
            older than all that a full item kept when it was last cut (at an eighth above `n`, or when it is read).
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

    Attributes:
        log: int or None. The number of the log that `offset` belongs to, where `open_store` has set it.

    Reference: Liu et al., KDD 2019, section 4.3.
    """

    def __init__(self, *, latest: int = 3_000_000, byte_budget: int | None = None, future_seconds: int = 300) -> None:
        if not 1 <= latest <= 2**30:
            raise ValueError(f"`latest` should be from 1 to 2**30. Received: latest={latest}.")
        if byte_budget is not None and byte_budget < SEED_BYTES:
            raise ValueError(f"`byte_budget` should be at least {SEED_BYTES}. Received: byte_budget={byte_budget}.")
        if future_seconds < 0:
            raise ValueError(f"`future_seconds` should be 0 or more. Received: future_seconds={future_seconds}.")
        self.latest, self.byte_budget, self.future_seconds = latest, byte_budget, future_seconds
        self._lock = threading.RLock()
        self.log: int | None = None
        self._offset = 0
        self._n = latest
        self._tables = Tables()
        none = np.empty(0, np.int64)
        self._forgotten = self._tables.time_map(none, none)  # until when whose clicks are removed
        self._unvoided: list[NDArray[np.int64]] = []  # users forgotten since their entries were last looked through

    @property
    def offset(self) -> int:
        """Offset of the next event to apply; 0 for a new store."""
        return self._offset

    @property
    def counts(self) -> Counts:
        """What became of the events, those of earlier processes included where a snapshot was loaded."""
        with self._lock:
            outcomes = self._tables.counters[[APPLIED, LATE, INVALID, DUPLICATE]].tolist()
        return Counts(sum(outcomes), *outcomes)

    @property
    def effective_latest(self) -> int:
        """The `n` in force."""
        with self._lock:
            self._settle()
            return self._n

    @property
    def nbytes(self) -> int:
        """Bytes held: seeds with the slack of their tables, and about 70 an item."""
        with self._lock:
            return self._tables.nbytes + SEED_BYTES * len(self._forgotten[0])

    # Taking in.

    def apply(self, batch: Batch) -> None:
        """Takes in events. What lies below `offset` is known and passed over, without being counted again.

        Args:
            batch: Batch. As the click log yields it.

        Raises:
            ValueError: it starts above `offset`: events between are missing. `skip` says that they are lost.
        """
        columns = [np.ascontiguousarray(getattr(batch, name), np.int64) for name in ("user", "item", "time")]
        columns += [np.ascontiguousarray(batch.kind, np.uint8), np.ascontiguousarray(batch.received, np.int64)]
        user, kind = columns[0], columns[3]
        if any(column.shape != user.shape for column in columns):
            shapes = [column.shape for column in columns]
            raise ValueError(f"`batch` should have columns of one length. Received: shapes={shapes}.")
        with self._lock:
            if batch.offset > self._offset:
                raise ValueError(f"`batch` should start at {self._offset} or below. Received: offset={batch.offset}.")
            for low in range(self._offset - batch.offset, len(user), _CHUNK):
                high = min(low + _CHUNK, len(user))
                self._expect(user[low:high][kind[low:high] == FORGET])
                self._tables.make_room(high - low)
                self._take(columns, low, high, batch.offset)
                self._offset = batch.offset + high
                if self.byte_budget is not None:
                    if self._tables.counters[TOTAL] > self.byte_budget // SEED_BYTES * 17 // 16:
                        self._settle()

    def _take(self, columns: Any, low: int, high: int, offset: int) -> None:
        future, salt = 1000 * self.future_seconds, self._tables.salt
        while low < high:
            arrays: Any = *self._tables.arrays(), *self._forgotten, *columns
            low = take(*arrays, low, high, offset, self._n, future, salt)  # type: ignore[call-arg]
            if low < high:
                del arrays
                self._tables.make_slots()

    def _expect(self, users: NDArray[np.int64]) -> None:
        """Makes room for users to be forgotten."""
        if len(users) == 0:
            return
        self._unvoided.append(users.copy())
        keys, times = self._forgotten
        if 3 * (self._tables.counters[FORGOTTEN] + len(users)) > 2 * len(keys):
            kept = times > 0
            self._forgotten = self._tables.time_map(keys[kept], times[kept], len(users))

    def _settle(self) -> None:
        """Does what `apply` puts off: marks entries of the forgotten, lowers `n` to the budget, cuts items to it."""
        tables = self._tables
        if self._unvoided:
            keys, times = self._forgotten
            kept = np.isin(keys, np.concatenate(self._unvoided)) & (times > 0)
            void(tables.arena.data, tables.rows, *tables.time_map(keys[kept], times[kept]), self._offset, tables.salt)
            self._unvoided = []
        if self.byte_budget is not None and tables.counters[TOTAL] > self.byte_budget // SEED_BYTES:
            self._n = min(self._n, _level(tables.rows["count"], self.byte_budget // SEED_BYTES))
        if self._n == 0:
            tables.clear()
        elif (tables.rows["count"] > self._n).any():
            cut(tables.arena.data, tables.counters, tables.rows, self._n, self._offset, tables.salt)

    def skip(self, until: int) -> None:
        """Goes on at a later offset: the events between are lost, as the log's `damage` says.

        Args:
            until: int. The offset of the next event there is.
        """
        with self._lock:
            self._offset = max(self._offset, until)

    def adapt(self, *, latest: int, byte_budget: int | None, future_seconds: int) -> None:
        """Goes on with other settings.

        Args:
            latest: int. As at the start.
            byte_budget: int or None. As at the start.
            future_seconds: int. As at the start.

        Raises:
            ValueError: they would keep more, and what was left out so far is not here.
        """
        SeedStore(latest=latest, byte_budget=byte_budget, future_seconds=future_seconds)  # checks them
        with self._lock:
            self._settle()
            budget = np.inf if self.byte_budget is None else self.byte_budget
            wider = latest > self.latest or (np.inf if byte_budget is None else byte_budget) > budget
            whole = self._n > 0 and not (self._tables.rows["count"] >= self._n).any()
            if wider and not whole:
                raise ValueError(
                    f"`latest` and `byte_budget` should be at most {self.latest} and {self.byte_budget}, for items "
                    f"were cut. Received: latest={latest}, byte_budget={byte_budget}."
                )
            self._n = latest if whole else min(self._n, latest)
            self.latest, self.byte_budget, self.future_seconds = latest, byte_budget, future_seconds
            self._settle()

    def erase(self, users: Iterable[int]) -> int:
        """Takes every trace of some users out for good, as `ClickLog.compact` does from the log.

        On an item that had more than `n` users their places stay free until others click.

        Args:
            users: ids of users, int64 `[n]`.

        Returns:
            int. Entries erased.
        """
        gone = np.unique(np.fromiter(users, np.int64))
        tables = self._tables
        with self._lock:
            self._settle()
            keys, times = self._forgotten
            kept = (times > 0) & ~np.isin(keys, gone)
            self._forgotten = tables.time_map(keys[kept], times[kept])
            tables.counters[FORGOTTEN] = np.sum(kept)
            wanted = tables.time_map(gone, np.ones(len(gone), np.int64))
            return erase(tables.arena.data, tables.counters, tables.rows, *wanted, self._offset, tables.salt)

    # Reading.

    def items(self) -> NDArray[np.int64]:
        """Items with at least one seed, ascending, int64 `[items]`."""
        with self._lock:
            self._settle()
            rows = self._tables.rows
            return np.sort(rows["item"][rows["live"] > 0])

    def seed_counts(self, items: Any) -> NDArray[np.int64]:
        """Seeds of each of some items, int64 `[n]`; 0 for an item without."""
        with self._lock:
            self._settle()
            return self._sizes(self._tables.rows_of(items), "live")

    def seeds(self, items: Any, *, newest: int | None = None) -> _Seeds:
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
        with self._lock:
            self._settle()
            chosen = self._tables.rows_of(items)
            sizes = self._sizes(chosen, "live")
            offsets, users, stamps = self._gathered(chosen, sizes if newest is None else sizes.clip(max=newest), True)
        order(offsets, users, stamps)
        stamps >>= 1
        return offsets, users, stamps

    def _sizes(self, chosen: NDArray[np.int64], column: str) -> NDArray[np.int64]:
        sizes, known = np.zeros(len(chosen), np.int64), chosen >= 0
        sizes[known] = self._tables.rows[column][chosen[known]]
        return sizes

    def _gathered(self, chosen: NDArray[np.int64], sizes: NDArray[np.int64], live: bool) -> _Seeds:
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        users, stamps = np.empty(offsets[-1], np.int64), np.empty(offsets[-1], np.int64)
        gather(self._tables.arena.data, self._tables.rows, chosen, offsets, live, users, stamps)
        return offsets, users, stamps

    def mark(self) -> int:
        """A mark for `changed_since`: the offset. It stays good after a restart."""
        with self._lock:
            self._settle()
            return self._offset

    def changed_since(self, mark: int) -> NDArray[np.int64]:
        """Items whose seeds changed after a mark was taken, ascending, int64 `[items]`."""
        with self._lock:
            self._settle()
            rows = self._tables.rows
            return np.sort(rows["item"][rows["changed"] > mark])

    # What a snapshot holds.

    def entries(self, items: Any) -> _Seeds:
        """All that is kept of some items, those included whose clicks were taken back.

        Args:
            items: int64 `[n]`.

        Returns:
            offsets int64 `[n + 1]`, users int64 `[entries]`, stamps int64 `[entries]`, 2 * time + 1 where removed; in
            the order of `seeds`.
        """
        with self._lock:
            self._settle()
            chosen = self._tables.rows_of(items)
            offsets, users, stamps = self._gathered(chosen, self._sizes(chosen, "count"), False)
        order(offsets, users, stamps)
        return offsets, users, stamps

    def position(self) -> tuple[int, Counts, int, _Seeds]:
        """What belongs to one moment: `offset`, `counts`, `effective_latest` and the items that anything is kept of.

        Returns:
            The three, and: the items, ascending; how many entries each has; the offset behind its last change.
        """
        with self._lock:
            n = self.effective_latest
            rows = self._tables.rows
            rows = np.sort(rows[rows["count"] > 0], order="item")
            return self._offset, self.counts, n, (rows["item"], rows["count"].astype(np.int64), rows["changed"])

    def forgotten(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Users who were forgotten, ascending, and until when."""
        with self._lock:
            keys, times = self._forgotten
            kept = times > 0
            users, until = keys[kept], times[kept]
        by_user = np.argsort(users)
        return users[by_user], until[by_user]

    def restore_entries(self, n: int, items: Any, offsets: Any, users: Any, stamps: Any) -> None:
        """Takes in `effective_latest` and what `entries` gave, of items that are not there yet."""
        with self._lock:
            self._n = n
            self._tables.make_room(len(items))
            self._tables.make_slots(len(users) + len(users) // 4)
            restore(*self._tables.arrays(), items, offsets, users, stamps, self._n, self._tables.salt)

    def restore_progress(self, offset: int, counts: Counts, users: Any, until: Any, changed: Any) -> None:
        """Takes in the rest: `offset`, `counts`, what `forgotten` gave, and the changes that `position` gave."""
        tables = self._tables
        with self._lock:
            self._offset = offset
            self._forgotten = tables.time_map(users, until)
            tables.counters[FORGOTTEN] = len(users)
            tables.counters[[APPLIED, LATE, INVALID, DUPLICATE]] = (
                counts.applied, counts.late, counts.invalid, counts.duplicate,
            )  # fmt: skip
            tables.rows["changed"][np.argsort(tables.rows["item"])] = changed


def _level(counts: NDArray[np.int32], total: int) -> int:
    """The largest n with the sum of min(n, count) within a total that they exceed."""
    ascending = np.sort(counts).astype(np.int64)
    before = np.cumsum(ascending) - ascending
    left = np.arange(len(ascending), 0, -1)
    # All items below the first that does not fit are kept whole; the others share the rest.
    first = int(np.argmax(before + ascending * left > total))
    return int((total - before[first]) // left[first])
