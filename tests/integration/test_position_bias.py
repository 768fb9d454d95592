"""The position bias tower against a simulated log: it finds the examination, and pctr is right for it.

The policy ranks by price and against clicks, so that the click rates by position are far from the examination: whoever
reads the examination off them, or leaves the position out, is wrong.
"""

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest

from esmm import Feature, RowAdam, build_esmm, losses, targets
from ranking.data.simulator import load_world, simulate
from ranking.data.tables import Dataset

pytestmark = pytest.mark.slow

THETA = (1.0, 0.75, 0.55, 0.4, 0.3, 0.22)
WORLD = f"""
name = "positions"
seed = 7
start = 2025-03-03

[users]
count = 300
history_clicks = 1
history_days = 10

[items]
count = 100
born_per_day = 0
categories = 6
drift = 0

[traffic]
requests = 30000
daily = [2, 2, 2, 2, 1, 1, 2, 2]
candidates = 12
examination = {list(THETA)}
tabs = ["home", "search"]

[feedback]
click_rate = 0.05
conversion_rate = 0.3
interaction_share = 0        # what the network cannot learn would end up in the positions
spread = [1.0, 1.2]
kinship = 0.4
delay_hours = 6
attribution_hours = 24

[policy]
name = "dear and dull first"
weights = {{ pctr = -1.0, price = 1.0 }}
exploration = "plackett_luce"
temperature = 0.7
epsilon = 0
noise = 0.6
blind_days = 1

[windows]
lookalike = [-10, 2]
train = [2, 4]
calibrate = [4, 5]
tune = [5, 6]
test = [6, 8]

[state]
seed_event = "click"
k = 4
min_seeds = 8
"""


@dataclasses.dataclass(frozen=True)
class Log:
    """Rows before the test window and in it, with P(click | examined) of each."""

    inputs: dict[str, np.ndarray]
    features: list[Feature]
    click: np.ndarray
    conversion: np.ndarray
    position: np.ndarray
    pctr: np.ndarray
    train: np.ndarray
    test: np.ndarray


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Log:
    folder = tmp_path_factory.mktemp("positions")
    (folder / "world.toml").write_text(WORLD)
    dataset = Dataset(simulate(load_world(folder / "world.toml"), folder / "data"))
    shown = dataset.impressions.merge(dataset.items[["item_id", "category", "price"]], on="item_id", how="left")
    truth = pd.read_parquet(folder / "data" / "truth" / "impressions.parquet")
    assert truth["examination"].to_numpy() == pytest.approx(np.array(THETA)[shown["position"]])
    inputs, features = {}, []
    for name in ("user_id", "item_id", "category", "tab"):
        inputs[name], values = pd.factorize(shown[name], sort=True)
        features.append(Feature(name, "categorical", name, len(values)))
    inputs["price"] = np.log(shown["price"].to_numpy(np.float32))[:, None]
    features.append(Feature("price", "numeric", size=1))
    start, end = dataset.schema.window("test")
    time = shown["timestamp"].to_numpy()
    return Log(
        {name: values.astype(np.float32 if name == "price" else np.int32) for name, values in inputs.items()},
        features,
        *(shown[name].to_numpy() for name in ("click", "conversion", "position")),
        truth["pctr"].to_numpy(np.float64),
        np.flatnonzero(time < start),
        np.flatnonzero((time >= start) & (time < end)),
    )


def fitted(log: Log, positions: int) -> tuple[keras.Model, np.ndarray]:
    """A model of two epochs, and its pctr in the test window: with the tower, as examined at the top."""
    keras.utils.set_random_seed(0)
    model = build_esmm(log.features, positions=positions)
    model.compile(RowAdam(3e-3, epsilon=1e-5), loss=losses())
    train, test = ({name: values[rows] for name, values in log.inputs.items()} for rows in (log.train, log.test))
    if positions:
        train["position"] = (log.position[log.train] + 1).astype(np.int32)
        test["position"] = np.zeros(len(log.test), np.int32)
    labels = targets(log.click[log.train], log.conversion[log.train])
    model.fit(train, labels, batch_size=512, epochs=2, verbose=0)
    return model, model.predict(test, batch_size=8192, verbose=0)["pctr"].astype(np.float64)


@pytest.fixture(scope="module")
def both(log):
    """With the tower and without it."""
    return fitted(log, len(THETA)), fitted(log, 0)


def sigmoid(logit):
    return 1 / (1 + np.exp(-logit))


def shift(probability: np.ndarray, mean: float) -> float:
    """What is to be added to the logits of the probabilities so that their mean is `mean`."""
    logit, low, high = np.log(probability) - np.log1p(-probability), -9.0, 9.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logit + middle).mean() < mean else (low, middle)
    return low


def test_the_tower_finds_the_examination(log, both):
    """Within 0.3 in the logit of each position, 0.2 in the mean square: clicks alone allow 5.2 * 0.045 = 0.23."""
    found = np.asarray(both[0][0].get_layer("position_bias").logits())[1:]
    position, pctr = log.position[log.train], log.pctr[log.train]
    at = [pctr[position == k] for k in range(len(THETA))]
    # The tower adds a logit where the truth multiplies: the logit with which the truth's mean comes out. Its odds are
    # theta for small pctr, and somewhat less here.
    truth = np.array([shift(p, theta * p.mean()) for p, theta in zip(at, THETA, strict=True)])
    assert np.all(np.exp(truth) <= np.array(THETA) + 1e-9) and np.all(np.exp(truth) > 0.8 * np.array(THETA))
    error = found - truth
    assert np.abs(error).max() < 0.3 and np.sqrt((error[1:] ** 2).mean()) < 0.2, np.exp(found)
    # the click rates of the positions do not show it
    rate = np.array([log.click[log.train][position == k].mean() for k in range(len(THETA))])
    logit = np.log(rate / (1 - rate))
    raw = logit - logit[0] - truth
    assert np.sqrt((raw[1:] ** 2).mean()) > 0.35


def log_loss(truth: np.ndarray, probability: np.ndarray) -> float:
    return float(-(truth * np.log(probability) + (1 - truth) * np.log1p(-probability)).mean())


def area(truth: np.ndarray, score: np.ndarray) -> float:
    """AUC over labels drawn with the true probabilities, in expectation (scores without ties)."""
    positive = truth[np.argsort(score)]
    below = np.cumsum(1 - positive) - (1 - positive) / 2
    return float((positive * below).sum() / (positive.sum() * (1 - positive).sum()))


def test_pctr_is_nearer_the_truth_with_the_tower(log, both):
    truth = log.pctr[log.test]
    (_, tower), (_, without) = both
    # the level: with the tower P(click | examined), without it P(click), which is much lower
    assert abs(np.log(tower.mean() / truth.mean())) < abs(np.log(without.mean() / truth.mean()))
    assert log_loss(truth, truth) < log_loss(truth, tower) < log_loss(truth, without) - 0.003
    # not for its level alone: with the best constant added to the logits of both, and in the order
    levelled = [sigmoid(np.log(p / (1 - p)) + shift(p, truth.mean())) for p in (tower, without)]
    assert log_loss(truth, levelled[0]) < log_loss(truth, levelled[1]) - 0.0005
    assert area(truth, tower) > area(truth, without) + 0.002
