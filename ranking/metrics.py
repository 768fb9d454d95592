"""Ranking metrics.

Every metric takes arrays of one length, one row an impression. A metric that is not defined on its rows (an AUC of
one class) is NaN, never 0.5 and never an exception.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "auc",
    "gauc",
    "group_auc",
    "label_rows",
    "log_losses",
    "logloss",
    "pcoc",
    "precision_at",
    "prepare_auc",
]


def label_rows(**columns: Any) -> list[np.ndarray]:
    """The columns as arrays: one length, no NaN, and the first one, the label, of 0 and 1.

    Raises:
        ValueError: one of them is not so.
    """
    arrays = [np.asarray(value) for value in columns.values()]
    for name, array in zip(columns, arrays, strict=True):
        if array.ndim != 1 or array.shape != arrays[0].shape:
            raise ValueError(
                f"`{name}` should be one number a row, like `{next(iter(columns))}`. "
                f"Received: shape {array.shape}, not {arrays[0].shape}."
            )
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(
                f"`{name}` should have no NaN. Received: {int(np.isnan(array).sum())} of {array.size} rows."
            )
    if set(np.unique(arrays[0]).tolist()) - {0, 1}:
        raise ValueError(f"`{next(iter(columns))}` should be 0 or 1. Received: {np.unique(arrays[0])[:5].tolist()}.")
    return arrays


def _runs(*keys: np.ndarray) -> np.ndarray:
    """First row of each run of rows that are equal in all `keys`."""
    changed = np.zeros(keys[0].size, bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)


def prepare_auc(label: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], float]:
    """The AUC as a function of the weights: sorts once; a weighting then costs one running sum over the negatives."""
    positive, negative = np.flatnonzero(label != 0), np.flatnonzero(label == 0)
    negative = negative[np.argsort(score[negative], kind="stable")]
    below = np.searchsorted(score[negative], score[positive], side="left")  # negatives of a lower score
    until = np.searchsorted(score[negative], score[positive], side="right")  # and those of the same

    def value(weight: np.ndarray) -> float:
        wins = np.concatenate([[0.0], np.cumsum(weight[negative])])
        own = weight[positive]
        pairs = own.sum() * wins[-1]
        return float(np.sum(own * (wins[below] + wins[until])) / (2 * pairs)) if pairs > 0 else np.nan

    return value


def auc(label: Any, score: Any, weight: Any = None) -> float:
    """Area under the ROC curve, exact: P(score of a positive > score of a negative), ties counting one half.

    Args:
        label: array `[n]` of 0 and 1.
        score: array `[n]`; the higher, the likelier.
        weight: array `[n]` of weights >= 0. Defaults to 1 each.

    Returns:
        float in [0, 1]; NaN where there are not both classes.
    """
    label, score = label_rows(label=label, score=score)
    return prepare_auc(label, score)(np.ones(label.size) if weight is None else np.asarray(weight, np.float64))


def group_auc(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, ...]:
    """AUC, size and one row of every group; NaN for a group of one class."""
    _, index = np.unique(group, return_inverse=True)
    order = np.lexsort((score, index))
    index, positive = index[order], label[order] != 0
    starts, runs = _runs(index), _runs(index, score[order])
    if starts.size == 0:
        return np.empty(0), np.empty(0), np.empty(0, int)
    positives = np.add.reduceat(positive.astype(np.float64), runs)
    sizes = np.diff(np.append(runs, index.size))
    negatives = sizes - positives
    of = index[runs]  # the group of each run
    groups = starts.size
    total_negatives = np.bincount(of, negatives, groups)
    before = np.cumsum(negatives) - negatives - (np.cumsum(total_negatives) - total_negatives)[of]
    wins = np.bincount(of, positives * (before + negatives / 2), groups)
    pairs = np.bincount(of, positives, groups) * total_negatives
    values = np.divide(wins, pairs, out=np.full(groups, np.nan), where=pairs > 0)
    return values, np.bincount(index, minlength=groups).astype(np.float64), order[starts]


def gauc(label: Any, score: Any, group: Any) -> float:
    """AUC within each group (a user, a request), averaged with the number of rows of the group as weight.

    Groups without both classes say nothing about order and are left out.

    Args:
        label: array `[n]` of 0 and 1.
        score: array `[n]`.
        group: array `[n]` of any sortable type.

    Returns:
        float in [0, 1]; NaN where no group has both classes.

    Reference: Zhu et al., KDD 2017 (optimized cost per click), section 4.
    """
    label, score, group = label_rows(label=label, score=score, group=group)
    values, sizes, _ = group_auc(label, score, group)
    kept = ~np.isnan(values)
    return float(np.average(values[kept], weights=sizes[kept])) if kept.any() else np.nan


def log_losses(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row, in nats; probabilities are kept 2.2e-16 away from 0 and 1."""
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError(
            f"`probability` should be in [0, 1]. Received: {float(probability.min())} to {float(probability.max())}."
        )
    p = np.clip(probability.astype(np.float64), np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
    return -np.where(label != 0, np.log(p), np.log1p(-p))


def logloss(label: Any, probability: Any, weight: Any = None) -> float:
    """Mean negative log likelihood, in nats; probabilities are kept 2.2e-16 away from 0 and 1.

    Args:
        label: array `[n]` of 0 and 1.
        probability: array `[n]` in [0, 1].
        weight: array `[n]` of weights >= 0. Defaults to 1 each.

    Returns:
        float >= 0; NaN without rows.
    """
    label, probability = label_rows(label=label, probability=probability)
    weight = np.ones(label.size) if weight is None else np.asarray(weight, np.float64)
    total = weight.sum()
    return float(np.sum(weight * log_losses(label, probability)) / total) if total > 0 else np.nan


def pcoc(label: Any, probability: Any, weight: Any = None) -> float:
    """Predicted over observed: sum of probabilities / sum of labels. 1 is calibrated in the large, above 1 too high.

    Args:
        label: array `[n]` of 0 and 1.
        probability: array `[n]` in [0, 1].
        weight: array `[n]` of weights >= 0. Defaults to 1 each.

    Returns:
        float >= 0; NaN without positives.
    """
    label, probability = label_rows(label=label, probability=probability)
    weight = np.ones(label.size) if weight is None else np.asarray(weight, np.float64)
    observed = np.sum(weight * label)
    return float(np.sum(weight * probability.astype(np.float64)) / observed) if observed > 0 else np.nan


def precision_at(label: Any, score: Any, group: Any, k: int) -> float:
    """Mean over groups of |top k and positive| / min(k, |positive|); groups without positives are left out.

    Rows of equal score share their places: the value is the mean over all orders of the ties, so that the order of the
    rows does not matter.

    Args:
        label: array `[n]` of 0 and 1.
        score: array `[n]`.
        group: array `[n]`, the user or request of each row.
        k: int. How many rows of a group are taken.

    Returns:
        float in [0, 1]; NaN where no group has a positive.

    Reference: Liu et al., KDD 2019, section 5.3 (prec@K).
    """
    if k < 1:
        raise ValueError(f"`k` should be a positive integer. Received: k={k}.")
    label, score, group = label_rows(label=label, score=score, group=group)
    _, index = np.unique(group, return_inverse=True)
    order = np.lexsort((-score.astype(np.float64), index))
    index, positive = index[order], (label[order] != 0).astype(np.float64)
    starts, runs = _runs(index), _runs(index, score[order])
    if starts.size == 0:
        return np.nan
    sizes = np.diff(np.append(runs, index.size))
    of = index[runs]
    taken = np.clip(k - (runs - starts[of]), 0, sizes)  # places of the run within the top k
    hits = np.bincount(of, np.add.reduceat(positive, runs) * taken / sizes, starts.size)
    positives = np.bincount(index, positive, starts.size)
    kept = positives > 0
    return float(np.mean(hits[kept] / np.minimum(positives[kept], k))) if kept.any() else np.nan
