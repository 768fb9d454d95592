from dataclasses import replace

import numpy as np
import pytest

from ranking.errors import UserError
from ranking.replay.estimators import (
    E0LabelNDCG,
    E1ReplayMatch,
    E2PositionRatio,
    E3ExposureIPS,
    E4PositionIPS,
    E5SelfNormalised,
    E6DoublyRobust,
)
from ranking.replay.evaluation import Evaluation, Evaluator
from ranking.replay.settings import score_rows, score_terms, weight_matrix

ESTIMATED = [E0LabelNDCG(), E0LabelNDCG("user"), E2PositionRatio(), E3ExposureIPS(), E5SelfNormalised()]


def chosen_settings(world):
    return [world.setting(pctr=1.0, pcvr=0.3), world.setting(similarity=0.3, pctr=1.0), world.production]


@pytest.mark.parametrize("estimator", [*ESTIMATED, E4PositionIPS(), E6DoublyRobust()], ids=repr)
def test_points_are_means_of_the_values_and_production_changes_nothing(world, estimator):
    evaluator = Evaluator(world.log, world.production, estimator, replicates=50)
    settings = chosen_settings(world)
    matrix = weight_matrix(settings, world.production, evaluator.parts, list(world.log.parts))
    values, deltas = evaluator.sums.values(matrix), evaluator.deltas(matrix)[0]
    found = evaluator.evaluate(settings)
    for name in evaluator.objectives:
        counted = evaluator.sums.requests_counted(name)
        mean = values[name][:, counted].mean(axis=1, dtype=np.float64)
        if name in evaluator.sums.ratios:
            mean /= values[evaluator.sums.ratios[name]].mean(axis=1, dtype=np.float64)
        for row, evaluation in enumerate(found):
            if not evaluation.refused:
                assert evaluation.estimates[name].value == pytest.approx(mean[row], rel=1e-5)
                assert evaluation.estimates[name].delta == pytest.approx(mean[row] / mean[-1] - 1, abs=1e-5)
                assert evaluation.estimates[name].delta == pytest.approx(deltas[name][row], abs=1e-6)
        last = found[-1].estimates[name]
        assert (last.delta, last.low, last.high) == (0, 0, 0)
    again = [Evaluation.from_json(row.to_json()) for row in found]
    assert again == found


@pytest.mark.parametrize("estimator", ESTIMATED, ids=repr)
def test_scores_give_what_the_weights_give(world, estimator):
    evaluator = Evaluator(world.log, world.production, estimator, replicates=50)
    settings = chosen_settings(world)
    rows = score_rows(world.log, settings, world.production)
    by_scores = evaluator.evaluate_scores({str(index): row for index, row in enumerate(rows)})
    for one, other in zip(evaluator.evaluate(settings), by_scores, strict=True):
        assert one.estimates == other.estimates and one.support == other.support
        assert other.weights == {}


def test_scores_that_are_no_scores(world):
    evaluator = Evaluator(world.log, world.production, replicates=50)
    wrong = np.full(len(world.log.item), np.nan)
    for row in (wrong, wrong[:-1]):
        with pytest.raises(UserError, match="scores of 'rival' should be a finite number for each"):
            evaluator.evaluate_scores({"rival": row})


def test_settings_that_differ_by_segment(world):
    # A request counts under the weights of its own segment.
    segment = np.where(np.arange(world.log.requests) % 3 == 0, "new", "old").astype(object)
    log = replace(world.log, segment=segment)
    setting = replace(world.setting(pctr=1.0, pcvr=0.3), segments={"new": {"similarity": 0.5}})
    evaluator = Evaluator(log, world.production, replicates=50)
    found = evaluator.evaluate([setting])[0]
    inside = [world.setting(pctr=1.0, pcvr=0.3, similarity=0.5), world.setting(pctr=1.0, pcvr=0.3)]
    matrix = weight_matrix(inside, world.production, evaluator.parts, list(log.parts))
    values = evaluator.sums.values(matrix)
    for name, estimate in found.estimates.items():
        mixed = np.where(segment == "new", *values[name])[evaluator.sums.requests_counted(name)]
        assert estimate.value == pytest.approx(mixed.mean(dtype=np.float64), rel=1e-5)
    assert found.estimates["clicks"].value != pytest.approx(values["clicks"][1].mean(), rel=1e-3)


