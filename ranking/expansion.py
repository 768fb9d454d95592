"""Audience expansion: lists of users in, the users most like them out, and how far to trust it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet  # noqa: F401  (pa.parquet is an attribute only once it has been imported)
from numpy.typing import NDArray

from lookalike.audience import Audience, Cut, SeedList, expand
from lookalike.scorer import Scorer, seed_centroids
from ranking.atomic import atomic_file, refuse_file
from ranking.audience_profile import FLOOR, Segments, floored
from ranking.batches import Progress, silent
from ranking.errors import UserError
from ranking.expansion_report import list_report, overlaps, tested
from ranking.id_matching import Matcher
from ranking.population import ParquetPopulation, Population, RunPopulation, forgotten_users
from ranking.seed_lists import Lists, Reader, SeedUsers, refuse_unusable, seed_users
from ranking.survey import Survey, survey
from ranking.where import Where, parse_where

__all__ = ["Expansion", "Members", "expand_seeds"]


@dataclass(frozen=True)
class Members:
    """One audience, the best first.

    Args:
        name: str. Of the list of seeds.
        user_ids: int64 or object array of str `[n]`.
        similarity: float32 `[n]`. With negatives: half the difference to the similarity with them.
        centroid: int32 `[n]`. Nearest centroid of the seeds.
    """

    name: str
    user_ids: NDArray[Any]
    similarity: NDArray[np.float32]
    centroid: NDArray[np.int32]

    def table(self) -> pa.Table:
        """Columns list, user_id, rank (from 1), similarity, centroid."""
        n = len(self.user_ids)
        kind = pa.int64() if self.user_ids.dtype.kind == "i" else pa.string()
        columns = {
            "list": pa.array([self.name] * n, pa.string()),
            "user_id": pa.array(self.user_ids, kind),
            "rank": pa.array(np.arange(1, n + 1)),
            "similarity": pa.array(self.similarity, pa.float32()),
            "centroid": pa.array(self.centroid, pa.int32()),
        }
        return pa.table(columns)


@dataclass(frozen=True)
class Expansion:
    """Audiences, and what was found on the way to them.

    Args:
        audiences: tuple of `Members`, one a list.
        found: dict. The report: matches, reach, hold-out, profiles, overlaps; plain JSON.
    """

    audiences: tuple[Members, ...]
    found: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return self.found

    def frame(self) -> pd.DataFrame:
        """All audiences: list, user_id, rank, similarity, centroid."""
        return pa.concat_tables([members.table() for members in self.audiences]).to_pandas()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the audiences as Parquet, whole or not at all.

        Args:
            path: str or Path.
            overwrite: bool. Whether a file that exists is replaced. Defaults to `False`.

        Raises:
            UserError: the file exists.
        """
        refuse_file(Path(path), overwrite)
        tables = [members.table() for members in self.audiences]
        with atomic_file(path) as temporary, pa.parquet.ParquetWriter(temporary, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        return Path(path)


def expand_seeds(
    run: Any,
    seeds: Lists,
    *,
    cut: Cut,
    negatives: str | Path | Iterable[Any] | None = None,
    exclude: Lists = (),
    where: str | None = None,
    hash: Literal["sha256"] | None = None,
    min_seeds: int = 100,
    together: bool = False,
    drop_bad: bool = False,
    users: str | Path | None = None,
    check: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Expansion:
    """Finds the users most like those of some lists.

    The population passes twice, in batches: once to find the ids, once to be scored. Seeds, negatives, users on a list
    of `exclude` and forgotten users are in no audience that they must not be in: seeds and negatives not in that of
    their list, the others in none. A user who is both a seed and a negative is dropped from both.

    Args:
        run: Run. What `load_run` gives.
        seeds: path, sequence of paths, or dict of name -> path or ids. One audience each.
        cut: `lookalike.audience.Cut`. How large the audiences are.
        negatives: path or ids. Users whom the audience should not resemble. Optional.
        exclude: as `seeds`. Users to leave out; ids that nobody has are counted.
        where: str. Conditions on attributes that all members meet, as `parse_where` reads. Optional.
        hash: str. `"sha256"` where the lists hold digests of normalised ids. Optional.
        min_seeds: int. A list with fewer matched users is refused. Defaults to 100.
        together: bool. Whether the lists are joined to one. Defaults to `False`.
        drop_bad: bool. Whether duplicate and malformed ids are left out and counted. Defaults to `False`: refused.
        users: path. A Parquet file of users (`user_id`, `vector`, attributes) instead of those of the run. Optional.
        check: bool. Whether the hold-out is done. Defaults to `True`.
        seed: int. Random seed of the clustering, the sample and the hold-out. Defaults to `0`.
        progress: callable `(stage, done, total)`.

    Returns:
        Expansion.

    Raises:
        UserError: a list, a condition or a size that cannot be used.

    Example:
        >>> expansion = expand_seeds(load_run("run"), "buyers.csv", cut=Cut(percent=1))
        >>> expansion.save("audience.parquet")
    """
    started = time.perf_counter()
    if hash not in (None, "sha256"):
        raise UserError(f"`hash` should be sha256. Received: {hash!r}.")
    if min_seeds < 1:
        raise UserError(f"`min_seeds` should be 1 or more. Received: {min_seeds}.")
    population = _population(run, users)
    condition = _condition(where, population)
    reader = Reader(population, hash == "sha256", drop_bad)
    lists = reader.lists(seeds, "seeds")
    against = None if negatives is None else reader.read("negatives", negatives)
    unwanted = reader.lists(exclude, "exclude", least=0, repeats=True)
    wanted, left_out = Matcher([*lists, *([] if against is None else [against])]), Matcher(unwanted)
    surveyed = survey(
        population, wanted, left_out, where=condition, forgotten=forgotten_users(run), seed=seed, progress=progress
    )
    matched = seed_users(wanted, lists, against, together=together, drop_bad=drop_bad)
    _refuse_few(surveyed, condition)
    for entry in matched:
        refuse_unusable(entry, surveyed.eligible, min_seeds=min_seeds, size=cut.size)
    made = _Making(run, population, surveyed, cut, seed)
    audiences, seed_counts = made.audiences(matched, progress)
    members, reports = made.members(matched, audiences, seed_counts, check, progress)
    every_seed = np.unique(np.concatenate([entry.seeds.rows for entry in matched]))
    found = {
        "run": "" if run.path is None else str(run.path),
        "population": surveyed.population,
        "eligible": int(surveyed.eligible.sum()),
        "where": where,
        "cut": _cut(cut),
        "min_seeds": min_seeds,
        "excluded": {
            "seeds": int(surveyed.eligible[every_seed].sum()),
            "lists": surveyed.listed,
            "where": floored(surveyed.outside) if surveyed.outside else 0,
            "unknown": sum(left_out.unknown(ids) for ids in unwanted),
        },
        "lists": reports,
        "overlaps": overlaps([entry.name for entry in matched], audiences),
        "seconds": time.perf_counter() - started,
    }
    return Expansion(tuple(members), found)


def _population(run: Any, users: str | Path | None) -> Population:
    if users is None:
        return RunPopulation(run)
    return ParquetPopulation(users, run.state.user_vectors.shape[1], run.schema.side("user"))


def _condition(where: str | None, population: Population) -> Where | None:
    if where is None:
        return None
    condition = parse_where(where)
    condition.check(population.features)
    return condition


def _refuse_few(surveyed: Survey, condition: Where | None) -> None:
    """A filter that names a handful of people would tell of them what no table does."""
    left = int(surveyed.eligible.sum())
    if condition is not None and left < FLOOR:
        raise UserError(f"`where` should leave at least {FLOOR} users to choose from. Received: {condition.text!r}.")
    if not left:
        raise UserError("`exclude` should leave somebody to choose from. Received: lists of everyone.")


def _cut(cut: Cut) -> dict[str, Any]:
    for kind in ("size", "percent", "threshold"):
        if (value := getattr(cut, kind)) is not None:
            return {"kind": kind, "value": value}
    return {"kind": "band", "value": list(cut.band or ())}


@dataclass(frozen=True)
class _Making:
    """From matched lists to audiences and what is told of them."""

    run: Any
    population: Population
    surveyed: Survey
    cut: Cut
    seed: int

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer.of(self.run.lookalike)

    @property
    def k(self) -> int:
        return self.run.state.centroids.shape[1]  # what the run serves with

    def audiences(
        self, matched: Sequence[SeedUsers], progress: Progress
    ) -> tuple[list[Audience], list[NDArray[np.int64]]]:
        """All audiences in one pass, and each list's seeds by centroid."""
        given, counts = [], []
        for entry in matched:
            centroids, sizes = self._centroids(entry.seeds.rows, entry.seeds.weights)
            negatives = self._centroids(entry.negatives, None) if len(entry.negatives) else None
            given.append(SeedList(centroids, sizes, entry.known, negatives))
            counts.append(sizes)
        audiences = expand(
            self.scorer,
            self.population.vectors(),
            given,
            self.cut,
            total=self.population.size,
            eligible=self.surveyed.eligible,
            progress=progress,
        )
        if not any(len(audience.rows) for audience in audiences):
            kind, value = _cut(self.cut).values()
            highest = max(audience.reach.threshold(1) for audience in audiences)
            raise UserError(
                f"`{kind}` should leave somebody in an audience; the highest similarity is {highest:.4f}. "
                f"Received: {value}."
            )
        return audiences, counts

    def _centroids(self, rows: NDArray[np.int64], weights: NDArray[np.float32] | None) -> tuple[Any, Any]:
        vectors, _ = self.surveyed.of(rows)
        return seed_centroids(self.scorer, vectors, k=self.k, weights=weights, seed=self.seed)

    def members(
        self,
        matched: Sequence[SeedUsers],
        audiences: Sequence[Audience],
        seed_counts: Sequence[NDArray[np.int64]],
        check: bool,
        progress: Progress,
    ) -> tuple[list[Members], list[dict[str, Any]]]:
        """Who the audiences are, and what is told of each."""
        segments = Segments(self.surveyed.sample_attributes, self.population.features)
        everyone = np.unique(np.concatenate([audience.rows for audience in audiences]))
        ids, attributes = self.population.look_up(everyone)
        members, reports = [], []
        for number, (entry, audience, counts) in enumerate(zip(matched, audiences, seed_counts, strict=True), start=1):
            place = np.searchsorted(everyone, audience.rows)
            members.append(Members(entry.name, ids[place], audience.similarity, audience.centroid))
            report = list_report(entry, audience, counts, attributes.iloc[place], segments, self.surveyed)
            report["holdout"] = (
                tested(self.scorer, entry, self.surveyed, k=self.k, seed=self.seed)
                if check
                else {"refused": "it was not asked for"}
            )
            reports.append(report)
            progress("hold-out and profiles", number, len(matched))
        return members, reports
