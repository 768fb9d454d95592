import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

import lookalike
from lookalike import LookalikeModel, SimilarityLogit, build_similarity_trainer, cluster, cosine, leave_one_out


def rows(batch=4, k=3, user_dim=6, hidden=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "user": rng.normal(size=(batch, user_dim)).astype("float32"),
        "centroids": rng.normal(size=(batch, k, hidden)).astype("float32"),
        "centroid_counts": np.ones((batch, k), np.float32),
    }


def trainer_rows(**kwargs):
    inputs = rows(hidden=6, **kwargs)  # untransformed centroids: as wide as a user
    mask = inputs.pop("centroid_counts")
    own = inputs["centroids"][:, 0] + 0.5
    return {**inputs, "counts": 4 * mask, "own_cluster": np.full(len(own), -1, np.int32), "own_embedding": own}


def test_cosine_by_hand():
    # (3, 4).(4, 3) / (5 * 5) = 0.96
    np.testing.assert_allclose(cosine(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])), [0.96], atol=1e-6)
    a = tf.Variable([[0.0, 0.0], [3.0, 4.0]])
    with tf.GradientTape() as tape:
        values = cosine(a, tf.constant([[1.0, 2.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(values, [0, 0])
    np.testing.assert_array_equal(tape.gradient(values, a), np.zeros((2, 2)))


def test_similarity_by_hand():
    layer = LookalikeModel(2, hidden=2, dropout=0)
    layer.build()
    layer.projection.set_weights([np.eye(2), np.zeros(2)])
    layer.slope.assign([0.25, 0.25])
    layer.global_attention.query.assign(np.zeros((64, 1)))
    layer.local_attention.kernel.assign(np.eye(2))
    # transform (1, -4) = (1, -1) by PReLU with slope 1/4. Global: equal weights on (1, 0) and (0, 1): cos = 0.
    # Local: logits tanh(1) = 0.76159 and -0.76159; weights 0.82101, 0.17899 (e^1.52319 = 4.58682)
    # cos = (0.82101 - 0.17899) / (sqrt 2 * sqrt(0.82101^2 + 0.17899^2)) = 0.64202 / (1.41421 * 0.84029) = 0.54026
    inputs = {"user": np.array([[1.0, -4.0]]), "centroids": np.eye(2)[None], "centroid_counts": np.ones((1, 2))}
    inputs = {name: value.astype("float32") for name, value in inputs.items()}
    np.testing.assert_allclose(layer(inputs), [0.7 * 0.54026], atol=1e-5)
    np.testing.assert_allclose(layer.transform(np.array([[1.0, -4.0]], np.float32)), [[1, -1]])


def by_hand(**switches):
    """A model of `[1, 0]` and `[0, 1]`, of 3 seeds and 1, seen by the user `[1, 0]` through identities."""
    layer = LookalikeModel(2, hidden=2, dropout=0, **switches)
    layer.build()
    layer.projection.set_weights([np.eye(2), np.zeros(2)])
    if layer.local_attention is not None:
        layer.global_attention.query.assign(np.zeros((64, 1)))
        layer.local_attention.kernel.assign(np.eye(2))
    inputs = {"user": np.array([[1, 0]]), "centroids": np.eye(2)[None], "centroid_counts": np.array([[3, 1]])}
    return layer, {name: value.astype("float32") for name, value in inputs.items()}


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        # Weights (a, b) of the centroids: cos = a / sqrt(a^2 + b^2), so only a : b counts. Global: 1 : 1, cos .70711.
        # Local, tanh(1) = 0.76159 and 0: e^0.76159 = 2.14168 : 1, cos .90609; .3 * .70711 + .7 * .90609
        ({}, 0.84640),
        # e^1 = 2.71828 : 1, cos .93851; .3 * .70711 + .7 * .93851
        ({"attention": "linear"}, 0.86909),
        # 1 : 1 in both
        ({"attention": "average"}, 0.70711),
        # 3 : 1, cos 3 / sqrt 10: the mean of the four seeds
        ({"attention": "average", "size_bias": True}, 0.94868),
        # Global 3 : 1; local 3 * 2.14168 = 6.42504 : 1, cos .98810; .3 * .94868 + .7 * .98810
        ({"size_bias": True}, 0.97628),
        # .5 * .70711 + .5 * .90609
        ({"alpha": 0.5}, 0.80660),
        # learned, it starts at .3
        ({"alpha": "learned"}, 0.84640),
    ],
)
def test_switches_by_hand(switches, expected):
    layer, inputs = by_hand(**switches)
    np.testing.assert_allclose(layer(inputs), [expected], atol=1e-5)


def test_temperature_by_hand():
    layer, inputs = by_hand(attention="tempered")
    np.testing.assert_allclose(layer(inputs), [0.84640], atol=1e-5)  # it starts at 1, as tanh
    # e^(4 * 0.76159) = 21.0379 : 1, cos .99887; .3 * .70711 + .7 * .99887
    layer.local_attention.temperature.assign(4.0)
    np.testing.assert_allclose(layer(inputs), [0.91134], atol=1e-5)


def test_learned_switches_have_gradients():
    layer, inputs = LookalikeModel(6, hidden=5, alpha="learned", attention="tempered", size_bias=True), rows()
    assert abs(layer.global_share() - 0.3) < 1e-6
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs))
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    layer.share_logit.assign(0.0)
    assert layer.global_share() == 0.5 and LookalikeModel(6, attention="average").global_share() == 1.0


