"""What the shared seed store reads from the server for its answers."""

import numpy as np
from numpy.typing import NDArray

from lookalike.redis_ledger import Ledger, Numbers
from lookalike.redis_link import Commands, Session, WrongAnswer
from lookalike.redis_wire import item_key, keys_from, members_packed, numbers_from, pairs_from
from lookalike.redis_writes import Writes

__all__ = ["Reads"]

_PAGE = 100_000  # entries in one reply, about


class Reads:
    """Questions to the server, each a function of a session.

    Args:
        ledger: Ledger. The numbers.
        keys: Writes. The names of the keys.
    """

    def __init__(self, ledger: Ledger, keys: Writes) -> None:
        self._ledger, self._keys = ledger, keys

    def changed_since(self, session: Session, mark: int) -> NDArray[np.int64]:
        """Items, ascending `[items]`."""
        return np.sort(_keys(session.ask_one(b"ZRANGEBYSCORE", self._keys.changed, b"(%d" % mark, b"+inf")))

    def items(self, session: Session) -> NDArray[np.int64]:
        """Items with at least one seed, ascending `[items]`."""
        numbers = self._ledger.read(session)
        keys, sizes = pairs_from(session.ask_one(b"ZRANGE", self._keys.sizes, 0, -1, b"WITHSCORES"))
        ever = _keys(session.ask_one(b"SMEMBERS", self._keys.removals))
        gone = np.isin(keys, ever)
        sizes = np.minimum(sizes, self._keys.in_force(numbers))
        sizes[gone] -= self._removed(session, keys[gone])
        return np.sort(keys[sizes > 0])

    def seed_counts(self, session: Session, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Seeds of each item `[n]`."""
        sizes, ever = self._sizes(session, items)
        sizes[ever] -= self._removed(session, items[ever])
        return np.maximum(sizes, 0)

    def seeds(
        self, session: Session, items: NDArray[np.int64], newest: int | None
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Users and times of each item's seeds, the newest first."""
        if not len(items):
            return []
        sizes, ever = self._sizes(session, items)
        wanted = sizes if newest is None else np.minimum(sizes, newest)
        found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        start = 0
        while start < len(items):
            stop = start + max(1, int(np.searchsorted(np.cumsum(wanted[start:]), _PAGE)))
            found += self._group(session, items[start:stop], wanted[start:stop], ever[start:stop], newest)
            start = stop
        return found

    def _group(
        self,
        session: Session,
        items: NDArray[np.int64],
        wanted: NDArray[np.int64],
        ever: NDArray[np.bool_],
        newest: int | None,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Seeds of items that fit into one reply together, or of one item that may be larger."""
        commands = Commands()
        for item, count in zip(items.tolist(), wanted.tolist(), strict=True):
            last = max(min(count, _PAGE), 1) - 1
            commands.add(b"ZREVRANGE", item_key(self._keys.clicks, item), 0, last, b"WITHSCORES")
        for item in items[ever].tolist():
            commands.add(b"ZRANGE", item_key(self._keys.removed, item), 0, -1)
        replies = session.transact(commands)
        if replies is None:
            raise WrongAnswer("nothing, to commands that watch no key")
        removed = dict(zip(items[ever].tolist(), map(_keys, replies[len(items) :]), strict=True))
        found = []
        for item, count, reply in zip(items.tolist(), wanted.tolist(), replies, strict=False):
            users, times = pairs_from(reply)
            gone = removed.get(item, np.empty(0, np.int64))
            more = len(gone) if newest is not None else 0
            if len(users) < count + more and len(users) == max(min(count, _PAGE), 1):
                users, times = self._further(session, item, users, times, count + more)
            there = ~np.isin(users, gone) if len(gone) else np.ones(len(users), bool)
            found.append((users[there][:newest], times[there][:newest]))
            if not count:
                found[-1] = users[:0], times[:0]
        return found

    def _further(
        self, session: Session, item: int, users: NDArray[np.int64], times: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rest of an item's entries, page by page; who moved up meanwhile is not given twice."""
        pages = [(users, times)]
        place = len(users)
        while place < count:
            last = min(place + _PAGE, count) - 1
            page = pairs_from(
                session.ask_one(b"ZREVRANGE", item_key(self._keys.clicks, item), place, last, b"WITHSCORES")
            )
            pages.append(page)
            if len(page[0]) < last - place + 1:
                break
            place = last + 1
        users, times = (np.concatenate(column) for column in zip(*pages, strict=True))
        first = np.sort(np.unique(users, return_index=True)[1])
        return users[first], times[first]

    def _sizes(self, session: Session, items: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Entries of each item, at most `n`, and whether it ever had a removed one."""
        packed, count = members_packed(items).tobytes(), len(items)
        numbers: Numbers = self._ledger.read(session)
        commands = Commands()
        commands.add_packed((b"ZMSCORE", self._keys.sizes), packed, count)
        commands.add_packed((b"SMISMEMBER", self._keys.removals), packed, count)
        sizes, ever = (numbers_from(reply, count) for reply in session.ask(commands))
        return np.minimum(sizes, self._keys.in_force(numbers)), ever > 0

    def _removed(self, session: Session, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Removed entries of each item `[n]`."""
        if not len(items):
            return np.empty(0, np.int64)
        commands = Commands()
        for item in items.tolist():
            commands.add(b"ZCARD", item_key(self._keys.removed, item))
        return numbers_from(session.ask(commands), len(items))


def _keys(reply: object) -> NDArray[np.int64]:
    return keys_from(reply if isinstance(reply, list) else [None])
