"""The latest clickers of each item on Redis or Valkey: the same contract as `SeedStore`, for several writers."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import Batch
from lookalike.redis_ledger import Ledger, Numbers, Plan, check_name
from lookalike.redis_link import Commands, Link, Session, StoreUnavailable
from lookalike.redis_reads import Reads
from lookalike.redis_writes import Writes
from lookalike.seeds import Counts

__all__ = ["RedisSeedStore", "StoreUnavailable"]

T = TypeVar("T")
SEED_BYTES = 16
_CHUNK = 20_000  # events of one transaction
_CUT = 20_000  # items cut in one transaction


class RedisSeedStore:
    """The latest distinct clickers of every item, on a Redis or Valkey server that several processes share.

    The meaning is that of `SeedStore`: a pure function of the set of events, the counts balance, `n` only falls. Each
    writer reads a click log of its own, a partition; the server keeps the offset of each. The changes of a batch (in
    parts of 20,000 events), the counts and the offset go in one transaction that holds only where no other writer
    came between: so a batch that is delivered again, by the same process or another, is never counted twice, and a
    call that fails may be repeated.

    While the server is down, slow or answers nonsense, writing raises `StoreUnavailable` and nothing is to be
    acknowledged. Reading gives what this process read last, and `stale` and `age` tell; it raises where it never read
    that. Nothing has to be restarted when the server is back.

    The user needs these rights and no others; scripts, `KEYS`, `CONFIG` and `FLUSHALL` are not among them:

        ACL SETUSER seedrank on >PASSWORD resetkeys ~{seeds}:* resetchannels -@all +select +watch +unwatch
        +multi +exec +set +del +hgetall +hset +zadd +zrem +zcard +zrange +zrevrange +zrangebyscore +zmscore
        +zremrangebyrank +zinterstore +sadd +smembers +smismember

    Ids reach the server as 16 hexadecimal digits or 8 bytes, whatever the text was. The server should not evict
    (`maxmemory-policy noeviction`) and should keep an append-only file; what it has lost is missing from the offsets
    too, and is read from the click log again.

    Args:
        url: str. redis://, rediss:// or unix://; user and password in it are never shown.
        name: str. Of the store. Defaults to `"seeds"`.
        partition: str. Which click log this process applies. Defaults to `"0"`.
        latest: int. As in `SeedStore`. Every process of a store needs the same. Defaults to `3_000_000`.
        byte_budget: int, optional. As in `SeedStore`, at 16 bytes a seed; the server itself takes 60 to 110 bytes a
            seed. Defaults to no limit.
        future_seconds: int. As in `SeedStore`. Defaults to `300`.
        deadline: float. Seconds for an answer of the server. Defaults to `5.0`.
        copy_bytes: int. Most bytes of seeds kept in this process for the time that the server is down. Defaults to
            `268_435_456`.

    Raises:
        ImportError: the extra `redis` is not installed.
        ValueError: an argument is none of what it may be.

    Reference: SPEC 3.4 of the project.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "seeds",
        partition: str = "0",
        latest: int = 3_000_000,
        byte_budget: int | None = None,
        future_seconds: int = 300,
        deadline: float = 5.0,
        copy_bytes: int = 268_435_456,
    ) -> None:
        if not 1 <= latest <= 2**30:
            raise ValueError(f"`latest` should be from 1 to 2**30. Received: latest={latest}.")
        if byte_budget is not None and byte_budget < SEED_BYTES:
            raise ValueError(f"`byte_budget` should be at least {SEED_BYTES}. Received: byte_budget={byte_budget}.")
        if future_seconds < 0:
            raise ValueError(f"`future_seconds` should be 0 or more. Received: future_seconds={future_seconds}.")
        check_name("partition", partition)
        self.latest, self.byte_budget, self.future_seconds = latest, byte_budget, future_seconds
        settings = f"format=1 latest={latest} byte_budget={byte_budget} future_seconds={future_seconds}"
        self._link = Link(url, deadline=deadline)
        self._ledger = Ledger(self._link, name, settings)
        self._writes = Writes(self._ledger.prefix, latest, future_seconds)
        self._reads = Reads(self._ledger, self._writes)
        self._partition, self._field = partition, f"offset {partition}"
        self._lock = threading.RLock()
        self._copies: OrderedDict[Any, tuple[float, int, Any]] = OrderedDict()  # what -> (when, bytes, answer)
        self._copy_bytes, self._held = copy_bytes, 0
        self._read_at: float | None = None

    def __repr__(self) -> str:
        name = self._ledger.prefix.decode()[1:-2]
        return f"RedisSeedStore({self._link.place!r}, name={name!r}, partition={self._partition!r})"

    # Writing.

    def apply(self, batch: Batch) -> None:
        """Takes in events. What lies below `offset` is known and passed over, without being counted again.

        Args:
            batch: Batch. As the click log of the partition yields it.

        Raises:
            ValueError: it starts above `offset`: events between are missing. `skip` says that they are lost.
            StoreUnavailable: some of it may not be applied. Apply it again.
        """
        start = 0
        while True:
            part = _part(batch, start, start + _CHUNK)
            numbers = self._ledger.change(partial(self._writes.take_in, batch=part, field=self._field))
            self._fit(numbers)
            start = max(start + _CHUNK, numbers.get(self._field, 0) - batch.offset)
            if start >= len(batch):
                return

    def _fit(self, numbers: Numbers) -> None:
        budget = None if self.byte_budget is None else self.byte_budget // SEED_BYTES
        while budget is not None and numbers.get("total", 0) > budget:
            numbers = self._ledger.change(partial(self._writes.fit, budget=budget, most=_CUT))

    def skip(self, until: int) -> None:
        """Goes on at a later offset: the events between are lost, as the log's `damage` says.

        Args:
            until: int. The offset of the next event there is.
        """

        def plan(session: Session, numbers: Numbers) -> Plan:
            return (Commands(), {self._field: until}) if until > numbers.get(self._field, 0) else None

        self._ledger.change(plan)

    def belong(self, log: int) -> int:
        """Says which click log the partition is of, where nobody has said so before.

        Args:
            log: int. The log's own number.

        Returns:
            int. The number of the log that it belongs to.
        """
        field = f"log {self._partition}"

        def plan(session: Session, numbers: Numbers) -> Plan:
            return None if field in numbers else (Commands(), {field: log})

        return self._ledger.change(plan)[field]

    def erase(self, users: Iterable[int]) -> int:
        """Takes every trace of some users out for good, as `ClickLog.compact` does from the log.

        On an item that had more than `n` users their places stay free until others click.

        Args:
            users: ids of users, int64 `[n]`.

        Returns:
            int. Entries erased.
        """
        keys = np.unique(np.fromiter(users, np.int64))
        if not len(keys):
            return 0
        erased = self._ledger.change(partial(self._writes.erase, users=keys))["erased"]
        with self._lock:
            self._copies.clear()
            self._held = 0
        return erased

    # Reading.

    @property
    def stale(self) -> bool:
        """Whether the last answer was a copy, for the server did not give one."""
        return self._read_at is not None

    @property
    def age(self) -> float:
        """Seconds since the server gave what the last answer consists of; 0 for an answer of its own."""
        return 0.0 if self._read_at is None else time.monotonic() - self._read_at

    @property
    def offset(self) -> int:
        """Offset of the partition's next event to apply; 0 for a new store. Never of a copy."""
        return self._link.run(self._ledger.read).get(self._field, 0)

    @property
    def counts(self) -> Counts:
        """What became of the events, of all partitions together."""
        numbers = self._numbers()
        kinds = {kind: numbers.get(kind, 0) for kind in ("applied", "late", "invalid", "duplicate")}
        return Counts(sum(kinds.values()), **kinds)

    @property
    def effective_latest(self) -> int:
        """The `n` in force."""
        return self._writes.in_force(self._numbers())

    @property
    def nbytes(self) -> int:
        """Bytes held, at 16 a seed as the budget counts them."""
        return SEED_BYTES * self._numbers().get("total", 0)

    def mark(self) -> int:
        """A mark for `changed_since`: the number of transactions so far. It stays good after a restart."""
        return self._numbers().get("version", 0)

    def changed_since(self, mark: int) -> NDArray[np.int64]:
        """Items whose seeds changed after a mark was taken, ascending, int64 `[items]`; never of a copy."""
        return self._link.run(lambda session: self._reads.changed_since(session, mark))

    def items(self) -> NDArray[np.int64]:
        """Items with at least one seed, ascending, int64 `[items]`."""
        return self._read("items", self._reads.items)

    def seed_counts(self, items: Any) -> NDArray[np.int64]:
        """Seeds of each of some items, int64 `[n]`; 0 for an item without."""
        keys = np.asarray(items, np.int64).ravel()
        if not len(keys):
            return np.empty(0, np.int64)
        return self._read(("counts", keys.tobytes()), lambda session: self._reads.seed_counts(session, keys))

    def seeds(
        self, items: Any, *, newest: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Seeds of some items, the newest first, of equal times the larger user first.

        An item's seeds are of one moment, those of different items need not be; an item of more than 100,000 is read
        in parts, between which others may write.

        Args:
            items: int64 `[n]`. Items; one may be unknown.
            newest: int, optional. At most so many of each. Defaults to all.

        Returns:
            offsets int64 `[n + 1]`, users int64 `[seeds]`, times int64 `[seeds]`: the seeds of item `i` are at
            `offsets[i]:offsets[i + 1]`.

        Raises:
            StoreUnavailable: the server is not there, and this process has not read all of these items so.
        """
        if newest is not None and newest < 1:
            raise ValueError(f"`newest` should be a positive integer. Received: newest={newest}.")
        keys = np.asarray(items, np.int64).ravel()
        try:
            found = self._link.run(lambda session: self._reads.seeds(session, keys, newest))
        except StoreUnavailable:
            with self._lock:
                copies = [self._copies.get(("seeds", key, newest)) for key in keys.tolist()]
                if not copies or None in copies:
                    raise
                self._read_at = min(copy[0] for copy in copies if copy)
                found = [copy[2] for copy in copies if copy]
        else:
            with self._lock:
                self._read_at = None
                for key, one in zip(keys.tolist(), found, strict=True):
                    self._keep(("seeds", key, newest), one, one[0].nbytes + one[1].nbytes)
        empty = np.empty(0, np.int64)
        offsets = np.cumsum([0, *(len(users) for users, _ in found)], dtype=np.int64)
        users, times = (
            (np.concatenate([empty, *column]) for column in zip(*found, strict=True)) if found else (empty, empty)
        )
        return offsets, users, times

    def close(self) -> None:
        """Closes the connections."""
        self._link.close()

    def _numbers(self) -> Numbers:
        return self._read("numbers", self._ledger.read)

    def _read(self, what: Any, work: Callable[[Session], T]) -> T:
        """The server's answer, or the last one that this process got to the same question."""
        try:
            answer = self._link.run(work)
        except StoreUnavailable:
            with self._lock:
                copy = self._copies.get(what)
                if copy is None:
                    raise
                self._read_at = copy[0]
                return copy[2]
        with self._lock:
            self._read_at = None
            self._keep(what, answer, getattr(answer, "nbytes", 0))
        return answer

    def _keep(self, what: Any, answer: Any, size: int) -> None:
        size = 2 * size + 200  # about what the question and the place take
        old = self._copies.pop(what, None)
        self._held += size - (old[1] if old else 0)
        self._copies[what] = (time.monotonic(), size, answer)
        while self._held > self._copy_bytes and self._copies:
            self._held -= self._copies.popitem(last=False)[1][1]


def _part(batch: Batch, start: int, stop: int) -> Batch:
    columns = {name: getattr(batch, name)[start:stop] for name in ("user", "item", "time", "kind", "received")}
    return replace(batch, offset=batch.offset + start, **columns, user_ids=None, item_ids=None)
