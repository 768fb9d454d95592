"""Ranking metrics.

Every metric takes arrays of one length, one row an impression. A metric that is not defined on its rows (an AUC of
one class) is NaN, never 0.5 and never an exception.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "auc",
    "ece",
    "gauc",
    "group_auc",
    "group_ndcg",
    "label_rows",
    "log_losses",
    "logloss",
    "ndcg",
    "pcoc",
    "precision_at",
    "prepare_auc",
    "prepare_ece",
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


def _checked(probability: np.ndarray) -> np.ndarray:
    """Probabilities as float64, all of them in [0, 1]."""
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError(
            f"`probability` should be in [0, 1]. Received: {float(probability.min())} to {float(probability.max())}."
        )
    return probability.astype(np.float64)


def log_losses(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each row, in nats; probabilities are kept 2.2e-16 away from 0 and 1."""
    p = np.clip(_checked(probability), np.finfo(np.float64).eps, 1 - np.finfo(np.float64).eps)
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


def prepare_ece(label: np.ndarray, probability: np.ndarray, bins: int = 15) -> Callable[[np.ndarray], float]:
    """The ECE as a function of the weights: sorts once; a weighting then costs a running sum and one sum a bin."""
    if bins < 1:
        raise ValueError(f"`bins` should be a positive integer. Received: bins={bins}.")
    order = np.argsort(probability, kind="stable")
    probability = _checked(probability)[order]
    excess = probability - label[order]
    runs = _runs(probability)

    def value(weight: np.ndarray) -> float:
        weight = weight[order]
        mass = np.add.reduceat(weight, runs) if runs.size else weight
        after = np.cumsum(mass)
        total = after[-1] if runs.size else 0.0
        if not total > 0:
            return np.nan
        of = np.minimum((bins * (after - mass / 2) / total).astype(np.intp), bins - 1)
        return float(np.abs(np.bincount(of, np.add.reduceat(weight * excess, runs))).sum() / total)

    return value


def ece(label: Any, probability: Any, weight: Any = None, *, bins: int = 15) -> float:
    """Expected calibration error: how far the mean probability is from the mean label, bin by bin of probability.

        sum over bins of share of the rows * |mean probability - mean label|

    The bins hold equal mass: rows are sorted by probability, and rows of one probability stay together, in the bin that
    holds their middle. With n rows a perfect model's value is about 0.8 sqrt(bins / n * mean of p (1 - p)), not 0.

    Args:
        label: array `[n]` of 0 and 1.
        probability: array `[n]` in [0, 1].
        weight: array `[n]` of weights >= 0. Defaults to 1 each.
        bins: int. Defaults to `15`.

    Returns:
        float in [0, 1]; NaN without rows.

    Reference: Guo et al., ICML 2017, equation 3.
    Departs from the paper: bins of equal mass, since rare events crowd into the first of equal width.
    """
    label, probability = label_rows(label=label, probability=probability)
    value = prepare_ece(label, probability, bins)
    return value(np.ones(label.size) if weight is None else np.asarray(weight, np.float64))


@dataclasses.dataclass(frozen=True)
class _Places:
    """Rows by group and falling score; rows of equal score in a group are a run.

    Attributes:
        first: int `[groups]`. One row of each group.
        positives: float64 `[groups]`.
        group: int `[runs]`. Of each run.
        before: int `[runs]`. Rows of the group above the run.
        size: int `[runs]`; hits: float64 `[runs]`. Rows and positives of the run.
    """

    first: np.ndarray
    positives: np.ndarray
    group: np.ndarray
    before: np.ndarray
    size: np.ndarray
    hits: np.ndarray


def _places(label: np.ndarray, score: np.ndarray, group: np.ndarray) -> _Places:
    _, index = np.unique(group, return_inverse=True)
    order = np.lexsort((-score.astype(np.float64), index))
    index, positive = index[order], (label[order] != 0).astype(np.float64)
    starts, runs = _runs(index), _runs(index, score[order])
    hits = np.add.reduceat(positive, runs) if runs.size else np.empty(0)
    of = index[runs]
    size = np.diff(np.append(runs, index.size))
    return _Places(order[starts], np.bincount(index, positive, starts.size), of, runs - starts[of], size, hits)


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
    found = _places(*label_rows(label=label, score=score, group=group))
    taken = np.clip(k - found.before, 0, found.size)  # places of the run within the top k
    hits = np.bincount(found.group, found.hits * taken / found.size, found.first.size)
    kept = found.positives > 0
    return float(np.mean(hits[kept] / np.minimum(found.positives[kept], k))) if kept.any() else np.nan


def group_ndcg(
    label: np.ndarray, score: np.ndarray, group: np.ndarray, k: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """NDCG and one row of every group; NaN for a group without positives."""
    found = _places(label, score, group)
    longest = int((found.before + found.size).max()) if found.group.size else 0
    taken = longest if k is None else min(k, longest)
    gained = np.zeros(longest + 1)  # by the first r places together
    gained[1 : taken + 1] = np.cumsum(1 / np.log2(np.arange(taken) + 2))
    gained[taken + 1 :] = gained[taken]
    mean = (gained[found.before + found.size] - gained[found.before]) / found.size  # of a place of the run
    total = np.bincount(found.group, found.hits * mean, found.first.size)
    best = gained[found.positives.astype(np.intp)]
    return np.divide(total, best, out=np.full(best.size, np.nan), where=best > 0), found.first


def ndcg(label: Any, score: Any, group: Any, k: int | None = None) -> float:
    """Mean over groups of DCG / (DCG of the best order), where a positive at place r, from 1, earns 1 / log2(r + 1).

    Groups without positives say nothing about order and are left out. Rows of equal score share their places: the
    value is the mean over all orders of the ties, as in scikit-learn.

    Args:
        label: array `[n]` of 0 and 1.
        score: array `[n]`.
        group: array `[n]`, the user or request of each row.
        k: int or `None`. Places that count. Defaults to all.

    Returns:
        float in [0, 1]; NaN where no group has a positive.

    Reference: Järvelin and Kekäläinen, TOIS 2002; the ties: McSherry and Najork, ECIR 2008.
    """
    if k is not None and k < 1:
        raise ValueError(f"`k` should be a positive integer or None. Received: k={k}.")
    label, score, group = label_rows(label=label, score=score, group=group)
    values, _ = group_ndcg(label, score, group, k)
    kept = ~np.isnan(values)
    return float(values[kept].mean()) if kept.any() else np.nan
