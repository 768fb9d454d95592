"""Expand seed lists into audiences: one pass over the population, in bounded memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lookalike.holdout import Curve, Holdout, holdout
from lookalike.scorer import Scorer, Seeds, Users, seed_centroids, slabs
from lookalike.selection import Cut, Reach, Selection
from lookalike.threads import one_blas_thread

__all__ = [
    "Audience",
    "Curve",
    "Cut",
    "Holdout",
    "Reach",
    "SeedList",
    "expand",
    "holdout",
    "overlap",
    "seed_centroids",
]

Eligible = NDArray[np.bool_] | Callable[[int, int], NDArray[np.bool_]] | None
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SeedList:
    """What an audience is made from.

    Args:
        centroids: float32 `[k, hidden]`. From `seed_centroids`.
        counts: array `[k]`. Their seeds; 0 where there is none.
        exclude: int64 `[n]`, optional. Rows of the population that never enter the audience: the seeds themselves.
        negatives: `(centroids, counts)` of the users to stay away from, optional.
    """

    centroids: NDArray[np.float32]
    counts: ArrayLike
    exclude: NDArray[np.int64] | None = None
    negatives: tuple[NDArray[np.float32], ArrayLike] | None = None


@dataclass(frozen=True)
class Audience:
    """The users chosen for one seed list.

    Args:
        rows: int64 `[n]`. Row numbers in the population, the best first; of equal similarities the lower row first.
        similarity: float32 `[n]`. What they are ordered by: the similarity to the seeds; with negatives, half of what
            is left of it when the similarity to those is taken off.
        centroid: int32 `[n]`. Each one's nearest centroid of the seeds, by cosine.
        eligible: int. How many could have been chosen.
        reach: `Reach`. How similar those are.
    """

    rows: NDArray[np.int64]
    similarity: NDArray[np.float32]
    centroid: NDArray[np.int32]
    eligible: int
    reach: Reach


def expand(
    scorer: Scorer,
    chunks: Iterable[NDArray[np.float32]],
    lists: Sequence[SeedList],
    cut: Cut,
    *,
    total: int | None = None,
    eligible: Eligible = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Audience]:
    """Choose an audience for every seed list, all in one pass over the population.

    What is held in memory grows with the audiences, not with the population. The result depends neither on how the
    population is cut into chunks nor on the other lists.

    Args:
        scorer: `Scorer`.
        chunks: iterable of float32 `[users, user_dim]`. The population; its rows count up from 0.
        lists: sequence of `SeedList`.
        cut: `Cut`. The same for every list.
        total: int, optional. Rows of the population; needed for a percentage or a band.
        eligible: bool `[total]`, or a function of `(start, stop)` that returns them for these rows. Who may be chosen;
            everyone where it is not given.
        threads: int. Blocks of users scored at once. Defaults to `1`.
        progress: function `(stage, done, total)`, optional. Called as the pass goes on.

    Returns:
        An `Audience` a list; with fewer users than `cut.size` where fewer are eligible.

    Raises:
        ValueError: if a list has no centroids or excludes rows that there are not, `cut.size` is above `total`, the
            population has not `total` rows, or a vector is not finite.
    """
    _check_total(cut, total)
    seeds, pairs = _summarize(scorer, lists)
    excluded = [_excluded(number, one.exclude, total) for number, one in enumerate(lists)]
    chosen = [Selection(*_bounds(cut, total)) for _ in lists]
    done = 0
    for start, vectors in slabs(chunks, scorer.user_dim):
        done = start + len(vectors)
        if total is not None and done > total:
            break
        with one_blas_thread():
            users = scorer.project(vectors, threads=threads)
            scores = seeds.similarity(users, threads=threads)  # [lists, users]
            mask = _eligible(eligible, start, done)
            for number, selection in enumerate(chosen):
                score = scores[number]
                if pairs[number] is not None:
                    score = (score - scores[pairs[number]]) / np.float32(2)
                _choose(selection, score, _without(mask, excluded[number], start), start, users, seeds, number)
        if progress is not None:
            progress("users scored", done, total if total is not None else done)
    if total is not None and done != total:
        raise ValueError(f"`total` should be the rows of the population. Received: total={total}, and {done} or more.")
    return [_audience(selection, cut) for selection in chosen]


def overlap(a: Audience, b: Audience) -> dict[str, float]:
    """Users that two audiences have in common.

    Returns:
        dict of `both` (int), `of_a` and `of_b` (shares of either, 0 where it is empty) and `jaccard` (of all).
    """
    both = len(np.intersect1d(a.rows, b.rows, assume_unique=True))
    sizes = len(a.rows), len(b.rows)
    return {
        "both": both,
        "of_a": both / max(sizes[0], 1),
        "of_b": both / max(sizes[1], 1),
        "jaccard": both / max(sum(sizes) - both, 1),
    }


def _check_total(cut: Cut, total: int | None) -> None:
    if total is None:
        if cut.percent is not None or cut.band is not None:
            raise ValueError("`total` should be given for a percentage or a band. Received: total=None.")
    elif total < 0:
        raise ValueError(f"`total` should be 0 or more. Received: total={total}.")
    elif cut.size is not None and cut.size > total:
        raise ValueError(f"`size` should be at most the population of {total}. Received: size={cut.size}.")


def _bounds(cut: Cut, total: int | None) -> tuple[int | None, float]:
    """How many a selection must keep, and from which score on."""
    if cut.threshold is not None:
        return None, float(cut.threshold)
    # The eligible are known at the end only, but they are no more than everyone.
    return (cut.size if total is None else cut.ranks(total)[1]), -1.0


def _summarize(scorer: Scorer, lists: Sequence[SeedList]) -> tuple[Seeds, list[int | None]]:
    """All lists, then all negative lists; and where each list's negatives stand."""
    parts = [(one.centroids, np.asarray(one.counts)) for one in lists]
    pairs: list[int | None] = [None] * len(lists)
    for number, one in enumerate(lists):
        if one.negatives is not None:
            pairs[number] = len(parts)
            parts.append((one.negatives[0], np.asarray(one.negatives[1])))
    k = max((len(counts) for _, counts in parts), default=1)
    centroids = np.zeros((len(parts), k, scorer.hidden), np.float32)
    sizes = np.zeros((len(parts), k), np.float64)
    for number, (points, counts) in enumerate(parts):
        if points.shape != (len(counts), scorer.hidden):
            raise ValueError(
                f"`centroids` of a list should be [{len(counts)}, {scorer.hidden}]. Received: {list(points.shape)}."
            )
        if not np.any(counts > 0):
            raise ValueError(f"a seed list should have a centroid. Received: none in list {number % len(lists)}.")
        centroids[number, : len(counts)], sizes[number, : len(counts)] = points, counts
    return scorer.summarize(centroids, sizes), pairs


