import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm import Feature, SharedEmbedding, WideLinear

FEATURES = (
    Feature("city", "categorical", size=3),
    Feature("item_id", "categorical", vocabulary="item", size=4),
    Feature("read", "multi", vocabulary="item", size=4),
    Feature("age", "numeric"),
    Feature("rate", "numeric", size=2),
)
INPUTS = {
    "city": np.array([2, 0], np.int32),
    "item_id": np.array([3, 1], np.int32),
    "read": np.array([[2, 3, 0], [0, 0, 0]], np.int32),
    "age": np.array([0.5, 0.25], np.float32),
    "rate": np.array([[0.1, 0.2], [0.3, 0.4]], np.float32),
}


def built(layer):
    layer(INPUTS)
    return layer


def test_embedding_known_values():
    # rows 0-2 are city, 3-6 are item; row r holds (r, 10 r)
    layer = built(SharedEmbedding(FEATURES, 2))
    layer.table.assign(np.stack([np.arange(7.0), 10 * np.arange(7.0)], axis=1))
    # example 0: city 2 -> row 2; item 3 -> row 6; read {2, 3} -> rows 5, 6 -> mean 5.5
    # example 1: city 0 -> row 0 (missing is an ordinary row); item 1 -> row 4; read empty -> zeros
    expected = [[2, 20, 6, 60, 5.5, 55, 0.5, 0.1, 0.2], [0, 0, 4, 40, 0, 0, 0.25, 0.3, 0.4]]
    np.testing.assert_allclose(layer(INPUTS), expected, rtol=1e-6)


def test_wide_known_values():
    layer = built(WideLinear(FEATURES))
    np.testing.assert_array_equal(layer(INPUTS), np.zeros((2, 2)))  # starts at zero
    layer.table.assign(np.stack([np.arange(7.0), 10 * np.arange(7.0)], axis=1))
    layer.kernel.assign([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    # task 0: 2 + 6 + 5.5 + 2 * .5 = 14.5 and 0 + 4 + 0 + 2 * .25 = 4.5
    # task 1: 20 + 60 + 55 + .1 + .2 = 135.3 and 0 + 40 + 0 + .3 + .4 = 40.7
    np.testing.assert_allclose(layer(INPUTS), [[14.5, 135.3], [4.5, 40.7]], rtol=1e-6)


WEIGHTED = (FEATURES[1], Feature("read", "multi", vocabulary="item", size=4, weights="read_weight"))


@pytest.mark.parametrize("kind", [lambda: SharedEmbedding(WEIGHTED, 2), lambda: WideLinear(WEIGHTED)])
def test_weights_known_values(kind):
    inputs = {
        "item_id": np.array([1, 1, 1], np.int32),
        "read": np.array([[2, 3, 0], [2, 3, 2], [0, 0, 0]], np.int32),
        "read_weight": np.array([[1, 3, 9], [0, 0, 0], [1, 1, 1]], np.float32),
    }
    layer = kind()
    layer(inputs)
    layer.table.assign(np.stack([np.arange(4.0), 10 * np.arange(4.0)], axis=1))
    # one table for both features: rows 0 to 3 are item. (1 * 2 + 3 * 3) / 4 = 2.75, whatever padding weighs;
    # weights of 0 only: 0; padding only: 0
    read = np.array([[2.75, 27.5], [0, 0], [0, 0]])
    item = np.array([[1.0, 10.0]] * 3)
    expected = np.concatenate([item, read], axis=1) if isinstance(layer, SharedEmbedding) else item + read
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.floats(1 / 64, 64, width=32))
def test_equal_weights_are_the_plain_mean(read, weight):
    plain, weighted = SharedEmbedding(FEATURES[1:3], 2), SharedEmbedding(WEIGHTED, 2)
    inputs = {"item_id": np.array([2], np.int32), "read": np.array([read], np.int32)}
    inputs["read_weight"] = np.full((1, len(read)), weight, np.float32)
    plain(inputs), weighted(inputs)
    weighted.table.assign(plain.table)
    np.testing.assert_allclose(weighted(inputs), plain(inputs), rtol=1e-5, atol=1e-7)


def test_l2_is_of_the_rows_and_not_of_their_weights():
    inputs = {name: INPUTS[name] for name in ("item_id", "read")}
    inputs["read_weight"] = np.full((2, 3), 7, np.float32)
    plain, weighted = SharedEmbedding(FEATURES[1:3], 2, l2=0.1), SharedEmbedding(WEIGHTED, 2, l2=0.1)
    plain(inputs, training=True), weighted(inputs, training=True)
    weighted.table.assign(plain.table)
    weighted(inputs, training=True)
    np.testing.assert_allclose(weighted.losses[-1], plain.losses[-1], rtol=1e-6)


def test_index_past_its_vocabulary_is_out_of_vocabulary():
    layer = built(SharedEmbedding(FEATURES[:2], 2))
    ids = {"city": np.array([3, -1, 1], np.int32), "item_id": np.array([9, 1, 1], np.int32)}
    out = layer(ids).numpy()
    np.testing.assert_array_equal(out[0], out[2])
    np.testing.assert_array_equal(out[1], out[2])


def test_one_gather_and_a_sparse_gradient():
    layer = built(SharedEmbedding(FEATURES, 2))

    @tf.function
    def forward(inputs):
        return layer(inputs)

    graph = forward.get_concrete_function({k: tf.constant(v) for k, v in INPUTS.items()}).graph
    assert [op.type for op in graph.get_operations() if "Gather" in op.type] == ["ResourceGather"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUTS))
    gradient = tape.gradient(loss, layer.table.value)
    assert isinstance(gradient, tf.IndexedSlices)
    dense = tf.convert_to_tensor(gradient).numpy()
    # row 5 (item 2): half of one mean; row 3 (padding of read) gets nothing
    np.testing.assert_allclose(dense[[3, 5, 6], 0], [0.0, 0.5, 1.5])


