import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lookalike import limit_positives, log_uniform_probabilities, sample_negatives


def test_probabilities_by_hand():
    # D = 3: (log 2 - log 1, log 3 - log 2, log 4 - log 3) / log 4 = (0.6931, 0.4055, 0.2877) / 1.3863
    np.testing.assert_allclose(log_uniform_probabilities(3), [0.5, 0.29248, 0.20752], atol=1e-5)


@pytest.mark.parametrize("num_items", [1, 2, 11, 43_500])
def test_probabilities_sum_to_one_and_fall(num_items):
    probabilities = log_uniform_probabilities(num_items)
    assert probabilities.shape == (num_items,)
    assert abs(probabilities.sum() - 1) < 1e-12
    assert np.all(np.diff(probabilities) < 0)


def test_probabilities_are_those_of_the_tensorflow_sampler():
    # With replacement, the expected count of a class in n draws is n p: one draw gives p itself.
    ranks = np.array([0, 1, 10, 1000, 43_499])
    _, expected, _ = tf.random.log_uniform_candidate_sampler(
        true_classes=ranks[None, :].astype(np.int64), num_true=5, num_sampled=1, unique=False, range_max=43_500
    )
    np.testing.assert_allclose(log_uniform_probabilities(43_500)[ranks], expected.numpy()[0], atol=1e-6)


def test_samples_follow_the_probabilities():
    draws = sample_negatives(50, (1000, 100), np.random.default_rng(0))
    observed = np.bincount(draws.ravel(), minlength=50)
    assert draws.dtype == np.int64 and draws.shape == (1000, 100)
    assert stats.chisquare(observed, 100_000 * log_uniform_probabilities(50)).pvalue > 0.01


@given(num_items=st.integers(1, 10**7), seed=st.integers(0, 2**32 - 1))
def test_samples_stay_inside(num_items, seed):
    draws = sample_negatives(num_items, 100, np.random.default_rng(seed))
    assert draws.min() >= 0 and draws.max() < num_items


def test_samples_repeat_with_the_generator():
    first, second = (sample_negatives(9, 20, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_limit_positives_by_hand():
    # user a: orders 3, 1, 2 in rows 0, 2, 3 -> the latest two are rows 0 and 3; user b keeps his only row 1.
    np.testing.assert_array_equal(limit_positives(["a", "b", "a", "a"], [3, 1, 1, 2], maximum=2), [0, 1, 3])
    # Equal moments: the later row is the later one.
    np.testing.assert_array_equal(limit_positives([7, 7, 7], [5, 5, 5], maximum=1), [2])
    assert limit_positives(np.empty(0, int), np.empty(0, int)).size == 0


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=60), maximum=st.integers(1, 8))
def test_limit_positives_agrees_with_sorting(rows, maximum):
    user, order = np.array([r[0] for r in rows], int), np.array([r[1] for r in rows], int)
    expected = sorted(
        row
        for one in set(user.tolist())
        for row in sorted(np.flatnonzero(user == one), key=lambda r: (order[r], r))[-maximum:]
    )
    np.testing.assert_array_equal(limit_positives(user, order, maximum), expected)


def test_rejects_bad_input():
    with pytest.raises(ValueError, match="`num_items` should be a positive integer. Received: num_items=0"):
        log_uniform_probabilities(0)
    with pytest.raises(ValueError, match="num_items=-1"):
        sample_negatives(-1, 3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="`maximum`"):
        limit_positives([1], [1], maximum=0)
    with pytest.raises(ValueError, match="same length. Received: 1 and 2"):
        limit_positives([1], [1, 2])
