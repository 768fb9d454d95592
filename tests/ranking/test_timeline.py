import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.timeline import BEFORE_ALL, Events

HOUR = 3_600_000
TOML = """schema_version = 1
time = "ordinal"
[ids]
user = "int64"
item = "string"
[labels]
seed_event = "{seed_event}"
[windows]
lookalike = [0, 15]
train = [15, 40]
test = [40, 60]
[features.user]
age = {{ kind = "numeric" }}
[state]
tick = 10
k = 2
min_seeds = 2
"""
CLICKS = TOML.format(seed_event="click")
READS = TOML.format(seed_event="behaviors.read")
BIG = 2**53 + 1  # as a float it would be its neighbour
# timestamp, user, item, click, conversion, click_time, conversion_time
LOG = [
    (25, 2, "b", 1, 1, 29, 45),
    (12, 3, "a", 1, 0, 20, -1),
    (20, 1, "a", 1, 1, -1, -1),
    (19, 1, "a", 1, 0, 19, -1),
    (21, 2, "a", 0, 0, -1, -1),
    (30, BIG, "a", 1, 0, 31, -1),
]


def seeds_by_id(timeline, before):
    offsets, users = timeline.seeds(before)
    assert offsets[0] == 0 and len(offsets) == len(timeline.item_ids) + 1
    return {
        item: timeline.user_ids[users[start:end]].tolist()
        for item, start, end in zip(timeline.item_ids, offsets[:-1], offsets[1:], strict=True)
    }


def test_latest_known_values():
    #                  user 0: 10 and 11 at time 5 (orders 0 and 1), 12 at time 7; user 1: 13 at time 5
    events = Events(*(np.array(a) for a in ([0, 1, 0, 0], [12, 13, 11, 10], [7, 5, 5, 5], [0, 0, 1, 0])))
    user = np.array([0, 0, 0, 0, 0, 1, 2])
    time = np.array([5, 5, 5, 7, 8, 6, 99])
    order = np.array([0, 1, 2, 0, 0, 0, 0])
    expected = [[-1, -1], [10, -1], [11, 10], [11, 10], [12, 11], [13, -1], [-1, -1]]
    assert events.latest(user, time, order, 2).tolist() == expected
    # without an order nothing of that very time counts: the first three rows are equal
    expected[1:3] = [[-1, -1], [-1, -1]]
    assert events.latest(user, time, None, 2).tolist() == expected
    # more is kept than there is
    assert events.latest(np.array([0]), np.array([99]), None, 5).tolist() == [[12, 11, 10, -1, -1]]


small = st.integers(0, 4)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(small, small, small), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 6), st.none() | st.integers(-1, 6)), max_size=12),
    st.integers(1, 6),
)
def test_latest_against_plain_python(rows, queries, keep):
    user, time, order = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    events = Events(user, np.arange(len(rows)), time, order)
    for of_user, at, cut in queries:
        moment = (at, BEFORE_ALL if cut is None else cut)
        earlier = [(t, o, value) for value, (u, t, o) in enumerate(rows) if u == of_user and (t, o) < moment]
        expected = [value for *_, value in sorted(earlier)][::-1][:keep]
        one = [np.array([x], np.int64) for x in (of_user, at)]
        found = events.latest(*one, None if cut is None else np.array([cut], np.int64), keep)
        assert found.tolist() == [expected + [-1] * (keep - len(expected))]
    if queries:  # many queries at once answer as one by one
        users, times, cuts = (
            np.array([-1 if x is None else x for x in column]) for column in zip(*queries, strict=True)
        )
        one_by_one = [events.latest(users[[i]], times[[i]], cuts[[i]], keep)[0] for i in range(len(queries))]
        assert np.array_equal(events.latest(users, times, cuts, keep), one_by_one)


def test_ids_of_every_table_are_rows_and_stay_exact(make_timeline):
    names = ['O\'Neil "x"', "a/b", "天津", "007", "7"]
    timeline = make_timeline(
        READS,
        impressions=[(1, BIG, names[0], 1, 0), (2, BIG - 1, names[1], 0, 0)],
        users={"user_id": [BIG + 1, 5], "age": [30.0, None]},
        items={"item_id": [names[2]]},
        behaviors=[(6, "read", names[3], 1, 0), (6, "read", names[4], 1, 1)],
    )
    assert timeline.user_ids.tolist() == [5, 6, BIG - 1, BIG, BIG + 1]
    assert timeline.item_ids.tolist() == sorted(names)
    assert timeline.user_ids[timeline.user].tolist() == [BIG, BIG - 1]
    assert timeline.item_ids[timeline.item].tolist() == names[:2]
    read = timeline.behaviors["read"]
    assert timeline.item_ids[read.value].tolist() == names[3:]
    age = timeline.static("user")["age"]
    assert age.index.tolist() == timeline.user_ids.tolist()
    assert age.fillna(-1).tolist() == [-1, -1, -1, -1, 30.0]
    assert timeline.static("item").shape[0] == 5 and "price" not in timeline.static("item")


