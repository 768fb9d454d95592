"""Erasure of users from a segment of a click log."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookalike.clicklog_files import write_whole
from lookalike.clicklog_frames import ERASED, Columns, Header, decode, encode, keys_of, pack_header
from lookalike.clicklog_segments import Frame, Gap

__all__ = ["erase"]


def erase(path: Path, pieces: Iterable[Frame | Gap], users: NDArray) -> int:
    """Rewrites a segment without some users, where it has any of them, or damaged bytes.

    An erased event keeps its place: kind ERASED, user 0 or an empty text, time 0. Damaged bytes are left out, and
    their gap stays.

    Returns:
        int. Events erased.
    """
    keys = keys_of(users)
    texts = set(users.tolist()) if users.dtype == object else None
    written: list[bytes] = []
    erased, changed = 0, False
    for piece in pieces:
        if isinstance(piece, Gap):
            changed |= piece.size > 0
            continue
        header = piece.header
        columns = decode(header, piece.data, texts=True)
        gone = np.isin(columns.user, keys) & (columns.kind != ERASED)
        if texts is not None and columns.user_ids is not None:
            gone &= np.array([text in texts for text in columns.user_ids])
        if not gone.any():
            written += [pack_header(header), bytes(piece.data)]
            continue
        erased += int(gone.sum())
        changed = True
        written += _rewritten(header, columns, gone)
    if changed:
        write_whole(path, b"".join(written))
    return erased


def _rewritten(header: Header, columns: Columns, gone: NDArray[np.bool_]) -> list[bytes]:
    user_ids = columns.user_ids
    if user_ids is not None:
        user_ids = ["" if out else text for text, out in zip(user_ids, gone.tolist(), strict=True)]
    user, time = np.where(gone, 0, columns.user), np.where(gone, 0, columns.time)
    kind = np.where(gone, np.uint8(ERASED), columns.kind)
    payloads = list(encode(Columns(user, columns.item, time, kind, user_ids, columns.item_ids)))
    base, pieces = header.base, []
    for payload in payloads:
        told = header._replace(
            encoding=payload.encoding, base=base, events=payload.events, length=len(payload.data), crc=payload.crc
        )
        pieces += [pack_header(told), payload.data]
        base += payload.events
    return pieces
