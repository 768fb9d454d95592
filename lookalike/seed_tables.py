"""Memory of the seed store: for each item an open-addressed table of (user, stamp), all of them in one arena.

A stamp is `2 * time + removed`; 0 marks an empty slot. An entry's rank is (time, user), whether removed or not. A table
is probed linearly from a place that is in proportion to the user's hash, so that a table copied in the order of its
slots fills the next one in order too.
"""

import numba
import numpy as np

__all__ = [
    "APPLIED",
    "COUNTERS",
    "DUPLICATE",
    "FORGOTTEN",
    "GARBAGE",
    "INVALID",
    "LATE",
    "LOWEST",
    "NEEDED",
    "ROW",
    "ROWS",
    "TOTAL",
    "USED",
    "compact",
    "drop",
    "find_row",
    "find_time",
    "home",
    "index_rows",
    "look_up",
    "place",
    "put_times",
    "restore",
    "row_of",
    "widen",
    "wider",
    "within",
]

# What is known of an item. `floor` is the oldest (time, user) that it can still take.
ROW = np.dtype(
    [
        ("item", np.int64),
        ("start", np.int64),  # of its table in the arena, in slots
        ("changed", np.int64),  # offset behind the last event that changed its seeds
        ("floor_time", np.int64),
        ("floor_user", np.int64),
        ("slots", np.int32),
        ("count", np.int32),  # entries
        ("live", np.int32),  # those that are not removed: the seeds
    ],
    align=True,
)

# Places in the array of counters.
USED, GARBAGE, ROWS, TOTAL, FORGOTTEN, NEEDED, APPLIED, LATE, INVALID, DUPLICATE = range(10)
COUNTERS = 10

LOWEST = np.iinfo(np.int64).min

_compiled = numba.njit(nogil=True, cache=True)


