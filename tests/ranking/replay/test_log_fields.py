"""Segments, categories, the policy of each request, places, another examination, parts of a log, its hash."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError
from ranking.replay.estimators import E3ExposureIPS
from ranking.replay.log import Examination, ReplayLog
from ranking.replay.propensity import log_propensities

HOUR, DAY = 3_600_000, 86_400_000
TOML = """
schema_version = 1
[ids]
user = "int64"
item = "string"
[labels]
funnel = ["click", "conversion"]
attribution_hours = { conversion = 24 }
[windows]
tune = [1970-01-02, 1970-01-03]
[features.user]
city = { kind = "categorical" }
income = { kind = "numeric" }
[features.item]
category = { kind = "categorical" }
tags = { kind = "multi", separator = "|" }
[replay]
examination = [1.0, 0.5]
"""


def tables():
    """Three requests, each under a policy of its own; the last fills one place only."""
    requests = pd.DataFrame(
        {
            "request_id": ["p", "q", "r"],
            "timestamp": [DAY, DAY + HOUR, DAY + 2 * HOUR],
            "user_id": [7, 8, 7],
            "segment": ["loyal", None, "new"],
            "exploration": ["plackett_luce", "epsilon", "uniform"],
            "temperature": [2.0, None, None],
            "epsilon": [None, 0.2, None],
        }
    )
    candidates = pd.DataFrame(
        {
            "request_id": ["p", "p", "q", "q", "r", "r"],
            "item_id": ["a", "b", "a", "c", "b", "c"],
            "pctr": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
            "score": [2 * np.log(3), 0.0, 2.0, 1.0, 5.0, 4.0],
            "position": [0, 1, 0, 1, -1, 0],
        }
    )
    impressions = candidates[candidates["position"] >= 0].drop(columns=["pctr", "score"])
    impressions = impressions.merge(requests[["request_id", "timestamp", "user_id"]], on="request_id")
    impressions = impressions.assign(click=[1, 0, 0, 1, 1], conversion=[0, 0, 0, 1, 0])
    return {
        "requests": requests,
        "candidates": candidates,
        "impressions": impressions,
        "users": pd.DataFrame({"user_id": [7, 8], "city": ["Pune", None], "income": [1.0, 2.0]}),
        "items": pd.DataFrame({"item_id": ["a", "b"], "category": ["x", None], "tags": ["t|u", ""]}),
    }


def dataset(tmp_path, **changes):
    return Dataset(write_dataset(tmp_path / "d", TOML, {**tables(), **changes}, overwrite=True))


def test_segments_and_categories(tmp_path):
    data = dataset(tmp_path)
    log = ReplayLog.from_dataset(data, "tune", segment="segment", category="category")
    assert log.segment.tolist() == ["loyal", "(unknown)", "new"] and log.segment_column == "segment"
    # rows are a, b, a, c, b, c: a is x, b has no category, c is in no table of items
    assert log.category.tolist() == [0, -1, 0, -1, -1, -1] and log.category_names == ["x"]
    assert log.item_id[log.item].tolist() == ["a", "b", "a", "c", "b", "c"]
    assert log.user_id[log.user].tolist() == [7, 8, 7]
    log = ReplayLog.from_dataset(data, "tune", segment="city", category="tags")
    assert log.segment.tolist() == ["Pune", "(unknown)", "Pune"]
    assert log.category.tolist() == [0, -1, 0, -1, -1, -1] and log.category_names == ["t"]
    plain = ReplayLog.from_dataset(data, "tune")
    assert plain.segment is None and plain.category is None
    assert plain.hash == log.hash


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"segment": "mood"}, "`segment` should be a column of requests or users. Received: segment='mood'"),
        ({"segment": "income"}, "`segment` should be a column of categories. Received: segment='income'"),
        ({"category": "price"}, r"`category` should be one of the categories of items, \['category', 'tags'\]"),
    ],
)
def test_columns_that_are_none(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        ReplayLog.from_dataset(dataset(tmp_path), "tune", **arguments)


def test_propensities_are_made_from_the_policy_of_each_request(tmp_path):
    log = ReplayLog.from_dataset(dataset(tmp_path), "tune")
    # p: odds 3 : 1 -> (3/4, 1/4), (1/4, 3/4).  q: epsilon .2, sorted a, c -> .1 + .8 and .1.
    # r: uniform over two items, one place: (1/2, 0), whatever the second place of the others.
    np.testing.assert_allclose(log.places, [[0.75, 0.25], [0.25, 0.75], [0.9, 0.1], [0.1, 0.9], [0.5, 0]], rtol=1e-6)
    np.testing.assert_allclose(log.position_propensity, [0.75, 0.75, 0.9, 0.9, np.nan, 0.5], rtol=1e-6)
    # exposures with theta (1, .5): p .875, .625; q .95, .55; r .5 each, which is the one place that it filled
    np.testing.assert_allclose(log.exposure_propensity, [0.875, 0.625, 0.95, 0.55, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(log.temperature, [2.0, np.nan, np.nan])
    np.testing.assert_array_equal(log.epsilon, [np.nan, 0.2, 1.0])


def test_stated_propensities_are_checked(tmp_path):
    candidates = tables()["candidates"].assign(exposure_propensity=[0.875, 0.625, 0.95, 0.55, 0.5, 0.5])
    log = ReplayLog.from_dataset(dataset(tmp_path, candidates=candidates), "tune")
    assert log.exposure_propensity.tolist() == [0.875, 0.625, 0.95, 0.55, 0.5, 0.5]
    other = candidates.assign(exposure_propensity=[0.8, 0.7, 0.95, 0.55, 0.5, 0.5])
    with pytest.raises(UserError, match="`exposure_propensity` should be .* 0.875. Received: 0.8 in 2 of 5 shown"):
        ReplayLog.from_dataset(dataset(tmp_path, candidates=other), "tune")
    # Without a temperature nobody knows the policy: the stated numbers stand, and there are no places.
    requests = tables()["requests"].drop(columns="temperature")
    log = ReplayLog.from_dataset(dataset(tmp_path, candidates=other, requests=requests), "tune")
    assert log.places is None and log.exposure_propensity[0] == 0.8
    with pytest.raises(UserError, match="Another examination needs the score as served and the policy"):
        log.with_theta([1.0, 0.4])


def test_impossible_policies(tmp_path):
    requests = tables()["requests"]
    with pytest.raises(UserError, match=r"requests: `temperature` should be positive. Received: -1.0"):
        ReplayLog.from_dataset(dataset(tmp_path, requests=requests.assign(temperature=-1.0)), "tune")
    with pytest.raises(UserError, match=r"requests: `epsilon` should be in \[0, 1\]. Received: 1.5"):
        ReplayLog.from_dataset(dataset(tmp_path, requests=requests.assign(epsilon=1.5)), "tune")


def test_another_examination_by_hand(tmp_path):
    log = ReplayLog.from_dataset(dataset(tmp_path), "tune")
    covariance = np.array([[0.0, 0.0], [0.0, 0.04]])
    found = log.with_examination(Examination(np.array([1.0, 0.2]), covariance, "estimated", 90))
    # p .75 + .2 .25 = .8 and .4; q .92 and .28; r .5 each
    np.testing.assert_allclose(found.exposure_propensity, [0.8, 0.4, 0.92, 0.28, 0.5, 0.5], rtol=1e-6)
    assert found.examination_method == "estimated" and found.examination.tolist() == [1.0, 0.2]
    assert found.examination_covariance.tolist() == covariance.tolist()
    assert found.hash == log.hash
    # Cheaply: the shown rows are exact, and the hidden one of r (a scaled .5) makes the sum come out.
    np.testing.assert_allclose(log.with_theta([1.0, 0.2]).exposure_propensity, found.exposure_propensity, rtol=1e-6)
    with pytest.raises(UserError, match="each of the 2 places of the log. Received: 1"):
        log.with_examination(Examination(np.array([1.0]), None, "stated"))
    # A place that no request of this log filled is left out.
    longer = log.with_examination(Examination(np.array([1.0, 0.2, 0.1]), None, "stated"))
    assert longer.examination.tolist() == [1.0, 0.2]


def test_another_examination_of_a_world(world):
    log, theta = world.log, np.array([1.0, 0.5, 0.3, 0.1])
    exact = log_propensities(log.logged_score, log.offsets, log.position, theta, temperature=1.0)[1]
    found = log.with_examination(Examination(theta, None, "estimated"))
    np.testing.assert_allclose(found.exposure_propensity, exact, rtol=1e-9)
    cheap, shown = log.with_theta(theta), log.position >= 0
    np.testing.assert_allclose(cheap.exposure_propensity[shown], exact[shown], rtol=1e-5)
    sums = np.add.reduceat(cheap.exposure_propensity, log.offsets[:-1])
    np.testing.assert_allclose(sums, theta.sum(), rtol=1e-6)
    E3ExposureIPS().sums(found, world.production)  # it checks that exposures add up


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 59), min_size=1, max_size=20))
def test_take(small, chosen):
    part = small.take(np.array(chosen))
    assert part.requests == len(chosen) and part.request_id.tolist() == small.request_id[chosen].tolist()
    for new, old in enumerate(chosen):
        rows, source = (slice(*log.offsets[r : r + 2]) for log, r in ((part, new), (small, old)))
        for name in ("item", "position", "click", "exposure_propensity", "logged_score", "category"):
            np.testing.assert_array_equal(getattr(part, name)[rows], getattr(small, name)[source])
        np.testing.assert_array_equal(part.parts["pctr"][rows], small.parts["pctr"][source])
        assert part.segment[new] == small.segment[old] and part.user[new] == small.user[old]
    shown = part.position >= 0
    own = part.places[np.arange(shown.sum()), part.position[shown]]
    np.testing.assert_allclose(own, part.position_propensity[shown], rtol=1e-5)
    assert part.window == small.window and part.item_id.equals(small.item_id)


@pytest.fixture(scope="module")
def small(world):
    return world.log.take(np.arange(60))


def test_take_by_mask(small):
    mask = np.arange(60) % 7 == 3
    assert small.take(mask).hash == small.take(np.flatnonzero(mask)).hash
    with pytest.raises(UserError, match="at least one request"):
        small.take(np.zeros(60, bool))


def test_hash_is_of_what_was_logged(small):
    again = small.take(np.arange(60))
    assert again.hash == small.hash and len(small.hash) == 64
    other = small.click.copy()
    other[5] = 1 - other[5]
    changes = [
        {"click": np.maximum(other, small.conversion)},
        {"parts": {**small.parts, "pctr": small.parts["pctr"] + np.float32(1e-6)}},
        {"window": (0, 7)},
        {"user_id": small.user_id + 1},
        {"temperature": small.temperature * 2},
    ]
    hashes = {replace(small, **change).hash for change in changes}
    assert len(hashes) == len(changes) and small.hash not in hashes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segment": np.array(["a"], object)}, "`segment` should have 60 rows"),
        ({"category": np.full(720, 9, np.int32)}, r"`category` should be in -1 .. 7"),
        ({"item_id": pd.Index(["one"])}, "`item` should be an index of `item_id`, below 1"),
        ({"places": np.ones((3, 4), np.float32)}, "`places` should have 240 rows"),
        ({"places": np.ones((240, 2), np.float32)}, "`places` should have at least 4 columns"),
        ({"examination_covariance": np.eye(3)}, "`examination_covariance` should be 4 x 4"),
        ({"examination_method": "guessed"}, "`examination_method` should be one of"),
        ({"temperature": np.ones(2)}, "`temperature` should have 60 rows"),
    ],
)
def test_fields_that_do_not_fit(small, changes, words):
    with pytest.raises(ValueError, match=words):
        replace(small, **changes)


@pytest.mark.parametrize("theta", [[], [0.9, 0.5], [1.0, 0.0], [1.0, np.nan]])
def test_rejects_theta(theta):
    with pytest.raises(UserError, match="`theta` should be positive numbers, the first 1"):
        Examination(np.array(theta), None, "stated")
