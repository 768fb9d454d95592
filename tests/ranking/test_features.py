import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.schema import Feature
from ranking.errors import UserError
from ranking.features import Encoder, Vocabulary, gather

BIG = 2**53 + 1  # as a float it would be its neighbour
TOML = """schema_version = 1
time = "ordinal"
[ids]
user = "int64"
item = "int64"
[labels]
seed_event = "behaviors.read"
[windows]
lookalike = [0, 10]
train = [10, 40]
[features.user]
city = { kind = "categorical", min_count = 2 }
age = { kind = "numeric" }
[features.item]
tags = { kind = "multi", separator = "||" }
views = { kind = "numeric", transform = "log1p" }
[features.context]
tab = { kind = "categorical" }
hour = { kind = "numeric" }
[features.behavior]
read = { keep = 2 }
asked = { vocabulary = "own", keep = 3 }
[state]
tick = 10
"""
IMPRESSIONS = pd.DataFrame(
    {
        "request_id": [0, 1, 2, 3, 4],
        "timestamp": [1, 2, 3, 20, 21],
        "user_id": [1, 2, 3, 4, 4],
        "item_id": [10, 11, 11, 12, 12],
        "click": 0,
        "conversion": 0,
        "tab": ["home", "", None, "new", "new"],
        "hour": [2.0, 4.0, np.nan, 99.0, 99.0],
    }
)
BEHAVIORS = [
    # user, field, value, timestamp, order
    (1, "read", "13", 4, 0),
    (1, "read", "13", 4, 1),
    (1, "read", "10", 5, 0),
    (2, "read", "10", 20, 0),
    (1, "asked", "小说", 2, 0),
    (1, "asked", "cats", 3, 0),
    (2, "asked", "cats", 19, 0),
    (2, "asked", "late", 20, 0),
]
USERS = {"user_id": [1, 2, 3, 4, 5], "city": ["xi", "xi", "an", "xi", None], "age": [20.0, 30.0, None, 90.0, 10.0]}
ITEMS = {
    "item_id": [10, 11, 12, 14],
    "tags": ["a||b", "b||", "c||b", None],
    "views": [0.0, np.e**2 - 1, 1e9, np.nan],
}


@pytest.fixture(scope="module")
def timeline(make_timeline):
    return make_timeline(TOML, impressions=IMPRESSIONS, users=USERS, items=ITEMS, behaviors=BEHAVIORS)


@pytest.fixture(scope="module")
def encoder(timeline):
    return Encoder.fit(timeline, before=20)


def by_id(index, values):
    return dict(zip([*index.tolist(), "nobody"], values.tolist(), strict=True))


def test_vocabulary_known_values():
    # b 3 times, then a and c twice each, in their own order; d once
    values = pd.Series(["c", "b", "a", "b", None, "c", "d", "b", "a"])
    vocabulary = Vocabulary.fit(values, 2)
    assert vocabulary.values.tolist() == ["b", "a", "c"] and vocabulary.size == 5
    assert vocabulary.encode(pd.Series(["a", "d", None, "b", "A"])).tolist() == [3, 1, 0, 2, 1]
    assert vocabulary.encode(pd.Series(["a"])).dtype == np.int32
    assert Vocabulary.fit(values).values.tolist() == ["b", "a", "c", "d"]
    empty = Vocabulary.fit(pd.Series([None, None], dtype="str"))
    assert empty.size == 2 and empty.encode(pd.Series(["a", None])).tolist() == [1, 0]


def test_vocabulary_keeps_ids_apart():
    numbers = Vocabulary.fit(pd.Series([BIG, BIG, BIG - 1]))
    assert numbers.encode(pd.Index([BIG - 1, BIG, BIG + 1])).tolist() == [3, 2, 1]
    texts = ['O\'Neil "x"', "a/b", "天津", "007"]
    assert Vocabulary.fit(pd.Series(texts)).encode(pd.Series(sorted(texts) + ["7"])).tolist() == [2, 3, 4, 5, 1]


