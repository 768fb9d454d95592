import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from esmm.optimizers import PassDecay, RowAdagrad, RowAdam

JIT = ["auto", *(pytest.param(jit, marks=pytest.mark.slow) for jit in (False, True))]


def step(optimizer, variable, rows, values):
    gradient = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows, tf.int32), variable.shape)
    optimizer.apply([gradient], [variable])


def test_known_values():
    # one step of Adam from m = v = 0: m = .1 g, v = .001 g^2, alpha = lr sqrt(.001) / .1, so x -= lr g / |g|
    variable = keras.Variable(np.zeros((3, 1)), dtype="float32")
    step(RowAdam(0.01), variable, [2, 0, 2], [[1.0], [-4.0], [1.0]])  # row 2 twice: g = 2
    np.testing.assert_allclose(variable.numpy()[:, 0], [0.01, 0.0, -0.01], rtol=1e-5)


def test_known_values_of_adagrad():
    # row 2 is looked up twice, g = 1 + 2 = 3: a = 0 + 9, x = -lr 3 / 3; then g = 4: a = 9 + 16, x = -lr (1 + 4 / 5)
    variable = keras.Variable(np.zeros((3, 1)), dtype="float32")
    optimizer = RowAdagrad(0.01, initial_accumulator_value=0.0, epsilon=1e-12)
    step(optimizer, variable, [2, 0, 2], [[1.0], [-4.0], [2.0]])
    np.testing.assert_allclose(variable.numpy()[:, 0], [0.01, 0.0, -0.01], rtol=1e-5)
    step(optimizer, variable, [2], [[4.0]])
    np.testing.assert_allclose(variable.numpy()[:, 0], [0.01, 0.0, -0.018], rtol=1e-5)


def both(row, dense, touched):
    """The variables after 20 steps of each, with repeated rows; `touched`: rows that every step has a gradient of."""
    generator = np.random.default_rng(0)
    start = generator.normal(size=(6, 3))
    ours, theirs = keras.Variable(start, dtype="float32"), keras.Variable(start, dtype="float32")
    for _ in range(20):
        rows = np.concatenate([generator.permutation(touched), generator.integers(0, 6, 4)])
        values = generator.normal(size=(len(rows), 3))
        step(row, ours, rows, values)
        summed = np.zeros((6, 3))
        np.add.at(summed, rows, values)
        dense.apply([tf.constant(summed, tf.float32)], [theirs])
    return ours.numpy(), theirs.numpy()


def test_equals_dense_adam_where_every_row_is_touched():
    ours, theirs = both(RowAdam(0.05, epsilon=1e-7), keras.optimizers.Adam(0.05), 6)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("touched", [6, 0])
def test_equals_dense_adagrad_whatever_is_touched(touched):
    # a row with no gradient does not move in Adagrad: nothing is approximated
    ours, theirs = both(RowAdagrad(0.05), keras.optimizers.Adagrad(0.05), touched)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "row, dense", [(RowAdam(0.1), keras.optimizers.Adam), (RowAdagrad(0.1), keras.optimizers.Adagrad)]
)
def test_dense_gradients_are_those_of_keras(row, dense):
    ours, theirs = keras.Variable(np.ones(3), dtype="float32"), keras.Variable(np.ones(3), dtype="float32")
    theirs_optimizer = dense(0.1, epsilon=row.epsilon)
    for _ in range(3):
        row.apply([tf.constant([1.0, -2.0, 0.5])], [ours])
        theirs_optimizer.apply([tf.constant([1.0, -2.0, 0.5])], [theirs])
    # Adam rounds 1 - beta_2 twice the same here, Keras once in float64 and once in float32: 5e-6 of a step
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5)


def model_of(rows):
    inputs = keras.Input((2,), dtype="int32")
    output = keras.layers.Dense(1)(keras.layers.Flatten()(keras.layers.Embedding(rows, 4)(inputs)))
    return keras.Model(inputs, output)


@pytest.mark.parametrize("jit", JIT)
@pytest.mark.parametrize("cls, start", [(RowAdam, 0.0), (RowAdagrad, np.float32(0.1))])
def test_in_fit_untouched_rows_stay_bit_identical(cls, start, jit):
    keras.utils.set_random_seed(0)
    model = model_of(50)
    model.compile(cls(0.01), loss="mse", jit_compile=jit)
    ids = np.random.default_rng(0).integers(0, 10, (64, 2)).astype(np.int32) * 2  # even rows below 20
    before = model.layers[1].embeddings.numpy()
    model.fit(ids, ids.sum(axis=1).astype(np.float32), batch_size=16, epochs=2, verbose=0)
    after = model.layers[1].embeddings.numpy()
    touched = np.zeros(50, bool)
    touched[np.unique(ids)] = True
    np.testing.assert_array_equal(before[~touched], after[~touched])
    assert (before[touched] != after[touched]).all()
    slots = [slot.numpy() for slot in model.optimizer.variables if tuple(slot.shape) == (50, 4)]
    assert len(slots) == (2 if cls is RowAdam else 1)
    assert all((slot[~touched] == start).all() and (slot[touched] != start).any() for slot in slots)


