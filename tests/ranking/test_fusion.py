import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.fusion import PARTS, FusionWeights, fuse, parse_weights, terms
from ranking.fusion_layer import FusionLayer


def parts_of(n=50, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    parts = {
        "similarity": generator.uniform(-1, 1, n),
        "has_similarity": (generator.random(n) < 0.8).astype(float),
        "pctr": generator.beta(1, 20, n),
        "pcvr": generator.beta(1, 10, n),
        "price": np.where(generator.random(n) < 0.8, generator.lognormal(3, 1, n), np.nan),
    }
    return {name: values.astype(dtype) for name, values in parts.items()}


def weights_of(form="product", **weights):
    return FusionWeights.fit(
        parts_of(), form, weights or {"similarity": 0.2, "pctr": 1, "pcvr": 0.6, "price": -0.5}, "p"
    )


def test_product_known_values():
    weights = FusionWeights(
        "product", {"similarity": 1, "pctr": 2}, {"similarity": -1, "pctr": -3}, {"similarity": 2, "pctr": 0.5}
    )
    # canonical weights .5 and 1; z = (log((1 + .2) / 2 + 1e-6) + 1) / 2 and (log .1 + 3) / .5
    z = (math.log(0.600001) + 1) / 2, (math.log(0.1) + 3) / 0.5
    found = fuse({"similarity": np.array([0.2]), "pctr": np.array([0.1])}, weights)
    np.testing.assert_allclose(found, [0.5 * z[0] + z[1]], rtol=1e-12)


def test_sum_known_values():
    weights = FusionWeights(
        "sum", {"similarity": 1, "price": -4}, {"similarity": 0.1, "price": 5}, {"similarity": 0.5, "price": 10}
    )
    # .25 * (.2 - .1) / .5 - (15 - 5) / 10
    found = fuse({"similarity": np.array([0.2]), "price": np.array([15.0])}, weights)
    np.testing.assert_allclose(found, [0.25 * 0.2 - 1.0], rtol=1e-12)


def test_fit_freezes_mean_and_deviation_of_what_is_there():
    parts = {
        "similarity": np.array([0.0, 0.5, 9.0]),
        "has_similarity": np.array([1.0, 1.0, 0.0]),
        "price": np.array([1.0, np.nan, math.e]),
        "pctr": np.full(3, 0.1),
    }
    weights = FusionWeights.fit(parts, "product", {"price": 3}, "abc")
    logs = math.log(0.5 + 1e-6), math.log(0.75 + 1e-6)  # the row without similarity does not count
    assert weights.mu["similarity"] == pytest.approx(sum(logs) / 2)
    assert weights.sd["similarity"] == pytest.approx((logs[1] - logs[0]) / 2)
    assert weights.mu["price"] == pytest.approx(0.5) and weights.sd["price"] == pytest.approx(0.5)
    assert weights.sd["pctr"] == 1.0  # constant: nothing to scale by
    assert weights.weights == {"similarity": 0.0, "pctr": 0.0, "price": 1.0}
    z = terms(parts, weights)
    assert list(z) == ["similarity", "pctr", "price"]
    np.testing.assert_allclose(z["price"], [-1, 0, 1], atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-1000, 1000), min_size=4, max_size=4).filter(any),
    st.floats(1e-6, 1e6),
    st.sampled_from(["product", "sum"]),
)
def test_positive_rescaling_changes_nothing(numbers, factor, form):
    plain = {name: number / 1000 for name, number in zip(PARTS, numbers, strict=True)}
    one = weights_of(form, **plain)
    other = weights_of(form, **{name: value * factor for name, value in plain.items()})
    assert one == other and one.hash == other.hash
    assert max(abs(w) for w in one.weights.values()) == 1
    parts = parts_of(seed=3, dtype=np.float64)
    np.testing.assert_array_equal(fuse(parts, one), fuse(parts, other))
    raw = sum(plain[name] * z for name, z in terms(parts, one).items())  # as given, not canonical
    scores = fuse(parts, one)
    np.testing.assert_allclose(scores * max(abs(v) for v in plain.values()), raw, rtol=1e-7, atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.sampled_from(["product", "sum"]), st.floats(-1, 1))
