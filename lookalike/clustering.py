"""K-means of many items' seeds at once: ragged, deterministic, with a warm start."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numba
import numpy as np
import threadpoolctl
from numpy.typing import NDArray

__all__ = ["Clusters", "cluster"]

BLOCK = 512  # points a distance block: [k, BLOCK] floats stay in the cache
SAMPLE_PER_CENTROID = 64  # the start is chosen among at most so many points a centroid
REASSOCIATE = {"reassoc", "contract", "nsz"}  # sums as vector instructions; infinities stay what they are

_ONE_CALL = Lock()  # each call takes all cores; and two at once could not restore the BLAS thread count


@dataclass(frozen=True)
class Clusters:
    """Centroids of every item's seeds.

    Every centroid is exactly the mean of the seeds assigned to it, so that a seed can be taken out of its own in closed
    form.

    Args:
        centroids: float32 `[items, k, dim]`. Zeros where there is none.
        counts: int64 `[items, k]`. Seeds of each centroid; 0 marks a centroid that does not exist (the mask).
        assignment: int32 `[seeds]`. Each seed's centroid within its item.
        inertia: float64 `[items]`. Sum of squared distances of the seeds to their centroids.
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
) -> Clusters:
    """Cluster each item's seeds into at most `k` centroids.

    Lloyd's iterations from a greedy k-means++ start. An item with `k` seeds or fewer keeps the seeds themselves. A
    cluster that runs empty restarts at the point farthest from its centroid. Each item is clustered as if it were
    alone: the result depends neither on its neighbours nor on the number of threads.

    Args:
        embeddings: float32 `[seeds, dim]`. Transformed embeddings of the seeds, item after item.
        offsets: int64 `[items + 1]`. The seeds of item `i` are the rows `offsets[i]:offsets[i + 1]`.
        k: int. Most centroids of an item.
        iterations: int. Most Lloyd iterations; it stops when nothing moves. Defaults to `10`; 1 to 3 do from a warm
            start.
        seed: int. Random seed of the start, the same for every item. Defaults to `0`.
        initial: float32 `[items, k, dim]`, optional. Warm start: centroids of an earlier call; a row of zeros stands
            for none and is chosen anew.

    Returns:
        `Clusters`.

    Raises:
        ValueError: if an argument has another shape, dtype or range, or an embedding is not finite.

    Reference: Liu et al., KDD 2019, section 4.2; Arthur and Vassilvitskii, SODA 2007 (k-means++).
    """
    _check(embeddings, offsets, k, iterations, initial)
    items, dim = len(offsets) - 1, embeddings.shape[1]
    points = np.ascontiguousarray(embeddings)
    centroids = np.zeros((items, k, dim), np.float32)
    if initial is not None:
        centroids[:] = initial
    counts = np.zeros((items, k), np.int64)
    assignment = np.zeros(len(points), np.int32)
    inertia = np.zeros(items, np.float64)
    bounds = np.ascontiguousarray(offsets, np.int64)

    def work(part: tuple[int, int]) -> None:
        _cluster_items(points, bounds, part[0], part[1], iterations, seed, centroids, counts, assignment, inertia)

    workers = os.cpu_count() or 1
    # Parallel over items, not inside BLAS: its products are too small to share.
    with _ONE_CALL, threadpoolctl.threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, _parts(bounds, 4 * workers)))
    return Clusters(centroids, counts, assignment, inertia)


