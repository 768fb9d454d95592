import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ranking.metrics import auc, gauc, logloss, pcoc, precision_at


def random_rows(seed, n=500, levels=20):
    """Labels, scores with many ties, groups, integer weights (some zero)."""
    generator = np.random.default_rng(seed)
    score = generator.integers(0, levels, n) / levels
    label = (generator.random(n) < 0.1 + 0.6 * score).astype(np.int8)
    return label, score, generator.integers(0, n // 10, n), generator.integers(0, 4, n).astype(float)


def test_auc_known_values():
    # pairs (positive, negative): .8 > .3, .8 > .5, .5 > .3, .5 = .5 -> (3 + 1/2) / 4
    assert auc([1, 1, 0, 0], [0.8, 0.5, 0.3, 0.5]) == pytest.approx(3.5 / 4, abs=1e-12)
    # the negative at .5 counts twice: 1 + 2 + 1 + 2/2 of 6 pairs
    assert auc([1, 1, 0, 0], [0.8, 0.5, 0.3, 0.5], [1, 1, 1, 2]) == pytest.approx(5 / 6, abs=1e-12)
    assert math.isnan(auc([1, 1], [0.1, 0.2])) and math.isnan(auc([], []))


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed):
    label, score, group, weight = random_rows(seed)
    assert auc(label, score) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-9)
    assert auc(label, score, weight) == pytest.approx(sk.roc_auc_score(label, score, sample_weight=weight), abs=1e-9)
    p = np.clip(score, 0.01, 0.99)
    assert logloss(label, p) == pytest.approx(sk.log_loss(label, p), abs=1e-9)
    assert logloss(label, p, weight) == pytest.approx(sk.log_loss(label, p, sample_weight=weight), abs=1e-9)
    both = [g for g in np.unique(group) if 0 < label[group == g].mean() < 1]
    expected = np.average(
        [sk.roc_auc_score(label[group == g], score[group == g]) for g in both],
        weights=[np.sum(group == g) for g in both],
    )
    assert gauc(label, score, group) == pytest.approx(expected, abs=1e-9)


def test_gauc_known_values():
    # a: 1 pair won of 1, 2 rows; b: one pair tied, one lost -> .25, 3 rows; c: no positive, left out
    label = [1, 0, 0, 1, 0, 0]
    score = [2.0, 1.0, 5.0, 3.0, 3.0, 9.0]
    assert gauc(label, score, list("aabbbc")) == pytest.approx((2 * 1 + 3 * 0.25) / 5, abs=1e-12)
    assert math.isnan(gauc([0, 1], [1.0, 2.0], [0, 1]))


def test_logloss_and_pcoc_known_values():
    # -(log .5 + log .75) / 2; (.5 + .25) / 1
    assert logloss([1, 0], [0.5, 0.25]) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, abs=1e-12)
    assert pcoc([1, 0], [0.5, 0.25]) == pytest.approx(0.75, abs=1e-12)
    assert pcoc([1, 0], [0.5, 0.25], [1, 2]) == pytest.approx(1.0, abs=1e-12)
    assert math.isfinite(logloss([1, 0], [0.0, 1.0]))
    # a rare event in float32: -log(1 - 1e-12) is not lost
    assert logloss([0], np.array([1e-12], np.float32)) == pytest.approx(1e-12, rel=1e-6)
    assert math.isnan(pcoc([0, 0], [0.5, 0.25])) and math.isnan(logloss([], []))


def test_precision_known_values():
    # a: order + - + -, k = 2: one hit of min(2, 2); b: one positive, on top: 1 of min(2, 1); c: no positive
    label = [1, 0, 1, 0, 1, 0, 0]
    score = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert precision_at(label, score, list("aaaabbc"), 2) == pytest.approx((0.5 + 1.0) / 2, abs=1e-12)
    # three tied rows share two places: the one positive has 2/3 of a place
    assert precision_at([1, 0, 0], [1.0, 1.0, 1.0], [0, 0, 0], 2) == pytest.approx(2 / 3, abs=1e-12)
    assert math.isnan(precision_at([0], [1.0], [0], 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-5, 5))
def test_order_is_all_that_counts(seed, scale, shift):
    label, score, group, _ = random_rows(seed, 60, 5)
    moved = np.exp(scale * score) + shift
    assert auc(label, score) == pytest.approx(auc(label, moved), abs=1e-12)
    assert gauc(label, score, group) == pytest.approx(gauc(label, moved, group), abs=1e-12, nan_ok=True)
    shuffle = np.random.default_rng(seed).permutation(60)
    for k in (1, 3):
        one = precision_at(label, score, group, k)
        assert one == pytest.approx(precision_at(label[shuffle], moved[shuffle], group[shuffle], k), abs=1e-12)
    if 0 < label.mean() < 1:
        assert auc(label, score) == pytest.approx(1 - auc(label, -score), abs=1e-12)


def test_precision_against_a_plain_loop():
    generator = np.random.default_rng(0)
    label, group = (generator.random(300) < 0.3).astype(int), generator.integers(0, 30, 300)
    score = generator.permutation(300)  # no ties
    for k in (1, 5, 20):
        values = []
        for g in range(30):
            own = label[group == g][np.argsort(-score[group == g])]
            if own.sum():
                values.append(own[:k].sum() / min(k, own.sum()))
        assert precision_at(label, score, group, k) == pytest.approx(np.mean(values), abs=1e-12)


def test_rejects():
    with pytest.raises(ValueError, match="`score` should be one number a row"):
        auc([1, 0], [1.0])
    with pytest.raises(ValueError, match="`label` should be 0 or 1"):
        auc([1, 2], [1.0, 2.0])
    with pytest.raises(ValueError, match="`score` should have no NaN"):
        gauc([1, 0], [1.0, math.nan], [1, 1])
    with pytest.raises(ValueError, match=r"`probability` should be in \[0, 1\]"):
        logloss([1, 0], [0.5, 1.5])
    with pytest.raises(ValueError, match="k=0"):
        precision_at([1], [1.0], [1], 0)
