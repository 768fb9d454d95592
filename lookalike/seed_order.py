"""The newest entries of a table: which they are, and in order."""

import numba
import numpy as np

from lookalike.seed_tables import LOWEST

__all__ = ["gather", "order", "threshold"]

_DIGIT = 11  # bits of a digit in `threshold`
_SIGN = np.uint64(1 << 63)
_RUN = 16  # entries sorted by insertion before they are merged

_compiled = numba.njit(nogil=True, cache=True)
_inlined = numba.njit(nogil=True, cache=True, inline="always")


@_compiled
def threshold(arena, start, slots, n, live_only):
    """The `n`-th largest (time, user) of a table with at least as many entries; digit by digit, without a copy."""
    bins = np.empty(1 << _DIGIT, np.int64)
    mask = np.uint64((1 << _DIGIT) - 1)
    low, high = 2 * start, 2 * (start + slots)
    left = n
    time = np.uint64(0)
    for shift in (33, 22, 11, 0):
        bins[:] = 0
        for at in range(low, high, 2):
            stamp = arena[at + 1]
            if stamp != 0 and not (live_only and stamp & 1):
                t = np.uint64(stamp) >> np.uint64(1)
                if (t ^ time) >> np.uint64(shift + _DIGIT) == 0:
                    bins[(t >> np.uint64(shift)) & mask] += 1
        digit = len(bins) - 1
        while bins[digit] < left:
            left -= bins[digit]
            digit -= 1
        time |= np.uint64(digit) << np.uint64(shift)
    chosen = np.int64(time)
    if bins[digit] == left:
        return chosen, LOWEST
    user = np.uint64(0)
    for shift in (55, 44, 33, 22, 11, 0):
        bins[:] = 0
        for at in range(low, high, 2):
            stamp = arena[at + 1]
            if stamp >> 1 == chosen and not (live_only and stamp & 1):
                u = np.uint64(arena[at]) ^ _SIGN
                above = np.uint64(shift + _DIGIT)
                if above >= 64 or (u ^ user) >> above == 0:
                    bins[(u >> np.uint64(shift)) & mask] += 1
        digit = len(bins) - 1
        while bins[digit] < left:
            left -= bins[digit]
            digit -= 1
        user |= np.uint64(digit) << np.uint64(shift)
    return chosen, np.int64(user ^ _SIGN)


@_compiled
def gather(arena, rows, chosen, offsets, live_only, users, stamps):
    """Copies the entries of rows with the largest (time, user), unordered, into `offsets[i]:offsets[i + 1]`."""
    for i in range(len(chosen)):
        to, wanted = offsets[i], offsets[i + 1] - offsets[i]
        if wanted == 0:
            continue
        row = chosen[i]
        start, slots = rows[row].start, rows[row].slots
        time, user = np.int64(0), np.int64(LOWEST)
        if wanted < (rows[row].live if live_only else rows[row].count):
            time, user = threshold(arena, start, slots, wanted, live_only)
        for at in range(2 * start, 2 * (start + slots), 2):
            u, stamp = arena[at], arena[at + 1]
            if stamp == 0 or (live_only and stamp & 1):
                continue
            if stamp >> 1 > time or (stamp >> 1 == time and u >= user):
                users[to] = u
                stamps[to] = stamp
                to += 1


@_inlined
def _before(stamp, user, other_stamp, other_user):
    """Whether an entry comes before another: newer, or of the same time and a larger user."""
    t, o = stamp >> 1, other_stamp >> 1
    return t > o or (t == o and user > other_user)


@_compiled
def order(offsets, users, stamps):
    """Sorts each part `offsets[i]:offsets[i + 1]` in place: the newest first, of equal times the larger user."""
    longest = 0
    for i in range(len(offsets) - 1):
        longest = max(longest, offsets[i + 1] - offsets[i])
    held_users, held_stamps = np.empty(longest, np.int64), np.empty(longest, np.int64)
    for i in range(len(offsets) - 1):
        a, b = users[offsets[i] : offsets[i + 1]], stamps[offsets[i] : offsets[i + 1]]
        _sort(a, b, held_users[: len(a)], held_stamps[: len(a)])


@_compiled
def _sort(users, stamps, held_users, held_stamps):
    """Merge sort; the halves to merge lie in the one pair of arrays and then in the other."""
    size = len(users)
    for low in range(0, size, _RUN):
        for i in range(low + 1, min(low + _RUN, size)):
            u, s, j = users[i], stamps[i], i
            while j > low and _before(s, u, stamps[j - 1], users[j - 1]):
                users[j], stamps[j] = users[j - 1], stamps[j - 1]
                j -= 1
            users[j], stamps[j] = u, s
    from_users, from_stamps, to_users, to_stamps = users, stamps, held_users, held_stamps
    width, held = _RUN, False
    while width < size:
        for low in range(0, size, 2 * width):
            middle, high = min(low + width, size), min(low + 2 * width, size)
            i, j = low, middle
            for k in range(low, high):
                first = j >= high or (
                    i < middle and _before(from_stamps[i], from_users[i], from_stamps[j], from_users[j])
                )
                source = i if first else j
                to_users[k], to_stamps[k] = from_users[source], from_stamps[source]
                i += first
                j += not first
        from_users, from_stamps, to_users, to_stamps = to_users, to_stamps, from_users, from_stamps
        width, held = 2 * width, not held
    if held:
        users[:] = held_users
        stamps[:] = held_stamps
