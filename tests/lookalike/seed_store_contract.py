"""What every engine of the seed store promises: an engine's tests inherit the class and give it `make_store`."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.clicklog import CLICK, ERASED, FORGET, UNCLICK, Batch

NOW = 1_760_000_000_000
EVERYWHERE = -1  # the item of a FORGET, which nobody reads
BOUNDS = 946_684_800_000, 4_102_444_800_000  # 2000-01-01 and 2100-01-01


def batch(offset, events, *, received=NOW):
    """A batch of (user, item, time, kind)."""
    columns = np.array([*events], np.int64).reshape(-1, 4).T
    moments = np.broadcast_to(np.asarray(received, np.int64), columns[0].shape)
    return Batch(offset, *columns[:3].copy(), columns[3].astype(np.uint8), moments.copy())


def clicks(*triples):
    return [(user, item, NOW + time, CLICK) for user, item, time in triples]


def listed(store, items, **arguments):
    """Item -> its (user, time - NOW), in the store's order."""
    offsets, users, times = store.seeds(items, **arguments)
    assert offsets.dtype == users.dtype == times.dtype == np.int64
    pairs = list(zip(users.tolist(), (times - NOW).tolist(), strict=True))
    return {item: pairs[a:b] for item, a, b in zip(items, offsets[:-1], offsets[1:], strict=True)}


def expected(events, latest, byte_budget=None):
    """What the set of events means, from the definition: n, and item -> [(user, time - NOW)], the newest first."""
    forgotten, last = {}, {}
    for user, item, time, kind in events:
        if kind == FORGET:
            forgotten[user] = max(forgotten.get(user, 0), time)
        else:
            entries = last.setdefault(item, {})
            entries[user] = max(entries.get(user, (0, False)), (time, kind == UNCLICK))
    n = latest
    while byte_budget is not None and 16 * sum(min(n, len(entries)) for entries in last.values()) > byte_budget:
        n -= 1
    found = {}
    for item, entries in last.items():
        newest = sorted(((time, user) for user, (time, _) in entries.items()), reverse=True)[:n]
        live = [(u, t - NOW) for t, u in newest if not entries[u][1] and t > forgotten.get(u, 0)]
        if live:
            found[item] = live
    return n, found


def feed(store, events, sizes=(1000,)):
    """Applies events in batches of the given sizes, over and over."""
    offset, number = store.offset, 0
    while events:
        size = sizes[number % len(sizes)]
        store.apply(batch(offset, events[:size]))
        offset, events, number = offset + len(events[:size]), events[size:], number + 1
        assert store.offset == offset
        balanced(store)


def balanced(store):
    counts = store.counts
    assert counts.accepted == counts.applied + counts.late + counts.invalid + counts.duplicate
    return counts


few_events = st.lists(
    st.tuples(
        st.sampled_from([*range(9), -1, -(2**62)]),
        st.sampled_from([0, 1, 2, 2**53 + 1]),
        st.integers(0, 12).map(lambda time: NOW - 12 + time),
        st.sampled_from([CLICK] * 6 + [UNCLICK, FORGET]),
    ),
    max_size=60,
)


