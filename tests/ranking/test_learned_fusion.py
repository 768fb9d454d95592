import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.fusion import FusionWeights, terms
from ranking.learned_fusion import MonotoneFusion, poisson_loss, ramps
from ranking.replay.log import ReplayLog

THETA = np.array([1.0, 0.7, 0.5, 0.4])
PLAIN = FusionWeights("sum", {"pctr": 1.0, "pcvr": 1.0}, dict(pctr=0.0, pcvr=0.0), dict(pctr=1.0, pcvr=1.0))


def rate_of(parts):
    """P(click given a look): the one part tells below its middle only, the other above it only."""
    return 0.05 * np.exp(2.5 * np.minimum(parts["pctr"], 0.4) / 0.4 + 5 * np.maximum(parts["pcvr"] - 0.7, 0)) / 3


def log_of(requests=3000, candidates=12, seed=0, rate=rate_of, preferring=False):
    """Shown uniformly at random: e0 of each candidate is the mean of theta over the places, times slots / candidates.

    `preferring`: three requests in four show of the half of the candidates with the larger pctr only, the others of
    the other half only.
    """
    rng = np.random.default_rng(seed)
    n, slots = requests * candidates, len(THETA)
    parts = {name: rng.random(n).astype(np.float32) for name in ("pctr", "pcvr")}
    share = np.full((requests, candidates), 1 / candidates)  # of the looks
    noise = rng.random((requests, candidates))
    if preferring:
        high = parts["pctr"].reshape(requests, -1).argsort(axis=1).argsort(axis=1) >= candidates // 2
        share = np.where(high, 0.75, 0.25) / (candidates // 2)
        noise += high != (rng.random((requests, 1)) < 0.75)  # the others come last
    position = noise.argsort(axis=1).argsort(axis=1).astype(np.int32).ravel()
    position[position >= slots] = -1
    exposure = THETA.sum() * share.ravel()
    looked = (position >= 0) & (rng.random(n) < THETA[np.maximum(position, 0)])
    click = looked & (rng.random(n) < rate(parts))
    return ReplayLog(
        offsets=np.arange(0, n + 1, candidates),
        request_id=np.arange(requests),
        timestamp=np.arange(requests),
        user=np.arange(requests) % 500,
        parts=parts,
        item=rng.integers(0, 50, n),
        position=position,
        click=click.astype(np.int8),
        conversion=np.zeros(n, np.int8),
        value=np.zeros(n, np.float32),
        mature=np.ones(requests, bool),
        new=np.zeros(n, bool),
        exposure_propensity=exposure,
        examination=THETA,
        exploration=("uniform",),
        window=(0, requests),
    )


def earned(log, score, rate=rate_of):
    """Expected clicks a request of the order by score."""
    request = log.request_of_row
    order = np.lexsort((-score, request))
    place = np.arange(len(order)) - log.offsets[request]
    seen = place < len(THETA)
    return float((THETA[place[seen]] * rate(log.parts)[order][seen]).sum() / log.requests)


def test_ramps_known_values():
    # Knots 0, 1, 3: below 0, from 0 to 1, from 1 to 3, above 3.
    found = ramps(np.array([-2.0, 0.5, 2.0, 7.0]), np.array([0.0, 1.0, 3.0]))
    np.testing.assert_array_equal(found, [[-2, 0, 0, 0], [0, 0.5, 0, 0], [0, 1, 1, 0], [0, 1, 2, 4]])
    np.testing.assert_array_equal(found.sum(axis=1), [-2, 0.5, 2, 7])  # z - t_1: equal slopes are a weight


def test_loss_known_values():
    basis = np.array([[1.0], [2.0]])
    # eta = .5 x - 1 = -.5 and 0; looks 2 and .5, outcomes 1 and 3:
    # (2 e^-.5 + .5 - (1 * -.5 + 3 * 0)) / 4 + .1 * .5^2
    found, gradient = poisson_loss(
        np.array([0.5, -1.0]), basis, np.array([2.0, 0.5]), np.array([1.0, 3.0]), np.array([[0.1]])
    )
    first = 2 * np.exp(-0.5)
    assert found == pytest.approx((first + 0.5 + 0.5) / 4 + 0.025)
    # residuals (2 e^-.5 - 1) / 4 and (.5 - 3) / 4
    residual = (first - 1) / 4, -2.5 / 4
    np.testing.assert_allclose(gradient, [residual[0] + 2 * residual[1] + 0.1, sum(residual)])


def test_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    basis, looks, outcome = rng.normal(size=(40, 5)), rng.random(40), rng.random(40)
    root = rng.normal(size=(5, 5))
    at, step = rng.normal(size=6) * 0.3, 1e-6
    arguments = basis, looks, outcome, root @ root.T
    _, gradient = poisson_loss(at, *arguments)
    for k in range(6):
        plus, minus = at + step * np.eye(6)[k], at - step * np.eye(6)[k]
        slope = (poisson_loss(plus, *arguments)[0] - poisson_loss(minus, *arguments)[0]) / (2 * step)
        assert gradient[k] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_recovers_an_order_that_no_weights_give():
    log, later = log_of(), log_of(seed=1)
    found = MonotoneFusion.fit(log, PLAIN, "clicks")
    mine = earned(later, found.score(later))
    linear = max(
        earned(later, np.cos(angle) * later.parts["pctr"] + np.sin(angle) * later.parts["pcvr"])
        for angle in np.linspace(0, np.pi / 2, 61)  # with the answers in hand
    )
    best = earned(later, rate_of(later.parts))
    assert linear < 0.97 * best and mine > 0.99 * best
    again = MonotoneFusion.fit(log, PLAIN, "clicks")
    np.testing.assert_array_equal(again.score(later), found.score(later))


def test_linear_truth_gives_nearly_linear_curves():
    def rate(parts):
        return 0.03 * np.exp(1.5 * parts["pctr"] + 0.75 * parts["pcvr"])

    found = MonotoneFusion.fit(log_of(rate=rate, requests=6000), PLAIN, "clicks")
    z = np.linspace(0.05, 0.95, 19)
    for name, slope in (("pctr", 1.5), ("pcvr", 0.75)):
        curve = ramps(z, found.knots[name]) @ found.slopes[name]
        assert curve[-1] - curve[0] == pytest.approx(0.9 * slope, abs=0.4)  # 5 standard errors


@pytest.mark.slow
def test_propensities_undo_what_the_policy_preferred():
    """A rate that the curves cannot fit: what is fitted is an average, and of whom e0 decides.

    With clicks only where pctr and pcvr are both high a product of curves is wrong everywhere, and the policy that
    shows high pctr three times as often would have it fitted there.
    """

    def rate(parts):
        return 0.02 + 0.3 * ((parts["pctr"] > 0.5) & (parts["pcvr"] > 0.5))

    everywhere = MonotoneFusion.fit(log_of(rate=rate, requests=6000), PLAIN, "clicks")
    preferring = log_of(rate=rate, requests=6000, preferring=True, seed=1)
    weighted = MonotoneFusion.fit(preferring, PLAIN, "clicks")
    plain = MonotoneFusion.fit(dataclasses.replace(preferring, exposure_propensity=None), PLAIN, "clicks")
    z = np.linspace(0, 1, 41)

    def rise(fusion):
        curve = ramps(z, fusion.knots["pcvr"]) @ fusion.slopes["pcvr"]
        return curve[-1] - curve[0]

    assert abs(rise(weighted) - rise(everywhere)) < 0.5 * abs(rise(plain) - rise(everywhere))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["product", "sum", "rank"]), st.sampled_from(["clicks", "value"]))
