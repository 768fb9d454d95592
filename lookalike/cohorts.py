"""Against seed poisoning: no cohort of users has more than its share of an item's centroids."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["capped_weights", "largest_share"]


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
