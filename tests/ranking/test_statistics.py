import collections
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.features import Encoder
from ranking.statistics import StatisticCounter, combine, smoothed

TOML = """schema_version = 1
time = "ordinal"
[ids]
user = "int64"
item = "string"
[windows]
train = [10, 40]
[features.user]
city = { kind = "categorical" }
[features.item]
tags = { kind = "multi" }
[features.context]
tab = { kind = "categorical" }
[features.behavior]
asked = { vocabulary = "own" }
[features.statistic]
item_ctr = { key = ["item_id"], event = "click", prior = 2 }
item_cvr = { key = ["item_id"], event = "conversion", per = "click", prior = 2 }
item_tab_ctr = { key = ["item_id", "tab"], event = "click", prior = 2 }
tag_ctr = { key = ["tags"], event = "click", prior = 2 }
user_ctr = { key = ["user_id"], event = "click" }
city_ctr = { key = ["city"], event = "click", prior = 2 }
city_item_ctr = { key = ["city", "item_id"], event = "click", prior = 2 }
item_like = { key = ["item_id"], event = "behaviors.like", per = "behaviors.watch", prior = 2 }
tag_like = { key = ["tags"], event = "behaviors.like", per = "behaviors.watch", prior = 2 }
[state]
tick = 10
"""
QUOTED = "b/\"天'"
# timestamp, user, item, click, conversion, click_time, conversion_time, tab
LOG = [
    (1, 1, "a", 1, 1, 3, 20, "home"),
    (2, 2, "a", 0, 0, -1, -1, "home"),
    (3, 1, "a", 1, 0, 20, -1, "new"),
    (4, 2, QUOTED, 0, 0, -1, -1, "home"),
    (20, 1, QUOTED, 1, 0, 20, -1, "new"),
    (21, 1, QUOTED, 1, 1, 22, 23, "new"),
]
BEHAVIORS = [
    (1, "watch", "a", 1, 0),
    (1, "like", "a", 1, 1),
    (2, "watch", "a", 19, 0),
    (2, "watch", "c", 20, 0),
    (2, "like", "c", 20, 1),
    (2, "asked", "why", 3, 0),
]
USERS = {"user_id": [1, 2], "city": ["xi", None]}
ITEMS = {"item_id": ["a", QUOTED, "c"], "tags": ["x,y", "y", None]}
TABLES = {"users": USERS, "items": ITEMS, "behaviors": BEHAVIORS}


def counters(timeline, before=40):
    encoder = Encoder.fit(timeline, before=before)
    static = {side: encoder.static(timeline, side) for side in ("user", "item")}
    context = encoder.context(timeline, timeline.impressions)
    made = {
        statistic.name: StatisticCounter(statistic, timeline, encoder, static, context)
        for statistic in timeline.schema.statistics
    }
    return made, encoder, static


def features(n, probability, prior=2):
    return pytest.approx([n / (n + prior), math.log(probability / (1 - probability))], abs=1e-6)


@pytest.fixture(scope="module")
def timeline(make_timeline):
    return make_timeline(TOML, impressions=LOG, **TABLES)


@pytest.fixture(scope="module")
def made(timeline):
    return counters(timeline)


def test_smoothed_known_values():
    # g = (3 + 0 + 1) / (6 + 2 + 2) = .4;  (3 + 20 * .4) / 26 = 11 / 26;  (0 + 8) / 22;  nothing: g itself
    values, nothing = smoothed(np.array([3.0, 0.0]), np.array([6.0, 2.0]), 20.0)
    assert values[0] == features(6, 11 / 26, 20) and values[1] == features(2, 8 / 22, 20)
    assert nothing == features(0, 0.4)
    assert values.dtype == nothing.dtype == np.float32
    # no history at all says one half
    values, nothing = smoothed(np.zeros(0), np.zeros(0), 5.0)
    assert values.shape == (0, 2) and nothing == features(0, 0.5)
    # more events than opportunities (a label known before its impression's own): finite all the same
    assert np.isfinite(smoothed(np.array([50.0]), np.array([1.0]), 0.1)[0]).all()


