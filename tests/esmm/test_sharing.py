import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm import Architecture
from esmm.sharing import GatedExperts, Hierarchy, SharedBottom, sharing_layer

X = np.array([[1.0, 2.0]], np.float32)


def built(layer, width=2):
    layer(np.zeros((1, width), np.float32))
    return layer


def values(layer, x=X, **kwargs):
    return [output.numpy() for output in layer(x, **kwargs)]


def test_bottom_known_values():
    layer = built(SharedBottom(3, 2))
    layer.bottom.layers[0].kernel.assign([[1.0, -2.0], [0.5, 0.25]])
    layer.bottom.layers[0].bias.assign([0.5, 1.0])
    # relu(1 + .5 * 2 + .5) = 2.5; relu(-2 + .25 * 2 + 1) = relu(-.5) = 0; three tasks read the same
    np.testing.assert_allclose(values(layer), [[[2.5, 0.0]]] * 3, rtol=1e-6)


def test_experts_known_values():
    layer = built(GatedExperts(2, 1, 2))
    # expert 0: relu(1) = 1; expert 1: relu(1 + 2) = 3
    layer.shared.kernel.assign([[1.0, 1.0], [0.0, 1.0]])
    # task 0: gate softmax(0, 0) = (1/2, 1/2) -> 2; task 1: softmax(0, log 3) = (1/4, 3/4) -> 1/4 + 9/4 = 2.5
    layer.gates[0].kernel.assign([[0.0, 0.0], [0.0, 0.0]])
    layer.gates[1].kernel.assign([[0.0, math.log(3)], [0.0, 0.0]])
    np.testing.assert_allclose(values(layer), [[[2.0]], [[2.5]]], rtol=1e-6)


def test_experts_are_side_by_side():
    # two experts of two units: columns 0 and 1 are the first, 2 and 3 the second; equal gates give their mean
    layer = built(GatedExperts(1, 2, 2))
    layer.shared.kernel.assign([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    layer.gates[0].kernel.assign([[0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(values(layer), [[[2.0, 3.0]]], rtol=1e-6)  # (1 + 3) / 2, (2 + 4) / 2


def test_private_experts_known_values():
    layer = built(GatedExperts(2, 1, 1, private=1))
    # shared: 1; of task 0: 1 + 2 = 3; of task 1: 1 + 2 * 2 = 5
    layer.shared.kernel.assign([[1.0], [0.0]])
    layer.own[0].kernel.assign([[1.0], [1.0]])
    layer.own[1].kernel.assign([[1.0], [2.0]])
    # task 0: (1 + 3) / 2 = 2; task 1: 1/4 * 1 + 3/4 * 5 = 4
    layer.gates[0].kernel.assign([[0.0, 0.0], [0.0, 0.0]])
    layer.gates[1].kernel.assign([[0.0, math.log(3)], [0.0, 0.0]])
    np.testing.assert_allclose(values(layer), [[[2.0]], [[4.0]]], rtol=1e-6)


def test_hierarchy_known_values():
    layer = built(Hierarchy(3, (1,)))
    kernels = [[1.0, 1.0]], [[0.0, 1.0, -1.0]], [[1.0, 0.0, 2.0]]
    for level, kernel, bias in zip(layer.levels, kernels, [0.0, 2.0, 0.0], strict=True):
        level.layers[0].kernel.assign(np.transpose(kernel))
        level.layers[0].bias.assign([bias])
    # level 0 of (1, 2): 1 + 2 = 3; level 1 of (1, 2, 3): 2 - 3 + 2 = 1; level 2 of (1, 2, 1): 1 + 2 * 1 = 3
    np.testing.assert_allclose(values(layer), [[[3.0]], [[1.0]], [[3.0]]], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), st.integers(0, 1), st.integers(0, 1000))
def test_a_mixture_lies_between_its_experts(x, private, seed):
    keras.utils.set_random_seed(seed)
    layer, x = built(GatedExperts(2, 4, 3, private=private), 3), np.array([x], np.float32)
    for task, mixed in enumerate(values(layer, x)):
        own = layer.own[task](x).numpy().reshape(private, 4) if private else np.zeros((0, 4))
        seen = np.concatenate([layer.shared(x).numpy().reshape(3, 4), own])
        assert (mixed >= seen.min(axis=0) - 1e-5).all() and (mixed <= seen.max(axis=0) + 1e-5).all()


def reached(layer, task):
    """Names of the sub-layers whose weights get a gradient from one task's output."""
    keras.utils.set_random_seed(0)
    layer = built(layer)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x)[task] ** 2)
    gradients = tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    return {
        variable.path.split("/")[-2]
        for variable, gradient in zip(layer.trainable_variables, gradients, strict=True)
        if gradient is not None and np.abs(gradient).max() > 0
    }


def test_what_a_task_learns_of():
    assert reached(GatedExperts(2, 8, 2), 0) == {"shared", "gate_0"}
    assert reached(GatedExperts(2, 8, 2, private=1), 1) == {"shared", "own_1", "gate_1"}


@pytest.mark.parametrize(
    "layer",
    [
        SharedBottom(2, 64, dropout=0.5),
        GatedExperts(2, 64, 2, dropout=0.5),
        GatedExperts(2, 64, 2, private=1, dropout=0.5),
        Hierarchy(2, (64,), dropout=0.5),
    ],
)
def test_dropout_in_training_only(layer):
    layer, x = built(layer), np.ones((200, 2), np.float32)
    whole, dropped = values(layer, x)[0], values(layer, x, training=True)[0]
    np.testing.assert_array_equal(values(layer, x)[0], whole)
    active = whole > 0
    # about half of the units is 0, the others are doubled
    assert np.mean(dropped[active] == 0) == pytest.approx(0.5, abs=0.05)
    kept = active & (dropped > 0)
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-5)


def test_experts_start_like_layers_of_their_own():
    # Glorot's limit of one expert, sqrt(6 / (50 + 100)) = .2, whatever their number
    layer = built(GatedExperts(2, 100, 8, private=1), 50)
    for kernel in (layer.shared.kernel, layer.own[0].kernel):
        assert np.abs(kernel).max() == pytest.approx(0.2, rel=0.01)


def test_sharing_layer_and_the_widths_left():
    def of(sharing):
        layer, widths = sharing_layer(Architecture(sharing, towers=(8, 4), experts=3), 2, None)
        return layer, widths

    assert of("embedding") == (None, (8, 4))
    assert isinstance(of("hard")[0], SharedBottom) and of("hard")[1] == (4,)
    assert isinstance(of("hierarchical")[0], Hierarchy) and of("hierarchical")[1] == ()
    assert (of("mmoe")[0].experts, of("mmoe")[0].private, of("mmoe")[1]) == (3, 0, (4,))
    assert (of("shared_private")[0].experts, of("shared_private")[0].private) == (3, 1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SharedBottom(0, 4), "tasks=0"),
        (lambda: SharedBottom(2, 0), "units"),
        (lambda: GatedExperts(2, 4, 0), "experts=0"),
        (lambda: GatedExperts(2, 4, 1, private=-1), "private=-1"),
        (lambda: Hierarchy(2, ()), r"units=\(\)"),
    ],
)
def test_rejects(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [SharedBottom(2, 4, 0.1), GatedExperts(3, 4, 2, private=2, dropout=0.1), Hierarchy(3, (5, 4), 0.1)],
)
def test_config_and_file_round_trip(layer, tmp_path):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for one, other in zip(model(X), again(X), strict=True):
        np.testing.assert_array_equal(one, other)
