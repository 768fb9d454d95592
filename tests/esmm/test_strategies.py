import keras
import numpy as np
import pytest

from esmm import Architecture, Feature, RowAdam, base_losses, base_targets, base_weights, build_base

FEATURES = (Feature("item_id", "categorical", size=12), Feature("similarity", "numeric"))
SMALL = Architecture(embedding_dim=4, towers=(8,), dropout=0.0)


def log_of(rows, seed=0):
    generator = np.random.default_rng(seed)
    inputs = {
        "item_id": generator.integers(0, 12, rows).astype(np.int32),
        "similarity": generator.uniform(-1, 1, rows).astype(np.float32),
    }
    click = generator.random(rows) < 0.3
    return inputs, click, click & (generator.random(rows) < 0.5)


def fitted(inputs, click, conversion):
    keras.utils.set_random_seed(0)
    model = build_base(FEATURES, SMALL, base_rates=(0.3, 0.5))
    model.compile(RowAdam(0.01), loss=base_losses())
    model.fit(
        inputs,
        base_targets(click, conversion),
        sample_weight=base_weights(click),
        batch_size=64,
        shuffle=False,
        verbose=0,
    )
    return model


def test_weights_known_values():
    weights = base_weights([1, 0, 1])
    np.testing.assert_array_equal(weights["click_logit"], [1, 1, 1])
    np.testing.assert_array_equal(weights["conversion_logit"], [1, 0, 1])


def test_outputs_are_those_of_esmm():
    inputs, _, _ = log_of(5)
    out = build_base(FEATURES, SMALL)(inputs)
    assert set(out) == {"pctr", "pcvr", "pctcvr", "click_logit", "conversion_logit", "log_pctcvr"}
    np.testing.assert_allclose(out["pctcvr"], out["pctr"] * out["pcvr"], rtol=1e-6)


def test_the_conversion_network_sees_clicked_rows_only():
    inputs, click, conversion = log_of(256)
    rewritten = {**inputs, "similarity": np.where(click, inputs["similarity"], 5.0).astype(np.float32)}
    one, other = fitted(inputs, click, conversion), fitted(rewritten, click, conversion)
    for a, b in zip(
        one.get_layer("conversion_network").get_weights(),
        other.get_layer("conversion_network").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    changed = zip(
        one.get_layer("click_network").get_weights(), other.get_layer("click_network").get_weights(), strict=True
    )
    assert any((a != b).any() for a, b in changed)


def test_nothing_is_shared():
    model = build_base(FEATURES, SMALL)
    one, other = (model.get_layer(name).embedding.table for name in ("click_network", "conversion_network"))
    assert one is not other


def test_rejects_and_file_round_trip(tmp_path):
    with pytest.raises(ValueError, match="base_rates"):
        build_base(FEATURES, base_rates=(0.5, 1.0))
    model = build_base(FEATURES, SMALL)
    model.save(tmp_path / "m.keras")
    inputs, _, _ = log_of(4)
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model(inputs)["pctcvr"], again(inputs)["pctcvr"])
