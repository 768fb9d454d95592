import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm import SHARINGS, Architecture, Feature, RowAdam
from esmm.strategies import STRATEGIES, Strategy, value_weights

FEATURES = (Feature("item_id", "categorical", size=12), Feature("similarity", "numeric"))
SMALL = Architecture(embedding_dim=4, towers=(8,), dropout=0.0)
LINEAR = Architecture(embedding_dim=2, towers=(), dropout=0.0)
APART = ("esmm_ns", "base", "aman", "oversampling", "unbias", "division")
LOG2 = math.log(2)


def quick(*names, of=STRATEGIES):
    """All of them as parameters, those that are not named marked as slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in of]


# Four rows: converted, clicked, and two unclicked
CLICK, CONVERSION = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
PCTR, PCVR = np.array([0.5, 0.25, 0.5, 0.25]), np.array([0.5, 0.2, 0.5, 0.2])


def logit(p):
    return np.log(p / (1 - p)).astype(np.float32)


def log_of(rows, seed=0):
    generator = np.random.default_rng(seed)
    inputs = {
        "item_id": generator.integers(0, 12, rows).astype(np.int32),
        "similarity": generator.uniform(-1, 1, rows).astype(np.float32),
    }
    click = generator.random(rows) < 0.3
    return inputs, click, click & (generator.random(rows) < 0.5)


def fitted(strategy, inputs, click, conversion, *, epochs=1, batch_size=64, rate=0.01, shape=SMALL, **supervision):
    keras.utils.set_random_seed(0)
    model = strategy.build(FEATURES, shape, base_rates=(0.3, 0.5))
    steps = epochs * -(-len(click) // batch_size)
    decay = keras.optimizers.schedules.PolynomialDecay(rate, steps, rate / 50)  # ends where the loss is least
    model.compile(RowAdam(decay), loss=strategy.losses(), loss_weights=strategy.loss_weights())
    labels, weights = strategy.supervise(click, conversion, generator=np.random.default_rng(0), **supervision)
    arrays = tf.nest.map_structure(lambda values: np.concatenate([values] * epochs), (inputs, labels, weights))
    model.fit(*arrays[:2], sample_weight=arrays[2], batch_size=batch_size, shuffle=False, verbose=0)
    return model


def loss_of(strategy, outputs, **supervision):
    """What `compile` makes of losses, weights and targets, output by output and in sum."""
    labels, weights = strategy.supervise(CLICK, CONVERSION, generator=np.random.default_rng(0), **supervision)
    losses, shares = strategy.losses(), strategy.loss_weights()
    assert set(labels) == set(weights) == set(losses) == set(shares)
    found = {name: shares[name] * float(losses[name](labels[name], outputs[name], weights[name])) for name in losses}
    return found, sum(found.values())


# The conversion's part of each loss: pcvr is .5 for the row that converts, .2 for the clicked one that does not
KNOWN = [
    # all rows through the product: pctcvr .25, .05, .25, .05
    (Strategy("esmm"), (-math.log(0.25) - math.log(0.95) - math.log(0.75) - math.log(0.95)) / 4),
    (Strategy("esmm_ns"), (-math.log(0.25) - math.log(0.95) - math.log(0.75) - math.log(0.95)) / 4),
    # the same from a network of its own
    (Strategy("division"), (-math.log(0.25) - math.log(0.95) - math.log(0.75) - math.log(0.95)) / 4),
    (Strategy("base"), (LOG2 - math.log(0.8)) / 4),
    # a rate of 1: the unclicked rows are negatives, of pcvr .5 and .2
    (Strategy("aman", rate=1), (LOG2 - math.log(0.8) + LOG2 - math.log(0.8)) / 4),
    (Strategy("oversampling", weight=5), (5 * LOG2 - math.log(0.8)) / 4),
    # 1 / pctr = 2 and 4
    (Strategy("unbias"), (2 * LOG2 - 4 * math.log(0.8)) / 6),
    # esmm's, and a tenth of unbias'
    (
        Strategy("escm2_ips"),
        (-math.log(0.25) - math.log(0.95) - math.log(0.75) - math.log(0.95)) / 4
        + 0.1 * (2 * LOG2 - 4 * math.log(0.8)) / 6,
    ),
    # Imputed as .5 everywhere, w = 4/3, 8/3: the labels .5 + w (r - .5) are 7/6, -5/6, .5, .5. Cross-entropy of label q
    # and .5 is LOG2, of q and .2 it is -q log .2 - (1 - q) log .8. The imputation's own: (4/3 + 8/3) LOG2.
    (
        Strategy("escm2_dr", weight=2),
        (-math.log(0.25) - math.log(0.95) - math.log(0.75) - math.log(0.95)) / 4
        + 2
        * (
            2 * LOG2
            + 5 / 6 * math.log(0.2)
            - 11 / 6 * math.log(0.8)
            - 0.5 * math.log(0.2)
            - 0.5 * math.log(0.8)
            + 4 * LOG2
        )
        / 4,
    ),
]


@pytest.mark.parametrize(("strategy", "expected"), KNOWN, ids=[strategy.name for strategy, _ in KNOWN])
def test_known_losses(strategy, expected):
    columns = [logit(PCTR), logit(PCVR), np.zeros(4, np.float32)]
    outputs = {
        "click_logit": columns[0],
        "conversion_logit": columns[1],
        "ctcvr_logit": logit(PCTR * PCVR),
        "log_pctcvr": np.log(PCTR * PCVR).astype(np.float32),
        "counterfactual": np.stack(columns if strategy.name == "escm2_dr" else columns[:2], axis=1),
    }
    found, total = loss_of(strategy, outputs)
    # clicks: .5, .25 and unclicked .5, .75
    click = (LOG2 - math.log(0.25) + LOG2 - math.log(0.75)) / 4
    assert found["click_logit"] == pytest.approx(click, rel=1e-6)
    assert total - found["click_logit"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "left_out", "expected"),
    [
        # without the second row, a clicked one: what is left of the sums above
        ("esmm", "final", (-math.log(0.25) - math.log(0.75) - math.log(0.95)) / 4),
        ("base", "final", LOG2 / 4),
        ("base", "conversion_weight", LOG2 / 4),
        # a row that is not final is not observed, and leaves the sum of the weights too; one of weight 0 does not
        ("unbias", "final", LOG2),
        ("unbias", "conversion_weight", 2 * LOG2 / 6),
    ],
)
def test_known_losses_without_a_row(name, left_out, expected):
    columns = [logit(PCTR), logit(PCVR)]
    outputs = {
        "click_logit": columns[0],
        "conversion_logit": columns[1],
        "log_pctcvr": np.log(PCTR * PCVR).astype(np.float32),
        "counterfactual": np.stack(columns, axis=1),
    }
    found, total = loss_of(Strategy(name), outputs, **{left_out: np.array([1, 0, 1, 1])})
    assert total - found["click_logit"] == pytest.approx(expected, rel=1e-5)


def test_every_strategy_has_a_known_loss():
    assert tuple(sorted(strategy.name for strategy, _ in KNOWN)) == tuple(sorted(STRATEGIES))


@pytest.mark.parametrize("name", quick("esmm", "escm2_dr", "division"))
def test_model_and_file(name, tmp_path):
    strategy = Strategy(name)
    model = strategy.build(FEATURES, SMALL, positions=3)
    inputs = log_of(32)[0]
    inputs["position"] = np.arange(32, dtype=np.int32) % 4
    out = {key: value.numpy() for key, value in model(inputs).items()}
    assert {"pctr", "pcvr", "pctcvr", "click_logit", "conversion_logit", "log_pctcvr"} <= set(out)
    assert set(strategy.losses()) <= set(out)
    np.testing.assert_allclose(out["pctcvr"], out["pctr"] * out["pcvr"], rtol=1e-6)
    np.testing.assert_allclose(out["pctcvr"], np.exp(out["log_pctcvr"]), rtol=1e-5)
    np.testing.assert_allclose(out["pcvr"], 1 / (1 + np.exp(-out["conversion_logit"])), rtol=1e-5)
    tables = {id(layer.embedding.table) for layer in model.layers if hasattr(layer, "embedding")}
    assert len(tables) == (2 if name in APART else 1)
    model.get_layer("position_bias").tenths.assign([-0.1, -0.2])
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.name == name
    for key, value in model(inputs).items():
        np.testing.assert_array_equal(value, again(inputs)[key])


@pytest.mark.parametrize("sharing", quick("hierarchical", of=SHARINGS))
@pytest.mark.parametrize("name", ["base", "escm2_dr"])
def test_every_sharing(name, sharing):
    shape = dataclasses.replace(SMALL, sharing=sharing, towers=(8, 4))
    out = Strategy(name).build(FEATURES, shape)(log_of(5)[0])
    assert all(np.isfinite(value).all() for value in out.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_that_are_not_final_never_matter(name):
    # what the losses are given is the same bit for bit, whatever such a row's label says
    _, click, conversion = log_of(192)
    final = np.random.default_rng(1).random(192) < 0.5
    changed = np.where(final, conversion, click & ~conversion)
    assert (changed != conversion).sum() > 10
    given, other = (
        Strategy(name).supervise(click, labels, final=final, generator=np.random.default_rng(0))
        for labels in (conversion, changed)
    )
    for one, two in zip(given, other, strict=True):
        assert set(one) == set(two)
        for output, values in one.items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, two[output])


def gradients_of(strategy, output, inputs, click, conversion):
    """The gradient of one loss in every variable, by its path, in a new model of one seed."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = strategy.build(FEATURES, SMALL)
    labels, weights = strategy.supervise(click, conversion, generator=np.random.default_rng(0))
    with tf.GradientTape() as tape:
        value = strategy.losses()[output](labels[output], model(inputs)[output], weights[output])
    found = tape.gradient(value, {variable.path: variable.value for variable in model.trainable_variables})
    return {
        path: 0 if gradient is None else np.array(tf.convert_to_tensor(gradient)) for path, gradient in found.items()
    }


