"""The embedded seed store: its contract, its memory, its threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lookalike.clicklog import CLICK, FORGET, UNCLICK, Batch
from lookalike.seed_memory import Arena
from lookalike.seeds import SeedStore
from lookalike.snapshots import Snapshots
from tests.lookalike.seed_store_contract import NOW, SeedStoreContract, balanced, batch, clicks, expected, feed, listed


class TestContract(SeedStoreContract):
    @pytest.fixture
    def make_store(self):
        return SeedStore


def many(offset, user, item, time):
    user, item, time = np.broadcast_arrays(*(np.asarray(column, np.int64) for column in (user, item, time)))
    return Batch(offset, user.copy(), item.copy(), time.copy(), np.zeros(len(user), np.uint8), time.copy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("machine")


class Machine(RuleBasedStateMachine):
    """Events, readings and restarts in any order, against the definition."""

    def __init__(self):
        super().__init__()
        self.store = SeedStore(latest=3, byte_budget=16 * 20)
        self.events = []

    @rule(
        events=st.lists(
            st.tuples(
                st.integers(0, 40),
                st.integers(0, 5),
                st.integers(-50, 0).map(lambda time: NOW + time),
                st.sampled_from([CLICK] * 8 + [UNCLICK] * 2 + [FORGET]),
            ),
            min_size=1,
            max_size=40,
        )
    )
    def take(self, events):
        self.store.apply(batch(self.store.offset, events))
        self.events += events

    @rule(count=st.integers(1, 50))
    def again(self, count):
        if self.events:
            self.take(self.events[-count:])

    @rule()
    def read(self):
        n, seeds = expected(self.events, 3, 16 * 20)
        assert self.store.effective_latest == n
        assert listed(self.store, self.store.items().tolist()) == {item: seeds[item] for item in sorted(seeds)}

    @rule()
    def restart(self):
        counts, offset, mark = self.store.counts, self.store.offset, self.store.offset // 2
        changed = self.store.changed_since(mark)
        snapshots = Snapshots(self.folder)
        snapshots.save(self.store, alone=True)
        self.store = snapshots.load()
        assert (self.store.counts, self.store.offset) == (counts, offset)
        assert self.store.changed_since(mark).tolist() == changed.tolist()

    @invariant()
    def balances(self):
        assert balanced(self.store).accepted == len(self.events) == self.store.offset

    def teardown(self):
        self.read()


def test_any_course_of_events(folder):
    Machine.folder = folder
    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=15, deadline=None))


@pytest.mark.slow
def test_a_million_new_items_in_a_minute_within_the_budget():
    # 1,000 items of 200 seeds, then 1,000,000 of one: the budget of 1,150,000 seeds leaves 150 to each of the former.
    store = SeedStore(byte_budget=16 * 1_150_000)
    users = np.arange(200_000)
    store.apply(many(0, users, users % 1000, NOW + users))
    assert store.effective_latest == 3_000_000
    for low in range(0, 1_000_000, 50_000):
        items = np.arange(low, low + 50_000) + 10_000
        store.apply(many(store.offset, items, items, NOW + 200_000 + low * 60_000 // 1_000_000))
        assert 16 * store.seed_counts(store.items()).sum() <= store.byte_budget
    assert store.effective_latest == 150
    assert len(store.items()) == 1_001_000
    assert store.seed_counts(np.arange(1000)).tolist() == [150] * 1000
    assert store.seeds([0])[1].tolist() == list(range(199_000, 49_000, -1000))  # the latest 150 of 0, 1000, 2000, ...
    assert store.nbytes < 2 * store.byte_budget + 100 * 1_001_000  # tables and seeds, and what is known of an item
    balanced(store)


def test_an_item_with_almost_all_clicks():
    generator = np.random.default_rng(3)
    store = SeedStore(latest=20_000)
    users = generator.integers(0, 100_000, 400_000)
    items = np.where(generator.random(400_000) < 0.99, 0, generator.integers(1, 500, 400_000))
    store.apply(many(0, users, items, NOW + np.arange(400_000)))
    seen = users[items == 0][::-1]
    first = np.sort(np.unique(seen, return_index=True)[1])[:20_000]
    assert store.seeds([0])[1].tolist() == seen[first].tolist()
    assert store.seeds([0], newest=5)[1].tolist() == seen[first][:5].tolist()
    counts = balanced(store)
    assert counts.applied > 300_000 and counts.late == counts.duplicate == 0


def test_equal_times_of_a_full_item():
    # 5,000 users at one moment: the 100 largest stay, negative ones sort below.
    users = np.random.default_rng(4).permutation(np.arange(-2500, 2500)) * 2**50
    store = SeedStore(latest=100)
    store.apply(many(0, users, 1, NOW))
    assert store.seeds([1])[1].tolist() == [k * 2**50 for k in range(2499, 2399, -1)]
    assert store.seeds([1], newest=3)[1].tolist() == [k * 2**50 for k in range(2499, 2496, -1)]


def test_bytes_of_a_seed():
    generator = np.random.default_rng(5)
    store = SeedStore()
    for offset in range(0, 1_000_000, 100_000):
        items = (generator.random(100_000) ** 3 * 300).astype(np.int64)
        store.apply(many(offset, generator.integers(0, 10**9, 100_000), items, NOW + offset))
        assert 16 * (offset + 90_000) < store.nbytes < 32 * (offset + 100_000)


def test_erase_keeps_the_others_findable():
    generator = np.random.default_rng(6)
    users = generator.permutation(20_000)
    store = SeedStore()
    store.apply(many(0, users, users % 7, NOW + users))
    gone = generator.permutation(20_000)[:9000]
    assert store.erase(gone) == 9000
    left = np.setdiff1d(users, gone)
    assert sorted(store.seeds(range(7))[1].tolist()) == left.tolist()
    store.apply(many(20_000, left, left % 7, NOW + left))
    assert store.counts.duplicate == len(left)


def test_a_forgotten_user_is_removed_from_every_item():
    store = SeedStore()
    users = np.repeat(np.arange(200), 100)
    items = np.tile(np.arange(100), 200)
    store.apply(many(0, users, items, NOW))
    events = [(user, 0, NOW, FORGET) for user in range(0, 200, 2)]
    feed(store, events)
    assert store.seed_counts(range(100)).tolist() == [100] * 100
    assert (store.seeds(range(100))[1] % 2 == 1).all()
    assert store.forgotten()[0].tolist() == list(range(0, 200, 2))


def test_readers_beside_a_writer():
    store, stop = SeedStore(latest=50, byte_budget=16 * 4000), threading.Event()

    def read():
        rounds = 0
        while not stop.is_set():
            offsets, users, times = store.seeds(range(100))
            for a, b in zip(offsets[:-1], offsets[1:], strict=True):
                assert len(np.unique(users[a:b])) == b - a <= 50 and (np.diff(times[a:b]) <= 0).all()
            balanced(store)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            generator = np.random.default_rng(8)
            for offset in range(0, 200_000, 2000):
                user, item = generator.integers(0, 500, 2000), generator.integers(0, 100, 2000)
                store.apply(many(offset, user, item, NOW + offset + np.arange(2000)))
        finally:
            stop.set()
        assert all(reader.result() for reader in readers)  # raises what ended one
    assert store.effective_latest == 40  # 4,000 seeds of 100 items


def test_adapt():
    store = SeedStore(latest=10)
    feed(store, clicks(*((user, 7, user) for user in range(5))))
    store.adapt(latest=20, byte_budget=None, future_seconds=1)  # nothing was left out
    store.adapt(latest=2, byte_budget=160, future_seconds=1)
    assert listed(store, [7]) == {7: [(4, 4), (3, 3)]} and store.effective_latest == 2
    with pytest.raises(ValueError, match="should be at most 2 and 160"):
        store.adapt(latest=3, byte_budget=160, future_seconds=1)
    with pytest.raises(ValueError, match="`latest` should be from 1"):
        store.adapt(latest=0, byte_budget=160, future_seconds=1)
    assert (store.latest, store.byte_budget, store.future_seconds) == (2, 160, 1)


def test_columns_of_other_lengths_are_refused():
    good = batch(0, clicks((1, 7, 0), (2, 7, 0)))
    with pytest.raises(ValueError, match="columns of one length"):
        SeedStore().apply(Batch(0, good.user, good.item[:1], good.time, good.kind, good.received))


def test_arena_grows_with_what_it_holds():
    arena = Arena(3)
    arena.data[:] = range(6)
    arena.grow(3_000_000)
    assert arena.data[:6].tolist() == list(range(6)) and not arena.data[6:].any()
    arena.data[:] = np.arange(6_000_000)
    arena.grow(4_000_000)
    assert (arena.data[:6_000_000] == np.arange(6_000_000)).all()
    arena.release(3)
    assert arena.data[:6].tolist() == list(range(6))
