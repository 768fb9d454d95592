import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.replay.propensity import (
    check_policy,
    epsilon_propensities,
    log_propensities,
    place_propensities,
    plackett_luce_propensities,
)


def enumerated(logits, slots):
    """Sum over all orderings; the remaining weight is summed anew at each place, so nothing cancels."""
    weight = np.exp(np.asarray(logits, float) - max(logits))
    out = np.zeros((len(weight), slots))
    for order in itertools.permutations(range(len(weight))):
        probability = math.prod(weight[item] / weight[list(order[k:])].sum() for k, item in enumerate(order))
        for k, item in enumerate(order[:slots]):
            out[item, k] += probability
    return out


def test_two_items_by_hand():
    # odds 3 : 1 -> the first item is first with 3/4 and second with 1/4
    out = plackett_luce_propensities([math.log(3), 0.0], 2)
    np.testing.assert_allclose(out, [[0.75, 0.25], [0.25, 0.75]], atol=1e-12)


def test_three_items_by_hand():
    # odds 2 : 1 : 1. P(item 0 second) = P(1 first) 2/3 + P(2 first) 2/3 = 1/4 2/3 + 1/4 2/3 = 1/3
    # P(item 1 second) = P(0 first) 1/2 + P(2 first) 1/3 = 1/2 1/2 + 1/4 1/3 = 1/3
    out = plackett_luce_propensities([math.log(2), 0.0, 0.0], 2)
    np.testing.assert_allclose(out, [[0.5, 1 / 3], [0.25, 1 / 3], [0.25, 1 / 3]], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-15, 15), min_size=1, max_size=6), st.integers(1, 7))
def test_agrees_with_enumeration(logits, slots):
    np.testing.assert_allclose(plackett_luce_propensities(logits, slots), enumerated(logits, slots), atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.floats(0, 8), st.integers(0, 2**32 - 1))
def test_sums_and_order(items, slots, spread, seed):
    logits = spread * np.random.default_rng(seed).normal(size=items)
    out = plackett_luce_propensities(logits, slots)
    assert (out >= 0).all()
    filled = min(items, slots)
    np.testing.assert_allclose(out[:, :filled].sum(0), 1, atol=1e-10)
    assert not out[:, filled:].any()
    assert (out.sum(1) <= 1 + 1e-10).all()
    np.testing.assert_allclose(out[:, 0], np.exp(logits - np.logaddexp.reduce(logits)), atol=1e-11)
    if items <= slots:
        np.testing.assert_allclose(out.sum(1), 1, atol=1e-10)
    shown = out.sum(1)[np.argsort(logits)]
    assert (np.diff(shown) > -1e-10).all()  # a better score is never shown less