def test_a_better_part_never_makes_a_worse_score(seed, form, objective):
    """Whatever was learned, from labels that have nothing to do with the parts."""
    rng = np.random.default_rng(seed)
    log = log_of(requests=40, seed=seed, rate=lambda parts: np.full(len(parts["pctr"]), 0.2))
    log.click[log.position == 0] = 1
    conversion = log.click * (rng.random(len(log.click)) < 0.5)
    value = np.where(conversion, rng.lognormal(2, 2, len(log.click)), 0).astype(np.float32)
    log = dataclasses.replace(log, conversion=conversion.astype(np.int8), value=value)
    production = FusionWeights.fit(log.parts, form, {"pctr": 1.0, "pcvr": 0.5}, offsets=log.offsets)
    found = MonotoneFusion.fit(log, production, objective)
    assert all((slopes >= 0).all() for slopes in found.slopes.values())
    for name in log.parts:
        better = {**log.parts, name: log.parts[name].copy()}
        row = rng.integers(0, len(log.item), 40)
        better[name][row] += rng.random(40).astype(np.float32)
        before = found.score(log)
        after = found.score(dataclasses.replace(log, parts=better))
        up = (
            terms(better, production, offsets=log.offsets)[name]
            >= terms(log.parts, production, offsets=log.offsets)[name]
        )
        assert (after[up] >= before[up]).all()
        if form != "rank":  # a rank may fall where others rise
            assert (after[row] >= before[row]).all()


def test_missing_parts_and_late_conversions():
    log = log_of(requests=300)
    price = np.where(np.arange(len(log.item)) % 3 > 0, log.parts["pctr"] * 9 + 1, np.nan).astype(np.float32)
    log.click[log.position == 0] = 1
    log = dataclasses.replace(log, parts={**log.parts, "price": price}, conversion=log.click)
    production = FusionWeights.fit(log.parts, "product", {"pctr": 1.0, "price": 0.2})
    found = MonotoneFusion.fit(log, production, "conversions")
    assert np.isfinite(found.score(log)).all()
    mature = np.arange(300) < 100
    late = MonotoneFusion.fit(dataclasses.replace(log, mature=mature), production, "conversions")
    early = MonotoneFusion.fit(log.take(mature), production, "conversions")
    for name, slopes in early.slopes.items():
        np.testing.assert_allclose(late.slopes[name], slopes, rtol=1e-6, atol=1e-8)


def test_rejects():
    log = log_of(requests=20)
    for objective in ("new_items", "diversity", "gmv"):
        with pytest.raises(UserError, match=f"`objective` should be one of .*Received: '{objective}'"):
            MonotoneFusion.fit(log, PLAIN, objective)
    with pytest.raises(UserError, match="should have conversions.*Received: none"):
        MonotoneFusion.fit(log, PLAIN, "conversions")
