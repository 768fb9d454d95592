import math
from dataclasses import replace

import keras
import numpy as np
import pytest

from esmm import Architecture, Feature, PositionBias, RowAdam, SharedTowers, build_esmm, losses, targets

FEATURES = (
    Feature("user_id", "categorical", size=40),
    Feature("item_id", "categorical", vocabulary="item", size=30),
    Feature("behavior_read", "multi", vocabulary="item", size=30),
    Feature("similarity", "numeric"),
    Feature("statistic_ctr", "numeric", size=2),
)
SMALL = Architecture(embedding_dim=4, towers=(16, 8), dropout=0.0)


def inputs_of(rows, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "user_id": generator.integers(0, 40, rows).astype(np.int32),
        "item_id": generator.integers(0, 30, rows).astype(np.int32),
        "behavior_read": generator.integers(0, 30, (rows, 5)).astype(np.int32),
        "similarity": generator.uniform(-1, 1, rows).astype(np.float32),
        "statistic_ctr": generator.normal(size=(rows, 2)).astype(np.float32),
    }


def test_known_values_from_biases_alone():
    # one tower layer with zero kernel leaves the biases: pctr = .05, pcvr = .2, pctcvr = .01
    model = build_esmm(FEATURES, Architecture(towers=()), base_rates=(0.05, 0.2))
    for tower in model.get_layer("shared_towers").towers:
        tower.layers[-1].kernel.assign(np.zeros_like(tower.layers[-1].kernel))
    out = {name: value.numpy() for name, value in model(inputs_of(3)).items()}
    np.testing.assert_allclose(out["pctr"], 0.05, rtol=1e-6)
    np.testing.assert_allclose(out["pcvr"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(out["pctcvr"], 0.01, rtol=1e-6)
    np.testing.assert_allclose(out["log_pctcvr"], math.log(0.01), rtol=1e-6)
    np.testing.assert_allclose(out["click_logit"], math.log(0.05 / 0.95), rtol=1e-6)
    assert all(value.shape == (3,) and value.dtype == np.float32 for value in out.values())


def test_conversion_gradient_reaches_the_click_tower_and_the_shared_table():
    import tensorflow as tf

    model = build_esmm(FEATURES, replace(SMALL, wide=False))
    towers = model.get_layer("shared_towers")
    with tf.GradientTape() as tape:
        loss = losses()["log_pctcvr"](np.ones(8, np.float32), model(inputs_of(8))["log_pctcvr"])
    watched = [towers.towers[0].layers[0].kernel, towers.towers[1].layers[0].kernel, towers.embedding.table]
    for gradient in tape.gradient(loss, [variable.value for variable in watched]):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0


def planted(rows, seed):
    inputs = inputs_of(rows, seed)
    generator = np.random.default_rng(seed + 1)
    quality = np.linspace(-2, 2, 30)[inputs["item_id"]]
    pctr = 1 / (1 + np.exp(1.0 - quality))
    pcvr = 1 / (1 + np.exp(0.5 - 2 * inputs["similarity"]))
    click = generator.random(rows) < pctr
    return inputs, click, click & (generator.random(rows) < pcvr), pctr, pcvr


def test_learns_a_planted_truth():
    keras.utils.set_random_seed(0)
    inputs, click, conversion, _, _ = planted(20_000, 1)
    model = build_esmm(FEATURES, SMALL, base_rates=(click.mean(), conversion.sum() / click.sum()))
    model.compile(RowAdam(0.01), loss=losses())
    model.fit(inputs, targets(click, conversion), batch_size=256, epochs=2, verbose=0)
    inputs, _, _, pctr, pcvr = planted(5_000, 3)
    out = model.predict(inputs, batch_size=1000, verbose=0)
    # over all impressions, unclicked ones too, where no conversion was ever seen
    assert np.corrcoef(out["pctr"], pctr)[0, 1] > 0.95
    assert np.corrcoef(out["pcvr"], pcvr)[0, 1] > 0.9
    assert out["pctcvr"].sum() == pytest.approx((pctr * pcvr).sum(), rel=0.1)


def test_sample_weights_by_output():
    # weight 0 takes rows out: the loss is that of the others, divided by the whole batch
    inputs, click, conversion, _, _ = planted(64, 1)
    model = build_esmm(FEATURES, SMALL)
    model.compile(RowAdam(), loss=losses())
    weight = {"click_logit": np.ones(64, np.float32), "log_pctcvr": (np.arange(64) < 16).astype(np.float32)}
    measured = model.evaluate(
        inputs, targets(click, conversion), sample_weight=weight, batch_size=64, verbose=0, return_dict=True
    )
    out = {name: value.numpy().astype(np.float64) for name, value in model(inputs).items()}
    p, q = out["pctr"], out["pctcvr"][:16]
    expected_click = -np.mean(click * np.log(p) + (1 - click) * np.log(1 - p))
    kept = conversion[:16]
    expected_conversion = -np.sum(kept * np.log(q) + (1 - kept) * np.log(1 - q)) / 64
    assert measured["loss"] == pytest.approx(expected_click + expected_conversion, rel=1e-5)


def test_l2_is_in_the_training_loss_only():
    inputs, click, conversion, _, _ = planted(64, 1)
    keras.utils.set_random_seed(0)
    plain, shrunk = build_esmm(FEATURES, SMALL), build_esmm(FEATURES, replace(SMALL, l2=10.0))
    shrunk.set_weights(plain.get_weights())
    history = []
    for model in (plain, shrunk):
        model.compile(RowAdam(0.0), loss=losses())
        history.append(
            model.fit(
                inputs, targets(click, conversion), validation_data=(inputs, targets(click, conversion)), verbose=0
            ).history
        )
    assert history[1]["loss"][0] > history[0]["loss"][0] + 0.01
    assert history[1]["val_loss"][0] == pytest.approx(history[0]["val_loss"][0], rel=1e-6)


def test_position_is_anchored_and_of_the_click_only():
    model = build_esmm(FEATURES, SMALL, positions=3)
    model.get_layer("position_bias").tenths.assign([-0.1, -0.2])
    inputs = {name: np.repeat(value[:1], 6, axis=0) for name, value in inputs_of(1).items()}
    out = {n: v.numpy() for n, v in model({**inputs, "position": np.array([0, 1, 2, 3, 4, 9], np.int32)}).items()}
    # 0 not given, 1 the first position: exactly nothing; then the logits; past the last one: the last one
    assert out["click_logit"][0] == out["click_logit"][1]
    np.testing.assert_allclose(out["click_logit"] - out["click_logit"][0], [0, 0, -1, -2, -2, -2], atol=1e-6)
    np.testing.assert_array_equal(out["pcvr"], out["pcvr"][:1].repeat(6))
    np.testing.assert_allclose(out["pctcvr"], out["pctr"] * out["pcvr"], rtol=1e-6)


def test_position_is_learned():
    # examination logits 0, -1, -2 planted on a constant click logit of 0.5
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    inputs = inputs_of(30_000)
    position = generator.integers(1, 4, 30_000).astype(np.int32)
    click = generator.random(30_000) < 1 / (1 + np.exp(-0.5 + (position - 1)))
    model = build_esmm(FEATURES, replace(SMALL, wide=False), positions=3, base_rates=(click.mean(), 0.01))
    model.compile(RowAdam(0.01), loss=losses())
    labels = targets(click, np.zeros_like(click))
    model.fit({**inputs, "position": position}, labels, batch_size=512, epochs=3, verbose=0)
    np.testing.assert_allclose(model.get_layer("position_bias").logits().numpy(), [0, 0, -1, -2], atol=0.2)
    served = model.predict({**inputs, "position": np.zeros(30_000, np.int32)}, batch_size=5000, verbose=0)
    assert served["pctr"].mean() == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.03)


def test_rejects():
    with pytest.raises(ValueError, match="dropout=1"):
        build_esmm(FEATURES, Architecture(dropout=1))
    with pytest.raises(ValueError, match="base_rates"):
        build_esmm(FEATURES, base_rates=(0.0, 0.5))
    with pytest.raises(ValueError, match="towers"):
        build_esmm(FEATURES, Architecture(towers=(8, 0)))
    with pytest.raises(ValueError, match="positions=1"):
        build_esmm(FEATURES, positions=1)
    with pytest.raises(ValueError, match="'position'"):
        build_esmm([Feature("position", "categorical", size=4)])
    with pytest.raises(ValueError, match="1 conversions without click"):
        targets([0, 1], [1, 1])
    with pytest.raises(ValueError, match="of one shape"):
        targets([0, 1], [1])


def test_config_round_trip():
    for layer in (SharedTowers(FEATURES, SMALL, ("click", "conversion"), (0.1, 0.2)), PositionBias(5)):
        assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_file_round_trip_inside_another_model(tmp_path):
    esmm = build_esmm(FEATURES, SMALL, positions=4)
    inputs = {name: keras.Input(tensor.shape[1:], name=name, dtype=tensor.dtype) for name, tensor in esmm.input.items()}
    model = keras.Model(inputs, {"pctcvr": esmm(inputs)["pctcvr"]})
    batch = {**inputs_of(5), "position": np.arange(5, dtype=np.int32)}
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(batch)["pctcvr"], again(batch)["pctcvr"])
