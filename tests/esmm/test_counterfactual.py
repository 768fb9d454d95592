import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm.counterfactual import DoublyRobust, InversePropensity

LOG2 = math.log(2)
# observed, conversion
LABELS = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], np.float32)


def logit(*p):
    p = np.array(p)
    return np.log(p / (1 - p))


# pctr, pcvr and imputed conversion of each row
PREDICTED = np.stack(
    [logit(0.5, 0.25, 0.5, 0.25), logit(0.5, 0.2, 0.5, 0.2), logit(0.5, 0.5, 0.25, 0.25)], axis=1
).astype(np.float32)


def entropy(label, p):
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


def test_inverse_propensity_known_values():
    # w = 1/.5 and 1/.25: risk = (2 * -log .5 + 4 * -log .8) / 6
    risk = InversePropensity(0.02)(LABELS, PREDICTED[:, :2])
    assert float(risk) == pytest.approx((2 * LOG2 - 4 * math.log(0.8)) / 6, rel=1e-6)
    # a clip of .4 holds the second propensity: w = 2 and 2.5
    risk = InversePropensity(0.4)(LABELS, PREDICTED[:, :2])
    assert float(risk) == pytest.approx((2 * LOG2 - 2.5 * math.log(0.8)) / 4.5, rel=1e-6)
    # a clip of 1: the mean over clicked rows
    risk = InversePropensity(1.0)(LABELS, PREDICTED[:, :2])
    assert float(risk) == pytest.approx((LOG2 - math.log(0.8)) / 2, rel=1e-6)


def test_doubly_robust_known_values():
    # of mean 1 over the batch, w = 4 * (2, 4, 0, 0) / 6 = (4/3, 8/3, 0, 0). d(r) of row 1: -log .5, of row 2: -log .8;
    # d(r') of the rows: labels .5, .5, .25, .25 under pcvr .5, .2, .5, .2
    imputed = [entropy(0.5, 0.5), entropy(0.5, 0.2), entropy(0.25, 0.5), entropy(0.25, 0.2)]
    corrected = 4 / 3 * (LOG2 - imputed[0]) + 8 / 3 * (-math.log(0.8) - imputed[1])
    imputation = (4 / 3 + 8 / 3) * LOG2  # both labels imputed as .5
    risk = DoublyRobust(0.02)(LABELS, PREDICTED)
    assert float(risk) == pytest.approx((sum(imputed) + corrected + imputation) / 4, rel=1e-6)


@pytest.mark.parametrize(("loss", "columns"), [(InversePropensity(), 2), (DoublyRobust(), 3)])
def test_gradients(loss, columns):
    predicted = tf.constant(PREDICTED[:, :columns])
    with tf.GradientTape() as tape:
        tape.watch(predicted)
        risk = loss(LABELS, predicted)
    gradient = tape.gradient(risk, predicted).numpy()
    # nothing through the propensity
    np.testing.assert_array_equal(gradient[:, 0], 0)
    # by hand, with the weights above: w (pcvr - r) / 4, and of the doubly robust (pcvr - r' + w (r' - r)) / 4
    weights = np.array([4 / 3, 8 / 3, 0, 0])
    pcvr, r = np.array([0.5, 0.2, 0.5, 0.2]), LABELS[:, 1]
    if columns == 2:
        np.testing.assert_allclose(gradient[:, 1], weights * (pcvr - r) / 4, atol=1e-7)
    else:
        imputed = np.array([0.5, 0.5, 0.25, 0.25])
        np.testing.assert_allclose(gradient[:, 1], (pcvr - imputed + weights * (imputed - r)) / 4, atol=1e-7)
        np.testing.assert_allclose(gradient[:, 2], weights * (imputed - r) / 4, atol=1e-7)


@pytest.mark.parametrize(("loss", "columns"), [(InversePropensity(), 2), (DoublyRobust(), 3)])
def test_unobserved_conversions_do_not_count(loss, columns):
    changed = LABELS.copy()
    changed[2:, 1] = 1
    assert loss(LABELS, PREDICTED[:, :columns]) == loss(changed, PREDICTED[:, :columns])