@pytest.mark.parametrize("name", quick("base", of=("base", "oversampling", "unbias")))
def test_the_conversion_network_sees_clicked_rows_only(name):
    inputs, click, conversion = log_of(128)
    rewritten = {**inputs, "similarity": np.where(click, inputs["similarity"], 5.0).astype(np.float32)}
    output = "counterfactual" if name == "unbias" else "conversion_logit"
    one, other = (gradients_of(Strategy(name), output, x, click, conversion) for x in (inputs, rewritten))
    for path, gradient in one.items():
        np.testing.assert_allclose(gradient, other[path], atol=1e-7)


@pytest.mark.parametrize("name", quick("esmm_ns", of=APART))
def test_networks_apart_learn_apart(name):
    for output in Strategy(name).losses():
        for path, gradient in gradients_of(Strategy(name), output, *log_of(64)).items():
            own = path.startswith("click_network") == (output == "click_logit")
            # through the product, ESMM-NS trains the click network too
            assert np.any(gradient) == (own or (name == "esmm_ns" and output == "log_pctcvr")), (path, output)


@pytest.mark.parametrize("name", ["escm2_ips", "escm2_dr"])
def test_no_gradient_through_the_propensity(name):
    found = gradients_of(Strategy(name), "counterfactual", *log_of(64))
    towers = {path.split("/")[1]: np.any(gradient) for path, gradient in found.items() if "/tower_" in path}
    assert towers == {"tower_click": False, "tower_conversion": True} | (
        {"tower_imputation": True} if name == "escm2_dr" else {}
    )


