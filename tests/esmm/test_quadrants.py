import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esmm.quadrants import QUADRANTS, BetaPrior, _moments, place, quadrants


def test_posterior_known_values():
    # Beta(1, 1) + 3 events in 4 trials = Beta(4, 2): mean 4/6, and P(x > 1/2) = 1 - (6 * .5^5 - 5 * .5^6 + ...)
    # P(Beta(4, 2) <= x) = 5 x^4 - 4 x^5, at 1/2: 5/16 - 4/32 = 3/16
    prior = BetaPrior(0.5, 2.0)
    assert prior.rate([3, 0], [4, 0]).tolist() == pytest.approx([4 / 6, 1 / 2])
    assert prior.above(0.5, [3, 0], [4, 0]).tolist() == pytest.approx([13 / 16, 1 / 2])


def test_quadrants_known_values():
    found = quadrants([9000, 9000, 3], [900, 90, 1], [900, 90, 1], [90, 40, 0])
    # all clicks per impression and all conversions per click
    assert found.click_threshold == pytest.approx(991 / 18003)
    assert found.conversion_threshold == pytest.approx(130 / 991)
    assert found.quadrant.tolist() == ["flashy", "hidden gem", "winner"]
    assert found.certainty.round(2).tolist() == [1.0, 1.0, 0.54]
    # smoothed: (a + e) / (s + n)
    click, conversion = found.click_prior, found.conversion_prior
    assert found.click_rate[2] == pytest.approx((click.mean * click.strength + 1) / (click.strength + 3))
    assert found.conversion_rate[2] == pytest.approx(conversion.mean * conversion.strength / (conversion.strength + 1))
    # P(high click rate) * P(high conversion rate), by scipy's distributions
    a, b = click.mean * click.strength + 1, (1 - click.mean) * click.strength + 2
    high_click = stats.beta(a, b).sf(found.click_threshold)
    a, b = conversion.mean * conversion.strength, (1 - conversion.mean) * conversion.strength + 1
    assert found.certainty[2] == pytest.approx(high_click * stats.beta(a, b).sf(found.conversion_threshold))


def test_place_known_values():
    # at its threshold a rate is high
    names = place(np.array([0.1, 0.1, 0.09, 0.09]), np.array([0.2, 0.19, 0.2, 0.19]), 0.1, 0.2)
    assert names.tolist() == ["winner", "flashy", "hidden gem", "to retire"] and set(names) == set(QUADRANTS)


def test_moments_known_values():
    # mean 4/8; spread 2 * (1/2 * (1/4)^2) / (1/4) = 1/4, of which chance is 2 * (1/2 * 1/2) / 4 = 1/8;
    # correlation (1/4 - 1/8) / (2 * 1/4 * 3/4) = 1/3, strength 3 - 1
    assert _moments(np.array([1, 3]), np.array([4, 4]), np.array([1, 1])) == pytest.approx((0.5, 2.0))
    # two such pairs of items: chance 4 * (1/4 * 3/4) / 4 = 3/16, correlation (1/4 - 3/16) / (4 * 3/16 * 3/4) = 1/9
    assert _moments(np.array([1, 3]), np.array([4, 4]), np.array([2, 2])) == pytest.approx((0.5, 8.0))


def likelihood(prior: BetaPrior, e, n) -> float:
    return float(stats.betabinom(n, prior.mean * prior.strength, (1 - prior.mean) * prior.strength).logpmf(e).sum())


def test_fit_is_the_most_likely_prior():
    e, n = np.array([0, 1, 5, 2, 9, 0, 3]), np.array([4, 4, 9, 30, 10, 0, 7])
    prior = BetaPrior.fit(e, n)
    best = likelihood(prior, e, n)
    # any other prior of a grid around it is less likely, by scipy's density
    for mean in (0.999, 0.9, 1.1, 1.001):
        for strength in (1.0, 0.8, 0.99, 1.01, 1.3):
            assert likelihood(BetaPrior(prior.mean * mean, prior.strength * strength), e, n) < best


