import dataclasses

import numpy as np
import pandas as pd
import pytest

from ranking.data.simulator import load_world, simulate, true_value
from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.replay.evaluation import evaluate_weights
from ranking.replay.log import ReplayLog

DAY = 86_400_000
TOML = """
schema_version = 1
[ids]
user = "int64"
item = "string"
[labels]
funnel = ["click", "conversion"]
attribution_hours = { conversion = 24 }
observed_until = 1970-01-12T12:00:00Z
[windows]
tune = [1970-01-11, 1970-01-12]
test = [1970-01-12, 1970-01-13]
[replay]
examination = [1.0, 0.5]
"""


def tables():
    requests = pd.DataFrame(
        {
            "request_id": ["r3", "r1", "r2"],
            "timestamp": [10 * DAY + 13 * 3_600_000, 2 * DAY, 10 * DAY],  # r3: 24 h later is past observed_until
            "user_id": [5, 5, 9007199254740993],
            "exploration": ["plackett_luce"] * 3,
        }
    )
    candidates = pd.DataFrame(
        {
            "request_id": ["r2", "r3", "r2", "r3", "r2", "r1"],
            "item_id": ["a", "a", "b", "b", "c", "a"],
            "similarity": [0.5, None, -0.2, 0.1, 0.0, 0.3],
            "pctr": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            "pcvr": [0.1] * 6,
            "score": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "position": [1, 0, -1, 1, 0, 0],
            "position_propensity": [0.4, 0.5, None, 0.5, 0.4, 1.0],
            "exposure_propensity": [0.5, 0.75, 0.4, 0.75, 0.6, 1.0],
        }
    )
    impressions = pd.DataFrame(
        {
            "request_id": ["r1", "r2", "r2", "r3", "r3"],
            "timestamp": [2 * DAY, 10 * DAY, 10 * DAY, 10 * DAY + 13 * 3_600_000, 10 * DAY + 13 * 3_600_000],
            "user_id": [5, 9007199254740993, 9007199254740993, 5, 5],
            "item_id": ["a", "c", "a", "a", "b"],
            "position": [0, 0, 1, 0, 1],
            "click": [1, 0, 1, 1, 0],
            "conversion": [0, 0, 1, 1, 0],
            "value": [None, None, 7.5, 3.0, None],
        }
    )
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "born": [0, 8 * DAY, 0]})
    users = pd.DataFrame({"user_id": [5, 9007199254740993]})
    return {
        "requests": requests,
        "candidates": candidates,
        "impressions": impressions,
        "items": items,
        "users": users,
    }


def dataset(tmp_path, **changes):
    found = {**tables(), **changes}
    return Dataset(
        write_dataset(tmp_path / "d", TOML, {name: table for name, table in found.items() if table is not None})
    )


def test_candidates_join_their_labels_in_time_order(tmp_path):
    log = ReplayLog.from_dataset(dataset(tmp_path), "tune")
    assert log.request_id.tolist() == ["r2", "r3"] and log.offsets.tolist() == [0, 3, 5]
    assert log.parts["pctr"].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.2, 0.4])
    assert log.position.tolist() == [1, -1, 0, 0, 1]
    assert log.click.tolist() == [1, 0, 0, 1, 0]
    assert log.conversion.tolist() == [1, 0, 0, 1, 0]
    assert log.value.tolist() == [7.5, 0, 0, 3, 0]
    assert log.mature.tolist() == [True, False]
    assert log.counts == {"immature_requests": 1, "shown_without_impression": 0}
    assert log.parts["has_similarity"].tolist() == [1, 1, 1, 0, 1] and log.parts["similarity"][3] == 0
    assert log.exposure_propensity.tolist() == [0.5, 0.4, 0.6, 0.75, 0.75]
    assert np.isnan(log.position_propensity[1]) and log.slots.tolist() == [2, 2]
    assert log.examination.tolist() == [1.0, 0.5] and log.exploration == ("plackett_luce",)
    assert len(set(log.user)) == 2
    # Before the window only item a was shown: it is the head. b is new, c of the long tail.
    assert log.new.tolist() == [False, True, True, False, True]


