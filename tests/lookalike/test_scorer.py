import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.kernels import exponential, exponential_of_tanh
from lookalike.scorer import SLAB, Scorer, seed_centroids, slabs
from lookalike.similarity import LookalikeModel

IDENTITY = np.eye(2, dtype=np.float32)


def plain(alpha, local=0 * IDENTITY, temperature=1.0, size_bias=False):
    """A scorer in two dimensions that transforms nothing, whose global attention is even."""
    even = np.zeros((1, 2), np.float32)
    return Scorer(IDENTITY, 0 * IDENTITY[0], IDENTITY.sum(0), local, even, even[:, 0], alpha, temperature, size_bias)


def random_scorer(dim=6, hidden=8, seed=0, temperature=1.0, size_bias=False, alpha=0.3):
    rng = np.random.default_rng(seed)
    shapes = ((dim, hidden), (hidden,), (hidden,), (hidden, hidden), (5, hidden), (5,))
    return Scorer(*(rng.normal(size=shape).astype("float32") for shape in shapes), alpha, temperature, size_bias)


def random_seeds(lists, k, hidden=8, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (lists, k)) * (rng.random((lists, k)) < 0.8)
    return rng.normal(size=(lists, k, hidden)).astype("float32"), counts


def reference(scorer, vectors, centroids, counts):
    """The formula as the paper writes it, in float64, one pair at a time."""
    result = np.zeros((len(vectors), len(centroids)))
    for i, vector in enumerate(vectors.astype(float)):
        u = vector @ scorer.kernel + scorer.bias
        u = np.maximum(u, 0) - scorer.slope * np.maximum(-u, 0)
        for j, (every, sizes) in enumerate(zip(centroids.astype(float), counts, strict=True)):
            e, n = every[sizes > 0], sizes[sizes > 0]
            if len(e) == 0:
                continue
            bias = np.log(n) if scorer.size_bias else 0.0
            local = e @ (scorer.local_kernel.astype(float) @ u)
            local = local if scorer.temperature == 0 else scorer.temperature * np.tanh(local)
            whole = np.tanh(e @ scorer.global_kernel.astype(float).T) @ scorer.global_query.astype(float)
            found = [(np.exp(x - x.max()) / np.exp(x - x.max()).sum()) @ e for x in (whole + bias, local + bias)]
            cosines = [u @ x / np.linalg.norm(u) / np.linalg.norm(x) for x in found]
            result[i, j] = scorer.alpha * cosines[0] + (1 - scorer.alpha) * cosines[1]
    return result


def test_two_centroids_in_two_dimensions_by_hand():
    # u = (3, 4), |u| = 5; centroids (1, 0) and (0, 1). Even global weights: global (1/2, 1/2),
    # cosine (3 + 4) / (5 sqrt 2) = 0.98995.
    # W = [[1, 0], [0, 0]] / 3: logits e . W u = 1 and 0, no tanh: weights e : 1 with e = 2.71828;
    # cosine (3 e + 4) / (5 sqrt(e^2 + 1)) = 12.15485 / 14.48189 = 0.83931.
    # similarity = 0.3 * 0.98995 + 0.7 * 0.83931 = 0.29698 + 0.58752 = 0.88450.
    local = np.array([[1 / 3, 0], [0, 0]], np.float32)
    scorer = plain(0.3, local, temperature=0.0)
    seeds = scorer.summarize(IDENTITY[None], [[1, 1]])
    found = scorer.similarity(np.array([[3, 4]], np.float32), seeds)
    assert found.shape == (1, 1) and found.dtype == np.float32
    e = np.e
    expected = 0.3 * 7 / (5 * np.sqrt(2)) + 0.7 * (3 * e + 4) / (5 * np.sqrt(e * e + 1))
    np.testing.assert_allclose(expected, 0.88450, atol=1e-5)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)
    # The nearer centroid by cosine is (0, 1), the attention's favourite is (1, 0).
    assert scorer.nearest(np.array([[3, 4]], np.float32), seeds).tolist() == [[1]]


def test_sizes_count_where_they_should():
    # Centroids (1, 0) of 3 seeds and (0, 1) of 1: embedding (3, 1) / 4 with the size bias, (1, 1) / 2 without.
    # User (1, 0): cosines 3 / sqrt 10 and 1 / sqrt 2, in both parts.
    user = np.array([[1, 0]], np.float32)
    for size_bias, expected in ((True, 3 / np.sqrt(10)), (False, 1 / np.sqrt(2))):
        scorer = plain(0.3, size_bias=size_bias)
        found = scorer.similarity(user, scorer.summarize(IDENTITY[None], [[3, 1]]))
        np.testing.assert_allclose(found, [[expected]], atol=1e-6)


