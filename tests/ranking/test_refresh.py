"""Refreshes of a run whose models can be done by hand, with publishing replaced by a look at what would be published.

The state after a refresh is compared with `StateBuilder`'s of the same tick: one definition of similarity.
"""

import dataclasses
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import ranking.refresh
from lookalike.clicklog import FORGET, UNCLICK, ClickLog
from lookalike.clustering import cluster
from lookalike.seeds import SeedStore
from lookalike.snapshots import catch_up
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.exported.ranker import space_id
from ranking.features import Encoder
from ranking.refresh import Refresher
from ranking.refresh_seeds import SeedReader, backfill, cohorts_of, id_keys, look
from ranking.refresh_tables import LiveTables
from ranking.refresh_worker import ClusterWorker
from ranking.state import StateBuilder
from ranking.timeline import Timeline
from serving.errors import ServingError
from serving.manifest import Content, write_manifest
from serving.pin import unpin, write_pin
from serving.publish import version_folders

TOML = """schema_version = 1
[ids]
user = "int64"
item = "string"
[labels]
seed_event = "behaviors.read"
[windows]
train = ["2025-01-11", "2025-02-10"]
[features.user]
age = { kind = "numeric" }
city = { kind = "categorical" }
[features.item]
price = { kind = "numeric" }
[features.behavior]
read = { keep = 5 }
[features.statistic]
item_ctr = { key = ["item_id"], event = "click", prior = 2 }
user_ctr = { key = ["user_id"], event = "click", prior = 2 }
[state]
tick = "1d"
k = 3
min_seeds = 4
"""
DAY = 86_400_000
START = 1_735_689_600_000  # 2025-01-01
TRAINED = START + 20 * DAY
USERS, ITEMS = 80, 10


def tables(seed=0):
    """30 days of reading and impressions; items are born over time, the last two after the training."""
    random = np.random.default_rng(seed)
    users = pd.DataFrame({"user_id": np.arange(USERS) + 2**53, "age": random.integers(18, 70, USERS).astype(float),
                          "city": random.choice(["xi", "an", "bo"], USERS),
                          "registered": random.integers(0, 20, USERS)})  # fmt: skip
    born = np.array([0, 0, 0, 0, 0, 0, 5, 15, 22, 24])
    items = pd.DataFrame({"item_id": [f"店-{n}" for n in range(ITEMS)], "price": np.arange(ITEMS) + 1.0,
                          "born": START + born * DAY})  # fmt: skip
    n = 900
    item = random.choice(ITEMS, n, p=np.array([8, 6, 4, 3, 3, 3, 2, 2, 4, 4]) / 39)
    days = random.uniform(born[item], 30)
    behaviors = pd.DataFrame({"user_id": users["user_id"].to_numpy()[random.integers(0, USERS, n)], "field": "read",
                              "value": items["item_id"].to_numpy()[item],
                              "timestamp": (START + days * DAY).astype(np.int64)})  # fmt: skip
    shown = behaviors.sample(600, random_state=1).rename(columns={"value": "item_id"}).drop(columns="field")
    shown["timestamp"] -= 60_000
    shown = shown.assign(request_id=range(600), click=random.integers(0, 2, 600), conversion=0)
    return {"users": users, "items": items, "behaviors": behaviors, "impressions": shown}


def write(folder: Path, found):
    folder.mkdir(exist_ok=True)
    (folder / "dataset.toml").write_text(TOML)
    for name, frame in found.items():
        temporary = folder / f".tmp-{name}"
        frame.to_parquet(temporary, index=False)
        os.replace(temporary, folder / f"{name}.parquet")
    return folder


class Representation:
    """[age, city, sum of the items read, how many], by powers of two: a graph computes them as Python does."""

    inputs = tuple(SimpleNamespace(name=name) for name in ("user_age", "user_city", "behavior_read"))

    def __call__(self, arrays):
        read = tf.cast(arrays["behavior_read"], tf.float32)
        age = tf.cast(arrays["user_age"], tf.float32)
        parts = [tf.where(tf.math.is_nan(age), 0.0, age), tf.cast(arrays["user_city"], tf.float32) / 4]
        parts += [tf.reduce_sum(read, axis=1) / 16, tf.reduce_sum(tf.cast(read > 0, tf.float32), axis=1) / 4]
        return tf.stack(parts, axis=1)


class Doubled:
    def transform(self, user):
        return 2 * user


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("refresh") / "data", tables())


