import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lookalike.profiles import one_hot
from lookalike.regression import Classifier, LogisticPairs

OFFSETS, SEEDS = np.array([0, 2, 2, 6]), np.array([0, 1, 0, 1, 2, 3])


def test_classifier_known_values():
    # four users at +1 +1 -1 -1, the first two are seeds, the others are all that is left: no intercept by symmetry, and
    # C * 4 log(1 + e^-w) + w^2 / 2 is lowest where w = 4 C / (1 + e^w)
    embeddings = np.array([[5], [5], [3], [3]], np.float32)  # brought to mean 0, deviation 1
    baseline = Classifier.fit(OFFSETS, SEEDS, embeddings, others=1, strength=1.0)
    score = baseline.score(np.arange(4), np.zeros(4, np.int64))
    w = score[0]
    assert w == pytest.approx(4 * scipy.special.expit(-w), abs=1e-3) and 1.04 < w < 1.05
    assert score == pytest.approx([w, w, -w, -w], abs=1e-3)
    # an item without seeds, and one without others
    assert not baseline.coefficients[1:].any()


def test_classifier_scores_do_not_tell_how_many_seeds():
    # inputs without any information: every user is as likely as not, whatever the share of seeds in the sample
    embeddings = np.zeros((50, 3), np.float32)
    for others in (1, 4):
        baseline = Classifier.fit(np.array([0, 10]), np.arange(10), embeddings, others=others)
        assert baseline.score(np.arange(50), np.zeros(50, np.int64)) == pytest.approx(np.zeros(50), abs=1e-2)


def test_others_are_no_seeds_and_each_once():
    from lookalike.regression import _draw_others

    own = np.array([0, 3, 4, 9])
    drawn = _draw_others(np.random.default_rng(0), own, 6, 10)
    assert sorted(drawn.tolist()) == [1, 2, 5, 6, 7, 8]
    shares = np.bincount(
        np.concatenate([_draw_others(np.random.default_rng(seed), own, 3, 10) for seed in range(2000)]), minlength=10
    )
    assert shares[own].sum() == 0
    assert shares[[1, 2, 5, 6, 7, 8]] / 2000 == pytest.approx(np.full(6, 0.5), abs=0.05)  # standard error .011


def pairs(n=3000, users=60, items=20):
    generator = np.random.default_rng(3)
    profile = {
        "age": generator.integers(0, 4, users),
        "tags": generator.integers(0, 5, (users, 3)),
        "number": generator.random(users),
    }
    attributes = {"kind": generator.integers(0, 4, items)}
    user, item = generator.integers(0, users, n), generator.integers(0, items, n)
    logit = generator.normal(0, 2, users)[user] + generator.normal(0, 2, items)[item] - 1
    label = (generator.random(n) < scipy.special.expit(logit)).astype(np.int8)
    return user, item, label, profile, attributes


def test_pairs_against_scikit_learn():
    user, item, label, profile, attributes = pairs()
    baseline = LogisticPairs.fit(user, item, label, profile, attributes, strength=0.3)
    tags = one_hot({"tags": profile["tags"]}).toarray()
    tags /= np.maximum(tags.sum(axis=1, keepdims=True), 1)  # the mean of a user's tags
    rest = [one_hot({name: profile[name]}).toarray() for name in ("age", "number")]
    of_user = np.hstack([np.eye(60), tags, *rest])
    of_item = np.hstack([np.eye(20), one_hot(attributes).toarray()])
    design = np.hstack([of_user[user], of_item[item]])
    model = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000).fit(design, label)
    assert baseline.intercept == pytest.approx(model.intercept_[0], abs=2e-3)
    expected = design @ model.coef_[0]
    assert baseline.score(user, item) == pytest.approx(expected, abs=2e-3)


def test_pairs_find_what_is_additive_and_nothing_else():
    user, item, label, profile, attributes = pairs()
    baseline = LogisticPairs.fit(user[:2000], item[:2000], label[:2000], profile, attributes, strength=1.0)
    assert roc_auc_score(label[2000:], baseline.score(user[2000:], item[2000:])) > 0.85
    shuffled = np.random.default_rng(0).permutation(label)
    baseline = LogisticPairs.fit(user[:2000], item[:2000], shuffled[:2000], profile, attributes)
    assert roc_auc_score(shuffled[2000:], baseline.score(user[2000:], item[2000:])) == pytest.approx(0.5, abs=0.07)


def test_pairs_of_one_class_are_all_alike():
    user, item, label, profile, attributes = pairs()
    baseline = LogisticPairs.fit(user, item, np.ones_like(label), profile, attributes)
    assert not baseline.score(user, item).any()


def test_rejects():
    user, item, label, profile, attributes = pairs()
    with pytest.raises(ValueError, match="`label` should be 0 or 1"):
        LogisticPairs.fit(user, item, label + 1, profile, attributes)
    with pytest.raises(ValueError, match="strength=0"):
        LogisticPairs.fit(user, item, label, profile, attributes, strength=0)
    with pytest.raises(ValueError, match="rows of 60"):
        LogisticPairs.fit(user + 60, item, label, profile, attributes)
    with pytest.raises(ValueError, match="others=0"):
        Classifier.fit(OFFSETS, SEEDS, profile, others=0)
    with pytest.raises(ValueError, match="strength=-1"):
        Classifier.fit(OFFSETS, SEEDS, profile, strength=-1)
