"""Baselines by logistic regression: one for all pairs, and one classifier for each seed list."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special
from numpy.typing import NDArray

from lookalike.profiles import by_item, check_embeddings, check_pairs, seed_matrix, shares

__all__ = ["Classifier", "LogisticPairs"]

Vector = NDArray[np.float32]
Index = NDArray[np.int64]
Profile = Mapping[str, NDArray]


@dataclass(frozen=True)
class Classifier:
    """Classification look-alike: one logistic regression for each seed list, its seeds against random others.

        score(u, i) = w_i x_u + b_i - b,   b = the log odds of seeds and others in the sample

    Every item has the same share of others, so that scores compare between items and do not tell how popular one is.

    Args:
        inputs: `[population, columns]`, CSR of a profile or a float32 array of embeddings.
        coefficients: float32 `[items, columns + 1]`, the intercept last; zeros for an item without seeds, or without
            others.

    Reference: the per-advertiser classifiers of deWet and Ou, KDD 2019 (finding users who act alike).
    Departs from the paper: one regularised linear model a list, on whatever inputs are given.
    """

    inputs: scipy.sparse.csr_matrix | Vector
    coefficients: Vector

    @classmethod
    def fit(
        cls,
        offsets: Index,
        seeds: Index,
        inputs: Profile | Vector,
        *,
        others: int = 4,
        strength: float = 0.01,
        seed: int = 0,
    ) -> "Classifier":
        """Fit one classifier an item.

        Args:
            offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
            seeds: int64 `[n]`. Rows of users.
            inputs: dict of arrays `[population, ...]` as in `one_hot`, or float32 `[population, dim]` embeddings; these
                are brought to mean 0 and deviation 1 first.
            others: int. Random other users for every seed, as far as there are. Defaults to `4`.
            strength: float. scikit-learn's `C`; smaller is more regular. Defaults to `0.01`.
            seed: int. Random seed of the others. Defaults to `0`.
        """
        from sklearn.linear_model import LogisticRegression  # not at the top: processes that store clicks don't need it

        if others < 1:
            raise ValueError(f"`others` should be a positive integer. Received: others={others}.")
        _check_strength(strength)
        table = shares(inputs) if isinstance(inputs, Mapping) else _standard(inputs)
        lists = seed_matrix(offsets, seeds, table.shape[0])
        coefficients = np.zeros((lists.shape[0], table.shape[1] + 1), np.float32)
        for item in range(lists.shape[0]):
            own = lists.indices[lists.indptr[item] : lists.indptr[item + 1]]
            wanted = min(others * len(own), table.shape[0] - len(own))
            if min(len(own), wanted) == 0:
                continue
            # Its own generator: the classifier of an item does not depend on the other items.
            drawn = _draw_others(np.random.default_rng([seed, item]), own, wanted, table.shape[0])
            label = np.repeat([1, 0], [len(own), wanted])
            # liblinear penalises the intercept too; scaled, the penalty is 1e-4 of a weight's.
            model = LogisticRegression(C=strength, solver="liblinear", intercept_scaling=100)
            model.fit(table[np.concatenate([own, drawn])], label)
            coefficients[item] = np.append(model.coef_[0], model.intercept_[0] - np.log(len(own) / wanted))
        return cls(table, coefficients)

    def score(self, user: Index, item: Index) -> Vector:
        """Score of each pair of rows, float32 `[n]`."""
        check_pairs(user, item, self.inputs.shape[0], len(self.coefficients))
        score = np.zeros(len(user), np.float32)
        for one, rows in by_item(item):
            score[rows] = self.inputs[user[rows]] @ self.coefficients[one, :-1] + self.coefficients[one, -1]
        return score


@dataclass(frozen=True)
class LogisticPairs:
    """Logistic regression on labelled pairs: the ids, the user's profile and the item's attributes, one-hot.

        logit(u, i) = w x_u + v x_i + b,   score(u, i) = w x_u + v x_i

    Its items come in one order for everybody: without crossed features it can't tell who likes what.

    Args:
        user_part: float32 `[population]`, `w x_u`.
        item_part: float32 `[items]`, `v x_i`.
        intercept: float. `b`, left out of the score: a pair without anything known scores 0.

    Reference: Liu et al., KDD 2019 ("LR").
    Departs from the paper: it does not name its features.
    """

    user_part: Vector
    item_part: Vector
    intercept: float

    @classmethod
    def fit(
        cls,
        user: Index,
        item: Index,
        label: NDArray,
        profile: Profile,
        attributes: Profile,
        *,
        strength: float = 0.1,
        iterations: int = 500,
    ) -> "LogisticPairs":
        """Fit the regression by L-BFGS.

        The design matrix is never made: rows of one user share `w x_u`, so that a gradient costs one pass over the
        pairs, the users and the items.

        Args:
            user: int64 `[n]`. Rows of users.
            item: int64 `[n]`. Rows of items.
            label: array `[n]` of 0 and 1.
            profile: dict of arrays `[population, ...]` as in `one_hot`.
            attributes: dict of arrays `[items, ...]` as in `one_hot`.
            strength: float. scikit-learn's `C`; smaller is more regular. Defaults to `0.1`.
            iterations: int. Most iterations. Defaults to `500`.
        """
        _check_strength(strength)
        users, items = (_with_identity(shares(side)) for side in (profile, attributes))
        check_pairs(user, item, users.shape[0], items.shape[0])
        target = np.asarray(label, np.float64)
        if target.shape != user.shape or not np.isin(target, (0, 1)).all():
            raise ValueError(f"`label` should be 0 or 1 for each of the {len(user)} pairs. Received: {label!r}.")
        if target.size == 0 or target.min() == target.max():  # one class: no pair is better than another
            return cls(np.zeros(users.shape[0], np.float32), np.zeros(items.shape[0], np.float32), 0.0)
        width, n = users.shape[1], users.shape[1] + items.shape[1]
        users_t, items_t = users.T.tocsr(), items.T.tocsr()

        def objective(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logit = (users @ w[:width])[user] + (items @ w[width:n])[item] + w[n]
            residual = scipy.special.expit(logit) - target
            loss = np.sum(np.logaddexp(0, logit) - target * logit)
            gradient = np.concatenate(
                [
                    users_t @ np.bincount(user, residual, users.shape[0]),
                    items_t @ np.bincount(item, residual, items.shape[0]),
                    [residual.sum()],
                ]
            )
            gradient[:n] += w[:n] / strength
            # Of the mean: the tolerances then mean the same for any number of pairs.
            return float(loss + w[:n] @ w[:n] / (2 * strength)) / len(user), gradient / len(user)

        start = np.zeros(n + 1)
        start[n] = np.log(target.mean() / (1 - target.mean()))
        options = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-12, "gtol": 1e-7}
        w = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
        parts = (users @ w[:width]).astype(np.float32), (items @ w[width:n]).astype(np.float32)
        return cls(*parts, float(w[n]))

    def score(self, user: Index, item: Index) -> Vector:
        """Score of each pair of rows, float32 `[n]`."""
        check_pairs(user, item, len(self.user_part), len(self.item_part))
        return self.user_part[user] + self.item_part[item]


def _with_identity(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """A column for every id before the columns of the features; float64, as the optimiser needs it."""
    return scipy.sparse.hstack([scipy.sparse.identity(matrix.shape[0]), matrix], format="csr", dtype=np.float64)


def _draw_others(generator: np.random.Generator, own: NDArray, wanted: int, population: int) -> Index:
    """`wanted` distinct users who are not among the sorted `own`."""
    drawn = generator.choice(population - len(own), wanted, replace=False, shuffle=False)
    # The r-th of the users left: own[j] - j of them come before the j-th seed.
    return drawn + np.searchsorted(own - np.arange(len(own)), drawn, side="right")


def _standard(embeddings: Vector) -> Vector:
    check_embeddings(embeddings)
    deviation = embeddings.std(axis=0, dtype=np.float64)
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    return (centred / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def _check_strength(strength: float) -> None:
    if not 0 < strength < np.inf:
        raise ValueError(f"`strength` should be a positive number. Received: strength={strength}.")