@pytest.mark.parametrize(
    "mean, strength, items, most",
    [(0.05, 30, 3000, 500), (0.2, 5, 2000, 60), (0.01, 400, 6000, 600), (0.3, 0.5, 800, 30)],
)
def test_fit_finds_the_truth_of_simulated_items(mean, strength, items, most):
    """Within 5.2 standard errors (a normal is outside with probability 2e-7), from the curvature of the likelihood."""
    generator = np.random.default_rng(0)
    n = generator.integers(0, most, items)
    e = generator.binomial(n, generator.beta(mean * strength, (1 - mean) * strength, items))
    found = BetaPrior.fit(e, n)

    def minus(m: float, s: float) -> float:
        p = 1 / (1 + math.exp(-m))
        return -likelihood(BetaPrior(p, math.exp(s)), e, n)

    at, h = np.array([math.log(found.mean / (1 - found.mean)), math.log(found.strength)]), 1e-2
    step = h * np.eye(2)
    hessian = [
        [
            (minus(*(at + i + j)) - minus(*(at + i - j)) - minus(*(at - i + j)) + minus(*(at - i - j))) / (4 * h * h)
            for j in step
        ]
        for i in step
    ]
    errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
    truth = np.array([math.log(mean / (1 - mean)), math.log(strength)])
    assert np.all(errors < [0.2, 0.3])  # the test can tell something
    assert np.all(np.abs(at - truth) < 5.2 * errors)


def test_certainty_is_honest():
    """Of the items whose quadrant is given a probability p, p are in it: rates drawn from priors, counts from rates."""
    generator = np.random.default_rng(1)
    items = 20_000
    impressions = generator.integers(1, 3000, items)
    rate, conversion_rate = generator.beta(3, 47, items), generator.beta(4, 16, items)
    clicks = generator.binomial(impressions, rate)
    found = quadrants(impressions, clicks, clicks, generator.binomial(clicks, conversion_rate))
    true = place(rate, conversion_rate, found.click_threshold, found.conversion_threshold) == found.quadrant
    for low, high in ((0, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        inside = (found.certainty >= low) & (found.certainty < high)
        p = found.certainty[inside]
        assert inside.sum() > 500
        # a sum of Bernoulli draws: 5.2 standard errors, and 0.5 % because the priors themselves are estimates
        error = 5.2 * math.sqrt((p * (1 - p)).sum()) + 0.005 * inside.sum()
        assert abs(true[inside].sum() - p.sum()) < error
    assert (found.certainty[impressions < 20] < 0.8).all()


def test_items_that_do_not_differ_stay_undecided():
    generator = np.random.default_rng(2)
    n = generator.integers(100, 2000, 400)
    e = generator.binomial(n, 0.1)
    found = quadrants(n, e, e, generator.binomial(e, 0.3))
    # a strength far above any item's count: the counts hardly move it
    assert found.click_prior.strength > 3000 and (found.certainty < 0.8).all()
    # an exact tie has no spread beyond chance at all: the strength ends at its bound
    assert BetaPrior.fit([10, 10, 10], [100, 100, 100]).strength == pytest.approx(1e6, rel=1e-6)


counts = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 400)), min_size=3, max_size=30).filter(
    lambda rows: sum(n >= 2 for _, n in rows) > 1 and 0 < sum(min(e, n) for e, n in rows) < sum(n for _, n in rows)
)


def columns(rows) -> tuple[np.ndarray, np.ndarray]:
    e, n = np.array(rows).T
    return np.minimum(e, n), n


@pytest.mark.parametrize(
    "rows", [[(16, 289), (7, 1), (0, 17)], [(32, 376), (0, 21), (0, 21)], [(0, 27), (37, 199), (37, 199)]]
)
def test_fit_finds_the_higher_of_two_tops(rows):
    """One where the items differ and one where they do not; the moments lie on the wrong side, on one of them."""
    for e, n in (columns(rows), columns(3 * rows)):
        mean, strength = np.meshgrid(np.linspace(0.01, 0.99, 99), np.geomspace(0.02, 1e6, 120))
        grid = (
            stats.betabinom(n, (mean * strength)[..., None], ((1 - mean) * strength)[..., None]).logpmf(e).sum(axis=-1)
        )
        assert likelihood(BetaPrior.fit(e, n), e, n) >= grid.max()


@settings(max_examples=12, deadline=None)  # five fits each; an order that matters shows in nearly every one
@given(counts)
def test_fit_knows_no_order_no_copies_and_no_side(rows):
    knows_no_order_no_copies_and_no_side(rows)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(counts)