def run_of(data, *, empty=False):
    timeline = Timeline(Dataset(data))
    encoder = Encoder.fit(timeline, before=TRAINED)
    lookalike_encoder = Encoder.fit(timeline, before=TRAINED, rank_by_seeds=True)
    builder = StateBuilder(timeline, encoder, lookalike_encoder=lookalike_encoder, representation=Representation(),
                           lookalike=Doubled())  # fmt: skip
    state = builder.at(TRAINED).only(timeline.exists("user", TRAINED), timeline.exists("item", TRAINED))
    if empty:
        state = dataclasses.replace(state, centroids=state.centroids * 0, centroid_counts=state.centroid_counts * 0)
    info = {"dataset": str(data), "parameters_hash": "p1", "embedding_space": "s1"}
    return SimpleNamespace(
        path=None, schema=timeline.schema, info=info, encoder=encoder, lookalike_encoder=lookalike_encoder,
        representation=Representation(), lookalike=Doubled(), state=state, builder=builder, timeline=timeline,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(data):
    return run_of(data)


def expected(run, tick):
    """What an export at that tick would hold."""
    return run.builder.at(tick).only(run.timeline.exists("user", tick), run.timeline.exists("item", tick))


def release(base, run, number, tick, *, parameters="p1", space=None):
    folder = base / str(number)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    facts = {"embedding_space_id": space_id(run) if space is None else space, "seed_watermark": tick}
    facts |= {"user_table": True, "centroid_dtype": "float32"}
    write_manifest(folder, number, "2025-01-01T00:00:00", Content({"parameters": parameters}, facts))
    return folder


class Place:
    """A log, a store, a folder of models and what was published in it."""

    def __init__(self, folder, run, monkeypatch):
        self.run, self.base, self.published, self.fail = run, folder / "models" / "seedrank", [], None
        release(self.base, run, 1, run.state.tick)
        self.log = ClickLog(folder / "log", user_ids="int64", item_ids="string")
        self.store = SeedStore()
        user, item, when, _ = run.timeline.seed_events()
        self.events = pd.DataFrame({"user": run.timeline.user_ids[user], "item": run.timeline.item_ids[item],
                                    "time": when}).sort_values("time", kind="stable")  # fmt: skip
        self.until = 0
        monkeypatch.setattr(ranking.refresh, "republish_tables", self._publish)

    def _publish(self, models, run, state, *, name, verifier):
        if self.fail:
            raise self.fail
        self.published.append(state)
        return release(self.base, run, len(self.published) + 1, state.tick)

    def feed(self, tick):
        """The log gains what happened before a tick."""
        some = self.events[(self.events["time"] >= self.until) & (self.events["time"] < tick)]
        self.until = tick
        self.append(some["user"], some["item"], some["time"])

    def append(self, user, item, when, kind=None):
        kinds = None if kind is None else np.full(len(user), kind, np.uint8)
        self.log.append(np.array(user, np.int64), [str(value) for value in item], np.array(when, np.int64), kinds)

    def refresher(self, run=None, **arguments):
        arguments.setdefault("min_seeds", 4)
        run = self.run if run is None else run
        return Refresher(run, self.base.parent, self.store, self.log, **arguments)


@pytest.fixture
def place(tmp_path, run, monkeypatch):
    return Place(tmp_path, run, monkeypatch)


def same(found, state, *, centroids=True):
    assert found.tick == state.tick
    assert found.user_ids.equals(state.user_ids) and found.item_ids.equals(state.item_ids)
    for name in ("user_vectors", "seed_counts", "prices") + (("centroids", "centroid_counts") if centroids else ()):
        assert np.array_equal(getattr(found, name), getattr(state, name), equal_nan=name == "prices"), name
    for side in ("users", "items"):
        arrays, other = getattr(found, side), getattr(state, side)
        assert arrays.keys() == other.keys() and all(np.array_equal(arrays[name], other[name]) for name in arrays)
    for name, table in state.statistics.items():
        assert np.array_equal(found.statistics[name].values, table.values), name


# Tables.


def test_tables_are_those_of_the_builder_and_only_what_changed_is_made_again(tmp_path, run):
    found = tables()
    folder = write(tmp_path / "data", found)
    live = LiveTables(run, folder)
    for day in (20, 21, 24, 24.5):
        tick = int(START + day * DAY)
        state, other = live.at(tick), expected(run, tick)
        assert state.tick == tick and np.array_equal(state.user_vectors, other.user_vectors)
        assert state.item_ids.equals(other.item_ids) and state.user_ids.equals(other.user_ids)
        assert np.array_equal(state.users["behavior_read"], other.users["behavior_read"])
    readers = found["behaviors"].query(f"{START + 24 * DAY} <= timestamp < {START + 24.5 * DAY}")["user_id"].nunique()
    assert 0 < live.embedded <= readers < USERS / 2 and live.moved_at == tick
    after = START + 40 * DAY  # nothing happens after the last event
    live.at(after)
    state = live.at(after + DAY)
    assert live.embedded == 0 and state.tick == after + DAY and live.moved_at == after
    assert live.at(after + 2 * DAY).user_vectors is state.user_vectors
    # One new user, one whose city changed, one new item: two vectors, and the others as they were.
    users = pd.concat(
        [found["users"], pd.DataFrame({"user_id": [5], "age": [30.0], "city": ["an"], "registered": [9]})]
    )
    users.iloc[0, 2] = "bo" if users.iloc[0, 2] != "bo" else "an"
    items = pd.concat([found["items"], pd.DataFrame({"item_id": ["new"], "price": [3.0], "born": [START]})])
    write(folder, {"users": users, "items": items})
    changed = live.at(after + 3 * DAY)
    assert (live.embedded, live.new_users, live.moved_at) == (2, 1, after + 3 * DAY)
    assert "new" in changed.item_ids and 5 in changed.user_ids
    old = changed.user_ids.get_indexer(state.user_ids)
    moved = (changed.user_vectors[old] != state.user_vectors[:-1]).any(axis=1)
    assert moved.sum() == 1
    other = run_of(folder)
    assert np.array_equal(other.timeline.user_ids, changed.user_ids)


def test_a_table_that_cannot_be_read_is_tried_again(tmp_path, run):
    folder = write(tmp_path / "data", tables())
    live = LiveTables(run, folder)
    tick = TRAINED + DAY
    before = live.at(tick)
    shutil.copy(folder / "users.parquet", tmp_path / "kept")
    (folder / "users.parquet").write_bytes(b"half of it")
    for _ in range(2):
        with pytest.raises(UserError, match="users.parquet: cannot be read"):
            live.at(tick)
    os.replace(tmp_path / "kept", folder / "users.parquet")
    assert live.at(tick).user_vectors is not None and live.embedded == 0
    assert np.array_equal(live.at(tick).user_vectors, before.user_vectors)
    (folder / "dataset.toml").write_text(TOML.replace("k = 3", "k = 4"))
    with pytest.raises(UserError, match=r"should declare what the run .* was trained on. Received: other k"):
        live.at(tick)


def test_tables_of_ordinal_time_are_refused(run, data):
    other = SimpleNamespace(**{**vars(run), "schema": dataclasses.replace(run.schema, time="ordinal")})
    with pytest.raises(UserError, match="a refresh needs times since the epoch"):
        LiveTables(other, data)


def test_who_was_forgotten_does_not_come_back(tmp_path, run, data):
    from ranking.forget_run import remember

    other = SimpleNamespace(**{**vars(run), "path": tmp_path})
    gone = int(run.state.user_ids[3])
    remember(other, tmp_path / "forgotten.json", gone)
    state = LiveTables(other, data).at(TRAINED)
    assert gone not in state.user_ids and len(state.user_ids) == len(run.state.user_ids) - 1


# Seeds.


def test_seeds_strictly_before_a_tick():
    log_store = SeedStore()
    with_time = [(1, 10), (2, 20), (3, 30), (4, 30), (9, 25)]
    base = START

    class Known:
        def __getattr__(self, name):
            return getattr(log_store, name)

    from lookalike.clicklog import Batch

    user, when = (np.array(part, np.int64) for part in zip(*with_time, strict=True))
    kind = np.zeros(5, np.uint8)
    log_store.apply(Batch(0, user, np.full(5, 7), base + when, kind, base + when))
    keys = np.array([7, 8])
    seen = look(Known(), keys, np.array([base + 20, 0]), np.array([True, True]), base + 30)
    # At 30 and later: two are early. Of the three others two are not before 20.
    assert seen.seeds.tolist() == [3, 0] and seen.fresh.tolist() == [2, 0] and seen.early.tolist() == [True, False]
    reader = SeedReader(
        log_store, pd.Index([1, 2, 3, 4]), np.array([True, True, True, True]), newest=10, cohorts=None, max_share=0.1
    )
    found = reader.read(keys, base + 30)
    assert found.rows.tolist() == [0, 1] and found.offsets.tolist() == [0, 2, 2] and found.unknown.tolist() == [1, 0]
    blind = SeedReader(log_store, pd.Index([1, 2, 3, 4]), np.array([True, False, True, True]), newest=3,
                       cohorts=None, max_share=0.1)  # fmt: skip
    # The newest three are 4, 3 (early) and 9 (unknown).
    assert blind.read(keys, base + 30).rows.tolist() == [] and blind.read(keys, base + 30).unknown.tolist() == [1, 0]
    assert blind.read(keys, base + 31).rows.tolist() == [2, 3]


def test_a_flood_of_early_clicks_is_counted_in_full():
    from lookalike.clicklog import Batch

    store, n = SeedStore(), 300
    when = START + np.append(np.arange(20), 1000 + np.arange(n))
    store.apply(Batch(0, np.arange(n + 20), np.full(n + 20, 7), when, np.zeros(n + 20, np.uint8), when + 5000))
    seen = look(store, np.array([7]), np.array([START + 5]), np.array([True]), START + 1000)
    assert seen.seeds.tolist() == [20] and seen.fresh.tolist() == [15] and seen.early.tolist() == [True]


def test_cohorts_by_a_column_that_nothing_declares(tmp_path):
    folder = write(tmp_path / "data", tables())
    users = pd.DataFrame({"user_id": [7, 8, 9], "age": [1.0, 2, 3], "city": "a", "day": ["x", None, "y"]})
    users.to_parquet(folder / "users.parquet", index=False)
    ids = pd.Index([9, 8, 7, 6])  # of 8 and 6 it is not known: they share one
    assert cohorts_of(Dataset(folder), "day", ids).tolist() == [1, -1, 0, -1]
    (folder / "users.parquet").unlink()
    users.to_csv(folder / "users.csv", index=False)
    assert cohorts_of(Dataset(folder), "day", ids).tolist() == [1, -1, 0, -1]
    with pytest.raises(
        UserError, match=r"should have the column 'hour' \(`cohort`\)\. Received: user_id, age, city, day"
    ):
        cohorts_of(Dataset(folder), "hour", ids)


def test_backfill_twice_is_backfill(tmp_path, run):
    with ClickLog(tmp_path / "log", user_ids="int64", item_ids="string") as log:
        assert backfill(log, run.timeline, before=TRAINED) == (run.timeline.seed_events()[2] < TRAINED).sum()
        store = SeedStore()
        for batch in log.read():
            store.apply(batch)
        keys = id_keys(run.timeline.item_ids)
        first = store.seed_counts(keys)
        assert np.array_equal(first, np.diff(run.timeline.seeds(TRAINED)[0]))
        backfill(log, run.timeline, before=TRAINED)
        for batch in log.read(store.offset):
            store.apply(batch)
        assert np.array_equal(store.seed_counts(keys), first)
    with (
        ClickLog(tmp_path / "other", user_ids="int64", item_ids="int64") as log,
        pytest.raises(UserError, match="should have the ids of the dataset, user int64 and item string"),
    ):
        backfill(log, run.timeline)


# Refreshes.


@pytest.fixture(scope="module", autouse=True)
def shared_worker():
    """One process for all refreshers: its start is most of a test's time."""
    with ClusterWorker() as worker, pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "__class__", ClusterWorker)

        class Shared:
            def __init__(self):
                self.calls = []

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def __getattr__(self, name):
                return getattr(worker, name)

        class Idle:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        patch.setattr(ranking.refresh, "ClusterWorker", Shared)
        patch.setattr(ranking.refresh, "Verifier", Idle)
        yield worker