def test_missing_is_exactly_neutral(similarity, form, weight):
    weights = weights_of(form, similarity=weight, pctr=1, pcvr=0.3, price=0.7)
    parts = parts_of(20)
    parts["has_similarity"] = np.zeros(20, np.float32)
    parts["similarity"] = np.full(20, similarity, np.float32)
    parts["price"] = np.full(20, np.nan, np.float32)
    z = terms(parts, weights)
    assert (z["similarity"] == 0).all() and (z["price"] == 0).all()
    without = dataclasses.replace(weights, weights={**weights.weights, "similarity": 0.0, "price": 0.0})
    np.testing.assert_array_equal(fuse(parts, weights), fuse(parts, without))
    parts["similarity"] = np.full(20, np.nan, np.float32)
    np.testing.assert_array_equal(fuse(parts, weights), fuse(parts, without))


def test_exponents_give_the_order_of_the_product():
    parts = parts_of(200, seed=5, dtype=np.float64)
    parts["price"] = np.nan_to_num(parts["price"], nan=1.0)
    expected = np.argsort(parts["pctr"] * parts["pcvr"] ** 0.5 * parts["price"])
    for reference in (None, weights_of()):
        weights = FusionWeights.from_exponents(pctr=1, pcvr=0.5, price=1, reference=reference)
        np.testing.assert_array_equal(np.argsort(fuse(parts, weights)), expected)
    assert weights.parameters_hash == "p" and weights.weights["similarity"] == 0
    with pytest.raises(UserError, match="form='sum'"):
        FusionWeights.from_exponents(pctr=1, reference=weights_of("sum"))
    with pytest.raises(UserError, match=r"constants of \['price'\]"):
        FusionWeights.from_exponents(price=1, reference=FusionWeights("product", {"pctr": 1}, {"pctr": 0}, {"pctr": 1}))


def test_file_round_trip(tmp_path):
    weights = weights_of()
    weights.save(tmp_path / "w.json")
    again = FusionWeights.load(tmp_path / "w.json", parameters_hash="p")
    assert again == weights and again.hash == weights.hash
    again.save(tmp_path / "again.json")
    assert (tmp_path / "w.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert dataclasses.replace(weights, parameters_hash="q").hash != weights.hash
    with pytest.raises(UserError, match="w.json belongs to other parameters: .*'q'.*Received: 'p'"):
        FusionWeights.load(tmp_path / "w.json", parameters_hash="q")


def test_load_rejects(tmp_path):
    path = tmp_path / "w.json"
    with pytest.raises(UserError, match="w.json should be a file"):
        FusionWeights.load(path)
    path.write_text("{")
    with pytest.raises(UserError, match="should be JSON"):
        FusionWeights.load(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="Received: list"):
        FusionWeights.load(path)
    content = weights_of().to_dict()
    for broken in ({"form": "max"}, {"sd": {**content["sd"], "pctr": 0}}, {"weights": []}, {"bounds": {"pctr": [1]}}):
        path.write_text(json.dumps({**content, **broken}))
        with pytest.raises(UserError, match="w.json"):
            FusionWeights.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(weights={"pctr": 0.0}), "not all 0"),
        (dict(weights={"pctr": math.nan}), "finite"),
        (dict(weights={"ctr": 1.0}), "Received: 'ctr'"),
        (dict(weights={"click": 1.0}), "no label"),
        (dict(mu={}), "`mu`"),
        (dict(sd={"pctr": -1.0}), "`sd` should be positive"),
        (dict(bounds={"pctr": (0.0, 0.5)}), "`bounds` of pctr"),
        (dict(bounds={"price": (0.0, 0.5)}), "`bounds` should be of"),
    ],
)
def test_weights_reject(change, message):
    fine = dict(form="product", weights={"pctr": 1.0}, mu={"pctr": 0.0}, sd={"pctr": 1.0})
    with pytest.raises(UserError, match=message):
        FusionWeights(**{**fine, **change})