def _excluded(number: int, rows: NDArray[np.int64] | None, total: int | None) -> NDArray[np.int64]:
    found = np.unique(np.asarray([] if rows is None else rows, np.int64))
    if found.size and (found[0] < 0 or (total is not None and found[-1] >= total)):
        wrong = found[0] if found[0] < 0 else found[-1]
        raise ValueError(f"`exclude` of list {number} should be rows of the population. Received: {wrong}.")
    return found


def _eligible(eligible: Eligible, start: int, stop: int) -> NDArray[np.bool_]:
    if eligible is None:
        return np.ones(stop - start, np.bool_)
    mask = np.asarray(eligible(start, stop) if callable(eligible) else eligible[start:stop])
    if mask.dtype != np.bool_ or mask.shape != (stop - start,):
        raise ValueError(
            f"`eligible` should be bool [{stop - start}] for rows {start} to {stop}. "
            f"Received: {mask.dtype} {list(mask.shape)}."
        )
    return mask


def _without(mask: NDArray[np.bool_], excluded: NDArray[np.int64], start: int) -> NDArray[np.bool_]:
    low, high = np.searchsorted(excluded, [start, start + len(mask)])
    if low == high:
        return mask
    mask = mask.copy()
    mask[excluded[low:high] - start] = False
    return mask


def _choose(
    selection: Selection,
    score: NDArray[np.float32],
    mask: NDArray[np.bool_],
    start: int,
    users: Users,
    seeds: Seeds,
    number: int,
) -> None:
    """Take the users of a slab who may be in the audience, with their nearest centroids: later they are gone."""
    places = selection.admit(score, mask)
    if places.size:
        selection.add(places + start, score[places], seeds.nearest(users.take(places), number))


def _audience(selection: Selection, cut: Cut) -> Audience:
    reach = Reach(selection.counts)
    rows, scores, centroids = selection.best()
    low, high = (0, len(rows)) if cut.threshold is not None else cut.ranks(reach.eligible)
    return Audience(rows[low:high], scores[low:high], centroids[low:high], reach.eligible, reach)
