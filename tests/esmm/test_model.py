import math
from dataclasses import replace

import keras
import numpy as np
import pytest

from esmm import (
    SHARINGS,
    Architecture,
    Feature,
    PositionBias,
    RowAdam,
    SharedTowers,
    build_esmm,
    funnel_outputs,
    losses,
    targets,
)

FEATURES = (
    Feature("user_id", "categorical", size=40),
    Feature("item_id", "categorical", vocabulary="item", size=30),
    Feature("behavior_read", "multi", vocabulary="item", size=30),
    Feature("similarity", "numeric"),
    Feature("statistic_ctr", "numeric", size=2),
)
SMALL = Architecture(embedding_dim=4, towers=(16, 8), dropout=0.0)
# The one with the most parts; the others are slow.
HIERARCHICAL = [name if name == "hierarchical" else pytest.param(name, marks=pytest.mark.slow) for name in SHARINGS]


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


@pytest.mark.slow
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
    model.compile(RowAdam(), loss=losses(), run_eagerly=True)
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


def test_weights_by_task():
    inputs, click, conversion, _, _ = planted(64, 1)
    model = build_esmm(FEATURES, SMALL)
    labels = targets(click, conversion)
    model.compile(RowAdam(), loss=losses(), run_eagerly=True)
    each = model.evaluate(inputs, labels, batch_size=64, verbose=0, return_dict=True)["loss"]
    out = model(inputs)
    parts = {name: float(loss(labels[name], out[name])) for name, loss in losses().items()}
    assert each == pytest.approx(sum(parts.values()), rel=1e-5)
    model.compile(RowAdam(), loss=losses(), run_eagerly=True, loss_weights={"click_logit": 0.25, "log_pctcvr": 3.0})
    weighted = model.evaluate(inputs, labels, batch_size=64, verbose=0, return_dict=True)["loss"]
    assert weighted == pytest.approx(0.25 * parts["click_logit"] + 3.0 * parts["log_pctcvr"], rel=1e-5)


THREE = ("click", "cart", "purchase")


def test_longer_funnel_known_values():
    # P(click) = .5, P(cart | click) = .2, P(purchase | cart) = .1: P(cart) = .1, P(purchase) = .01,
    # P(purchase | click) = .02
    logits = [np.full(2, math.log(p / (1 - p)), np.float32) for p in (0.5, 0.2, 0.1)]
    out = {name: np.asarray(value) for name, value in funnel_outputs(*logits, steps=THREE).items()}
    expected = {"pctr": 0.5, "p_cart": 0.1, "pctcvr": 0.01, "pcvr": 0.02, "click_logit": 0.0}
    expected |= {"log_p_cart": math.log(0.1), "log_pctcvr": math.log(0.01)}
    assert set(out) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-6)
    # the labels that the losses take: of the joint events
    labels = targets([1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], steps=THREE)
    assert set(labels) == set(losses(steps=THREE)) == {"click_logit", "log_p_cart", "log_pctcvr"}
    np.testing.assert_array_equal(labels["log_p_cart"], [1, 1, 0, 0])
    four = funnel_outputs(*[np.zeros(1, np.float32)] * 4, steps=("click", "cart", "order", "payment"))
    np.testing.assert_allclose([four["p_cart"], four["p_order"], four["pctcvr"]], [[1 / 4], [1 / 8], [1 / 16]])
    np.testing.assert_allclose(four["log_p_order"], math.log(1 / 8), rtol=1e-6)


@pytest.mark.slow
def test_longer_funnel_recovers_conditional_rates():
    # two groups of items with rates of their own at each step
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    rates = np.array([[0.5, 0.4, 0.6], [0.2, 0.7, 0.3]])
    group = generator.integers(0, 2, 20_000)
    happens = generator.random((20_000, 3)) < rates[group]
    labels = list(np.cumprod(happens, axis=1).T)
    model = build_esmm([Feature("group", "categorical", size=4)], SMALL, base_rates=happens.mean(axis=0), steps=THREE)
    model.compile(RowAdam(0.01), loss=losses(steps=THREE))
    inputs = {"group": (group + 2).astype(np.int32)}
    model.fit(inputs, targets(*labels, steps=THREE), batch_size=512, epochs=4, verbose=0)
    out = {name: value.numpy() for name, value in model({"group": np.array([2, 3], np.int32)}).items()}
    found = np.stack([out["pctr"], out["p_cart"] / out["pctr"], out["pctcvr"] / out["p_cart"]], axis=1)
    # the rarest step of group 1 is seen about 1400 times: standard error .012
    np.testing.assert_allclose(found, rates, atol=0.07)
    np.testing.assert_allclose(out["pcvr"], out["pctcvr"] / out["pctr"], rtol=1e-5)


