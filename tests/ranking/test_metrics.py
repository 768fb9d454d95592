import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from ranking.metrics import auc, ece, gauc, logloss, ndcg, pcoc, precision_at


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


def test_ndcg_known_values():
    # a: + - + by score: (1 + 1/2) / (1 + 1/log2 3); b: one positive, second of two: 1/log2 3; c: no positive, left out
    label, score, group = [1, 0, 1, 0, 1, 0], [3.0, 2.0, 1.0, 5.0, 4.0, 9.0], list("aaabbc")
    second = 1 / math.log2(3)
    assert ndcg(label, score, group) == pytest.approx((1.5 / (1 + second) + second) / 2, abs=1e-12)
    # only the first place: a 1 of 1, b 0 of 1
    assert ndcg(label, score, group, 1) == pytest.approx(1 / 2, abs=1e-12)
    # one positive of three tied rows: the mean of the three places
    assert ndcg([0, 1, 0], [1.0, 1.0, 1.0], [7, 7, 7]) == pytest.approx((1 + second + 1 / 2) / 3, abs=1e-12)
    assert math.isnan(ndcg([0], [1.0], [0])) and math.isnan(ndcg([], [], []))


@pytest.mark.parametrize("k", [None, 1, 3, 10, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_ndcg_against_scikit_learn(seed, k):
    label, score, group, _ = random_rows(seed)  # ties within groups
    expected = [
        sk.ndcg_score([label[group == g]], [score[group == g]], k=k)
        for g in np.unique(group)
        if label[group == g].any() and np.sum(group == g) > 1  # scikit-learn refuses a list of one
    ]
    assert len(expected) > 20
    kept = np.isin(group, [g for g in np.unique(group) if np.sum(group == g) > 1])
    assert ndcg(label[kept], score[kept], group[kept], k) == pytest.approx(np.mean(expected), abs=1e-9)


def test_ece_known_values():
    # two bins of two rows: (.1 + .2) / 2 against 1/2, (.6 + .9) / 2 against 1: half of .35 + half of .25
    label, p = [0, 1, 1, 1], [0.1, 0.2, 0.6, 0.9]
    assert ece(label, p, bins=2) == pytest.approx((0.35 + 0.25) / 2, abs=1e-12)
    assert ece(label, p, bins=1) == pytest.approx(abs(1.8 / 4 - 3 / 4), abs=1e-12)
    # the second row counts three times: of six, .1 .2 .2 | .2 .6 .9; rows of one probability stay together, and the
    # middle of those at .2 is in the first half: .1 .2 .2 .2 against 3 of 4, .6 .9 against 2 of 2
    weighted = ece(label, p, [1, 3, 1, 1], bins=2)
    assert weighted == pytest.approx((abs(0.7 - 3) + abs(1.5 - 2)) / 6, abs=1e-12)
    # a constant is one bin, however many are asked for
    assert ece([1, 0, 0, 0], [0.5] * 4) == pytest.approx(0.25, abs=1e-12)
    assert math.isnan(ece([], [])) and math.isnan(ece([1], [0.5], [0.0]))


def test_ece_of_a_perfect_model_is_noise_and_of_a_shifted_one_is_the_shift():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.05, 0.3, 60_000)
    label = (generator.random(60_000) < p).astype(int)
    noise = math.sqrt(2 / math.pi) * math.sqrt(15 / 60_000 * np.mean(p * (1 - p)))
    assert ece(label, p) == pytest.approx(noise, rel=0.97)  # 15 half-normals: 5 standard errors
    assert ece(label, p + 0.1) == pytest.approx(0.1, abs=5 * noise)


@pytest.mark.parametrize("seed", range(3))
def test_ece_against_bins_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    p = generator.permutation(np.linspace(0.01, 0.99, 600))  # no ties, 15 bins of 40
    label = (generator.random(600) < p**2).astype(int)
    observed, predicted = calibration_curve(label, p, n_bins=15, strategy="quantile")
    assert ece(label, p) == pytest.approx(np.mean(np.abs(observed - predicted)), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-5, 5))
def test_order_is_all_that_counts(seed, scale, shift):
    label, score, group, _ = random_rows(seed, 60, 5)
    moved = np.exp(scale * score) + shift
    assert auc(label, score) == pytest.approx(auc(label, moved), abs=1e-12)
    assert gauc(label, score, group) == pytest.approx(gauc(label, moved, group), abs=1e-12, nan_ok=True)
    shuffle = np.random.default_rng(seed).permutation(60)
    assert ndcg(label, score, group) == pytest.approx(ndcg(label, moved, group), abs=1e-12, nan_ok=True)
    assert ece(label, score) == pytest.approx(ece(label[shuffle], score[shuffle]), abs=1e-12)
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
    with pytest.raises(ValueError, match="k=0"):
        ndcg([1], [1.0], [1], 0)
    with pytest.raises(ValueError, match="bins=0"):
        ece([1], [0.5], bins=0)
    with pytest.raises(ValueError, match=r"`probability` should be in \[0, 1\]"):
        ece([1, 0], [0.5, -0.5])
