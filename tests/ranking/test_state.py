"""States by hand, and the one property everything rests on: what happens later changes nothing earlier."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ranking.features import Encoder
from ranking.state import State, StateBuilder, in_batches
from ranking.statistics import StatisticCounter
from ranking.timeline import Events, Timeline

TOML = """schema_version = 1
time = "ordinal"
[ids]
user = "int64"
item = "string"
[labels]
seed_event = "click"
[windows]
train = [10, 40]
[features.user]
age = { kind = "numeric" }
city = { kind = "categorical" }
[features.item]
tags = { kind = "multi" }
[features.context]
tab = { kind = "categorical" }
[features.behavior]
read = { keep = 3 }
asked = { vocabulary = "own", keep = 2 }
[features.statistic]
item_ctr = { key = ["item_id"], event = "click", prior = 2 }
item_cvr = { key = ["item_id"], event = "conversion", per = "click", prior = 2 }
item_tab_ctr = { key = ["item_id", "tab"], event = "click", prior = 2 }
tag_ctr = { key = ["tags"], event = "click", prior = 2 }
user_ctr = { key = ["user_id"], event = "click", prior = 2 }
user_tab_item_ctr = { key = ["user_id", "tab", "item_id"], event = "click", prior = 2 }
[state]
tick = 10
k = 2
min_seeds = 2
"""
# timestamp, user, item, click, conversion, click_time, conversion_time, tab
LOG = [
    (1, 1, "a", 1, 1, 1, 20, "home"),
    (2, 2, "a", 1, 0, 5, -1, "home"),
    (3, 2, "b", 1, 0, 3, -1, "home"),
    (12, 3, "a", 1, 0, 20, -1, "new"),
    (14, 3, "b", 1, 0, 15, -1, "home"),
    (20, 1, "b", 1, 0, 20, -1, "new"),
]
BEHAVIORS = [
    (1, "read", "a", 4, 0),
    (1, "read", "b", 6, 0),
    (2, "read", "b", 6, 0),
    (2, "read", "a", 20, 0),
    (3, "asked", "why", 7, 0),
    (3, "asked", "how", 21, 0),
]
USERS = {"user_id": [1, 2, 3, 9], "age": [20.0, 40.0, 30.0, 99.0], "city": ["xi", "xi", "an", "far"]}
ITEMS = {"item_id": ["a", "b", "c"], "tags": ["x,y", "y", "z"], "price": [2.5, None, 4.0]}
TABLES = {"users": USERS, "items": ITEMS, "behaviors": BEHAVIORS}


def vectors(arrays):
    """A user representation that can be done by hand: [city, sum of the items read, how many], exact in float32."""
    assert "user_id" not in arrays  # the representation is universal: it must not know who it is
    read = arrays["behavior_read"]
    return np.stack([arrays["user_city"], read.sum(axis=1), (read > 0).sum(axis=1)], axis=1).astype(np.float32)


class Doubled:
    """A look-alike whose transform doubles."""

    def transform(self, user):
        return 2 * user


def builder_of(timeline: Timeline, before: int) -> StateBuilder:
    return StateBuilder(
        timeline,
        Encoder.fit(timeline, before=before),
        lookalike_encoder=Encoder.fit(timeline, before=before, rank_by_seeds=True),
        representation=vectors,
        lookalike=Doubled(),
    )


@pytest.fixture(scope="module")
def timeline(make_timeline):
    return make_timeline(TOML, impressions=LOG, **TABLES)


@pytest.fixture(scope="module")
def state(timeline) -> State:
    return builder_of(timeline, 20).at(20)


def test_in_batches_joins_slices():
    arrays = {"a": np.arange(7), "b": np.eye(7)}
    sizes = []

    def function(batch):
        sizes.append(len(batch["a"]))
        return batch["a"][:, None] + batch["b"]

    assert np.array_equal(in_batches(function, arrays, 3), np.arange(7)[:, None] + np.eye(7)) and sizes == [3, 3, 1]
    assert in_batches(lambda batch: batch["a"][:, None] * 1.0, {"a": np.arange(0)}).shape == (0, 1)


def test_state_known_values(state):
    assert state.user_ids.tolist() == [1, 2, 3, 9] and state.item_ids.tolist() == ["a", "b", "c"]
    # items by events before 20: a shown 3 and read 1, b shown 2 and read 2: a = 2, b = 3 (tie by id); by clicks before
    # 20 too: a 2 (the one at 20 is late), b 2. Cities: xi = 2, an = 3, and far is not seen before 20.
    # user 1 read b, a; user 2 read b (a at 20 is late)
    expected = [[2, 3 + 2, 2], [2, 3, 1], [3, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert state.user_vectors.tolist() == expected and state.user_vectors.dtype == np.float32
    assert state.users["behavior_read"].tolist() == [[3, 2, 0], [3, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert state.users["behavior_asked"].tolist() == [[0, 0], [0, 0], [2, 0], [0, 0], [0, 0]]
    # seeds before 20: a 1 and 2, b 2 and 3; k = 2 keeps the seeds themselves, doubled
    assert state.seed_counts.tolist() == [2, 2, 0, 0]
    assert state.centroid_counts.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert state.centroids[0].tolist() == [[4, 10, 4], [4, 6, 2]]
    assert state.centroids[1].tolist() == [[4, 6, 2], [6, 0, 0]]
    assert not state.centroids[2:].any() and state.centroids.dtype == np.float32
    assert np.array_equal(state.prices, np.array([2.5, np.nan, 4, np.nan], np.float32), equal_nan=True)


def test_too_few_seeds_have_no_centroids_but_a_count(timeline):
    builder = builder_of(timeline, 20)
    # before 5: 1 on a, 2 on b: one seed each
    early = builder.at(5)
    assert early.seed_counts.tolist() == [1, 1, 0, 0] and not early.centroid_counts.any()
    offsets, users, counts = builder.seeds(6)  # the second on a came at 5
    assert offsets.tolist() == [0, 2, 2, 2] and users.tolist() == [0, 1] and counts.tolist() == [2, 1, 0]


def test_features_of_rows(state):
    user, item = state.rows("user", pd.Index([3, 2, 777])), state.rows("item", pd.Index(["b", "nope", "a"]))
    assert user.tolist() == [2, 1, 4] and item.tolist() == [1, 3, 0]
    found = state.features(user, item, {"context_tab": np.array([2, 2, 2], np.int32)})
    assert found["user_id"].tolist() == [3, 2, 1] and found["item_id"].tolist() == [3, 1, 2]
    assert found["user_age"].tolist() == [0.5, 1.0, 0.5]
    assert found["behavior_read"].tolist() == [[0, 0, 0], [3, 0, 0], [0, 0, 0]]
    assert found["log_seed_count"] == pytest.approx([np.log(3), 0, np.log(3)])
    # b was shown twice in home and clicked twice; clicks 4 of 5 impressions before 20: g = 5/7; (2 + 10/7) / 4 = 6/7
    both = [2 / (2 + 2), np.log(6)]
    assert found["statistic_item_tab_ctr"][0] == pytest.approx(both, abs=1e-6)
    nobody = [0, np.log(5 / 2)]
    assert found["statistic_item_ctr"][1] == pytest.approx(nobody, abs=1e-6)
    assert found["statistic_item_tab_ctr"][1] == pytest.approx(nobody, abs=1e-6)
    assert found["statistic_user_ctr"][2] == pytest.approx(nobody, abs=1e-6)
    assert {len(values) for values in found.values()} == {3}


def test_users_statistics_can_stay_frozen(timeline):
    builder = builder_of(timeline, 20)
    free, frozen, later = builder.at(20), builder.at(20, user_statistics_at=4), builder.at(3, user_statistics_at=4)
    for name in free.statistics:
        own = "user" in name
        same = np.array_equal(free.statistics[name].values, frozen.statistics[name].values)
        assert same != own, name
    assert np.array_equal(frozen.statistics["user_ctr"].values, builder.at(4).statistics["user_ctr"].values)
    # but never later than the tick
    assert np.array_equal(later.statistics["user_ctr"].values, builder.at(3).statistics["user_ctr"].values)


@pytest.mark.parametrize(("users", "items"), [([1, 3], ["b", "c"]), ([1, 2, 3, 9], ["a"]), ([], ["a", "b", "c"])])
def test_a_state_of_fewer_ids(state, users, items):
    fewer = state.only(state.user_ids.isin(users), state.item_ids.isin(items))
    assert fewer.user_ids.tolist() == users and fewer.item_ids.tolist() == items and fewer.tick == state.tick
    pairs = pd.MultiIndex.from_product([[*state.user_ids, 777], [*state.item_ids, "nope"]])
    known = pairs.get_level_values(0).isin(users), pairs.get_level_values(1).isin(items)
    # who is left keeps every feature; who is gone has become nobody
    asked = pairs.get_level_values(0).where(known[0], 777), pairs.get_level_values(1).where(known[1], "nope")
    rows = fewer.rows("user", pairs.get_level_values(0)), fewer.rows("item", pairs.get_level_values(1))
    expected_rows = state.rows("user", asked[0]), state.rows("item", asked[1])
    for tab in (1, 2, 3):
        context = {"context_tab": np.full(len(pairs), tab, np.int32)}
        found, expected = fewer.features(*rows, context), state.features(*expected_rows, context)
        assert all(np.array_equal(found[name], values) for name, values in expected.items())
    for name in ("centroids", "centroid_counts", "seed_counts"):
        assert np.array_equal(getattr(fewer, name)[rows[1]], getattr(state, name)[expected_rows[1]])
    assert np.array_equal(fewer.user_vectors[rows[0]], state.user_vectors[expected_rows[0]])
    assert np.array_equal(fewer.prices[rows[1]], state.prices[expected_rows[1]], equal_nan=True)


# Time travels one way ------------------------------------------------------------------------------------------------


def before_only(log, behaviors, moment):
    """What a log written at that moment would have held: no later row, and no label that was not known yet."""
    past = []
    for t, user, item, click, conversion, click_time, conversion_time, tab in log:
        if t < moment:
            click = click and click_time < moment
            conversion = click and conversion and conversion_time < moment
            row = (t, user, item, int(click), int(conversion))
            past.append((*row, click_time if click else -1, conversion_time if conversion else -1, tab))
    return past, [row for row in behaviors if row[3] < moment]


def flat(values: np.ndarray) -> np.ndarray:
    """[n, width] without the padding on the right: its width may grow with the log."""
    values = values.reshape(len(values), -1)
    used = np.flatnonzero(values.any(axis=0))
    return values[:, : used[-1] + 1 if len(used) else 0]


def differences(past: Timeline, whole: Timeline, moment: int) -> set[str]:
    """Names of everything known at a moment, for the ids of `past`, that differs between two timelines."""
    builders = builder_of(past, moment), builder_of(whole, moment)
    found = set()
    for kind in ("encoder", "lookalike_encoder"):
        first, second = (getattr(builder, kind) for builder in builders)
        for name, vocabulary in first.vocabularies.items():
            if vocabulary.values.tolist() != second.vocabularies[name].values.tolist():
                found.add(f"vocabulary {name}")
        found |= {f"range {name}" for name in first.ranges if first.ranges[name] != second.ranges[name]}
    user_ids, item_ids = past.user_ids.append(pd.Index([-1])), past.item_ids.append(pd.Index(["nobody"]))
    pairs = pd.MultiIndex.from_product([user_ids, item_ids])
    views = []
    for builder in builders:
        state = builder.at(moment)
        item, user = state.rows("item", item_ids), state.rows("user", user_ids)
        offsets, users = builder.timeline.seeds(moment)
        ids = builder.timeline.user_ids[users]
        view = {
            "user_vectors": state.user_vectors[user],
            "centroids": state.centroids[item],
            "centroid_counts": state.centroid_counts[item],
            "prices": np.nan_to_num(state.prices[item], nan=-1),
            "seeds": [ids[offsets[i] : offsets[i + 1]].tolist() if i < len(offsets) - 1 else [] for i in item],
        }
        rows = state.rows("user", pairs.get_level_values(0)), state.rows("item", pairs.get_level_values(1))
        for tab in (1, 2, 3):
            arrays = state.features(*rows, {"context_tab": np.full(len(pairs), tab, np.int32)})
            view |= {f"{name}, tab {tab}": values for name, values in arrays.items()}
        views.append(view)
    for name, values in views[0].items():
        same = values == views[1][name] if name == "seeds" else np.array_equal(flat(values), flat(views[1][name]))
        found |= set() if same else {name}
    return found


def both(make_timeline, log, behaviors, moment, *, same_tables=False):
    """The timeline as of a moment, and the one of the whole log."""
    past, earlier = before_only(log, behaviors, moment)
    assume(past and {row[1] for row in earlier} == {"read", "asked"})
    whole = make_timeline(TOML, impressions=log, behaviors=behaviors, users=USERS, items=ITEMS)
    seen = {row[1] for row in past} | {row[0] for row in earlier}
    users, items = pd.DataFrame(USERS), pd.DataFrame(ITEMS)
    if not same_tables:  # the tables of that time hold whoever had been there, and no one else
        users = users[users["user_id"].isin(seen)]
        items = items[items["item_id"].isin({row[2] for row in past} | {row[2] for row in earlier})]
    return make_timeline(TOML, impressions=past, behaviors=earlier, users=users, items=items), whole


times = st.integers(0, 39)
impression = st.builds(
    lambda t, user, item, label, d, e, tab: (
        (t, user, item, *label, t + d if label[0] else -1, t + d + e if label[1] else -1, tab)
    ),
    times,
    st.sampled_from([3, 1, 9, 2, 5]),
    st.sampled_from(["b", "a", "c", "new"]),
    st.sampled_from([(0, 0), (1, 0), (1, 1)]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from(["home", "new", "third"]),
)
behavior = st.builds(
    lambda user, field, value, t, order: (user, field, value, t, order),
    st.sampled_from([5, 2, 3, 1, 7]),
    st.sampled_from(["read", "asked"]),
    st.sampled_from(["a", "b", "z", "0"]),
    times,
    st.integers(0, 2),
)


any_course = given(
    st.lists(impression, max_size=25).map(lambda rows: [*rows, *LOG[:2]]),
    st.lists(behavior, max_size=15).map(lambda rows: [*rows, (1, "read", "a", 0, 0), (1, "asked", "a", 0, 0)]),
    st.integers(3, 40),
)


@settings(max_examples=10, deadline=None)
@any_course
def test_what_comes_later_changes_nothing(make_timeline, log, behaviors, moment):
    assert differences(*both(make_timeline, log, behaviors, moment), moment) == set()


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@any_course
def test_what_comes_later_changes_nothing_in_many_courses(make_timeline, log, behaviors, moment):
    assert differences(*both(make_timeline, log, behaviors, moment), moment) == set()


FIT = Encoder.fit


def later(method, place=1):
    """A planted leak: the method is asked about one ms later, so that it sees the tick itself."""
    return lambda *args: method(*args[:place], args[place] + 1, *args[place + 1 :])


LEAKS = {
    "seeds": (Timeline, "seeds", later(Timeline.seeds), {"seeds", "centroids", "log_seed_count, tab 1"}),
    "known": (Timeline, "known", later(Timeline.known, place=2), {"range user_age", "vocabulary user_city"}),
    "behaviours": (Events, "latest", later(Events.latest, place=2), {"user_vectors", "behavior_read, tab 1"}),
    "statistics": (
        StatisticCounter,
        "table",
        later(StatisticCounter.table),
        {f"statistic_{name}, tab 2" for name in ("item_ctr", "item_cvr", "item_tab_ctr", "tag_ctr", "user_ctr")},
    ),
    "vocabularies": (
        Encoder,
        "fit",
        classmethod(lambda cls, timeline, *, before, **rest: FIT(timeline, before=before + 1, **rest)),
        {"vocabulary item", "vocabulary user_id", "vocabulary context_tab"},
    ),
    "labels at once": (
        Timeline,
        "_label_time",
        lambda timeline, label: timeline.time,
        {"seeds", "statistic_item_ctr, tab 1", "statistic_item_cvr, tab 1"},
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_caught(make_timeline, monkeypatch, name):
    log = [*LOG, (20, 9, "b", 1, 1, 20, 20, "third"), (20, 9, "new", 0, 0, -1, -1, "home")]
    past, whole = both(make_timeline, log, BEHAVIORS, 20, same_tables=True)
    assert differences(past, whole, 20) == set()
    owner, method, leaking, expected = LEAKS[name]
    monkeypatch.setattr(owner, method, leaking)
    past, whole = both(make_timeline, log, BEHAVIORS, 20, same_tables=True)
    found = differences(past, whole, 20)
    assert expected <= found, found
