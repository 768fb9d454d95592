"""The draws that a log's slates were filled by: one a request, or one for each of its pools of candidates."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ranking.errors import UserError

__all__ = ["Draws", "draws_of"]


@dataclass(frozen=True)
class Draws:
    """The draws of a log, one a pool of each request, as if each were a request with places of its own.

    Args:
        order: int64 `[n]`. The rows, draw after draw; None where they are in that order.
        offsets: int64 `[draws + 1]`.
        request: int64 `[draws]`.
        place: int64 `[n]`. In that order, the place of a row among those of its draw; -1 where not shown.
        filled: int64 `[draws]`. Places of each draw.
        where: int64 `[draws, K]`. The place in the slate of each of them.
    """

    order: np.ndarray | None
    offsets: Any
    request: np.ndarray
    place: Any
    filled: np.ndarray
    where: np.ndarray

    def ordered(self, column: Any) -> Any:
        """A column of rows, draw after draw."""
        return column if self.order is None else np.asarray(column)[self.order]

    def of_request(self, column: Any) -> Any:
        """A number of the policy, or one a request, for each draw."""
        return column if self.order is None or np.ndim(column) == 0 else np.asarray(column)[self.request]

    def back(self, column: np.ndarray) -> np.ndarray:
        """A column in the order of the log."""
        if self.order is None:
            return column
        found = np.empty_like(column)
        found[self.order] = column
        return found

    def in_slate(self, places: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """From the places of the draws to those of the slates, [shown, K], and to the order of the log.

        Args:
            places: array `[shown, K]`.
            shown: bool `[n]`. The rows that they are of, draw after draw.
        """
        if self.order is None:
            return places
        rows = np.flatnonzero(shown)
        draw = np.searchsorted(self.offsets, rows, side="right") - 1
        row, place = np.nonzero(np.arange(places.shape[1]) < self.filled[draw][:, None])
        found = np.zeros_like(places)
        found[row, self.where[draw[row], place]] = places[row, place]
        return found[np.argsort(self.order[rows])]


def draws_of(offsets: Any, position: Any, places: int, slots: Any, pool: Any) -> Draws:
    """The draws of a log; one a request where `pool` is None, of `slots` places or up to the last shown one.

    Args:
        offsets: int array `[requests + 1]`.
        position: int array `[n]`, -1 where not shown.
        places: int. K.
        slots: int array `[requests]` or None.
        pool: int array `[n]` or None. See `log_propensities`.

    Raises:
        UserError: `pool` is not one number a row.
    """
    offsets, position = (np.ascontiguousarray(column, np.int64) for column in (offsets, position))
    requests, rows = offsets.size - 1, position.size
    if slots is None and (offsets[:-1] < rows).all():
        slots = np.maximum.reduceat(position, offsets[:-1]) + 1
    filled = np.zeros(requests, np.int64) if slots is None else np.array(slots, np.int64)
    alike = np.broadcast_to(np.arange(places), (requests, places))
    if pool is None:
        return Draws(None, offsets, np.arange(requests), position, filled, alike)
    pool = np.unique(pool, return_inverse=True)[1]
    if pool.shape != position.shape or offsets[-1] != rows:
        raise UserError(f"`pool` should hold a number for each of the {rows} scores. Received: shape {pool.shape}.")
    request = np.repeat(np.arange(requests), np.diff(offsets))
    key = request * (int(pool.max()) + 1) + pool
    order = np.argsort(key, kind="stable")
    _, start, draw = np.unique(key[order], return_index=True, return_inverse=True)
    owner, place = request[order][start], position[order]
    shown = np.flatnonzero(place >= 0)
    shown = shown[np.lexsort((place[shown], draw[shown]))]
    count = np.bincount(draw[shown], minlength=len(start))
    local = np.arange(len(shown)) - (np.cumsum(count) - count)[draw[shown]]
    where = np.zeros((len(start), places), np.int64)
    where[draw[shown], local] = place[shown]
    alone = np.bincount(owner)[owner] == 1  # the one pool of its request: as without pools
    where[alone], count[alone] = np.arange(places), filled[owner[alone]]
    shown, local = shown[~alone[draw[shown]]], local[~alone[draw[shown]]]
    place[shown] = local
    return Draws(order, np.append(start, rows), owner, place, count, where)