def test_what_the_past_says(encoder):
    values = {name: vocabulary.values.tolist() for name, vocabulary in encoder.vocabularies.items()}
    assert values == {
        # one impression each before 20, ties by id; 4 comes at 20, 5 never
        "user_id": [1, 2, 3],
        # events before 20: 10 shown 1 + read 1, 11 shown 2, 13 read 2; 12 is shown at 20, 14 never
        "item": [10, 11, 13],
        # cities of users 1 to 3: xi twice, an once (min_count 2)
        "user_city": ["xi"],
        # tags of items 10 and 11 (13 is not in the items table)
        "item_tags": ["b", "a"],
        "context_tab": ["home"],
        # cats twice, the other once; late comes at 20
        "behavior_asked": ["cats", "小说"],
    }
    assert encoder.ranges == {
        # 20 and 30 scale to 0 and 1; users 4 and 5 have not been seen
        "user_age": (20.0, 30.0, 0.5),
        # log(1 + views) of items 10 and 11: 0 and 2
        "item_views": (0.0, pytest.approx(2.0), pytest.approx(0.5)),
        "context_hour": (2.0, 4.0, 0.5),
    }
    assert encoder.before == 20


def test_items_ranked_by_seed_events(timeline):
    # reads before 20: 13 twice, 10 once, 11 none
    ranked = Encoder.fit(timeline, before=20, rank_by_seeds=True).vocabularies["item"]
    assert ranked.values.tolist() == [13, 10, 11]
    # before 5 item 10 has been shown once and not yet read; 11 has been shown twice
    assert Encoder.fit(timeline, before=5, rank_by_seeds=True).vocabularies["item"].values.tolist() == [13, 11, 10]
    # at least two events: read at 5, item 10 has two before 20
    fitted = Encoder.fit(timeline, before=5, id_min_count=2)
    assert fitted.vocabularies["item"].values.tolist() == [11, 13]
    assert fitted.vocabularies["user_id"].values.tolist() == []


def test_static_known_values(timeline, encoder):
    users = encoder.static(timeline, "user")
    ids = timeline.user_ids
    assert list(users) == ["user_id", "user_city", "user_age"]
    assert by_id(ids, users["user_id"]) == {1: 2, 2: 3, 3: 4, 4: 1, 5: 1, "nobody": 1}
    # an is out of vocabulary, user 5 has none
    assert by_id(ids, users["user_city"]) == {1: 2, 2: 2, 3: 1, 4: 2, 5: 0, "nobody": 0}
    # clipped to [20, 30]; the missing get the mean
    assert by_id(ids, users["user_age"]) == {1: 0.0, 2: 1.0, 3: 0.5, 4: 1.0, 5: 0.0, "nobody": 0.5}
    items = encoder.static(timeline, "item")
    ids = timeline.item_ids
    assert by_id(ids, items["item_id"]) == {10: 2, 11: 3, 12: 1, 13: 4, 14: 1, "nobody": 1}
    # b is 2, a is 3, c is unknown; after the separator of 11 there is nothing
    expected = {10: [3, 2], 11: [2, 0], 12: [1, 2], 13: [0, 0], 14: [0, 0], "nobody": [0, 0]}
    assert by_id(ids, items["item_tags"]) == expected
    # log: 0, 2 and more than 2, of a range of 2; items 13 and 14 have no views
    assert items["item_views"].tolist() == pytest.approx([0, 1, 1, 0.5, 0.5, 0.5])
    dtypes = {name: values.dtype for name, values in {**users, **items}.items()}
    assert dtypes == {name: np.float32 if name in ("user_age", "item_views") else np.int32 for name in dtypes}


def test_context_known_values(timeline, encoder):
    context = encoder.context(timeline, timeline.impressions)
    assert context["context_tab"].tolist() == [2, 0, 0, 1, 1]
    assert context["context_hour"].tolist() == [0.0, 1.0, 0.5, 1.0, 1.0]
    other = pd.DataFrame({"tab": ["home", "", "?"], "hour": [3.0, None, -1.0]}, index=[7, 7, 7])
    assert encoder.context(timeline, other)["context_tab"].tolist() == [2, 0, 1]
    assert encoder.context(timeline, other)["context_hour"].tolist() == [0.5, 0.5, 0.0]
    with pytest.raises(UserError, match=r"column 'hour' \(a context feature\) is missing"):
        encoder.context(timeline, other[["tab"]])


