import math

import numpy as np
import pytest

from lookalike.hashing import HashedNeighbors

OFFSETS, SEEDS = np.array([0, 2, 2]), np.array([0, 1])


def together(baseline):
    """Share of the tables in which users 0 and 1 have one bucket."""
    return np.mean(baseline.buckets[:, 0] == baseline.buckets[:, 1])


def test_known_values():
    # kind 1 1 1 2 2 -: q of 1 is 1/2. Both seeds have it: p = (2 + 20 / 2) / (2 + 20) = 12/22,
    # value = (12/22 - 11/22) log((12/22) / (10/22)) = log(1.2) / 22. User 2 has the seeds' values and so their bucket;
    # users 3 and 4 have none in common with them, user 5 has none at all
    profile = {"kind": np.array([1, 1, 1, 2, 2, 0], np.int32)}
    baseline = HashedNeighbors.fit(OFFSETS, SEEDS, profile)
    expected = 1 + math.log(1.2) / 22
    score = baseline.score(np.arange(6), np.zeros(6, np.int64))
    assert score == pytest.approx([expected, expected, expected, 0, 0, 0], abs=1e-6)
    assert baseline.candidates(np.arange(6), np.zeros(6, np.int64)).tolist() == [True, True, True, False, False, False]


def test_a_value_that_everybody_has_is_worth_nothing():
    profile = {"all": np.ones(6, np.int32), "kind": np.array([1, 1, 1, 2, 2, 2], np.int32)}
    worth = HashedNeighbors.fit(OFFSETS, SEEDS, profile).worth.toarray()
    assert worth[0] == pytest.approx([0, math.log(1.2) / 22, 0], abs=1e-9)
    assert not worth[1].any()


def test_one_minhash_agrees_as_often_as_the_sets_overlap():
    # {1, 2, 3} and {2, 3, 4} share 2 of 4 values; two hashes agree together a quarter of the time
    profile = {"tags": np.array([[1, 2, 3], [2, 3, 4]], np.int32)}
    one = HashedNeighbors.fit(OFFSETS, SEEDS, profile, tables=2000, rows=1)
    assert together(one) == pytest.approx(0.5, abs=0.05)  # standard error .011
    two = HashedNeighbors.fit(OFFSETS, SEEDS, profile, tables=2000, rows=2)
    assert together(two) == pytest.approx(0.25, abs=0.05)


def test_one_hyperplane_parts_as_often_as_the_angle_is_wide():
    # 60 degrees: the same side with probability 2/3
    embeddings = np.array([[1, 0], [0.5, math.sqrt(0.75)], [0, 0]], np.float32)
    profile = {"kind": np.ones(3, np.int32)}
    baseline = HashedNeighbors.fit(OFFSETS, SEEDS, profile, embeddings=embeddings, tables=2000, rows=1)
    assert together(baseline) == pytest.approx(2 / 3, abs=0.05)
    assert (baseline.buckets[:, 2] == -1).all()  # a zero vector has no direction


def test_more_tables_more_candidates_more_rows_fewer():
    generator = np.random.default_rng(0)
    profile = {f"f{i}": generator.integers(1, 4, 500).astype(np.int32) for i in range(10)}
    offsets, seeds = np.array([0, 20]), np.arange(20)
    user, item = np.arange(20, 500), np.zeros(480, np.int64)

    def share(tables, rows):
        return HashedNeighbors.fit(offsets, seeds, profile, tables=tables, rows=rows).candidates(user, item).mean()

    assert share(2, 8) < share(10, 8) < share(10, 4)
    assert HashedNeighbors.fit(offsets, seeds, profile, seed=1).candidates(user, item).mean() != 0


def test_rejects():
    profile = {"kind": np.ones(3, np.int32)}
    with pytest.raises(ValueError, match="tables=0"):
        HashedNeighbors.fit(OFFSETS, SEEDS, profile, tables=0)
    with pytest.raises(ValueError, match="rows=0"):
        HashedNeighbors.fit(OFFSETS, SEEDS, profile, rows=0)
    with pytest.raises(ValueError, match="`embeddings` should have 3 rows"):
        HashedNeighbors.fit(OFFSETS, SEEDS, profile, embeddings=np.ones((2, 2), np.float32))