@pytest.mark.parametrize("spread", [30.0, 200.0, 590.0])
def test_extreme_logits(spread):
    logits = np.linspace(0, spread, 12)
    out = plackett_luce_propensities(logits, 12)
    np.testing.assert_allclose(out.sum(0), 1, atol=1e-9)
    np.testing.assert_allclose(out.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(out, plackett_luce_propensities(logits, 12, nodes=200), atol=1e-10)


def test_one_item_far_above_is_first_for_sure_and_small_ones_keep_their_ratio():
    # given that item 0 is first, the other two have odds 1 : 3 whatever their distance to it
    out = plackett_luce_propensities([30.0, 0.0, math.log(3)], 3)
    np.testing.assert_allclose(out[1:, 1], [0.25, 0.75], rtol=1e-9)
    np.testing.assert_allclose(out[1:, 0], np.exp(np.array([-30, math.log(3) - 30])), rtol=1e-9)


@pytest.mark.parametrize("slots", [10, 50])
def test_64_nodes_are_enough(slots):
    generator = np.random.default_rng(4)
    for spread in (0.0, 1.0, 3.0):
        logits = spread * generator.normal(size=50)
        exact = plackett_luce_propensities(logits, slots, nodes=300)
        np.testing.assert_allclose(plackett_luce_propensities(logits, slots), exact, atol=1e-10)


def test_agrees_with_draws():
    generator = np.random.default_rng(5)
    logits, draws = generator.normal(size=20), 200_000
    order = np.argsort(-(logits + generator.gumbel(size=(draws, 20))), axis=1)[:, :4]
    exact = plackett_luce_propensities(logits, 4)
    for k in range(4):
        found = np.bincount(order[:, k], minlength=20) / draws
        assert (np.abs(found - exact[:, k]) < 5 * np.sqrt(exact[:, k] / draws) + 1e-9).all()


def test_epsilon_by_hand():
    # epsilon .3, three items: .1 everywhere, and .7 more where the sorted order puts the item; ties keep order
    expected = [[0.1, 0.1], [0.8, 0.1], [0.1, 0.8]]
    np.testing.assert_allclose(epsilon_propensities([0.0, 2.0, 1.0], 2, 0.3), expected)
    np.testing.assert_allclose(epsilon_propensities([1.0, 1.0], 3, 0.0), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(epsilon_propensities([1.0, 2.0, 3.0, 4.0], 4, 1.0), np.full((4, 4), 0.25))


def test_log_columns_by_hand():
    # request 1: odds 3 : 1 at temperature 2 (scores 2 log 3, 0), slot 0 seen always, slot 1 by half.
    # item 0: exposure 3/4 + 1/2 1/4 = .875, shown first: 3/4. item 1: exposure 1/4 + 1/2 3/4 = .625, shown second: 3/4.
    # request 2: one item -> first for sure.
    scores, offsets, position = [2 * math.log(3), 0.0, 5.0], [0, 2, 3], [0, 1, -1]
    at, exposure = log_propensities(scores, offsets, position, [1.0, 0.5], temperature=2.0)
    np.testing.assert_allclose(at, [0.75, 0.75, np.nan], atol=1e-12)
    np.testing.assert_allclose(exposure, [0.875, 0.625, 1.0], atol=1e-12)
    # epsilon .2: item 0 leads: P(first) = .1 + .8, exposure .9 + .5 .1
    at, exposure = log_propensities(scores, offsets, position, [1.0, 0.5], epsilon=0.2)
    np.testing.assert_allclose(at, [0.9, 0.9, np.nan])
    np.testing.assert_allclose(exposure, [0.95, 0.1 + 0.45, 1.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plackett_luce_propensities([], 2), "`logits`"),
        (lambda: plackett_luce_propensities([0.0, np.nan], 2), "`logits`"),
        (lambda: plackett_luce_propensities([[0.0]], 2), "`logits`"),
        (lambda: plackett_luce_propensities([0.0, 700.0], 2), "span less than 600"),
        (lambda: plackett_luce_propensities([0.0], 0), "slots=0"),
        (lambda: plackett_luce_propensities([0.0], 1, nodes=1), "nodes=1"),
        (lambda: epsilon_propensities([0.0], 1, 1.5), "epsilon=1.5"),
        (lambda: log_propensities([0.0], [0, 1], [0], [1.0]), "either `temperature` or `epsilon`"),
        (lambda: log_propensities([0.0], [0, 1], [0], [1.0], temperature=0.0), "temperature=0.0"),
        (lambda: log_propensities([0.0], [0, 2], [0], [1.0], epsilon=0.1), "`offsets`"),
        (lambda: log_propensities([0.0], [0, 1], [1], [1.0], epsilon=0.1), "`position`"),
        (lambda: log_propensities([0.0], [0, 1], [0], [1.0], temperature=1.0, epsilon=0.1), "either `temperature`"),
        (lambda: place_propensities([0.0], [0, 1], [0], 1, temperature=[math.nan], epsilon=[math.nan]), "each request"),
        (lambda: place_propensities([0.0], [0, 1], [0], 1, epsilon=[1.5]), "epsilon=1.5"),
        (lambda: log_propensities([0.0], [0, 1], [0], [1.0], epsilon=0.1, pool=[0, 1]), "`pool`"),
        (lambda: log_propensities([0.0, 9e3], [0, 2], [0, -1], [1.0], temperature=1.0), "span less than 600"),
    ],
)
def test_rejects(call, words):
    with pytest.raises(UserError, match=words):
        call()


def drawn_log(requests=40, candidates=9, places=4, seed=0):
    """Scores, offsets and positions; the policy of a request is Plackett-Luce at two temperatures, or epsilon."""
    generator = np.random.default_rng(seed)
    size = generator.integers(places, candidates + 1, requests)
    offsets = np.concatenate([[0], np.cumsum(size)])
    scores, position = generator.normal(size=offsets[-1]), np.full(offsets[-1], -1)
    for start, stop in itertools.pairwise(offsets):
        position[start + generator.permutation(stop - start)[:places]] = np.arange(places)
    temperature = np.resize([0.7, 2.0, np.nan], requests)
    return scores, offsets, position, temperature, np.where(np.isnan(temperature), 0.3, np.nan)


def test_places_of_shown_rows_agree_with_each_request_by_itself():
    scores, offsets, position, temperature, epsilon = drawn_log()
    found = place_propensities(scores, offsets, position, 4, temperature=temperature, epsilon=epsilon)
    assert found.dtype == np.float32 and found.shape == (4 * 40, 4)
    wanted = []
    for request, (start, stop) in enumerate(itertools.pairwise(offsets)):
        own = scores[start:stop]
        if np.isnan(temperature[request]):
            exact = epsilon_propensities(own, 4, epsilon[request])
        else:
            exact = plackett_luce_propensities(own / temperature[request], 4)
        wanted.append(exact[position[start:stop] >= 0])
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=1e-5, atol=1e-9)
    theta = np.array([1.0, 0.5, 0.25, 0.125])
    at, exposure = log_propensities(scores, offsets, position, theta, temperature=temperature, epsilon=epsilon)
    shown = position >= 0
    np.testing.assert_allclose(found[np.arange(len(found)), position[shown]], at[shown], rtol=1e-5)
    np.testing.assert_allclose(found @ theta, exposure[shown], rtol=1e-5)


