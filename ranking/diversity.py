"""Metrics of what all users together are shown: diversity, coverage, inequality, long tail.

A list is a row of an int array `[users, K]` of item rows, best first, padded with -1. A metric that is not defined on
its lists (nobody is shown anything) is NaN.
"""

from typing import Any

import numpy as np

__all__ = ["coverage", "gini", "impressions", "long_tail_share", "richness"]


def richness(lists: Any, labels: Any) -> float:
    """Mean number of distinct categories, or tags, in a list.

    Args:
        lists: int array `[users, K]` of item rows, -1 where there is none. Empty lists are left out.
        labels: int array `[items]`, or `[items, L]` for items of several labels; 0 stands for none and never counts.

    Returns:
        float >= 0; NaN without lists.

    Reference: category and tag diversity of Liu et al., KDD 2019 (online test).
    """
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise ValueError(
            f"`labels` should be int [items] or [items, L] from 0. Received: {labels.dtype} {list(labels.shape)}."
        )
    table = labels.reshape(len(labels), -1)
    user, item = _shown(lists, len(labels))
    if user.size == 0:
        return np.nan
    span = int(table.max(initial=0)) + 1
    codes = (user[:, None] * span + table[item])[table[item] > 0]  # one number a (list, label)
    return float(np.unique(codes).size / np.unique(user).size)


def coverage(lists: Any, items: int) -> float:
    """Share of the catalogue that is in at least one list.

    Args:
        lists: int array `[users, K]` of item rows, -1 where there is none.
        items: int. Size of the catalogue.

    Returns:
        float in [0, 1].
    """
    return float(np.count_nonzero(impressions(lists, items)) / items)


def impressions(lists: Any, items: int) -> np.ndarray:
    """How many lists show each item, int64 `[items]`: the counts of `gini`.

    Args:
        lists: int array `[users, K]` of item rows, -1 where there is none.
        items: int. Size of the catalogue.
    """
    if items < 1:
        raise ValueError(f"`items` should be a positive integer. Received: items={items}.")
    return np.bincount(_shown(lists, items)[1], minlength=items)


def gini(counts: Any) -> float:
    """Gini coefficient of impressions over the catalogue: 0 is even, (n - 1) / n all on one item. Lower is more even.

    The mean difference of two items over twice the mean; with the counts sorted, x_1 the lowest:

        G = sum_i (2 i - n - 1) x_i / (n sum_i x_i)

    The RALM paper reports a rise of its Gini coefficient as "more even": the other sign, 1 - G.

    Args:
        counts: array `[items]` of numbers >= 0. Items that are never shown belong in it.

    Returns:
        float in [0, 1); NaN where nothing is shown.

    Reference: Gini, 1912; 1 - G is what Liu et al., KDD 2019, mean by a higher coefficient (online test).
    """
    x = np.sort(np.asarray(counts, np.float64))
    if x.ndim != 1 or not np.isfinite(x).all() or (x.size and x[0] < 0):
        raise ValueError(f"`counts` should be finite numbers >= 0, one an item. Received: shape {list(x.shape)}.")
    if x.size == 0 or x[-1] == 0:
        return np.nan
    x /= x[-1]
    n = x.size
    return float(max(np.sum((2 * np.arange(1, n + 1) - n - 1) * x) / (n * x.sum()), 0.0))  # rounding of equal counts


def long_tail_share(lists: Any, popularity: Any, *, head: float = 0.2) -> float:
    """Share of recommendations outside the head: the most popular items of the catalogue.

    Items of equal popularity at the border share its places, so that their order does not matter.

    Args:
        lists: int array `[users, K]` of item rows, -1 where there is none.
        popularity: array `[items]`; the higher, the more popular. Counts from before the lists were made.
        head: float in (0, 1). Share of the items that make up the head. Defaults to `0.2`.

    Returns:
        float in [0, 1]; NaN without lists.
    """
    popularity = np.asarray(popularity, np.float64)
    if not 0 < head < 1:
        raise ValueError(f"`head` should be between 0 and 1. Received: head={head}.")
    if popularity.ndim != 1 or np.isnan(popularity).any():
        raise ValueError(f"`popularity` should be one number an item. Received: shape {list(popularity.shape)}.")
    _, item = _shown(lists, len(popularity))
    if item.size == 0:
        return np.nan
    size = round(head * len(popularity))
    _, group, sizes = np.unique(-popularity, return_inverse=True, return_counts=True)
    before = np.cumsum(sizes) - sizes  # items more popular than those of the group
    in_tail = 1 - np.clip(size - before, 0, sizes) / sizes
    return float(np.mean(in_tail[group[item]]))


def _shown(lists: Any, items: int) -> tuple[np.ndarray, np.ndarray]:
    """List and item of every recommendation."""
    lists = np.asarray(lists)
    if lists.ndim != 2 or lists.dtype.kind not in "iu":
        raise ValueError(f"`lists` should be int [users, K]. Received: {lists.dtype} {list(lists.shape)}.")
    if lists.size and not -1 <= lists.min() <= lists.max() < items:
        raise ValueError(f"`lists` should hold -1 to {items - 1}. Received: {lists.min()} to {lists.max()}.")
    user, place = np.nonzero(lists >= 0)
    item = lists[user, place]
    if np.unique(user * items + item).size < item.size:
        raise ValueError("`lists` should show an item at most once in a list. Received: a repeat.")
    return user, item