def test_skew_of_the_log_replayed_tick_by_tick(tmp_path, data, monkeypatch):
    """A refresher that begins at each tick is cold: it publishes what `StateBuilder` makes, bit for bit."""
    cold = run_of(data, empty=True)
    place = Place(tmp_path, cold, monkeypatch)
    for day in (20, 21, 23, 26):
        tick = START + day * DAY
        place.feed(tick)
        (place.base / ".refresh.npz").unlink(missing_ok=True)
        with place.refresher() as refresher:
            done = refresher.once(tick)
        same(place.published[-1], expected(cold, tick))
        assert done.tick == tick and done.warm == 0 and done.cold == (place.published[-1].seed_counts >= 4).sum()


def test_one_refresher_over_many_ticks(place, run):
    """Counts and tables are exact at each tick, an item's first centroids too; warm ones are nearly as tight."""
    met = 0
    with place.refresher() as refresher:
        for day in range(20, 31):
            tick = START + day * DAY
            place.feed(tick)
            had = set(run.state.item_ids) if not place.published else set(_similar(place.published[-1]))
            done = refresher.once(tick)
            found, exact = place.published[-1], expected(run, tick)
            same(found, exact, centroids=False)
            assert set(_similar(found)) == set(_similar(exact))
            for item in set(_similar(found)) - had:
                row = found.item_ids.get_loc(item)
                assert np.array_equal(found.centroids[row], exact.centroids[row])
                met += 1
            if done.warm:
                assert _inertia(run, found, tick) <= 1.1 * _inertia(run, exact, tick)
    assert met == 2  # the items that were born after the training
    assert done.new_items == 0 and refresher.metrics.as_dict()["new_similar_items_total"] == 2


