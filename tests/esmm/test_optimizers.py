import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from esmm import RowAdam


def step(optimizer, variable, rows, values):
    gradient = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows, tf.int32), variable.shape)
    optimizer.apply([gradient], [variable])


def test_known_values():
    # one step of Adam from m = v = 0: m = .1 g, v = .001 g^2, alpha = lr sqrt(.001) / .1, so x -= lr g / |g|
    variable = keras.Variable(np.zeros((3, 1)), dtype="float32")
    step(RowAdam(0.01), variable, [2, 0, 2], [[1.0], [-4.0], [1.0]])  # row 2 twice: g = 2
    np.testing.assert_allclose(variable.numpy()[:, 0], [0.01, 0.0, -0.01], rtol=1e-5)


def test_equals_dense_adam_where_every_row_is_touched():
    generator = np.random.default_rng(0)
    start = generator.normal(size=(6, 3))
    ours, dense = keras.Variable(start, dtype="float32"), keras.Variable(start, dtype="float32")
    row, adam = RowAdam(0.05, epsilon=1e-7), keras.optimizers.Adam(0.05)
    for _ in range(20):
        rows = np.concatenate([generator.permutation(6), generator.integers(0, 6, 4)])
        values = generator.normal(size=(10, 3))
        step(row, ours, rows, values)
        summed = np.zeros((6, 3))
        np.add.at(summed, rows, values)
        adam.apply([tf.constant(summed, tf.float32)], [dense])
    np.testing.assert_allclose(ours.numpy(), dense.numpy(), rtol=1e-4, atol=1e-6)


def test_dense_gradients_are_adam():
    ours, dense = keras.Variable(np.ones(3), dtype="float32"), keras.Variable(np.ones(3), dtype="float32")
    row, adam = RowAdam(0.1), keras.optimizers.Adam(0.1, epsilon=1e-8)
    for _ in range(3):
        row.apply([tf.constant([1.0, -2.0, 0.5])], [ours])
        adam.apply([tf.constant([1.0, -2.0, 0.5])], [dense])
    np.testing.assert_array_equal(ours.numpy(), dense.numpy())


def model_of(rows):
    inputs = keras.Input((2,), dtype="int32")
    output = keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Embedding(rows, 4)(inputs)))
    return keras.Model(inputs, output)


@pytest.mark.parametrize("jit", [False, "auto", True])
def test_in_fit_untouched_rows_stay_bit_identical(jit):
    keras.utils.set_random_seed(0)
    model = model_of(50)
    model.compile(RowAdam(0.01), loss="mse", jit_compile=jit)
    ids = np.random.default_rng(0).integers(0, 10, (64, 2)).astype(np.int32) * 2  # even rows below 20
    before = model.layers[1].embeddings.numpy()
    model.fit(ids, ids.sum(axis=1).astype(np.float32), batch_size=16, epochs=2, verbose=0)
    after = model.layers[1].embeddings.numpy()
    touched = np.zeros(50, bool)
    touched[np.unique(ids)] = True
    np.testing.assert_array_equal(before[~touched], after[~touched])
    assert (before[touched] != after[touched]).all()
    slots = [slot.numpy() for slot in model.optimizer.variables if tuple(slot.shape) == (50, 4)]
    assert len(slots) == 2 and all((slot[~touched] == 0).all() and (slot[touched] != 0).any() for slot in slots)


def test_time_does_not_grow_with_the_table():
    # relative and loose: 500 times the rows may not cost 20 times the time (dense Adam: hundreds)
    seconds = []
    for rows in (2_000, 1_000_000):
        variable, optimizer = keras.Variable(np.zeros((rows, 16)), dtype="float32"), RowAdam()
        ids, values = np.arange(1000), np.ones((1000, 16))
        step(optimizer, variable, ids, values)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            step(optimizer, variable, ids, values)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    assert seconds[1] < 20 * seconds[0]


@pytest.mark.parametrize("option", [dict(clipnorm=1.0), dict(weight_decay=0.1), dict(amsgrad=True), dict(use_ema=True)])
def test_rejects_what_touches_every_row(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        RowAdam(**option)


def test_config_and_file_round_trip(tmp_path):
    optimizer = RowAdam(0.02, epsilon=1e-6)
    assert RowAdam.from_config(optimizer.get_config()).get_config() == optimizer.get_config()
    model = model_of(8)
    model.compile(optimizer, loss="mse")
    ids, y = np.array([[1, 2], [3, 4]], np.int32), np.array([1.0, 2.0], np.float32)
    model.fit(ids, y, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(again.optimizer, RowAdam)
    model.fit(ids, y, verbose=0)  # the moments were saved: both go on alike
    again.fit(ids, y, verbose=0)
    np.testing.assert_array_equal(model.predict(ids, verbose=0), again.predict(ids, verbose=0))
