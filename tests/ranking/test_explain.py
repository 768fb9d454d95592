"""A score taken apart: by hand, and the parts add up to the score in every form."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.explain import explain
from ranking.fusion import FORMS, FusionWeights, fuse

SUM = FusionWeights(
    "sum",
    {"similarity": 0.5, "pctr": 1.0, "pcvr": 0.0, "price": -0.5},
    {"similarity": 0.0, "pctr": 0.1, "pcvr": 0.2, "price": 10.0},
    {"similarity": 0.5, "pctr": 0.1, "pcvr": 0.1, "price": 5.0},
)
REPLY = {
    "similarity": [0.25, 0.1],
    "has_similarity": [True, False],
    "pctr": [0.3, 0.0],
    "pcvr": [0.2, 0.2],
    # z: similarity (.25 - 0) / .5 = .5 and missing; pctr (.3 - .1) / .1 = 2 and -1; price (20 - 10) / 5 = 2 and none
    # .5 * .5 + 1 * 2 - .5 * 2 = 1.25;   0 - 1 + 0 = -1
    "score": [1.25, -1.0],
}


def contributions(rows):
    return [{name: round(part["contribution"], 6) for name, part in row["parts"].items()} for row in rows]


def test_by_hand():
    rows = explain(REPLY, SUM, price=[20.0, None])
    assert [row["score"] for row in rows] == [1.25, -1.0]
    first = {"similarity": 0.25, "pctr": 2.0, "pcvr": 0.0, "price": -1.0}
    assert contributions(rows) == [first, {"similarity": 0.0, "pctr": -1.0, "pcvr": 0.0, "price": 0.0}]
    assert rows[0]["parts"]["price"] == {"value": 20.0, "z": 2.0, "weight": -0.5, "contribution": -1.0}


def test_the_price_of_the_item_is_what_the_score_leaves():
    first, second = explain(REPLY, SUM)
    assert first["parts"]["price"] == {
        "value": None,
        "z": pytest.approx(2.0),
        "weight": -0.5,
        "contribution": pytest.approx(-1.0),
    }
    assert second["parts"]["price"]["contribution"] == 0


def test_segment_and_override():
    weights = dataclasses.replace(SUM, segments={"new": {"similarity": 0.25}})
    (row, _) = explain({**REPLY, "score": [1.375, -1.0]}, weights, price=[20.0, np.nan], segment="new")
    assert row["parts"]["similarity"]["weight"] == 0.75 and row["parts"]["similarity"]["contribution"] == 0.375
    (row, _) = explain({**REPLY, "score": [1.0, -0.5]}, SUM, price=[20.0, np.nan], override={"pctr": 0.5})
    assert contributions([row]) == [{"similarity": 0.0, "pctr": 1.0, "pcvr": 0.0, "price": 0.0}]


@given(st.sampled_from(FORMS), st.integers(0, 2**32 - 1), st.booleans())
def test_the_contributions_add_up_to_the_score(form, seed, told):
    generator = np.random.default_rng(seed)
    n = 8
    parts = {
        "similarity": generator.uniform(-1, 1, n),
        "has_similarity": generator.random(n) < 0.7,
        "pctr": generator.beta(1, 9, n),
        "pcvr": generator.beta(1, 9, n),
        "price": np.where(generator.random(n) < 0.7, generator.lognormal(3, 1, n), np.nan),
    }
    weights = FusionWeights.fit(parts, form, {"similarity": 1, "pctr": -0.5, "pcvr": 0.2, "price": 0.3}, offsets=[0, n])
    score = fuse(parts, weights, offsets=[0, n])
    reply = {**{name: values for name, values in parts.items() if name != "price"}, "score": score}
    for row, expected in zip(explain(reply, weights, parts["price"] if told else None), score, strict=True):
        total = sum(part["contribution"] for part in row["parts"].values())
        np.testing.assert_allclose(total, expected, atol=1e-9)
        for part in row["parts"].values():
            np.testing.assert_allclose(part["weight"] * part["z"], part["contribution"], atol=1e-12)
