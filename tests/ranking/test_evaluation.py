import math

import numpy as np
import pytest

from ranking.evaluation import HEADS, METRICS, _add_common, _judge
from ranking.metrics import auc, ece, gauc, logloss, ndcg, pcoc


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def judged(models, replicates=20, n=4000, seed=0):
    """Columns of a log, predictions of some models with noise of their own, and what `_judge` finds."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=n)
    click = (generator.random(n) < sigmoid(z - 1)).astype(np.float32)
    columns = {
        "user_id": generator.integers(0, 400, n),
        "click": click,
        "conversion": click * (generator.random(n) < sigmoid(z - 0.5)),
        "all": np.ones(n, bool),
        "clicked": click > 0,
        "mature": generator.random(n) < 0.9,
        "new": generator.random(n) < 0.2,
        "rare": generator.random(n) < 0.2,
    }
    predictions = {}
    for model in models:
        predictions[model] = []
        for _ in range(2 if model == "seedrank" else 1):
            p, q = (sigmoid(z - c + generator.normal(0, 0.7, n)).astype(np.float32) for c in (1, 0.5))
            predictions[model].append({"pctr": p, "pcvr": q, "pctcvr": p * q})
    _add_common(predictions)
    return columns, predictions, *_judge(columns, predictions, replicates)


def test_every_metric_of_every_model_has_its_error():
    columns, predictions, models, differences = judged(["seedrank", "no_similarity", "base"])
    assert set(models) == {"seedrank", "no_similarity", "base"}
    for heads in models.values():
        assert set(heads) == set(HEADS) == {"click", "cvr", "ctcvr", "ctcvr_common"}
        for found in heads.values():
            assert set(found) == {*METRICS, *(f"{name}_se" for name in METRICS), "auc_by_seed"}
            assert all(math.isfinite(found[name]) and 0 < found[f"{name}_se"] < 0.2 for name in METRICS)
    # the values are those of the metrics themselves; over two random seeds, their mean
    plain = {"auc": auc, "logloss": logloss, "pcoc": pcoc, "ece": ece}
    for model, (label, part, where) in ((m, h) for m in models for h in HEADS.values()):
        head = next(name for name, spec in HEADS.items() if spec == (label, part, where))
        rows = columns[where]
        for name in METRICS:
            values = [
                plain[name](columns[label][rows], parts[part][rows].astype(np.float64))
                if name in plain
                else {"gauc": gauc, "ndcg": ndcg}[name](
                    columns[label][rows], parts[part][rows], columns["user_id"][rows]
                )
                for parts in predictions[model]
            ]
            assert models[model][head][name] == pytest.approx(np.mean(values), abs=1e-12), (model, head, name)
    kinds = {(row["from"], row["head"], row["items"], row["metric"]) for row in differences}
    assert ("base", "ctcvr_common", "all", "auc") in kinds and ("no_similarity", "cvr", "rare", "logloss") in kinds


def test_the_common_pctr_is_that_of_the_first_base():
    columns, predictions, models, _ = judged(["seedrank", "base", "popularity"])
    common = predictions["base"][0]["pctr"]
    for seeds in predictions.values():
        for parts in seeds:
            np.testing.assert_array_equal(parts["pctcvr_common"], common * parts["pcvr"])
    # of base's own first network it is the product as it is; of the others it is not
    assert models["base"]["ctcvr_common"]["auc"] == models["base"]["ctcvr"]["auc"]
    assert models["seedrank"]["ctcvr_common"]["auc"] != models["seedrank"]["ctcvr"]["auc"]


def test_without_base_there_is_no_common_pctr():
    _, _, models, differences = judged(["seedrank", "popularity"])
    assert all(set(heads) == {"click", "cvr", "ctcvr"} for heads in models.values())
    assert {row["head"] for row in differences} == {"click", "cvr", "ctcvr"}
