import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from lookalike import cluster
from lookalike.blocks import BLOCK, ROWS, nearest_rows, pack, products


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
@pytest.mark.parametrize("n", [200, pytest.param(3000, marks=pytest.mark.slow)])
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


def test_weights_by_hand():
    # 0 (weight 3) and 4 (weight 1): mean 1, inertia 3 * 1 + 1 * 9 = 12. 20 and 22, weight 1 each: mean 21, inertia 2.
    points = np.array([[0], [4], [20], [22]], np.float32)
    weights = np.array([3, 1, 1, 1], np.float32)
    result = cluster(points, np.array([0, 4]), 2, weights=weights)
    assert sorted(result.centroids[0, :, 0]) == [1, 21]
    np.testing.assert_array_equal(result.counts, [[2, 2]])  # seeds, not weight
    np.testing.assert_allclose(result.inertia, [14])
    # No more seeds than centroids: each its own, whatever its weight.
    few = cluster(points, np.array([0, 4]), 4, weights=weights)
    np.testing.assert_array_equal(few.centroids[0], points)
    assert few.inertia == 0


@settings(deadline=None, max_examples=40)
@given(n=st.integers(6, 150), k=st.integers(1, 6), iterations=st.integers(1, 8), seed=st.integers(0, 999))
def test_integer_weights_repeat_the_seeds(n, k, iterations, seed):
    points = mixture(n, dim=5, modes=8, seed=seed)
    weights = np.random.default_rng(seed).integers(1, 5, size=n)
    initial = np.ascontiguousarray(points[None, :k])
    weighted = cluster(
        points,
        np.array([0, n]),
        k,
        iterations=iterations,
        initial=initial,
        weights=weights.astype("float32"),
    )
    repeated = cluster(
        np.repeat(points, weights, axis=0), np.array([0, weights.sum()]), k, iterations=iterations, initial=initial
    )
    np.testing.assert_allclose(weighted.inertia, repeated.inertia, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weighted.centroids, repeated.centroids, atol=1e-4)
    np.testing.assert_array_equal(np.repeat(weighted.assignment, weights), repeated.assignment)
    np.testing.assert_array_equal(weighted.counts[0], np.bincount(weighted.assignment, minlength=k))


def test_equal_weights_change_nothing_but_the_inertia():
    points, offsets = ragged([300, 4, 900])
    plain = cluster(points, offsets, 10)
    for weight in (1, 2):
        same = cluster(points, offsets, 10, weights=np.full(len(points), weight, np.float32))
        np.testing.assert_array_equal(same.assignment, plain.assignment)
        np.testing.assert_array_equal(same.centroids, plain.centroids)
        np.testing.assert_allclose(same.inertia, weight * plain.inertia, rtol=1e-6)


def test_weights_steer_the_cold_start():
    # 400 points around each of four places, those of the last a thousandfold: two centroids go where the weight is.
    rng = np.random.default_rng(0)
    places = np.array([[0, 0], [10, 0], [0, 10], [30, 30]], np.float32)
    points = (np.repeat(places, 400, axis=0) + rng.normal(size=(1600, 2))).astype("float32")
    weights = np.repeat(np.array([1, 1, 1, 1000], np.float32), 400)
    result = cluster(points, np.array([0, 1600]), 3, weights=weights)
    assert np.sum(np.linalg.norm(result.centroids[0] - places[3], axis=1) < 3) == 2