def test_l2_is_of_the_rows_looked_up_and_in_training_only():
    layer = SharedEmbedding(FEATURES, 2, l2=0.1)
    layer(INPUTS, training=False)
    assert not layer.losses
    layer.table.assign(np.stack([np.arange(7.0), np.zeros(7)], axis=1))
    layer(INPUTS, training=True)
    # 0.1 * (2^2 + 0 + 6^2 + 4^2 + 5^2 + 6^2) / 2 examples
    np.testing.assert_allclose(layer.losses[0], 0.1 * (4 + 36 + 16 + 25 + 36) / 2, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 4))
def test_multi_ignores_padding_and_order(read, padding):
    layer = built(SharedEmbedding(FEATURES[2:3], 3))
    plain = layer({"read": np.array([read], np.int32)})
    padded = layer({"read": np.array([[0] * padding + read[::-1]], np.int32)})
    np.testing.assert_allclose(plain, padded, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="", kind="numeric"), "`name`"),
        (dict(name="a", kind="text"), "kind='text'"),
        (dict(name="a", kind="categorical", size=1), "size=1"),
        (dict(name="a", kind="numeric", vocabulary="v"), "vocabulary='v'"),
        (dict(name="a", kind="numeric", weights="w"), "weights='w'"),
        (dict(name="conversion", kind="numeric"), "like a label.*name='conversion'"),
        (dict(name="a", kind="multi", size=4, weights="value"), "like a label.*weights='value'"),
    ],
)
def test_feature_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        Feature(**arguments)


def test_layers_reject():
    with pytest.raises(ValueError, match="distinct names"):
        SharedEmbedding([FEATURES[0], FEATURES[0]])
    with pytest.raises(ValueError, match="distinct names and weights"):
        SharedEmbedding([FEATURES[0], Feature("read", "multi", size=4, weights="city")])
    with pytest.raises(ValueError, match=r"without \['read_weight'\]"):
        SharedEmbedding(WEIGHTED)(INPUTS)
    with pytest.raises(ValueError, match="one `size`"):
        SharedEmbedding([FEATURES[1], Feature("x", "multi", vocabulary="item", size=5)])
    with pytest.raises(ValueError, match="a categorical or a multi"):
        WideLinear([FEATURES[3]])
    with pytest.raises(ValueError, match="Received: 0"):
        SharedEmbedding(FEATURES, 0)
    with pytest.raises(ValueError, match="l2=-1"):
        SharedEmbedding(FEATURES, 2, l2=-1)
    with pytest.raises(ValueError, match=r"without \['rate'\]"):
        SharedEmbedding(FEATURES)({name: value for name, value in INPUTS.items() if name != "rate"})


@pytest.mark.parametrize("layer", [SharedEmbedding(FEATURES, 4, l2=0.01), WideLinear(FEATURES, 3)])
def test_config_and_file_round_trip(layer, tmp_path):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    inputs = {
        f.name: keras.Input(f.input_shape, name=f.name, dtype="float32" if f.kind == "numeric" else "int32")
        for f in FEATURES
    }
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(INPUTS), again(INPUTS))