def test_division_never_exceeds_one():
    # pctr .05; pctcvr of its own network .2, then .01
    model = Strategy("division").build(FEATURES, LINEAR, base_rates=(0.05, 0.2))
    for name in ("click_network", "ctcvr_network"):
        model.get_layer(name).embedding.table.assign(np.zeros((12, 2), np.float32))
        model.get_layer(name).towers[0].layers[-1].kernel.assign(np.zeros((3, 1), np.float32))
    inputs, _, _ = log_of(3)
    out = model(inputs)
    np.testing.assert_allclose(out["pctcvr"], 0.01, rtol=1e-5)
    np.testing.assert_allclose(out["pcvr"], 0.2, rtol=1e-5)
    model.get_layer("ctcvr_network").towers[0].layers[-1].bias.assign([logit(0.2)])
    out = model(inputs)
    np.testing.assert_allclose(out["pcvr"], 1, rtol=1e-6)
    np.testing.assert_allclose(out["pctcvr"], 0.05, rtol=1e-5)
    assert np.isfinite(out["conversion_logit"]).all()


def test_aman_draws_anew_and_the_same_for_a_seed():
    rows = 20_000
    _, click, conversion = log_of(rows)
    strategy, generator = Strategy("aman", rate=0.2), np.random.default_rng(3)
    first, second = (strategy.supervise(click, conversion, generator=generator)[1] for _ in range(2))
    again = strategy.supervise(click, conversion, generator=np.random.default_rng(3))[1]
    np.testing.assert_array_equal(first["conversion_logit"], again["conversion_logit"])
    assert (first["conversion_logit"][click] == 1).all() and (first["click_logit"] == 1).all()
    # 14,000 unclicked: 5.5 standard errors of a share of .2 are .019; of both draws, .04 and .009
    unclicked = ~click
    assert first["conversion_logit"][unclicked].mean() == pytest.approx(0.2, abs=0.019)
    both = first["conversion_logit"] * second["conversion_logit"]
    assert both[unclicked].mean() == pytest.approx(0.04, abs=0.0095)


