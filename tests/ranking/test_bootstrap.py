import math

import numpy as np
import pytest

from ranking.bootstrap import AUC, ECE, GAUC, NDCG, PCOC, LogLoss, Mean, user_bootstrap
from ranking.metrics import auc, ece, gauc, logloss, ndcg, pcoc


def log_of(rows=3000, users=300, seed=0):
    generator = np.random.default_rng(seed)
    user = generator.integers(0, users, rows)
    p = generator.uniform(0.02, 0.3, rows)
    click = (generator.random(rows) < p).astype(np.int8)
    conversion = click * (generator.random(rows) < 0.4)
    columns = {
        "user_id": user,
        "click": click,
        "conversion": conversion,
        "p": p,
        "q": p**2,
        "noise": generator.random(rows),
    }
    return user, columns


def test_statistics_are_the_metrics_of_repeated_rows():
    user, columns = log_of(400, 40)
    weight = np.random.default_rng(1).integers(0, 3, 40)[user].astype(float)
    repeated = {name: np.repeat(values, weight.astype(int)) for name, values in columns.items()}
    label, score, group = repeated["click"], repeated["p"], repeated["user_id"]
    assert AUC("click", "p")(columns, weight) == pytest.approx(auc(label, score), abs=1e-12)
    assert LogLoss("click", "p")(columns, weight) == pytest.approx(logloss(label, score), abs=1e-12)
    assert PCOC("click", "p")(columns, weight) == pytest.approx(pcoc(label, score), abs=1e-12)
    assert ECE("click", "p")(columns, weight) == pytest.approx(ece(label, score), abs=1e-12)
    # copies of a user are groups of their own: the same AUC, as often as drawn
    values = [(gauc(columns["click"][user == u], columns["p"][user == u], user[user == u]), u) for u in range(40)]
    drawn = [(v, (weight * (user == u)).sum()) for v, u in values if not math.isnan(v)]
    expected = sum(v * w for v, w in drawn) / sum(w for _, w in drawn)
    assert GAUC("click", "p")(columns, weight) == pytest.approx(expected, abs=1e-12)
    assert group.size == label.size
    users = {u: ndcg(columns["click"][user == u], columns["p"][user == u], user[user == u]) for u in range(40)}
    times = {u: weight[user == u].max(initial=0) for u, v in users.items() if not math.isnan(v)}
    expected = sum(users[u] * w for u, w in times.items()) / sum(times.values())
    assert NDCG("click", "p")(columns, weight) == pytest.approx(expected, abs=1e-12)
    clicked = label == 1
    assert AUC("conversion", "p", where="click")(columns, weight) == pytest.approx(
        auc(repeated["conversion"][clicked], score[clicked]), abs=1e-12
    )


def test_groups_of_some_rows_only():
    user, columns = log_of(400, 40)
    clicked = columns["click"] == 1
    for kind, metric in ((GAUC, gauc), (NDCG, ndcg)):
        found = kind("conversion", "p", where="click")(columns, np.ones(400))
        expected = metric(columns["conversion"][clicked], columns["p"][clicked], user[clicked])
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_mean_is_prepared_once():
    class Counted(AUC):
        prepared = 0

        def prepare(self, columns):
            Counted.prepared += 1
            return super().prepare(columns)

    user, columns = log_of(300, 30)
    found = user_bootstrap(user, columns, {"both": Mean([Counted("click", "p"), AUC("click", "noise")])}, replicates=20)
    assert Counted.prepared == 1
    expected = (auc(columns["click"], columns["p"]) + auc(columns["click"], columns["noise"])) / 2
    assert found.estimate["both"] == pytest.approx(expected, abs=1e-12)


def test_standard_error_of_a_mean_is_the_textbook_one():
    # one row a user: the standard error of a mean is sd / sqrt(n)
    x = np.random.default_rng(0).normal(size=2000)
    found = user_bootstrap(
        np.arange(2000), {"x": x}, {"mean": lambda c, w: np.average(c["x"], weights=w)}, replicates=400
    )
    assert found.estimate["mean"] == pytest.approx(x.mean())
    assert found.se["mean"] == pytest.approx(x.std() / math.sqrt(2000), rel=0.15)
    low, high = found.interval("mean")
    assert high - low == pytest.approx(2 * 1.96 * found.se["mean"], rel=0.15)


def test_users_are_the_sample():
    # every user five times the same row: no more is known than with one row each
    x = np.random.default_rng(0).normal(size=400)
    mean = {"mean": lambda c, w: np.average(c["x"], weights=w)}
    once = user_bootstrap(np.arange(400), {"x": x}, mean).se["mean"]
    five = user_bootstrap(np.repeat(np.arange(400), 5), {"x": np.repeat(x, 5)}, mean).se["mean"]
    assert five == pytest.approx(once, rel=1e-9)


def test_differences_are_paired():
    user, columns = log_of()
    statistics = {"p": AUC("click", "p"), "q": AUC("click", "q"), "noise": AUC("click", "noise")}
    found = user_bootstrap(user, columns, statistics, differences={"p - q": ("p", "q"), "p - noise": ("p", "noise")})
    assert found.se["p - q"] == 0 and found.estimate["p - q"] == 0  # one order, one AUC, in every replicate
    assert found.se["p"] > 0.005
    assert found.estimate["p - noise"] == pytest.approx(found.estimate["p"] - found.estimate["noise"])
    assert found.estimate["p - noise"] > 3 * found.se["p - noise"]


def test_seed_decides():
    user, columns = log_of(300, 30)
    runs = [
        user_bootstrap(user, columns, {"a": AUC("click", "p")}, replicates=20, seed=s).draws["a"] for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_undefined_replicates_are_left_out():
    # one positive of four users: replicates without it have no AUC
    columns = {"y": np.array([1, 0, 0, 0]), "s": np.array([3.0, 1.0, 2.0, 4.0])}
    found = user_bootstrap(np.arange(4), columns, {"a": AUC("y", "s"), "never": AUC("y", "s", where="y")})
    assert np.isnan(found.draws["a"]).any() and math.isfinite(found.se["a"])
    assert math.isnan(found.se["never"]) and math.isnan(found.interval("never")[0])


def test_rejects():
    user, columns = log_of(50, 10)
    with pytest.raises(ValueError, match="replicates=1"):
        user_bootstrap(user, columns, {}, replicates=1)
    with pytest.raises(ValueError, match="`differences`"):
        user_bootstrap(user, columns, {"a": AUC("click", "p")}, differences={"d": ("a", "b")})
    with pytest.raises(ValueError, match="column 'p' should have 49 rows"):
        user_bootstrap(user[1:], {"p": columns["p"]}, {})
