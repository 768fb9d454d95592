import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.audience import Cut, SeedList, expand
from lookalike.retrieval import best_items, best_users, gate
from lookalike.scorer import Scorer

PLAIN = Scorer(np.eye(2, dtype="f"), np.zeros(2, "f"), np.ones(2, "f"), None, None, None, 1.0)


def random_scorer(seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((5, 6), (6,), (6,), (6, 6), (4, 6), (4,))
    return Scorer(*(rng.normal(size=shape).astype("float32") for shape in shapes), 0.3)


def items(number, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (number, 3)) * (rng.random((number, 1)) < 0.9)
    return rng.normal(size=(number, 3, 6)).astype("float32"), counts


def test_items_by_hand():
    # User (1, 0): items at (0, 1), (1, 0), (1, 1) and one without seeds: 0, 1, .7071.
    centroids = np.array([[[0, 1]], [[1, 0]], [[5, 5]], [[1, 0]]], np.float32)
    user, counts = np.array([[1, 0]], np.float32), [[1], [1], [1], [0]]
    found = best_items(PLAIN, user, centroids, counts, 4, chunk=2)
    assert found.items.tolist() == [[1, 2, 0, -1]]
    np.testing.assert_allclose(found.similarity, [[1, np.sqrt(0.5), 0, np.nan]], atol=1e-6)
    found = best_items(PLAIN, user, centroids, counts, 2, exclude=np.array([1]), threshold=0.5)
    assert found.items.tolist() == [[2, -1]]


def test_users_by_hand():
    # Towards (1, 0): cosines 1, 0, .8, .6.
    users = np.array([[1, 0], [0, 1], [4, 3], [3, 4]], np.float32)
    found = best_users(PLAIN, [users[:1], users[1:]], users[:1], [1], 3, exclude=np.array([0]))
    assert found.rows.tolist() == [2, 3, 1] and found.eligible == 3
    assert best_users(PLAIN, [users], users[:1], [1], 3, threshold=0.7).rows.tolist() == [0, 2]
    assert best_users(PLAIN, [users], users[:1], [1], 99).rows.tolist() == [0, 2, 3, 1]


@settings(deadline=None, max_examples=25)
@given(
    number=st.integers(0, 80),
    users=st.integers(1, 20),
    k=st.integers(1, 90),
    chunk=st.integers(1, 90),
    seed=st.integers(0, 50),
)
def test_best_items_are_those_of_a_full_sort(number, users, k, chunk, seed):
    scorer, (centroids, counts) = random_scorer(), items(number, seed)
    centroids[number // 2 :] = centroids[: number - number // 2]  # many ties
    counts[number // 2 :] = counts[: number - number // 2]
    vectors = np.random.default_rng(seed).normal(size=(users, 5)).astype("float32")
    exclude = np.arange(0, number, 7)
    found = best_items(scorer, vectors, centroids, counts, k, exclude=exclude, chunk=chunk, threshold=-0.2)
    assert found.items.shape == found.similarity.shape == (users, k)
    scores = scorer.similarity(vectors, scorer.summarize(centroids, counts)).astype(float)
    for row, kept, similarity in zip(scores, found.items, found.similarity, strict=True):
        usable = [i for i in range(number) if i % 7 and counts[i].any() and row[i] >= -0.2]
        expected = sorted(usable, key=lambda i: (-row[i], i))[:k]
        assert kept.tolist() == expected + [-1] * (k - len(expected))
        np.testing.assert_allclose(similarity[: len(expected)], row[expected], atol=1e-6)
        assert np.isnan(similarity[len(expected) :]).all()


def test_best_users_are_an_audience():
    scorer, (centroids, counts) = random_scorer(), items(1)
    vectors = np.random.default_rng(1).normal(size=(500, 5)).astype("float32")
    found = best_users(scorer, [vectors], centroids[0], counts[0], 40, threshold=0.1)
    whole = expand(scorer, [vectors], [SeedList(centroids[0], counts[0])], Cut(threshold=0.1))[0]
    np.testing.assert_array_equal(found.rows, whole.rows[:40])


def test_gate():
    # Unknown passes, whatever it holds; the bar itself passes.
    np.testing.assert_array_equal(
        gate([0.5, 0.49, np.nan, -1, 1], [1, 1, 0, 0, 1], 0.5), [True, False, True, True, True]
    )


def test_rejected_input():
    scorer, (centroids, counts) = random_scorer(), items(3)
    vectors = np.zeros((1, 5), np.float32)
    with pytest.raises(ValueError, match="`k` should be a positive integer. Received: k=0"):
        best_items(scorer, vectors, centroids, counts, 0)
    with pytest.raises(ValueError, match="`k` should be a positive integer. Received: k=0"):
        best_users(scorer, [vectors], centroids[0], counts[0], 0)
    with pytest.raises(ValueError, match=r"`threshold` should be in \[-1, 1\]. Received: threshold=2"):
        best_items(scorer, vectors, centroids, counts, 1, threshold=2)
    with pytest.raises(ValueError, match="`chunk` should be a positive integer. Received: chunk=0"):
        best_items(scorer, vectors, centroids, counts, 1, chunk=0)
    with pytest.raises(ValueError, match="`exclude` should be rows of the 3 items. Received: 3"):
        best_items(scorer, vectors, centroids, counts, 1, exclude=np.array([3]))
    with pytest.raises(ValueError, match="`counts` should have a row an item"):
        best_items(scorer, vectors, centroids, counts[:2], 1)
    with pytest.raises(ValueError, match="`has_similarity` should have the shape"):
        gate([0.1], [1, 0], 0.5)
    with pytest.raises(ValueError, match="`similarity` should be finite. Received: 1 other"):
        gate([0.1, np.nan], [1, 1], 0.5)