class SeedStoreContract:
    """Tests of one engine. `make_store(latest=, byte_budget=, future_seconds=)` makes an empty store."""

    @pytest.fixture
    def make_store(self):
        raise NotImplementedError

    # Known values.

    def test_new_store_is_empty(self, make_store):
        store = make_store()
        assert store.offset == 0 and store.items().tolist() == [] and balanced(store).accepted == 0
        assert listed(store, [5, 5]) == {5: []}
        assert store.seeds([])[0].tolist() == [0]
        assert store.seed_counts([7]).tolist() == [0]
        assert store.effective_latest == store.latest

    def test_latest_distinct_clickers(self, make_store):
        store = make_store(latest=3)
        # User 1 clicks item 7 twice: one seed, with the later time. Of five users the latest three stay.
        feed(store, clicks((1, 7, 0), (2, 7, 1), (3, 7, 2), (1, 7, 3), (4, 7, 4), (5, 8, 0)))
        assert listed(store, [8, 7]) == {8: [(5, 0)], 7: [(4, 4), (1, 3), (3, 2)]}
        assert store.seed_counts([7, 9, 8]).tolist() == [3, 0, 1]
        assert store.items().tolist() == [7, 8]
        assert listed(store, [7], newest=2) == {7: [(4, 4), (1, 3)]}

    def test_of_equal_times_the_larger_user_stays_and_comes_first(self, make_store):
        store = make_store(latest=2)
        feed(store, clicks((3, 7, 0), (-9, 7, 0), (5, 7, 0), (2**63 - 1, 8, 0), (-(2**63), 8, 0), (0, 8, 0)))
        assert listed(store, [7, 8]) == {7: [(5, 0), (3, 0)], 8: [(2**63 - 1, 0), (0, 0)]}

    def test_ids_are_exact(self, make_store):
        store = make_store()
        feed(store, clicks((2**53, 2**53 + 1, 0), (2**53 + 1, 2**53 + 1, 0), (-1, -1, 0)))
        assert listed(store, [2**53 + 1, 2**53, -1]) == {
            2**53 + 1: [(2**53 + 1, 0), (2**53, 0)],
            2**53: [],
            -1: [(-1, 0)],
        }

    @pytest.mark.parametrize(
        ("click", "back", "left"),
        [(0, 1, []), (0, 0, []), (1, 0, [(2, 1)])],  # before, at the same time, after: a later click counts again
    )
    def test_a_click_is_taken_back_up_to_the_time_said(self, make_store, click, back, left):
        events = [(2, 7, NOW + click, CLICK), (2, 7, NOW + back, UNCLICK)]
        for order in (events, events[::-1]):
            store = make_store()
            feed(store, [*order, *clicks((3, 7, -5), (2, 8, -5))])
            assert listed(store, [7, 8]) == {7: [*left, (3, -5)], 8: [(2, -5)]}

    @pytest.mark.parametrize(("click", "forget", "left"), [(0, 1, []), (0, 0, []), (1, 0, [(2, 1)])])
    def test_a_user_is_forgotten_up_to_the_time_said(self, make_store, click, forget, left):
        events = [(2, 7, NOW + click, CLICK), (2, 8, NOW + click, CLICK), (2, EVERYWHERE, NOW + forget, FORGET)]
        for order in (events, events[::-1]):
            store = make_store()
            feed(store, [*order, *clicks((3, 7, -5))])
            assert listed(store, [7, 8, EVERYWHERE]) == {7: [*left, (3, -5)], 8: left, EVERYWHERE: []}

    def test_who_took_his_click_back_keeps_his_place_among_the_latest(self, make_store):
        # Of users 1 to 4 the latest two are 3 and 4; 4 is no seed. Nobody comes back in: nothing has to be read again.
        events = [*clicks((1, 7, 1), (2, 7, 2), (3, 7, 3), (4, 7, 4)), (4, 7, NOW + 4, UNCLICK)]
        for order in (events, events[::-1]):
            store = make_store(latest=2)
            feed(store, order)
            assert listed(store, [7]) == {7: [(3, 3)]}

    # Counts.

    def test_counts_by_hand(self, make_store):
        store = make_store(latest=2)
        told = []
        for event in [
            *clicks((1, 7, 5), (2, 7, 6)),
            *clicks((1, 7, 5), (1, 7, 4)),  # known, and older than known
            (1, 7, NOW + 2, UNCLICK),  # older than what is known
            (1, 7, NOW + 5, UNCLICK),
            *clicks((1, 7, 5)),  # was taken back before it came
            (3, EVERYWHERE, NOW + 9, FORGET),
            (3, EVERYWHERE, NOW + 9, FORGET),
            *clicks((3, 8, 9)),  # was forgotten before it came
            (1, 7, NOW, 7),
            (1, 7, 0, CLICK),
        ]:
            before = store.counts
            feed(store, [event])
            after = store.counts
            told += [
                name
                for name in ("applied", "late", "invalid", "duplicate")
                if getattr(after, name) > getattr(before, name)
            ]
        assert told == [
            *["applied"] * 2, *["duplicate"] * 3, "applied", "late", "applied", "duplicate", "late", *["invalid"] * 2,
        ]  # fmt: skip
        assert store.counts.accepted == 12

    def test_what_is_older_than_all_of_a_full_item_is_late(self, make_store):
        store = make_store(latest=2)
        feed(store, clicks(*((user, 7, user) for user in range(60))))
        assert listed(store, [7]) == {7: [(59, 59), (58, 58)]}
        before = store.counts
        feed(store, clicks((99, 7, 57), (57, 7, 57)))
        assert store.counts.late == before.late + 2
        assert listed(store, [7]) == {7: [(59, 59), (58, 58)]}

    @pytest.mark.parametrize("time", [0, -1, 1, -(2**63), 2**63 - 1, BOUNDS[0] - 1, BOUNDS[1], NOW + 300_001])
    @pytest.mark.parametrize("kind", [CLICK, UNCLICK, FORGET])
    def test_impossible_times_are_counted_and_change_nothing(self, make_store, time, kind):
        store = make_store(latest=1)
        feed(store, [*clicks((1, 7, 0)), (1, 7, time, kind), (2, 7, time, kind)])
        assert balanced(store).invalid == 2
        assert listed(store, [7]) == {7: [(1, 0)]}
        feed(store, clicks((0, 7, 0), (3, 7, 1)))  # the floor is what it was
        assert store.counts.late + store.counts.applied == 3
        assert listed(store, [7]) == {7: [(3, 1)]}

    def test_bounds_of_possible_times_are_possible(self, make_store):
        store = make_store(future_seconds=10)
        store.apply(batch(0, [(1, 7, NOW + 10_000, CLICK), (2, 7, BOUNDS[0], CLICK), (3, 7, NOW + 10_001, CLICK)]))
        store.apply(batch(3, [(4, 7, BOUNDS[1] - 1, CLICK)], received=BOUNDS[1]))
        assert store.seeds([7])[1].tolist() == [4, 1, 2]
        assert store.counts.invalid == 1

    @pytest.mark.parametrize("kind", [3, 100, 254])
    def test_unknown_kinds_are_invalid(self, make_store, kind):
        store = make_store()
        feed(store, [(1, 7, NOW, kind)])
        assert store.counts.invalid == store.counts.accepted == 1

    def test_an_erased_event_is_none(self, make_store):
        store = make_store()
        feed(store, [(0, 7, 0, ERASED), *clicks((1, 7, 0))])
        assert store.offset == 2 and store.counts.accepted == 1

    # Offsets.

    def test_events_below_the_offset_are_passed_over(self, make_store):
        store = make_store()
        events = clicks((1, 7, 0), (2, 7, 1), (3, 7, 2))
        store.apply(batch(0, events[:2]))
        counts = store.counts
        store.apply(batch(0, events[:2]))
        assert store.counts == counts and store.offset == 2
        store.apply(batch(1, events[1:]))
        assert store.counts.accepted == 3 and store.offset == 3
        assert store.seed_counts([7]).tolist() == [3]

    def test_a_gap_is_refused_until_it_is_said_to_be_one(self, make_store):
        store = make_store()
        with pytest.raises(ValueError, match="should start at 0 or below"):
            store.apply(batch(5, clicks((1, 7, 0))))
        assert store.offset == 0 and store.counts.accepted == 0
        store.skip(5)
        store.apply(batch(5, clicks((1, 7, 0))))
        assert store.offset == 6 and store.counts.accepted == 1

    # The budget.

    def test_budget_by_hand(self, make_store):
        # Items with 5, 3 and 1 users. 8 seeds have room: min(4, .) + min(4, .) + min(4, .) = 4 + 3 + 1 = 8.
        store = make_store(byte_budget=8 * 16)
        feed(store, clicks(*((u, 1, u) for u in range(5)), *((u, 2, u) for u in range(3)), (0, 3, 0)))
        assert store.effective_latest == 4
        assert store.seed_counts([1, 2, 3]).tolist() == [4, 3, 1]
        # Two more items of one user: 3 + 3 + 1 + 1 = 8 with room for none; then 2 + 2 + 1 + 1 + 1 = 7.
        feed(store, clicks((0, 4, 0)))
        assert store.effective_latest == 3
        feed(store, clicks((0, 5, 0)))
        assert store.effective_latest == 2
        assert listed(store, [1, 2, 5]) == {1: [(4, 4), (3, 3)], 2: [(2, 2), (1, 1)], 5: [(0, 0)]}

    def test_more_items_than_seeds_have_room_leave_nothing(self, make_store):
        store = make_store(byte_budget=3 * 16)
        feed(store, clicks(*((1, item, 0) for item in range(4))))
        assert store.effective_latest == 0 and store.items().tolist() == []
        feed(store, [*clicks((1, 9, 0)), (1, 0, NOW, FORGET)])
        assert listed(store, [9]) == {9: []} and store.effective_latest == 0

    # Order, repetition, splits.

    # Several classes take these tests over, each with a store of its own: `differing_executors` is meant.
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        events=few_events,
        latest=st.integers(1, 6),
        budget=st.none() | st.integers(1, 30).map(lambda seeds: 16 * seeds),
        order=st.randoms(use_true_random=False),
        sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    )
    def test_state_is_a_function_of_the_set_of_events(self, make_store, events, latest, budget, order, sizes):
        n, seeds = expected(events, latest, budget)
        for again in (False, True):
            store = make_store(latest=latest, byte_budget=budget)
            feed(store, events, sizes)
            assert store.effective_latest == n
            assert store.items().tolist() == sorted(seeds)
            assert listed(store, [5, *sorted(seeds)]) == {5: [], **seeds}
            assert store.seed_counts([*seeds]).tolist() == [len(pairs) for pairs in seeds.values()]
            assert listed(store, sorted(seeds), newest=2) == {item: seeds[item][:2] for item in seeds}
            if not again:
                events = events + order.choices(events, k=len(events) // 3) if events else events
                order.shuffle(events)

    def test_long_shuffles_with_many_users(self, make_store):
        generator = random.Random(7)
        events = [
            (generator.randrange(300), generator.randrange(3), NOW - generator.randrange(3000), kind)
            for kind in generator.choices([CLICK, UNCLICK, FORGET], [30, 3, 0.3], k=1500)
        ]
        n, seeds = expected(events, 100)
        for _ in range(3):
            store = make_store(latest=100)
            feed(store, events, (1, 400, 60))
            assert listed(store, sorted(seeds)) == {item: seeds[item] for item in sorted(seeds)}
            generator.shuffle(events)

    # Changes.

    def test_changed_since(self, make_store):
        store = make_store()
        start = store.mark()
        feed(store, clicks((1, 7, 0), (2, 8, 0)))
        assert store.changed_since(start).tolist() == [7, 8]
        middle = store.mark()
        assert store.changed_since(middle).tolist() == []
        feed(store, [*clicks((1, 7, 0), (3, 9, 0)), (4, 7, 0, CLICK)])  # known, new, invalid
        assert store.changed_since(middle).tolist() == [9]
        late = store.mark()
        feed(store, [(2, EVERYWHERE, NOW, FORGET)])
        assert store.changed_since(late).tolist() == [8]
        feed(store, [(3, 9, NOW, UNCLICK)])
        assert store.changed_since(late).tolist() == [8, 9]

    # Erasure.

    def test_erase_leaves_no_trace(self, make_store):
        store = make_store()
        feed(store, [*clicks((1, 7, 0), (2, 7, 1), (1, 8, 2), (3, 8, 0)), (4, 7, NOW, UNCLICK), (1, 0, NOW, FORGET)])
        assert store.erase([1, 4, 99]) == 3
        assert listed(store, [7, 8]) == {7: [(2, 1)], 8: [(3, 0)]}
        feed(store, clicks((1, 7, 0)))  # nothing is remembered, not even that he was forgotten
        assert listed(store, [7]) == {7: [(2, 1), (1, 0)]}

    # Rejected input.

    def test_rejected(self, make_store):
        for wrong in ({"latest": 0}, {"byte_budget": 15}, {"future_seconds": -1}):
            with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` should be"):
                make_store(**wrong)
        with pytest.raises(ValueError, match="`newest` should be"):
            make_store().seeds([1], newest=0)
