import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from esmm import Feature, build_esmm, funnel_outputs
from esmm.calibration import Calibration, MonotoneCalibration, calibrated
from esmm.monotone import MonotoneMap
from ranking.metrics import ece, pcoc

BENT = MonotoneMap((-3.0, -1.0, 2.0), (-4.0, -1.0, 0.5))  # slopes 1.5 and .5


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def planted(n, seed, *, hidden=0.0, base=-1.5):
    """A log and a model's logits with known faults: clicks too sure (temperature 1 / 2), odds of conversions 1.5 times.

    With `hidden`, clicks also depend on the conversion logit in a way that the click model does not see.
    """
    generator = np.random.default_rng(seed)
    click_logit = generator.normal(-2.0, 1.0, n)
    conversion_logit = 0.3 * (click_logit + 2) + generator.normal(base, 1.0, n)
    p = sigmoid(click_logit + hidden * (conversion_logit - base))
    q = sigmoid(conversion_logit)
    click = (generator.random(n) < p).astype(np.float32)
    conversion = click * (generator.random(n) < q)
    final = generator.random(n) < 0.9
    conversion[~final] = 0  # not seen yet
    said = (2 * click_logit + 2).astype(np.float32), (conversion_logit + np.log(1.5)).astype(np.float32)
    return (*said, click, conversion, final)


def errors_of(weight, x):
    """Standard errors of (intercept, slope) by the information matrix: sum of weight * [1, x] [1, x]'."""
    design = np.stack([np.ones_like(x), x])
    return np.sqrt(np.diag(np.linalg.inv((design * weight) @ design.T)))


def test_map_by_hand():
    # below the first knot with slope 1.5, at and between the knots, above the last with slope .5
    logits = np.array([-5.0, -3.0, -2.0, -1.0, 0.0, 2.0, 4.0])
    expected = [-7.0, -4.0, -2.5, -1.0, -0.5, 0.5, 1.5]
    np.testing.assert_allclose(BENT.apply(logits), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(BENT.slopes, [1.5, 0.5])
    layer = MonotoneCalibration(BENT.knots, BENT.values)
    np.testing.assert_allclose(layer(logits.astype(np.float32)), expected, rtol=1e-6)


def test_identity_changes_no_bit():
    logits = np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)
    same = Calibration.identity().logits(logits, -logits)
    np.testing.assert_array_equal(same[0], logits)
    np.testing.assert_array_equal(same[1], -logits)
    np.testing.assert_array_equal(MonotoneCalibration((0, 1), (0, 1))(logits), logits)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_maps_keep_the_order(data):
    steps = st.lists(st.floats(0.05, 3), min_size=8, max_size=8)
    pieces = data.draw(st.integers(1, 7))
    knots = np.cumsum(data.draw(steps))[: pieces + 1] - 5
    values = np.cumsum(data.draw(steps))[: pieces + 1] - data.draw(st.floats(-9, 9))
    map_ = MonotoneMap(knots.tolist(), values.tolist())
    near = np.concatenate([knots + d for d in (-1e-3, -1e-6, 0, 1e-6, 1e-3)] + [[-30, 30]])
    logits = np.unique(near.astype(np.float32))
    mapped = map_.apply(logits)
    assert (np.diff(mapped) > 0).all()
    in_graph = np.asarray(MonotoneCalibration(map_.knots, map_.values)(logits))
    assert (np.diff(in_graph) >= 0).all()  # not even rounding at a knot turns an order round
    np.testing.assert_allclose(in_graph, mapped, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["platt", pytest.param("piecewise", marks=pytest.mark.slow)])
