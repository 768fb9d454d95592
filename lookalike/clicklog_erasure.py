"""Erasure of users from a segment of a click log."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog_columns import ERASED, Columns, decode, encode
from lookalike.clicklog_files import write_whole
from lookalike.clicklog_frames import Header, pack_header
from lookalike.clicklog_segments import Frame, frames

__all__ = ["erase"]


def erase(path: Path, base: int, bound: int, log: int, keys: NDArray[np.int64], texts: set[bytes] | None) -> int:
    """Rewrites a segment without some users, if it has events of theirs or damaged bytes.

    An erased event keeps its offset and its item: kind ERASED, user 0 or an empty text, time 0. Damaged bytes are left
    out; that events are missing there stays to be seen.

    Args:
        path: Path. The segment's.
        base: int. The offset it starts at.
        bound: int. The offset it ends at.
        log: int. The log's number.
        keys: int64 `[users]`. Keys of the users.
        texts: set of bytes, or None where user ids are numbers. Keys may collide, texts don't.

    Returns:
        int. Events erased.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        erased, damaged = 0, False
        for piece in frames(descriptor, 0, base, log=log, bound=bound):
            if isinstance(piece, Frame):
                erased += int(_gone(decode(piece.header, piece.data, texts=False), keys, None).sum())
            else:
                damaged |= piece.size > 0
        if erased or damaged:
            counter = [0]
            whole = frames(descriptor, 0, base, log=log, bound=bound)
            write_whole(path, _rewritten((piece for piece in whole if isinstance(piece, Frame)), keys, texts, counter))
            erased = counter[0]
        return erased
    finally:
        os.close(descriptor)


def _gone(columns: Columns, keys: NDArray[np.int64], texts: set[bytes] | None) -> NDArray[np.bool_]:
    """Which events are of the users."""
    gone = np.isin(columns.user, keys) & (columns.kind != ERASED)
    if texts is not None and columns.user_ids is not None:
        for event in np.flatnonzero(gone).tolist():
            gone[event] = columns.user_ids[event] in texts
    return gone


def _rewritten(
    whole: Iterator[Frame], keys: NDArray[np.int64], texts: set[bytes] | None, counter: list[int]
) -> Iterator[bytes]:
    for piece in whole:
        header: Header = piece.header
        columns = decode(header, piece.data, texts=True)
        gone = _gone(columns, keys, texts)
        if not gone.any():
            yield pack_header(header) + piece.data
            continue
        counter[0] += int(gone.sum())
        left = Columns(
            np.where(gone, 0, columns.user),
            columns.item,
            np.where(gone, 0, columns.time),
            np.where(gone, np.uint8(ERASED), columns.kind),
            None if columns.user_ids is None else np.where(gone, b"", np.array(columns.user_ids, object)).tolist(),
            columns.item_ids,
        )
        offset = header.base
        for events, encoding, data, crc in encode(left):
            yield pack_header(header._replace(encoding=encoding, base=offset, events=events, length=len(data), crc=crc))
            yield data
            offset += events
