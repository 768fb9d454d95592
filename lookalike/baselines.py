"""Baselines that RALM has to beat: popularity, average embedding and profile match.

Every baseline, here and in `regression`, `graph` and `hashing`, is fitted once and then scores rows of (user, item):
the higher, the better; 0 knows nothing; never NaN. None looks whether a user is himself a seed of the item: such pairs
should not be part of an evaluation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lookalike.profiles import by_item, check_embeddings, check_pairs, seed_matrix, shares

__all__ = ["AverageEmbedding", "Popularity", "ProfileMatch"]

Vector = NDArray[np.float32]
Index = NDArray[np.int64]
Profile = Mapping[str, NDArray]

BINS = 10  # a number of a profile matches by the tenth of the population that it lies in


@dataclass(frozen=True)
class Popularity:
    """The more seeds, the better, whoever the user is.

        score(u, i) = log(1 + n_i)

    Args:
        log_counts: float32 `[items]`.
        population: int. How many users there are.
    """

    log_counts: Vector
    population: int

    @classmethod
    def fit(cls, offsets: Index, seeds: Index, population: int) -> "Popularity":
        """Count the seeds.

        Args:
            offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
            seeds: int64 `[n]`. Rows of users.
            population: int. How many users there are.
        """
        counts = seed_matrix(offsets, seeds, population).getnnz(axis=1)
        return cls(np.log1p(counts).astype(np.float32), population)

    def score(self, user: Index, item: Index) -> Vector:
        """Score of each pair of rows, float32 `[n]`."""
        check_pairs(user, item, self.population, len(self.log_counts))
        return self.log_counts[item]


@dataclass(frozen=True)
class AverageEmbedding:
    """Cosine of a user and the mean of the item's seeds.

        score(u, i) = cos(E_u, mean of E_s over the seeds s of i)

    Args:
        users: float32 `[population, dim]`. Embeddings of length 1.
        means: float32 `[items, dim]`. Means of the embeddings as given, brought to length 1; 0 without seeds.

    Reference: Liu et al., KDD 2019 ("RALM with average").
    Departs from the paper: nothing is learned; the paper's own is `LookalikeModel(attention="average")`.
    """

    users: Vector
    means: Vector

    @classmethod
    def fit(cls, offsets: Index, seeds: Index, embeddings: Vector) -> "AverageEmbedding":
        """Average the seeds.

        Args:
            offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
            seeds: int64 `[n]`. Rows of users.
            embeddings: float32 `[population, dim]`. Of all users.
        """
        check_embeddings(embeddings)
        sums = seed_matrix(offsets, seeds, len(embeddings)) @ embeddings.astype(np.float64)  # [items, dim]
        return cls(_unit(embeddings), _unit(sums))

    def score(self, user: Index, item: Index) -> Vector:
        """Score of each pair of rows, float32 `[n]` in [-1, 1]."""
        check_pairs(user, item, len(self.users), len(self.means))
        score = np.zeros(len(user), np.float32)
        for one, rows in by_item(item):
            score[rows] = self.users[user[rows]] @ self.means[one]
        return score


@dataclass(frozen=True)
class ProfileMatch:
    """Profile-tag match: what is commoner among an item's seeds than in the population speaks for a user who has it.

    With `n_ij` of the item's `n_i` seeds having value j, as a share `q_j` of the population does:

        lift_ij = (n_ij + prior q_j) / ((n_i + prior) q_j)
        score(u, i) = sum over features of the mean of log lift_ij over the user's values j of the feature

    The lift is what advertising platforms call an over-index or target group index; the sum of its logarithms is the
    log likelihood ratio of naive Bayes, seeds against population. It says nothing of how popular an item is.

    Args:
        weights: CSR matrix `[population, columns]`, the users' values; those of one feature sum to 1.
        counts: CSR matrix `[items, columns]`, `n_ij`.
        sizes: float64 `[items]`, `n_i`.
        share: float64 `[columns]`, `q_j`.
        prior: float. Seeds with the population's profile that each item starts with.

    Reference: Manning, Raghavan and Schuetze, Introduction to Information Retrieval, 2008, chapter 13 (Bernoulli model,
    values present only). A match of profiles is the control group of the online test of Liu et al., KDD 2019.
    Departs from the paper: it does not say how its control matches profiles.
    """

    weights: scipy.sparse.csr_matrix
    counts: scipy.sparse.csr_matrix
    sizes: NDArray[np.float64]
    share: NDArray[np.float64]
    prior: float

    @classmethod
    def fit(cls, offsets: Index, seeds: Index, profile: Profile, *, prior: float = 20.0) -> "ProfileMatch":
        """Count the values of the seeds.

        Args:
            offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
            seeds: int64 `[n]`. Rows of users.
            profile: dict of arrays `[population, ...]` as in `one_hot`; numbers match by tenths of the population.
            prior: float. Seeds with the population's profile that each item starts with. Defaults to `20.0`.
        """
        if not 0 < prior < np.inf:
            raise ValueError(f"`prior` should be a positive number. Received: prior={prior}.")
        weights = shares(profile, bins=BINS)
        values = weights.copy()
        values.data[:] = 1
        counts = (seed_matrix(offsets, seeds, values.shape[0]) @ values).tocsr()
        share = np.bincount(values.indices, minlength=values.shape[1]) / max(values.shape[0], 1)
        return cls(weights, counts, np.diff(offsets).astype(np.float64), share, prior)

    def log_lift(self, item: int) -> NDArray[np.float64]:
        """Smoothed log lift of every value among the seeds of one item, `[columns]`: what over-indexes."""
        some = self.share > 0
        counts = self.counts[item].toarray()[0].astype(np.float64)
        expected = (self.sizes[item] + self.prior) * np.where(some, self.share, 1)
        lift = (counts + self.prior * self.share) / expected
        return np.log(lift, out=np.zeros_like(lift), where=some)

    def score(self, user: Index, item: Index) -> Vector:
        """Score of each pair of rows, float32 `[n]`."""
        check_pairs(user, item, self.weights.shape[0], len(self.sizes))
        score = np.zeros(len(user), np.float32)
        for one, rows in by_item(item):
            score[rows] = self.weights[user[rows]] @ self.log_lift(one)
        return score


def _unit(vectors: NDArray) -> Vector:
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)
