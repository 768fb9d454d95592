import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm import LogBinaryCrossentropy, LogitBinaryCrossentropy, funnel_outputs, losses, targets
from esmm.losses import log1mexp


def value_and_gradient(loss, label, logits, jit=False):
    """The loss of one example per row of logits `[n, 2]` and its gradient, through log pctcvr, in float32."""
    logits = tf.constant(logits, tf.float32)
    label = tf.fill([logits.shape[0]], float(label))

    @tf.function(jit_compile=jit)
    def run():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            if isinstance(loss, LogBinaryCrossentropy):
                prediction = -keras.ops.softplus(-logits[:, 0]) - keras.ops.softplus(-logits[:, 1])
            else:
                prediction = logits[:, 0]
            value = loss(label, prediction)
        return value, tape.gradient(value, logits)

    value, gradient = run()
    return value.numpy().astype(np.float64), gradient.numpy().astype(np.float64)


def log_sigmoid64(z):
    return -np.logaddexp(0.0, -z)


GRID = np.array([(a, b) for a in np.linspace(-30, 30, 41) for b in np.linspace(-30, 30, 41)], np.float32)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_pctcvr_loss_is_exact_in_float32(label, jit):
    value, gradient = value_and_gradient(LogBinaryCrossentropy(reduction="none"), label, GRID, jit)
    z = GRID.astype(np.float64)
    log_p = log_sigmoid64(z).sum(axis=1)
    q = 1 / (1 + np.exp(z))  # 1 - sigmoid
    if label:  # -log p; d/dz = -(1 - sigmoid)
        expected, slope = -log_p, -q
    else:  # -log(1 - p); d/dz = p / (1 - p) (1 - sigmoid)
        log_rest = np.log(-np.expm1(log_p))
        expected, slope = -np.log1p(-np.exp(log_p)), np.exp(log_p - log_rest)[:, None] * q
        expected = np.where(log_p > -1e-3, -log_rest, expected)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_click_loss_is_exact_in_float32(label, jit):
    value, gradient = value_and_gradient(LogitBinaryCrossentropy(reduction="none"), label, GRID, jit)
    z = GRID[:, 0].astype(np.float64)
    np.testing.assert_allclose(value, -log_sigmoid64(z if label else -z), rtol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], -1 / (1 + np.exp(z)) if label else 1 / (1 + np.exp(-z)), rtol=1e-5)


def funnel_reference(logits, label):
    """Losses of each example of a funnel in float64, one a step, and the gradient of their sum."""
    q = 1 / (1 + np.exp(logits))  # 1 - sigmoid
    log_p = np.cumsum(log_sigmoid64(logits), axis=1)
    # log(1 - p), from the side that does not cancel
    rest = np.where(log_p > -math.log(2), np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))
    each = -log_p if label else -rest
    # of step k: d/dz_j = -q_j for j <= k with the label, p_k / (1 - p_k) q_j without
    slope = -np.ones_like(log_p) if label else np.exp(log_p - rest)
    return each, np.cumsum(slope[:, ::-1], axis=1)[:, ::-1] * q


LOW, HIGH = np.logspace(-12, -0.5, 24), 1 - np.logspace(-7, -0.5, 14)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize(
    "steps, rates",
    [
        (("click", "conversion"), np.concatenate([LOW, HIGH])),
        (("click", "cart", "purchase"), np.concatenate([LOW[LOW > 1e-4], HIGH])),
    ],
)
def test_losses_of_a_funnel_are_exact_in_float32(steps, rates, label):
    # every combination of conditional probabilities whose product is 1e-12 or more
    grid = np.stack(np.meshgrid(*[rates] * len(steps)), axis=-1).reshape(-1, len(steps))
    grid = grid[grid.prod(axis=1) > 1e-12]
    logits = (np.log(grid) - np.log1p(-grid)).astype(np.float32)
    labels = targets(*[np.full(len(grid), label)] * len(steps), steps=steps)
    values, z = {}, tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        outputs = funnel_outputs(*tf.unstack(z, axis=1), steps=steps)
        for name, loss in losses(steps=steps).items():
            values[name] = type(loss)(reduction="none")(labels[name], outputs[name])
        total = tf.add_n(list(values.values()))
    gradient = tape.gradient(total, z).numpy()
    expected, slope = funnel_reference(logits.astype(np.float64), label)
    np.testing.assert_allclose(np.stack(list(values.values()), axis=1), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_probabilities_of_the_product_are_exact_too():
    # the product of 1e-6 and 1e-6 is 1e-12, not 0
    z = np.float32(math.log(1e-6 / (1 - 1e-6)))
    outputs = funnel_outputs(tf.constant([z]), tf.constant([z]))
    np.testing.assert_allclose(outputs["pctcvr"], [1e-12], rtol=1e-5)
    np.testing.assert_allclose(outputs["log_pctcvr"], [-12 * math.log(10)], rtol=1e-6)


def test_known_values():
    # p = q = 1e-6 and no label: -log(1 - 1e-12) = 1e-12 (the naive float32 form gives 0); with one: 12 log 10
    z = math.log(1e-6 / (1 - 1e-6))
    value, gradient = value_and_gradient(LogBinaryCrossentropy(reduction="none"), 0, [[z, z]])
    np.testing.assert_allclose(value, [1e-12], rtol=1e-5)
    np.testing.assert_allclose(gradient, [[1e-12, 1e-12]], rtol=1e-5)
    value, _ = value_and_gradient(LogBinaryCrossentropy(reduction="none"), 1, [[z, z]])
    np.testing.assert_allclose(value, [12 * math.log(10)], rtol=1e-5)
    # half and half: -log(1 - .25)
    np.testing.assert_allclose(log1mexp(np.float32(math.log(0.25))), math.log(0.75), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-500, 500, width=32), st.floats(-500, 500, width=32)), min_size=1), st.integers(0, 1)
)
def test_finite_however_wrong(logits, label):
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        log_p = -tf.math.softplus(-logits[:, 0]) - tf.math.softplus(-logits[:, 1])
        losses = [
            LogBinaryCrossentropy()(label + 0 * log_p, log_p),
            LogitBinaryCrossentropy()(label + 0 * log_p, log_p),
        ]
        total = losses[0] + losses[1]
    assert np.isfinite(losses).all() and min(losses) >= 0
    assert np.isfinite(tape.gradient(total, logits)).all()


@pytest.mark.parametrize("loss", [LogBinaryCrossentropy(), LogitBinaryCrossentropy()])
def test_weights_count_and_the_loss_is_a_mean(loss):
    label, prediction = np.array([0.0, 1.0, 0.0], np.float32), np.array([-0.5, -1.0, -2.0], np.float32)
    each = type(loss)(reduction="none")(label, prediction).numpy()
    weight = np.array([1.0, 0.0, 3.0], np.float32)
    np.testing.assert_allclose(loss(label, prediction), each.mean(), rtol=1e-6)
    np.testing.assert_allclose(loss(label, prediction, sample_weight=weight), (each * weight).sum() / 3, rtol=1e-6)
    # not a sum: the batch twice over has the same loss
    np.testing.assert_allclose(loss(np.tile(label, 2), np.tile(prediction, 2)), each.mean(), rtol=1e-6)


@pytest.mark.parametrize("loss", [LogBinaryCrossentropy(), LogitBinaryCrossentropy()])
def test_config_round_trip(loss):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(copy) is type(loss) and copy.get_config() == loss.get_config()