def test_planted_faults_are_undone(method):
    *logits, click, conversion, final = planted(100_000, 0)
    found = Calibration.fit(*logits, click, conversion, final, method=method)
    assert found.note == ""
    # the truth: (z - 2) / 2 of the click logit, z - log 1.5 of the conversion logit
    p, q = sigmoid((logits[0] - 2) / 2), sigmoid(logits[1] - np.log(1.5))
    assert len(found.click.knots) == (2 if method == "platt" else 9)
    if method == "platt":
        # information of a row: p (1 - p); through the product pq (1 - q)^2 / (1 - pq)
        through = final * p * q * (1 - q) ** 2 / (1 - p * q)
        for map_, weight, x, truth in (
            (found.click, p * (1 - p), logits[0], (-1.0, 0.5)),
            (found.conversion, through, logits[1], (-np.log(1.5), 1.0)),
        ):
            error = errors_of(weight.astype(np.float64), x.astype(np.float64))
            assert abs(map_.apply(0.0) - truth[0]) < 5 * error[0]
            assert abs(map_.slopes[0] - truth[1]) < 5 * error[1]
    # on other rows of the same world: probabilities as often as they say, and the order as it was
    *logits, click, conversion, final = planted(100_000, 1)
    new_click, new_conversion = found.logits(*logits)
    before, after = (sigmoid(logits[0]), sigmoid(logits[1])), (sigmoid(new_click), sigmoid(new_conversion))
    clicked = (click > 0) & final
    for label, old, new, rows in (
        (click, before[0], after[0], np.ones(len(click), bool)),
        (conversion, before[0] * before[1], after[0] * after[1], final),
        (conversion, before[1], after[1], clicked),
    ):
        label, old, new = label[rows], old[rows], new[rows]
        # two samples, one to fit and one to judge, each of relative error sqrt(sum p (1 - p)) / sum p
        error = np.sqrt(2 * np.sum(new * (1 - new))) / np.sum(new)
        assert abs(pcoc(label, new) - 1) < 5 * error < abs(pcoc(label, old) - 1)
        assert ece(label, new) < ece(label, old) / 2
    for label, old, new, rows in (
        (click, logits[0], new_click, np.ones(len(click), bool)),
        (conversion, logits[1], new_conversion, clicked),
    ):
        assert roc_auc_score(label[rows], new[rows]) == roc_auc_score(label[rows], old[rows])


def test_over_prediction_of_conversions_is_of_the_planted_size():
    *logits, click, conversion, final = planted(60_000, 2)
    clicked = (click > 0) & final
    assert 1.2 < pcoc(conversion[clicked], sigmoid(logits[1][clicked])) < 1.5  # odds 1.5 times


@pytest.mark.slow
def test_a_map_fitted_on_clicks_would_be_biased():
    # Likely buyers click more than the click model knows. Right on clicked rows is then too low over all impressions.
    rows = planted(150_000, 3, hidden=0.4, base=-2.8)
    click_logit, conversion_logit, click, conversion, final = rows
    ours = Calibration.fit(*rows)
    clicked = (click > 0) & final
    everyone = np.full(int(clicked.sum()), 30.0, np.float32)  # as if the click were certain: no product
    on_clicks = Calibration.fit(
        everyone, conversion_logit[clicked], click[clicked], conversion[clicked], final[clicked]
    )
    assert "clicks not calibrated" in on_clicks.note and on_clicks.conversion != ours.conversion
    p = sigmoid(ours.click.apply(click_logit[final]))
    assert abs(pcoc(click[final], p) - 1) < 0.02  # the click map is right on average: the bias is not its fault
    q, biased = (sigmoid(map_.apply(conversion_logit[final])) for map_ in (ours.conversion, on_clicks.conversion))
    error = np.sqrt(np.sum(p * q)) / np.sum(p * q)
    assert abs(pcoc(conversion[final], p * q) - 1) < 5 * error
    assert pcoc(conversion[final], p * biased) < 1 - 6 * error


def test_rows_that_are_not_final_count_for_clicks_only():
    *logits, click, conversion, final = planted(20_000, 4)
    found = Calibration.fit(*logits, click, conversion, final)
    late = conversion.copy()
    late[~final] = click[~final]
    assert Calibration.fit(*logits, click, late, final) == found
    mature = [column[final] for column in (*logits, click, conversion, final)]
    assert Calibration.fit(*mature).click != found.click


def test_auto_bends_where_there_are_enough_positives():
    few = planted(20_000, 5)
    conversions = int((few[3] * few[4]).sum())
    assert conversions > 400
    found = Calibration.fit(*few)
    assert len(found.click.knots) == len(found.conversion.knots) == 9
    part = [column[:4000] for column in few]
    assert 50 <= int((part[3] * part[4]).sum()) < 200 <= part[2].sum()
    found = Calibration.fit(*part)
    assert (len(found.click.knots), len(found.conversion.knots)) == (9, 2)


