"""What events do to the seed store's tables."""

import numba
import numpy as np

from lookalike.clicklog import CLICK, ERASED, FORGET, UNCLICK
from lookalike.seed_order import threshold
from lookalike.seed_tables import (
    APPLIED,
    DUPLICATE,
    FORGOTTEN,
    INVALID,
    LATE,
    TOTAL,
    drop,
    find_row,
    find_time,
    home,
    place,
    row_of,
    widen,
    wider,
    within,
)

__all__ = ["EARLIEST", "LATEST", "cut", "erase", "take", "void"]

EARLIEST, LATEST = 946_684_800_000, 4_102_444_800_000  # 2000-01-01 and 2100-01-01, half-open

_GROUP = 32  # events whose places are looked up together

_compiled = numba.njit(nogil=True, cache=True)


@_compiled
def take(
    arena, counters, rows, index, keys, times, user, item, time, kind, received, first, last, offset, n, future, salt
):
    """Takes in the events `first:last`; the number of the one it stopped at, for want of `NEEDED` slots, or `last`.

    Args:
        arena: int64 `[2 * slots]`. User and stamp of each slot.
        counters: int64 `[COUNTERS]`.
        rows: ROW `[rows]`. There is room for a new one an event.
        index: int32 `[power of two]`. Items -> rows.
        keys: int64 `[power of two]`. Users who were forgotten; there is room for a new one an event.
        times: int64 `[power of two]`. Until when.
        user: int64 `[n]`. Of the events.
        item: int64 `[n]`.
        time: int64 `[n]`.
        kind: uint8 `[n]`.
        received: int64 `[n]`.
        first: int.
        last: int.
        offset: int. Of event 0.
        n: int. Most entries of an item, but for an eighth by which it may pass it before it is cut.
        future: int. Milliseconds that a time may be after `received`.
        salt: int.
    """
    group_rows, touched = np.empty(_GROUP, np.int64), np.empty(_GROUP, np.int64)
    for e in range(first, last):
        g = (e - first) % _GROUP
        if g == 0:
            _touch(arena, rows, index, user, item, e, min(e + _GROUP, last), salt, group_rows, touched)
        k, u, t = kind[e], user[e], time[e]
        if k == ERASED:
            continue
        known = k == CLICK or k == UNCLICK or k == FORGET
        if not known or t < EARLIEST or t >= LATEST or t - future > received[e]:
            counters[INVALID] += 1
        elif k == FORGET:
            at = find_time(keys, times, u, salt)
            counters[FORGOTTEN] += times[at] == 0
            counters[APPLIED if t > times[at] else DUPLICATE] += 1
            keys[at] = u
            times[at] = max(times[at], t)
        elif n == 0:
            counters[LATE] += 1
        else:
            forgotten = counters[FORGOTTEN] > 0 and t <= times[find_time(keys, times, u, salt)]
            row = group_rows[g]
            if row < 0:
                row = row_of(index, rows, counters, item[e], salt)
            outcome = _enter(arena, counters, rows, row, u, t, k == UNCLICK, forgotten, offset + e + 1, n, salt)
            if outcome < 0:
                return e
            counters[outcome] += 1
    return last


@_compiled
def _touch(arena, rows, index, user, item, first, last, salt, group_rows, touched):
    """Finds the rows of a group of events and reads where their users will be looked for.

    The reads do not wait for each other, so that the memory answers many at a time.
    """
    for e in range(first, last):
        row = index[find_row(index, rows, item[e], salt)] - 1
        group_rows[e - first] = row
        if row >= 0 and rows[row].slots > 0:
            touched[e - first] = arena[2 * (rows[row].start + home(user[e], rows[row].slots, salt)) + 1]


@_compiled
def _enter(arena, counters, rows, row, user, time, unclick, forgotten, after, n, salt):
    """Enters a click or its taking back into a row; the counter of the outcome, or -1 for want of slots."""
    stamp = 2 * time + (unclick or forgotten)
    at = place(arena, rows[row].start, rows[row].slots, user, salt)
    old = np.int64(1)  # no entry is as one that is removed
    if at >= 0 and arena[at + 1] != 0:
        old = arena[at + 1]
        if 2 * time + unclick <= old:
            return LATE if (forgotten or old & 1 == 1) and not unclick else DUPLICATE
    else:
        if _below_floor(rows, row, time, user):
            return LATE
        most, slots = n + max(n >> 3, 16), rows[row].slots
        if rows[row].count >= min(most, within(slots)):
            if rows[row].count >= most:
                _cut_row(arena, counters, rows, row, n, salt)
                if _below_floor(rows, row, time, user):
                    return LATE
            elif not widen(arena, counters, rows, row, wider(slots, most), salt):
                return -1
            at = place(arena, rows[row].start, rows[row].slots, user, salt)
        rows[row].count += 1
        counters[TOTAL] += 1
    arena[at] = user
    arena[at + 1] = stamp
    rows[row].live += (old & 1) - (stamp & 1)
    if old & stamp & 1 == 0:  # a seed came, went or has a new time
        rows[row].changed = after
    return LATE if forgotten and not unclick else APPLIED


@_compiled
def _below_floor(rows, row, time, user):
    low = rows[row].floor_time
    return time < low or (time == low and user < rows[row].floor_user)


@_compiled
def _cut_row(arena, counters, rows, row, n, salt):
    """Keeps the `n` entries of a row with the largest (time, user)."""
    start, slots = rows[row].start, rows[row].slots
    time, user = threshold(arena, start, slots, n, False)
    live = 0
    for k in range(slots):
        at = 2 * (start + k)
        while arena[at + 1] != 0:
            t = arena[at + 1] >> 1
            if t > time or (t == time and arena[at] >= user):
                break
            live += 1 - (arena[at + 1] & 1)
            drop(arena, start, slots, k, salt)
    counters[TOTAL] -= rows[row].count - n
    rows[row].count = n
    rows[row].live -= live
    rows[row].floor_time = time
    rows[row].floor_user = user
    return live


@_compiled
def cut(arena, counters, rows, n, offset, salt):
    """Cuts every row to `n` >= 1 entries; those that lose seeds are marked changed at `offset`."""
    for row in range(len(rows)):
        if rows[row].count > n and _cut_row(arena, counters, rows, row, n, salt) > 0:
            rows[row].changed = offset


@_compiled
def void(arena, rows, keys, times, offset, salt):
    """Marks entries removed whose user was forgotten at or after their time."""
    for row in range(len(rows)):
        start = rows[row].start
        for at in range(2 * start, 2 * (start + rows[row].slots), 2):
            stamp = arena[at + 1]
            if stamp & 1 == 0 and stamp != 0 and stamp >> 1 <= times[find_time(keys, times, arena[at], salt)]:
                arena[at + 1] = stamp + 1
                rows[row].live -= 1
                rows[row].changed = offset


@_compiled
def erase(arena, counters, rows, keys, times, offset, salt):
    """Takes out all entries of the users in a map; how many."""
    erased = 0
    for row in range(len(rows)):
        start, slots = rows[row].start, rows[row].slots
        for k in range(slots):
            at = 2 * (start + k)
            while arena[at + 1] != 0 and times[find_time(keys, times, arena[at], salt)] != 0:
                erased += 1
                rows[row].count -= 1
                if arena[at + 1] & 1 == 0:
                    rows[row].live -= 1
                    rows[row].changed = offset
                drop(arena, start, slots, k, salt)
    counters[TOTAL] -= erased
    return erased