# Two kinds of row, 20 and 40 each of 100: what each strategy makes of pctr .5, .2 and pcvr .2, .5 when it fits exactly
CLICKS, CONVERSIONS = (50, 20), (10, 10)
EXACT = {
    # 10 of all 100, over pctr: .1 / .5 and .1 / .2
    "esmm": (0.2, 0.5),
    "esmm_ns": (0.2, 0.5),
    "division": (0.2, 0.5),
    "base": (0.2, 0.5),
    "unbias": (0.2, 0.5),
    "escm2_ips": (0.2, 0.5),
    "escm2_dr": (0.2, 0.5),
    # 10 of 100: the unclicked are negatives
    "aman": (0.1, 0.1),
    # 3 * 10 / (3 * 10 + 40) and 3 * 10 / (3 * 10 + 10)
    "oversampling": (3 / 7, 3 / 4),
}


@pytest.mark.parametrize("name", quick("esmm"))
def test_what_each_strategy_estimates(name):
    strategy = Strategy(name, rate=1) if name == "aman" else Strategy(name)
    place, item = np.tile(np.arange(100), 2), np.repeat([0, 1], 100)
    click, conversion = place < np.array(CLICKS)[item], place < np.array(CONVERSIONS)[item]
    inputs = {"item_id": (item + 2).astype(np.int32), "similarity": np.zeros(200, np.float32)}
    model = fitted(strategy, inputs, click, conversion, epochs=100, batch_size=200, rate=0.1, shape=LINEAR)
    out = {key: value.numpy()[[0, 100]] for key, value in model(inputs).items()}
    np.testing.assert_allclose(out["pctr"], [0.5, 0.2], atol=0.003)
    np.testing.assert_allclose(out["pcvr"], EXACT[name], atol=0.01)


# What conversion truly is over all impressions, where a model that is too simple meets a log of chosen clicks
SELECTED = {name: "truth" for name in ("unbias", "escm2_ips", "escm2_dr")} | {"base": "off", "esmm": "off"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SELECTED)
def test_selection_bias(name):
    # One number x, uniform in (-1, 1). Clicks: logit 3 x - .5, which a linear tower can learn. Conversions: .8 below
    # x = -.3, .1 up to .4 and .5 above, which it cannot: it fits best where its rows are. Clicked rows lie at high x,
    # where conversions rise, so that BASE takes them to be rare at low x. The linear logit nearest to the truth over
    # all rows has the mean of the truth, .35 * .8 + .35 * .1 + .3 * .5 = .465; over clicks, by numerical search, it
    # has .341, and ESMM's .336. Weighing clicks by 1 / pctr, up to 33 at x = -1, the variance of the mean is
    # E[r (1 - r) / pctr] / n, a standard error of .005: the tolerance is 6 of them and what training leaves.
    rows = 40_000
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, rows)
    pcvr = np.where(x < -0.3, 0.8, np.where(x < 0.4, 0.1, 0.5))
    click = generator.random(rows) < 1 / (1 + np.exp(0.5 - 3 * x))
    conversion = click & (generator.random(rows) < pcvr)
    inputs = {"item_id": np.full(rows, 2, np.int32), "similarity": x.astype(np.float32)}
    strategy = Strategy(name, weight=100) if name.startswith("escm2") else Strategy(name)
    model = fitted(strategy, inputs, click, conversion, epochs=10, batch_size=4000, rate=0.1, shape=LINEAR)
    out = {key: value.numpy() for key, value in model(inputs).items()}
    found = out["pcvr"].mean()
    if SELECTED[name] == "truth":
        assert found == pytest.approx(pcvr.mean(), abs=0.04)
    else:
        assert abs(found - pcvr.mean()) > 0.08