def test_behavior_known_values(timeline, encoder):
    user = timeline.user_ids.get_indexer([1, 1, 1, 2])
    nobody = len(timeline.user_ids)
    found = encoder.behavior(timeline, np.append(user, nobody), np.array([4, 5, 6, 20, 20]), None)
    # user 1 read 13 twice at 4 and 10 at 5; item 10 is index 2, 13 is index 4
    assert found["behavior_read"].tolist() == [[0, 0], [4, 4], [2, 4], [0, 0], [0, 0]]
    # user 1 asked 小说 (3) at 2, cats (2) at 3; user 2 cats at 19, and at 20, which does not count
    assert found["behavior_asked"].tolist() == [[2, 3, 0]] * 3 + [[2, 0, 0], [0, 0, 0]]
    # an order lets in what is in front of it
    found = encoder.behavior(timeline, user[:2], np.array([4, 4]), np.array([1, 2]))
    assert found["behavior_read"].tolist() == [[4, 0], [4, 4]]
    # a value seen too late for the vocabulary is unknown, not missing
    found = encoder.behavior(timeline, user[3:], np.array([21]), None)
    assert found["behavior_asked"].tolist() == [[1, 2, 0]]
    assert found["behavior_asked"].dtype == np.int32


def test_multi_values_are_cut_at_sixteen():
    feature = Feature("tags", "item", "multi", separator=".")
    many = [str(number) for number in range(100, 120)]
    encoder = Encoder({"item_tags": Vocabulary(pd.Index(many))}, {}, 0)
    # a point is a point, not any character
    found = encoder.encode("item_tags", feature, pd.Series([".".join(many), "119.x", None, "", "..103"]))
    assert found.shape == (5, 16)
    assert found[0].tolist() == list(range(2, 18))
    assert found[1:, :3].tolist() == [[21, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 5]] and not found[1:, 3:].any()
    assert encoder.encode("item_tags", feature, pd.Series([None, None], dtype="str")).tolist() == [[0], [0]]


def test_the_heaviest_values_are_kept():
    feature = Feature("tags", "item", "multi", separator="|", weights=":", keep=3)
    encoder = Encoder({"item_tags": Vocabulary(pd.Index(["a", "b", "c:d"]))}, {}, 0)
    texts = pd.Series(["a:1|b:.5|c:d:2e0|b:3", "x:4|a:4", None, "", "|:7|b:0|"])
    found = encoder.arrays("item_tags", feature, texts)
    # b 3, c:d 2, a 1 are heavier than b .5; of one weight the first comes first; x is unknown; a missing value and
    # the empty entries around it weigh nothing
    assert found["item_tags"].tolist() == [[3, 4, 2], [1, 2, 0], [0, 0, 0], [0, 0, 0], [0, 0, 3]]
    assert found["item_tags_weight"].tolist() == [[3, 2, 1], [4, 4, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert [values.dtype for values in found.values()] == [np.int32, np.float32]
    assert np.array_equal(encoder.encode("item_tags", feature, texts), found["item_tags"])
    for text in ("a", "a:-1", "a:nan", "a:1e99", "a:1:", ":"):
        with pytest.raises(UserError, match="tags: each value should look like value:weight.*in row 2"):
            encoder.encode("item_tags", feature, pd.Series(["a:1", text]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from("abcx"), st.integers(0, 9)), max_size=9), max_size=6))
def test_weighted_values_against_plain_python(rows):
    feature = Feature("tags", "item", "multi", weights=":", keep=4)
    encoder = Encoder({"item_tags": Vocabulary(pd.Index(list("abc")))}, {}, 0)
    texts = [",".join(f"{value}:{weight}" for value, weight in row) for row in rows]
    found = encoder.arrays("item_tags", feature, pd.Series(texts, dtype="str"))
    index = {"a": 2, "b": 3, "c": 4, "x": 1}
    for row, values, weights in zip(rows, found["item_tags"], found["item_tags_weight"], strict=True):
        heaviest = sorted(row, key=lambda pair: -pair[1])[:4]  # sorted keeps the order of equals
        pairs = list(zip(values.tolist(), weights.tolist(), strict=True))
        assert pairs[: len(heaviest)] == [(index[value], weight) for value, weight in heaviest]
        assert set(pairs[len(heaviest) :]) <= {(0, 0.0)}