def test_trained_with_few_centroids_serves_many():
    layer = LookalikeModel(6, hidden=5, attention="tempered", size_bias=True)
    assert layer(rows(k=3)).shape == layer(rows(k=100)).shape == (4,)
    # Each centroid twice, with half the seeds: nothing changes.
    inputs = rows(k=3)
    inputs["centroid_counts"] = np.array([[4, 2, 6]] * 4, np.float32)
    twice = {"centroids": np.tile(inputs["centroids"], (1, 2, 1)), "centroid_counts": np.full((4, 6), [2, 1, 3] * 2)}
    np.testing.assert_allclose(layer({**inputs, **twice}), layer(inputs), atol=1e-5)


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_one_user_against_many_items(activation):
    layer, inputs = LookalikeModel(6, hidden=5, activation=activation), rows(batch=7)
    one = {**inputs, "user": inputs["user"][:1]}
    many = {**inputs, "user": np.repeat(inputs["user"][:1], 7, axis=0)}
    values = np.asarray(layer(one))
    assert values.shape == (7,) and np.all(np.abs(values) <= 1)
    np.testing.assert_allclose(values, layer(many), atol=1e-6)
    ready = layer.summarize(inputs["centroids"], inputs["centroid_counts"])
    np.testing.assert_allclose(layer({**one, "global_embedding": ready}), values, atol=1e-6)


def test_without_centroids_similarity_is_zero_and_gradients_are_finite():
    keras.utils.set_random_seed(0)  # with others no unit of the third user may be above 0
    layer, inputs = LookalikeModel(6, hidden=5, activation="relu", dropout=0), rows()
    inputs["centroid_counts"][:2] = 0
    inputs["centroids"][0] = 0
    inputs["user"][3] = 0  # zero embedding, zero bias: a user without any length
    with tf.GradientTape() as tape:
        values = layer(inputs)
        loss = tf.reduce_sum(values)
    assert np.all(values[:2] == 0) and values[2] != 0 and values[3] == 0
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, layer.trainable_variables))


def test_a_masked_centroid_does_not_matter():
    layer, inputs = LookalikeModel(6, hidden=5), rows()
    more = np.concatenate([inputs["centroids"], np.full((4, 2, 5), 7, np.float32)], axis=1)
    mask = np.concatenate([inputs["centroid_counts"], np.zeros((4, 2), np.float32)], axis=1)
    np.testing.assert_allclose(layer({**inputs, "centroids": more, "centroid_counts": mask}), layer(inputs), atol=1e-6)


def test_leave_one_out_by_hand():
    centroids = np.array([[[2.0], [5.0], [0.0]]] * 3, np.float32)
    counts = np.array([[3, 1, 0]] * 3)
    own = np.array([[4.0], [5.0], [9.0]], np.float32)
    left, counts = leave_one_out(centroids, counts, np.array([0, 1, -1]), own)
    # Row 0: (3 * 2 - 4) / 2 = 1. Row 1: a cluster of one is masked. Row 2: no seed, nothing changes.
    np.testing.assert_allclose(np.asarray(left)[:, :, 0], [[1, 5, 0], [2, 5, 0], [2, 5, 0]])
    np.testing.assert_array_equal(counts, [[2, 1, 0], [3, 0, 0], [3, 1, 0]])


