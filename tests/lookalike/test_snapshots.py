"""Snapshots and restarts: whatever happens to the files, the store is that of the log, or nothing starts."""

import os
import random

import numpy as np
import pytest

from lookalike import snapshots as module
from lookalike.clicklog import CLICK, FORGET, UNCLICK, ClickLog
from lookalike.seeds import SeedStore
from lookalike.snapshots import SnapshotError, Snapshots, catch_up, open_store, state_of
from tests.lookalike.seed_store_contract import NOW, balanced, batch, clicks, feed, listed


def some_events(count, seed=0):
    generator = random.Random(seed)
    kinds = generator.choices([CLICK, UNCLICK, FORGET], [30, 3, 1], k=count)
    return [(generator.randrange(60), generator.randrange(9), NOW - generator.randrange(500), kind) for kind in kinds]


def append(log, events):
    log.append(*np.array(events, np.int64).T)


def seen(store):
    """All that can be asked of a store."""
    return listed(store, range(12)), store.effective_latest, store.counts, store.offset, store.items().tolist()


def state(folder, store):
    return state_of(Snapshots(folder).save(store))


@pytest.fixture
def log(tmp_path):
    with ClickLog(tmp_path / "log", segment_bytes=4096) as log:
        append(log, some_events(1000))
        yield log


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(tmp_path / "snapshots")


def test_a_loaded_store_is_the_one_saved(snapshots):
    store = SeedStore(latest=20, byte_budget=16 * 100, future_seconds=7)
    feed(store, some_events(1000))
    path = snapshots.save(store)
    loaded = snapshots.load()
    assert seen(loaded) == seen(store)
    assert (loaded.latest, loaded.byte_budget, loaded.future_seconds) == (20, 1600, 7)
    assert [path.name for path in snapshots.paths()] == ["00000000000000001000.snapshot"]
    before = path.read_bytes()
    assert snapshots.save(loaded).read_bytes() == before
    more = some_events(300, seed=1)
    for each in (store, loaded):
        feed(each, more)
    assert seen(loaded) == seen(store)


def test_an_empty_store_is_saved_and_loaded(snapshots):
    assert snapshots.load() is None
    snapshots.save(SeedStore())
    assert seen(snapshots.load()) == seen(SeedStore())


@pytest.mark.parametrize("budget", [None, 16 * 60])
def test_state_is_byte_equal_whatever_the_delivery(tmp_path, budget):
    events = some_events(1500)
    generator = random.Random(1)
    shards = [events[k::3] for k in range(3)]
    deliveries = {
        "shuffled": generator.sample(events, len(events)),
        "backwards": events[::-1],
        "all twice": events + events,
        "replayed from the beginning in between": events[:700] + events,
        "a third again": generator.sample(events + events[::3], len(events) + len(events[::3])),
        "shard after shard": [event for shard in shards for event in shard],
        "shards interleaved": [event for many in zip(*shards, strict=True) for event in many],
        "removals first": sorted(events, key=lambda event: -event[3]),
        "removals last": sorted(events, key=lambda event: event[3]),
    }
    first = SeedStore(latest=15, byte_budget=budget)
    feed(first, events)
    wanted = state(tmp_path / "first", first)
    assert first.counts.late + first.counts.duplicate > 0 and len(first.items()) == 9
    for name, delivery in deliveries.items():
        store = SeedStore(latest=15, byte_budget=budget)
        feed(store, delivery, (97, 1, 500))
        assert state(tmp_path / name, store) == wanted, name
    other = SeedStore(latest=15, byte_budget=budget)
    feed(other, events[:-200])
    assert state(tmp_path / "other", other) != wanted


