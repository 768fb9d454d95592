import keras
import numpy as np
import pytest
import tensorflow as tf

from lookalike import (
    CandidateLogits,
    Field,
    UserRepresentation,
    build_next_item_model,
    log_uniform_probabilities,
    sample_negatives,
    user_inputs,
)

FIELDS = (
    Field("user_age", "categorical", size=5),
    Field("behavior_read", "multi", "item", 30),
    Field("behavior_liked", "multi", "item", 30),
    Field("user_days", "numeric"),
    Field("statistic_user", "numeric", size=2),
)
NAN = float("nan")


def features():
    """A full user, one with a single behaviour, one with nothing at all."""
    return {
        "user_age": np.array([3, 0, 0], np.int32),
        "behavior_read": np.array([[4, 7, 0], [9, 0, 0], [0, 0, 0]], np.int32),
        "behavior_liked": np.array([[4, 0], [0, 0], [0, 0]], np.int32),
        "user_days": np.array([0.5, NAN, NAN], np.float32),
        "statistic_user": np.array([[0.1, NAN], [NAN, NAN], [NAN, NAN]], np.float32),
    }


def test_concat_by_hand():
    fields = [Field("a", "categorical", size=3), Field("b", "multi", size=4), Field("x", "numeric")]
    layer = UserRepresentation(fields, dim=3, field_dim=1, hidden=(), merge="concat", dropout=0)
    layer.build({"a": (None,), "b": (None, None), "x": (None,)})
    layer.tables["a"].set_weights([np.array([[9.0], [9.0], [2.0]])])
    layer.tables["b"].set_weights([np.array([[9.0], [9.0], [1.0], [4.0]])])
    layer.numeric_projection.set_weights([np.array([[10.0]]), np.array([1.0])])
    layer.dense_layers[0].set_weights([np.eye(3), np.zeros(3)])
    outputs = layer(
        {
            "a": np.array([2, 0]),
            "b": np.array([[2, 3, 3, 0], [0, 0, 0, 0]]),
            "x": np.array([0.5, NAN], np.float32),
        }
    )
    # Row 0: 2; the mean of 1, 4, 4 = 3 (padding does not count); 10 * 0.5 + 1 = 6. Row 1: nothing, not even the bias.
    np.testing.assert_allclose(outputs, [[2, 3, 6], [0, 0, 0]], atol=1e-6)