def _similar(state):
    return state.item_ids[(state.centroid_counts[:-1] > 0).any(axis=1)].tolist()


def _inertia(run, state, tick):
    """Of every seed to the nearest centroid of its item."""
    offsets, users = run.timeline.seeds(tick)
    total = 0.0
    for number, item in enumerate(run.timeline.item_ids):
        row = state.item_ids.get_indexer([item])[0]
        if row < 0 or not state.centroid_counts[row].any():
            continue
        own = 2 * run.builder.user_vectors(tick)[users[offsets[number] : offsets[number + 1]]]
        centres = state.centroids[row][state.centroid_counts[row] > 0]
        total += ((own[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).sum()
    return total


def test_nothing_later_than_the_watermark_enters(place, run):
    tick = TRAINED + DAY
    place.feed(tick)
    with place.refresher() as refresher:
        refresher.once(tick)
        plain = place.published[-1]
        # All others click the first item a minute after the tick: clocks are ahead, and the log has them already.
        known = set(place.events[(place.events["item"] == "店-0") & (place.events["time"] < tick)]["user"])
        late = [user for user in run.state.user_ids if user not in known]
        place.append(late, ["店-0"] * len(late), [tick + 60_000] * len(late))
        refresher.once(tick)
        same(place.published[-1], plain)
        done = refresher.once(tick + 60_001)
        assert place.published[-1].seed_counts[0] == USERS > plain.seed_counts[0] and done.dirty >= 1


def test_only_dirty_items_are_clustered_and_the_others_copied(place, run):
    after = START + 40 * DAY  # the tables have no more events: users stay where they are
    place.feed(after)
    with place.refresher() as refresher:
        refresher.once(after)
        before = place.published[-1]
        done = refresher.once(after + 1)
        assert done.dirty == done.warm == done.cold == 0 and done.version is not None
        assert np.array_equal(place.published[-1].centroids, before.centroids)
        known = {user for user, item in zip(place.events["user"], place.events["item"], strict=True) if item == "店-7"}
        new = [user for user in run.timeline.user_ids if user not in known][:5]
        place.append(new, ["店-7"] * 5, [after + 2] * 5)
        done = refresher.once(after + 10)
        assert (done.dirty, done.warm, done.events) == (1, 1, 5)
        changed = (place.published[-1].centroids != before.centroids).any(axis=(1, 2))
        assert np.flatnonzero(changed).tolist() == [7]
        assert place.published[-1].seed_counts[7] == before.seed_counts[7] + 5
        # Taken back, all is as it was but for the order of sums; the counts are exactly.
        place.append(new, ["店-7"] * 5, [after + 20] * 5, UNCLICK)
        refresher.once(after + 30)
        assert place.published[-1].seed_counts.tolist() == before.seed_counts.tolist()
        # Who asks to be forgotten leaves every item.
        place.append([new[0], *sorted(known)], ["-"] * (len(known) + 1), [after + 40] * (len(known) + 1), FORGET)
        refresher.once(after + 50)
        assert place.published[-1].seed_counts[7] == 0 and "店-7" not in _similar(place.published[-1])


def test_an_item_gains_similarity_at_min_seeds_and_not_before(place, run):
    after = START + 40 * DAY
    place.feed(after)
    place.append([2**53], ["店-0"], [after])
    items = pd.concat([tables()["items"], pd.DataFrame({"item_id": ["new"], "price": [1.0], "born": [after]})])
    data = write(place.base.parent.parent / "data", {**tables(), "items": items})
    with place.refresher(data=data, min_seeds=6) as refresher:
        for count in range(8):
            if count:
                place.append([run.state.user_ids[count]], ["new"], [after + count * 1000])
            done = refresher.once(after + 8000 + count)
            assert done.new_items == 0 if count else done.new_items == 3  # of the training's day 8 were known
            row = place.published[-1].item_ids.get_loc("new")
            assert place.published[-1].seed_counts[row] == count
            assert ("new" in _similar(place.published[-1])) == (count >= 6)
    # Six seeds, three centroids: as `cluster` finds them.
    assert place.published[-1].centroid_counts[row].sum() == 7


def test_seeds_without_an_embedding_are_counted_and_left_out(place, run):
    after = START + 40 * DAY
    place.feed(after)
    strangers = np.arange(50) + 10**6
    place.append(strangers, ["店-9"] * 50, [after] * 50)
    place.append(strangers, ["nowhere"] * 50, [after] * 50)
    with place.refresher() as refresher:
        done = refresher.once(after + 1)
        found, exact = place.published[-1], expected(run, after + 1)
        assert found.seed_counts[9] == exact.seed_counts[9] + 50
        assert found.centroid_counts[9].sum() == exact.seed_counts[9]
        assert done.unknown_seeds == 50 and done.unknown_items == 1
        # Their rows come: now they have a part.
        users = pd.DataFrame({"user_id": strangers, "age": 20.0, "city": "an", "registered": 1})
        data = write(place.base.parent.parent / "data", {**tables(), "users": pd.concat([tables()["users"], users])})
        refresher._tables._dataset.path = data
        done = refresher.once(after + 2)
        assert done.new_users == 50 and done.unknown_seeds == 0
        assert place.published[-1].centroid_counts[9].sum() == exact.seed_counts[9] + 50


def test_strangers_that_fill_all_places_change_nothing(place, run):
    after = START + 40 * DAY
    place.feed(after)
    with place.refresher(newest=40) as refresher:
        refresher.once(after)
        before = place.published[-1]
        place.append(np.arange(100) + 10**6, ["店-0"] * 100, [after + 1] * 100)
        done = refresher.once(after + 2)
        assert done.dominated == 1 and np.array_equal(place.published[-1].centroids, before.centroids)
        assert place.published[-1].seed_counts[0] == before.seed_counts[0] + 100


def test_one_cohort_cannot_take_an_item_over(tmp_path, run, monkeypatch):
    after, bots = START + 40 * DAY, np.arange(2000) + 10**6
    found = tables()
    ages = np.array([18.0, 40.0, 70.0])[bots % 3]
    rows = pd.DataFrame({"user_id": bots, "age": ages, "city": "an", "registered": 99})
    found["users"] = pd.concat([found["users"], rows])
    data = write(tmp_path / "data", found)
    moved = {}
    for cohort in (None, "registered"):
        folder = tmp_path / str(cohort)
        folder.mkdir()
        place = Place(folder, run, monkeypatch)
        place.feed(after)
        with place.refresher(data=data, cohort=cohort, max_cohort_share=0.2) as refresher:
            refresher.once(after)
            before = place.published[-1]
            place.append(bots, ["店-0"] * 2000, [after + 1] * 2000)
            done = refresher.once(after + 2)
            moved[cohort] = _reading(place.published[-1], 0) / _reading(before, 0)
            assert _of_nobody(place.published[-1], 0) <= 1 or cohort is None
            # On an item that nobody else clicked they cannot make centroids at all.
            place.append(bots, ["店-0"] * 2000, [after + 3] * 2000, UNCLICK)
            _all_taken_back(place, "店-9", after + 3)
            place.append(bots, ["店-9"] * 2000, [after + 4] * 2000)
            done = refresher.once(after + 10)
            assert done.dominated == (cohort is not None)
            assert (_of_nobody(place.published[-1], 9) > 0) == (cohort is None)
    # Two thousand who have read nothing beside some seventy who have: how much the table has read, of what it had.
    # Open it is 70 of 2070; with a share of a fifth four fifths stay (counts are rounded to whole seeds).
    assert moved[None] < 0.1 and moved["registered"] == pytest.approx(0.8, abs=0.02)


def _reading(state, row):
    return np.average(state.centroids[row, :, 3], weights=state.centroid_counts[row])


def _of_nobody(state, row):
    """Centroids of an item whose users have read nothing: every honest one has read this very item."""
    return int(((state.centroids[row, :, 3] < 0.2) & (state.centroid_counts[row] > 0)).sum())


def _all_taken_back(place, item, when):
    users = place.events[place.events["item"] == item]["user"].unique()
    place.append(users, [item] * len(users), [when] * len(users), UNCLICK)


def test_degenerate_seeds_give_finite_centroids(tmp_path, run, monkeypatch):
    """0, 1, k - 1, k and all-alike seeds, and users at zero (F18)."""
    found = tables()
    found["users"] = pd.concat([
        found["users"],
        pd.DataFrame({"user_id": np.arange(30) + 500, "age": 30.0, "city": "xi", "registered": 0}),
    ])  # fmt: skip
    data = write(tmp_path / "data", found)
    low = SimpleNamespace(**{**vars(run), "schema": dataclasses.replace(run.schema, min_seeds=1)})
    monkeypatch.setattr("ranking.refresh_tables.refuse_other", lambda *_: None)
    place = Place(tmp_path, low, monkeypatch)
    after = START + 40 * DAY
    place.feed(after)
    for number, count in ((5, 1), (6, 2), (7, 3), (8, 30)):
        _all_taken_back(place, f"店-{number}", after)
        place.append(np.arange(count) + 500, [f"店-{number}"] * count, [after + 1] * count)
    _all_taken_back(place, "店-4", after)
    with place.refresher(min_seeds=1, data=data) as refresher:
        refresher.once(after + 2)
    state = place.published[-1]
    assert np.isfinite(state.centroids).all() and state.seed_counts[[4, 5, 6, 7, 8]].tolist() == [0, 1, 2, 3, 30]
    assert (state.centroid_counts > 0).sum(axis=1)[[4, 5, 6, 7, 8]].tolist() == [0, 1, 2, 3, 1]


def test_a_vector_that_is_not_finite_is_left_out(place, run, monkeypatch):
    after = START + 40 * DAY
    place.feed(after)

    class Broken(Doubled):
        def transform(self, user):
            bad = tf.reduce_all(tf.equal(user, run.state.user_vectors[0] * 0 + user[:1]), axis=1, keepdims=True)
            return tf.where(bad, np.float32(np.nan), 2 * user)

    other = SimpleNamespace(**{**vars(run), "lookalike": Broken()})
    with place.refresher(run=other) as refresher:
        refresher.once(after)
    assert np.isfinite(place.published[-1].centroids).all()


# What goes wrong.


def test_a_worker_that_dies_leaves_the_centroids_and_the_next_round_tries_again(place, run, shared_worker, caplog):
    after = START + 40 * DAY
    place.feed(after)
    with place.refresher() as refresher:
        refresher.once(after)
        before = place.published[-1]
        place.append(run.state.user_ids, ["店-8"] * USERS, [after + 1] * USERS)
        os.kill(shared_worker.pid, signal.SIGKILL)
        done = refresher.once(after + 2)
        assert done.failures == {"died": 1} and done.waiting == 1 and done.version is not None
        assert np.array_equal(place.published[-1].centroids, before.centroids)
        assert place.published[-1].seed_counts[8] == USERS  # what is known without it goes on
        text = refresher.metrics.text()
        assert 'seedrank_refresh_failures_total{reason="worker died"} 1' in text
        assert "seedrank_refresh_oldest_waiting_rounds 1" in text and "1 items keep their centroids" in caplog.text
        done = refresher.once(after + 3)
        assert done.warm == 1 and done.waiting == 0 and not done.failures
        assert not np.array_equal(place.published[-1].centroids[8], before.centroids[8])


def test_a_worker_that_fails_again_and_again_ends_the_round_and_items_take_turns(
    place, run, shared_worker, monkeypatch
):
    from ranking.refresh_worker import WorkerFailed

    after, calls = START + 40 * DAY, []

    def fail(self, rows, offsets, *_, **__):
        calls.append(len(offsets) - 1)
        raise WorkerFailed("error", "no")

    place.feed(after)
    monkeypatch.setattr("ranking.refresh_centroids.CHUNK_ITEMS", 2)
    with place.refresher() as refresher, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterWorker, "cluster", fail)
        done = refresher.once(after)
        assert sum(done.failures.values()) == 3 and calls == [2, 2, 2] and done.waiting == ITEMS
        refresher.once(after + 1)
        assert calls[3:] == [2, 2, 1]  # the four others first; who failed comes alone, behind them
        patch.undo()
        assert refresher.once(after + 2).warm == ITEMS - 2 and refresher.metrics.as_dict()["waiting_items"] == 0


def test_the_time_budget_leaves_items_over_and_they_come_first(place, run, monkeypatch):
    after = START + 40 * DAY
    place.feed(after)
    monkeypatch.setattr("ranking.refresh_centroids.CHUNK_ITEMS", 3)
    clock = iter(range(0, 10**6, 10))
    with place.refresher(every=50.0) as refresher:  # 30 s for clustering
        monkeypatch.setattr("ranking.refresh_clusters.time", SimpleNamespace(monotonic=lambda: next(clock)))
        first = refresher.once(after)
        assert first.warm + first.cold == 9 and first.waiting == 1
        place.append(run.state.user_ids, ["店-1"] * USERS, [after + 1] * USERS)
        order = []
        read = SeedReader.read
        monkeypatch.setattr(SeedReader, "read", lambda self, keys, tick: order.extend(keys) or read(self, keys, tick))
        second = refresher.once(after + 2)
        waited = [item for item in run.timeline.item_ids if id_keys(pd.Index([item]))[0] == order[0]]
        assert second.waiting == 0 and waited != ["店-1"] and order[1] == id_keys(pd.Index(["店-1"]))[0]


def test_another_embedding_space_or_run_is_refused_and_nothing_is_scored(place, run):
    after = START + 40 * DAY
    place.feed(after)
    with place.refresher() as refresher:
        refresher.once(after)
        release(place.base, run, 10, after, space=5)  # a user tower was trained again, and exported
        with pytest.raises(UserError, match=r"the embedding space of the run .* never scored .* \(seedrank export"):
            refresher.once(after + 1)
        release(place.base, run, 11, after, parameters="p2")
        with pytest.raises(UserError, match="the parameters of the run"):
            refresher.once(after + 1)
        assert len(place.published) == 1 and refresher.metrics.as_dict()["failures_total"] == {"space": 2}
    with pytest.raises(UserError, match="the parameters of the run"):
        place.refresher()
    other = SimpleNamespace(**{**vars(run), "info": {**run.info, "parameters_hash": "p2", "embedding_space": "s2"}})
    release(place.base, other, 12, after, parameters="p2")
    with place.refresher(run=other) as refresher:  # centroids of the old space are not where it begins
        assert np.array_equal(refresher._table.at, np.full(len(run.state.item_ids), TRAINED))


def test_a_space_that_changes_amid_a_refresh_is_not_published(place, run, monkeypatch):
    from ranking.republish import republish_tables

    after = START + 40 * DAY
    place.feed(after)
    monkeypatch.setattr(ranking.refresh, "republish_tables", republish_tables)
    with place.refresher() as refresher:
        cluster_all = refresher._cluster

        def then_export(*arguments):
            cluster_all(*arguments)
            release(place.base, run, 10, after, space=5)  # a user tower that was trained again goes live

        monkeypatch.setattr(refresher, "_cluster", then_export)
        with pytest.raises(UserError, match=r"`embedding_space_id` of the run should be that of .*/10"):
            refresher.once(after)
        assert refresher.metrics.as_dict()["failures_total"] == {"publish": 1}
        assert sorted(version_folders(place.base)) == [1, 10]


def test_while_refreshes_fail_the_age_rises_and_what_is_served_stays(place, monkeypatch):
    after = START + 40 * DAY
    place.feed(after)
    with place.refresher() as refresher:
        refresher.once(after)
        before, versions = refresher.metrics.as_dict(), sorted(version_folders(place.base))
        place.fail = ServingError("not published: no space")
        now = time.time()
        for hours in (1, 2):
            with pytest.raises(ServingError):
                refresher.once(after + hours * 3_600_000)
            monkeypatch.setattr("ranking.refresh_metrics.time", SimpleNamespace(time=lambda h=hours: now + 3600 * h))
            found = refresher.metrics.as_dict()
            assert found["table_age_seconds"] >= 3600 * hours
            assert found["watermark_seconds"] == before["watermark_seconds"] == after / 1000
            assert found["rounds_total"] == 1 and found["failures_total"] == {"publish": hours}
        assert sorted(version_folders(place.base)) == versions


def test_pinned_it_waits_and_says_so(place):
    place.feed(TRAINED)
    write_pin(place.base, {"version": 1, "at": "now"})
    with place.refresher() as refresher:
        done = refresher.once(TRAINED)
        assert (done.skipped, done.version, place.published) == ("pinned", None, []) and done.events > 0
        assert refresher.metrics.as_dict()["paused_total"] == 1 and not refresher.metrics.as_dict()["failures_total"]
        unpin(place.base)
        assert refresher.once(TRAINED).version == 2


def test_a_publish_that_fails_keeps_what_was_clustered(place, run):
    after = START + 40 * DAY
    place.feed(after)
    with place.refresher() as refresher:
        place.fail = ServingError("not published: no space")
        with pytest.raises(ServingError):
            refresher.once(after)
        assert refresher.metrics.as_dict()["failures_total"] == {"publish": 1}
        place.fail = None
        done = refresher.once(after + 1)
        assert done.warm == done.cold == 0 and np.array_equal(
            place.published[-1].seed_counts, expected(run, after).seed_counts
        )


def test_a_restart_goes_on_where_it_was(place, run):
    after = START + 40 * DAY
    place.feed(after)
    with place.refresher() as refresher:
        refresher.once(after)
    with place.refresher() as refresher:
        done = refresher.once(after - DAY)  # the clock went back
        assert done.tick == after and done.dirty == 0 and done.cold == 0
        same(place.published[-1], place.published[0], centroids=False)


def test_a_log_begun_after_the_training_is_refused_with_what_to_do(place, run):
    place.append([2**53], ["店-0"], [TRAINED])
    with place.refresher() as refresher:
        with pytest.raises(UserError, match=r"it holds 1 of \d+\. `seedrank refresh --backfill`"):
            refresher.once(TRAINED + 1)
        backfill(place.log, run.timeline, before=TRAINED)
        assert refresher.once(TRAINED + 1).version == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_seeds": 3}, "`min_seeds` should be the run's, 4, or more. Received: min_seeds=3."),
        ({"newest": 0}, "`newest` should be a positive integer. Received: newest=0."),
        ({"newest": 50, "min_seeds": 60}, "`newest` should be `min_seeds`, 60, or more. Received: newest=50."),
        ({"warm_iterations": 0}, "`warm_iterations` should be a positive integer."),
        ({"every": 0.0}, "`every` should be positive. Received: every=0.0."),
        ({"max_cohort_share": 0.0}, "`max_cohort_share` should be in (0, 1]. Received: 0.0."),
    ],
)
def test_rejected_arguments(place, arguments, words):
    with pytest.raises(UserError) as error:
        place.refresher(**arguments)
    assert words in str(error.value)


