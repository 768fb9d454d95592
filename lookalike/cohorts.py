"""Against seed poisoning: no cohort of users has more than its share of an item's centroids."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.clustering import Clusters, cluster

__all__ = ["capped_weights", "cluster_capped", "largest_share", "most_owned"]


def cluster_capped(
    embeddings: NDArray[np.float32],
    offsets: NDArray[np.int64],
    k: int,
    cohort: NDArray[np.int64],
    max_share: float,
    *,
    iterations: int = 10,
    initial: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Clusters:
    """`cluster`, with a bound on what users of one cohort can do to an item.

    Their weight is capped (`capped_weights`). That alone is not enough: accounts in a few tight and far groups have
    little weight and get most centroids all the same (17 of 20, measured), and in the attention a centroid counts as
    much as any other. So a cohort that owns too many, with more than half of the weight of each, is clustered apart,
    into as many as its share gives it, and all others are clustered without it.

    Args:
        embeddings: float32 `[seeds, dim]`.
        offsets: int64 `[items + 1]`.
        k: int.
        cohort: int64 `[seeds]`.
        max_share: float, in (0, 1]. Of an item's weight and of its centroids, of which a cohort may always have one.
        iterations: int. As for `cluster`, as are the next two. Defaults to `10`.
        initial: float32 `[items, k, dim]`, optional.
        threads: int, optional.

    Returns:
        `Clusters`; `counts` are sums of weights, at least 1, so that a size bias does not see what was cut either; an
        assignment of -1 is of a seed that has no part in any.
    """
    weights = capped_weights(offsets, cohort, max_share)
    found = cluster(embeddings, offsets, k, iterations=iterations, initial=initial, weights=weights, threads=threads)
    for item in range(len(offsets) - 1):
        some = slice(int(offsets[item]), int(offsets[item + 1]))
        own = cohort[some]
        apart: NDArray[np.int64] = np.zeros(0, np.int64)
        while len(more := _owners(found.assignment[some], own, weights[some], k, max_share, apart)):
            apart = np.append(apart, more)
            of_item = found.centroids[item], found.counts[item], found.assignment[some]
            _apart(*of_item, (embeddings[some], weights[some], own), apart, max_share, iterations)
        mass = np.bincount(found.assignment[some] + 1, weights[some], k + 1)[1:]
        found.counts[item] = np.where(found.counts[item] > 0, np.maximum(np.rint(mass), 1), 0)
    return found


def most_owned(
    assignment: NDArray[np.int32], cohort: NDArray[np.int64], weights: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Cohorts of one item that own centroids, with more than half of their weight; how many each; centroids in all.

    Args:
        assignment: int32 `[seeds]`. -1 for none.
        cohort: int64 `[seeds]`.
        weights: float32 `[seeds]`.
        k: int.
    """
    names, code = np.unique(cohort, return_inverse=True)
    inside = assignment >= 0
    pairs, place = np.unique(assignment[inside] * np.int64(len(names)) + code[inside], return_inverse=True)
    mass = np.bincount(place, weights[inside], len(pairs))
    total = np.bincount(assignment[inside], weights[inside], k)
    owner = pairs[mass > 0.5 * total[pairs // max(len(names), 1)]] % max(len(names), 1)
    owned = np.bincount(owner, minlength=len(names))
    return names[owned > 0], owned[owned > 0], int((total > 0).sum())


def _owners(assignment: Any, cohort: Any, weights: Any, k: int, max_share: float, apart: Any) -> NDArray[np.int64]:
    """Cohorts that own more centroids than their share, but for those that were set apart already."""
    names, owned, live = most_owned(assignment, cohort, weights, k)
    return names[(owned > max(1, int(max_share * live + 1e-9))) & ~np.isin(names, apart)]


def _apart(
    centroids: Any, counts: Any, labels: Any, seeds: tuple[Any, Any, Any], apart: Any, max_share: float, iterations: int
) -> None:
    """Clusters one item's (points, weights, cohorts) again, in place: those of some cohorts each by themselves."""
    points, weights, cohort = seeds
    k = len(counts)
    each = max(1, int(max_share * k + 1e-9))
    rest = max(1, k - each * len(apart))
    groups = [np.flatnonzero(~np.isin(cohort, apart))]
    groups += [np.flatnonzero(cohort == name) for name in apart[: (k - rest) // each]]
    centroids[:], counts[:], labels[:] = 0, 0, -1
    low, room = 0, rest
    for number, rows in enumerate(groups):
        if number == 1:  # in proportion to what the others have, which may be less than there is room for
            room = max(1, min(each, int(max_share / (1 - max_share) * low + 1e-9)))
        if not len(rows):
            continue
        part = np.ascontiguousarray(points[rows])
        bounds = np.array([0, len(rows)])
        found = cluster(part, bounds, room, iterations=iterations, weights=weights[rows], threads=1)
        live = np.flatnonzero(found.counts[0] > 0)
        centroids[low : low + len(live)], counts[low : low + len(live)] = (
            found.centroids[0, live],
            found.counts[0, live],
        )
        labels[rows] = np.searchsorted(live, found.assignment) + low
        low += len(live)


def capped_weights(offsets: NDArray[np.int64], cohort: NDArray[np.int64], max_share: float) -> NDArray[np.float32]:
    """Weights of seeds, for `cluster`, with which no cohort of an item weighs more than a share of its seeds.

    Who buys ten thousand accounts gets them within days: they are of one cohort (day of registration, network, device)
    and so together have the say of `max_share`, however many they are. With weights `w` and one cohort `C` the mean of
    all seeds, and with it the mass of the centroids, moves by at most `max_share * |mean(C) - mean(others)|`. One user
    is one seed of an item, whatever he clicks: his share needs no cap.

    Within an item the weights are 1, and lower alike in each cohort that is cut: the fewest cuts that suffice. Where an
    item has fewer than `1 / max_share` cohorts no weights can do it: then all of its cohorts weigh alike, which is the
    least that the largest can have, and `largest_share` tells who has to judge.

    Args:
        offsets: int64 `[items + 1]`. The seeds of item `i` are `offsets[i]:offsets[i + 1]`.
        cohort: int64 `[seeds]`. Any number that seeds of one cohort have in common; users alone in theirs get a number
            of their own.
        max_share: float, in (0, 1]. What a cohort may weigh of an item's seeds.

    Returns:
        float32 `[seeds]`, in (0, 1].

    Raises:
        ValueError: if an argument has another shape or range.
    """
    if not 0 < max_share <= 1:
        raise ValueError(f"`max_share` should be in (0, 1]. Received: max_share={max_share}.")
    item, place, sizes = _groups(offsets, cohort)
    order = np.lexsort((-sizes, item))  # the largest cohort of each item first
    item, n = item[order], sizes[order].astype(np.float64)
    first = np.searchsorted(item, item)  # of its item
    cut = np.arange(len(n)) - first  # how many cohorts are cut where this one is the first that is not
    total = np.append(0.0, np.cumsum(n))
    rest = total[np.searchsorted(item, item, side="right")] - total[:-1]
    share = np.maximum(max_share, 1.0 / np.maximum(np.bincount(item, minlength=1)[item], 1))
    # With the first `cut` at the cap: cap = share * (cut * cap + rest).
    free = 1.0 - cut * share
    cap = np.where(free > 1e-9, share * rest / np.maximum(free, 1e-9), 0.0)
    enough = n <= cap * (1 + 1e-9)
    chosen = np.full(len(n), len(n))
    np.minimum.at(chosen, first, np.where(enough, np.arange(len(n)), len(n)))
    weight = np.minimum(1.0, cap[chosen[first]] / n)
    back = np.empty_like(weight)
    back[order] = weight
    return back[place].astype(np.float32)


def largest_share(
    offsets: NDArray[np.int64], cohort: NDArray[np.int64], weights: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """What the heaviest cohort of each item weighs of its seeds: float64 `[items]`, 0 for an item without seeds.

    Args:
        offsets: int64 `[items + 1]`.
        cohort: int64 `[seeds]`.
        weights: float32 `[seeds]`, optional. Of the seeds. Defaults to 1 each.
    """
    item, place, _ = _groups(offsets, cohort)
    mass = np.bincount(place, weights, len(item)).astype(np.float64)
    largest = np.zeros(len(offsets) - 1)
    np.maximum.at(largest, item, mass)
    total = np.bincount(item, mass, len(largest))
    return largest / np.maximum(total, 1e-300)


def _groups(offsets: NDArray[np.int64], cohort: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Item of each (item, cohort) pair, the pair of each seed, and the seeds of each pair."""
    if offsets.ndim != 1 or len(offsets) < 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(f"`offsets` should rise from 0. Received: {offsets!r}.")
    if cohort.shape != (offsets[-1],):
        raise ValueError(f"`cohort` should have shape [{offsets[-1]}]. Received: {list(cohort.shape)}.")
    names, code = np.unique(cohort, return_inverse=True)
    of_item = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pairs, place, sizes = np.unique(of_item * max(len(names), 1) + code, return_inverse=True, return_counts=True)
    return pairs // max(len(names), 1), place, sizes
