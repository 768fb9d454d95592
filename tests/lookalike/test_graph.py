import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.graph import LabelPropagation

# users 0, 1 acted on thing 0, users 1, 2 on thing 1 (one of them twice); user 3 on nothing
EDGES = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1])
OFFSETS, SEEDS = np.array([0, 1, 1, 3]), np.array([0, 1, 2])


def test_known_values():
    # degrees of users 1 2 1, of things 2 2: N = (1/r, 0), (1/2, 1/2), (0, 1/r), r = sqrt(2);
    # S = N N^T = (1/2, 1/2r, 0), (1/2r, 1/2, 1/2r), (0, 1/2r, 1/2). Item 0, seed 0, a = 1/2, one step:
    # F = S e_0 / 2 + e_0 / 2 = (3/4, 1/4r, 0);
    # the second: S F = (3/8 + 1/16, 3/8r + 1/8r, 1/16), F = (23/32, 1/4r, 1/32)
    user, item = np.arange(4), np.zeros(4, np.int64)
    r = math.sqrt(2)
    one = LabelPropagation.fit(OFFSETS, SEEDS, EDGES, 4, spread=0.5, iterations=1).score(user, item)
    assert one == pytest.approx(4 * np.array([3 / 4, 1 / (4 * r), 0, 0]), abs=1e-6)
    two = LabelPropagation.fit(OFFSETS, SEEDS, EDGES, 4, spread=0.5, iterations=2).score(user, item)
    assert two == pytest.approx(4 * np.array([23 / 32, 1 / (4 * r), 1 / 32, 0]), abs=1e-6)


def test_many_steps_reach_the_closed_form():
    # the limit is (1 - a) (I - a S)^-1 Y
    generator = np.random.default_rng(0)
    acted = generator.random((30, 12)) < 0.2
    offsets, seeds = np.array([0, 3, 8]), np.array([1, 5, 9, 0, 1, 2, 3, 4])
    baseline = LabelPropagation.fit(offsets, seeds, np.nonzero(acted), 30, spread=0.7, iterations=60)
    scale = np.sqrt(np.maximum(acted.sum(1), 1))[:, None] * np.sqrt(np.maximum(acted.sum(0), 1))
    normal = acted / scale
    labels = np.zeros((30, 2))
    labels[seeds[:3], 0], labels[seeds[3:], 1] = 1 / 3, 1 / 5
    limit = 0.3 * np.linalg.solve(np.eye(30) - 0.7 * normal @ normal.T, labels)
    user, item = np.divmod(np.arange(60), 2)
    assert baseline.score(user, item) == pytest.approx(30 * limit[user, item], abs=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(0, 100))
def test_blocks_do_not_matter(block, seed):
    generator = np.random.default_rng(seed)
    edges = generator.integers(0, 20, 60), generator.integers(0, 8, 60)
    seeds = np.concatenate([np.sort(generator.choice(20, 3, replace=False)) for _ in range(7)])
    offsets = np.arange(0, 22, 3)
    user, item = generator.integers(0, 20, 40), generator.integers(0, 7, 40)
    one = LabelPropagation.fit(offsets, seeds, edges, 20, block=block).score(user, item)
    assert one == pytest.approx(LabelPropagation.fit(offsets, seeds, edges, 20).score(user, item), abs=1e-5)
    assert (one >= 0).all()


def test_without_edges_only_seeds_are_known():
    none = np.empty(0, np.int64)
    baseline = LabelPropagation.fit(OFFSETS, SEEDS, (none, none), 4, spread=0.5)
    assert baseline.score(np.arange(4), np.full(4, 2)) == pytest.approx([0, 1, 1, 0], abs=1e-6)  # 4 * .5 / 2


def test_rejects():
    with pytest.raises(ValueError, match="spread=1"):
        LabelPropagation.fit(OFFSETS, SEEDS, EDGES, 4, spread=1)
    with pytest.raises(ValueError, match="iterations=0"):
        LabelPropagation.fit(OFFSETS, SEEDS, EDGES, 4, iterations=0)
    with pytest.raises(ValueError, match="block=0"):
        LabelPropagation.fit(OFFSETS, SEEDS, EDGES, 4, block=0)
    with pytest.raises(ValueError, match="rows of 2"):
        LabelPropagation.fit(OFFSETS, np.array([0, 1, 1]), EDGES, 2)