def test_too_little_to_go_by_is_the_identity_and_said():
    *logits, click, conversion, final = planted(2000, 6)
    nothing = Calibration.fit(*logits, 0 * click, 0 * conversion, final)
    assert (nothing.click, nothing.conversion) == (Calibration.identity().click, Calibration.identity().conversion)
    assert nothing.note == (
        "clicks not calibrated: 0 in 2000 rows, 50 of either label are needed; "
        f"conversions not calibrated: 0 in {final.sum()} rows, 50 of either label are needed"
    )
    few = conversion * (np.cumsum(conversion) <= 49)
    found = Calibration.fit(*logits, click, few, np.ones(2000, bool))
    assert found.note == "conversions not calibrated: 49 in 2000 rows, 50 of either label are needed"
    assert found.click != Calibration.identity().click
    empty = Calibration.fit(*(np.empty(0),) * 5)
    assert empty.click == Calibration.identity().click and empty.note.startswith("clicks not calibrated: 0 in 0 rows")
    assert "clicks not calibrated: 2000" in Calibration.fit(*logits, np.ones(2000), conversion, final).note


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("click_logit", np.nan, r"`click_logit` should be finite. Received: 1 of 100 rows"),
        ("conversion_logit", np.inf, r"`conversion_logit` should be finite. Received: 1 of 100 rows"),
        ("click", 2, "`click` should be 0 or 1. Received: 1 of 100 rows"),
        ("conversion", np.nan, "`conversion` should be 0 or 1"),
        ("conversion", 1, "`conversion` should be 0 where `click` is 0. Received: 1 conversions"),
    ],
)
def test_rejects_rows(name, value, message):
    columns = {key: np.zeros(100) for key in ("click_logit", "conversion_logit", "click", "conversion", "final")}
    columns[name][7] = value
    with pytest.raises(ValueError, match=message):
        Calibration.fit(**columns)


def test_rejects():
    with pytest.raises(ValueError, match=r"`click` should be one number a row. Received: shape \(9,\), not \(10,\)"):
        Calibration.fit(np.zeros(10), np.zeros(10), np.zeros(9), np.zeros(10), np.ones(10))
    with pytest.raises(ValueError, match="method='isotonic'"):
        Calibration.fit(*(np.zeros(10),) * 5, method="isotonic")
    for knots, values in (((0, 0), (0, 1)), ((0, 1), (1, 0)), ((0,), (0,)), ((0, np.nan), (0, 1))):
        with pytest.raises(ValueError, match="strictly increasing"):
            MonotoneCalibration(knots, values)
    with pytest.raises(ValueError, match="3 values, 2 knots"):
        MonotoneMap((0, 1), (0, 1, 2))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="`model` should have the outputs 'click_logit'"):
        calibrated(model, Calibration.identity())


def test_dict_round_trip():
    one = Calibration(BENT, Calibration.identity().conversion, "why")
    assert Calibration.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_layer_config_round_trip():
    layer = MonotoneCalibration(BENT.knots, BENT.values)
    copy = MonotoneCalibration.from_config(layer.get_config())
    assert copy.map == BENT


def two_logits():
    inputs = {name: keras.Input((), name=name) for name in ("a", "b")}
    return keras.Model(inputs, funnel_outputs(inputs["a"] + 0.0, inputs["b"] + 0.0), name="two_logits")


def test_calibrated_model_is_the_numpy_twin_everywhere(tmp_path):
    *logits, click, conversion, final = planted(20_000, 7)
    calibration = Calibration.fit(*logits, click, conversion, final, method="piecewise")
    model = calibrated(two_logits(), calibration)
    inputs = dict(zip("ab", logits, strict=True))
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved"))
    expected = calibration.logits(*logits)
    for outputs in (
        model.predict(inputs, batch_size=4096, verbose=0),
        keras.models.load_model(tmp_path / "model.keras").predict(inputs, batch_size=4096, verbose=0),
        served.serve({name: tf.constant(values) for name, values in inputs.items()}),
    ):
        found = {name: np.asarray(values) for name, values in outputs.items()}
        np.testing.assert_allclose(found["click_logit"], expected[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found["conversion_logit"], expected[1], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found["pctr"], sigmoid(expected[0]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["pcvr"], sigmoid(expected[1]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["pctcvr"], found["pctr"] * found["pcvr"], rtol=1e-6)
        np.testing.assert_allclose(np.exp(found["log_pctcvr"]), found["pctcvr"], rtol=1e-5)


def test_calibrated_esmm_keeps_inputs_and_weights():
    model = build_esmm([Feature("item", "categorical", size=10)], positions=3)
    line = MonotoneMap((0.0, 1.0), (-1.0, 1.0))
    found = calibrated(model, Calibration(line, Calibration.identity().conversion))
    inputs = {"item": np.array([1, 2], np.int32), "position": np.array([0, 2], np.int32)}
    before, after = model.predict(inputs, verbose=0), found.predict(inputs, verbose=0)
    assert {tensor.name for tensor in found.inputs} == {"item", "position"}
    np.testing.assert_allclose(after["click_logit"], 2 * before["click_logit"] - 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(after["conversion_logit"], before["conversion_logit"])
    assert all(one is other for one, other in zip(model.weights, found.weights, strict=True))
