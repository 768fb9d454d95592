from dataclasses import replace

import numpy as np
import pytest

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators import E0LabelNDCG, E3ExposureIPS, choose_estimator, informative_groups
from ranking.replay.evaluation import evaluate_weights, evaluations_frame
from ranking.replay.log import ReplayLog

PCTR = FusionWeights("sum", {"pctr": 1.0, "pcvr": 0.0}, {"pctr": 0.0, "pcvr": 0.0}, {"pctr": 1.0, "pcvr": 1.0})


def tiny(**changes) -> ReplayLog:
    """Two requests of three candidates and two slots; one immature."""
    columns = {
        "offsets": np.array([0, 3, 6]),
        "request_id": np.array(["a", "b"]),
        "timestamp": np.array([0, 1]),
        "user": np.array([0, 1]),
        "parts": {
            "pctr": np.array([0.1, 0.3, 0.2, 0.3, 0.2, 0.1], np.float32),
            "pcvr": np.array([0.3, 0.1, 0.2, 0.1, 0.2, 0.3], np.float32),
        },
        "item": np.array([0, 1, 2, 0, 1, 2]),
        "position": np.array([0, 1, -1, -1, 0, 1], np.int32),
        "click": np.array([1, 1, 0, 0, 1, 0], np.int8),
        "conversion": np.array([1, 0, 0, 0, 1, 0], np.int8),
        "value": np.array([6, 0, 0, 0, 5, 0], np.float32),
        "mature": np.array([True, False]),
        "new": np.array([False, True, False, False, True, False]),
        "exposure_propensity": np.array([0.5, 0.6, 0.4, 0.5, 0.8, 0.2]),
        "examination": np.array([1.0, 0.5]),
        "exploration": ("plackett_luce",),
    }
    return ReplayLog(**{**columns, **changes})


def take_three(**changes) -> ReplayLog:
    """The tiny log and its first request once more, as a third."""
    return replace(tiny().take(np.array([0, 1, 0])), **changes)


def values(estimator, log, weights, name):
    sums = estimator.sums(log, PCTR)
    return sums.values(np.array([weights], np.float32), [name])[name][0], sums.counted[name]


def test_e3_by_hand():
    # pctr order: request a -> items 1, 2, 0; b -> 0, 1, 2.  theta = (1, .5), two slots.
    # clicks a = 1/.6 * 1 (item 1) + 1/.5 * 0 (item 0, rank 2);  b = 1/.8 * .5 (item 1, rank 1)
    clicks, _ = values(E3ExposureIPS(), tiny(), [1, 0], "clicks")
    np.testing.assert_allclose(clicks, [1 / 0.6, 0.5 / 0.8], rtol=1e-6)
    # pcvr order: a -> 0, 2, 1; conversions a = 1/.5; b is not final: masked and left out of the mean
    conversions, counted = values(E3ExposureIPS(), tiny(), [0, 1], "conversions")
    np.testing.assert_allclose(conversions, [2.0, 0.0], rtol=1e-6)
    assert counted.tolist() == [True, False]
    # new under pctr: a: item 1 first, 1/1.5; b: item 1 second, .5/1.5
    new, _ = values(E3ExposureIPS(), tiny(), [1, 0], "new_items")
    np.testing.assert_allclose(new, [1 / 1.5, 0.5 / 1.5], rtol=1e-6)
    # weight a: item 1 shown at place 1, now first: .5 * 1 / .6; item 0 now unseen; over Theta 1.5
    # weight b: item 1 shown first, now second: 1 * .5 / .8; item 2 unseen
    weight, _ = values(E3ExposureIPS(), tiny(), [1, 0], "weight")
    np.testing.assert_allclose(weight, [0.5 / 0.6 / 1.5, 0.5 / 0.8 / 1.5], rtol=1e-6)
    # under the floor of .45: a: item 2 second, .5 / 1.5; b: none seen (item 2 is third)
    unsupported, _ = values(E3ExposureIPS(exposure_floor=0.45), tiny(), [1, 0], "unsupported")
    np.testing.assert_allclose(unsupported, [0.5 / 1.5, 0.0], rtol=1e-6)