def test_value_weights_known_values():
    # conversions worth 1, 4 and 0, of mean 5/3; what else is in `value` is not read
    found = value_weights([1, 4, 0, math.nan, 9], [1, 1, 1, 0, 0])
    np.testing.assert_allclose(found, [0.6, 2.4, 0, 1, 1], rtol=1e-6)
    assert found.dtype == np.float32
    # square roots 1, 2, 0, of mean 1
    np.testing.assert_allclose(value_weights([1, 4, 0], [1, 1, 1], power=0.5), [1, 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(value_weights([1, 4, 0], [1, 1, 1], power=0), 1)
    np.testing.assert_array_equal(value_weights([math.nan, -1], [0, 0]), 1)
    # in the loss: the converted row counts double
    labels, weights = Strategy("base").supervise([1, 1], [1, 0], conversion_weight=[2, 1])
    np.testing.assert_array_equal(weights["conversion_logit"], [2, 1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e300), min_size=1).filter(any), st.floats(0, 3))
def test_value_weights_keep_the_weight_of_the_conversions(value, power):
    found = value_weights(value, np.ones(len(value)), power=power)
    assert found.mean() == pytest.approx(1, rel=1e-5)
    order = np.argsort(value)
    assert (np.diff(found[order]) >= 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="esm"), "`name` should be one of"),
        (dict(name="esmm", weight=2), "`weight` is no option of strategy 'esmm'. Received: weight=2"),
        (dict(name="base", clip=0.1), "`clip` is no option"),
        (dict(name="aman", rate=0), "`rate` should be in .0, 1.. Received: rate=0"),
        (dict(name="aman", rate=math.nan), "`rate` should be in"),
        (dict(name="unbias", clip=2), "`clip` should be in"),
        (dict(name="oversampling", weight=0.5), "`weight` should be at least 1"),
        (dict(name="oversampling", weight=math.inf), "`weight` should be at least 1"),
        (dict(name="escm2_ips", weight=0), "`weight` should be a positive number"),
        (dict(name="escm2_dr", weight=math.nan), "`weight` should be a positive number"),
    ],
)
def test_rejects_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        Strategy(**arguments)


@pytest.mark.parametrize("name", STRATEGIES)
def test_options_round_trip(name):
    strategy = Strategy(name)
    assert Strategy(**dataclasses.asdict(strategy)) == strategy


def test_rejects_rows():
    strategy = Strategy("base")
    with pytest.raises(ValueError, match="1 conversions without click"):
        strategy.supervise([0, 1], [1, 1])
    with pytest.raises(ValueError, match=r"`final` should have one entry a row, shape \(2,\)"):
        strategy.supervise([0, 1], [0, 1], final=[True])
    for wrong in ([1, -1], [1, math.nan], [math.inf, 1]):
        with pytest.raises(ValueError, match="`conversion_weight` should be finite numbers >= 0"):
            strategy.supervise([0, 1], [0, 1], conversion_weight=wrong)
    with pytest.raises(ValueError, match="`generator` should be given"):
        Strategy("aman").supervise([0, 1], [0, 1])
    with pytest.raises(ValueError, match="`value` of a conversion should be a finite number >= 0. Received: 2 of 3"):
        value_weights([1, math.nan, -1], [1, 1, 1])
    with pytest.raises(ValueError, match="`value` should be positive for some conversion. Received: 0 for all 2"):
        value_weights([0, 0, 1], [1, 1, 0])
    with pytest.raises(ValueError, match="`power` should be"):
        value_weights([1], [1], power=-1)
    with pytest.raises(ValueError, match="shape"):
        value_weights([1, 2], [1])
    with pytest.raises(ValueError, match="'position'"):
        Strategy("base").build([Feature("position", "categorical", size=4)])
    with pytest.raises(ValueError, match="base_rates"):
        Strategy("base").build(FEATURES, base_rates=(0.3, 1.0))
