"""The tables of a dataset, read again where they changed, as the state of any later moment; all but the seeds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranking.data.tables import TABLES, Dataset
from ranking.errors import UserError
from ranking.features import Arrays, gather
from ranking.forget_run import refuse_other
from ranking.population import forgotten_users
from ranking.run import Run
from ranking.seeds_file import fingerprint
from ranking.state import State, StateBuilder, in_batches
from ranking.statistics import StatisticTable
from ranking.timeline import Timeline

__all__ = ["LiveTables"]

NEVER = np.iinfo(np.int64).max


class _LiveDataset(Dataset):
    """A dataset whose files may be replaced: a table whose file is another one is read again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._marks = {name: self._mark(name) for name in TABLES}

    def _mark(self, name: str) -> tuple[Any, ...] | None:
        path = self.file(name)
        if path is None:
            return None
        status = path.stat()
        return path, status.st_ino, status.st_mtime_ns, status.st_size

    def again(self) -> "_LiveDataset | None":
        """The dataset as it is now, or `None` where no file changed."""
        now = _LiveDataset(self.path)  # marked before anything is read: what changes meanwhile is seen next time
        if now._marks == self._marks and now.schema == self.schema:
            return None
        if now.schema == self.schema:
            now._cache = {name: table for name, table in self._cache.items() if now._marks[name] == self._marks[name]}
        return now


class _TableBuilder(StateBuilder):
    """A state's parts one by one, so that who knows some of them makes the others only."""

    def inputs(self, tick: int) -> Arrays:
        """What the user representation sees of everybody, nobody's row last."""
        return {**self._profile, **self._behaviors(self.lookalike_encoder, tick)}

    def statistics(self, tick: int) -> dict[str, StatisticTable]:
        """Every statistic by events strictly before the tick."""
        return {name: counter.table(tick) for name, counter in self._counters.items()}

    def without_seeds(self, tick: int, vectors: np.ndarray) -> State:
        """The state but for centroids and seed counts, which are empty."""
        rows = len(self.timeline.item_ids) + 1
        return State(
            tick=tick,
            user_ids=self.timeline.user_ids,
            item_ids=self.timeline.item_ids,
            users={**self._static["user"], **self._behaviors(self.encoder, tick)},
            items=self._static["item"],
            user_vectors=vectors,
            centroids=np.zeros((rows, 0, 0), np.float32),
            centroid_counts=np.zeros((rows, 0), np.int64),
            seed_counts=np.zeros(rows, np.int64),
            prices=self.prices,
            statistics=self.statistics(tick),
        )