@pytest.mark.parametrize("dim", [1, 3, 16, 37])
def test_large_items_give_the_same(dim):
    # Above 2 ** 19 numbers the blocks are filled anew each time: as if the big item were not there.
    points = mixture(2**19 // dim + 577, dim=dim)
    offsets = np.array([0, 500, len(points)])
    together = cluster(points, offsets, 7, iterations=2)
    np.testing.assert_array_equal(
        cluster(points[:500], offsets[:2], 7, iterations=2).assignment, together.assignment[:500]
    )
    centres, labels = together.centroids[1], together.assignment[500:]
    for j in range(7):
        np.testing.assert_allclose(centres[j], points[500:][labels == j].mean(0, dtype="float64"), atol=1e-6)
    third = cluster(points, offsets, 7, iterations=1, initial=together.centroids).assignment[500:]
    distances = np.sum((points[500:, None].astype("float64") - centres) ** 2, axis=2)
    chosen = distances[np.arange(len(third)), third]
    np.testing.assert_allclose(chosen, distances.min(1), rtol=1e-4, atol=1e-5)


def test_threads_change_nothing():
    points, offsets = ragged([3000] * 12)
    results = [cluster(points, offsets, 10, threads=threads) for threads in (None, 1, 3)]
    for other in results[1:]:
        np.testing.assert_array_equal(other.centroids, results[0].centroids)
        np.testing.assert_array_equal(other.assignment, results[0].assignment)
        np.testing.assert_array_equal(other.inertia, results[0].inertia)


def test_centroids_are_exact_means_of_numbers_of_very_different_size():
    # A point of 1e8 comes and goes; what it leaves behind in a sum would be larger than the other points.
    points, offsets = ragged([400])
    points *= np.float32(1e-4)
    points[:2] = 1e8
    result = cluster(points, offsets, 5, initial=np.ascontiguousarray(points[None, :5]))
    for j in range(5):
        own = points[result.assignment == j].astype("float64")
        np.testing.assert_allclose(result.centroids[0, j], own.mean(0), rtol=1e-6, atol=1e-10)


@numba.njit
def kernels(points, rows, norms):
    blocks = np.full((-(-len(points) // BLOCK), points.shape[1], BLOCK), np.nan, np.float32)
    pack(points, blocks)
    out = np.empty((len(blocks), ROWS, BLOCK), np.float32)
    nearest = np.empty((len(blocks), BLOCK), np.int32)
    for block in range(len(blocks)):
        products(blocks, rows[:ROWS], norms[:ROWS], block, out[block])
        nearest_rows(blocks, rows, norms, block, nearest[block])
    return blocks, out, nearest


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 200), dim=st.integers(1, 70), tiles=st.integers(1, 4), seed=st.integers(0, 999))
def test_kernels_against_numpy(n, dim, tiles, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(-9, 10, size=(n, dim)).astype("float32")  # whole numbers: every sum is exact
    rows = rng.integers(-9, 10, size=(tiles * ROWS, dim)).astype("float32")
    norms = np.where(rng.random(len(rows)) < 0.3, np.inf, rng.integers(0, 99, size=len(rows))).astype("float32")
    norms[rng.integers(len(rows))] = 5
    blocks, out, nearest = kernels(points, rows, norms)
    padded = np.zeros((len(blocks) * BLOCK, dim), np.float32)
    padded[:n] = points
    np.testing.assert_array_equal(blocks, padded.reshape(-1, BLOCK, dim).transpose(0, 2, 1))
    expected = norms + padded @ rows.T
    np.testing.assert_array_equal(out.transpose(0, 2, 1).reshape(-1, ROWS), expected[:, :ROWS])
    np.testing.assert_array_equal(nearest.ravel(), expected.argmin(1))


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
    for bad in (np.inf, -np.inf, np.nan):  # in an item of fewer seeds than k, and in one of more
        for row in (0, 9):
            spoilt = points.copy()
            spoilt[row, 3] = bad
            with pytest.raises(ValueError, match="`embeddings` should be finite. Received: 1 other values."):
                cluster(spoilt, offsets, 5)
    for weights, message in [
        (np.ones(9, np.float32), r"`weights` should be float32 \[10\]. Received: float32 \[9\]."),
        (np.ones(10), r"`weights` should be float32 \[10\]. Received: float64 \[10\]."),
        (np.arange(10, dtype=np.float32), "`weights` should be positive and finite. Received: 0.0."),
        (np.full(10, np.inf, np.float32), "`weights` should be positive and finite. Received: inf."),
    ]:
        with pytest.raises(ValueError, match=message):
            cluster(points, offsets, 2, weights=weights)
    with pytest.raises(ValueError, match="`threads` should be a positive integer. Received: threads=0."):
        cluster(points, offsets, 2, threads=0)
    with pytest.raises(ValueError, match="`iterations`"):
        cluster(points, offsets, 2, iterations=0)
    with pytest.raises(ValueError, match=r"`initial` should be finite with shape \[2, 3, 16\]"):
        cluster(points, offsets, 3, initial=np.zeros((2, 2, 16), np.float32))