@pytest.mark.parametrize("size_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.0, 2.5, -3.0])
@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_equals_the_formula(k, temperature, size_bias):
    scorer = random_scorer(temperature=temperature, size_bias=size_bias, seed=k)
    centroids, counts = random_seeds(7, k, seed=k)
    vectors = np.random.default_rng(k).normal(size=(50, 6)).astype("float32")
    seeds = scorer.summarize(centroids, counts)
    expected = reference(scorer, vectors, centroids, counts)
    np.testing.assert_allclose(scorer.similarity(vectors, seeds), expected, atol=1e-5)


@pytest.mark.parametrize("size_bias", [False, True])
@pytest.mark.parametrize("attention", ["tanh", "tempered", "linear", "average"])
@pytest.mark.parametrize(("activation", "alpha"), [("prelu", 0.3), ("relu", 1.0), ("prelu", "learned"), ("relu", 0.0)])
def test_equals_the_keras_layer(activation, alpha, attention, size_bias):
    rng = np.random.default_rng(5)
    layer = LookalikeModel(6, 8, activation, alpha=alpha, attention=attention, size_bias=size_bias)
    layer.build()
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    scorer = Scorer.of(layer)
    vectors = rng.normal(size=(20, 6)).astype("float32")
    centroids, counts = random_seeds(9, 12)
    counts[3] = 0  # an item without centroids
    centroids[4] *= 10
    centroids[5] *= 0.01
    seeds = scorer.summarize(centroids, counts)
    found = scorer.similarity(vectors, seeds)
    pairs = {
        "user": np.repeat(vectors, 9, axis=0),
        "centroids": np.tile(centroids, (20, 1, 1)),
        "centroid_counts": np.tile(counts.astype("float32"), (20, 1)),
    }
    np.testing.assert_allclose(found, np.array(layer(pairs)).reshape(20, 9), atol=1e-5)
    assert np.all(found[:, 3] == 0) and np.abs(found[:, 4]).max() > 0.1
    np.testing.assert_allclose(scorer.transform(vectors), layer.transform(vectors), atol=1e-5)


def test_equals_the_keras_layer_before_it_is_built():
    layer = LookalikeModel(6, 8, attention="tempered")
    assert Scorer.of(layer).kernel.shape == (6, 8) and Scorer.of(layer).temperature == 1.0


@settings(deadline=None, max_examples=25)
@given(users=st.integers(0, 900), lists=st.integers(1, 30), k=st.integers(1, 9), threads=st.integers(1, 3))
def test_each_pair_alone_gives_the_same(users, lists, k, threads):
    scorer = random_scorer(seed=k)
    centroids, counts = random_seeds(lists, k, seed=lists)
    vectors = np.random.default_rng(users).normal(size=(users, 6)).astype("float32")
    together = scorer.similarity(vectors, scorer.summarize(centroids, counts), threads=threads)
    assert together.shape == (users, lists)
    for i in {0, users // 2, users - 1} & set(range(users)):
        for j in {0, lists - 1}:
            alone = scorer.summarize(centroids[j : j + 1], counts[j : j + 1])
            np.testing.assert_allclose(scorer.similarity(vectors[i : i + 1], alone)[0, 0], together[i, j], atol=2e-6)


def test_nearest_is_the_largest_cosine():
    scorer = random_scorer()
    centroids, counts = random_seeds(5, 6)
    counts[2] = 0
    vectors = np.random.default_rng(3).normal(size=(1000, 6)).astype("float32")
    users = scorer.transform(vectors).astype(float)
    found = scorer.nearest(vectors, scorer.summarize(centroids, counts))
    cosines = np.einsum("nh,lkh->nlk", users, centroids / np.linalg.norm(centroids, axis=2, keepdims=True))
    cosines[:, counts == 0] = -np.inf
    np.testing.assert_array_equal(np.delete(found, 2, 1), np.delete(cosines.argmax(2), 2, 1))
    assert found.dtype == np.int32 and np.all(found[:, 2] == -1)


def test_zeros_are_similar_to_nothing():
    scorer = plain(0.3)
    users = np.array([[0, 0], [1e-9, 0], [1, 0]], np.float32)
    seeds = scorer.summarize(
        np.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]], [[1, 0], [-1, 0]]], np.float32), np.ones((3, 2))
    )
    found = scorer.similarity(users, seeds)
    np.testing.assert_allclose(found, [[0, 0, 0], [0, 0, 0], [np.sqrt(0.5), 0, 0]], atol=1e-6)
    dead = Scorer(0 * IDENTITY, -IDENTITY[0], 0 * IDENTITY[0], IDENTITY, None, None, 0.3)  # ReLU, never above 0
    assert np.all(dead.similarity(users, dead.summarize(IDENTITY[None], [[1, 1]])) == 0)