def test_many_fits_know_no_order_no_copies_and_no_side(rows):
    knows_no_order_no_copies_and_no_side(rows)


def knows_no_order_no_copies_and_no_side(rows):
    e, n = columns(rows)
    prior = BetaPrior.fit(e, n)
    same = [BetaPrior.fit(e[::-1], n[::-1]), BetaPrior.fit(np.tile(e, 3), np.tile(n, 3))]
    same.append(BetaPrior.fit(np.append(e, [0, 0]), np.append(n, [0, 0])))  # items without trials say nothing
    for other in same:
        # compared by the likelihood: near the bounds it is flat
        assert likelihood(other, e, n) == pytest.approx(likelihood(prior, e, n), rel=1e-6, abs=1e-6)
    flipped = BetaPrior.fit(n - e, n)
    turned = BetaPrior(1 - flipped.mean, flipped.strength)
    assert likelihood(turned, e, n) == pytest.approx(likelihood(prior, e, n), rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(counts, st.floats(0.01, 0.99), st.floats(0.05, 2000), st.floats(0.01, 0.99))
def test_posterior_properties(rows, mean, strength, threshold):
    e, n = columns(rows)
    prior = BetaPrior(mean, strength)
    raw, rate = e / np.maximum(n, 1), prior.rate(e, n)
    low, high = np.minimum(raw, mean), np.maximum(raw, mean)
    assert ((n == 0) | ((rate >= low - 1e-12) & (rate <= high + 1e-12))).all()
    assert rate[n == 0] == pytest.approx(mean)
    # the same rate in more trials is believed more: nearer the raw rate
    assert (np.abs(prior.rate(10 * e, 10 * n) - raw) <= np.abs(rate - raw) + 1e-12)[n > 0].all()
    # what is not above is below, seen from the other side
    other = BetaPrior(1 - mean, strength).above(1 - threshold, n - e, n)
    assert prior.above(threshold, e, n) + other == pytest.approx(np.ones(len(n)), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(counts, st.integers(0, 2**31))
def test_quadrants_do_not_depend_on_the_order(rows, seed):
    clicks, impressions = columns(rows)
    conversions = clicks // 3
    if not 0 < conversions.sum() < clicks.sum() or (clicks >= 2).sum() < 2:
        return
    found = quadrants(impressions, clicks, clicks, conversions)
    assert ((found.certainty >= 0) & (found.certainty <= 1)).all() and np.isin(found.quadrant, list(QUADRANTS)).all()
    order = np.random.default_rng(seed).permutation(len(clicks))
    other = quadrants(impressions[order], clicks[order], clicks[order], conversions[order])
    assert other.click_rate == pytest.approx(found.click_rate[order], rel=1e-3)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([5, 5], [6, 1], [1, 1], [0, 1]), "`clicks` should be 0 or more and at most `impressions`. Received: 6 of 5"),
        (([5, 5], [2, 2], [3, 1], [0, 1]), "`final_clicks` should be 0 or more and at most `clicks`. Received: 3 of 2"),
        (([5, 5], [2, 2], [2, 2], [0, -1]), "`conversions` should be 0 or more and at most `final_clicks`"),
        (([5, 5], [2, 2, 2], [2, 2], [0, 1]), r"should be \[items\]. Received: \(3,\), \(2,\)"),
        (([5, 5], [0, 0], [0, 0], [0, 0]), "clicks: `events` should hold both outcomes. Received: 0 events in 10"),
        (([5, 5], [2, 2], [2, 2], [2, 2]), "conversions: `events` should hold both outcomes. Received: 4 events in 4"),
        (([5, 5], [1, 2], [1, 2], [0, 1]), "conversions: `trials` should be 2 or more for at least two items"),
        (([5, math.inf], [1, 2], [1, 2], [0, 1]), "`clicks` should be"),
    ],
)
def test_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        quadrants(*arguments)


@pytest.mark.parametrize("mean, strength", [(0, 1), (1, 1), (0.5, 0), (0.5, math.inf), (math.nan, 1)])
def test_impossible_priors_are_refused(mean, strength):
    with pytest.raises(ValueError, match="should be"):
        BetaPrior(mean, strength)
