"""How a batch of events is read for, settled and written on the server: the writing half of the shared seed store."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import CLICK, ERASED, FORGET, UNCLICK, Batch
from lookalike.redis_changes import Entries, Events, Settled, distinct_pairs, settle
from lookalike.redis_ledger import Numbers, Plan
from lookalike.redis_link import Commands, Session, WrongAnswer
from lookalike.redis_wire import (
    item_key,
    keys_from,
    members_packed,
    numbers_from,
    pairs_from,
    scored_packed,
)
from lookalike.seeds import EARLIEST, LATEST

__all__ = ["Writes"]

_SLICE = 20_000  # entries asked for at once where all items are looked through


@dataclass
class _Items:
    """The items of a batch: where each one's rows of the entries begin, and what the server knows of it."""

    keys: NDArray[np.int64]
    bounds: NDArray[np.int64]
    sizes: NDArray[np.int64]
    removals: NDArray[np.bool_]

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        return list(zip(self.keys.tolist(), self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True))


class Writes:
    """Plans of what to write, for `Ledger.change`.

    Keys, all behind the store's name: `c:ITEM` sorted set of users by time (entries, removed ones too), `r:ITEM` those
    of them that are removed, `sizes` items by their number of entries, `changed` items by the version that last changed
    their seeds, `removals` the items that ever had a removed entry, `forgotten` users by the time of their last FORGET.

    Args:
        prefix: bytes. Of all keys.
        latest: int. Most entries of an item.
        future_seconds: int. As in `SeedStore`.
    """

    def __init__(self, prefix: bytes, latest: int, future_seconds: int) -> None:
        self._latest, self._future = latest, future_seconds
        self.clicks, self.removed = prefix + b"c:", prefix + b"r:"
        self.sizes, self.changed = prefix + b"sizes", prefix + b"changed"
        self.removals, self.forgotten = prefix + b"removals", prefix + b"forgotten"

    def in_force(self, numbers: Numbers) -> int:
        """The `n` in force."""
        return numbers.get("latest", self._latest)

    def take_in(self, session: Session, numbers: Numbers, batch: Batch, field: str) -> Plan:
        """Takes in the events of a batch from the store's offset on, which is the number `field`."""
        offset = numbers.get(field, 0)
        if batch.offset > offset:
            raise ValueError(f"`batch` should start at {offset} or below. Received: offset={batch.offset}.")
        if batch.next <= offset:
            return None
        rows = slice(offset - batch.offset, None)
        user, item, time, kind = batch.user[rows], batch.item[rows], batch.time[rows], batch.kind[rows]
        valid = np.isin(kind, (CLICK, UNCLICK, FORGET)) & (time >= EARLIEST) & (time < LATEST)
        valid &= time <= batch.received[rows] + 1000 * self._future
        invalid = int(np.sum(~valid & (kind != ERASED)))
        user, item, time, kind = user[valid], item[valid], time[valid], kind[valid]
        events, entries, items = self._read(session, numbers, user, item, time, kind)
        settled = settle(events, entries)
        commands, changed = self._write(numbers, entries, items, settled)
        changed[field] = batch.next
        for name, count in (
            ("applied", settled.applied),
            ("late", settled.late),
            ("invalid", invalid),
            ("duplicate", settled.duplicate),
        ):
            changed[name] = numbers.get(name, 0) + count
        return commands, changed

    def erase(self, session: Session, numbers: Numbers, users: NDArray[np.int64]) -> tuple[Commands, Numbers]:
        """Takes every trace of some users out; the number of entries is in `erased`."""
        item, user, _ = self._scan(session, users)
        item, user, _ = distinct_pairs(item, user)
        keys, first, counts = np.unique(item, return_index=True, return_counts=True)
        sizes = self._ask_scores(session, self.sizes, keys)
        packed = members_packed(user)
        commands = Commands()
        for key, start, count in zip(keys.tolist(), first.tolist(), counts.tolist(), strict=True):
            rest = packed[start : start + count].tobytes()
            commands.add_packed((b"ZREM", item_key(self.clicks, key)), rest, count)
            commands.add_packed((b"ZREM", item_key(self.removed, key)), rest, count)
        commands.add_packed((b"ZREM", self.forgotten), members_packed(users).tobytes(), len(users))
        self._set_items(commands, self.sizes, keys, sizes - counts)
        self._set_items(commands, self.changed, keys, np.full(len(keys), numbers.get("version", 0) + 1))
        return commands, {"total": numbers.get("total", 0) - len(user), "erased": len(user)}

    def fit(self, session: Session, numbers: Numbers, budget: int, most: int) -> Plan:
        """Lowers `n` until the entries fit into a budget, and cuts up to `most` items to it; None: they fit."""
        total = numbers.get("total", 0)
        if total <= budget:
            return None
        keys, sizes = np.empty(0, np.int64), np.empty(0, np.int64)
        while True:  # the largest items first, until cutting all of them to the last one's size is enough
            more = 2 * len(keys) + 1000
            reply = session.ask_one(b"ZREVRANGE", self.sizes, len(keys), more - 1, b"WITHSCORES")
            next_keys, next_sizes = pairs_from(reply)
            keys, sizes = np.concatenate([keys, next_keys]), np.concatenate([sizes, next_sizes])
            if len(keys) < more or total - int(np.sum(sizes - sizes[-1])) <= budget:
                break
        low, high = 0, min(self.in_force(numbers), int(sizes.max(initial=0)))
        while low < high:
            middle = (low + high + 1) // 2
            fits = total - int(np.sum(np.maximum(sizes - middle, 0))) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        over = np.flatnonzero(sizes > low)[:most]
        commands = Commands()
        for key in keys[over].tolist():
            commands.add(b"ZREMRANGEBYRANK", item_key(self.clicks, key), 0, -low - 1)
            self._drop_orphans(commands, key)
        self._set_items(commands, self.sizes, keys[over], np.full(len(over), low))
        self._set_items(commands, self.changed, keys[over], np.full(len(over), numbers.get("version", 0) + 1))
        return commands, {"latest": low, "total": total - int(np.sum(sizes[over] - low))}

    # Reading what events may change.

    def _read(
        self,
        session: Session,
        numbers: Numbers,
        user: NDArray[np.int64],
        item: NDArray[np.int64],
        time: NDArray[np.int64],
        kind: NDArray[np.uint8],
    ) -> tuple[Events, Entries, _Items]:
        users = np.unique(user)
        forgotten = self._ask_scores(session, self.forgotten, users)
        forgets = kind == FORGET
        # A FORGET reaches entries on any item.
        raising = forgets.copy()
        raising[forgets] = time[forgets] > forgotten[np.searchsorted(users, user[forgets])]
        far_item, far_user, _ = self._scan(session, np.unique(user[raising]))
        pair_item, pair_user, row = distinct_pairs(
            np.concatenate([item[~forgets], far_item]), np.concatenate([user[~forgets], far_user])
        )
        pair = np.zeros(len(user), np.int64)
        pair[~forgets] = row[: len(row) - len(far_item)]
        keys, first = np.unique(pair_item, return_index=True)
        bounds = np.append(first, len(pair_item)).astype(np.int64)
        commands = Commands()
        self._ask_members(commands, b"ZMSCORE", self.sizes, members_packed(keys), 0, len(keys))
        self._ask_members(commands, b"SMISMEMBER", self.removals, members_packed(keys), 0, len(keys))
        packed = members_packed(pair_user)
        for key, start, stop in zip(keys.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            self._ask_members(commands, b"ZMSCORE", item_key(self.clicks, key), packed, start, stop)
        replies = session.ask(commands) if len(keys) else [[], []]
        items = _Items(
            keys, bounds, numbers_from(replies[0], len(keys)), numbers_from(replies[1], len(keys)).astype(bool)
        )
        known_time = _flat(replies[2:], np.diff(bounds).tolist())
        removed, floor_time, floor_user = self._read_rest(session, numbers, items, packed)
        entries = Entries(pair_item, pair_user, known_time, removed, floor_time, floor_user, users, forgotten)
        return Events(user, pair, time, kind), entries, items

    def _read_rest(
        self, session: Session, numbers: Numbers, items: _Items, packed: NDArray[np.uint8]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Which entries are removed, and the floors of full items; asked only where there can be any."""
        n = self.in_force(numbers)
        removed = np.zeros(len(packed), bool)
        floor_time, floor_user = np.zeros(len(packed), np.int64), np.zeros(len(packed), np.int64)
        if n == 0:
            floor_time[:] = LATEST
        commands, full, gone = Commands(), [], []
        for (key, start, stop), removals in zip(items.spans, items.removals, strict=True):
            if removals:
                self._ask_members(commands, b"ZMSCORE", item_key(self.removed, key), packed, start, stop)
                gone.append((start, stop))
        for (key, start, stop), size in zip(items.spans, items.sizes, strict=True):
            if 0 < n <= size:
                commands.add(b"ZREVRANGE", item_key(self.clicks, key), n - 1, n - 1, b"WITHSCORES")
                full.append((start, stop))
        replies = session.ask(commands) if commands.count else []
        for reply, (start, stop) in zip(replies[: len(gone)], gone, strict=True):
            removed[start:stop] = numbers_from(reply, stop - start) > 0
        for reply, (start, stop) in zip(replies[len(gone) :], full, strict=True):
            oldest_user, oldest_time = pairs_from(reply)
            if len(oldest_user):
                floor_time[start:stop], floor_user[start:stop] = oldest_time[0], oldest_user[0]
        return removed, floor_time, floor_user

    def _scan(
        self, session: Session, users: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All entries of some users on any item: items `[m]`, users `[m]`, times `[m]`."""
        found: list[tuple[NDArray, NDArray, NDArray]] = []
        packed, start = members_packed(users), 0
        items = max(1, _SLICE // max(1, len(users)))  # of one request: what it sends and gets stays small
        while len(users):
            members = session.ask_one(b"ZRANGE", self.sizes, start, start + items - 1)
            keys = keys_from(members if isinstance(members, list) else [None])
            commands = Commands()
            for key in keys.tolist():
                self._ask_members(commands, b"ZMSCORE", item_key(self.clicks, key), packed, 0, len(users))
            for key, reply in zip(keys.tolist(), session.ask(commands) if len(keys) else [], strict=True):
                times = numbers_from(reply, len(users))
                there = times > 0
                found.append((np.full(int(there.sum()), key), users[there], times[there]))
            start += items
            if len(keys) < items:
                break
        empty = np.empty(0, np.int64)
        columns = [np.concatenate([empty, *column]) for column in zip(*found, strict=True)] or [empty] * 3
        return columns[0], columns[1], columns[2]

    # Writing.

    def _write(self, numbers: Numbers, entries: Entries, items: _Items, settled: Settled) -> tuple[Commands, Numbers]:
        n, version = self.in_force(numbers), numbers.get("version", 0) + 1
        newer = settled.time != entries.time
        gone, back = settled.removed & ~entries.removed, entries.removed & ~settled.removed
        seen = (newer | gone) & (~entries.removed & (entries.time > 0) | ~settled.removed)
        starts = items.bounds[:-1]
        fresh = newer & (entries.time == 0)
        added, seeds_changed = (_per_item(flags, starts) for flags in (fresh, seen))
        over = items.sizes + added > n
        sizes = np.where(over, n, items.sizes + added)
        scored, plain = scored_packed(settled.time, entries.user), members_packed(entries.user)
        ones = scored_packed(np.ones_like(settled.time), entries.user)
        rows, gone_rows = _chosen(scored, newer, starts), _chosen(ones, gone, starts)
        back_rows = _chosen(plain, back, starts)
        commands, removals = Commands(), []
        for key, cut, ever, row, gone_row, back_row in zip(
            items.keys.tolist(), over.tolist(), items.removals.tolist(), rows, gone_rows, back_rows, strict=True
        ):
            name, removed_name = item_key(self.clicks, key), item_key(self.removed, key)
            self._rows(commands, (b"ZADD", name, b"GT"), row, 2)
            self._rows(commands, (b"ZADD", removed_name), gone_row, 2)
            self._rows(commands, (b"ZREM", removed_name), back_row, 1)
            if len(gone_row):
                removals.append(key)
            if cut:
                commands.add(b"ZREMRANGEBYRANK", name, 0, -n - 1)
                if ever or len(gone_row):
                    self._drop_orphans(commands, key)
        touched = over | (seeds_changed > 0)
        resized = sizes != items.sizes
        self._set_items(commands, self.sizes, items.keys[resized], sizes[resized])
        self._set_items(commands, self.changed, items.keys[touched], np.full(int(touched.sum()), version))
        new = members_packed(np.array(removals, np.int64))
        self._rows(commands, (b"SADD", self.removals), new, 1)
        raised = settled.forgotten > entries.forgotten
        self._rows(
            commands,
            (b"ZADD", self.forgotten, b"GT"),
            scored_packed(settled.forgotten[raised], entries.users[raised]),
            2,
        )
        return commands, {"total": numbers.get("total", 0) + int(np.sum(sizes - items.sizes))}

    def _drop_orphans(self, commands: Commands, key: int) -> None:
        """Removed users whose entry was cut off are no longer kept either."""
        name = item_key(self.removed, key)
        commands.add(b"ZINTERSTORE", name, 2, name, item_key(self.clicks, key), b"AGGREGATE", b"MIN")

    def _set_items(self, commands: Commands, name: bytes, keys: NDArray[np.int64], scores: NDArray[np.int64]) -> None:
        self._rows(commands, (b"ZADD", name), scored_packed(scores.astype(np.int64), keys), 2)

    @staticmethod
    def _rows(commands: Commands, words: tuple[bytes, ...], packed: NDArray[np.uint8], width: int) -> None:
        if len(packed):
            commands.add_packed(words, packed.tobytes(), width * len(packed))

    @staticmethod
    def _ask_members(
        commands: Commands, verb: bytes, name: bytes, packed: NDArray[np.uint8], start: int, stop: int
    ) -> None:
        commands.add_packed((verb, name), packed[start:stop].tobytes(), stop - start)

    def _ask_scores(self, session: Session, name: bytes, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(keys):
            return np.empty(0, np.int64)
        commands = Commands()
        self._ask_members(commands, b"ZMSCORE", name, members_packed(keys), 0, len(keys))
        return numbers_from(session.ask(commands)[0], len(keys))


def _per_item(flags: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of each item are flagged."""
    return np.add.reduceat(flags.astype(np.int64), starts) if len(starts) else np.empty(0, np.int64)


def _chosen(packed: NDArray[np.uint8], flags: NDArray[np.bool_], starts: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """The flagged rows of each item."""
    ends = np.cumsum(_per_item(flags, starts)).tolist()
    chosen = packed[flags]
    return [chosen[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]


def _flat(replies: list[Any], counts: list[int]) -> NDArray[np.int64]:
    """The scores of several replies, of known lengths, one after the other."""
    if not all(isinstance(reply, list) and len(reply) == count for reply, count in zip(replies, counts, strict=True)):
        raise WrongAnswer("another number of scores than was asked for")
    together = [score for reply in replies for score in reply]
    return numbers_from(together, len(together))
