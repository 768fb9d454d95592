import numpy as np
import pytest

from ranking.replay.intervals import USERS, Resamples, paired_deltas, resample


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


def blocks_of(sums, size):
    """Blocks of users, of sums `[u, S]` that count one request each."""
    for low in range(0, len(sums), size):
        part = sums[low : low + size]
        yield {"a": part}, {"a": np.ones(len(part), int)}


def test_blocks_and_other_settings_change_nothing():
    sums = np.random.default_rng(0).gamma(1, 1, (USERS * 3 + 40, 4))
    whole = resample(blocks_of(sums, len(sums)), 50, seed=3)
    parts = resample(blocks_of(sums, USERS), 50, seed=3)
    fewer = resample(blocks_of(sums[:, 1:3], 2 * USERS), 50, seed=3)
    np.testing.assert_allclose(whole.mean["a"], sums.mean(axis=0))
    np.testing.assert_allclose(parts.drawn["a"], whole.drawn["a"], rtol=1e-5)
    np.testing.assert_allclose(fewer.drawn["a"], whole.drawn["a"][:, 1:3], rtol=1e-5)
    # as many users as there are, each Poisson(1): the means of resamples vary as the mean does
    expected = sums.std(axis=0) / np.sqrt(len(sums))
    np.testing.assert_allclose(whole.drawn["a"].std(axis=0), expected, rtol=0.5)


def test_ratios_by_hand():
    # means 6 / 3 = 2 against 2 / 4 = .5: four times as much, + 300 %. Resamples: 5 / 2.5 = 2 against 3 / 5 = .6 and
    # 8 / 2 = 4 against 1 / 2 = .5: changes 7/3 and 7, 14/3 apart: standard error 14/3 / sqrt(2)
    found = Resamples(
        mean={"a": np.array([6.0, 2.0]), "b": np.array([3.0, 4.0])},
        drawn={"a": np.array([[5.0, 3.0], [8.0, 1.0]]), "b": np.array([[2.5, 5.0], [2.0, 2.0]])},
    ).deltas("a", below="b", together=False)
    assert found.value.tolist() == [2.0] and found.delta == pytest.approx(3.0)
    assert (found.high - found.low)[0] == pytest.approx(2 * 1.959964 * 14 / 3 / np.sqrt(2))


def test_a_shift_is_another_source_of_error():
    sums = np.random.default_rng(0).gamma(1, 1, (2000, 2))
    found = resample(blocks_of(sums, len(sums)), 2000)
    shift = np.random.default_rng(1).normal(0, 0.1, (2000, 1)) * [1, 0]  # of the setting only
    alone, with_shift = (found.deltas("a", shift=row, together=False) for row in (None, shift))
    error, wider = ((row.high - row.low)[0] / (2 * 1.959964) for row in (alone, with_shift))
    assert wider**2 == pytest.approx(error**2 + (0.1 / found.mean["a"][1]) ** 2, rel=0.15)
    np.testing.assert_array_equal(alone.delta, with_shift.delta)


def test_coverage_of_a_ratio_is_about_95_percent():
    # Weights vary and rewards go along with them; the ratio of means is 1.2 under the setting and 1 under production.
    hits, logs, users = 0, 400, 150
    for seed in range(logs):
        rng = np.random.default_rng(seed)
        weight = rng.gamma(2, 0.5, (users, 2))
        reward = weight * rng.gamma(1, 1, (users, 1)) * [1.2, 1.0]
        count = np.ones(users, int)
        found = resample([({"a": reward, "b": weight}, {"a": count, "b": count})], 200, seed)
        row = found.deltas("a", below="b", together=False)
        hits += row.low[0] <= 0.2 <= row.high[0]
    assert 0.87 <= hits / logs < 0.995


def test_nothing_to_compare_with():
    found = paired_deltas(np.ones((2, 3)), np.zeros(3), np.ones(3, bool), np.arange(3))
    assert np.isnan(found.delta).all()
    with pytest.raises(ValueError, match=r"`level` should be in \(0, 1\)"):
        paired_deltas(np.ones((1, 3)), np.ones(3), np.ones(3, bool), np.arange(3), level=1)
    with pytest.raises(ValueError, match=r"`replicates` should be at least 2"):
        paired_deltas(np.ones((1, 3)), np.ones(3), np.ones(3, bool), np.arange(3), replicates=1)
