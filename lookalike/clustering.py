"""K-means of many items' seeds at once: ragged, weighted, deterministic, with a warm start."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from lookalike.blocks import BLOCK, ROWS, add_row, nearest_rows, pack, squared_distance, squares
from lookalike.plus_plus import fill

__all__ = ["Clusters", "cluster"]

LARGE = 2**19  # above so many numbers, a copy in blocks costs more to write and read than to make anew each iteration


@dataclass(frozen=True)
class Clusters:
    """Centroids of every item's seeds.

    Every centroid is exactly the mean of the seeds assigned to it, so that a seed can be taken out of its own in closed
    form.

    Args:
        centroids: float32 `[items, k, dim]`. Zeros where there is none.
        counts: int64 `[items, k]`. Seeds of each centroid; 0 marks a centroid that does not exist (the mask).
        assignment: int32 `[seeds]`. Each seed's centroid within its item.
        inertia: float64 `[items]`. Sum of squared distances of the seeds to their centroids, weighted.
    """

    centroids: NDArray[np.float32]
    counts: NDArray[np.int64]
    assignment: NDArray[np.int32]
    inertia: NDArray[np.float64]


def cluster(
    embeddings: NDArray[np.float32],
    offsets: NDArray[np.int64],
    k: int,
    *,
    iterations: int = 10,
    seed: int = 0,
    initial: NDArray[np.float32] | None = None,
    weights: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Clusters:
    """Cluster each item's seeds into at most `k` centroids.

    Lloyd's iterations from a greedy k-means++ start. An item with `k` seeds or fewer keeps the seeds themselves. A
    cluster that runs empty restarts at the point farthest from its centroid. Each item is clustered as if it were
    alone: the result depends neither on its neighbours nor on the number of threads. Beyond the result, a thread
    takes a few MiB and some bytes for each seed of its item, but no copy of a large item's embeddings.

    Args:
        embeddings: float32 `[seeds, dim]`. Transformed embeddings of the seeds, item after item.
        offsets: int64 `[items + 1]`. The seeds of item `i` are the rows `offsets[i]:offsets[i + 1]`.
        k: int. Most centroids of an item.
        iterations: int. Most Lloyd iterations; it stops when nothing moves. Defaults to `10`; 1 to 3 do from a warm
            start.
        seed: int. Random seed of the start, the same for every item. Defaults to `0`.
        initial: float32 `[items, k, dim]`, optional. Warm start: centroids of an earlier call; a row of zeros stands
            for none and is chosen anew.
        weights: float32 `[seeds]`, optional. Positive; a seed of weight 2 counts as two seeds in means and inertia, and
            as one in `counts`. Defaults to 1 each.
        threads: int, optional. Items are shared among so many threads. Defaults to all cores.

    Returns:
        `Clusters`.

    Raises:
        ValueError: if an argument has another shape, dtype or range, or an embedding is not finite.

    Reference: Liu et al., KDD 2019, section 4.2; Arthur and Vassilvitskii, SODA 2007 (k-means++).
    """
    workers = (os.cpu_count() or 1) if threads is None else threads
    _check(embeddings, offsets, initial, weights, k=k, iterations=iterations, threads=workers)
    items, dim = len(offsets) - 1, embeddings.shape[1]
    points = np.ascontiguousarray(embeddings)
    masses = np.empty(0, np.float32) if weights is None else np.ascontiguousarray(weights)  # empty: 1 each
    bounds = np.ascontiguousarray(offsets, np.int64)
    centroids = np.zeros((items, k, dim), np.float32)
    if initial is not None:
        centroids[:] = initial
    counts = np.zeros((items, k), np.int64)
    assignment = np.zeros(len(points), np.int32)
    inertia = np.zeros(items, np.float64)

    def work(part: tuple[int, int]) -> None:
        _cluster_items(points, masses, bounds, *part, iterations, seed, centroids, counts, assignment, inertia)

    parts = [(0, items)] if workers == 1 else _parts(bounds, 4 * workers)
    if len(parts) == 1:
        work(parts[0])
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, parts))
    # A value that is not finite reaches its item's inertia: no pass of its own over the embeddings.
    if not np.isfinite(inertia).all() and not np.isfinite(points).all():
        raise ValueError(f"`embeddings` should be finite. Received: {np.sum(~np.isfinite(points))} other values.")
    return Clusters(centroids, counts, assignment, inertia)


def _parts(offsets: NDArray[np.int64], wanted: int) -> list[tuple[int, int]]:
    """Consecutive ranges of items with about as many seeds each, none of them tiny."""
    items, seeds = len(offsets) - 1, int(offsets[-1])
    marks = np.arange(1, wanted) * max(seeds // wanted, 10_000)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(offsets, marks).clip(0, items), [items]]))
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def _check(embeddings: Any, offsets: Any, initial: Any, weights: Any, **positive: int) -> None:
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value}.")
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise ValueError(
            f"`embeddings` should be float32 [seeds, dim]. Received: {embeddings.dtype} {list(embeddings.shape)}."
        )
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(embeddings):
        raise ValueError(
            f"`offsets` should run from 0 to the number of seeds, {len(embeddings)}. Received: {offsets!r}."
        )
    if (offsets[1:] < offsets[:-1]).any():
        raise ValueError("`offsets` should never fall. Received: a falling step.")
    shape = (len(offsets) - 1, positive["k"], embeddings.shape[1])
    if initial is not None and (initial.shape != shape or not np.isfinite(initial).all()):
        raise ValueError(f"`initial` should be finite with shape {list(shape)}. Received: {list(initial.shape)}.")
    if weights is None:
        return
    if weights.shape != (len(embeddings),) or weights.dtype != np.float32:
        raise ValueError(
            f"`weights` should be float32 [{len(embeddings)}]. Received: {weights.dtype} {list(weights.shape)}."
        )
    wrong = ~(np.isfinite(weights) & (weights > 0))
    if wrong.any():
        raise ValueError(f"`weights` should be positive and finite. Received: {weights[wrong][0]}.")


@numba.njit(nogil=True, cache=True)
def _cluster_items(points, weights, offsets, first, last, iterations, seed, centroids, counts, assignment, inertia):
    """Cluster items `first` to `last`, in place: `centroids` holds the warm start and takes the result."""
    k, dim = centroids.shape[1], centroids.shape[2]
    longest = 0
    for item in range(first, last):
        longest = max(longest, offsets[item + 1] - offsets[item])
    held = 1 if longest * dim > LARGE else (longest + BLOCK - 1) // BLOCK
    blocks = np.empty((held if longest > k else 0, dim, BLOCK), np.float32)
    for item in range(first, last):
        low, high = offsets[item], offsets[item + 1]
        own, centres, sizes, labels = points[low:high], centroids[item], counts[item], assignment[low:high]
        own_weights = weights[low:high]
        if len(own) <= k:
            centres[:] = 0.0
            centres[: len(own)] = own
            sizes[: len(own)] = 1
            labels[:] = np.arange(len(own))
        else:
            _lloyd(own, own_weights, blocks, iterations, seed, centres, sizes, labels)
        for i in range(len(own)):
            distance = squared_distance(own[i], centres[labels[i]])
            inertia[item] += distance * own_weights[i] if len(own_weights) else distance


@numba.njit(nogil=True, cache=True)
def _lloyd(points, weights, blocks, iterations, seed, centres, sizes, labels):
    """Cluster one item's points from the start in `centres`, in place; `blocks` has room for all of them or for one."""
    if len(blocks) > 1:
        pack(points, blocks)
    alive = fill(points, weights, centres, seed)
    sums, masses = np.zeros(centres.shape, np.float64), np.zeros(len(centres), np.float64)
    labels[:] = -1
    for step in range(iterations):
        anew = step == iterations - 1  # what came and went leaves no rounding behind in the last sums
        moved = _assign(points, weights, blocks, centres, alive, anew, labels, sizes, sums, masses)
        if moved == 0 and not anew:
            nothing = np.full(len(points), -1, np.int32)
            _clear(sizes, sums, masses)
            _add(points, weights, 0, labels, nothing, 1.0, sizes, sums, masses)
        _fill_empty(points, weights, centres, labels, sizes, sums, masses)
        _divide(centres, sizes, sums, masses)
        if moved == 0:
            break
        alive = sizes > 0