def test_users_of_requests_and_items_of_candidates_are_known(make_timeline):
    timeline = make_timeline(
        CLICKS,
        impressions=[(1, 1, "a", 0, 0)],
        requests={"request_id": [0, 1], "timestamp": [1, 2], "user_id": [1, 8]},
        candidates={"request_id": [0, 0, 1], "item_id": ["a", "z", "z"]},
    )
    assert timeline.user_ids.tolist() == [1, 8] and timeline.item_ids.tolist() == ["a", "z"]
    # but nothing is known of them before anything happened
    assert timeline.known("user", 99).tolist() == [True, False]
    assert timeline.known("item", 99).tolist() == [True, False]


def test_seeds_are_strictly_before(make_timeline):
    timeline = make_timeline(CLICKS, impressions=LOG)
    # clicks became known at: user 1 on a at 19 and again at 20 (no click_time, no attribution: at once), 3 on a at 20,
    # 2 on b at 29, BIG on a at 31; user 2 did not click a
    assert seeds_by_id(timeline, 19) == {"a": [], "b": []}
    assert seeds_by_id(timeline, 20) == {"a": [1], "b": []}
    assert seeds_by_id(timeline, 21) == {"a": [1, 3], "b": []}
    assert seeds_by_id(timeline, 29) == {"a": [1, 3], "b": []}
    assert seeds_by_id(timeline, 31) == {"a": [1, 3], "b": [2]}
    assert seeds_by_id(timeline, 32) == {"a": [1, 3, BIG], "b": [2]}


def test_seeds_by_conversion_and_by_behavior(make_timeline):
    timeline = make_timeline(TOML.format(seed_event="conversion"), impressions=LOG)
    # 1 bought a at 20 (no time: the impression's), 2 bought b at 45, though clicked at 29
    assert seeds_by_id(timeline, 45) == {"a": [1], "b": []}
    assert seeds_by_id(timeline, 46) == {"a": [1], "b": [2]}
    timeline = make_timeline(READS, impressions=LOG, behaviors=[(3, "read", "b", 18, 5), (3, "read", "b", 7, 6)])
    assert seeds_by_id(timeline, 7) == {"a": [], "b": []}
    assert seeds_by_id(timeline, 8) == {"a": [], "b": [3]}
    assert [a.tolist() for a in timeline.seed_events()] == [[2, 2], [1, 1], [7, 18], [6, 5]]


