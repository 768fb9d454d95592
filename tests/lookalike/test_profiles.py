import numpy as np
import pytest

from lookalike.profiles import by_item, one_hot, seed_matrix, shares


def test_one_hot_known_values():
    profile = {
        "kind": np.array([2, 0, 1], np.int32),
        "tags": np.array([[3, 1], [1, 1], [0, 0]], np.int32),
        "number": np.array([0.5, 0, 2], np.float32),
    }
    # kind 1, 2 | tags 1, 2, 3 | number
    expected = [[0, 1, 1, 0, 1, 0.5], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 2]]
    assert one_hot(profile).toarray().tolist() == expected
    expected[0][2:5] = [0.5, 0, 0.5]
    assert shares(profile).toarray().tolist() == expected


def test_numbers_fall_into_quantiles():
    # halves of 1 2 3 4: the median is 2.5; of tied numbers one bin is left
    assert one_hot({"x": np.array([4, 1, 3, 2.0])}, bins=2).toarray().tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]
    assert len(np.unique(one_hot({"x": np.ones(5)}, bins=10).indices)) == 1
    counts = np.diff(one_hot({"x": np.random.default_rng(0).random(1000)}, bins=10).tocsc().indptr)
    assert counts.tolist() == [100] * 10


def test_seed_matrix_and_items():
    offsets, seeds = np.array([0, 2, 2, 3]), np.array([2, 0, 1])
    assert seed_matrix(offsets, seeds, 3).toarray().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert seeds.tolist() == [2, 0, 1]  # left as it was
    assert {item: rows.tolist() for item, rows in by_item(np.array([5, 1, 5]))} == {1: [1], 5: [0, 2]}
    assert list(by_item(np.empty(0, np.int64))) == []


@pytest.mark.parametrize(
    ("profile", "bins", "message"),
    [
        ({}, None, "at least one feature"),
        ({"a": np.zeros(2, np.int32), "b": np.zeros(3, np.int32)}, None, "should have 2 rows .* 'b' 3"),
        ({"a": np.array([-1])}, None, "from 0"),
        ({"a": np.array(["x"])}, None, "from 0"),
        ({"a": np.array([np.nan])}, None, "finite numbers"),
        ({"a": np.zeros(2)}, 1, "bins=1"),
    ],
)
def test_one_hot_rejects(profile, bins, message):
    with pytest.raises(ValueError, match=message):
        one_hot(profile, bins=bins)


@pytest.mark.parametrize(
    ("offsets", "seeds", "message"),
    [
        ([0, 1], [0, 1], "`offsets` should run from 0"),
        ([0, 2, 1, 2], [0, 1], "never fall"),
        ([0, 2], [1, 1], "distinct within an item. Received: 1"),
        ([0, 1], [9], "rows of 3"),
        ([0, 1], [0.5], "rows of 3"),
    ],
)
def test_seed_matrix_rejects(offsets, seeds, message):
    with pytest.raises(ValueError, match=message):
        seed_matrix(np.array(offsets), np.array(seeds), 3)
