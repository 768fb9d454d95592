from dataclasses import replace

import numpy as np
import pytest

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators import (
    BIASED_BANNER,
    ESTIMATORS,
    EXAMINATION_BANNER,
    E0LabelNDCG,
    E1ReplayMatch,
    E2PositionRatio,
    E3ExposureIPS,
    E4PositionIPS,
    E5SelfNormalised,
    E6DoublyRobust,
    choose_estimator,
    informative_groups,
)
from ranking.replay.evaluation import evaluate_weights, evaluations_frame
from ranking.replay.log import ReplayLog

EXPOSURE = ("E3", "E5", "E6")  # what each needs
POSITION = ("E1", "E4")
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
        "position_propensity": np.array([1 / 3, 1 / 3, np.nan, np.nan, 1 / 3, 1 / 3]),
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


def test_clipping_by_hand():
    # as above with 1/e0 at most 1.25: a = 1.25 * 1, b = 1 / .8 * .5 as before
    clicks, _ = values(E3ExposureIPS(clip=1.25), tiny(), [1, 0], "clicks")
    np.testing.assert_allclose(clicks, [1.25, 0.5 / 0.8], rtol=1e-6)
    # the gates see the weight without clipping, and how much of it is lost: a .5 (1 / .6 - 1.25) / 1.5, b nothing
    weight, _ = values(E3ExposureIPS(clip=1.25), tiny(), [1, 0], "weight")
    np.testing.assert_allclose(weight, [0.5 / 0.6 / 1.5, 0.5 / 0.8 / 1.5], rtol=1e-6)
    lost = [0.5 * (1 / 0.6 - 1.25) / 1.5, 0.0]
    np.testing.assert_allclose(values(E3ExposureIPS(clip=1.25), tiny(), [1, 0], "clipped")[0], lost, atol=1e-7)
    kept, _ = values(E5SelfNormalised(clip=1.25), tiny(), [1, 0], "kept")
    np.testing.assert_allclose(kept, weight - lost, rtol=1e-6)
    assert set(E5SelfNormalised(clip=1.25).sums(tiny(), PCTR).ratios.values()) == {"kept"}
    for kind in (E3ExposureIPS, E5SelfNormalised, E6DoublyRobust):
        for clip in (0.5, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="`clip` should be a finite number >= 1"):
                kind(clip=clip)


def test_e1_by_hand():
    # each of 3 candidates is at each place with 1/3. pcvr order a: 0, 2, 1, item 0 is where it was shown: 3 * 1 click;
    # b: 2, 1, 0, none is. Half of a's two places match: weight 3 / 2. Clicks a request: (3 + 0) / (1.5 + 0) = 2,
    # which is one click a match, times two places.
    clicks, _ = values(E1ReplayMatch(), tiny(), [0, 1], "clicks")
    weight, _ = values(E1ReplayMatch(), tiny(), [0, 1], "weight")
    np.testing.assert_allclose(clicks, [3, 0])
    np.testing.assert_allclose(weight, [1.5, 0])
    ratios = E1ReplayMatch().sums(tiny(), PCTR).ratios
    assert ratios == {"clicks": "weight", "conversions": "weight", "value": "weight"}
    with pytest.raises(
        UserError, match="uniformly random order.*0.3333 in request b. Received: 0.5, and others in 25%"
    ):
        E1ReplayMatch().sums(tiny(position_propensity=np.array([1 / 3, 1 / 3, np.nan, np.nan, 0.5, 1 / 3])), PCTR)


def test_e2_by_hand():
    # pctr order a: 1, 2, 0: item 1 from the place of .5 to that of 1: 1 / .5; item 0 out. b: item 1 from 1 to .5.
    clicks, _ = values(E2PositionRatio(), tiny(), [1, 0], "clicks")
    np.testing.assert_allclose(clicks, [2.0, 0.5])
    with pytest.raises(UserError, match="positive at each shown place"):
        E2PositionRatio().sums(tiny(examination=np.array([1.0, 0.0])), PCTR)


def test_e4_by_hand():
    # pcvr order: item 0 of a is where it was, with chance .4; nothing of b is.
    log = tiny(position_propensity=np.array([0.4, 0.3, np.nan, np.nan, 0.5, 0.25]))
    np.testing.assert_allclose(values(E4PositionIPS(), log, [0, 1], "clicks")[0], [1 / 0.4, 0])
    np.testing.assert_allclose(values(E4PositionIPS(), log, [0, 1], "weight")[0], [1 / 0.4 / 2, 0])
    # needs no examination: then the two places count alike, new are item 1 of both; pctr order 1, 2, 0 and 0, 1, 2
    blind = replace(log, examination=None, exposure_propensity=None)
    np.testing.assert_allclose(values(E4PositionIPS(), blind, [1, 0], "new_items")[0], [0.5, 0.5])