def test_field_attention_masks_empty_fields():
    layer = UserRepresentation(FIELDS, dim=8)
    outputs, weights = np.asarray(layer(features())), np.asarray(layer.field_attention(features()))
    assert outputs.shape == (3, 8) and np.isfinite(outputs).all()
    assert layer.field_names == ("user_age", "behavior_read", "behavior_liked", "numeric")
    np.testing.assert_array_equal(weights > 0, [[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(weights.sum(-1), [1, 1, 0], atol=1e-6)


def test_padding_does_not_matter():
    layer, inputs = UserRepresentation(FIELDS, dim=8), features()
    longer = {**inputs, "behavior_read": np.pad(inputs["behavior_read"], ((0, 0), (2, 3)))}
    np.testing.assert_allclose(layer(longer), layer(inputs), atol=1e-6)


@pytest.mark.parametrize("merge", ["attention", "concat"])
def test_gradients_are_row_sparse_and_finite(merge):
    model = build_next_item_model(UserRepresentation(FIELDS, dim=8, merge=merge), 30)
    with tf.GradientTape() as tape:
        logits = model({**features(), "candidates": np.arange(33).reshape(3, 11) % 30})
        loss = tf.reduce_sum(keras.ops.logsumexp(logits, axis=-1))
    names = [variable.path for variable in model.trainable_variables]
    for name, gradient in zip(names, tape.gradient(loss, model.trainable_variables), strict=True):
        assert isinstance(gradient, tf.IndexedSlices) == name.endswith("embeddings"), name
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), name
    # Two behaviours of one vocabulary share one table.
    assert sum(name.endswith("item_table/embeddings") for name in names) == 2  # the users' and the candidates'


def test_candidate_logits_by_hand():
    layer = CandidateLogits(3)
    layer.build((None, 2), (None, 2))
    layer.set_weights([np.array([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])])
    # (1, 2).(2, 5) = 12; (3, -1).(2, 5) = 1
    np.testing.assert_allclose(layer(np.array([[2.0, 5.0]], np.float32), np.array([[1, 2]])), [[12, 1]])


def test_corrected_logits_by_hand():
    layer = CandidateLogits(4, correct_sampling=True)
    layer.build((None, 1), (None, 2))
    layer.set_weights([np.array([[9.0], [9.0], [1.0], [2.0]])])
    # Two items: chances log 2 / log 3 = 0.63093 and (log 3 - log 2) / log 3 = 0.36907, logarithms -0.46056, -0.99677.
    # (3 * 2 + 0.99677, 3 * 1 + 0.46056)
    np.testing.assert_allclose(layer(np.array([[3.0]]), np.array([[3, 2]])), [[6.99677, 3.46056]], atol=1e-5)


def test_correction_is_the_samplers_own_chance():
    layer, plain = (CandidateLogits(52, correct_sampling=on) for on in (True, False))
    user, candidates = np.ones((1, 4), np.float32), 2 + np.arange(50)[None]
    plain.build(user.shape, candidates.shape)
    layer.build(user.shape, candidates.shape)
    layer.set_weights(plain.get_weights())
    found = np.asarray(plain(user, candidates)) - np.asarray(layer(user, candidates))
    np.testing.assert_allclose(found[0], np.log(log_uniform_probabilities(50)), atol=1e-5)


def test_removed_hits_have_no_part():
    layer = CandidateLogits(5, remove_hits=True)
    logits = np.asarray(layer(np.ones((2, 3), np.float32), np.array([[2, 3, 2, 4], [3, 2, 2, 4]])))
    chances = np.asarray(tf.nn.softmax(logits))
    np.testing.assert_array_equal(chances == 0, [[0, 0, 1, 0], [0, 0, 0, 0]])


def test_three_behaviour_fields_are_three_fields_of_one_table():
    fields = [Field(f"behavior_{name}", "multi", "item", 6) for name in ("read", "watched", "bought")]
    layer = UserRepresentation(fields, dim=4, field_dim=2)
    inputs = {
        "behavior_read": np.array([[2, 3], [2, 3], [0, 0]]),
        "behavior_watched": np.array([[4, 0], [0, 0], [0, 0]]),
        "behavior_bought": np.array([[5, 2], [0, 0], [4, 0]]),
    }
    outputs, weights = np.asarray(layer(inputs)), np.asarray(layer.field_attention(inputs))
    assert layer.field_names == ("behavior_read", "behavior_watched", "behavior_bought") and len(layer.tables) == 1
    np.testing.assert_array_equal(weights > 0, [[1, 1, 1], [1, 0, 0], [0, 0, 1]])
    # Each field speaks with its own values; the same values in another field are another user only by the weights.
    moved = {**inputs, "behavior_bought": np.array([[5, 3], [0, 0], [5, 0]])}
    changed = np.abs(np.asarray(layer(moved)) - outputs).max(axis=1)
    assert changed[0] > 0 and changed[1] == 0 and changed[2] > 0


def test_a_user_with_nothing_has_one_defined_embedding():
    layer, full = UserRepresentation(FIELDS, dim=8), features()
    nothing = {name: value[[2, 2]] for name, value in full.items()}
    layer(nothing)
    for dense in layer.dense_layers:
        dense.bias.assign(np.arange(dense.units, dtype=np.float32) / dense.units)
    outputs = np.asarray(layer(nothing))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    # What the MLP makes of zeros: its biases, which training moves.
    first, last = layer.dense_layers
    expected = np.maximum(first.bias, 0) @ np.asarray(last.kernel) + np.asarray(last.bias)
    np.testing.assert_allclose(outputs[0], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("merge", ["attention", "concat"])
def test_learns_planted_tastes(merge):
    """Three groups read 20 items each: two thirds of the negatives can be told, a loss of log(1 + 10 / 3) = 1.47."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    n, per_group = 3000, 20
    group = rng.integers(3, size=n)
    read = 2 + group[:, None] + 3 * rng.integers(per_group, size=(n, 6))
    positive = 2 + group + 3 * rng.integers(per_group, size=n)
    inputs = {
        "age": rng.integers(2, 6, size=n).astype("int32"),
        "read": np.where(rng.random((n, 6)) < 0.7, read, 0).astype("int32"),
        "days": rng.random(n).astype("float32"),
        "candidates": np.column_stack([positive, 2 + sample_negatives(60, (n, 10), rng)]).astype("int32"),
    }
    fields = [Field("age", "categorical", size=6), Field("read", "multi", "item", 62), Field("days", "numeric")]
    model = build_next_item_model(UserRepresentation(fields, dim=16, field_dim=8, hidden=(32,), merge=merge), 62)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(inputs, np.zeros(n, np.int32), batch_size=128, epochs=4, validation_split=0.2, verbose=0)
    assert history.history["val_loss"][-1] < 1.6 < np.log(11)


def test_round_trips(tmp_path):
    layer = UserRepresentation(FIELDS, dim=8, field_dim=4, hidden=(6, 5), dropout=0.2, activation="prelu")
    assert UserRepresentation.from_config(layer.get_config()).get_config() == layer.get_config()
    model = build_next_item_model(layer, 30, correct_sampling=True, remove_hits=True)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    inputs = {**features(), "candidates": np.arange(33).reshape(3, 11) % 30}
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_array_equal(restored.predict(inputs, verbose=0), expected)
    assert expected.shape == (3, 11)


def test_inputs_have_the_types_of_the_fields():
    inputs = user_inputs(FIELDS)
    assert {name: (tuple(x.shape), x.dtype) for name, x in inputs.items()} == {
        "user_age": ((None,), "int32"),
        "behavior_read": ((None, None), "int32"),
        "behavior_liked": ((None, None), "int32"),
        "user_days": ((None,), "float32"),
        "statistic_user": ((None, 2), "float32"),
    }


def test_rejects_bad_input():
    with pytest.raises(ValueError, match="`kind` should be .* Received: kind='text'"):
        Field("a", "text")
    with pytest.raises(ValueError, match="`size` of the multi field 'a' should be at least 2. Received: size=0"):
        Field("a", "multi")
    with pytest.raises(ValueError, match="`name`"):
        Field("candidates", "numeric")
    one = Field("a", "categorical", size=3)
    for arguments, message in [
        ({"fields": []}, "at least one field"),
        ({"fields": [one, one]}, r"distinct names. Received twice: \['a'\]"),
        ({"fields": [one, Field("b", "multi", "a", 4)]}, "one size. Received: 'a' with sizes 3 and 4"),
        ({"fields": [one], "dim": 0}, "`dim` should be a positive integer. Received: dim=0"),
        ({"fields": [one], "hidden": (8, 0)}, "`hidden`"),
        ({"fields": [one], "merge": "sum"}, "`merge` should be 'attention' or 'concat'. Received: merge='sum'"),
        ({"fields": [one], "activation": "tanh"}, "`activation` should be 'relu' or 'prelu'"),
        ({"fields": [one], "dropout": 1.0}, r"`dropout` should be in \[0, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            UserRepresentation(**arguments)
    with pytest.raises(ValueError, match=r"Missing: \['a'\]"):
        UserRepresentation([one])({"b": np.zeros(2, np.int32)})
    with pytest.raises(ValueError, match="needs merge='attention'"):
        UserRepresentation([one], merge="concat").field_attention({"a": np.zeros(2, np.int32)})
    with pytest.raises(ValueError, match="`num_items` should be at least 3. Received: num_items=2"):
        CandidateLogits(2)
    with pytest.raises(ValueError, match="`candidates` should be at least 2"):
        build_next_item_model(UserRepresentation([one]), 9, candidates=1)
