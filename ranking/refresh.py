"""From clicks to what is served: dirty items clustered again, tables as of now, one new version."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lookalike.redis_link import StoreUnavailable
from lookalike.snapshots import catch_up
from ranking.apply import no_version
from ranking.errors import UserError
from ranking.exported.ranker import space_id
from ranking.refresh_centroids import CentroidTable
from ranking.refresh_clusters import Clusterer
from ranking.refresh_metrics import RefreshMetrics
from ranking.refresh_report import Refreshed
from ranking.refresh_seeds import SeedReader, Seen, cohorts_of, id_keys, look
from ranking.refresh_tables import LiveTables
from ranking.refresh_worker import ClusterWorker
from ranking.republish import republish_tables
from ranking.run import Run
from ranking.state import State, in_batches
from serving.layout import model_folder
from serving.pin import pinned
from serving.publish import version_content
from serving.retention import live_version, version_folders
from serving.verifier import Verifier

__all__ = ["PRODUCTION_SEEDS", "Refreshed", "Refresher"]

PRODUCTION_SEEDS = 100  # of the paper's authors: below it, no similarity
TABLE = ".refresh.npz"  # beside the versions: servers look at folders named by numbers only
BUDGET = 0.6  # of the interval, for clustering: the rest is for tables and publishing
FOLLOW = 0.5  # seconds between two looks at the log while no refresh runs
_log = logging.getLogger("ranking.refresh")


class Refresher:
    """Keeps the tables of a live model as of now: seeds from the click log, everything else from a dataset's tables.

    A context manager: entered, it holds a process that clusters and one that verifies. The similarity stays that of the
    run, `f(E_u, centroids(i, tick))`, with its `k` and models; the tick is the moment of the refresh. A user whom the
    tables lack is counted among an item's seeds and has no share of its centroids.

    Args:
        run: Run. What the live version was exported from.
        models: str or Path. The folder that holds a folder a model, each with numbered versions.
        store: SeedStore. It is brought up to the end of the log at each refresh.
        log: ClickLog.
        name: str. The model's name. Defaults to `"seedrank"`.
        data: str or Path or `None`. The dataset whose tables are read again where they changed. Defaults to the run's.
        min_seeds: int or `None`. Items with fewer have no similarity; not below the run's. Defaults to
            `PRODUCTION_SEEDS`, or the run's where that is larger.
        newest: int. Seeds of an item that are clustered, the newest by time. Defaults to `20_000`.
        warm_iterations: int. Lloyd's iterations from old centroids; from none they are those of training. Defaults to
            `2`.
        every: float, seconds. How often `run` refreshes. Defaults to `300.0`.
        cohort: str or `None`. A column of the users table: no users with one value of it weigh more than
            `max_cohort_share` of an item's seeds. Defaults to `None`: every user is his own cohort.
        max_cohort_share: float, in (0, 1]. Defaults to `0.1`.
        taken_in: int. Events that the store took in when it was opened: the first refresh tells them too. Defaults to
            `0`.

    Attributes:
        metrics: RefreshMetrics.
        stop: Event. Set, it ends the refresh that runs after the step in hand, and nothing is published.

    Raises:
        UserError: an argument is out of its range, or there is no version, or it is of another run.
    """

    def __init__(
        self,
        run: Run,
        models: str | Path,
        store: Any,
        log: Any,
        *,
        name: str = "seedrank",
        data: str | Path | None = None,
        min_seeds: int | None = None,
        newest: int = 20_000,
        warm_iterations: int = 2,
        every: float = 300.0,
        cohort: str | None = None,
        max_cohort_share: float = 0.1,
        taken_in: int = 0,
    ) -> None:
        lowest = run.schema.min_seeds
        min_seeds = max(PRODUCTION_SEEDS, lowest) if min_seeds is None else min_seeds
        if min_seeds < lowest:
            raise UserError(f"`min_seeds` should be the run's, {lowest}, or more. Received: min_seeds={min_seeds}.")
        for argument, value in (("newest", newest), ("warm_iterations", warm_iterations)):
            if value < 1:
                raise UserError(f"`{argument}` should be a positive integer. Received: {argument}={value}.")
        if newest < min_seeds:
            raise UserError(f"`newest` should be `min_seeds`, {min_seeds}, or more. Received: newest={newest}.")
        if not every > 0:
            raise UserError(f"`every` should be positive. Received: every={every}.")
        if not 0 < max_cohort_share <= 1:
            raise UserError(f"`max_cohort_share` should be in (0, 1]. Received: {max_cohort_share}.")
        self._trained, self._models, self._name, self._base = run, models, name, model_folder(models, name)
        self.store, self.log = store, log
        self.min_seeds, self.newest, self.warm_iterations, self.every = min_seeds, newest, warm_iterations, every
        self.cohort, self.max_cohort_share = cohort, max_cohort_share
        self.metrics = RefreshMetrics()
        self.worker = ClusterWorker()
        self._verifier = Verifier()
        self._space = space_id(run)
        self._live()
        self._tables = LiveTables(run, run.info["dataset"] if data is None else data)
        like = CentroidTable.of(run.state)
        self._table = CentroidTable.load(self._base / TABLE, self._space, like) or like
        self.stop = threading.Event()
        self._mark: int | None = None
        self._similar: pd.Index | None = None
        self._look_at = np.zeros(0, np.int64)  # items that may have new seeds without a change in the store
        self._transformed: tuple[np.ndarray, np.ndarray] | None = None  # of which vectors, and who is usable
        self._cohorts: tuple[Any, Any, np.ndarray] | None = None
        self._checked = False
        self._ahead = taken_in  # events that were taken in since the last refresh

    def __enter__(self) -> "Refresher":
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.worker)
            stack.enter_context(self._verifier)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, stop: threading.Event, after: Callable[[Refreshed | None], None] = lambda _: None) -> None:
        """Refreshes until told to stop; a failure is counted and logged, and what is served stays as it was.

        A refresh that is due while one runs is left out and counted. Between two of them clicks become seeds at once.

        Args:
            stop: Event. Becomes `stop` of the refresher.
            after: callable. Called with each refresh that came to an end, `None` for a failure. Defaults to nothing.
        """
        self.stop = stop
        due = time.monotonic()
        while not self._stopped_before(due):
            try:
                after(self.once())
            except Exception as error:  # whatever it is, the next round tries again
                level = (
                    logging.ERROR if isinstance(error, (ValueError, OSError, StoreUnavailable)) else logging.CRITICAL
                )
                _log.log(level, "not refreshed: %s", error, exc_info=level > logging.ERROR)
                after(None)
            over = int((time.monotonic() - due) // self.every)
            self.metrics.count("skipped_ticks_total", over)
            due += (over + 1) * self.every

    def _stopped_before(self, due: float) -> bool:
        """Follows the log until the next refresh is due; whether it was told to stop before."""
        while (left := due - time.monotonic()) > 0 and not self.stop.wait(min(left, FOLLOW)):
            with contextlib.suppress(Exception):  # the refresh meets it again, and counts it
                self._ahead += self.follow()
        return self.stop.is_set()

    def follow(self) -> int:
        """Takes in what the log gained; how many events. Safe beside another thread that does the same."""
        before = self.store.offset
        catch_up(self.store, self.log)
        return self.store.offset - before

    def once(self, now: int | None = None) -> Refreshed:
        """One refresh.

        Args:
            now: int, ms, or `None`. The moment it is as of; never before that of the live version. Defaults to the
                clock.

        Raises:
            UserError: the live version is of another run or space, a table cannot be read, or the log knows less than
                the run was trained on.
            ServingError: the new version was refused. What was clustered is kept for the next refresh.
        """
        done = Refreshed()
        reason = "log"
        try:
            with done.step("log"):
                done.events, self._ahead = self._ahead + self.follow(), 0
            if pinned(self._base) is not None:
                return self._paused(done)
            reason = "space"
            earliest = max(self._live(), int(self._table.at.max(initial=0)))  # time goes one way, whatever clocks say
            done.tick = max(int(time.time() * 1000) if now is None else now, earliest)
            reason = "tables"
            with done.step("tables"):
                state = self._state(done)
            reason = "seeds"
            with done.step("seeds"):
                order = self._plan(done, state)
            reason = "clusters"
            with done.step("clusters"):
                self._cluster(done, state, order)
            if self.stop.is_set():
                done.skipped = "stopped"
                return done
            reason = "publish"
            with done.step("publish"):
                self._publish(done, state)
        except Exception:
            self.metrics.failed(reason)
            raise
        finally:
            self.metrics.set(self._gauges(done), done.seconds)
        return done

    def _paused(self, done: Refreshed) -> Refreshed:
        done.skipped = "pinned"
        self.metrics.count("paused_total")
        return done

    def _live(self) -> int:
        """The watermark of the live version, which has to be of the run."""
        newest = live_version(self._base)
        if newest is None:
            raise no_version(self._base)
        folder = version_folders(self._base)[newest]
        content = version_content(folder)
        for what, mine, its in (
            ("embedding space", self._space, content.facts.get("embedding_space_id")),
            ("parameters", self._trained.info["parameters_hash"], content.hashes.get("parameters")),
        ):
            if mine != its:
                raise UserError(
                    f"the {what} of the run {self._trained.path} should be that of {folder}, {its!r}: centroids of one "
                    "are never scored with users of another. Refresh with the run that was exported, or make "
                    f"this one live (seedrank export, seedrank publish). Received: {mine!r}."
                )
        return int(content.facts.get("seed_watermark", 0))

    def _state(self, done: Refreshed) -> State:
        """Users, items and statistics as of the tick, and the embeddings that seeds are clustered in."""
        state = self._tables.at(done.tick)
        done.embedded, done.new_users = self._tables.embedded, self._tables.new_users
        new = state.item_ids[~state.item_ids.isin(self._table.item_ids)]
        done.new_items = len(new)
        self._look_at = np.append(self._look_at, id_keys(new))
        self._table = self._table.aligned(state.item_ids)
        if self._transformed is None or self._transformed[0] is not state.user_vectors:
            lookalike = self._trained.lookalike
            vectors = state.user_vectors
            found = in_batches(lambda batch: lookalike.transform(batch["user"]), {"user": vectors})
            self.worker.embeddings(*found.shape)[:] = found
            self._transformed = vectors, np.isfinite(found).all(axis=1)[:-1]
        return state

    def _plan(self, done: Refreshed, state: State) -> np.ndarray:
        """Items to cluster, the most urgent first."""
        table, store = self._table, self.store
        keys = id_keys(state.item_ids)
        mark = store.mark()
        changed = np.ones(len(keys), bool)
        if self._mark is not None:
            changed = np.isin(keys, np.append(store.changed_since(self._mark), self._look_at))
        seen = look(store, keys, table.at, changed, done.tick)
        self._refuse_lost_history(seen)
        if done.new_users:  # seeds whom nobody knew may be known now
            seen.fresh[table.unknown > 0] += 1
        table.seeds[:] = seen.seeds
        self._look_at, self._mark = keys[seen.early], mark
        done.unknown_items = len(store.items()) - int((store.seed_counts(keys) > 0).sum())
        order, done.dirty = table.order(seen.fresh, self.min_seeds, self._tables.moved_at)
        return order

    def _refuse_lost_history(self, seen: Seen) -> None:
        """A log that was begun after the training would take the similarity from what the run knows."""
        if self._checked:
            return
        place = self._table.item_ids.get_indexer(self._trained.state.item_ids)
        known = np.minimum(self._trained.state.seed_counts[:-1], self.store.effective_latest)[place >= 0]
        held = np.minimum(seen.seeds[place[place >= 0]], known).sum()
        if held < 0.5 * known.sum():
            raise UserError(
                f"{self.log.folder} should know the seeds that the run was trained on: it holds {int(held):,} of "
                f"{int(known.sum()):,}. `seedrank refresh --backfill` appends those of the dataset's tables first."
            )
        self._checked = True

    def _cluster(self, done: Refreshed, state: State, order: np.ndarray) -> None:
        """Clusters in that order until the time is used up."""
        if self._transformed is None:
            return
        reader = SeedReader(
            self.store,
            state.user_ids,
            self._transformed[1],
            newest=self.newest,
            cohorts=self._cohorts_of(state),
            max_share=self.max_cohort_share,
        )
        clusterer = Clusterer(self.worker, reader, min_seeds=self.min_seeds, warm_iterations=self.warm_iterations)
        clusterer.run(self._table, order, done, self.stop, seconds=BUDGET * self.every)
        for reason, count in done.failures.items():
            self.metrics.failed(f"worker {reason}", count)

    def _cohorts_of(self, state: State) -> np.ndarray | None:
        """Each user's cohort; read again where the tables were."""
        if self.cohort is None:
            return None
        dataset = self._tables.dataset
        if self._cohorts is None or self._cohorts[0] is not dataset or self._cohorts[1] is not state.user_ids:
            self._cohorts = dataset, state.user_ids, cohorts_of(dataset, self.cohort, state.user_ids)
        return self._cohorts[2]

    def _publish(self, done: Refreshed, state: State) -> None:
        found = self._table.served(state, self.min_seeds)
        folder = republish_tables(self._models, self._trained, found, name=self._name, verifier=self._verifier)
        done.version = int(folder.name)
        self.metrics.succeeded()
        similar = self._table.item_ids[self._table.similar(self.min_seeds)]
        if self._similar is not None:
            self.metrics.count("new_similar_items_total", int((~similar.isin(self._similar)).sum()))
        self._similar = similar
        try:
            self._table.save(self._base / TABLE, self._space)
        except OSError as error:  # published it is: a restart clusters more than it had to
            _log.warning("%s was not written: %s", self._base / TABLE, error)

    def _gauges(self, done: Refreshed) -> dict[str, float]:
        names = ("dirty", "waiting", "dominated")
        found: dict[str, float] = {f"{name}_items": getattr(done, name) for name in names}
        found |= {"unknown_seeds": done.unknown_seeds, "unknown_items": done.unknown_items}
        found["oldest_waiting_rounds"] = int(self._table.waited.max(initial=0))
        if done.version is not None:
            found["similar_items"] = int(self._table.similar(self.min_seeds).sum())
            found["watermark_seconds"] = done.tick / 1000
        return found