def test_without_a_version_it_says_what_to_do(place, tmp_path, run):
    with pytest.raises(UserError, match="should hold a published version: seedrank export"):
        Refresher(run, tmp_path / "none", place.store, place.log)
    assert place.refresher(min_seeds=None).min_seeds == 100


def test_running_it_skips_what_it_missed_and_stops_after_the_step_in_hand(place):
    place.feed(TRAINED)
    stop, seen, started = threading.Event(), [], []

    def slow():
        started.append(time.monotonic())
        time.sleep(0.35)
        if len(started) == 2:
            raise OSError("the disk is full")
        if len(started) == 3:
            stop.set()
        return "done"

    with place.refresher(every=0.1) as refresher:
        refresher.once = slow
        refresher.run(stop, seen.append)
    assert seen == ["done", None, "done"]
    # 0.35 s of work at every 0.1 s: three ticks of each round are left out, none is made up for.
    assert refresher.metrics.as_dict()["skipped_ticks_total"] >= 9
    assert min(np.diff(started)) >= 0.35


def test_between_refreshes_clicks_become_seeds_and_the_next_one_counts_them(place):
    place.feed(TRAINED)
    catch_up(place.store, place.log)  # as opening a store does
    opened, done = place.store.offset, []
    stop, first, caught = threading.Event(), threading.Event(), 0

    def after(refreshed):
        done.append(refreshed)
        first.set()

    with place.refresher(every=3600.0, taken_in=opened) as refresher:
        thread = threading.Thread(target=refresher.run, args=[stop, after])
        thread.start()
        assert first.wait(60) and done[0].events == opened > 0
        for number in range(3):
            place.append([2**53 + number], ["店-1"], [TRAINED + number])
            end = time.monotonic() + 30
            while place.store.offset < place.log.end and time.monotonic() < end:
                time.sleep(0.01)
            caught += place.store.offset == place.log.end
        stop.set()
        thread.join()
        place.append([2**53], ["店-2"], [TRAINED + 5])
        assert caught == 3 and len(place.published) == 1
        assert refresher.once(TRAINED + 10).events == 4