def test_parts_of_another_model_follow_the_rows_of_the_table(tmp_path):
    # Rows of the window in the table's order: r2 a, r3 a, r2 b, r3 b, r2 c.
    log = ReplayLog.from_dataset(
        dataset(tmp_path), (10 * DAY, 11 * DAY), parts={"pctr": np.array([1, 2, 3, 4, 5]) / 10}
    )
    assert log.parts["pctr"].tolist() == pytest.approx([0.1, 0.3, 0.5, 0.2, 0.4])
    assert set(log.parts) == {"pctr"}
    with pytest.raises(UserError, match=r"`parts\['pctr'\]` should have 5 rows. Received: 2"):
        ReplayLog.from_dataset(dataset(tmp_path / "two"), "tune", parts={"pctr": np.ones(2)})
    with pytest.raises(UserError, match="Received: \\['click'\\]"):
        ReplayLog.from_dataset(dataset(tmp_path / "three"), "tune", parts={"click": np.ones(5)})


def test_without_candidates_the_slate_is_what_was_shown(tmp_path):
    data = dataset(tmp_path, candidates=None, requests=None)
    with pytest.raises(UserError, match="has no candidates table.*pass `parts`"):
        ReplayLog.from_dataset(data, "tune")
    log = ReplayLog.from_dataset(data, "tune", parts={"pctr": np.array([0.1, 0.2, 0.3, 0.4], np.float32)})
    assert log.offsets.tolist() == [0, 2, 4] and log.position.tolist() == [0, 1, 0, 1]
    assert log.exposure_propensity is None and log.exploration == ("none",)
    assert log.click.tolist() == [0, 1, 1, 0]


def test_refusals(tmp_path):
    data = dataset(tmp_path)
    with pytest.raises(UserError, match="`window` should be one of .*Received: 'day'"):
        ReplayLog.from_dataset(data, "day")
    with pytest.raises(UserError, match="no row falls in the window"):
        ReplayLog.from_dataset(data, "test")
    strangers = tables()["impressions"].assign(item_id=["z1", "z2", "z3", "z4", "z5"])
    with pytest.raises(UserError, match="4 of 4 shown rows have no impression"):
        ReplayLog.from_dataset(dataset(tmp_path / "two", impressions=strangers), "tune")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    demo = load_world("demo")
    world = dataclasses.replace(
        demo,
        users=dataclasses.replace(demo.users, count=400),
        items=dataclasses.replace(demo.items, count=60, born_per_day=4),
        traffic=dataclasses.replace(demo.traffic, requests=6000, candidates=12, examination=(1.0, 0.8, 0.6, 0.5)),
    )
    return simulate(world, tmp_path_factory.mktemp("world") / "data")


def test_e3_finds_the_truth_of_the_simulator(simulated):
    data = Dataset(simulated)
    production = FusionWeights.load(simulated / "production_weights.json")
    log = ReplayLog.from_dataset(data, "tune")
    truth = pd.read_parquet(simulated / "truth" / "candidates.parquet")
    request = pd.Index(log.request_id).get_indexer(data.candidates["request_id"])
    inside = np.flatnonzero(request >= 0)
    truth = truth.iloc[inside[np.argsort(request[inside], kind="stable")]]
    np.testing.assert_allclose(fuse(log.parts, production), log.logged_score, atol=1e-4)
    mixes = [{"pctr": 1.0, "similarity": 0.5, "pcvr": 0.35}, {"pctr": 1.0}, {"similarity": 1.0, "pctr": 0.5}]
    zero = dict.fromkeys(production.weights, 0.0)
    asked = [production, *(dataclasses.replace(production, weights={**zero, **mix}) for mix in mixes)]
    supported = 0
    for weights, found in zip(asked, evaluate_weights(log, asked, production), strict=True):
        score = fuse(log.parts, weights)
        for name in ("clicks", "conversions", "value") if not found.refused else ():
            expected = true_value(truth, log.offsets, score, log.examination, name)
            estimate = found.estimates[name]
            assert abs(estimate.value - expected) < 5 * estimate.value_error, (weights.weights, name)
            supported += 1
    assert supported >= 9
