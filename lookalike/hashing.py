"""Nearest neighbours of the seeds by locality-sensitive hashing, weighed by what tells the seeds apart (Yahoo)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lookalike.profiles import by_item, check_embeddings, check_pairs, one_hot, seed_matrix

__all__ = ["HashedNeighbors"]

BINS = 10  # a number of a profile is hashed as the tenth of the population that it lies in
PRIOR = 20.0  # seeds with the population's profile that each item starts with


@dataclass(frozen=True)
class HashedNeighbors:
    """Yahoo's look-alike: neighbours of the seeds in hash tables, in the order of their information value.

    A user is a candidate of an item where he shares a bucket with a seed of it in any table. A bucket is the minhash
    of the user's profile values (two users share one hash with the probability of their Jaccard similarity), `rows`
    hashes together. With `p` and `q` the shares of the seeds and of the population that have value j:

        value_ij = (p - q) log(p (1 - q) / (q (1 - p))) where p > q, else 0
        score(u, i) = 1 + sum of value_ij over the user's values for a candidate, 0 for all others

    Args:
        values: CSR matrix `[population, columns]` of 0 and 1, the users' values.
        worth: CSR matrix `[items, columns]`, `value_ij`.
        buckets: int64 `[tables, population]`. The bucket of each user in each table, -1 for one without any value.
        occupied: tuple of int64 arrays, one a table: item * population + bucket of all seeds, sorted.

    Reference: Ma et al., A sub-linear, massive-scale look-alike audience extension system, BigMine 2016 (PMLR 53).
    Departs from the paper: its graph of all users, whose similarities weigh features by a learned matrix, is left out,
    so that a shared bucket is enough; the shares are smoothed.
    """

    values: scipy.sparse.csr_matrix
    worth: scipy.sparse.csr_matrix
    buckets: NDArray[np.int64]
    occupied: tuple[NDArray[np.int64], ...]

    @classmethod
    def fit(
        cls,
        offsets: NDArray[np.int64],
        seeds: NDArray[np.int64],
        profile: Mapping[str, NDArray],
        *,
        embeddings: NDArray[np.float32] | None = None,
        tables: int = 10,
        rows: int = 8,
        seed: int = 0,
    ) -> "HashedNeighbors":
        """Hash the users and weigh the values.

        Args:
            offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
            seeds: int64 `[n]`. Rows of users.
            profile: dict of arrays `[population, ...]` as in `one_hot`; numbers by tenths of the population.
            embeddings: float32 `[population, dim]`, optional. Hash these by random hyperplanes in place of the profile
                (two users share one hash with probability 1 - angle / pi).
            tables: int. Tables; the more, the more candidates. Defaults to `10`.
            rows: int. Hashes that have to agree in a table; the more, the fewer candidates: about 8 for a profile of a
                value a feature, 2 or 3 where long lists of values are among them. Defaults to `8`.
            seed: int. Random seed of the hashes. Defaults to `0`.
        """
        for name, value in (("tables", tables), ("rows", rows)):
            if value < 1:
                raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value}.")
        values = one_hot(profile, bins=BINS)
        population = values.shape[0]
        lists = seed_matrix(offsets, seeds, population)
        if embeddings is not None:
            check_embeddings(embeddings)
            if len(embeddings) != population:
                raise ValueError(f"`embeddings` should have {population} rows. Received: {len(embeddings)}.")
        generator = np.random.default_rng(seed)
        item = np.repeat(np.arange(lists.shape[0]), np.diff(lists.indptr))
        buckets = np.empty((tables, population), np.int64)
        occupied = []
        for table in range(tables):
            hashes = _minhash(values, rows, generator) if embeddings is None else _planes(embeddings, rows, generator)
            buckets[table] = _bucket(hashes)
            own = buckets[table, lists.indices]
            occupied.append(np.unique((item * population + own)[own >= 0]))
        return cls(values, _information(lists, values), buckets, tuple(occupied))

    def candidates(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the user of each pair shares a bucket with a seed of the item, `[n]`."""
        check_pairs(user, item, *self._sizes())
        found = np.zeros(len(user), bool)
        for bucket, occupied in zip(self.buckets[:, user], self.occupied, strict=True):
            key = item.astype(np.int64) * self.buckets.shape[1] + bucket
            place = np.minimum(np.searchsorted(occupied, key), max(len(occupied) - 1, 0))
            if len(occupied):
                found |= (occupied[place] == key) & (bucket >= 0)
        return found

    def score(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score of each pair of rows, float32 `[n]`, 0 or from 1."""
        score = self.candidates(user, item).astype(np.float32)
        near = np.flatnonzero(score)
        for one, rows in by_item(item[near]):
            score[near[rows]] += self.values[user[near[rows]]] @ self.worth[one].toarray()[0]
        return score

    def _sizes(self) -> tuple[int, int]:
        return self.values.shape[0], self.worth.shape[0]


def _minhash(values: scipy.sparse.csr_matrix, rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The user's value that comes first in a random order of all, for `rows` orders: `[rows, population]`, -1: none."""
    some = np.flatnonzero(np.diff(values.indptr))
    first = np.full((rows, values.shape[0]), -1, np.int64)
    for row in range(rows):
        order = generator.permutation(values.shape[1])
        if some.size:
            first[row, some] = np.minimum.reduceat(order[values.indices], values.indptr[some])
    return first


def _planes(embeddings: NDArray[np.float32], rows: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The side of `rows` random hyperplanes through 0 that each user lies on, `[rows, population]`; a 0 vector: -1."""
    normals = generator.standard_normal((embeddings.shape[1], rows))
    sides = (embeddings.astype(np.float64) @ normals > 0).astype(np.int64).T
    return np.where(np.any(embeddings != 0, axis=1), sides, -1)


def _bucket(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each distinct column of `hashes` `[rows, population]`; -1 for users without any."""
    bucket = np.zeros(hashes.shape[1], np.int64)
    for row in hashes:
        # Numbered anew after every row, so that the product stays small: at most population * columns.
        bucket = np.unique(bucket * (row.max(initial=0) + 2) + row + 1, return_inverse=True)[1]
    return np.where(hashes[0] < 0, -1, bucket)


def _information(lists: scipy.sparse.csr_matrix, values: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Information value of every value that is commoner among the seeds than in the population, `[items, columns]`."""
    worth = (lists @ values).tocsr().astype(np.float64)
    sizes = np.repeat(np.diff(lists.indptr), np.diff(worth.indptr))
    q = np.bincount(values.indices, minlength=values.shape[1])[worth.indices] / max(values.shape[0], 1)
    p = (worth.data + PRIOR * q) / (sizes + PRIOR)
    over = p > q + 1e-12  # a value that everybody has tells nothing
    safe = np.where(over, p, 0.5), np.where(over, q, 0.5)
    worth.data = (safe[0] - safe[1]) * np.log(safe[0] * (1 - safe[1]) / (safe[1] * (1 - safe[0])))
    return worth
