"""The table of centroids from one refresh to the next: who comes first, what is served, what a restart finds."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from ranking import refresh_centroids
from ranking.refresh_centroids import CentroidTable, chunks
from ranking.state import State


def table_of(items, *, k=2, h=3, ids=None, **columns):
    nothing = np.zeros(items, np.int64)
    names = ("seeds", "clustered", "embedded", "unknown", "at", "waited", "failed")
    arrays = {name: np.array(columns.get(name, nothing), np.int64) for name in names}
    live = np.array(columns.get("live", [False] * items))
    return CentroidTable(
        pd.Index(np.arange(items) if ids is None else ids),
        np.where(live[:, None, None], np.arange(1, items + 1, dtype=np.float32)[:, None, None], np.float32(0))
        * np.ones((items, k, h), np.float32),
        np.where(live[:, None], 5, 0) * np.ones((items, k), np.int64),
        **arrays,
    )


def test_order_known():
    #            never seen  few  many new  few new  unchanged  waited  failed  moved
    table = table_of(
        8,
        seeds=[200, 9, 200, 200, 200, 200, 200, 200],
        clustered=[200, 9, 100, 199, 200, 199, 100, 200],
        at=[0, 5, 50, 50, 50, 50, 50, 20],
        waited=[0, 0, 0, 0, 0, 2, 3, 0],
        failed=[0, 0, 0, 0, 0, 0, 1, 0],
        live=[False, False, True, True, True, True, True, True],
    )
    order, dirty = table.order(np.zeros(8, np.int64), 10, moved_at=40)
    # Who waited; all of its seeds new; half of them; one in 200; those whose embeddings moved; what failed at the end.
    assert order.tolist() == [5, 0, 2, 3, 7, 6] and dirty == 5
    fresh = np.array([0, 0, 0, 0, 1, 0, 0, 0])  # an old seed came again, or the item is full: the count stays
    assert 4 in table.order(fresh, 10, moved_at=0)[0]
    assert table.order(np.zeros(8, np.int64), 300, moved_at=40)[0].tolist() == []


def test_among_equal_shares_the_popular_item_comes_first():
    table = table_of(2, seeds=[100, 10_000], clustered=[90, 9_000], at=[1, 1], live=[True, True])
    assert table.order(np.zeros(2, np.int64), 10, 0)[0].tolist() == [1, 0]


def test_fewer_seeds_than_before_are_a_change():
    table = table_of(1, seeds=[99], clustered=[100], at=[1], live=[True])
    assert table.order(np.zeros(1, np.int64), 10, 0)[0].tolist() == [0]


def test_chunks_know_seeds_items_and_items_that_failed(monkeypatch):
    monkeypatch.setattr(refresh_centroids, "CHUNK_SEEDS", 10)
    monkeypatch.setattr(refresh_centroids, "CHUNK_ITEMS", 3)
    sizes = np.array([4, 4, 4, 30, 1, 1, 1, 1, 1, 1])
    alone = np.zeros(10, bool)
    alone[[8, 9]] = True
    found = chunks(np.arange(10), sizes, alone)
    assert [part.tolist() for part in found] == [[0, 1], [2], [3], [4, 5, 6], [7], [8], [9]]
    assert chunks(np.zeros(0, np.int64), sizes, alone) == []


def state_of(ids, k=2, h=3, tick=7):
    n = len(ids)
    empty = {"users": {}, "items": {}, "user_vectors": np.zeros((1, 2), np.float32), "statistics": {}}
    return State(
        tick=tick, user_ids=pd.Index([]), item_ids=pd.Index(ids), centroids=np.ones((n + 1, k, h), np.float32),
        centroid_counts=np.ones((n + 1, k), np.int64), seed_counts=np.arange(n + 1), prices=np.zeros(n + 1), **empty,
    )  # fmt: skip


def test_served_has_centroids_of_those_with_enough_seeds_that_have_embeddings():
    table = table_of(4, seeds=[10, 9, 50, 50], embedded=[10, 9, 9, 50], live=[True, True, True, False], at=[1, 1, 1, 1])
    found = table.served(state_of([0, 1, 2, 3]), 10)
    assert found.seed_counts.tolist() == [10, 9, 50, 50, 0]
    assert (found.centroid_counts > 0).any(axis=1).tolist() == [True, False, False, False, False]
    assert found.centroids[0].tolist() == table.centroids[0].tolist() and not found.centroids[1:].any()
    assert found.centroids.dtype == np.float32 and found.tick == 7


def test_of_a_state_and_over_other_items():
    state = state_of(["b", "c"])
    table = CentroidTable.of(state)
    assert table.seeds.tolist() == table.clustered.tolist() == [0, 1] and table.at.tolist() == [7, 7]
    table.centroids[:] = 5
    assert state.centroids.max() == 1  # a copy
    grown = table.aligned(pd.Index(["a", "c", "d"]))
    assert grown.seeds.tolist() == [0, 1, 0] and grown.at.tolist() == [0, 7, 0]
    assert grown.centroids[:, 0, 0].tolist() == [0, 5, 0] and grown.item_ids.tolist() == ["a", "c", "d"]
    assert grown.aligned(pd.Index(["a", "c", "d"])) is grown


@pytest.mark.parametrize("ids", [[2**60 + 1, 2**60 + 2], ["张/店", "007"]])
def test_a_restart_finds_what_was_saved(tmp_path, ids):
    table = table_of(2, ids=ids, seeds=[3, 4], at=[5, 6], live=[True, True])
    path = tmp_path / ".refresh.npz"
    table.save(path, 2**59)
    found = CentroidTable.load(path, 2**59, table)
    assert found is not None and found.item_ids.tolist() == ids and found.item_ids.dtype == table.item_ids.dtype
    for field in dataclasses.fields(table)[1:]:
        assert np.array_equal(getattr(found, field.name), getattr(table, field.name)), field.name
    assert CentroidTable.load(path, 1, table) is None  # of another embedding space
    assert CentroidTable.load(path, 2**59, table_of(2, k=3, ids=ids)) is None
    assert CentroidTable.load(tmp_path / "none", 1, table) is None


def test_a_damaged_file_costs_work_and_nothing_else(tmp_path, caplog):
    table = table_of(2, live=[True, True])
    path = tmp_path / "t.npz"
    table.save(path, 1)
    path.write_bytes(path.read_bytes()[:-200])
    assert CentroidTable.load(path, 1, table) is None and "cannot be read" in caplog.text
    path.write_bytes(b"")
    assert CentroidTable.load(path, 1, table) is None