@pytest.mark.parametrize("sharing", HIERARCHICAL)
@pytest.mark.parametrize("steps", [("click", "conversion"), pytest.param(THREE, marks=pytest.mark.slow)])
def test_every_sharing_starts_at_the_base_rates_and_round_trips(sharing, steps, tmp_path):
    shape = Architecture(sharing, embedding_dim=4, towers=(16, 8), dropout=0.2, experts=2)
    rates = (0.05, 0.2, 0.5)[: len(steps)]
    keras.utils.set_random_seed(0)
    model = build_esmm(FEATURES, shape, base_rates=rates, steps=steps)
    # with numbers of 0 there are only the embeddings, within .05: the biases decide
    ids = {name: value * (value.dtype == np.int32) for name, value in inputs_of(300).items()}
    out = {name: value.numpy() for name, value in model(ids).items()}
    np.testing.assert_allclose(out["pctr"], 0.05, rtol=0.2)
    np.testing.assert_allclose(out["pctcvr"], np.prod(rates), rtol=0.3)
    layer = model.get_layer("shared_towers")
    assert layer.tasks == steps
    assert SharedTowers.from_config(layer.get_config()).get_config() == layer.get_config()
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(inputs_of(5))["pctcvr"], model(inputs_of(5))["pctcvr"])


@pytest.mark.parametrize("sharing", HIERARCHICAL)
@pytest.mark.parametrize("task", ["click", pytest.param("conversion", marks=pytest.mark.slow)])
def test_a_frozen_task_keeps_its_predictions_to_the_bit(sharing, task):
    keras.utils.set_random_seed(0)
    inputs, click, conversion, _, _ = planted(128, 1)
    shape = Architecture(sharing, embedding_dim=4, towers=(16, 8), dropout=0.2, experts=2)
    model = build_esmm(FEATURES, shape)
    model.compile(RowAdam(0.01), loss=losses(), run_eagerly=True)

    def trained():
        model.fit(inputs, targets(click, conversion), batch_size=64, verbose=0)
        out = model(inputs)
        return {name: out[name].numpy() for name in ("pctr", "pcvr")}

    before, after = trained(), trained()
    assert all((before[name] != after[name]).any() for name in before)
    model.get_layer("shared_towers").freeze(task)
    # the optimizer stays, with moments of every variable that would carry the frozen ones on
    model.compile(model.optimizer, loss=losses(), run_eagerly=True)
    frozen = trained()
    kept, moved = ("pctr", "pcvr") if task == "click" else ("pcvr", "pctr")
    np.testing.assert_array_equal(frozen[kept], after[kept])
    assert (frozen[moved] != after[moved]).any()


def test_freezing_a_step_of_a_longer_hierarchy_freezes_the_steps_before():
    layer = SharedTowers(FEATURES, Architecture("hierarchical", 4, (8,)), THREE, (0.5, 0.5, 0.5))
    layer(inputs_of(2))
    layer.freeze("cart")
    assert [level.trainable for level in layer.sharing.levels] == [False, False, True]
    assert [tower.trainable for tower in layer.towers] == [True, False, True]
    with pytest.raises(ValueError, match="task='order'"):
        layer.freeze("order")


def test_weights_of_a_multi_feature_are_an_input(tmp_path):
    features = (*FEATURES[:2], replace(FEATURES[2], weights="read_weight"), *FEATURES[3:])
    model = build_esmm(features, SMALL)
    weighted = {**inputs_of(6), "read_weight": np.random.default_rng(0).random((6, 5)).astype(np.float32)}
    plain = {**weighted, "read_weight": np.ones((6, 5), np.float32)}
    assert (model(weighted)["pctr"].numpy() != model(plain)["pctr"].numpy()).any()
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(weighted)["pctr"], model(weighted)["pctr"])


def test_l2_is_in_the_training_loss_only():
    inputs, click, conversion, _, _ = planted(64, 1)
    keras.utils.set_random_seed(0)
    plain, shrunk = build_esmm(FEATURES, SMALL), build_esmm(FEATURES, replace(SMALL, l2=10.0))
    shrunk.set_weights(plain.get_weights())
    history = []
    for model in (plain, shrunk):
        model.compile(RowAdam(0.0), loss=losses(), run_eagerly=True)
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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="'position'"):
        build_esmm([Feature("a", "multi", size=4, weights="position")])
    with pytest.raises(ValueError, match=r"one a task of \('click', 'conversion'\)"):
        build_esmm(FEATURES, base_rates=(0.5,))
    with pytest.raises(ValueError, match="two distinct identifiers"):
        build_esmm(FEATURES, steps=("click", "click"))
    with pytest.raises(ValueError, match="Received: 2 logits"):
        funnel_outputs(0.0, 0.0, steps=THREE)
    with pytest.raises(ValueError, match="tasks="):
        SharedTowers(FEATURES, SMALL, (), ())


@pytest.mark.parametrize(
    "labels, message",
    [
        (([0, 1], [1, 1]), "`conversion` should be 0 where `click` is 0. Received: 1 conversions without click"),
        (([0, 1], [1]), "of one shape"),
        (([0, 1],), "one a step"),
        (([1, 1], [0, math.nan]), "`conversion` should be 0 or 1. Received: 1 other values, e.g. nan"),
        (([1, 3], [0, 1]), "`click` should be 0 or 1. Received: 1 other values, e.g. 3"),
    ],
)
def test_targets_reject(labels, message):
    with pytest.raises(ValueError, match=message):
        targets(*labels)


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
