import keras
import numpy as np
import pytest
import tensorflow as tf

from lookalike import AttentionMerge, GlobalAttention, LocalAttention


def test_merge_by_hand():
    layer = AttentionMerge(1)
    layer.build((None, 2, 2))
    layer.set_weights([np.array([[1.0, 0.0]]), np.array([[2.0]])])
    # W1 H^T = (0, 1); tanh = (0, 0.76159); W2 u = (0, 1.52319); softmax: e^1.52319 = 4.58682 -> (0.17899, 0.82101)
    # a H = (0.82101 * 1, 0.17899 * 5 + 0.82101 * 7) = (0.82101, 6.64202)
    fields = np.array([[[0.0, 5.0], [1.0, 7.0]]], np.float32)
    np.testing.assert_allclose(layer.attention(fields), [[0.17899, 0.82101]], atol=1e-5)
    np.testing.assert_allclose(layer(fields), [[0.82101, 6.64202]], atol=1e-5)
    assert [w.shape for w in layer.weights] == [(1, 2), (1, 1)]


def test_global_by_hand():
    layer = GlobalAttention(1)
    layer.build((None, None, 2))
    layer.set_weights([np.array([[1.0, 0.0]]), np.array([[1.0]])])
    # tanh(E W^T) w = (tanh 1, 0) = (0.76159, 0); e^0.76159 = 2.14168 -> (0.68170, 0.31830)
    # a E = (0.68170, 0.68170 * 2 + 0.31830 * 4) = (0.68170, 2.63660)
    centroids = np.array([[[1.0, 2.0], [0.0, 4.0]]], np.float32)
    np.testing.assert_allclose(layer(centroids), [[0.68170, 2.63660]], atol=1e-5)


@pytest.mark.parametrize(("squash", "expected"), [("tanh", [0.61351, 0.38649]), ("linear", [0.62246, 0.37754])])
def test_local_by_hand(squash, expected):
    layer = LocalAttention(squash)
    layer.build((None, 2), (None, None, 2))
    layer.set_weights([np.array([[0.0, 1.0], [0.0, 0.0]])])
    # W u = (0.5, 0); E = identity, so the logits are tanh(0.5) = 0.46212 and 0: e^0.46212 = 1.58743 -> 0.61351;
    # without tanh: e^0.5 = 1.64872 -> 0.62246
    user, centroids = np.array([[3.0, 0.5]], np.float32), np.eye(2, dtype=np.float32)[None]
    np.testing.assert_allclose(layer(user, centroids), [expected], atol=1e-5)


def test_tanh_caps_one_of_twenty_at_028():
    layer = LocalAttention(kernel_initializer="identity")
    centroids = np.full((1, 20, 1), -100.0, np.float32)
    centroids[0, 0] = 100.0
    # e / (e + 19 / e) = 2.71828 / 9.70804
    layer.build((1, 1), (1, 20, 1))
    np.testing.assert_allclose(layer.attention(np.ones((1, 1), np.float32), centroids)[0, 0], 0.28, atol=5e-4)


def test_one_user_broadcasts_over_items():
    rng = np.random.default_rng(0)
    user, centroids = rng.normal(size=(1, 6)).astype("float32"), rng.normal(size=(5, 3, 6)).astype("float32")
    mask = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32)
    layer = LocalAttention()
    repeated = layer(np.repeat(user, 5, axis=0), centroids, mask=mask)
    np.testing.assert_allclose(layer(user, centroids, mask=mask), repeated, atol=1e-6)


@pytest.mark.parametrize("layer", [AttentionMerge(4), GlobalAttention(4)], ids=["merge", "global"])
def test_masked_entries_are_as_if_absent(layer):
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 5, 3)).astype("float32")
    mask = np.array([[1, 1, 0, 1, 0]] * 2)
    np.testing.assert_allclose(layer(values, mask=mask), layer(values[:, [0, 1, 3]]), atol=1e-6)
    weights = np.asarray(layer.attention(values, mask))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.all(weights[:, [2, 4]] == 0)


@pytest.mark.parametrize("kind", ["merge", "global", "local"])
def test_all_masked_gives_zeros_and_finite_gradients(kind):
    layer = {"merge": AttentionMerge, "global": GlobalAttention, "local": LocalAttention}[kind]()
    values = tf.Variable(np.random.default_rng(2).normal(size=(2, 4, 3)).astype("float32"))
    user = [tf.ones((2, 3))] if kind == "local" else []
    with tf.GradientTape() as tape:
        outputs = layer(*user, values, mask=np.array([[0, 0, 0, 0], [1, 0, 1, 1]]))
        loss = tf.reduce_sum(outputs**2)
    assert np.all(outputs[0] == 0) and np.any(outputs[1] != 0)
    gradients = tape.gradient(loss, [values, *layer.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_any_number_of_centroids():
    layer = GlobalAttention(4)
    assert layer(np.ones((2, 20, 3), np.float32)).shape == (2, 3)
    assert layer(np.ones((2, 100, 3), np.float32)).shape == (2, 3)


def test_rejects_bad_input():
    with pytest.raises(ValueError, match="`units` should be a positive integer. Received: units=0"):
        AttentionMerge(0)
    with pytest.raises(ValueError, match="units=1.5"):
        GlobalAttention(1.5)
    with pytest.raises(ValueError, match=r"`inputs` should have shape \[batch, fields, width\]"):
        AttentionMerge()(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="`user` should have shape"):
        LocalAttention()(np.ones((2, 4), np.float32), np.ones((2, 5, 3), np.float32))


@pytest.mark.parametrize(
    "layer",
    [AttentionMerge(7, "he_normal"), GlobalAttention(5), LocalAttention("tempered", True)],
    ids=["merge", "global", "local"],
)
def test_round_trips(layer, tmp_path):
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    values, mask = keras.Input((None, 3), name="values"), keras.Input((None,), name="present")
    inputs = {"values": values, "present": mask}
    arrays = {"values": np.random.default_rng(3).normal(size=(2, 4, 3)).astype("float32"), "present": np.ones((2, 4))}
    if isinstance(layer, LocalAttention):
        inputs["user"] = keras.Input((3,), name="user")
        arrays["user"] = np.ones((2, 3), np.float32)
        model = keras.Model(inputs, layer(inputs["user"], values, mask=mask))
    else:
        model = keras.Model(inputs, layer(values, mask=mask))
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(restored.predict(arrays, verbose=0), model.predict(arrays, verbose=0))