def test_a_stop_while_it_clusters_publishes_nothing(place):
    place.feed(TRAINED + DAY)
    with place.refresher() as refresher:
        refresher.stop.set()
        done = refresher.once(TRAINED + DAY)
        assert done.skipped == "stopped" and not place.published and done.waiting > 0


def test_metrics_are_served(place):
    from ranking.refresh_metrics import seed_metrics, serve_metrics
    from ranking.up_metrics import read, total

    place.feed(TRAINED)
    with place.refresher() as refresher:
        assert refresher.metrics.as_dict()["table_age_seconds"] >= 0
        refresher.once(TRAINED)
        text = lambda: refresher.metrics.text() + seed_metrics(place.store)  # noqa: E731
        with serve_metrics(text, "127.0.0.1", 0) as port:
            found = read(f"http://127.0.0.1:{port}/metrics", timeout=60)
            assert read(f"http://127.0.0.1:{port}/other") is None
    counts = {name: total(found, f"seedrank_seeds_{name}_total") for name in
              ("accepted", "applied", "late", "invalid", "duplicate")}  # fmt: skip
    assert counts.pop("accepted") == sum(counts.values()) == place.log.end
    assert total(found, "seedrank_refresh_watermark_seconds") == TRAINED / 1000
    assert total(found, "seedrank_seeds_kept") == len(run_pairs(place, TRAINED))
    assert total(found, "seedrank_refresh_rounds_total") == 1
    assert abs(total(found, "seedrank_refresh_last_success_timestamp_seconds") - time.time()) < 60
    steps = {dict(key)["step"] for key in found["seedrank_refresh_step_seconds"]}
    assert steps == {"log", "tables", "seeds", "clusters", "publish"}


def run_pairs(place, tick):
    return place.events[place.events["time"] < tick][["user", "item"]].drop_duplicates()


def test_warm_start_is_nearly_as_tight_as_cold():
    random = np.random.default_rng(0)
    modes = random.normal(0, 2, (12, 16)).astype(np.float32)
    points = modes[random.integers(0, 12, 6000)] + random.normal(0, 1, (6000, 16)).astype(np.float32)
    first = cluster(points[:5000], np.array([0, 5000]), 8)
    warm = cluster(points, np.array([0, 6000]), 8, iterations=2, initial=first.centroids)
    cold = cluster(points, np.array([0, 6000]), 8)
    assert warm.inertia[0] <= 1.05 * cold.inertia[0]