def test_combine_is_mixed_radix():
    # 2 * 10 + 7, then * 3 + 1
    code = combine([(np.array([2], np.int32), 5), (np.array([7], np.int32), 10), (np.array([1], np.int32), 3)])
    assert code.tolist() == [82] and code.dtype == np.int64
    big = combine([(np.array([2**31 - 1], np.int32), 2**31), (np.array([5], np.int32), 2**31)])
    assert big.tolist() == [(2**31 - 1) * 2**31 + 5]


def test_item_rates(timeline, made):
    item_ctr = made[0]["item_ctr"]
    ids = timeline.item_ids.tolist()
    assert item_ctr.side == "item"
    # before 20: a shown 3 times and clicked once (the click at 20 comes too late), b shown once, no click;
    # g = (1 + 1) / (4 + 2) = 1/3;  a (1 + 2/3) / 5 = 1/3;  b (2/3) / 3 = 2/9;  c and nobody: g
    found = dict(zip([*ids, "nobody"], item_ctr.table(20).values, strict=True))
    assert found["a"] == features(3, 1 / 3) and found[QUOTED] == features(1, 2 / 9)
    assert found["c"] == features(0, 1 / 3) and found["nobody"] == features(0, 1 / 3)
    # one ms later: a 2 of 3, b 1 of 2;  g = 4/7;  a (2 + 8/7) / 5 = 22/35;  b (1 + 8/7) / 4 = 15/28
    found = dict(zip([*ids, "nobody"], item_ctr.table(21).values, strict=True))
    assert found["a"] == features(3, 22 / 35) and found[QUOTED] == features(2, 15 / 28)
    # before all: one half
    assert (item_ctr.table(1).values == item_ctr.table(1).values[-1]).all()
    assert item_ctr.table(1).values[-1] == features(0, 0.5)


def test_conversions_count_when_they_come(timeline, made):
    item_cvr = made[0]["item_cvr"]
    a = timeline.item_ids.get_loc("a")
    # before 20: one click on a, its conversion comes at 20;  g = 1/3;  (0 + 2/3) / 3
    assert item_cvr.table(20).values[a] == features(1, 2 / 9)
    # before 21: clicks a 2, b 1, conversions a 1;  g = 2/5;  (1 + 4/5) / 4
    assert item_cvr.table(21).values[a] == features(2, 9 / 20)


def test_a_label_without_time_counts_at_the_end_of_its_window(make_timeline):
    hour = 3_600_000
    toml = TOML.replace('time = "ordinal"', "[labels]\nattribution_hours = { conversion = 2 }")
    toml = toml.replace("train = [10, 40]", 'train = ["1970-01-01", "1970-01-02"]').replace("tick = 10", 'tick = "1h"')
    timeline = make_timeline(toml, impressions=[(5, 1, "a", 1, 1, -1, -1, "home")], **TABLES)
    item_cvr, item_ctr = (counters(timeline)[0][name] for name in ("item_cvr", "item_ctr"))
    a = timeline.item_ids.get_loc("a")
    # the click counts at once: 1 of 1, g = 2/3, (1 + 4/3) / 3
    assert item_ctr.table(5).values[a] == features(0, 0.5) and item_ctr.table(6).values[a] == features(1, 7 / 9)
    # the conversion at 5 + 2 h: until then 0 of 1, g = 1/3, (2/3) / 3; after it as the click
    assert item_cvr.table(5 + 2 * hour).values[a] == features(1, 2 / 9)
    assert item_cvr.table(6 + 2 * hour).values[a] == features(1, 7 / 9)