def test_leave_one_out_is_the_mean_of_the_others():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(200, 4)).astype("float32")
    clusters = cluster(points, np.array([0, 200]), 6)
    take = np.arange(0, 200, 17)
    labels = clusters.assignment[take]
    left, counts = leave_one_out(
        np.repeat(clusters.centroids, len(take), axis=0),
        np.repeat(clusters.counts, len(take), axis=0),
        labels,
        points[take],
    )
    for row, (seed, label) in enumerate(zip(take, labels, strict=True)):
        others = np.flatnonzero((clusters.assignment == label) & (np.arange(200) != seed))
        assert np.asarray(counts)[row, label] == len(others)
        np.testing.assert_allclose(np.asarray(left)[row, label], points[others].mean(0), atol=1e-5)
        rest = np.arange(6) != label
        np.testing.assert_array_equal(np.asarray(left)[row, rest], clusters.centroids[0, rest])


def test_logit_by_hand():
    model, inputs = LookalikeModel(6, hidden=5), trainer_rows()
    layer = SimilarityLogit(model, scale=3.0, bias=-1.5)
    seeds = model.transform(inputs["centroids"])
    similarity = model({"user": inputs["user"], "centroids": seeds, "centroid_counts": np.ones((4, 3), np.float32)})
    np.testing.assert_allclose(layer(inputs)[:, 0], 3 * np.asarray(similarity) - 1.5, atol=1e-5)


def test_gradient_reaches_the_shared_layer_through_the_seeds():
    """With the user's vector at 0 and no bias, only the centroids can move the projection."""
    model, inputs = LookalikeModel(6, hidden=5, dropout=0), trainer_rows()
    layer = SimilarityLogit(model)
    inputs = {**inputs, "user": np.zeros_like(inputs["user"])}
    model.build()
    model.projection.bias.assign(np.ones(5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs))
    assert np.abs(tape.gradient(loss, model.projection.kernel)).max() > 1e-4


def test_sample_weights_weight_rows():
    trainer, inputs = build_similarity_trainer(LookalikeModel(6, hidden=5)), trainer_rows()
    trainer.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    label, weight = np.array([1, 0, 1, 0], np.float32), np.array([1, 0, 0, 2], np.float32)
    logit = trainer.predict(inputs, verbose=0)[:, 0]
    losses = np.log1p(np.exp(-logit * (2 * label - 1)))
    got = trainer.evaluate(inputs, label, sample_weight=weight, verbose=0)
    np.testing.assert_allclose(got, np.mean(losses * weight), rtol=1e-5)


