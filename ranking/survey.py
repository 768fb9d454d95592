"""One pass over a population: who is meant, who may be chosen, and a sample of everybody."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ranking.batches import Progress, silent
from ranking.id_matching import Matcher
from ranking.population import Chunk, Population
from ranking.seeds_file import fingerprint
from ranking.where import Where

__all__ = ["Survey", "survey"]

SAMPLE = 200_000  # users that shares and the hold-out are measured on; all of them where there are no more


@dataclass(frozen=True)
class Survey:
    """What one pass over a population found.

    Args:
        eligible: bool `[size]`. Whom an audience may hold: who meets the filter, is on no list to leave out, and is
            not forgotten.
        population: int. Users, without the forgotten.
        listed: int. Users on a list to leave out.
        outside: int. Others who do not meet the filter.
        rows: int64 `[n]`, ascending. The users whom a list of seeds or negatives may mean.
        vectors: float32 `[n, m]`. Theirs.
        attributes: pandas.DataFrame `[n]`. Theirs.
        sample_rows: int64 `[s]`, ascending. A uniform sample of the population.
        sample_vectors: float32 `[s, m]`.
        sample_attributes: pandas.DataFrame `[s]`.
    """

    eligible: NDArray[np.bool_]
    population: int
    listed: int
    outside: int
    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]
    attributes: pd.DataFrame
    sample_rows: NDArray[np.int64]
    sample_vectors: NDArray[np.float32]
    sample_attributes: pd.DataFrame

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], pd.DataFrame]:
        """Vectors and attributes of seeds or negatives, in the order of `rows`."""
        at = np.searchsorted(self.rows, rows)
        return self.vectors[at], self.attributes.iloc[at].reset_index(drop=True)


class _Kept:
    """Some rows of each chunk, put together at the end."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.int64]] = []
        self.vectors: list[NDArray[np.float32]] = []
        self.attributes: list[pd.DataFrame] = []

    def add(self, chunk: Chunk, at: NDArray[np.int64]) -> None:
        self.rows.append(chunk.start + at)
        self.vectors.append(chunk.vectors[at])
        self.attributes.append(chunk.attributes.iloc[at])

    def all(self) -> tuple[NDArray[np.int64], NDArray[np.float32], pd.DataFrame]:
        joined = pd.concat(self.attributes, ignore_index=True)
        return np.concatenate(self.rows), np.concatenate(self.vectors), joined


def survey(
    population: Population,
    wanted: Matcher,
    unwanted: Matcher,
    *,
    where: Where | None,
    forgotten: frozenset[str],
    seed: int = 0,
    progress: Progress = silent,
) -> Survey:
    """Passes over a population once.

    Forgotten users are shown to no matcher and enter no count: as if they were not there.

    Args:
        population: `Population`.
        wanted: `Matcher` of seeds and negatives.
        unwanted: `Matcher` of the lists to leave out. All whom such an id may mean are left out.
        where: `Where` or `None`. The filter, checked before.
        forgotten: set of str. Fingerprints.
        seed: int. Random seed of the sample. Defaults to `0`.
        progress: callable `(stage, done, total)`.
    """
    size = population.size
    eligible = np.zeros(size, bool)
    chosen = np.ones(size, bool)
    if size > SAMPLE:
        chosen[:] = False
        chosen[np.random.default_rng(seed).choice(size, SAMPLE, replace=False, shuffle=False)] = True
    seeds, sample = _Kept(), _Kept()
    left, listed, outside = 0, 0, 0
    for chunk in population.chunks():
        rows, part = chunk.rows, slice(chunk.start, chunk.start + len(chunk.ids))
        known = np.ones(len(rows), bool)
        if forgotten:
            known[:] = [fingerprint(user) not in forgotten for user in chunk.ids]
        at = np.flatnonzero(known)
        seeds.add(chunk, at[wanted.see(rows[at], chunk.ids[at])])
        out = np.zeros(len(rows), bool)
        out[at[unwanted.see(rows[at], chunk.ids[at])]] = True
        meets = np.ones(len(rows), bool) if where is None else where.mask(chunk.attributes, population.features)
        eligible[part] = known & ~out & meets
        left, listed, outside = left + len(at), listed + int(out.sum()), outside + int((known & ~out & ~meets).sum())
        sample.add(chunk, np.flatnonzero(known & chosen[part]))
        progress("reading users", part.stop, size)
    return Survey(eligible, left, listed, outside, *seeds.all(), *sample.all())
