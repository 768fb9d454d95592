"""Which candidates a slate may be drawn from: ids, filters, the cap of a category."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from serving.errors import ServingError

__all__ = ["candidate_ids", "capped", "passed"]


def candidate_ids(candidates: Mapping[str, Any]) -> np.ndarray:
    """The ids of the candidates, int64, or text as objects; each once.

    Args:
        candidates: dict with `item_id`.

    Raises:
        ServingError: ids that are neither, or not told apart.
    """
    if "item_id" not in candidates:
        raise ServingError(f"`candidates` should have a column `item_id`. Received: {sorted(candidates)}.")
    given = candidates["item_id"]
    if not isinstance(given, np.ndarray):  # of a list of both kinds numpy would make text
        given = np.array(given, object if any(isinstance(value, str | bytes) for value in given) else None)
    ids = given
    if ids.ndim == 1 and ids.dtype.kind in "SUO":
        texts = [value.decode() if isinstance(value, bytes) else value for value in ids.tolist()]
        if not all(isinstance(value, str) for value in texts):
            odd = next(value for value in texts if not isinstance(value, str))
            raise ServingError(f"`item_id` should be whole numbers, or all of them text. Received: {odd!r}.")
        ids, distinct = np.array(texts, object), len(set(texts))
    elif ids.ndim == 1 and ids.dtype.kind in "iu" and (ids.dtype != np.uint64 or ids.max(initial=0) < 1 << 63):
        ids = ids.astype(np.int64)
        distinct = len(np.unique(ids))
    elif ids.size:
        raise ServingError(f"`item_id` should be a vector of int64 or text. Received: {ids.dtype} {list(ids.shape)}.")
    else:
        return np.zeros(0, np.int64)
    if distinct < len(ids):
        raise ServingError(f"`item_id` should have each candidate once. Received: {len(ids) - distinct} twice or more.")
    return ids


def passed(item_id: np.ndarray, filters: Mapping[str, Collection[Any]]) -> np.ndarray:
    """The rows whose id is in no filter, int64, in their order.

    Args:
        item_id: int64 or object `[N]`.
        filters: dict of str to collection of ids.

    Raises:
        ServingError: a filter holds ids of another type, which would let everything pass.
    """
    keep = np.ones(len(item_id), bool)
    kind = "int" if item_id.dtype == np.int64 else "str"
    for name, ids in filters.items():
        if not len(ids) or not len(item_id):
            continue
        ids = ids if isinstance(ids, set | frozenset | dict) else set(np.asarray(ids).tolist())
        first = next(iter(ids))
        if not isinstance(first, str if kind == "str" else int | np.integer):
            raise ServingError(f"`{name}` should hold ids of the type of item_id, {kind}. Received: {first!r}.")
        keep &= np.fromiter((item not in ids for item in item_id.tolist()), bool, len(item_id))
    return np.flatnonzero(keep)


def capped(category: np.ndarray, score: np.ndarray, new: np.ndarray, cap: int, reserved: int) -> np.ndarray:
    """The rows within the cap of their category, in their order; of equal scores the first is better.

    The pool holds no more of a category than a slate may, whatever is drawn. The best new items come first, up to the
    number of reserved places, so that items of a category do not shut out all its new ones.

    Args:
        category: object `[n]`. Equal values are one category.
        score: float32 `[n]`.
        new: bool `[n]`.
        cap: int. Most items of a category.
        reserved: int. Places held for new items.

    Returns:
        int64 array.
    """
    codes: dict[Any, int] = {}
    code = np.fromiter((codes.setdefault(value, len(codes)) for value in category.tolist()), np.int64, len(category))
    first = np.zeros(len(code), bool)
    if reserved and cap > 1:
        fresh = np.flatnonzero(new)
        order = fresh[np.lexsort((-score[fresh], code[fresh]))]
        first[order[_rank(code[order]) < min(reserved, cap - 1)]] = True
    order = np.lexsort((-score, ~first, code))
    return np.sort(order[_rank(code[order]) < cap])


def _rank(code: np.ndarray) -> np.ndarray:
    """Place of each row among those of its code, of rows sorted by code."""
    starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])[: len(code)]
    return np.arange(len(code)) - np.repeat(starts, np.diff(np.r_[starts, len(code)]))
