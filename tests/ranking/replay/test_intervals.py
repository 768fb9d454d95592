import numpy as np
import pytest

from ranking.replay.intervals import paired_deltas


def data(requests=2000, users=100, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, requests)
    taste = rng.normal(0, 0.3, users)[user]  # how much a user likes the new order
    production = rng.gamma(4, 0.25, requests)
    return user, production, production * (1 + 0.1 + taste)


def test_points_by_hand():
    # means 3 and 2 over the counted requests: +50 %
    found = paired_deltas(
        np.array([[2.0, 4.0, 100.0]]), np.array([1.0, 3.0, 1.0]), np.array([True, True, False]), np.array([0, 1, 1])
    )
    assert found.value.tolist() == [3.0] and found.delta == pytest.approx(0.5)


def test_wider_by_user_than_by_request_when_users_repeat():
    user, production, new = data()
    everything = np.ones(len(user), bool)
    by_user = paired_deltas(new[None], production, everything, user)
    by_request = paired_deltas(new[None], production, everything, np.arange(len(user)))
    assert (by_user.high - by_user.low)[0] > 2 * (by_request.high - by_request.low)[0]
    np.testing.assert_allclose(by_user.delta, by_request.delta)


def test_paired_is_narrower_than_the_level_and_production_against_itself_is_exact():
    rng = np.random.default_rng(0)
    production = rng.gamma(1, 1, 500)
    values = np.stack([production, production * 1.02])
    found = paired_deltas(values, production, np.ones(500, bool), np.arange(500))
    np.testing.assert_allclose(found.delta, [0, 0.02], atol=1e-9)
    np.testing.assert_allclose(found.high - found.low, 0, atol=1e-4)
    assert found.value_error[0] > 0.02


def test_together_is_wider_and_the_seed_decides():
    user, production, _ = data()
    rng = np.random.default_rng(1)
    values = production * (1 + rng.normal(0, 0.5, (10, len(user))))
    everything = np.ones(len(user), bool)
    alone = paired_deltas(values, production, everything, user, together=False)
    together = paired_deltas(values, production, everything, user)
    again = paired_deltas(values, production, everything, user)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    np.testing.assert_allclose(ratio, ratio[0])
    assert 1.2 < ratio[0] < 1.6  # ten independent settings: about 2.8 / 1.96
    np.testing.assert_array_equal(together.low, again.low)


def test_coverage_is_about_95_percent():
    # Truth: +10 % on average over users. 200 logs of 60 users.
    hits = 0
    for seed in range(200):
        user, production, new = data(requests=300, users=60, seed=seed)
        found = paired_deltas(new[None], production, np.ones(300, bool), user, replicates=200, seed=seed)
        hits += found.low[0] <= 0.1 <= found.high[0]
    assert 0.88 <= hits / 200 <= 0.99


def test_nothing_to_compare_with():
    found = paired_deltas(np.ones((2, 3)), np.zeros(3), np.ones(3, bool), np.arange(3))
    assert np.isnan(found.delta).all()
    with pytest.raises(ValueError, match=r"`level` should be in \(0, 1\)"):
        paired_deltas(np.ones((1, 3)), np.ones(3), np.ones(3, bool), np.arange(3), level=1)
