import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from esmm.monotone import STEEPEST, _knots, _loss, fit_map


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def rows(n=5000, seed=0):
    """Logits of two events in a row, and whether both happened."""
    generator = np.random.default_rng(seed)
    logit, given = generator.normal(-1.5, 1.2, n), generator.normal(-1, 1, n)
    label = (generator.random(n) < sigmoid(0.7 * logit + 0.3) * sigmoid(given)).astype(float)
    return logit, label, given


def test_loss_by_hand():
    # p = q = 1/2, labels 1 and 0: -log(1/4) - log(3/4), a positive; the identity has no prior to pay
    knots, zero = np.array([0.0, 1.0]), np.zeros(2)
    value, gradient = _loss(zero, np.array([1.0, 0.0]), zero, knots, 1.0)(np.array([0.0, 0.0]))
    assert value == pytest.approx(-np.log(1 / 4) - np.log(3 / 4), abs=1e-12)
    # d/dz: -(1 - q) = -1/2 and p q (1 - q) / (1 - p q) = 1/6; the slope is not seen at logit 0
    np.testing.assert_allclose(gradient, [-1 / 2 + 1 / 6, 0], atol=1e-12)
    # shifted by 3 standard deviations of the prior: 1/2 more than the likelihood alone, with slope 1/3
    with_prior, alone = (_loss(zero, np.array([1.0, 0.0]), zero, knots, w)(np.array([3.0, 0.0])) for w in (1.0, 0.0))
    assert with_prior[0] - alone[0] == pytest.approx(1 / 2, abs=1e-12)
    assert with_prior[1][0] - alone[1][0] == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("pieces", [1, 2, 5, 8])
@pytest.mark.parametrize("certain", [False, True])
def test_gradient_is_that_of_finite_differences(pieces, certain):
    logit, label, given = rows()
    given = np.full_like(given, np.inf) if certain else given
    knots = _knots(logit, sigmoid(logit), pieces)
    assert len(knots) == pieces + 1
    loss = _loss(logit, label, given, knots, 1.0)
    generator = np.random.default_rng(1)
    for _ in range(3):
        at = np.append(generator.normal(-1, 1), generator.normal(0, 0.7, pieces))
        steps = 1e-6 * np.eye(len(at))
        numeric = [(loss(at + step)[0] - loss(at - step)[0]) / 2e-6 for step in steps]
        np.testing.assert_allclose(loss(at)[1], numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_logistic_regression(seed):
    logit, label, given = rows(seed=seed)
    found = fit_map(logit, label, np.full_like(given, np.inf), prior=0.0)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(logit[:, None], label)
    assert found.slopes[0] == pytest.approx(reference.coef_[0, 0], abs=1e-6)
    assert found.apply(0.0) == pytest.approx(reference.intercept_[0], abs=1e-6)
    # the prior is weak: a fifth of the standard errors of the intercept and the slope, above .03
    weak = fit_map(logit, label, np.full_like(given, np.inf))
    np.testing.assert_allclose(weak.apply([-2.0, 0.0]), found.apply([-2.0, 0.0]), atol=6e-3)


def test_pieces_share_the_expected_positives():
    logit, _, given = rows()
    expected = sigmoid(logit) * sigmoid(given)
    knots = _knots(logit, expected, 4)
    shares = np.histogram(logit, knots, weights=expected)[0] / expected.sum()
    np.testing.assert_allclose(shares, 1 / 4, atol=1e-3)
    assert (knots[0], knots[-1]) == (logit.min(), logit.max())
    # few distinct logits: no piece without rows
    assert len(_knots(np.repeat([0.0, 1.0], 50), np.ones(100), 8)) == 2
    assert len(_knots(np.repeat([0.0, 1.0, 2.0], 50), np.ones(150), 8)) == 3


def test_a_bend_is_found():
    generator = np.random.default_rng(0)
    logit = generator.normal(0, 1.5, 60_000)
    truth = np.where(logit < 0, logit, 0.4 * logit)  # too sure of the likely ones
    label = (generator.random(60_000) < sigmoid(truth)).astype(float)
    none = np.full_like(logit, np.inf)
    bent, line = fit_map(logit, label, none, pieces=8), fit_map(logit, label, none)
    inside = np.abs(logit) < 2.5
    # a piece has about 3750 positives and 3750 negatives: its mean logit has a standard error of .023
    assert np.abs(bent.apply(logit) - truth)[inside].max() < 5 * 0.05
    assert np.abs(line.apply(logit) - truth)[inside].max() > 5 * 0.05


def test_rows_that_say_nothing_break_nothing():
    generator = np.random.default_rng(0)
    none = np.full(400, np.inf)
    # an order that is the wrong way round, and labels that a line parts: slopes stay inside their bounds
    logit = generator.normal(size=400)
    for label in ((logit < 0), (logit > 0)):
        for pieces in (1, 8):
            slopes = fit_map(logit, label.astype(float), none, pieces=pieces).slopes
            assert (slopes >= 1 / STEEPEST * (1 - 1e-9)).all() and (slopes <= STEEPEST * (1 + 1e-9)).all()
    # one logit only: a shift to the rate of the labels, by a prior of 3 logits hardly held back
    label = (np.arange(400) < 100).astype(float)
    flat = fit_map(np.zeros(400), label, none, pieces=8)
    assert flat.slopes == pytest.approx([1.0], abs=1e-6)
    assert flat.apply(0.0) == pytest.approx(np.log(1 / 3), abs=0.01)
    # logits far out, where probabilities are 0 and 1 in float64
    far = fit_map(np.linspace(-900, 900, 400), (np.arange(400) > 200).astype(float), np.linspace(-900, 900, 400))
    assert np.isfinite(far.values).all()