def test_a_restart_in_between_changes_nothing(tmp_path):
    events = some_events(1200)
    through = SeedStore(latest=10)
    feed(through, events)
    for stop in (0, 1, 500, 1199):
        snapshots = Snapshots(tmp_path / str(stop))
        store = SeedStore(latest=10)
        feed(store, events[:stop])
        snapshots.save(store)
        feed(store, events[stop : stop + 100])  # lost with the process
        store = snapshots.load()
        feed(store, events[stop:])
        assert seen(store)[:2] == seen(through)[:2]
        assert balanced(store).accepted == through.counts.accepted
        assert state(tmp_path / "one", store) == state(tmp_path / "two", through)


def test_two_are_kept(snapshots):
    store = SeedStore()
    for _ in range(4):
        feed(store, some_events(10))
        snapshots.save(store)
    assert [int(path.stem) for path in snapshots.paths()] == [40, 30]
    (snapshots.folder / ".tmp-left-by-a-killed-process").touch()
    store.erase(range(60))
    snapshots.save(store, alone=True)
    assert [path.name for path in snapshots.folder.iterdir()] == [f"{40:020d}.snapshot"]


def test_a_flipped_bit_anywhere_is_found_and_the_one_before_is_used(snapshots, log):
    store = SeedStore(latest=20)
    feed(store, some_events(600))
    older = snapshots.save(store)
    feed(store, some_events(1000)[600:])
    newest = snapshots.save(store)
    good = newest.read_bytes()
    generator = random.Random(2)
    places = {*range(80), *range(len(good) - 80, len(good)), *(generator.randrange(len(good)) for _ in range(150))}
    for place in sorted(places):
        bad = bytearray(good)
        bad[place] ^= 1 << generator.randrange(8)
        newest.write_bytes(bad)
        found = Snapshots(snapshots.folder)
        assert found.load().offset == 600, place
        assert found.damaged == [newest.with_suffix(".damaged")]
        assert found.damaged[0].read_bytes() == bad and found.paths() == [older]
    # With the log it is the same store as before, after a longer replay.
    newest.write_bytes(bad)
    assert seen(open_store(log, Snapshots(snapshots.folder), latest=20)) == seen(store)


def test_a_cut_off_or_longer_file_is_found(snapshots):
    store = SeedStore()
    feed(store, some_events(50))
    path = snapshots.save(store)
    good = path.read_bytes()
    for bad in [*(good[:size] for size in range(0, len(good), 7)), good + b"\0", good + good]:
        path.write_bytes(bad)
        found = Snapshots(snapshots.folder)
        assert found.load() is None and len(found.damaged) == 1
    path.write_bytes(good)
    assert seen(snapshots.load()) == seen(store)


def test_a_snapshot_that_cannot_be_written_leaves_the_others(snapshots, monkeypatch):
    store = SeedStore()
    feed(store, some_events(50))
    path = snapshots.save(store)
    before = path.read_bytes()
    feed(store, some_events(50))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        snapshots.save(store)
    monkeypatch.undo()
    assert [each.read_bytes() for each in snapshots.folder.iterdir()] == [before]
    assert int(snapshots.save(store).stem) == 100


class Busy(SeedStore):
    """Takes in events between the blocks of a snapshot."""

    coming = ()

    def entries(self, items):
        found = super().entries(items)
        self.coming, now = self.coming[200:], self.coming[:200]
        feed(self, now)
        return found


@pytest.mark.parametrize("budget", [None, 16 * 250])
def test_saved_while_events_come_in(snapshots, monkeypatch, budget):
    # Blocks of about 50 entries, so that much happens between them.
    monkeypatch.setattr(module, "_BLOCK", 50)
    events = some_events(3000)
    store, through = Busy(latest=40, byte_budget=budget), SeedStore(latest=40, byte_budget=budget)
    feed(through, events)
    for rest in (0, 20, 500, 1800):
        store = Busy(latest=40, byte_budget=budget)
        feed(store, events[:rest])
        store.coming = events[rest:]
        snapshots.save(store, alone=True)
        assert store.offset > rest or rest == 0
        loaded = snapshots.load()
        assert loaded.offset == rest
        feed(loaded, events[rest:])
        assert seen(loaded)[:2] == seen(through)[:2]
        assert balanced(loaded).accepted == len(events)


