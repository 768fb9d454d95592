"""Does an expansion find seeds that it has not seen? Recall and lift at each size, beside simpler methods."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookalike.scorer import Scorer, seed_centroids, slabs
from lookalike.selection import Cut

__all__ = ["Curve", "Holdout", "holdout"]

PERCENTS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
ROWS = 2**40  # above any row number
Population = Callable[[], Iterable[NDArray[np.float32]]] | Iterable[NDArray[np.float32]]
Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Curve:
    """One method's hold-out.

    Args:
        percent: list of float. Sizes of the audience, of everyone who is not among the seeds shown to the method.
        recall: list of float. Share of the hidden seeds inside.
        lift: list of float. Recall over what a random audience of the size would have.
        se: list of float. Standard error of the recall, over the hidden seeds.
        auc: float. How often a hidden seed stands before another user.
    """

    percent: list[float]
    recall: list[float]
    lift: list[float]
    se: list[float]
    auc: float


@dataclass(frozen=True)
class Holdout:
    """Hold-out of one seed list.

    Args:
        hidden: int. Seeds that were hidden.
        methods: dict of `Curve`: `look-alike`, `average embedding`, `classifier` and `random`.
    """

    hidden: int
    methods: dict[str, Curve]

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self)


def holdout(
    scorer: Scorer,
    chunks: Population,
    seed_vectors: NDArray[np.float32],
    seed_rows: NDArray[np.int64],
    *,
    share: float = 0.2,
    percents: Sequence[float] = PERCENTS,
    k: int = 20,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Holdout:
    """Hide a share of the seeds, expand from the rest, and see at which sizes the hidden ones are found.

    All methods are scored in one pass over the population, which keeps no more of it than counts; a pass before it
    draws as many other users as there are seeds to learn from, for the classifier to tell them apart.

    Args:
        scorer: `Scorer`.
        chunks: iterable of float32 `[users, user_dim]` that can be walked through twice (a list), or a function that
            returns a new one.
        seed_vectors: float32 `[seeds, user_dim]`.
        seed_rows: int64 `[seeds]`. Their rows in the population.
        share: float. Share of the seeds that is hidden. Defaults to `0.2`.
        percents: sequence of float. Sizes, in percent. Defaults to `(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)`.
        k: int. Most centroids. Defaults to `20`.
        seed: int. Random seed of who is hidden, of the clustering and of the sample. Defaults to `0`.
        progress: function `(stage, done, total)`, optional.

    Returns:
        `Holdout`.

    Raises:
        ValueError: if fewer than two seeds are given, no seed or every seed would be hidden, a row comes twice or is
            not in the population, or `percents` or `share` is out of range.
    """
    rows = np.asarray(seed_rows, np.int64)
    _check(seed_vectors, rows, share, percents, chunks)
    hidden_count = max(1, round(share * len(rows)))
    if hidden_count >= len(rows):
        raise ValueError(f"`share` should leave a seed to expand from. Received: share={share} of {len(rows)} seeds.")
    generator = np.random.default_rng(seed)
    mixed = generator.permutation(len(rows))
    hidden, shown = np.sort(mixed[:hidden_count]), np.sort(mixed[hidden_count:])
    walk = chunks if callable(chunks) else lambda: chunks
    tell = progress or (lambda stage, done, total: None)

    others, total = _sample(walk(), scorer.user_dim, np.sort(rows), len(shown), generator, tell)
    if rows.max() >= total:
        raise ValueError(f"`seed_rows` should be below the population of {total}. Received: {rows.max()}.")
    methods = {
        "look-alike": _lookalike(scorer, seed_vectors[shown], k, seed),
        "average embedding": _average(seed_vectors[shown]),
        "classifier": _classifier(seed_vectors[shown], others),
    }
    counters = {
        name: _Ranks(np.asarray(score(seed_vectors[hidden]), np.float32), rows[hidden])
        for name, score in methods.items()
    }
    known = np.sort(rows)
    for start, vectors in slabs(walk(), scorer.user_dim):
        mask = _strangers(known, start, len(vectors))
        numbers = start + np.flatnonzero(mask)
        for name, score in methods.items():
            counters[name].add(np.asarray(score(vectors), np.float32)[mask], numbers)
        tell("users of the hold-out", start + len(vectors), total)
    strangers = total - len(rows)
    curves = {
        name: _curve(counter.ranks(), counter.auc(strangers), percents, strangers + hidden_count)
        for name, counter in counters.items()
    }
    return Holdout(hidden_count, {**curves, "random": _random(percents, hidden_count)})


class _Ranks:
    """How many users stand before each hidden seed, counted as they pass by."""

    def __init__(self, scores: NDArray[np.float32], rows: NDArray[np.int64]):
        order = np.lexsort((rows, -scores))
        self._scores = -scores[order]  # rising
        # Of equal scores the lower row stands first: one key for both.
        self._keys = np.searchsorted(self._scores, self._scores, "left") * ROWS + rows[order]
        self._before = np.zeros(len(scores) + 1, np.int64)
        self._above = np.zeros(len(scores) + 1, np.int64)
        self._level = np.zeros(len(scores) + 1, np.int64)

    def add(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Count users `[n]`, none of them a seed."""
        left = np.searchsorted(self._scores, -scores, "left")
        right = np.searchsorted(self._scores, -scores, "right")
        place = left.copy()  # a user stands before all hidden seeds from this one on
        tied = np.flatnonzero(left < right)
        place[tied] = np.searchsorted(self._keys, left[tied] * ROWS + rows[tied])
        size = len(self._before)
        self._before += np.bincount(place, minlength=size)
        self._above += np.bincount(right, minlength=size)  # strictly better than those from here on
        self._level += np.bincount(left[tied], minlength=size) - np.bincount(right[tied], minlength=size)

    def ranks(self) -> NDArray[np.int64]:
        """Zero-based rank of each hidden seed among all who could be chosen, the hidden ones too."""
        return np.cumsum(self._before)[:-1] + np.arange(len(self._keys))

    def auc(self, strangers: int) -> float:
        """Share of (hidden seed, stranger) pairs in the right order; half for a tie."""
        if strangers == 0:
            return 0.5
        lost = np.cumsum(self._above)[:-1] + np.cumsum(self._level)[:-1] / 2
        return float(1 - lost.mean() / strangers)