@pytest.mark.parametrize("cls", [RowAdam, pytest.param(RowAdagrad, marks=pytest.mark.slow)])
@pytest.mark.parametrize("jit", JIT)
def test_two_steps_saved_and_two_more_are_four_steps(cls, jit, tmp_path):
    ids = np.random.default_rng(0).integers(0, 8, (4, 16, 2)).astype(np.int32)

    def steps(model, places):
        for place in places:
            model.train_on_batch(ids[place], ids[place].sum(axis=1).astype(np.float32))

    def compiled():
        keras.utils.set_random_seed(0)
        model = model_of(8)
        model.compile(cls(0.02, epsilon=1e-6), loss="mse", jit_compile=jit)
        return model

    whole, half = compiled(), compiled()
    steps(whole, range(4))
    steps(half, range(2))
    half.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(again.optimizer, cls) and again.optimizer.get_config() == half.optimizer.get_config()
    steps(again, range(2, 4))
    for one, other in zip(
        whole.variables + whole.optimizer.variables, again.variables + again.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


@pytest.mark.parametrize("cls", [RowAdam, RowAdagrad])
def test_mixed_precision(cls):
    # computed in bfloat16, kept and moved in float32: a step of 1e-4 on 1 would be lost in bfloat16
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,), dtype="int32")
    rows = keras.layers.Embedding(8, 4, embeddings_initializer="ones", dtype="mixed_bfloat16")(inputs)
    output = keras.layers.Dense(1, dtype="mixed_bfloat16")(keras.layers.Flatten()(rows))
    model = keras.Model(inputs, output)
    model.compile(cls(1e-4), loss="mse")
    model.train_on_batch(np.array([[1, 2], [1, 3]], np.int32), np.array([5.0, 5.0], np.float32))
    moved = np.abs(model.layers[1].embeddings.numpy() - 1)
    assert (moved[[1, 2, 3]] > 0).all() and (moved[[1, 2, 3]] < 1e-3).all() and (moved[[0, 4, 5, 6, 7]] == 0).all()


@pytest.mark.parametrize("cls", [RowAdam, RowAdagrad])
def test_time_does_not_grow_with_the_table(cls):
    # relative and loose: 500 times the rows may not cost 20 times the time (dense Adam: hundreds)
    seconds = []
    for rows in (2_000, 1_000_000):
        variable, optimizer = keras.Variable(np.zeros((rows, 16)), dtype="float32"), cls()
        ids, values = np.arange(1000), np.ones((1000, 16))
        step(optimizer, variable, ids, values)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            step(optimizer, variable, ids, values)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    assert seconds[1] < 20 * seconds[0]


@pytest.mark.parametrize("cls", [RowAdam, RowAdagrad])
@pytest.mark.parametrize("option", [dict(clipnorm=1.0), dict(weight_decay=0.1), dict(use_ema=True)])
def test_rejects_what_touches_every_row(cls, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        cls(**option)


def test_rejects_amsgrad():
    with pytest.raises(ValueError, match="amsgrad"):
        RowAdam(amsgrad=True)


@pytest.mark.parametrize("optimizer", [RowAdam(0.02, epsilon=1e-6), RowAdagrad(0.02, initial_accumulator_value=0.5)])
def test_config_round_trip(optimizer):
    assert type(optimizer).from_config(optimizer.get_config()).get_config() == optimizer.get_config()


def test_the_rate_falls_within_each_pass_by_hand():
    # 0.4 (1 - 0.75 * step / 3): 0.4, 0.3, 0.2; then the next pass
    schedule = PassDecay(0.4, steps=3, final=0.25)
    assert [float(schedule(step)) for step in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.4, 0.3])


def test_a_schedule_is_saved_with_its_optimizer():
    again = RowAdam.from_config(RowAdam(PassDecay(0.4, steps=3)).get_config())
    assert again._learning_rate.get_config() == {"initial_learning_rate": 0.4, "steps": 3, "final": 0.01}


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ((0.0, 3), "`initial_learning_rate` should be positive. Received: 0.0"),
        ((float("nan"), 3), "`initial_learning_rate` should be positive"),
        ((0.1, 0), "`steps` should be a positive integer. Received: steps=0"),
        ((0.1, 3, 1.5), r"`final` should be in \[0, 1\]. Received: final=1.5"),
    ],
)
def test_schedules_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        PassDecay(*arguments)