def test_e5_by_hand():
    # E3's clicks (1 / .6, .5 / .8) over E3's weights (.5 / .6 / 1.5, .5 / .8 / 1.5): 2.29167 / .97222 = 33 / 14
    sums = E5SelfNormalised().sums(tiny(), PCTR)
    found = sums.values(np.array([[1, 0]], np.float32))
    assert sums.ratios == {"clicks": "weight", "conversions": "weight", "value": "weight"}
    assert found["clicks"].sum() / found["weight"].sum() == pytest.approx(33 / 14)


def test_e6_by_hand():
    # theta_pos pctr: a .1 + .5 .3 = .25 with 2 clicks; b .2 + .5 .1 = .25 with 1. Each half takes the other's factor:
    # m = 4 pctr in a, 8 pctr in b.
    # a, order 1, 2, 0: 4 (.3 + .5 .2) + 1 / .6 (1 - .5 1.2) = 1.6 + .66667
    # b, order 0, 1, 2: 8 (.3 + .5 .2) + .5 / .8 (1 - 1.6) = 3.2 - .375
    clicks, _ = values(E6DoublyRobust(), tiny(), [1, 0], "clicks")
    np.testing.assert_allclose(clicks, [1.6 + 0.4 / 0.6, 3.2 - 0.375], rtol=1e-6)
    # conversions of a: the other half has no final label, so no prediction, and what is left is E3
    conversions, _ = values(E6DoublyRobust(), tiny(), [0, 1], "conversions")
    np.testing.assert_allclose(conversions[0], 2.0, rtol=1e-6)
    # value with prices 10, 20, missing (their mean, 15); all final. theta_pos pctr pcvr price: a .1 .3 10 +
    # .5 .3 .1 20 = .6 with value 6; b .2 .2 20 + .5 .1 .3 15 = 1.025 with value 5.
    # a, pcvr order 0, 2, 1: 5 / 1.025 (.3 + .5 .2 .2 15) + 1 / .5 (6 - 5 / 1.025 .3)
    prices = np.tile(np.array([10, 20, np.nan], np.float32), 2)
    log = tiny(parts={**tiny().parts, "price": prices}, mature=np.array([True, True]))
    value, _ = values(E6DoublyRobust(), log, [0, 1], "value")
    np.testing.assert_allclose(value[0], 5 / 1.025 * 0.6 + 2 * (6 - 5 / 1.025 * 0.3), rtol=1e-6)
    parts = {"pcvr": tiny().parts["pcvr"]}
    with pytest.raises(UserError, match="E6 needs the score part `pctr`"):
        E6DoublyRobust().sums(tiny(parts=parts), PCTR)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_says_what_it_is(name):
    kind = ESTIMATORS[name]
    assert kind.name == name and kind() == kind()
    for text in (kind.assumptions, kind.formula, kind.source):
        assert text and "\n" not in text
    banners = kind().banners(tiny())
    assert (BIASED_BANNER in banners) == (not kind.causal)
    assert (EXAMINATION_BANNER in banners) == (name in ("E2", *EXPOSURE))
    assert EXAMINATION_BANNER not in kind().banners(tiny(examination_method="estimated"))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_is_linear_in_the_labels_and_knows_no_order_of_requests(name):
    log = tiny(mature=np.array([True, True]), category=np.zeros(6, np.int32), category_names=["a"])
    settings = np.array([[1, 0], [0, 1], [1, -1]], np.float32)
    estimator = ESTIMATORS[name]()
    sums = estimator.sums(log, PCTR)
    found = sums.values(settings, ["clicks", "value"])
    assert {"clicks", "conversions", "value", "new_items"} <= set(sums.coefficients)
    assert set(sums.counted) == set(sums.coefficients) and sums.category is not None
    if estimator.causal:
        assert {"weight", "unsupported"} <= set(sums.coefficients)
    turned = estimator.sums(log.take(np.array([1, 0])), PCTR).values(settings, ["clicks"])
    np.testing.assert_allclose(turned["clicks"], found["clicks"][:, ::-1], rtol=1e-6)
    if name != "E0":  # a share of the best order
        more = estimator.sums(replace(log, value=3 * log.value), PCTR).values(settings, ["value"])
        np.testing.assert_allclose(more["value"], 3 * found["value"], rtol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_refuses_labels_that_are_all_equal_and_a_single_user(name):
    estimator, nothing = ESTIMATORS[name](), np.zeros(6, np.int8)
    with pytest.raises(UserError, match="`click` should differ.*0 on each of them"):
        estimator.sums(tiny(click=nothing, conversion=nothing), PCTR)
    with pytest.raises(UserError, match="`click` should differ.*1 on each of them"):
        estimator.sums(tiny(click=(tiny().position >= 0).astype(np.int8)), PCTR)
    with pytest.raises(UserError, match="`click` should differ.*no shown row"):
        informative_groups(tiny(position=np.full(6, -1, np.int32)))
    with pytest.raises(UserError, match="`user_id` should have two values"):
        estimator.sums(tiny(user=np.array([0, 0])), PCTR)


@pytest.mark.parametrize("name", EXPOSURE)
def test_wrong_exposure_propensities_are_refused(name):
    estimator, log = ESTIMATORS[name](), tiny()
    for wrong in (0.0, 1.01, -0.1, np.nan, np.inf):
        exposure = log.exposure_propensity.copy()
        exposure[1] = wrong
        with pytest.raises(UserError, match=rf"should be in \(0, 1\] on shown.*{wrong}, in 1 of 6 rows"):
            estimator.sums(tiny(exposure_propensity=exposure), PCTR)
    with pytest.raises(UserError, match=f"{name} needs the column `exposure_propensity`.*position_propensity.* for E4"):
        estimator.sums(tiny(exposure_propensity=None), PCTR)
    without_candidates = tiny(exposure_propensity=None, position_propensity=None)
    with pytest.raises(UserError, match=f"{name} needs the column `exposure_propensity` in candidates. Received: no"):
        estimator.sums(without_candidates, PCTR)
    with pytest.raises(UserError, match="is a `position_propensity`"):
        estimator.sums(tiny(exposure_propensity=log.position_propensity), PCTR)
    with pytest.raises(UserError, match="should add up to the examination"):
        estimator.sums(tiny(exposure_propensity=np.full(6, 1 / 3)), PCTR)  # filled in, it does not
    with pytest.raises(UserError, match=f"{name} needs `examination`"):
        estimator.sums(tiny(examination=None), PCTR)


@pytest.mark.parametrize("name", POSITION)
def test_wrong_position_propensities_are_refused(name):
    estimator, log = ESTIMATORS[name](), tiny()
    for wrong in (0.0, 1.01, -0.1, np.nan, np.inf):
        position = log.position_propensity.copy()
        position[1] = wrong
        with pytest.raises(UserError, match=rf"should be in \(0, 1\] on every shown.*{wrong}, in 1 of 4 rows"):
            estimator.sums(tiny(position_propensity=position), PCTR)
    with pytest.raises(UserError, match=f"{name} needs the column `position_propensity`.*exposure_propensity.* for E3"):
        estimator.sums(tiny(position_propensity=None), PCTR)
    without_candidates = tiny(exposure_propensity=None, position_propensity=None)
    with pytest.raises(UserError, match=f"{name} needs the column `position_propensity` in candidates. Received: no"):
        estimator.sums(without_candidates, PCTR)
    with pytest.raises(UserError, match="there is an `exposure_propensity`"):
        estimator.sums(tiny(position_propensity=log.exposure_propensity), PCTR)
    emptied = np.where(log.position >= 0, log.exposure_propensity, np.nan)
    with pytest.raises(UserError, match="Received: the exposure propensities"):
        estimator.sums(tiny(position_propensity=emptied), PCTR)


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
    for name in ("E0", "E2"):
        assert choose_estimator(replace(world.log, exploration=("none",)), name=name).name == name
    for name in ("E1", *EXPOSURE, "E4"):
        with pytest.raises(UserError, match=f"{name} needs a log of a policy that explored"):
            choose_estimator(replace(world.log, exploration=("none",)), name=name)
    found = evaluate_weights(replace(world.log, exposure_propensity=None), [world.production], world.production)[0]
    assert found.support is None and found.estimates["clicks"].delta == 0
    assert set(evaluations_frame([found], ["production"])["state"]) == {"biased"}


def test_an_estimator_by_its_name(world):
    for name in ESTIMATORS:
        assert choose_estimator(world.log, name=name).name == name
    assert choose_estimator(world.log, "user", "E0") == E0LabelNDCG(group="user")
    with pytest.raises(UserError, match="`estimator` should be one of .*'E6'.*'E7'"):
        choose_estimator(world.log, name="E7")
    with pytest.raises(UserError, match="`group` should be one of"):
        choose_estimator(world.log, "day")
    assert E0LabelNDCG("user").sums(world.log, world.production).category is None


def test_weights_of_other_constants_or_absent_parts_are_refused(world):
    other = replace(world.production, mu={**world.production.mu, "pctr": 0.0})
    with pytest.raises(UserError, match="production's `mu` and `sd` of pctr"):
        evaluate_weights(world.log, [other], world.production)
    with pytest.raises(UserError, match="`parameters_hash`.*'p0'. Received: 'p1'"):
        evaluate_weights(world.log, [replace(world.production, parameters_hash="p1")], world.production)
    parts = {name: column for name, column in world.log.parts.items() if name != "pcvr"}
    with pytest.raises(UserError, match="pcvr"):
        evaluate_weights(replace(world.log, parts=parts), [world.production], world.production)
