import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from lookalike import cluster


def mixture(n, dim=16, modes=12, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(modes, dim))[rng.integers(modes, size=n)] + 0.5 * rng.normal(size=(n, dim))).astype(
        "float32"
    )


def ragged(sizes, seed=0):
    return mixture(sum(sizes), seed=seed), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def test_two_pairs_by_hand():
    # Item 0: points 0, 2 and 10, 12 -> means 1 and 11, each point at distance 1: inertia 4. Item 1: nobody.
    points = np.array([[0], [2], [10], [12]], np.float32)
    result = cluster(points, np.array([0, 4, 4]), 2)
    assert sorted(result.centroids[0, :, 0]) == [1, 11]
    np.testing.assert_array_equal(result.counts, [[2, 2], [0, 0]])
    np.testing.assert_array_equal(result.assignment[0] == result.assignment, [True, True, False, False])
    np.testing.assert_allclose(result.inertia, [4, 0])
    assert np.all(result.centroids[1] == 0)


def test_few_seeds_are_their_own_centroids():
    points, offsets = ragged([3, 0, 5, 1])
    result = cluster(points, offsets, 5)
    np.testing.assert_array_equal(result.counts, [[1, 1, 1, 0, 0], [0] * 5, [1] * 5, [1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(result.centroids[0, :3], points[:3])
    np.testing.assert_array_equal(result.centroids[2], points[3:8])
    np.testing.assert_array_equal(result.assignment, [0, 1, 2, 0, 1, 2, 3, 4, 0])
    assert np.all(result.inertia == 0) and np.all(result.centroids[0, 3:] == 0)


@pytest.mark.parametrize("k", [5, 20])
@pytest.mark.parametrize("n", [200, 3000])
def test_inertia_is_close_to_scikit_learn(n, k):
    points, offsets = ragged([n] * 4, seed=n + k)
    ours = cluster(points, offsets, k, iterations=25).inertia
    parts = [points[low:high] for low, high in zip(offsets[:-1], offsets[1:], strict=True)]
    theirs = [KMeans(k, n_init=1, random_state=0).fit(part).inertia_ for part in parts]
    assert np.sum(ours) < 1.03 * np.sum(theirs)


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
    coarse=st.booleans(),
)
def test_centroids_are_the_means_of_their_seeds(sizes, k, seed, coarse):
    points, offsets = ragged(sizes, seed)
    if coarse:  # many equal points: fewer distinct ones than k
        points = np.sign(points[:, :2])
    result = cluster(points, offsets, k, seed=seed)
    for item, (low, high) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        labels, own = result.assignment[low:high], points[low:high]
        np.testing.assert_array_equal(np.bincount(labels, minlength=k), result.counts[item])
        for j in np.flatnonzero(result.counts[item]):
            np.testing.assert_allclose(result.centroids[item, j], own[labels == j].mean(0), atol=1e-5)
        assert np.all(result.centroids[item][result.counts[item] == 0] == 0)
        expected = np.sum((own - result.centroids[item][labels]) ** 2)
        np.testing.assert_allclose(result.inertia[item], expected, rtol=1e-4, atol=1e-5)
        if not coarse:
            assert np.sum(result.counts[item] > 0) == min(k, high - low)


def test_equal_points_share_one_centroid():
    points = np.repeat(np.array([[0, 1], [5, 5], [9, 0]], np.float32), 10, axis=0)
    result = cluster(points, np.array([0, 30]), 8)
    assert np.sum(result.counts > 0) == 3 and result.inertia[0] == 0


def test_deterministic_and_independent_of_the_neighbours():
    points, offsets = ragged([300, 7, 2500, 40, 900] * 10)
    first, second = cluster(points, offsets, 10), cluster(points, offsets, 10)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    np.testing.assert_array_equal(first.assignment, second.assignment)
    low, high = offsets[2:4]
    alone = cluster(points[low:high], np.array([0, high - low]), 10)
    np.testing.assert_array_equal(alone.assignment, first.assignment[low:high])
    np.testing.assert_allclose(alone.centroids[0], first.centroids[2], atol=1e-6)
    assert np.any(cluster(points, offsets, 10, seed=1).centroids != first.centroids)


def test_warm_start_keeps_order_and_quality():
    points, offsets = ragged([2000] * 3)
    cold = cluster(points, offsets, 10, iterations=20)
    moved = points + 0.02
    warm = cluster(moved, offsets, 10, iterations=1, initial=cold.centroids)
    # One iteration is enough after a small drift, and centroid j stays centroid j.
    assert np.sum(warm.inertia) < 1.01 * np.sum(cold.inertia)
    np.testing.assert_allclose(warm.centroids, cold.centroids + 0.02, atol=0.1)
    # A start from the centroids of a converged run on the same points changes nothing.
    again = cluster(points, offsets, 10, initial=cluster(points, offsets, 10, iterations=300).centroids)
    np.testing.assert_array_equal(again.assignment, cluster(points, offsets, 10, iterations=300).assignment)


def test_warm_start_fills_missing_centroids():
    points, offsets = ragged([500])
    initial = np.zeros((1, 10, 16), np.float32)
    initial[0, :3] = points[:3]
    result = cluster(points, offsets, 10, initial=initial, iterations=10)
    assert np.all(result.counts > 0)
    assert result.inertia[0] < 1.1 * cluster(points, offsets, 10).inertia[0]
    assert np.all(initial[0, 3:] == 0)  # the argument stays as it was


def test_empty_clusters_are_seeded_again():
    # All ten start far away from every point but one: nine would stay empty for ever.
    points, offsets = ragged([400])
    initial = np.full((1, 10, 16), 1e3, np.float32) + np.arange(10, dtype=np.float32)[None, :, None]
    assert np.all(cluster(points, offsets, 10, initial=initial).counts > 0)


def test_rejects_bad_input():
    points, offsets = ragged([4, 6])
    for arguments, message in [
        ((points, offsets, 0), "`k` should be a positive integer. Received: k=0."),
        ((points.astype("float64"), offsets, 2), "`embeddings` should be float32"),
        ((points, offsets[:-1], 2), "`offsets` should run from 0 to the number of seeds, 10"),
        ((points, np.array([0, 11, 10]), 2), "`offsets` should never fall"),
        ((np.where(points > 1, np.nan, points).astype("float32"), offsets, 2), "`embeddings` should be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            cluster(*arguments)
    with pytest.raises(ValueError, match="`iterations`"):
        cluster(points, offsets, 2, iterations=0)
    with pytest.raises(ValueError, match=r"`initial` should be finite with shape \[2, 3, 16\]"):
        cluster(points, offsets, 3, initial=np.zeros((2, 2, 16), np.float32))