class LiveTables:
    """What a run's models make of a dataset as of now, with as little work as what changed asks for.

    Users whose profile and behaviours are as they were keep their vectors. Where no file changed and nothing in them
    has happened since, everything stays.

    Args:
        run: Run. Models and vocabularies.
        data: str or Path. The dataset folder; each of its files should be replaced by renaming.

    Attributes:
        embedded: int. Users whose vectors the last call of `at` made; new_users: int, those it met first.
        moved_at: int. The last tick at which a user was found to have another vector than before, or than in the run.

    Raises:
        UserError: the dataset has ordinal times, declares other features than the run's, or cannot be read.
    """

    def __init__(self, run: Run, data: str | Path) -> None:
        if run.schema.time == "ordinal":
            raise UserError(f"{run.path}: a refresh needs times since the epoch. Received: ordinal times.")
        self.run = run
        self.embedded = self.new_users = self.moved_at = 0
        self._dataset = _LiveDataset(Path(data))
        self._builder: _TableBuilder | None = None
        self._inputs: Arrays = {}
        self._ids = pd.Index([])
        self._vectors = np.zeros((0, 0), np.float32)
        self._state: State | None = None
        self._met = run.state.user_ids
        self._forgotten = forgotten_users(run)
        self._next = 0  # the first moment after the last tick at which something happens

    @property
    def dataset(self) -> Dataset:
        """As it was last read."""
        return self._dataset

    def at(self, tick: int) -> State:
        """The state of a tick, without seeds: events, users and items strictly before it; nobody who was forgotten.

        Raises:
            UserError: a table cannot be read; the next call tries again.
        """
        changed = self._read()
        builder, state = self._builder, self._state
        if builder is None:
            raise UserError(f"{self._dataset.path} was never read.")
        self.embedded = self.new_users = 0
        if state is not None and not changed and state.tick <= tick <= self._next:
            self._state = dataclasses.replace(state, tick=tick)
            return self._state
        timeline = builder.timeline
        vectors = self._user_vectors(builder, tick)
        state = builder.without_seeds(tick, vectors)
        users = timeline.exists("user", tick)
        if self._forgotten:  # as the run remembers them, whatever the tables say
            users &= np.array([fingerprint(user) not in self._forgotten for user in timeline.user_ids], bool)
        self._state = state.only(users, timeline.exists("item", tick))
        self.new_users = int((~self._state.user_ids.isin(self._met)).sum())
        self._met = self._state.user_ids
        self._next = _next_event(timeline, tick)
        return self._state

    def _read(self) -> bool:
        """Reads what changed; whether anything did."""
        found = self._dataset if self._builder is None else self._dataset.again()
        if found is None:
            return False
        refuse_other(self.run, found)
        run = self.run
        self._builder = _TableBuilder(
            Timeline(found),
            run.encoder,
            lookalike_encoder=run.lookalike_encoder,
            representation=self._representation,
            lookalike=run.lookalike,
        )
        self._dataset = found  # only now: a table that cannot be read is tried again
        return True

    @property
    def _representation(self) -> Callable[[Arrays], Any]:
        if not hasattr(self, "_graph"):
            from ranking.batches import tf_function

            self._graph = tf_function(self.run.representation)  # one graph, however often the tables are read
        return self._graph

    def _user_vectors(self, builder: _TableBuilder, tick: int) -> np.ndarray:
        """E_u of everybody and of nobody; of those who are as they were, as it was."""
        names = [tensor.name for tensor in self.run.representation.inputs]
        found = builder.inputs(tick)
        inputs = {name: found[name] for name in names}
        ids = builder.timeline.user_ids
        old = np.append(self._ids.get_indexer(ids) if len(self._ids) else np.full(len(ids), -1), -1)
        same = old >= 0
        for name, values in inputs.items():
            if same.any():
                same[same] = _equal(values[same], self._inputs[name][old[same]])
        vectors = np.zeros((len(ids) + 1, self.run.state.user_vectors.shape[1]), np.float32)
        vectors[same] = self._vectors[old[same]] if same.any() else 0
        anew = np.flatnonzero(~same)
        vectors[anew] = in_batches(self._representation, gather(inputs, anew))
        self.embedded = len(anew) - 1  # but for nobody
        before, was = (self._ids, self._vectors) if len(self._ids) else (self._met, self.run.state.user_vectors)
        place = np.append(before.get_indexer(ids), -1)[anew]
        if (np.abs(vectors[anew] - was[place])[place >= 0] > 1e-5).any():
            self.moved_at = tick
        self._ids, self._inputs, self._vectors = ids, inputs, vectors
        return vectors


def _equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Which rows agree; a multi-valued feature may have got wider, and two missing numbers are alike."""
    if one.ndim == 2 and one.shape[1] != other.shape[1]:
        width = max(one.shape[1], other.shape[1])
        one, other = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (one, other))
    alike = one == other
    if one.dtype.kind == "f":
        alike |= np.isnan(one) & np.isnan(other)
    return alike if one.ndim == 1 else alike.all(axis=1)


def _next_event(timeline: Timeline, tick: int) -> int:
    """The first moment from a tick on at which anything in the tables happens."""
    times = [timeline.time, *(timeline.events(label)[1] for label in timeline.schema.funnel)]
    times += [events.time for events in timeline.behaviors.values()]
    for side in ("user", "item"):
        if "born" in timeline.static(side):
            times.append(timeline.static(side)["born"].fillna(-1).to_numpy(np.int64))
    return min((int(later.min()) for later in (found[found >= tick] for found in times) if len(later)), default=NEVER)
