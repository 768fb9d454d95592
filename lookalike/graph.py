"""Label propagation on the co-click graph: seeds reach the users who acted on the same items."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lookalike.profiles import check_pairs, seed_matrix

__all__ = ["LabelPropagation"]


@dataclass(frozen=True)
class LabelPropagation:
    """Spread an item's seeds over the graph of users who acted on the same things.

    With B the 0/1 matrix of users and what they acted on, both sides' degrees taken out:

        S = N N^T,   N = D_u^(-1/2) B D_i^(-1/2)
        F_0 = Y,   F <- a S F + (1 - a) Y,   Y_ui = 1 / n_i for the n_i seeds of i
        score(u, i) = population * F_ui

    S is never made: one step is two sparse products, for a block of items at a time.

    Args:
        graph: float32 CSR matrix `[population, things]`, N.
        seeds: float32 CSR matrix `[items, population]` of 0 and 1.
        spread: float in (0, 1), a.
        iterations: int. Steps.
        block: int. Items at a time.

    Reference: Zhou et al., NIPS 2003 (learning with local and global consistency); the graph is the
    one of common clicks.
    Departs from the paper: a few steps in place of the limit; an item's labels sum to 1, so that its number of seeds
    does not enter.
    """

    graph: scipy.sparse.csr_matrix
    seeds: scipy.sparse.csr_matrix
    spread: float
    iterations: int
    block: int

    @classmethod
    def fit(
        cls,
        offsets: NDArray[np.int64],
        seeds: NDArray[np.int64],
        edges: tuple[NDArray[np.int64], NDArray[np.int64]],
        population: int,
        *,
        spread: float = 0.8,
        iterations: int = 3,
        block: int = 64,
    ) -> "LabelPropagation":
        """Normalise the graph.

        Args:
            offsets: int64 `[items + 1]`. The seeds of item `i` are `seeds[offsets[i]:offsets[i + 1]]`.
            seeds: int64 `[n]`. Rows of users.
            edges: two int64 arrays `[edges]`. A user's row, and what he acted on, any number from 0; repeats count
                once. All from before the window that is scored: an edge to a later click would tell its label.
            population: int. How many users there are.
            spread: float in (0, 1). `a`, the part that comes from the neighbours. Defaults to `0.8`.
            iterations: int. Steps. Defaults to `3`.
            block: int. Items at a time: memory is two float32 arrays `[population, block]`. Defaults to `64`.
        """
        if not 0 < spread < 1:
            raise ValueError(f"`spread` should be between 0 and 1. Received: spread={spread}.")
        for name, value in (("iterations", iterations), ("block", block)):
            if value < 1:
                raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value}.")
        user, thing = edges
        things = int(thing.max()) + 1 if thing.size else 0
        check_pairs(user, thing, population, things)
        graph = scipy.sparse.csr_matrix((np.ones(len(user), np.float32), (user, thing)), shape=(population, things))
        graph.data[:] = 1
        by_user, by_thing = np.diff(graph.indptr), np.bincount(graph.indices, minlength=things)
        graph.data /= np.sqrt(np.repeat(by_user, by_user) * by_thing[graph.indices].astype(np.float64))
        return cls(graph, seed_matrix(offsets, seeds, population), spread, iterations, block)

    def score(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score of each pair of rows, float32 `[n]`, 0 or more; costs by the number of distinct items."""
        check_pairs(user, item, self.seeds.shape[1], self.seeds.shape[0])
        score = np.zeros(len(user), np.float32)
        back = self.graph.T.tocsr()
        found, place = np.unique(item, return_inverse=True)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(0, len(found) + self.block, self.block))
        for low, (first, last) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            rows = order[first:last]
            items = found[low * self.block : (low + 1) * self.block]
            score[rows] = self._spread(items, back)[user[rows], place[rows] - low * self.block]
        return score

    def _spread(self, items: NDArray[np.int64], back: scipy.sparse.csr_matrix) -> NDArray[np.float32]:
        """F of some items, `[population, items]`, times the population."""
        sizes = np.diff(self.seeds.indptr)[items]
        share = scipy.sparse.diags_array((self.seeds.shape[1] / np.maximum(sizes, 1)).astype(np.float32))
        labels = np.ascontiguousarray((share @ self.seeds[items]).toarray().T)  # [population, items]
        found = labels
        labels = (1 - self.spread) * labels
        for _ in range(self.iterations):
            found = self.graph @ (back @ found)
            found *= self.spread
            found += labels
        return found