def test_threads_do_not_change_a_bit(monkeypatch):
    scores, offsets, position, temperature, epsilon = drawn_log(requests=30)
    wanted = place_propensities(scores, offsets, position, 4, temperature=temperature, epsilon=epsilon)
    monkeypatch.setattr("ranking.replay.propensity._CHUNK", 7)
    found = place_propensities(scores, offsets, position, 4, temperature=temperature, epsilon=epsilon)
    np.testing.assert_array_equal(found, wanted)


def test_40_nodes_are_enough_for_float32():
    generator = np.random.default_rng(6)
    for items, slots in ((50, 10), (200, 20), (400, 20)):
        for spread in (0.0, 1.0, 6.0):
            logits = spread * generator.normal(size=items)
            exact = plackett_luce_propensities(logits, slots, nodes=200)
            found = plackett_luce_propensities(logits, slots, nodes=40)
            np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-12)


def test_propensities_of_another_policy_are_refused():
    scores, offsets, position, temperature, epsilon = drawn_log()
    theta, shown = np.array([1.0, 0.5, 0.25, 0.125]), position >= 0
    places = place_propensities(scores, offsets, position, 4, temperature=temperature, epsilon=epsilon)
    at, exposure = log_propensities(scores, offsets, position, theta, temperature=temperature, epsilon=epsilon)
    stated = {"position_propensity": at[shown], "exposure_propensity": exposure[shown]}
    check_policy(places, position[shown], theta, stated)
    check_policy(places, position[shown], None, {**stated, "exposure_propensity": 2 * exposure[shown]})
    for name in stated:
        other = stated[name].copy()
        other[[3, 5]] *= 1.001
        with pytest.raises(UserError, match=f"`{name}` should be .* in 2 of 160 shown rows: .* of another policy"):
            check_policy(places, position[shown], theta, {**stated, name: other})
    with pytest.raises(UserError, match="Received: nan in 1 of"):
        check_policy(
            places, position[shown], theta, {"position_propensity": np.where(np.arange(160), at[shown], np.nan)}
        )