def test_fuse_rejects():
    weights, parts = weights_of(), parts_of()
    for label in ("click", "conversion", "value"):
        with pytest.raises(UserError, match=f"no label.*'{label}'"):
            fuse({**parts, label: parts["pctr"]}, weights)
        with pytest.raises(UserError, match="no label"):
            FusionWeights.fit({**parts, label: parts["pctr"]}, "sum", {"pctr": 1})
    with pytest.raises(UserError, match="Received: 'pctcvr'"):
        fuse({**parts, "pctcvr": parts["pctr"]}, weights)
    with pytest.raises(UserError, match=r"without \['price'\]"):
        fuse({name: values for name, values in parts.items() if name != "price"}, weights)
    with pytest.raises(UserError, match=r"without \['price'\]"):
        FusionWeights.fit({"pctr": parts["pctr"]}, "sum", {"price": 1})
    with pytest.raises(UserError, match="`override`"):
        fuse({"pctr": parts["pctr"]}, weights_of("sum", pctr=1), {"pcvr": 1.0})


def test_parse_weights():
    assert parse_weights("similarity=.2, pctr=1,price=-3e-1") == {"similarity": 0.2, "pctr": 1.0, "price": -0.3}
    for text, message in (
        ("pctr", "'pctr'"),
        ("pctr=x", "'pctr=x'"),
        ("ctr=1", "'ctr'"),
        ("", "''"),
        ("pctr=inf", "inf"),
    ):
        with pytest.raises(UserError, match=message):
            parse_weights(text)
    with pytest.raises(UserError, match="twice"):
        parse_weights("pctr=1,pctr=2")


@pytest.mark.parametrize("form", ["product", "sum"])
def test_graph_equals_numpy(form):
    parts, weights = parts_of(300), weights_of(form)
    parts["similarity"][:2] = -1, 1
    parts["pctr"][:2] = 0, 1e-12
    layer = FusionLayer(weights)
    graph = tf.function(lambda parts: layer(parts))(parts)
    assert graph.dtype == tf.float32 and graph.shape == (300,)
    np.testing.assert_allclose(graph, fuse(parts, weights), rtol=1e-6, atol=1e-6)
    override = {"pctr": np.array([0.25], np.float32), "price": np.array([7.0], np.float32)}  # 7 is clipped to 1
    expected = fuse(parts, weights, {"pctr": 0.25, "price": 1.0})
    np.testing.assert_allclose(layer(parts, weights=override), expected, rtol=1e-6, atol=2e-6)


def test_gradients_are_finite_where_parts_are_missing():
    parts = {name: tf.constant(values) for name, values in parts_of(40).items()}
    with tf.GradientTape() as tape:
        tape.watch(parts)
        score = FusionLayer(weights_of())(parts)
    for name, gradient in tape.gradient(score, parts).items():
        assert name == "has_similarity" or np.isfinite(gradient).all()


def test_config_and_file_round_trip(tmp_path):
    layer = FusionLayer(weights_of())
    assert FusionLayer.from_config(layer.get_config()).get_config() == layer.get_config()
    inputs = {name: keras.Input((), name=name) for name in (*PARTS, "has_similarity")}
    given = {"pctr": keras.Input((), name="weight_pctr")}
    model = keras.Model(
        {**inputs, "weight_pctr": given["pctr"]}, {"plain": layer(inputs), "other": layer(inputs, weights=given)}
    )
    batch = {**parts_of(6), "weight_pctr": np.full(6, 0.5, np.float32)}
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for name, score in model(batch).items():
        np.testing.assert_array_equal(score, again(batch)[name])
    np.testing.assert_allclose(model(batch)["plain"], fuse(parts_of(6), layer.fusion), rtol=1e-6, atol=1e-6)


def test_the_formula_needs_no_tensorflow():
    import subprocess
    import sys

    code = "import sys, ranking.fusion, ranking.metrics, ranking.bootstrap; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
