import json

import numpy as np
import pandas as pd
import pytest

from ranking.errors import UserError
from ranking.quadrants import quadrants_of_log

HOUR = 3_600_000
TOML = """schema_version = 1
[ids]
user = "int64"
item = "string"
[labels]
attribution_hours = { conversion = 10 }
observed_until = 1970-01-03T00:00:00Z
[windows]
lookalike = ["1970-01-01T00:00:00Z", "1970-01-01T06:00:00Z"]
train = ["1970-01-01T06:00:00Z", "1970-01-01T12:00:00Z"]
calibrate = ["1970-01-01T12:00:00Z", "1970-01-01T18:00:00Z"]
tune = ["1970-01-01T18:00:00Z", "1970-01-02T18:00:00Z"]
test = ["1970-01-02T18:00:00Z", "1970-01-03T00:00:00Z"]
"""
# item -> impressions, clicks, conversions in the train window
TRAIN = {
    "gem": (400, 8, 6),
    "flashy": (400, 200, 10),
    "winner": (200, 100, 60),
    "dull": (400, 20, 1),
    'n"e<w': (3, 1, 0),
}


def shown(item: str, hour: float, counts: tuple[int, int, int]) -> list[tuple]:
    impressions, clicks, conversions = counts
    return [(int(hour * HOUR) + n, n, item, n < clicks, n < conversions) for n in range(impressions)]


def frame(rows: list[tuple]) -> pd.DataFrame:
    made = pd.DataFrame(rows, columns=["timestamp", "user_id", "item_id", "click", "conversion"])
    made.insert(0, "request_id", range(len(made)))
    return made.astype({"click": "int8", "conversion": "int8"})


@pytest.fixture(scope="module")
def dataset(make_timeline):
    rows = [row for item, counts in TRAIN.items() for row in shown(item, 7, counts)]
    rows += shown("dull", 13, (100, 5, 0))  # calibrate
    rows += shown("gem", 40, (50, 4, 1))  # tune; at 40 h the 10 hours of a conversion end after the log, at 48 h
    rows += shown("gem", 43, (999, 900, 0)) + shown("other", 43, (10, 5, 5))  # test: decides nothing
    return make_timeline(TOML, impressions=frame(rows)).dataset


def test_counts_and_thresholds_known_values(dataset):
    found = quadrants_of_log(dataset)
    items = found.items.set_index("item_id")
    # the most shown first: 400 + 100, 400 + 50, 400, 200, 3; the test window's item is not there
    assert items.index.tolist() == ["dull", "gem", "flashy", "winner", 'n"e<w']
    assert items.loc["dull", ["impressions", "clicks", "final_clicks", "conversions"]].tolist() == [500, 25, 25, 1]
    # the 4 clicks of the tune window may still convert, and its conversion is not counted either
    assert items.loc["gem", ["impressions", "clicks", "final_clicks", "conversions"]].tolist() == [450, 12, 8, 6]
    assert found.about["immature_clicks"] == 4
    # 12 + 200 + 100 + 25 + 1 clicks of 1,553; 6 + 10 + 60 + 1 conversions of 8 + 200 + 100 + 25 + 1 final clicks
    assert found.click_threshold == pytest.approx(338 / 1553)
    assert found.conversion_threshold == pytest.approx(77 / 334)
    assert items["quadrant"].to_dict() | {'n"e<w': ""} == {
        "gem": "hidden gem",
        "flashy": "flashy",
        "winner": "winner",
        "dull": "to retire",
        'n"e<w': "",
    }
    assert items["decided"].tolist() == [True] * 4 + [False]  # of three impressions nobody can tell
    assert found.counts() == {"winner": 1, "hidden gem": 1, "flashy": 1, "to retire": 1, "undecided": 1}
    assert found.of("hidden gem")["item_id"].tolist() == ["gem"]


def test_windows_and_least_impressions(dataset):
    everything, some = quadrants_of_log(dataset), quadrants_of_log(dataset, min_impressions=300)
    assert some.items["item_id"].tolist() == ["dull", "gem", "flashy"] and some.about["left_out"] == 2
    # left out, but in the rates all the same
    assert some.click_threshold == everything.click_threshold
    assert np.array_equal(some.items["certainty"], everything.items["certainty"][:3])
    train = quadrants_of_log(dataset, ("train",))
    assert train.items["impressions"].sum() == 1403 and train.about["immature_clicks"] == 0
    assert train.span() == "train, 1970-01-01 06:00 to 1970-01-01 12:00"


def test_json_holds_everything(dataset):
    found = json.loads(json.dumps(quadrants_of_log(dataset).as_dict()))
    assert [one["item_id"] for one in found["items"]] == ["dull", "gem", "flashy", "winner", 'n"e<w']
    assert found["windows"] == ["train", "calibrate", "tune"] and found["counts"]["undecided"] == 1
    assert 0 < found["priors"]["click"]["mean"] < 1 and found["source"] == "log"


def test_refusals(dataset, make_timeline):
    with pytest.raises(UserError, match="`min_impressions` should be a positive integer. Received: 0"):
        quadrants_of_log(dataset, min_impressions=0)
    with pytest.raises(UserError, match="the most shown one has 500. Received: 501"):
        quadrants_of_log(dataset, min_impressions=501)
    with pytest.raises(UserError, match="should declare `later`"):
        quadrants_of_log(dataset, ("later",))
    with pytest.raises(UserError, match="no impression lies in the window lookalike"):
        quadrants_of_log(dataset, ("lookalike",))
    nothing = make_timeline(TOML, impressions=frame(shown("a", 7, (50, 5, 0)) + shown("b", 7, (50, 9, 0)))).dataset
    with pytest.raises(UserError, match="nothing to tell items apart by: conversions: `events` should hold both"):
        quadrants_of_log(nothing)