@numba.njit(nogil=True, cache=True)
def _assign(points, weights, blocks, centres, alive, anew, labels, sizes, sums, masses):
    """Give each point its nearest centre and move it from sum to sum, or sum all anew. Returns how many moved."""
    k, dim = centres.shape
    rows = np.zeros(((k + ROWS - 1) // ROWS * ROWS, dim), np.float32)
    norms = np.full(len(rows), np.inf, np.float32)
    lengths = squares(centres)
    for j in range(k):
        norms[j] = lengths[j] if alive[j] else np.inf
        for d in range(dim):
            rows[j, d] = np.float32(-2.0) * centres[j, d]
    if anew:
        _clear(sizes, sums, masses)
    nearest, nothing = np.empty(BLOCK, np.int32), np.full(BLOCK, -1, np.int32)
    moved = 0
    for low in range(0, len(points), BLOCK):
        if len(blocks) > 1:
            nearest_rows(blocks, rows, norms, low // BLOCK, nearest)
        else:
            pack(points[low : low + BLOCK], blocks)
            nearest_rows(blocks, rows, norms, 0, nearest)
        old = labels[low : low + BLOCK]
        new = nearest[: len(old)]
        if not anew:
            _add(points, weights, low, old, new, -1.0, sizes, sums, masses)
        _add(points, weights, low, new, nothing if anew else old, 1.0, sizes, sums, masses)
        for i in range(len(old)):
            moved += old[i] != new[i]
            old[i] = new[i]
    return moved


@numba.njit(nogil=True, cache=True)
def _clear(sizes, sums, masses):
    sizes[:] = 0
    sums[:] = 0.0
    masses[:] = 0.0


@numba.njit(nogil=True, cache=True)
def _add(points, weights, first, labels, others, sign, sizes, sums, masses):
    """Add `sign` times the points from `first` to the sums of their `labels`, but for those that `others` agree on.

    The loop over points is inside: a call for each would count references, at four times the work.
    """
    for i in range(len(labels)):
        j = labels[i]
        if j == others[i] or j < 0:
            continue
        mass = sign * weights[first + i] if len(weights) else sign
        sizes[j] += np.int64(sign)
        masses[j] += mass
        add_row(sums, j, points, first + i, mass)


@numba.njit(nogil=True, cache=True)
def _divide(centres, sizes, sums, masses):
    for j in range(len(centres)):
        for d in range(centres.shape[1]):
            centres[j, d] = sums[j, d] / masses[j] if sizes[j] > 0 else 0.0


@numba.njit(nogil=True, cache=True)
def _fill_empty(points, weights, centres, labels, sizes, sums, masses):
    """Give each empty centre the farthest point of a larger cluster."""
    if np.all(sizes > 0):
        return
    distances = np.empty(len(points), np.float32)
    for i in range(len(points)):
        distances[i] = squared_distance(points[i], centres[labels[i]])
    for j in range(len(centres)):
        if sizes[j] > 0:
            continue
        farthest = -1
        for i in range(len(points)):
            larger = distances[i] > 0.0 and sizes[labels[i]] > 1
            if larger and (farthest < 0 or distances[i] > distances[farthest]):
                farthest = i
        if farthest < 0:
            break
        old, mass = labels[farthest], weights[farthest] if len(weights) else 1.0
        sizes[old] -= 1
        sizes[j] = 1
        masses[old] -= mass
        masses[j] = mass
        sums[old] -= mass * points[farthest]
        sums[j] = mass * points[farthest]
        labels[farthest] = j
        distances[farthest] = 0.0
