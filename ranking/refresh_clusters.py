"""Items clustered again in a given order, in another process, until the time is used up."""

import logging
import threading
import time

import numpy as np

from ranking.refresh_centroids import CentroidTable, chunks
from ranking.refresh_report import Refreshed
from ranking.refresh_seeds import SeedReader, id_keys
from ranking.refresh_worker import ClusterWorker, WorkerFailed
from ranking.state import LLOYD_ITERATIONS

__all__ = ["Clusterer"]

FAILURES = 3  # of the worker in one refresh: then it is the machine rather than an item
_log = logging.getLogger("ranking.refresh")


class Clusterer:
    """Clusters items of a table by their seeds; where that fails, an item keeps the centroids it had.

    Args:
        worker: ClusterWorker.
        reader: SeedReader.
        min_seeds: int. An item with fewer seeds that have an embedding gets no centroids.
        warm_iterations: int. Lloyd's iterations of an item that has centroids; the others get those of training.
    """

    def __init__(self, worker: ClusterWorker, reader: SeedReader, *, min_seeds: int, warm_iterations: int) -> None:
        self._worker, self._reader = worker, reader
        self._min_seeds, self._warm_iterations = min_seeds, warm_iterations

    def run(
        self, table: CentroidTable, order: np.ndarray, done: Refreshed, stop: threading.Event, *, seconds: float
    ) -> None:
        """Clusters in order; what is left over waits, and comes first next time.

        Args:
            table: CentroidTable. Changed in place.
            order: int64 `[n]`. Items.
            done: Refreshed. What was done is added to it.
            stop: Event. Set, it ends the work after the call in hand.
            seconds: float. After which no other call begins.
        """
        until = time.monotonic() + seconds
        left = order
        for items in chunks(order, np.minimum(table.seeds, self._reader.newest), table.failed > 0):
            if stop.is_set() or time.monotonic() > until or sum(done.failures.values()) >= FAILURES:
                break
            left = left[len(items) :]
            try:
                self._chunk(table, items, done)
            except WorkerFailed as error:
                _log.error("%d items keep their centroids: %s", len(items), error)
                table.failed[items] += 1
                table.waited[items] += 1
                done.failures[error.reason] = done.failures.get(error.reason, 0) + 1
        table.waited[left] += 1
        done.waiting = int((table.waited > 0).sum())

    def _chunk(self, table: CentroidTable, items: np.ndarray, done: Refreshed) -> None:
        found = self._reader.read(id_keys(table.item_ids[items]), done.tick)
        sizes = np.diff(found.offsets)
        # Strangers that fill all places tell nothing of those whom they push out.
        drowned = (sizes < self._min_seeds) & (sizes + found.unknown >= self._reader.newest)
        kept = found.dominated | drowned
        live = table.live()[items]
        able = (sizes >= self._min_seeds) & ~kept
        for warm in (True, False):
            chosen = np.flatnonzero(able & (live == warm))
            if not len(chosen):
                continue
            inside = np.repeat(np.isin(np.arange(len(items)), chosen), sizes)
            centroids, counts, _ = self._worker.cluster(
                found.rows[inside],
                np.append(0, np.cumsum(sizes[chosen])),
                table.counts.shape[1],
                iterations=self._warm_iterations if warm else LLOYD_ITERATIONS,
                initial=table.centroids[items[chosen]] if warm else None,
                cohort=None if found.cohort is None else found.cohort[inside],
                max_share=self._reader.max_share,
            )
            table.centroids[items[chosen]], table.counts[items[chosen]] = centroids, counts
            done.warm, done.cold = done.warm + warm * len(chosen), done.cold + (not warm) * len(chosen)
        table.embedded[items[~kept]] = sizes[~kept]
        table.unknown[items] = found.unknown
        table.clustered[items], table.at[items] = table.seeds[items], done.tick
        table.waited[items] = table.failed[items] = 0
        done.unknown_seeds += int(found.unknown.sum())
        done.dominated += int(kept.sum())
