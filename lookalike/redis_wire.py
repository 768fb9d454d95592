"""Seeds as Redis stores them: members of 8 bytes, times as scores, packed and read by the array."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.redis_link import WrongAnswer

__all__ = [
    "item_key",
    "keys_from",
    "member",
    "members_packed",
    "numbers_from",
    "pairs_from",
    "scored_packed",
]

_SIGN = np.uint64(1 << 63)
_DIGITS = 13  # of every valid time in milliseconds, the years before 2001-09 with a leading zero


def item_key(prefix: bytes, item: int) -> bytes:
    """The key of an item: 16 hexadecimal digits, whatever the id was, behind a prefix."""
    return prefix + b"%016x" % (item & 0xFFFFFFFFFFFFFFFF)


def member(key: int) -> bytes:
    """A user or item as a member: 8 bytes that sort as the number does."""
    return (key + (1 << 63)).to_bytes(8, "big")


def _sortable(keys: NDArray[np.int64]) -> NDArray[np.uint8]:
    flipped = (keys.view(np.uint64) ^ _SIGN).astype(">u8")
    return np.ascontiguousarray(flipped).view(np.uint8).reshape(-1, 8)


def _framed(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Words of fixed lengths, one after the other in a row, as the protocol wants them: `[n, bytes]`."""
    rows = len(parts[0])
    columns = []
    for part in parts:
        head, tail = f"${part.shape[1]}\r\n".encode(), b"\r\n"
        columns += [_rows(head, rows), part, _rows(tail, rows)]
    return np.concatenate(columns, axis=1)


def _rows(text: bytes, rows: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(text, np.uint8), (rows, len(text)))


def members_packed(keys: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each key as a packed word, `[n, 14]`."""
    return _framed([_sortable(keys)])


def scored_packed(scores: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each score and key as two packed words, as ZADD wants them, `[n, bytes]`; scores of at most 13 digits."""
    digits = np.empty((len(scores), _DIGITS), np.uint8)
    rest = scores.copy()
    for place in range(_DIGITS - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        digits[:, place] = digit + ord("0")
    return _framed([digits, _sortable(keys)])


def keys_from(members: list[Any]) -> NDArray[np.int64]:
    """Members back to keys, `[n]`."""
    try:
        joined = b"".join(members)
    except TypeError:
        raise WrongAnswer("members that are no bytes") from None
    if len(joined) != 8 * len(members) or any(len(one) != 8 for one in members):
        raise WrongAnswer("members that have not 8 bytes")
    return (np.frombuffer(joined, ">u8").astype(np.uint64) ^ _SIGN).view(np.int64)


def numbers_from(replies: Any, count: int) -> NDArray[np.int64]:
    """A list of so many scores, 0 where there is none, `[count]`."""
    if not isinstance(replies, list) or len(replies) != count:
        raise WrongAnswer(f"not the {count} numbers that were asked for")
    try:
        found = np.fromiter((float(one) if one is not None else 0.0 for one in replies), np.float64, count)
    except (TypeError, ValueError):
        raise WrongAnswer("a number that is none") from None
    if not (np.isfinite(found).all() and (np.abs(found) < 2.0**53).all()):
        raise WrongAnswer("a number out of range")
    return found.astype(np.int64)


def pairs_from(reply: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Members with their scores: keys `[n]` and scores `[n]`."""
    if not isinstance(reply, list) or len(reply) % 2:
        raise WrongAnswer("no list of members and scores")
    return keys_from(reply[0::2]), numbers_from(reply[1::2], len(reply) // 2)