def test_logits_may_be_huge():
    # exp would overflow; a centroid that does not exist, at logit 0, must not push the others under.
    local = 1000 * IDENTITY
    for sign in (1, -1):
        scorer = plain(0.0, sign * local, temperature=0.0)
        seeds = scorer.summarize(np.array([[[3, 0], [0, 4], [0, 0]]], np.float32), [[1, 1, 0]])
        found = scorer.similarity(np.array([[3, 4]], np.float32), seeds)
        np.testing.assert_allclose(found, [[0.8 if sign > 0 else 0.6]], atol=1e-6)


def test_more_centroids_than_dimensions_that_cancel():
    # Pairs that almost cancel: the square of their sum would have no digit left in a Gram matrix of float32.
    rng = np.random.default_rng(0)
    scorer = random_scorer(seed=1)
    half = 100 * rng.normal(size=(1, 10, 8))
    centroids = np.concatenate([half, -half + 0.5 * rng.normal(size=half.shape)], axis=1).astype("float32")
    flat = Scorer(*(getattr(scorer, name) for name in ("kernel", "bias", "slope")), 0 * scorer.local_kernel,
                  0 * scorer.global_kernel, scorer.global_query, 0.3)  # fmt: skip
    vectors = rng.normal(size=(40, 6)).astype("float32")
    counts = np.ones((1, 20))
    found = flat.similarity(vectors, flat.summarize(centroids, counts))
    np.testing.assert_allclose(found, reference(flat, vectors, centroids, counts), atol=2e-4)


def test_exponentials():
    values = np.concatenate([np.linspace(-12, 12, 100_000), [-1e30, -0.0, 0.0, 1e30]]).astype("float32")
    out = np.empty_like(values)
    exponential_of_tanh(values, out)
    np.testing.assert_allclose(out, np.exp(np.tanh(values.astype(float))), atol=1e-6)
    values = np.linspace(-86, 0, 100_000).astype("float32")
    out = np.empty_like(values)
    exponential(values, out)
    np.testing.assert_allclose(out, np.exp(values.astype(float)), rtol=1e-6)
    exponential(np.array([-1e30, -np.inf], np.float32), out[:2])
    assert np.all(out[:2] < 1e-37)


def test_seed_centroids():
    # Two seeds and k = 5: the seeds themselves, transformed.
    scorer = random_scorer()
    vectors = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    centroids, counts = seed_centroids(scorer, vectors[:2], k=5)
    np.testing.assert_array_equal(counts, [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(centroids[:2], scorer.transform(vectors[:2]))
    centroids, counts = seed_centroids(scorer, vectors, k=1)
    np.testing.assert_allclose(centroids[0], scorer.transform(vectors).mean(0), atol=1e-5)
    # One seed of weight 3: (3 a + b) / 4.
    centroids, _ = seed_centroids(scorer, vectors[:2], k=1, weights=np.array([3, 1], np.float32))
    a, b = scorer.transform(vectors[:2])
    np.testing.assert_allclose(centroids[0], (3 * a + b) / 4, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(0, 3 * SLAB), max_size=5))
def test_slabs_start_at_fixed_rows(sizes):
    everyone = np.arange(sum(sizes), dtype=np.float32)[:, None]
    found = [
        (start, part.copy()) for start, part in slabs(np.split(everyone, np.cumsum(sizes)[:-1]) if sizes else [], 1)
    ]
    assert [start for start, _ in found] == list(range(0, len(everyone), SLAB))
    assert all(len(part) == SLAB for _, part in found[:-1])
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 1)), *(part for _, part in found)]), everyone)


def test_rejected_input():
    scorer = random_scorer()
    centroids, counts = random_seeds(2, 3)
    seeds = scorer.summarize(centroids, counts)
    bad = np.zeros((5, 6), np.float32)
    bad[1, 2], bad[3] = np.nan, np.inf
    with pytest.raises(ValueError, match="`vectors` should be finite. Received: 2 vectors"):
        scorer.similarity(bad, seeds)
    with pytest.raises(ValueError, match=r"float32 \[users, 6\]. Received: float64 \[5, 6\]"):
        scorer.similarity(bad.astype(float), seeds)
    with pytest.raises(ValueError, match=r"Received: float32 \[5, 3\]"):
        scorer.transform(bad[:, :3])
    with pytest.raises(ValueError, match=r"`centroids` should be \[lists, k, 8\]"):
        scorer.summarize(centroids[..., :4], counts)
    with pytest.raises(ValueError, match="`counts` should be 0 or more. Received: -1"):
        scorer.summarize(centroids, counts - 1 - counts.min())
    with pytest.raises(ValueError, match="`threads` should be a positive integer. Received: threads=0"):
        scorer.similarity(bad[:1], seeds, threads=0)
    centroids[0, np.argmax(counts[0] > 0), 0] = np.nan
    with pytest.raises(ValueError, match="`centroids` should be finite. Received: 1 other"):
        scorer.summarize(centroids, counts)
