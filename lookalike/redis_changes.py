"""What a batch of events changes in entries whose present state is known: the rule of the seed store, by the array."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog import CLICK, FORGET, UNCLICK

__all__ = ["Entries", "Events", "Settled", "distinct_pairs", "settle"]


@dataclass(frozen=True)
class Events:
    """Valid events in the order they came.

    Args:
        user: int64 `[n]`.
        pair: int64 `[n]`. The row of `Entries` that has its item and user; any for a FORGET.
        time: int64 `[n]`. Milliseconds, of a valid range.
        kind: uint8 `[n]`.
    """

    user: NDArray[np.int64]
    pair: NDArray[np.int64]
    time: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Entries:
    """State of the entries that events may change, each once.

    Args:
        item: int64 `[p]`.
        user: int64 `[p]`.
        time: int64 `[p]`. Of the latest event known; 0 where there is no entry.
        removed: bool `[p]`. Taken back or forgotten.
        floor_time: int64 `[p]`. Of the oldest entry of a full item, 0 of one that is not full.
        floor_user: int64 `[p]`. Likewise.
        users: int64 `[u]`. The users of the events and entries, ascending.
        forgotten: int64 `[u]`. Time of the user's last FORGET, 0 for none.
    """

    item: NDArray[np.int64]
    user: NDArray[np.int64]
    time: NDArray[np.int64]
    removed: NDArray[np.bool_]
    floor_time: NDArray[np.int64]
    floor_user: NDArray[np.int64]
    users: NDArray[np.int64]
    forgotten: NDArray[np.int64]


@dataclass(frozen=True)
class Settled:
    """State after the events.

    Args:
        time: int64 `[p]`. As in `Entries`.
        removed: bool `[p]`.
        forgotten: int64 `[u]`.
        applied: int. Events that told something new.
        late: int. Events that came too late to count.
        duplicate: int. Events that were known.
    """

    time: NDArray[np.int64]
    removed: NDArray[np.bool_]
    forgotten: NDArray[np.int64]
    applied: int
    late: int
    duplicate: int


def distinct_pairs(
    item: NDArray[np.int64], user: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct (item, user), sorted: items `[p]`, users `[p]`, and the row of each one given `[n]`."""
    order = np.lexsort((user, item))
    item, user = item[order], user[order]
    first = np.ones(len(order), bool)
    first[1:] = (item[1:] != item[:-1]) | (user[1:] != user[:-1])
    row = np.empty(len(order), np.int64)
    row[order] = np.cumsum(first) - 1
    return item[first], user[first], row


def settle(events: Events, entries: Entries) -> Settled:
    """The entries after some events, and what became of each event.

    An entry is one number, `2 time + removed`, and every event can only raise it, so that their order does not matter:
    a CLICK to 2t (2t + 1 where the user was forgotten at t or later), an UNCLICK to 2t + 1; a FORGET raises 2t to
    2t + 1 up to its time. What an event is counted as depends on what came before it.
    """
    order_user = np.searchsorted(entries.users, events.user)
    forgets = events.kind == FORGET
    before = _running(order_user, np.where(forgets, events.time, 0), entries.forgotten)
    forgotten = entries.forgotten.copy()
    np.maximum.at(forgotten, order_user[forgets], events.time[forgets])
    applied = int(np.sum(events.time[forgets] > before[forgets]))
    duplicate = int(np.sum(forgets)) - applied

    where = np.flatnonzero(~forgets)
    pair, time, kind, gone = events.pair[where], events.time[where], events.kind[where], before[where]
    floor = (time < entries.floor_time[pair]) | (
        (time == entries.floor_time[pair]) & (events.user[where] < entries.floor_user[pair])
    )
    below = (entries.time[pair] == 0) & floor
    late = int(np.sum(below))
    pair, time, kind, gone = (column[~below] for column in (pair, time, kind, gone))

    taken_back = kind == UNCLICK
    known = 2 * entries.time + entries.removed
    raised = 2 * time + (taken_back | (time <= gone))
    state = _running(pair, raised, known)
    state |= (state > 0) & ((state >> 1) <= gone)
    old = 2 * time + taken_back <= state
    dead = (kind == CLICK) & np.where(old, (state & 1) == 1, time <= gone)
    late += int(np.sum(dead))
    duplicate += int(np.sum(old & ~dead))
    applied += int(np.sum(~old & ~dead))

    after = known.copy()
    np.maximum.at(after, pair, raised)
    after |= (after > 0) & ((after >> 1) <= forgotten[np.searchsorted(entries.users, entries.user)])
    return Settled(after >> 1, (after & 1) == 1, forgotten, applied, late, duplicate)


def _running(group: NDArray[np.int64], value: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each event, the largest value of its group before it, and at least the group's start: `[n]`."""
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    first = np.ones(len(order), bool)
    first[1:] = sorted_group[1:] != sorted_group[:-1]
    # Shifted by one within the group; then one cumulative maximum serves all groups, each lifted above the one before.
    shifted = np.empty_like(value)
    shifted[1:] = value[order][:-1]
    shifted[first] = 0
    shifted = np.maximum(shifted, start[sorted_group])
    lift = np.cumsum(first) << 44
    found = np.empty_like(value)
    found[order] = np.maximum.accumulate(shifted + lift) - lift
    return found