def test_cross_known_values(timeline, made):
    counter, encoder = made[0]["item_tab_ctr"], made[1]
    table = counter.table(20)
    tab = encoder.vocabularies["context_tab"].encode(pd.Series(["home", "new", "home", "new", "home", None, "?"]))
    item = np.append(timeline.item_ids.get_indexer(["a", "a", QUOTED, QUOTED, "c", "a"]), 3)
    found = table.look_up(item, item, {"item_row": item, "context_tab": tab})
    # before 20: (a, home) 1 of 2, (a, new) 0 of 1, (b, home) 0 of 1;  g = 2/6
    assert table.side == "cross" and len(table.codes) == 3 and (np.diff(table.codes) > 0).all()
    expected = [(2, 5 / 12), (1, 2 / 9), (1, 2 / 9), (0, 1 / 3), (0, 1 / 3), (0, 1 / 3), (0, 1 / 3)]
    assert all(row == features(*pair) for row, pair in zip(found, expected, strict=True))
    # an empty past has no codes
    empty = counter.table(0)
    assert len(empty.codes) == 0 and empty.look_up(item, item, {"item_row": item, "context_tab": tab}).shape == (7, 2)


def test_multi_valued_keys_take_the_mean(timeline, made):
    table = made[0]["tag_ctr"].table(20)
    found = dict(zip([*timeline.item_ids, "nobody"], table.values, strict=True))
    # a has x and y, b has y: x 1 of 3, y 1 of 4;  g = (2 + 1) / (7 + 2) = 1/3;  x (1 + 2/3) / 5 = 1/3, y (5/3) / 6
    x, y = (3 / 5, math.log(1 / 2)), (4 / 6, math.log(5 / 13))
    assert table.side == "item"
    assert found["a"] == pytest.approx([(x[0] + y[0]) / 2, (x[1] + y[1]) / 2], abs=1e-6)
    assert found[QUOTED] == pytest.approx(y, abs=1e-6)
    assert found["c"] == features(0, 1 / 3) and found["nobody"] == features(0, 1 / 3)


def test_users_and_features_as_keys(timeline, made):
    # before 20 user 1 clicked 1 of 2, user 2 0 of 2; g = 1/3, prior 20: (1 + 20/3) / 22 and (20/3) / 22
    table = made[0]["user_ctr"].table(20)
    assert table.side == "user" and len(table.values) == 3
    expected = [features(2, 23 / 66, 20), features(2, 10 / 33, 20), features(0, 1 / 3)]
    assert all(row == pair for row, pair in zip(table.values, expected, strict=True))
    # city xi 1 of 2, without a city 0 of 2: (2/3) / 4; an unknown user is not one without a city
    table = made[0]["city_ctr"].table(20)
    expected = [features(2, 5 / 12), features(2, 1 / 6), features(0, 1 / 3)]
    assert all(row == pair for row, pair in zip(table.values, expected, strict=True))
    counter, static = made[0]["city_item_ctr"], made[2]
    user, item = np.array([0, 1, 1, 0]), timeline.item_ids.get_indexer(["a", "a", "c", QUOTED])
    arrays = {"user_city": static["user"]["user_city"][user], "item_row": item}
    found = counter.table(20).look_up(user, item, arrays)
    # city xi on a: 1 of 2; none on a: 0 of 1; none on c and xi on b never: g
    expected = [features(2, 5 / 12), features(1, 2 / 9), features(0, 1 / 3), features(0, 1 / 3)]
    assert all(row == pair for row, pair in zip(found, expected, strict=True))


def test_behaviors_as_events(timeline, made):
    ids = [*timeline.item_ids, "nobody"]
    # before 20: a watched 2, liked 1; c comes at 20;  g = 1/2;  (1 + 1) / 4
    found = dict(zip(ids, made[0]["item_like"].table(20).values, strict=True))
    assert found["a"] == features(2, 1 / 2) and found["c"] == features(0, 1 / 2)
    found = dict(zip(ids, made[0]["item_like"].table(21).values, strict=True))
    # c 1 of 1;  g = 3/5;  (1 + 6/5) / 3
    assert found["c"] == features(1, 11 / 15)
    # its tags: x and y 1 of 2 each, g = 3/6; b has y, though nobody watched it
    found = dict(zip(ids, made[0]["tag_like"].table(20).values, strict=True))
    assert found["a"] == features(2, 1 / 2) and found[QUOTED] == features(2, 1 / 2)