def test_pools_by_hand():
    # Three places, the second reserved. Pool 0: odds 3 : 1 for places 0 and 2; pool 1: odds 1 : 1 for place 1.
    # exposures with theta 1, .5, .2: 3/4 1 + 1/4 .2 = .8; 1/4 1 + 3/4 .2 = .4; 1/2 .5 = .25 each
    scores, pool, position = [math.log(3), 0.0, 0.0, 0.0], [0, 1, 0, 1], [0, -1, 2, 1]
    log = (scores, [0, 4], position)
    at, exposure = log_propensities(*log, [1.0, 0.5, 0.2], temperature=1.0, pool=pool)
    np.testing.assert_allclose(at, [0.75, np.nan, 0.75, 0.5], atol=1e-12)
    np.testing.assert_allclose(exposure, [0.8, 0.25, 0.4, 0.25], atol=1e-12)
    places = place_propensities(*log, 3, temperature=1.0, pool=pool)
    np.testing.assert_allclose(places, [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 0.5, 0]], atol=1e-7)
    # epsilon .2: within each pool .1 + .8 for the place of its own order; of equal scores the first is better
    at, exposure = log_propensities(*log, [1.0, 0.5, 0.2], epsilon=[0.2], pool=pool)
    np.testing.assert_allclose(at, [0.9, np.nan, 0.9, 0.1], atol=1e-12)
    np.testing.assert_allclose(exposure, [0.92, 0.45, 0.28, 0.05], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_pool_is_a_request_of_its_own_with_other_places(seed):
    generator = np.random.default_rng(seed)
    theta = np.sort(generator.uniform(0.1, 1, 6))[::-1]
    scores, offsets, position, pool, expected, own = [], [0], [], [], [], []
    for _ in range(3):
        free, rows = list(generator.permutation(6)[: generator.integers(2, 7)]), []
        cut = int(generator.integers(0, len(free) + 1))
        for number, places in ((4, sorted(free[:cut])), (9, sorted(free[cut:]))):
            size = len(places) + int(generator.integers(0 if places else 1, 3))
            logits = 2 * generator.normal(size=size)
            exact = plackett_luce_propensities(logits, max(len(places), 1))[:, : len(places)]
            shown = generator.permutation(size)
            for i in range(size):
                local = int(np.flatnonzero(shown == i)[0])
                at = places[local] if local < len(places) else -1
                rows.append((logits[i], at, number, exact[i] @ theta[places], exact[i, local] if at >= 0 else np.nan))
        rows = [rows[i] for i in generator.permutation(len(rows))]
        offsets.append(offsets[-1] + len(rows))
        for column, values in zip((scores, position, pool, expected, own), zip(*rows, strict=True), strict=True):
            column.extend(values)
    kept = np.array(pool)
    at, exposure = log_propensities(scores, offsets, position, theta, temperature=1.0, pool=kept)
    np.testing.assert_allclose(exposure, expected, atol=1e-10)
    np.testing.assert_allclose(at, own, atol=1e-10)
    places = place_propensities(scores, offsets, position, 6, temperature=[1.0] * 3, pool=kept)
    shown = np.array(position) >= 0
    np.testing.assert_allclose(places @ theta, exposure[shown], atol=1e-6)
    np.testing.assert_allclose(places[np.arange(shown.sum()), np.array(position)[shown]], at[shown], atol=1e-6)


def test_one_pool_a_request_is_no_pool():
    generator = np.random.default_rng(3)
    scores, offsets, position = generator.normal(size=9), [0, 4, 9], [0, 2, -1, 1, 1, -1, -1, -1, 0]
    log = (scores, offsets, position, [1.0, 0.6, 0.3])
    for slots in ([3, 2], None):
        plain = log_propensities(*log, temperature=0.7, slots=slots)
        pooled = log_propensities(*log, temperature=0.7, slots=slots, pool=[1] * 4 + [0] * 5)
        np.testing.assert_array_equal(plain, pooled)


def test_a_request_that_showed_nothing_was_looked_at_nowhere():
    at, exposure = log_propensities([1.0, 0.0, 2.0], [0, 2, 3], [-1, -1, 0], [1.0], temperature=1.0, slots=[0, 1])
    np.testing.assert_allclose(at, [np.nan, np.nan, 1.0], atol=1e-12)
    np.testing.assert_allclose(exposure, [0, 0, 1], atol=1e-12)