def _check(vectors: NDArray[np.float32], rows: NDArray[np.int64], share: float, percents: Any, chunks: Any) -> None:
    if rows.shape != (len(vectors),) or len(rows) < 2 or len(np.unique(rows)) < len(rows) or rows.min() < 0:
        raise ValueError(
            "`seed_rows` should be two or more different rows, one a vector. "
            f"Received: {rows.size} rows, {len(np.unique(rows))} of them different, and {len(vectors)} vectors."
        )
    if not 0 < share < 1:
        raise ValueError(f"`share` should be between 0 and 1. Received: share={share}.")
    if not all(0 < percent <= 100 for percent in percents):
        raise ValueError(f"`percents` should be above 0 and at most 100. Received: {list(percents)}.")
    if isinstance(chunks, Iterator):
        raise ValueError("`chunks` should be a list or a function, to be walked through twice. Received: an iterator.")


def _sample(
    chunks: Iterable[NDArray[np.float32]],
    user_dim: int,
    known: NDArray[np.int64],
    size: int,
    generator: np.random.Generator,
    tell: Callable[[str, int, int], None],
) -> tuple[NDArray[np.float32], int]:
    """Vectors of `size` users who are no seeds, drawn evenly, and the rows of the population.

    Everyone draws a number and the lowest stay: the population need not be counted first.
    """
    kept, draws, total = np.empty((0, user_dim), np.float32), np.empty(0), 0
    for start, vectors in slabs(chunks, user_dim):
        total = start + len(vectors)
        drawn = generator.random(len(vectors))
        drawn[~_strangers(known, start, len(vectors))] = np.inf
        bar = draws.max(initial=0) if len(draws) >= size else np.inf
        few = np.flatnonzero(drawn < bar)
        draws = np.concatenate([draws, drawn[few]])
        best = np.argsort(draws, kind="stable")[:size]
        kept, draws = np.concatenate([kept, vectors[few]])[best], draws[best]
        tell("users drawn from", total, total)
    return kept, total


def _strangers(known: NDArray[np.int64], start: int, size: int) -> NDArray[np.bool_]:
    """Which of the rows from `start` on are none of the seeds."""
    mask = np.ones(size, np.bool_)
    low, high = np.searchsorted(known, [start, start + size])
    mask[known[low:high] - start] = False
    return mask


def _lookalike(scorer: Scorer, vectors: NDArray[np.float32], k: int, seed: int) -> Score:
    centroids, counts = seed_centroids(scorer, vectors, k=k, seed=seed)
    seeds = scorer.summarize(centroids[None], counts[None])
    return lambda users: scorer.similarity(users, seeds)[:, 0]


def _average(vectors: NDArray[np.float32]) -> Score:
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    return lambda users: users @ mean / np.maximum(np.sqrt(np.einsum("nd,nd->n", users, users)), np.float32(1e-6))


def _classifier(vectors: NDArray[np.float32], others: NDArray[np.float32]) -> Score:
    """Logistic regression on standardised vectors; scores 0 for all where there is nobody to learn from."""
    if len(others) == 0:
        return lambda users: np.zeros(len(users), np.float32)
    both = np.concatenate([vectors, others]).astype(np.float64)
    from sklearn.linear_model import LogisticRegression  # not at the top: processes that store clicks don't need it

    scale = both.std(axis=0)
    scale[scale == 0] = 1
    labels = np.concatenate([np.ones(len(vectors)), np.zeros(len(others))])
    fitted = LogisticRegression(max_iter=300).fit((both - both.mean(axis=0)) / scale, labels)
    weights = (fitted.coef_[0] / scale).astype(np.float32)
    return lambda users: users @ weights


def _curve(ranks: NDArray[np.int64], auc: float, percents: Sequence[float], eligible: int) -> Curve:
    recall = [float(np.mean(ranks < Cut(percent=percent).ranks(eligible)[1])) for percent in percents]
    return Curve(
        percent=[float(percent) for percent in percents],
        recall=recall,
        lift=[100 * found / percent for found, percent in zip(recall, percents, strict=True)],
        se=[math.sqrt(found * (1 - found) / len(ranks)) for found in recall],
        auc=auc,
    )


def _random(percents: Sequence[float], hidden: int) -> Curve:
    """What chance gives: no draw is needed to know it."""
    recall = [percent / 100 for percent in percents]
    return Curve(
        percent=[float(percent) for percent in percents],
        recall=recall,
        lift=[1.0] * len(recall),
        se=[math.sqrt(found * (1 - found) / hidden) for found in recall],
        auc=0.5,
    )