@_compiled
def _hash(key, salt):
    """64 bits; the salt keeps anyone from choosing keys that collide."""
    h = np.uint64(key) ^ np.uint64(salt)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    h = (h ^ (h >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@_compiled
def home(user, slots, salt):
    """Where a table is probed first."""
    return np.int64(((_hash(user, salt) >> np.uint64(32)) * np.uint64(slots)) >> np.uint64(32))


@_compiled
def place(arena, start, slots, user, salt):
    """Place of a user's entry, or of the empty slot for it; -1 where the table is full."""
    if slots == 0:
        return -1
    k = home(user, slots, salt)
    for _ in range(slots):
        at = 2 * (start + k)
        if arena[at + 1] == 0 or arena[at] == user:
            return at
        k += 1
        if k == slots:
            k = 0
    return -1


@_compiled
def within(slots):
    """Entries that a table takes before it grows: small ones are filled, large ones to five sixths."""
    return slots if slots <= 8 else slots - slots // 6


@_compiled
def wider(slots, most):
    """Slots of the next larger table; `most` entries are all that it will ever hold."""
    if slots < 4:
        return max(2 * slots, 1)
    wanted = slots + max(slots // 4, 2)
    enough = most + most // 5 + 2
    return max(min(wanted, enough), slots + 1)


# Maps users -> times of a power of two slots, in two arrays; time 0 marks an empty slot.


@_compiled
def find_time(keys, times, key, salt):
    """Place of a key, or of the empty slot for it."""
    mask = len(keys) - 1
    k = np.int64(_hash(key, salt) >> np.uint64(32)) & mask
    while times[k] != 0 and keys[k] != key:
        k = (k + 1) & mask
    return k


@_compiled
def put_times(keys, times, users, values, salt):
    """Fills a map in which there is room for all."""
    for i in range(len(users)):
        k = find_time(keys, times, users[i], salt)
        keys[k] = users[i]
        times[k] = max(times[k], values[i])


# Items -> rows: row + 1 in a power of two slots, 0 marks an empty one.


@_compiled
def find_row(index, rows, item, salt):
    """Place of an item in the index, or of the empty one for it."""
    mask = len(index) - 1
    k = np.int64(_hash(item, salt) >> np.uint64(32)) & mask
    while index[k] != 0 and rows[index[k] - 1].item != item:
        k = (k + 1) & mask
    return k


@_compiled
def index_rows(index, rows, count, salt):
    """Fills an empty index with the first `count` rows."""
    for row in range(count):
        index[find_row(index, rows, rows[row].item, salt)] = row + 1


@_compiled
def look_up(index, rows, items, salt):
    """Row of each item, int64 `[n]`; -1 for an unknown one."""
    found = np.empty(len(items), np.int64)
    for i in range(len(items)):
        found[i] = index[find_row(index, rows, items[i], salt)] - 1
    return found


@_compiled
def row_of(index, rows, counters, item, salt):
    """Row of an item; it is made where there is none."""
    k = find_row(index, rows, item, salt)
    if index[k] == 0:
        row = counters[ROWS]
        counters[ROWS] += 1
        rows[row].item = item
        rows[row].start = 0
        rows[row].changed = 0
        rows[row].floor_time = 0
        rows[row].floor_user = LOWEST
        rows[row].slots = 0
        rows[row].count = 0
        rows[row].live = 0
        index[k] = row + 1
    return index[k] - 1


@_compiled
def widen(arena, counters, rows, row, slots, salt):
    """Moves a row's table to the end of the used part, with more slots; False where the arena has no room."""
    new = counters[USED]
    if 2 * (new + slots) > len(arena):
        counters[NEEDED] = slots
        return False
    arena[2 * new : 2 * (new + slots)] = 0
    start, old = rows[row].start, rows[row].slots
    for at in range(2 * start, 2 * (start + old), 2):
        if arena[at + 1] != 0:
            to = place(arena, new, slots, arena[at], salt)
            arena[to] = arena[at]
            arena[to + 1] = arena[at + 1]
    counters[USED] += slots
    counters[GARBAGE] += old
    rows[row].start = new
    rows[row].slots = slots
    return True


@_compiled
def drop(arena, start, slots, k, salt):
    """Empties slot `k` and moves up what probed past it."""
    j = k
    while True:
        j = j + 1 if j + 1 < slots else 0
        at = 2 * (start + j)
        if j == k or arena[at + 1] == 0:
            break
        wanted = home(arena[at], slots, salt)
        passed = wanted <= k or wanted > j if k < j else j < wanted <= k
        if passed:
            arena[2 * (start + k)] = arena[at]
            arena[2 * (start + k) + 1] = arena[at + 1]
            k = j
    arena[2 * (start + k) + 1] = 0


@_compiled
def compact(arena, counters, rows, by_start):
    """Closes the gaps between tables, in place."""
    free = 0
    for row in by_start:
        start, slots = rows[row].start, rows[row].slots
        if start != free:
            for at in range(2 * slots):
                arena[2 * free + at] = arena[2 * start + at]
            rows[row].start = free
        free += slots
    counters[USED] = free
    counters[GARBAGE] = 0


@_compiled
def restore(arena, counters, rows, index, items, offsets, users, stamps, n, salt):
    """Makes rows of a snapshot's items, none of which is there yet; their entries are the newest first."""
    for i in range(len(items)):
        size = offsets[i + 1] - offsets[i]
        row = row_of(index, rows, counters, items[i], salt)
        slots = size if size <= 4 else size + size // 4
        widen(arena, counters, rows, row, slots, salt)
        live = 0
        for j in range(offsets[i], offsets[i + 1]):
            at = place(arena, rows[row].start, slots, users[j], salt)
            arena[at] = users[j]
            arena[at + 1] = stamps[j]
            live += 1 - (stamps[j] & 1)
        rows[row].count = size
        rows[row].live = live
        if size >= n:
            rows[row].floor_time = stamps[offsets[i + 1] - 1] >> 1
            rows[row].floor_user = users[offsets[i + 1] - 1]
        counters[TOTAL] += size
