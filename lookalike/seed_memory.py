"""Memory of the seed store, which grows and shrinks without ever being there twice."""

import mmap
import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.seed_tables import (
    COUNTERS,
    GARBAGE,
    NEEDED,
    ROW,
    ROWS,
    TOTAL,
    USED,
    compact,
    index_rows,
    look_up,
    put_times,
)

__all__ = ["Arena", "Tables"]

_BLOCK = 16 << 20  # bytes copied before their old place is given back


class Arena:
    """Pairs of int64 that can become more; only what was written to takes memory.

    Args:
        slots: int. Pairs to begin with.

    Attributes:
        data: int64 `[2 * slots]`, zeros at first. No view of it may outlive the next `grow`.
    """

    def __init__(self, slots: int) -> None:
        self._map, self.data = _mapped(slots)

    def grow(self, slots: int) -> None:
        """Makes room for so many pairs; block after block moves, so that the pairs are never there twice."""
        new, data = _mapped(slots)
        old, size = self._map, 8 * len(self.data)
        for low in range(0, size, _BLOCK):
            high = min(low + _BLOCK, size)
            data[low // 8 : high // 8] = self.data[low // 8 : high // 8]
            _give_back(old, low, high)
        self._map, self.data = new, data

    def release(self, used: int) -> None:
        """Gives the memory behind the first `used` pairs back; what is read there later is undefined."""
        low = -(-16 * used // mmap.PAGESIZE) * mmap.PAGESIZE
        if low < 8 * len(self.data):
            _give_back(self._map, low, 8 * len(self.data))


class Tables:
    """The tables of all items and what finds them; the kernels work on its arrays.

    Attributes:
        arena: Arena. The slots of all tables.
        counters: int64 `[COUNTERS]`.
        salt: int. Of all hashes, drawn anew in every process: nobody can choose ids that collide.
    """

    def __init__(self) -> None:
        self.arena = Arena(1024)
        self.counters = np.zeros(COUNTERS, np.int64)
        self.salt = secrets.randbits(62)
        self._rows = np.empty(0, ROW)
        self._index = np.zeros(1, np.int32)
        self._limit = 1024  # slots of the arena that may be used before it is tidied up
        self.make_room(1)

    @property
    def rows(self) -> NDArray[Any]:
        """What is known of each item, ROW `[items]`."""
        return self._rows[: self.counters[ROWS]]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return 16 * int(self.counters[USED]) + self.rows.nbytes + self._index.nbytes

    def arrays(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """What `take` and `restore` fill: slots, counters, rows with room for new ones, index."""
        return self.arena.data[: 2 * self._limit], self.counters, self._rows, self._index

    def rows_of(self, items: Any) -> NDArray[np.int64]:
        """Row of each of some items, -1 for an unknown one."""
        return look_up(self._index, self._rows, np.ascontiguousarray(items, np.int64).reshape(-1), self.salt)

    def make_room(self, items: int) -> None:
        """Makes room for so many new items."""
        count = int(self.counters[ROWS])
        if count + items > len(self._rows):
            rows = np.empty(max(count + items, count * 3 // 2), ROW)
            rows[:count] = self.rows
            self._rows = rows
        if 3 * (count + items) > 2 * len(self._index):
            self._index = np.zeros(_power(2 * (count + items)), np.int32)
            index_rows(self._index, self._rows, count, self.salt)

    def make_slots(self, needed: int | None = None) -> None:
        """Makes room for so many slots. Of the used ones hardly more than a fifth is ever idle.

        Args:
            needed: int, optional. Defaults to what a kernel asked for.
        """
        needed = int(self.counters[NEEDED]) if needed is None else needed
        tidy = 5 * self.counters[GARBAGE] > self.counters[USED]
        if tidy:
            by_start = np.argsort(self.rows["start"], kind="stable")
            compact(self.arena.data, self.counters, self._rows, by_start)
        used = int(self.counters[USED])
        self._limit = used + needed + max(used // 8, 1024)
        if 2 * self._limit > len(self.arena.data):
            self.arena.grow(self._limit + self._limit // 2)
        elif tidy:
            self.arena.release(self._limit)

    def clear(self) -> None:
        """Forgets all items."""
        self.counters[[ROWS, TOTAL, USED, GARBAGE]] = 0
        self._index[:] = 0

    def time_map(self, users: NDArray[np.int64], times: NDArray[np.int64], more: int = 0) -> tuple[NDArray, NDArray]:
        """A map users -> times, with room for more of them."""
        slots = _power(2 * (len(users) + more) + 2)
        keys, values = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        put_times(keys, values, users, times, self.salt)
        return keys, values


def _power(least: int) -> int:
    """The power of two that is no less."""
    return 1 << max(least - 1, 0).bit_length()


def _mapped(slots: int) -> tuple[mmap.mmap, NDArray[np.int64]]:
    memory = mmap.mmap(-1, 16 * slots, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # a probe is at a random place: fewer page table look-ups
    return memory, np.frombuffer(memory, np.int64)


def _give_back(memory: mmap.mmap, low: int, high: int) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED, low, high - low)
