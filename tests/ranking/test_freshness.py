"""What fresh tables are worth: waits, phases and the AUC expected of known chances, against values by hand."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.freshness import Freshness, _Clicks, _Seen
from ranking.freshness_rows import ARMS, ExpectedAUC, masks_of, quality_of, true_chances
from ranking.metrics import auc
from ranking.report.freshness import render, verdict

HOUR = 3_600_000
SINCE = 1_741_651_200_000


def items(rows):
    """(born, ready, refreshed, daily), hours after the beginning; None where it was not until the end."""
    table = pd.DataFrame(rows, columns=["born", "ready", "refreshed", "daily"])
    table = table.map(lambda hours: pd.NA if pd.isna(hours) else SINCE + round(hours * HOUR)).astype("Int64")
    table.insert(0, "item_id", np.arange(len(table)))
    return table


ITEMS = items(
    [
        (0, 10.1, 10.25, 24),  # at the next refresh
        (1, 20.0, 20.25, 24),  # ready at the very moment of a refresh: that one sees what is strictly before it
        (2, 30.2, 30.75, 48),  # two refreshes
        (3, 40.1, 40.25, None),  # the export did not come before the end
        (4, None, None, None),
    ]
)
ABOUT = {
    "dataset": "shop", "run": "run", "since": SINCE, "until": SINCE + 47 * HOUR, "every": 900, "min_seeds": 20,
    "tick": 86_400, "refreshes": 188, "seconds_a_refresh": {"median": 0.3, "max": 2.0}, "items_born": 5,
    "items_ready": 4, "items_refreshed": 4, "items_daily": 3,
}  # fmt: skip


def rows_of(count=4000, seed=0):
    """Impressions of eight items: four gain a similarity at hour 10 in refreshed tables, at hour 24 in the export.

    The scores of the arms are the chance of a click, and noise: the less of it the fresher.
    """
    random = np.random.default_rng(seed)
    item, hour = random.integers(0, 8, count), np.sort(random.uniform(0, 48, count))
    chance = 1 / (1 + np.exp(-random.normal(-1.5, 1.2, count)))
    noise = dict(zip(ARMS, (3.0, 1.5, 1.0, 0.5), strict=True))
    has = {"frozen": np.zeros(count, bool), "daily": (item < 4) & (hour >= 24), "refreshed": (item < 4) & (hour >= 10)}
    has["daily seeds"] = has["daily"]
    return pd.DataFrame(
        {
            "user_id": random.integers(0, 300, count), "item": item, "request_id": np.arange(count) // 8,
            "click": (random.random(count) < chance).astype(np.int8),
            "age": np.where(item == 7, np.nan, hour),  # the last item is an old one
            "chance": chance,
            **{f"pctr/{arm}": np.log(chance) + random.normal(0, noise[arm], count) for arm in ARMS},
            **{f"has/{arm}": has[arm] for arm in ARMS},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def found():
    rows = rows_of()
    quality, ndcg = quality_of(rows, 20)
    return Freshness(ITEMS, rows, quality, ABOUT | {"ndcg": ndcg})


def test_refreshes_are_counted_from_the_user_who_made_enough():
    # Ticks every quarter of an hour: 10.1 -> 10.25 passes one, 20.0 -> 20.25 one, 30.2 -> 30.75 three (30.25, 30.5 and
    # 30.75), 40.1 -> 40.25 one.
    found = Freshness(ITEMS, pd.DataFrame(), pd.DataFrame(), ABOUT)
    assert found.refreshes().tolist() == [1, 1, 3, 1]


def test_waits_are_of_the_items_that_had_both():
    waits = Freshness(ITEMS, pd.DataFrame(), pd.DataFrame(), ABOUT).waits()
    # The first three: ready after 10.1, 19 and 28.2 hours of life; exports 13.9, 4 and 17.8 hours after that.
    assert waits["birth to enough seeds"]["median"] == pytest.approx(19)
    assert waits["birth to similarity, refreshed"]["max"] == pytest.approx(28.75)
    assert waits["enough seeds to similarity, daily"] == pytest.approx(
        {"median": 13.9, "p90": 13.9 + 0.8 * 3.9, "max": 17.8, "items": 3}
    )
    # Refreshed ones are told of all four as well: 0.15, 0.25, 0.55 and 0.15 hours.
    every = waits["enough seeds to similarity, refreshed, all items"]
    assert (every["items"], every["median"], every["max"]) == (4, pytest.approx(0.2), pytest.approx(0.55))


def test_nobody_had_a_similarity():
    found = Freshness(items([(0, None, None, None)]), pd.DataFrame(), pd.DataFrame(), ABOUT)
    assert found.refreshes().tolist() == []
    assert np.isnan(found.waits()["birth to similarity, refreshed"]["median"])


def test_the_expected_auc_by_hand():
    # Chances .5 and .2, the scores order them rightly. Pairs of a positive and a negative, weight p_i (1 - p_j):
    #   (1,1) .25 tie, (1,2) .5 * .8 = .4 won, (2,1) .2 * .5 = .1 lost, (2,2) .16 tie: (.4 + .205) / .91
    columns = {"p": np.array([0.5, 0.2, 0.9]), "s": np.array([2.0, 1.0, 9.0]), "in": np.array([1, 1, 0])}
    assert ExpectedAUC("p", "s", "in")(columns, np.ones(3)) == pytest.approx(0.605 / 0.91)
    # Weights are copies of the rows.
    twice = {name: np.repeat(values, [3, 1, 2]) for name, values in columns.items()}
    expected = ExpectedAUC("p", "s", "in")(twice, np.ones(6))
    assert ExpectedAUC("p", "s", "in")(columns, np.array([3.0, 1.0, 2.0])) == pytest.approx(expected)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
def test_chances_of_0_and_1_are_labels(rows):
    label, score = np.array(rows, np.float64).T
    columns = {"p": label, "s": score, "in": np.ones(len(rows))}
    found, exact = ExpectedAUC("p", "s", "in")(columns, np.ones(len(rows))), auc(label, score)
    assert found == pytest.approx(exact, nan_ok=True)


def test_the_expected_auc_is_the_mean_over_labels():
    frame = rows_of(1500)
    random = np.random.default_rng(1)
    score, chance = frame["pctr/refreshed"].to_numpy(), frame["chance"].to_numpy()
    drawn = [auc((random.random(len(chance)) < chance).astype(int), score) for _ in range(300)]
    columns = {"p": chance, "s": score, "in": np.ones(len(score))}
    expected = ExpectedAUC("p", "s", "in")(columns, np.ones(len(score)))
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected) < 5 * error + 2e-4  # a ratio of means, not the mean of a ratio


def test_phases_are_of_the_items_that_gained_a_similarity():
    frame = rows_of()
    masks = masks_of(frame)
    hour = frame["age"]
    gained = frame["item"] < 4
    assert (masks["before"] == (gained & (hour < 10))).all()
    assert (masks["between"] == (gained & (hour >= 10) & (hour < 24))).all()
    assert (masks["after"] == (gained & (hour >= 24))).all()
    assert masks["new"].sum() == (frame["item"] < 7).sum() and masks["all"].all()
    assert (masks["12"] == ((hour >= 12) & (hour < 24))).all() and "96" not in masks
    # Where nobody ever had one there are no phases.
    none = frame.assign(**{f"has/{arm}": False for arm in ARMS})
    assert not {"before", "between", "after"} & set(masks_of(none))


def test_quality_by_place_and_arm(found):
    rows = found.quality.set_index(["where", "arm"])
    inside = masks_of(found.rows)["between"]
    told, part = rows.loc["between", "daily"], found.rows[inside]
    assert told["value"] == pytest.approx(auc(part["click"], part["pctr/daily"]), abs=1e-12)
    assert told["impressions"] == inside.sum() and told["clicks"] == part["click"].sum()
    assert (told["with_similarity"], rows.loc["between", "refreshed"]["with_similarity"]) == (0, 1)
    for suffix in ("", "_truth"):
        gain = rows.loc["between", "refreshed"][f"value{suffix}"] - told[f"value{suffix}"]
        assert told[f"gain{suffix}"] == pytest.approx(gain) and gain > 0
        assert np.isnan(rows.loc["between", "refreshed"][f"gain{suffix}"])
    # No score passes the chances, and less noise is a better score.
    assert (found.quality["value_truth"] < found.quality["ceiling"]).all()
    assert list(rows.loc["all"].sort_values("value_truth").index) == list(ARMS)
    assert found.about["ndcg"]["daily"]["gain"] > 0


def test_without_a_truth_there_is_none(found):
    quality, _ = quality_of(found.rows.drop(columns="chance"), 20)
    assert not [name for name in quality if "truth" in name or name == "ceiling"]
    assert quality["value"].tolist() == found.quality["value"].tolist()


def test_truth_lies_row_by_row_beside_the_log(tmp_path):
    timeline = SimpleNamespace(dataset=SimpleNamespace(path=tmp_path), impressions=pd.DataFrame({"click": [1, 0]}))
    assert true_chances(timeline) is None
    (tmp_path / "truth").mkdir()
    truth = pd.DataFrame({"pctr": [0.5, 0.25], "examination": [1.0, 0.5]})
    truth.to_parquet(tmp_path / "truth" / "impressions.parquet")
    assert true_chances(timeline).tolist() == [0.5, 0.125]
    truth.head(1).to_parquet(tmp_path / "truth" / "impressions.parquet")
    with pytest.raises(UserError, match="a row for each of 2. Received: 1"):
        true_chances(timeline)


def test_clicks_of_a_step_are_strictly_before_its_end():
    appended = []
    log = SimpleNamespace(append=lambda user, item, time: appended.append((list(user), list(item), list(time))))
    events = (np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]), np.array([5, 10, 10, 20]), np.array([0, 1, 0, 0]))
    timeline = SimpleNamespace(
        seed_events=lambda: events, user_ids=pd.Index([7, 8]), item_ids=pd.Index(["a", "b"], dtype=object)
    )
    clicks = _Clicks(timeline, since=6)  # the click at 5 is in the log before
    for tick in (10, 11, 30):
        clicks.append(log, tick)
    assert appended == [([], [], []), ([7, 8], ["a", "b"], [10, 10]), ([8], ["a"], [20])]


def test_the_first_similarity_is_that_of_the_first_tables_that_have_one():
    replay = SimpleNamespace(timeline=SimpleNamespace(item_ids=pd.Index([1, 2, 3])))
    seen = _Seen(replay, np.zeros(3))

    def state(*has):
        counts = np.array([*([count] for count in has), [0]])
        return SimpleNamespace(item_ids=pd.Index([1, 2]), centroid_counts=counts)

    seen.look(state(0, 3), 100)
    seen.look(state(2, 3), 200)
    seen.look(state(2, 0), 300)
    assert seen.first.tolist() == [200, 100, -1]


def test_the_page_says_what_was_found(found):
    page = render(found)
    text = verdict(found)
    assert text.startswith("An item that has 20 seeds has its similarity within 33.0 min; with an export every day it")
    assert "waits 13.9 h (median; at most 17.8 h)" in text
    assert "3 of 4 items had their similarity at the first refresh" in page and "longest took 3 refreshes" in page
    assert "By the truth" in page and "5 items were born, and 4 of them had 20 users" in page
    assert "By the truth" not in render(
        dataclasses.replace(found, quality=quality_of(found.rows.drop(columns="chance"), 20)[0])
    )
