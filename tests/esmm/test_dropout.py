import keras
import numpy as np
import pytest

from esmm.dropout import ByteDropout


@pytest.mark.parametrize("rate, kept", [(0.2, 205), (0.5, 128), (0.9, 26)])
def test_share_and_scale(rate, kept):
    # rate .2 keeps round(256 .8) = 205 of 256 bytes: the others grow by 256 / 205, and the mean stays
    keras.utils.set_random_seed(0)
    found = ByteDropout(rate)(np.ones((1000, 1001), np.float32), training=True).numpy()
    assert set(np.unique(found)) == {0, np.float32(256 / kept)}
    share = kept / 256
    assert abs((found > 0).mean() - share) < 5 * (share * (1 - share) / found.size) ** 0.5
    rows = (found > 0).mean(axis=1)  # independent of each other, in rows and from one row to the next
    assert abs(rows.var() / (share * (1 - share) / 1001) - 1) < 5 * (2 / 1000) ** 0.5
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 5 / 1000**0.5


def test_each_call_draws_anew_and_a_seed_repeats():
    def two():
        keras.utils.set_random_seed(3)
        layer = ByteDropout(0.5)
        return [layer(np.ones((8, 8), np.float32), training=True).numpy() for _ in range(2)]

    one, again = two(), two()
    assert (one[0] != one[1]).any()
    np.testing.assert_array_equal(one, again)


def test_outside_training_and_at_rate_0_the_input():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_array_equal(ByteDropout(0.5)(x, training=False), x)
    np.testing.assert_array_equal(ByteDropout(0.0)(x, training=True), x)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_a_model_and_its_file(jit, tmp_path):
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(5), ByteDropout(0.3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit)
    x = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    model.fit(x, x[:, 0], batch_size=16, verbose=0)  # the last batch is smaller
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))


def test_config_round_trip():
    layer = ByteDropout(0.3)
    assert ByteDropout.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rejects_a_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="`rate`"):
        ByteDropout(rate)