def test_open_store_replays_what_the_snapshot_lacks(snapshots, log):
    told = []
    first = open_store(log, snapshots, latest=20, progress=lambda done, total: told.append((done, total)))
    assert first.offset == log.end == 1000 and told[-1] == (1000, 1000)
    snapshots.save(first)
    append(log, some_events(500, seed=3))
    assert catch_up(first, log) == 0
    told.clear()
    second = open_store(log, snapshots, latest=20, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (500, 500)
    assert seen(second) == seen(first)


def test_a_snapshot_ahead_of_the_log_refuses(snapshots, log):
    store = open_store(log, snapshots)
    feed(store, some_events(5))
    snapshots.save(store)
    with pytest.raises(
        SnapshotError, match=r"offset 1005, ahead of .*log, which ends at 1000.* Bring the right log back"
    ):
        open_store(log, snapshots)


def test_a_snapshot_of_another_log_refuses(snapshots, log, tmp_path):
    snapshots.save(open_store(log, snapshots))
    with ClickLog(tmp_path / "other") as other:
        append(other, some_events(2000))
        with pytest.raises(SnapshotError, match="of another log"):
            open_store(other, snapshots)


def test_events_that_retention_removed_are_missed(snapshots, log, caplog):
    store = SeedStore()
    catch_up(store, log)
    append(log, some_events(10))
    log.retain(log.end)
    assert 0 < log.start < log.end
    words = (
        rf"begins at offset {log.start} .* ends at 0: .*accept the loss \(--accept-loss; in Python accept_loss=True\)"
    )
    with pytest.raises(SnapshotError, match=words):
        open_store(log, snapshots)
    lossy = open_store(log, snapshots, accept_loss=True)
    assert f"log: events 0 to {log.start} are gone, and passed over" in caplog.text
    assert lossy.offset == log.end and lossy.counts.accepted == log.end - log.start
    snapshots.save(store)
    assert open_store(log, snapshots).offset == log.end


def test_other_settings(snapshots, log):
    snapshots.save(open_store(log, snapshots, latest=20))
    narrower = open_store(log, snapshots, latest=5)
    wider = open_store(log, snapshots, latest=30)  # items were cut: from the log's beginning
    for store, latest in ((narrower, 5), (wider, 30)):
        fresh = SeedStore(latest=latest)
        catch_up(fresh, log)
        assert seen(store)[:2] == seen(fresh)[:2]
    append(log, some_events(10))
    log.retain(log.end)
    with pytest.raises(SnapshotError, match="should be at most 20 and None.* keep the settings"):
        open_store(log, snapshots, latest=30)
    assert open_store(log, snapshots, latest=20).offset == log.end


def test_events_that_the_log_lists_as_damaged_are_passed_over(snapshots, tmp_path):
    with ClickLog(tmp_path / "wounded") as log:
        for low in range(0, 300, 100):
            append(log, clicks(*((user, 7, user) for user in range(low, low + 100))))
    (segment,) = (tmp_path / "wounded").glob("*.clicks")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with ClickLog(tmp_path / "wounded") as log:
        store = open_store(log, snapshots)
        assert store.offset == 300 and store.counts.accepted == 200
        assert sum(damage.lost for damage in log.damage) == 100
        assert sorted(store.seeds([7])[1].tolist()) == [*range(100), *range(200, 300)]


def test_a_gap_that_nothing_explains_refuses(log):
    class Holed:
        folder, end, damage = log.folder, 1000, []

        def read(self, offset, *, until):
            yield batch(5, some_events(995))

    with pytest.raises(SnapshotError, match="events 0 to 5 are missing"):
        catch_up(SeedStore(), Holed())


def test_rejected():
    with pytest.raises(ValueError, match="`keep` should be"):
        Snapshots("nowhere", keep=0)
