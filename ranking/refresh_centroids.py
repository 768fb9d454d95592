"""The centroids of every item from one refresh to the next: what is known of each, and who is clustered again first."""

import dataclasses
import logging
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from ranking.atomic import atomic_file
from ranking.exported.lookup import raw_ids
from ranking.state import State

__all__ = ["CentroidTable", "chunks"]

CHUNK_SEEDS, CHUNK_ITEMS = 1 << 18, 1024  # of one call of the worker: about a second
_log = logging.getLogger("ranking.refresh")


@dataclasses.dataclass
class CentroidTable:
    """Centroids and what they were made of, item by item; arrays are changed in place.

    Args:
        item_ids: pandas.Index.
        centroids: float32 `[items, k, h]`; counts: int64 `[items, k]`, 0 where there is none.
        seeds: int64 `[items]`. Seeds as of the last refresh.
        clustered: int64 `[items]`. Seeds when it was clustered.
        embedded: int64 `[items]`. Of those that were looked at then, how many have an embedding; unknown: how many not.
        at: int64 `[items]`, ms. The tick that it was clustered at.
        waited: int64 `[items]`. Refreshes since it should have been.
        failed: int64 `[items]`. Calls in a row that came to nothing.
    """

    item_ids: pd.Index
    centroids: np.ndarray
    counts: np.ndarray
    seeds: np.ndarray
    clustered: np.ndarray
    embedded: np.ndarray
    unknown: np.ndarray
    at: np.ndarray
    waited: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, state: State) -> "CentroidTable":
        """What a state knows."""
        seeds = state.seed_counts[:-1].astype(np.int64)
        nothing = np.zeros(len(seeds), np.int64)
        return cls(
            item_ids=state.item_ids,
            centroids=state.centroids[:-1].copy(),
            counts=state.centroid_counts[:-1].astype(np.int64),
            seeds=seeds,
            clustered=seeds.copy(),
            embedded=seeds.copy(),
            unknown=nothing.copy(),
            at=np.where((state.centroid_counts[:-1] > 0).any(axis=1), state.tick, 0),
            waited=nothing.copy(),
            failed=nothing.copy(),
        )

    def aligned(self, item_ids: pd.Index) -> "CentroidTable":
        """The same table over other items: the new ones have nothing."""
        if item_ids.equals(self.item_ids):
            return self
        place = self.item_ids.get_indexer(item_ids)
        old = np.flatnonzero(place >= 0)
        found = {}
        for name, values in self._arrays().items():
            found[name] = np.zeros((len(item_ids), *values.shape[1:]), values.dtype)
            found[name][old] = values[place[old]]
        return CentroidTable(item_ids, **found)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "item_ids"}

    def live(self) -> np.ndarray:
        """Which items have centroids: bool `[items]`."""
        return np.any(self.counts > 0, axis=1)

    def similar(self, min_seeds: int) -> np.ndarray:
        """Which items have a similarity: bool `[items]`."""
        return (self.seeds >= min_seeds) & (self.embedded >= min_seeds) & self.live()

    def served(self, state: State, min_seeds: int) -> State:
        """A state with the seed counts of all items of the table, and the centroids of those that have a similarity."""
        has = self.similar(min_seeds)
        centroids = np.zeros((len(has) + 1, *self.centroids.shape[1:]), np.float32)  # the last row is nobody's
        counts = np.zeros((len(has) + 1, self.counts.shape[1]), np.int64)
        centroids[:-1][has], counts[:-1][has] = self.centroids[has], self.counts[has]
        seeds = np.append(self.seeds, 0)
        return dataclasses.replace(state, centroids=centroids, centroid_counts=counts, seed_counts=seeds)

    def order(self, fresh: np.ndarray, min_seeds: int, moved_at: int) -> tuple[np.ndarray, int]:
        """Items to cluster, the most urgent first, and how many of them are dirty.

        First those that waited, the longest first. Then the dirty ones, with new seeds or other seeds than when they
        were clustered: by `share of new seeds * log(1 + seeds)`, so that an item without centroids comes before one
        that gained little. Last those whose seeds are the same and whose seeds' embeddings moved since, the oldest
        first. An item whose clustering failed comes behind all others, so that it never holds them up.

        Args:
            fresh: int64 `[items]`. New seeds since each was clustered, at least.
            min_seeds: int. Items below it have no centroids.
            moved_at: int, ms. The last tick at which an embedding changed.
        """
        enough = self.seeds >= min_seeds
        grown = np.maximum(self.seeds - self.clustered, fresh)
        dirty = enough & ((grown > 0) | (self.seeds != self.clustered) | ~self._known() | (self.waited > 0))
        moved = enough & ~dirty & (self.at < moved_at)
        share = np.where(self._known(), np.maximum(grown, 0) / np.maximum(self.seeds, 1), 1.0)
        urgency = np.minimum(share, 1.0) * np.log1p(self.seeds)
        chosen = np.flatnonzero(dirty | moved)
        keys = (self.at, -urgency, -self.waited, moved, self.failed > 0)  # the last is the first to count
        by = np.lexsort([key[chosen] for key in keys])
        return chosen[by], int(dirty.sum())

    def _known(self) -> np.ndarray:
        """Which were clustered ever, to some end or none."""
        return self.live() | (self.at > 0)

    def save(self, path: Path, space: int) -> None:
        """Writes the table beside the versions it is served in; `space` is the embedding space."""
        ids = raw_ids(self.item_ids)
        ids = ids if ids.dtype.kind == "i" else ids.astype(np.str_)
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, space=np.int64(space), item_ids=ids, **self._arrays())

    @classmethod
    def load(cls, path: Path, space: int, like: "CentroidTable") -> "CentroidTable | None":
        """What `save` wrote; `None` where there is none, of another space or shape, or it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as found:
                ids = found["item_ids"]
                arrays = {name: found[name] for name in like._arrays()}
                same = int(found["space"]) == space and arrays["centroids"].shape[1:] == like.centroids.shape[1:]
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            _log.warning("%s cannot be read (%s): every item is clustered again.", path, error)
            return None
        return cls(pd.Index(ids, dtype=like.item_ids.dtype), **arrays) if same else None


def chunks(order: np.ndarray, sizes: np.ndarray, alone: np.ndarray) -> list[np.ndarray]:
    """Cuts an order of items into calls of the worker: few enough seeds each, and an item that failed alone.

    Args:
        order: int64 `[n]`. Items.
        sizes: int64 `[items]`. Seeds of each that are read.
        alone: bool `[items]`.
    """
    cuts, seeds, items = [], 0, 0
    for place, item in enumerate(order.tolist()):
        after_lone = place > 0 and alone[order[place - 1]]
        full = seeds + sizes[item] > CHUNK_SEEDS or items == CHUNK_ITEMS
        if items and (full or alone[item] or after_lone):
            cuts.append(place)
            seeds = items = 0
        seeds, items = seeds + int(sizes[item]), items + 1
    return np.split(order, cuts) if len(order) else []