def test_clipped_is_the_share_of_the_weight_that_is_lost(world):
    estimator = E3ExposureIPS(clip=3.0)
    evaluator = Evaluator(world.log, world.production, estimator, replicates=50)
    setting = world.setting(pctr=1.0, pcvr=0.3)
    matrix = weight_matrix([setting], world.production, evaluator.parts, list(world.log.parts))
    values = evaluator.sums.values(matrix, ["weight", "clipped"])
    found = evaluator.evaluate([setting])[0]
    assert found.clipped == pytest.approx(values["clipped"].sum() / values["weight"].sum(), rel=1e-4)
    assert 0 < found.clipped < 0.2
    assert Evaluator(world.log, world.production, replicates=50).evaluate([setting])[0].clipped == 0


@pytest.mark.parametrize(
    "estimator",
    [
        E3ExposureIPS(),
        *(pytest.param(other, marks=pytest.mark.slow) for other in (E5SelfNormalised(), E2PositionRatio())),
    ],
    ids=repr,
)
def test_the_error_of_theta_is_in_the_intervals(world, estimator):
    # Against a simulation: theta drawn, the estimate made again. 100 draws tell a standard deviation to 7 %.
    covariance = np.diag([0, 0.08, 0.06, 0.05]) ** 2
    log = world.log.take(np.arange(400))
    settings = [world.setting(pctr=1.0, similarity=0.8), world.production]
    uncertain = replace(log, examination_covariance=covariance, examination_method="estimated")
    evaluator = Evaluator(uncertain, world.production, estimator, replicates=2000)
    matrix = weight_matrix(settings, world.production, evaluator.parts, list(log.parts))
    shifts = evaluator._examination_shifts(evaluator.sums, matrix)
    rng = np.random.default_rng(0)
    drawn = {name: [] for name in ("clicks", "new_items")}
    for _ in range(100):
        theta = log.examination + rng.multivariate_normal(np.zeros(4), covariance)
        there = estimator.sums(log.with_theta(theta), world.production)
        means = evaluator._means(there, there.totals(matrix).sum)
        for name, rows in drawn.items():
            rows.append(means[name])
    for name, rows in drawn.items():
        np.testing.assert_allclose(shifts[name].std(axis=0), np.std(rows, axis=0), rtol=0.4)
    wider = evaluator.evaluate(settings, together=False)[0].estimates["new_items"]
    stated = Evaluator(log, world.production, estimator, replicates=2000)
    narrow = stated.evaluate(settings, together=False)[0].estimates["new_items"]
    assert wider.delta == narrow.delta and wider.value_error > narrow.value_error
    assert stated._examination_shifts(stated.sums, matrix) == {}


def test_a_rank_form_is_evaluated(world):
    production = type(world.production).fit(
        world.log.parts, "rank", {"similarity": 0.1, "pctr": 1.0, "pcvr": 0.1}, "p0", offsets=world.log.offsets
    )
    ranks = score_terms(world.log, production)["pctr"][world.log.offsets[0] : world.log.offsets[1]]
    pctr = world.log.parts["pctr"][world.log.offsets[0] : world.log.offsets[1]]
    np.testing.assert_array_equal(np.argsort(-ranks, kind="stable"), np.argsort(-pctr, kind="stable"))
    found = Evaluator(world.log, production, replicates=50).evaluate([production])[0]
    assert found.estimates["clicks"].delta == 0


def test_a_ratio_estimator_without_its_log_is_refused(world):
    with pytest.raises(UserError, match="E1 needs a log in uniformly random order"):
        Evaluator(world.log, world.production, E1ReplayMatch())