def test_weighted_features_of_a_dataset(make_timeline):
    toml = TOML.replace('city = { kind = "categorical", min_count = 2 }', 'city = { kind = "multi", weights = ":" }')
    users = {**USERS, "city": ["xi:2,an:1", "xi:.5", None, "xi:1", None]}
    timeline = make_timeline(toml, impressions=IMPRESSIONS, users=users, items=ITEMS, behaviors=BEHAVIORS)
    encoder = Encoder.fit(timeline, before=20)
    assert encoder.vocabularies["user_city"].values.tolist() == ["xi", "an"]
    static = encoder.static(timeline, "user")
    assert static["user_city"].tolist() == [[2, 3], [2, 0], [0, 0], [2, 0], [0, 0], [0, 0]]
    assert static["user_city_weight"].tolist() == [[2, 1], [0.5, 0], [0, 0], [1, 0], [0, 0], [0, 0]]
    # the look-alike representation takes plain means
    assert set(encoder.profile(timeline)) == {"user_city", "user_age"}
    broken = {**users, "city": ["xi:2", "xi", None, None, None]}
    with pytest.raises(UserError, match=r"users.parquet: column `city`: each value should look like.*'xi' in row 2"):
        make_timeline(toml, impressions=IMPRESSIONS, users=broken, items=ITEMS, behaviors=BEHAVIORS)


def test_constant_and_empty_numbers(make_timeline):
    frame = IMPRESSIONS.assign(hour=[3.0] * 5)
    items = {**ITEMS, "views": [np.nan] * 4}
    timeline = make_timeline(TOML, impressions=frame, users=USERS, items=items, behaviors=BEHAVIORS)
    encoder = Encoder.fit(timeline, before=20)
    # a constant is 0 everywhere; a column without a value is 0, and finite
    assert encoder.ranges["context_hour"] == (3.0, 3.0, 0.0) and encoder.ranges["item_views"] == (0.0, 1.0, 0.0)
    assert not encoder.context(timeline, frame)["context_hour"].any()
    assert not encoder.static(timeline, "item")["item_views"].any()
    # before everything nothing is known, and encoding still works
    nothing = Encoder.fit(timeline, before=0)
    assert all(vocabulary.size == 2 for vocabulary in nothing.vocabularies.values())
    assert (nothing.static(timeline, "item")["item_id"] == 1).all()


def test_save_and_load(tmp_path, timeline, encoder, make_timeline):
    encoder.save(tmp_path / "encoder.json")
    loaded = Encoder.load(tmp_path / "encoder.json")
    assert loaded.ranges == encoder.ranges and loaded.before == encoder.before
    for side in ("user", "item"):
        pairs = zip(encoder.static(timeline, side).items(), loaded.static(timeline, side).items(), strict=True)
        assert all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)
    exact = Encoder(
        {"user_id": Vocabulary(pd.Index([BIG, BIG - 1])), "item": Vocabulary(pd.Index(["007", "O'\"/天\\"]))}, {}, 5
    )
    exact.save(tmp_path / "exact.json")
    loaded = Encoder.load(tmp_path / "exact.json")
    assert loaded.vocabularies["user_id"].encode(pd.Index([BIG - 1, BIG, BIG + 1])).tolist() == [3, 2, 1]
    assert loaded.vocabularies["item"].encode(pd.Series(["O'\"/天\\", "7", "007"])).tolist() == [3, 1, 2]


def test_a_feature_needs_its_column(make_timeline):
    timeline = make_timeline(TOML, impressions=IMPRESSIONS, items=ITEMS, behaviors=BEHAVIORS)
    with pytest.raises(UserError, match=r"\[features.user\] city needs a column of that name in the users table"):
        Encoder.fit(timeline, before=20)


def test_gather():
    found = gather({"a": np.arange(3), "b": np.eye(3)}, np.array([2, 0]))
    assert found["a"].tolist() == [2, 0] and found["b"].tolist() == [[0, 0, 1], [1, 0, 0]]
