"""Everything a tick freezes: user vectors, centroids of seeds, behaviours and statistics.

One definition serves training, evaluation, replay and export: similarity(u, i, t) = f(E_u, centroids(i, tick(t))).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from lookalike.clustering import cluster
from ranking.features import Arrays, Encoder, gather
from ranking.statistics import StatisticCounter, StatisticTable
from ranking.timeline import Timeline

__all__ = ["State", "StateBuilder", "in_batches", "similarity_of"]

LLOYD_ITERATIONS = 10


def in_batches(function: Callable[[Arrays], Any], arrays: Mapping[str, np.ndarray], size: int = 8192) -> np.ndarray:
    """Calls a tensor function on slices of arrays and joins what it returns."""
    rows = len(next(iter(arrays.values())))
    parts = [
        np.asarray(function({name: values[start : start + size] for name, values in arrays.items()}))
        for start in range(0, max(rows, 1), size)
    ]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class State:
    """What is known at one tick, for every user and item; the last row of each array is nobody's.

    Attributes:
        tick: int, ms. Only events strictly before it are in here: the watermark of an exported model.
        user_ids, item_ids: pandas.Index.
        users, items: dict of arrays `[ids + 1, ...]`, encoded features; users' behaviours included.
        user_vectors: float32 `[users + 1, m]`. E_u.
        centroids: float32 `[items + 1, k, h]`; centroid_counts: int64 `[items + 1, k]`, 0 where masked.
        seed_counts: int64 `[items + 1]`, all seeds, also of items that have too few for a similarity.
        prices: float32 `[items + 1]`, NaN where an item has none.
        statistics: name -> StatisticTable.
    """

    tick: int
    user_ids: pd.Index
    item_ids: pd.Index
    users: Arrays
    items: Arrays
    user_vectors: np.ndarray
    centroids: np.ndarray
    centroid_counts: np.ndarray
    seed_counts: np.ndarray
    prices: np.ndarray
    statistics: dict[str, StatisticTable]

    def rows(self, side: str, ids: pd.Series | pd.Index) -> np.ndarray:
        """Row numbers of ids; the last row for an unknown one."""
        index = self.user_ids if side == "user" else self.item_ids
        found = index.get_indexer(pd.Index(ids))
        return np.where(found >= 0, found, len(index))

    def only(self, users: np.ndarray, items: np.ndarray) -> "State":
        """The same state without the users and items outside two masks `[ids]`: they become unknown."""
        user, item = (np.flatnonzero(np.append(mask, True)) for mask in (users, items))
        place = {"user_row": np.full(len(users) + 1, -1), "item_row": np.full(len(items) + 1, -1)}
        place["user_row"][user], place["item_row"][item] = np.arange(len(user)), np.arange(len(item))
        statistics = {name: table.only(user, item, place) for name, table in self.statistics.items()}
        return State(
            tick=self.tick,
            user_ids=self.user_ids[users],
            item_ids=self.item_ids[items],
            users=gather(self.users, user),
            items=gather(self.items, item),
            user_vectors=self.user_vectors[user],
            centroids=self.centroids[item],
            centroid_counts=self.centroid_counts[item],
            seed_counts=self.seed_counts[item],
            prices=self.prices[item],
            statistics=statistics,
        )

    def features(self, user: np.ndarray, item: np.ndarray, context: Arrays) -> Arrays:
        """The features of (user row, item row, context) but for the similarity; statistics unscaled."""
        arrays = {**gather(self.users, user), **gather(self.items, item), **context}
        arrays["log_seed_count"] = np.log1p(self.seed_counts[item]).astype(np.float32)
        keys = {**arrays, "user_row": user, "item_row": item}
        for name, table in self.statistics.items():
            arrays[f"statistic_{name}"] = table.look_up(user, item, keys)
        return arrays


class StateBuilder:
    """Builds the state of any tick of a timeline.

    Args:
        timeline: Timeline. The events.
        encoder: Encoder. Of the ESMM features.
        lookalike_encoder: Encoder. Of the user representation's features.
        representation: callable from a dict of arrays `[n, ...]` to user vectors `[n, m]`.
        lookalike: LookalikeModel. Its `transform` gives what is clustered.
    """

    def __init__(
        self,
        timeline: Timeline,
        encoder: Encoder,
        *,
        lookalike_encoder: Encoder,
        representation: Callable[[Arrays], Any],
        lookalike: Any,
    ):
        self.timeline = timeline
        self.encoder = encoder
        self.lookalike_encoder = lookalike_encoder
        self.representation = representation
        self.lookalike = lookalike
        self._static = {side: encoder.static(timeline, side) for side in ("user", "item")}
        self._profile = lookalike_encoder.profile(timeline)
        price = timeline.static("item").get("price")
        items = len(timeline.item_ids)
        prices = np.full(items, np.nan) if price is None else price.to_numpy(np.float64, na_value=np.nan)
        self.prices = np.append(prices, np.nan).astype(np.float32)
        self.context = encoder.context(timeline, timeline.impressions)
        self._counters = {
            statistic.name: StatisticCounter(statistic, timeline, encoder, self._static, self.context)
            for statistic in timeline.schema.statistics
        }

    def _behaviors(self, encoder: Encoder, tick: int) -> Arrays:
        """Behaviours of every user strictly before the tick, with nobody's empty row."""
        everybody = np.arange(len(self.timeline.user_ids) + 1)
        return encoder.behavior(self.timeline, everybody, np.full(len(everybody), tick), None)

    def user_vectors(self, tick: int) -> np.ndarray:
        """E_u of every user and of nobody: float32 `[users + 1, m]`."""
        return in_batches(self.representation, {**self._profile, **self._behaviors(self.lookalike_encoder, tick)})

    def seeds(self, tick: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets and users of the seeds of items with at least `min_seeds`, and every item's seed count."""
        offsets, users = self.timeline.seeds(tick)
        counts = np.diff(offsets)
        enough = counts >= self.timeline.schema.min_seeds
        kept = users[np.repeat(enough, counts)]
        return np.append(0, np.cumsum(np.where(enough, counts, 0))), kept, counts

    def at(self, tick: int, *, user_statistics_at: int | None = None) -> State:
        """The state of a tick.

        Args:
            tick: int, ms.
            user_statistics_at: int or `None`. A moment that the users' own statistics stay frozen at, as an
                evaluation window needs: statistics that follow the labels of the window deflate GAUC.
        """
        timeline, schema = self.timeline, self.timeline.schema
        vectors = self.user_vectors(tick)
        offsets, users, counts = self.seeds(tick)
        transformed = in_batches(lambda batch: self.lookalike.transform(batch["user"]), {"user": vectors})
        offsets = np.append(offsets, offsets[-1])  # nobody is an item without seeds
        found = cluster(transformed[users], offsets, schema.k, iterations=LLOYD_ITERATIONS, seed=0)
        statistics = {}
        for name, counter in self._counters.items():
            frozen = user_statistics_at if "user_id" in counter.statistic.key else None
            statistics[name] = counter.table(tick if frozen is None else min(tick, frozen))
        return State(
            tick=tick,
            user_ids=timeline.user_ids,
            item_ids=timeline.item_ids,
            users={**self._static["user"], **self._behaviors(self.encoder, tick)},
            items=self._static["item"],
            user_vectors=vectors,
            centroids=found.centroids,
            centroid_counts=found.counts,
            seed_counts=np.append(counts, 0),
            prices=self.prices,
            statistics=statistics,
        )


def similarity_of(lookalike: Any, state: State, user: np.ndarray, item: np.ndarray) -> Arrays:
    """Raw similarity (0 where there is none) and `has_similarity`, both float32 `[n]`, of (user row, item row)."""
    has = state.centroid_counts[item].sum(axis=1) > 0
    similarity = np.zeros(len(user), np.float32)
    some = np.flatnonzero(has)
    some = some[np.argsort(item[some], kind="stable")]  # rows of one item together: its centroids stay in the cache

    score = _similarity_graph(lookalike, state.user_vectors.shape[1], *state.centroids.shape[1:])
    for start in range(0, len(some), 4096):
        rows = some[start : start + 4096]
        counts = state.centroid_counts[item[rows]].astype(np.float32)
        similarity[rows] = score(state.user_vectors[user[rows]], state.centroids[item[rows]], counts)
    return {"similarity": similarity, "has_similarity": has.astype(np.float32)}


@functools.lru_cache(maxsize=4)
def _similarity_graph(lookalike: Any, m: int, k: int, h: int) -> Any:
    """Traced once a model, not once a state: a refresh makes states for as long as it runs."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, m]),
            tf.TensorSpec([None, k, h]),
            tf.TensorSpec([None, k]),
        ]
    )
    def score(vectors: tf.Tensor, centroids: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        return lookalike({"user": vectors, "centroids": centroids, "centroid_counts": counts})

    return score
