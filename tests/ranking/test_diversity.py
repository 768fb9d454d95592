import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.diversity import coverage, gini, impressions, long_tail_share, richness

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any)
LISTS = [[0, 1, 2], [1, -1, -1], [-1, -1, -1]]


def test_richness_known_values():
    # categories: items 0 and 1 are of 5, item 2 of 7, item 3 of none: lists {5, 7}, {5}, an empty one -> (2 + 1) / 2
    assert richness(LISTS, [5, 5, 7, 0]) == pytest.approx(1.5, abs=1e-12)
    # tags: {1, 2} + {2} + {3} = 3, {2} = 1; a tag twice in an item is one tag
    assert richness(LISTS, [[1, 2], [2, 2], [3, 0], [0, 0]]) == pytest.approx((3 + 1) / 2, abs=1e-12)
    # an item without a label is shown, and adds none
    assert richness([[3], [0]], [5, 5, 7, 0]) == pytest.approx((0 + 1) / 2, abs=1e-12)
    assert math.isnan(richness([[-1]], [1])) and math.isnan(richness(np.empty((0, 3), int), [1]))


def test_coverage_known_values():
    # items 0, 1 and 2 of 4
    assert coverage(LISTS, 4) == pytest.approx(0.75, abs=1e-12)
    assert impressions(LISTS, 4).tolist() == [1, 2, 1, 0]
    assert coverage([[-1]], 4) == 0


def test_gini_known_values():
    # sorted 0 1 1 2: (-3 * 0 - 1 * 1 + 1 * 1 + 3 * 2) / (4 * 4)
    assert gini([1, 2, 1, 0]) == pytest.approx(6 / 16, abs=1e-12)
    assert gini([3, 3, 3]) == pytest.approx(0, abs=1e-12)
    assert gini([0, 0, 0, 7]) == pytest.approx(3 / 4, abs=1e-12)
    assert math.isnan(gini([0, 0])) and math.isnan(gini([]))


def test_long_tail_known_values():
    # popularity 9 8 7 ... 0 of ten items: the head is items 0 and 1; recommendations 0 1 2 1: one of four outside
    popularity = np.arange(9, -1, -1)
    assert long_tail_share(LISTS, popularity) == pytest.approx(1 / 4, abs=1e-12)
    # half of four items: item 0 is in the head, items 1 to 3 are tied and share the one place left: 2/3 tail each;
    # recommendations 0 1 2 1 -> (0 + 3 * 2/3) / 4
    assert long_tail_share(LISTS, [9, 5, 5, 5], head=0.5) == pytest.approx(0.5, abs=1e-12)
    assert math.isnan(long_tail_share([[-1]], popularity))


@settings(max_examples=100, deadline=None)
@given(COUNTS)
def test_gini_is_half_the_relative_mean_difference(counts):
    x = np.array(counts, float)
    expected = np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())
    assert gini(counts) == pytest.approx(expected, abs=1e-12)
    assert 0 <= gini(counts) <= (len(counts) - 1) / len(counts) + 1e-12


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.floats(1e-6, 1e6), st.integers(0, 1000))
def test_gini_keeps_with_scale_order_and_copies(counts, scale, seed):
    shuffled = np.random.default_rng(seed).permutation(counts)
    assert gini(shuffled * scale) == pytest.approx(gini(counts), abs=1e-9)
    assert gini(counts * 3) == pytest.approx(gini(counts), abs=1e-9)  # three of every item


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(1, 1000))
def test_gini_at_both_ends(n, value):
    assert gini(np.full(n, value)) == pytest.approx(0, abs=1e-12)
    assert gini(np.eye(n)[0] * value) == pytest.approx((n - 1) / n, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_against_plain_loops(seed):
    generator = np.random.default_rng(seed)
    lists = np.argsort(generator.random((8, 12)), axis=1)[:, :5]
    lists[generator.random(lists.shape) < 0.3] = -1
    if not (lists >= 0).any():
        return
    tags = generator.integers(0, 4, (12, 3))
    popularity = generator.permutation(12)
    rows = [[i for i in row if i >= 0] for row in lists.tolist()]
    found = [len({t for i in row for t in tags[i].tolist() if t}) for row in rows if row]
    assert richness(lists, tags) == pytest.approx(np.mean(found), abs=1e-12)
    assert coverage(lists, 12) == pytest.approx(len({i for row in rows for i in row}) / 12, abs=1e-12)
    head = set(np.argsort(-popularity)[:3].tolist())  # a quarter of twelve
    outside = [i not in head for row in rows for i in row]
    assert long_tail_share(lists, popularity, head=0.25) == pytest.approx(np.mean(outside), abs=1e-12)


def test_rejects():
    with pytest.raises(ValueError, match=r"`lists` should be int \[users, K\]"):
        coverage([0, 1], 3)
    with pytest.raises(ValueError, match="`lists` should hold -1 to 2"):
        coverage([[3]], 3)
    with pytest.raises(ValueError, match="at most once in a list"):
        coverage([[1, 1]], 3)
    with pytest.raises(ValueError, match="items=0"):
        coverage([[-1]], 0)
    with pytest.raises(ValueError, match="`labels` should be int"):
        richness([[0]], [0.5])
    with pytest.raises(ValueError, match="`counts` should be finite"):
        gini([1, -1])
    with pytest.raises(ValueError, match=r"head=1"):
        long_tail_share([[0]], [1.0], head=1)
    with pytest.raises(ValueError, match="`popularity` should be one number an item"):
        long_tail_share([[0]], [math.nan])
