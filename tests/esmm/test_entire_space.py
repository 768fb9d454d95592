"""What ESMM is for: the conversion over all impressions, clicked or not, learned better than from clicks alone."""

import keras
import numpy as np
import pytest

from esmm import Architecture, Feature, PassDecay, RowAdam, Strategy

pytestmark = pytest.mark.slow

TRAIN, TEST, BATCH = 120_000, 60_000, 512
SIZES = (10, 21, 45, 97, 207, 441, 939, 2000)
SHARED = 0.8  # correlation of an id's weights in both tasks: what the rare one can learn from the frequent one


def world(seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, clicks, conversions and the true P(conversion given click) of every impression; rates of 10 %."""
    generator = np.random.default_rng(seed)
    inputs, logits = {}, np.full((TRAIN + TEST, 2), -2.9)
    for place, size in enumerate(SIZES):
        ids = (size ** generator.random(TRAIN + TEST)).astype(np.int32) - 1  # Zipf
        click, own = generator.normal(size=(2, size))
        weights = np.stack([click, SHARED * click + (1 - SHARED**2) ** 0.5 * own], axis=1)
        logits += 0.4 * weights[ids]
        inputs[f"id_{place}"] = ids + 2
    pctr, pcvr = (1 / (1 + np.exp(-logits))).T
    click = (generator.random(TRAIN + TEST) < pctr).astype(np.float32)
    conversion = click * (generator.random(TRAIN + TEST) < pcvr)
    return inputs, click, conversion.astype(np.float32), pcvr


def cross_entropy(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    probability = np.clip(probability.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(truth * np.log(probability) + (1 - truth) * np.log1p(-probability))


def test_esmm_is_above_base_by_five_standard_errors():
    inputs, click, conversion, pcvr = world()
    features = [Feature(name, "categorical", size=size + 2) for name, size in zip(inputs, SIZES, strict=True)]
    early, late = slice(None, TRAIN), slice(TRAIN, None)
    rates = (click[early].mean(), conversion[early].sum() / click[early].sum())
    truth = pcvr[late]
    gap = cross_entropy(truth, np.full(TEST, truth.mean())) - cross_entropy(truth, truth)
    gains = []  # share of the gap that ESMM closes and BASE does not: [random seeds, impressions]
    for seed in range(4):
        losses = {}
        for name in ("esmm", "base"):
            keras.utils.set_random_seed(seed)
            strategy = Strategy(name)
            model = strategy.build(features, Architecture(towers=(64, 32)), base_rates=rates)
            schedule = PassDecay(5e-3, steps=-(-TRAIN // BATCH))
            model.compile(RowAdam(schedule, epsilon=1e-5), strategy.losses())
            targets, weights = strategy.supervise(click[early], conversion[early])
            seen = {key: values[early] for key, values in inputs.items()}
            model.fit(seen, targets, sample_weight=weights, batch_size=BATCH, verbose=0)
            found = model.predict({key: values[late] for key, values in inputs.items()}, 8192, verbose=0)
            losses[name] = cross_entropy(truth, found["pcvr"])
        gains.append((losses["base"] - losses["esmm"]) / gap.mean())
    by_seed = np.mean(gains, axis=1)
    of_seeds, of_rows = by_seed.std(ddof=1) / 2, np.mean(gains, axis=0).std() / TEST**0.5
    assert by_seed.mean() > 5 * np.hypot(of_seeds, of_rows)  # measured: .151, standard error .009
    assert by_seed.min() > 0