def test_e0_by_hand():
    # a by pctr: shown items 1, 0, both clicked: no negative, not counted.  b: items 1, 2 -> click first: NDCG 1.
    clicks, counted = values(E0LabelNDCG(), tiny(), [1, 0], "clicks")
    assert counted.tolist() == [False, True]
    np.testing.assert_allclose(clicks[1], 1.0)
    # b by pcvr: item 2 first, the click second: 1 / log2(3)
    clicks, _ = values(E0LabelNDCG(), tiny(), [0, 1], "clicks")
    np.testing.assert_allclose(clicks[1], 1 / np.log2(3), rtol=1e-6)
    # by user, both requests of one user: pctr order 1a (.3), 1b (.2), 0a (.1, first of equals), 2b (.1)
    # labels 1, 1, 1, 0: NDCG 1
    together = take_three(user=np.array([0, 0, 1]))
    clicks, counted = values(E0LabelNDCG(group="user"), together, [1, 0], "clicks")
    assert counted.tolist() == [True, False]
    np.testing.assert_allclose(clicks[0], 1.0, rtol=1e-6)
    # by pcvr: 0a (.3, 1), 2b (.3, 0), 1b (.2, 1), 1a (.1, 1)
    d = 1 / np.log2(np.arange(4) + 2)
    clicks, _ = values(E0LabelNDCG(group="user"), together, [0, 1], "clicks")
    np.testing.assert_allclose(clicks[0], (d[0] + d[2] + d[3]) / d[:3].sum(), rtol=1e-6)


def test_informative_groups_by_hand():
    # clicks: request a has no negative, b has both; users are requests; item 1: clicked twice, 0 and 2 shown once
    assert informative_groups(tiny(), "request") == {"clicks": 1, "conversions": 1, "value": 1}
    assert informative_groups(tiny(), "item") == {"clicks": 0, "conversions": 0, "value": 0}
    with pytest.raises(UserError, match="`group` should be one of"):
        informative_groups(tiny(), "day")


def test_the_estimate_is_right(world):
    """|E3 - truth| < 5 standard errors for every setting that the gates let pass."""
    asked = [
        world.production,
        world.setting(pctr=1.0, pcvr=0.5, similarity=0.1),
        world.setting(similarity=1.0, pctr=0.5, pcvr=0.2),
        world.setting(pctr=1.0, pcvr=1.0),
    ]
    for setting, found in zip(asked, evaluate_weights(world.log, asked, world.production), strict=True):
        assert found.support is not None and found.support.state == "supported"
        truth = world.truth(setting)
        for name in ("clicks", "conversions"):
            estimate = found.estimates[name]
            assert abs(estimate.value - truth[name]) < 5 * estimate.value_error, (setting.weights, name)


def test_the_opposite_of_production_is_refused_and_has_no_number(world):
    anti = world.setting(similarity=-0.1, pctr=-1.0, pcvr=-0.1)
    found = evaluate_weights(world.log, [world.production, anti], world.production)[1]
    assert found.support is not None and found.support.state == "refused" and found.estimates == {}
    frame = evaluations_frame([found], ["anti"])
    assert frame["state"].tolist() == ["refused"] and "delta" not in frame


def test_wrong_propensities_are_refused(world):
    log = world.log
    e3 = E3ExposureIPS()
    with pytest.raises(UserError, match="needs the column `exposure_propensity`.*position_propensity"):
        e3.sums(replace(log, exposure_propensity=None), world.production)
    with pytest.raises(UserError, match="needs `examination`"):
        e3.sums(replace(log, examination=None), world.production)
    with pytest.raises(UserError, match="is a `position_propensity`"):
        e3.sums(replace(log, exposure_propensity=log.position_propensity), world.production)
    filled = np.where(np.isnan(log.position_propensity), 0.01, log.position_propensity)
    with pytest.raises(UserError, match="should add up to the examination"):
        e3.sums(replace(log, exposure_propensity=filled), world.production)
    with pytest.raises(UserError, match="another `examination`"):
        e3.sums(replace(log, examination=np.array([1.0, 0.5, 0.3, 0.2])), world.production)
    with pytest.raises(UserError, match="a value for each shown place, 4. Received: 3"):
        e3.sums(replace(log, examination=log.examination[:3]), world.production)


def test_a_log_that_did_not_explore_is_only_reordered(world):
    assert choose_estimator(world.log).name == "E3"
    assert choose_estimator(replace(world.log, exploration=("none",))).name == "E0"
    found = evaluate_weights(replace(world.log, exposure_propensity=None), [world.production], world.production)[0]
    assert found.support is None and found.estimates["clicks"].delta == 0
    assert evaluations_frame([found], ["production"])["state"].tolist() == ["biased"] * 4


def test_weights_of_other_constants_or_absent_parts_are_refused(world):
    other = replace(world.production, mu={**world.production.mu, "pctr": 0.0})
    with pytest.raises(UserError, match="production's `mu` and `sd` of pctr"):
        evaluate_weights(world.log, [other], world.production)
    with pytest.raises(UserError, match="`parameters_hash`.*'p0'. Received: 'p1'"):
        evaluate_weights(world.log, [replace(world.production, parameters_hash="p1")], world.production)
    parts = {name: column for name, column in world.log.parts.items() if name != "pcvr"}
    with pytest.raises(UserError, match="pcvr"):
        evaluate_weights(replace(world.log, parts=parts), [world.production], world.production)