def test_a_batch_without_clicks():
    nothing = np.zeros((4, 2), np.float32)
    assert float(InversePropensity()(nothing, PREDICTED[:, :2])) == 0
    # what is left is the imputed part
    imputed = [entropy(0.5, 0.5), entropy(0.5, 0.2), entropy(0.25, 0.5), entropy(0.25, 0.2)]
    assert float(DoublyRobust()(nothing, PREDICTED)) == pytest.approx(sum(imputed) / 4, rel=1e-6)


@pytest.mark.parametrize("estimator", ["inverse_propensity", "right_propensity", "right_imputation", "both_wrong"])
def test_right_when_propensity_or_imputation_is(estimator):
    # Two kinds of row, half each: pctr .8 and .2, pcvr .1 and .6. The risk of predicting .3 for all is, over all rows,
    # the mean of .1 and .6 under .3; over clicked rows it is that of (.8 * .1 + .2 * .6) / 1 = .2.
    rows = 400_000
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 2, rows)
    pctr, pcvr = np.array([0.8, 0.2])[kind], np.array([0.1, 0.6])[kind]
    click = generator.random(rows) < pctr
    labels = np.stack([click, click & (generator.random(rows) < pcvr)], axis=1).astype(np.float32)
    wrong = np.full(rows, 0.5)
    propensity = wrong if estimator in ("right_imputation", "both_wrong") else pctr
    imputed = pcvr if estimator == "right_imputation" else wrong
    columns = [logit(*propensity), np.full(rows, logit(0.3)[0])]
    if estimator == "inverse_propensity":
        predicted = np.stack(columns, axis=1).astype(np.float32)
        found = float(InversePropensity()(labels, predicted))
    else:
        predicted = np.stack([*columns, logit(*imputed)], axis=1).astype(np.float32)
        each = DoublyRobust(reduction="none")(labels, predicted).numpy().astype(np.float64)
        # without the loss of the imputation itself
        o = propensity
        w = labels[:, 0] / o / np.mean(labels[:, 0] / o)
        r = labels[:, 1]
        found = float(np.mean(each - w * -(r * np.log(imputed) + (1 - r) * np.log(1 - imputed))))
    # Rows of the second kind make the noise: 40,000 clicks that stand for 200,000. The standard error of the mean
    # conversion is about half of sqrt(.24 / 40,000) = .0012, times the logit .85 of the prediction: .001.
    truth, clicked = entropy(0.35, 0.3), entropy(0.2, 0.3)
    if estimator == "both_wrong":
        assert abs(found - truth) > 0.1 and found == pytest.approx(clicked, abs=0.006)
    else:
        assert found == pytest.approx(truth, abs=0.006)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 3, st.integers(0, 2)), min_size=1, max_size=20))
def test_finite_and_bounded(rows):
    # kinds of row: unclicked, clicked, converted
    labels = np.array([[kind > 0, kind > 1] for *_, kind in rows], np.float32)
    predicted = np.array([logits for *logits, _ in rows], np.float32)
    assert np.isfinite(DoublyRobust()(labels, predicted))
    # an average of cross-entropies, so between the least and the largest of them
    risk = float(InversePropensity()(labels, predicted[:, :2]))
    seen = labels[:, 0] > 0
    each = np.logaddexp(0, predicted[:, 1].astype(np.float64)) - labels[:, 1] * predicted[:, 1]
    if seen.any():
        assert each[seen].min() - 1e-4 <= risk <= each[seen].max() * (1 + 1e-5) + 1e-4


@pytest.mark.parametrize("loss", [InversePropensity, DoublyRobust])
def test_rejects_and_config_round_trip(loss):
    for clip in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match="`clip` should be in"):
            loss(clip)
    criterion = loss(0.3)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(criterion))
    assert type(copy) is loss and copy.get_config() == criterion.get_config() and copy.clip == 0.3