def test_when_labels_become_known(make_timeline):
    toml = """schema_version = 1
    [ids]
    user = "int64"
    item = "int64"
    [labels]
    attribution_hours = { click = 0.5, conversion = 72 }
    observed_until = 1970-01-05T00:00:00Z
    [windows]
    train = ["1970-01-01", "1970-01-03"]
    """
    log = [
        (1000, 1, 1, 1, 1, 1500, 2500),
        (2000, 1, 1, 1, 1, -1, -1),
        (24 * HOUR, 1, 1, 0, 0, -1, -1),
        (24 * HOUR + 1, 1, 1, 0, 0, -1, -1),
    ]
    timeline = make_timeline(toml, impressions=log)
    # given; else the impression's time plus half an hour, plus three days
    assert timeline.label_time["click"][:2].tolist() == [1500, 2000 + HOUR // 2]
    assert timeline.label_time["conversion"][:2].tolist() == [2500, 2000 + 72 * HOUR]
    rows, time = timeline.events("conversion")
    assert rows.tolist() == [0, 1] and time.tolist() == [2500, 2000 + 72 * HOUR]
    rows, time = timeline.events("impression")
    assert rows.tolist() == [0, 1, 2, 3] and np.array_equal(time, timeline.time)
    # the window of a row shown a day after the start ends with the log, that of the next millisecond after it
    assert timeline.mature(np.array([3, 2, 0])).tolist() == [False, True, True]
    # a tick of a day, from the start of the train window
    assert timeline.tick(np.array([0, 24 * HOUR - 1, 24 * HOUR])).tolist() == [0, 0, 24 * HOUR]


def test_ticks_are_counted_from_the_train_window(make_timeline):
    timeline = make_timeline(CLICKS, impressions=LOG)
    # 15 + 10 n; the floor before the anchor too
    assert timeline.tick(np.array([4, 5, 14, 15, 24, 25, 60])).tolist() == [-5, 5, 5, 15, 15, 25, 55]
    # rows 0 to 5 lie at 25, 12, 20, 19, 21, 30
    rows = np.array([5, 0, 2, 3, 1])
    found = {tick: places.tolist() for tick, places in timeline.by_tick(rows)}
    assert found == {5: [4], 15: [2, 3], 25: [0, 1]} and list(found) == sorted(found)
    assert list(timeline.by_tick(np.zeros(0, np.int64))) == []
    assert timeline.rows_in("train").tolist() == [0, 2, 3, 4, 5]
    assert timeline.rows_in("lookalike").tolist() == [1]
    assert timeline.rows_in("train", "lookalike").tolist() == list(range(6))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_no_tick_is_later_than_its_moment(make_timeline, times):
    timeline = make_timeline(CLICKS, impressions=[(t, 1, "a", 0, 0) for t in times])
    tick = timeline.tick(timeline.time)
    assert ((tick <= timeline.time) & (timeline.time < tick + 10)).all()
    groups = list(timeline.by_tick(np.arange(len(times))))
    assert sorted(np.concatenate([places for _, places in groups])) == list(range(len(times)))
    assert all((tick[places] == moment).all() for moment, places in groups)


def test_known_needs_an_event_strictly_before(make_timeline):
    timeline = make_timeline(
        READS, impressions=LOG, users={"user_id": [77], "age": [1.0]}, behaviors=[(9, "read", "c", 12, 0)]
    )
    ids = timeline.user_ids
    assert ids[timeline.known("user", 12)].tolist() == []
    assert ids[timeline.known("user", 13)].tolist() == [3, 9]
    assert ids[timeline.known("user", 99)].tolist() == [1, 2, 3, 9, BIG]
    assert timeline.item_ids[timeline.known("item", 13)].tolist() == ["a", "c"]


def test_exists_needs_an_event_or_a_birth_before(make_timeline):
    timeline = make_timeline(
        CLICKS,
        impressions=[(10, 1, "seen", 0, 0)],
        users={"user_id": [2], "age": [1.0]},
        items={"item_id": ["old", "new", "seen", "ageless"], "born": [3, 10, 20, None]},
        requests={"request_id": [0], "timestamp": [1], "user_id": [8]},
        candidates={"request_id": [0], "item_id": ["unlisted"]},
    )

    def found(side, before):
        ids = timeline.user_ids if side == "user" else timeline.item_ids
        return set(ids[timeline.exists(side, before)])

    assert found("item", 3) == {"ageless"} and found("item", 4) == found("item", 10) == {"ageless", "old"}
    # an event outweighs a birthday; nobody but a candidate log has heard of "unlisted"
    assert found("item", 11) == {"ageless", "old", "new", "seen"}
    # users are not born: who is listed exists
    assert found("user", 10) == {2} and found("user", 11) == {1, 2}


def test_refusals(make_timeline):
    with pytest.raises(UserError, match="'read' has no rows in the behaviors table"):
        make_timeline(READS, impressions=LOG)
    with pytest.raises(UserError, match="'read' has no rows"):
        make_timeline(READS, impressions=LOG, behaviors=[(1, "other", "a", 1, 0)])
    timeline = make_timeline(CLICKS.replace("train = [15, 40]", ""), impressions=LOG)
    with pytest.raises(UserError, match=r"dataset.toml: \[windows\] should declare `train`"):
        timeline.tick(np.array([1]))
    with pytest.raises(UserError, match=r"dataset.toml: \[windows\] should declare `tune`"):
        timeline.rows_in("tune")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from("abc"), st.integers(0, 1)),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 11),
)
def test_seeds_against_plain_python(make_timeline, log, before):
    timeline = make_timeline(CLICKS, impressions=[(*row, 0) for row in log])
    expected = {item: sorted({u for t, u, i, c in log if i == item and c and t < before}) for item in timeline.item_ids}
    assert seeds_by_id(timeline, before) == expected


def test_order_of_the_file_is_no_information(make_timeline):
    first, second = make_timeline(CLICKS, impressions=LOG), make_timeline(CLICKS, impressions=LOG[::-1])
    assert first.user_ids.equals(second.user_ids) and first.item_ids.equals(second.item_ids)
    for before in (20, 32):
        assert all(np.array_equal(a, b) for a, b in zip(first.seeds(before), second.seeds(before), strict=True))
    assert isinstance(first.user_ids, pd.Index) and first.user_ids.dtype == np.int64
