"""The best users of an item and the best items of a user, exactly, by the scorer; the similarity as a gate."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lookalike.audience import Audience, SeedList, expand
from lookalike.scorer import SLAB, Scorer
from lookalike.selection import Cut

__all__ = ["BestItems", "best_items", "best_users", "gate"]


@dataclass(frozen=True)
class BestItems:
    """The most similar items of each user, the best first; of equal similarities the lower row first.

    Args:
        items: int64 `[users, k]`. Rows of the items; -1 where there are fewer.
        similarity: float32 `[users, k]`. NaN where there is no item.
    """

    items: NDArray[np.int64]
    similarity: NDArray[np.float32]


def best_users(
    scorer: Scorer,
    chunks: Iterable[NDArray[np.float32]],
    centroids: NDArray[np.float32],
    counts: ArrayLike,
    k: int,
    *,
    exclude: NDArray[np.int64] | None = None,
    threshold: float | None = None,
) -> Audience:
    """The `k` users most similar to an item's seeds, in one pass over the population.

    Args:
        scorer: `Scorer`.
        chunks: iterable of float32 `[users, user_dim]`. The population; its rows count up from 0.
        centroids: float32 `[k, hidden]`. The item's.
        counts: array `[k]`. Their seeds.
        k: int. How many users.
        exclude: int64 array, optional. Rows that are never chosen, such as the seeds.
        threshold: float, optional. Users below it are left out.

    Returns:
        `Audience`, of fewer than `k` users where fewer there are.

    Raises:
        ValueError: as `expand` does.
    """
    _check(k, threshold)
    found = expand(scorer, chunks, [SeedList(centroids, counts, exclude)], Cut(size=k))[0]
    if threshold is None:
        return found
    some = slice(0, int(np.sum(found.similarity.astype(np.float64) >= threshold)))  # they fall
    return Audience(found.rows[some], found.similarity[some], found.centroid[some], found.eligible, found.reach)


def best_items(
    scorer: Scorer,
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    counts: ArrayLike,
    k: int,
    *,
    exclude: NDArray[np.int64] | None = None,
    threshold: float | None = None,
    chunk: int = 512,
) -> BestItems:
    """The `k` items whose seeds each user resembles most; an item without centroids is none of them.

    Args:
        scorer: `Scorer`.
        vectors: float32 `[users, user_dim]`.
        centroids: float32 `[items, k, hidden]`; may be mapped from a file, it is read chunk by chunk.
        counts: array `[items, k]`. Seeds of each centroid; 0 where there is none.
        k: int. How many items.
        exclude: int64 array, optional. Rows of items that nobody gets.
        threshold: float, optional. Items below it are left out.
        chunk: int. Items scored at once, which bounds the memory. Defaults to `512`.

    Returns:
        `BestItems`.

    Raises:
        ValueError: if an argument is out of its range, or has another shape.
    """
    _check(k, threshold)
    if chunk < 1:
        raise ValueError(f"`chunk` should be a positive integer. Received: chunk={chunk}.")
    sizes = np.asarray(counts)
    if len(sizes) != len(centroids):
        raise ValueError(f"`counts` should have a row an item. Received: {len(sizes)} and {len(centroids)} items.")
    barred = np.zeros(len(centroids), np.bool_)
    barred[_rows(exclude, len(centroids))] = True
    items = np.full((len(vectors), k), -1, np.int64)
    scores = np.full((len(vectors), k), -np.inf, np.float32)
    for low in range(0, len(centroids), chunk):
        seeds = scorer.summarize(centroids[low : low + chunk], sizes[low : low + chunk])
        usable = np.flatnonzero(seeds.live.any(axis=1) & ~barred[low : low + chunk])
        for first in range(0, len(vectors), SLAB):
            some = slice(first, first + SLAB)
            new = scorer.similarity(vectors[some], seeds)[:, usable]  # [users, usable]
            if threshold is not None:
                new[new.astype(np.float64) < threshold] = -np.inf
            _merge(items[some], scores[some], low + usable, new)
    scores[items < 0] = np.nan
    return BestItems(items, scores)


def gate(similarity: ArrayLike, has_similarity: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Which candidates may be shown: those that are similar enough, and those of which nothing is known.

    An item with too few seeds has no similarity; nothing speaks against it, so it passes.

    Args:
        similarity: float array `[n]`.
        has_similarity: 0/1 array `[n]`. Whether the similarity is one.
        threshold: float. Lowest similarity that passes, in [-1, 1].

    Returns:
        bool array `[n]`.

    Raises:
        ValueError: if `threshold` is out of its range, the shapes differ, or a similarity that counts is not finite.

    Example:
        >>> gate([0.9, 0.1, 0.1], [1, 1, 0], 0.5)
        array([ True, False,  True])
    """
    _check(1, threshold)
    values, known = np.asarray(similarity, np.float64), np.asarray(has_similarity).astype(np.bool_)
    if values.shape != known.shape:
        raise ValueError(
            f"`has_similarity` should have the shape of `similarity`, {list(values.shape)}. "
            f"Received: {list(known.shape)}."
        )
    wrong = known & ~np.isfinite(values)
    if wrong.any():
        raise ValueError(f"`similarity` should be finite. Received: {wrong.sum()} other values.")
    return ~known | (values >= threshold)


def _merge(
    items: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int64], new: NDArray[np.float32]
) -> None:
    """Put the better ones of the items `rows` into the best so far, in place; theirs are lower rows."""
    k = items.shape[1]
    every = np.concatenate([scores, new], axis=1)  # [users, k + items]
    best = np.argsort(-every, axis=1, kind="stable")[:, :k]
    numbers = np.concatenate([items, np.broadcast_to(rows, new.shape)], axis=1)
    scores[:] = np.take_along_axis(every, best, axis=1)
    items[:] = np.where(np.isneginf(scores), -1, np.take_along_axis(numbers, best, axis=1))


def _rows(exclude: NDArray[np.int64] | None, items: int) -> NDArray[np.int64]:
    found = np.asarray([] if exclude is None else exclude, np.int64)
    wrong = found[(found < 0) | (found >= items)]
    if wrong.size:
        raise ValueError(f"`exclude` should be rows of the {items} items. Received: {wrong[0]}.")
    return found


def _check(k: int, threshold: float | None) -> None:
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise ValueError(f"`k` should be a positive integer. Received: k={k}.")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"`threshold` should be in [-1, 1]. Received: threshold={threshold}.")
