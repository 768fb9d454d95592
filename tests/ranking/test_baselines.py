import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from esmm.embedding import Feature
from ranking.baselines import REGULARISATION, Logistic, Popularity, plain_features
from ranking.rows import Rows

FEATURES = [
    Feature("user_id", "categorical", "user_id", 4),
    Feature("item_id", "categorical", "item", 5),
    Feature("item_tags", "multi", "item_tags", 4),
    Feature("context_hour", "numeric", size=1),
    Feature("behavior_read", "multi", "item", 5),
    Feature("statistic_ctr", "numeric", size=2),
    Feature("similarity", "numeric", size=1),
]


def rows_of(click, conversion, mature=None, **features):
    n = len(click)
    click, conversion = np.array(click, np.float32), np.array(conversion, np.float32)
    mature = np.ones(n, bool) if mature is None else np.array(mature)
    return Rows(np.arange(n), features, click, conversion, mature, np.zeros(n, bool))


def random_rows(seed=0, n=400):
    generator = np.random.default_rng(seed)
    features = {
        "user_id": generator.integers(0, 4, n).astype(np.int32),
        "item_id": generator.integers(0, 5, n).astype(np.int32),
        "item_tags": generator.integers(0, 4, (n, 3)).astype(np.int32),
        "context_hour": generator.random(n).astype(np.float32),
    }
    click = generator.random(n) < 0.1 + 0.15 * features["item_id"]
    conversion = click & (generator.random(n) < features["context_hour"])
    return rows_of(click, conversion, generator.random(n) < 0.8, **features)


def test_plain_features_are_ids_profile_item_and_context():
    assert [feature.name for feature in plain_features(FEATURES)] == ["user_id", "item_id", "item_tags", "context_hour"]


def test_popularity_known_values():
    # item 0: shown 3, clicked 2, both mature, bought 1; item 1: shown 1, clicked 1, bought but immature; item 2: never
    rows = rows_of([1, 1, 0, 1], [1, 0, 0, 1], [True, True, True, False])
    found = Popularity.fit(np.array([0, 0, 0, 1]), rows, 3)
    # clicks of impressions: (3 + 1) / (4 + 2) = 2/3; prior 20
    assert found.pctr == pytest.approx([(2 + 40 / 3) / 23, (1 + 40 / 3) / 21, 2 / 3, 2 / 3], abs=1e-12)
    # mature conversions of mature clicks: (1 + 1) / (2 + 2) = 1/2
    assert found.pcvr == pytest.approx([11 / 22, 10 / 20, 1 / 2, 1 / 2], abs=1e-12)
    # of mature impressions: (1 + 1) / (3 + 2) = 2/5
    assert found.pctcvr == pytest.approx([9 / 23, 8 / 20, 2 / 5, 2 / 5], abs=1e-12)
    predicted = found.predict(np.array([3, 0]))  # the last row is nobody's
    assert list(predicted) == ["pctr", "pcvr", "pctcvr"] and predicted["pctr"] == pytest.approx([2 / 3, 46 / 69])


def one_hot(features):
    """The design matrix by hand, dense."""
    n = len(features["user_id"])
    matrix = np.zeros((n, 4 + 5 + 4 + 1))
    for row in range(n):
        matrix[row, features["user_id"][row]] = 1
        matrix[row, 4 + features["item_id"][row]] = 1
        tags = [tag for tag in features["item_tags"][row] if tag]
        for tag in tags:  # the mean of its values
            matrix[row, 9 + tag] += 1 / len(tags)
        matrix[row, 13] = features["context_hour"][row]
    return matrix


def test_logistic_is_scikit_learns_on_one_hot_rows():
    rows = random_rows()
    found = Logistic.fit(rows, FEATURES).predict(rows.features, FEATURES)
    matrix = one_hot(rows.features)
    clicked = (rows.click > 0) & rows.mature
    heads = {
        "pctr": (np.ones(400, bool), rows.click),
        "pcvr": (clicked, rows.conversion),
        "pctcvr": (rows.mature, rows.conversion),
    }
    for name, (kept, label) in heads.items():
        model = LogisticRegression(C=REGULARISATION, max_iter=200).fit(matrix[kept], label[kept])
        assert found[name] == pytest.approx(model.predict_proba(matrix)[:, 1], abs=5e-4)  # the solver stops at 1e-4


def test_logistic_looks_at_no_immature_conversion():
    rows = random_rows()
    other = rows_of(rows.click, np.where(rows.mature, rows.conversion, rows.click), rows.mature, **rows.features)
    first, second = (Logistic.fit(each, FEATURES).coefficients for each in (rows, other))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_one_class_gives_its_smoothed_rate():
    rows = random_rows()
    none = rows_of(rows.click, np.zeros(400), np.ones(400, bool), **rows.features)
    found = Logistic.fit(none, FEATURES).predict(rows.features, FEATURES)
    # no conversion among the clicks, none among 400 impressions: (0 + 1) / (n + 2)
    assert found["pcvr"] == pytest.approx(np.full(400, 1 / (rows.click.sum() + 2)))
    assert found["pctcvr"] == pytest.approx(np.full(400, 1 / 402))
    assert found["pctr"].std() > 0.05