def test_refusals(make_timeline):
    toml = TOML.replace('key = ["tags"], event = "click"', 'key = ["tab"], event = "click"')
    toml = toml.replace('tab = { kind = "categorical"', 'tab = { kind = "multi"').replace(
        '"item_id", "tab"', '"item_id"'
    )
    timeline = make_timeline(toml, impressions=LOG, **TABLES)
    with pytest.raises(UserError, match="should be a feature of users or items. Received: 'tab'"):
        counters(timeline)
    toml = TOML.replace("behaviors.like", "behaviors.asked")
    with pytest.raises(UserError, match="behaviors.asked is not a behaviour over items"):
        counters(make_timeline(toml, impressions=LOG, **TABLES))


impression = st.tuples(
    st.integers(0, 20),
    st.integers(1, 3),
    st.sampled_from(["a", QUOTED, "c"]),
    st.sampled_from([(0, 0), (1, 0), (1, 1)]),
    st.integers(-1, 8),
    st.integers(-1, 8),
    st.sampled_from(["home", "new", ""]),
)


CITY = dict(zip(*USERS.values(), strict=True))
TAGS = dict(zip(*ITEMS.values(), strict=True))


def slow(statistic, log, tick):
    """The statistic in plain Python: (user, item, tab) -> [shrinkage, logit]."""

    def keys(user, item, tab):
        if statistic.key == ("tags",):
            return [(tag,) for tag in (TAGS.get(item) or "").split(",") if tag]
        if statistic.key == ("city",) and user == "nobody":
            return []
        values = {"user_id": user, "item_id": item, "tab": tab, "city": CITY.get(user)}
        return [tuple(values[column] for column in statistic.key)]

    counts = {statistic.event: collections.Counter(), statistic.per: collections.Counter()}
    for t, user, item, click, conversion, click_time, conversion_time, tab in log:
        known = {"impression": t}
        if click:
            known["click"] = t if click_time < 0 else click_time
        if conversion:
            known["conversion"] = t if conversion_time < 0 else conversion_time
        for event, counter in counts.items():
            if known.get(event, tick) < tick:
                counter.update(keys(user, item, tab))
    rate = (counts[statistic.event].total() + 1) / (counts[statistic.per].total() + 2)

    def of(*row):
        found = []
        for key in keys(*row) or [None]:
            e, n = (counts[event][key] for event in (statistic.event, statistic.per))
            p = min((e + statistic.prior * rate) / (n + statistic.prior), 1 - 1e-6)
            found.append([n / (n + statistic.prior), math.log(p) - math.log(1 - p)])
        return np.mean(found, axis=0)

    return of


any_log = given(st.lists(impression, min_size=1, max_size=25), st.integers(0, 25))


@settings(max_examples=12, deadline=None)
@any_log
def test_against_plain_python(make_timeline, rows, tick):
    is_as_in_plain_python(make_timeline, rows, tick)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@any_log
def test_many_logs_against_plain_python(make_timeline, rows, tick):
    is_as_in_plain_python(make_timeline, rows, tick)


def is_as_in_plain_python(make_timeline, rows, tick):
    log = [
        (t, u, i, *label, t + d if label[0] and d >= 0 else -1, t + e if label[1] and e >= 0 else -1, tab)
        for t, u, i, label, d, e, tab in rows
    ]
    timeline = make_timeline(TOML, impressions=log, **TABLES)
    made, encoder, static = counters(timeline)
    users, items = [*timeline.user_ids, "nobody"], [*timeline.item_ids, "nobody"]
    asked = list(itertools.product(range(len(users)), range(len(items)), ["home", "new", ""]))
    user, item, tabs = (np.array(column) for column in zip(*asked, strict=True))
    arrays = {
        "user_row": user,
        "item_row": item,
        "context_tab": encoder.encode("context_tab", timeline.schema.side("context")[0], pd.Series(tabs)),
        "user_city": static["user"]["user_city"][user],
    }
    for statistic in timeline.schema.statistics:
        if not statistic.event.startswith("behaviors."):
            of = slow(statistic, log, tick)
            expected = [of(users[u], items[i], tab) for u, i, tab in asked]
            found = made[statistic.name].table(tick).look_up(user, item, arrays)
            assert np.allclose(found, expected, rtol=1e-5, atol=1e-5), statistic.name