def _parts(offsets: NDArray[np.int64], wanted: int) -> list[tuple[int, int]]:
    """Consecutive ranges of items with about as many seeds each, none of them tiny."""
    items, seeds = len(offsets) - 1, int(offsets[-1])
    marks = np.arange(1, wanted) * max(seeds // wanted, 10_000)
    cuts = np.unique(np.concatenate([[0], np.searchsorted(offsets, marks).clip(0, items), [items]]))
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def _check(embeddings: Any, offsets: Any, k: int, iterations: int, initial: Any) -> None:
    for name, value in (("k", k), ("iterations", iterations)):
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
    if np.any(np.diff(offsets) < 0):
        raise ValueError("`offsets` should never fall. Received: a falling step.")
    if not np.isfinite(embeddings).all():
        raise ValueError(f"`embeddings` should be finite. Received: {np.sum(~np.isfinite(embeddings))} other values.")
    shape = (len(offsets) - 1, k, embeddings.shape[1])
    if initial is not None and (initial.shape != shape or not np.isfinite(initial).all()):
        raise ValueError(f"`initial` should be finite with shape {list(shape)}. Received: {list(initial.shape)}.")


@numba.njit(nogil=True, cache=True)
def _cluster_items(points, offsets, first, last, iterations, seed, centroids, counts, assignment, inertia):
    """Cluster items `first` to `last`, in place: `centroids` holds the warm start and takes the result."""
    k, dim = centroids.shape[1], centroids.shape[2]
    buffer = np.empty(k * BLOCK, np.float32)
    sums = np.empty((k, dim), np.float64)
    for item in range(first, last):
        low, high = offsets[item], offsets[item + 1]
        own, centres, sizes = points[low:high], centroids[item], counts[item]
        labels = assignment[low:high]
        if len(own) <= k:
            centres[:] = 0.0
            for i in range(len(own)):
                centres[i] = own[i]
                sizes[i] = 1
                labels[i] = i
            continue
        np.random.seed(seed)
        alive = _start(own, centres)
        distances = np.empty(len(own), np.float32)
        labels[:] = -1
        for _ in range(iterations):
            moved = _assign(own, centres, alive, labels, distances, buffer)
            if moved == 0:
                break
            _update(own, centres, sizes, labels, distances, sums)
            alive = sizes > 0
        for i in range(len(own)):
            inertia[item] += _squared_distance(own[i], centres[labels[i]])


@numba.njit(nogil=True, cache=True)
def _start(points, centres):
    """Fill the rows of zeros of `centres` by k-means++ on a sample; returns which rows could be filled."""
    k = len(centres)
    alive = np.zeros(k, np.bool_)
    for j in range(k):
        alive[j] = np.any(centres[j] != 0.0)
    if alive.all():
        return alive
    n = min(len(points), SAMPLE_PER_CENTROID * k)
    chosen = np.arange(len(points))
    for i in range(n if n < len(points) else 0):  # a partial shuffle
        other = np.random.randint(i, len(points))
        chosen[i], chosen[other] = chosen[other], chosen[i]
    sample = np.empty((n, points.shape[1]), np.float32)
    for i in range(n):
        sample[i] = points[chosen[i]]
    squares = np.empty(n, np.float32)
    for i in range(n):
        squares[i] = np.sum(sample[i] * sample[i])
    nearest = np.full(n, np.inf, np.float32)
    for j in range(k):
        if alive[j]:
            for i in range(n):
                nearest[i] = min(nearest[i], _squared_distance(sample[i], centres[j]))
    trials = np.empty((2 + int(np.log(k)), points.shape[1]), np.float32)
    picks = np.empty(len(trials), np.int64)
    products = np.empty((len(trials), n), np.float32)
    for j in range(k):
        if alive[j]:
            continue
        total = np.sum(nearest)
        if total <= 0.0:  # fewer distinct points than centroids
            break
        for t in range(len(trials)):
            picks[t] = _draw(nearest, total)
            trials[t] = sample[picks[t]]
        np.dot(trials, sample.T, products)
        best = _best_trial(products, squares, picks, nearest)
        centres[j] = trials[best]
        alive[j] = True
        nearest[:] = products[best]
    return alive


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def _best_trial(products, squares, picks, nearest):
    """Turn each trial's products into what `nearest` would become, in place; the trial with the lowest sum wins."""
    best, lowest = 0, np.float32(np.inf)
    for t in range(len(picks)):
        row, own = products[t], squares[picks[t]]
        total = np.float32(0.0)
        for i in range(len(row)):
            distance = max(squares[i] + own - np.float32(2.0) * row[i], np.float32(0.0))
            row[i] = min(nearest[i], distance)
        for i in range(len(row)):
            total += row[i]
        if total < lowest:
            best, lowest = t, total
    return best


@numba.njit(nogil=True, cache=True)
def _draw(weights, total):
    """Index drawn in proportion to `weights`; uniform while they are infinite."""
    if np.isinf(total):
        return np.random.randint(0, len(weights))
    rest = np.random.random() * total
    last = 0
    for i in range(len(weights)):
        if weights[i] > 0.0:
            last = i
            rest -= weights[i]
            if rest < 0.0:
                break
    return last


@numba.njit(nogil=True, cache=True, fastmath=REASSOCIATE)
def _squared_distance(a, b):
    total = np.float32(0)
    for d in range(len(a)):
        difference = a[d] - b[d]
        total += difference * difference
    return total


@numba.njit(nogil=True, cache=True)
def _assign(points, centres, alive, labels, distances, buffer):
    """Give each point its nearest centre. Returns how many changed; `distances` lack the constant |point|^2."""
    k = len(centres)
    scaled = centres * np.float32(-2.0)
    norms = np.empty(k, np.float32)
    for j in range(k):
        norms[j] = np.sum(centres[j] * centres[j]) if alive[j] else np.inf
    moved = 0
    for low in range(0, len(points), BLOCK):
        block = points[low : low + BLOCK]
        size = len(block)
        products = buffer[: k * size].reshape(k, size)
        np.dot(scaled, block.T, products)
        best = distances[low : low + size]
        best[:] = np.inf
        index = np.zeros(size, np.int32)
        for j in range(k):  # the inner loop runs over points: it becomes vector instructions
            for i in range(size):
                distance = products[j, i] + norms[j]
                closer = distance < best[i]
                best[i] = distance if closer else best[i]
                index[i] = j if closer else index[i]
        for i in range(size):
            moved += index[i] != labels[low + i]
            labels[low + i] = index[i]
    return moved


@numba.njit(nogil=True, cache=True)
def _update(points, centres, sizes, labels, distances, sums):
    """Move each centre to the mean of its points; an empty one takes the farthest point of a larger cluster."""
    sums[:] = 0.0
    sizes[:] = 0
    for i in range(len(points)):
        row = sums[labels[i]]
        sizes[labels[i]] += 1
        for d in range(points.shape[1]):
            row[d] += points[i, d]
    if np.any(sizes == 0):
        for i in range(len(points)):
            distances[i] = _squared_distance(points[i], centres[labels[i]])
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
            sums[labels[farthest]] -= points[farthest]
            sizes[labels[farthest]] -= 1
            sums[j] = points[farthest]
            sizes[j] = 1
            labels[farthest] = j
            distances[farthest] = 0.0
    for j in range(len(centres)):
        for d in range(points.shape[1]):
            centres[j, d] = sums[j, d] / sizes[j] if sizes[j] > 0 else 0.0