@pytest.mark.slow
def test_learns_two_groups():
    """Users of two groups in a rotated, noisy space; each item is liked by one group, at 70 % against 2 %."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    users, items, dim = 600, 20, 12
    group, taste = rng.integers(2, size=users), np.arange(items) % 2
    embeddings = (rng.normal(size=(2, dim))[group] + rng.normal(size=(users, dim))).astype("float32")
    click = rng.random((users, items)) < np.where(group[:, None] == taste, 0.7, 0.02)
    model = LookalikeModel(dim, hidden=8)
    trainer = build_similarity_trainer(model, bias=-3.0)
    trainer.compile(keras.optimizers.Adam(0.01), keras.losses.BinaryCrossentropy(from_logits=True))
    train = np.arange(users) < 400
    seeds, seed_item = np.nonzero(click & train[:, None])
    order = np.argsort(seed_item, kind="stable")
    seeds, seed_item = seeds[order], seed_item[order]
    offsets = np.searchsorted(seed_item, np.arange(items + 1))

    def of(who):
        user, item = (part.ravel() for part in np.meshgrid(who, np.arange(items), indexing="ij"))
        return user, item, click[user, item].astype("float32")

    areas = []
    for _ in range(4):
        transformed = np.asarray(model.transform(embeddings))
        clusters = cluster(transformed[seeds], offsets, 4)
        own_cluster = np.full((users, items), -1, np.int32)
        own_cluster[seeds, seed_item] = clusters.assignment
        place = seed_item * 4 + clusters.assignment
        sums = np.zeros((items * 4, dim))
        np.add.at(sums, place, embeddings[seeds])
        raw = (sums / np.maximum(np.bincount(place, minlength=items * 4), 1)[:, None]).reshape(items, 4, dim)
        user, item, label = of(np.flatnonzero(~train))
        mask = (clusters.counts > 0).astype(np.float32)
        similarity = model(
            {"user": embeddings[user], "centroids": clusters.centroids[item], "centroid_counts": mask[item]}
        )
        areas.append(roc_auc_score(label, similarity))
        user, item, label = of(np.flatnonzero(train))
        inputs = {
            "user": embeddings[user],
            "centroids": raw[item].astype(np.float32),
            "counts": clusters.counts[item],
            "own_cluster": own_cluster[user, item],
            "own_embedding": embeddings[user],
        }
        trainer.fit(inputs, label, batch_size=256, verbose=0)
    # Perfect knowledge of the groups: P(same group | click) = 0.7 / 0.72 = 0.972, P(same | no click) = 0.3 / 1.28 =
    # 0.234; AUC = 0.972 * 0.766 + (0.972 * 0.234 + 0.028 * 0.766) / 2 = 0.869
    assert areas[0] < 0.75 and areas[-1] > 0.84


def test_several_items_a_user_are_several_rows():
    model, items = LookalikeModel(6, hidden=5, dropout=0, size_bias=True), 4
    trainer = build_similarity_trainer(model, items=items, k=3)
    one = trainer_rows(batch=2 * items)
    users = {name: one[name][::items] for name in ("user", "own_embedding")}
    one |= {name: np.repeat(value, items, axis=0) for name, value in users.items()}
    one["own_cluster"] = np.arange(2 * items, dtype=np.int32) % 4 - 1
    several = {name: value.reshape(2, items, *value.shape[1:]) for name, value in one.items()} | users
    logits = SimilarityLogit(model)(one)
    np.testing.assert_allclose(trainer.predict(several, verbose=0), np.reshape(logits, (2, items)), atol=1e-5)
    assert all(weight.name != "logit_bias" for weight in trainer.weights)


def test_round_trips(tmp_path):
    model = LookalikeModel(6, hidden=5, activation="relu", dropout=0.2, alpha="learned", attention="tempered")
    assert LookalikeModel.from_config(model.get_config()).get_config() == model.get_config()
    trainer, inputs = build_similarity_trainer(model, bias=0.1), trainer_rows()
    trainer.save(tmp_path / "trainer.keras")
    restored = keras.models.load_model(tmp_path / "trainer.keras")
    np.testing.assert_array_equal(restored.predict(inputs, verbose=0), trainer.predict(inputs, verbose=0))


def test_functional_model_with_static_batch_of_one_user(tmp_path):
    layer, arrays = LookalikeModel(6, hidden=5), rows(batch=7)
    inputs = {
        "user": keras.Input(batch_shape=(1, 6), name="user"),
        "centroids": keras.Input((3, 5), name="centroids"),
        "centroid_counts": keras.Input((3,), name="centroid_counts"),
    }
    model = keras.Model(inputs, layer(inputs))
    assert model.output.shape == (None,)
    model.save(tmp_path / "model.keras")
    arrays["user"] = arrays["user"][:1]
    tensors = {name: tf.constant(value) for name, value in arrays.items()}
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(tensors), layer(arrays), atol=1e-6)


def test_rejects_bad_input():
    for arguments, message in [
        ({"user_dim": 0}, "`user_dim` should be a positive integer. Received: user_dim=0"),
        ({"user_dim": 4, "hidden": -1}, "`hidden`"),
        (
            {"user_dim": 4, "activation": "tanh"},
            "`activation` should be 'prelu' or 'relu'. Received: activation='tanh'",
        ),
        ({"user_dim": 4, "dropout": 1}, "`dropout`"),
        ({"user_dim": 4, "alpha": 1.5}, "share in \\[0, 1\\]. Received: alpha=1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            LookalikeModel(**arguments)
    with pytest.raises(ValueError, match="`user` should be 4 wide"):
        LookalikeModel(4, hidden=5)(rows())
    with pytest.raises(ValueError, match="`centroids` should be 8 wide"):
        LookalikeModel(6, hidden=8)(rows())
    with pytest.raises(ValueError, match="`attention` should be 'tanh', 'tempered', 'linear' or 'average'"):
        LookalikeModel(4, attention="max")
    with pytest.raises(ValueError, match="Received: alpha='fixed'"):
        LookalikeModel(4, alpha="fixed")
    with pytest.raises(ValueError, match="above 1 with a `k`. Received: items=3, k=None"):
        build_similarity_trainer(LookalikeModel(4), items=3)
    with pytest.raises(ValueError, match="`bias`"):
        SimilarityLogit(LookalikeModel(4), bias=float("nan"))


def test_registered_names_are_unique():
    layers = [value for value in vars(lookalike).values() if isinstance(value, type) and issubclass(value, keras.Layer)]
    names = [keras.saving.get_registered_name(layer) for layer in layers]
    assert len(layers) == 7 and len(set(names)) == len(names)
    assert all(keras.saving.get_registered_object(name) is layer for name, layer in zip(names, layers, strict=True))
