import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Estimate, Evaluation, Evaluator
from ranking.replay.search import Space, pareto
from ranking.replay.study import Entry, Study
from ranking.replay.support import Support
from ranking.replay.tuning import _examination, tune
from ranking.replay.verdict import pick, verdict


def run(world, later, **changes):
    arguments = {"production": world.production, "trials": 64, "minimum_groups": 500, **changes}
    return tune(world.log, later.log, **arguments)


@pytest.fixture(scope="module")
def study_few(world, later) -> Study:
    return run(world, later, objective="clicks", guardrails={})


@pytest.fixture(scope="module")
def study(world, later) -> Study:
    return run(world, later, guardrails={"clicks": -0.1}, trials=300)


def test_the_pick_gains_and_keeps_the_guardrail(study, later):
    assert study.verdict.startswith("Recommend similarity=")
    pick = study.entry("pick")
    assert pick.name == study.pick
    assert pick.test.estimates["conversions"].low > 0
    assert pick.test.estimates["clicks"].low >= -0.1
    truth = {name: later.truth(study.weights(name))["conversions"] for name in ("pick", "production")}
    assert truth["pick"] > 1.03 * truth["production"]
    rivals = [e for e in study.shortlist[1:] if not e.test.refused and e.test.estimates["clicks"].low >= -0.1]
    assert max(e.test.estimates["conversions"].low for e in rivals) == pick.test.estimates["conversions"].low


def test_the_shortlist(study):
    assert study.shortlist[0].name == "production" and study.shortlist[0].test.estimates[
        "clicks"
    ].delta == pytest.approx(0, abs=1e-7)
    assert 2 <= len(study.shortlist) <= 11
    roles = {role for entry in study.shortlist for role in entry.roles}
    assert {"pick", "knee", "best conversions", "best clicks", "best new_items"} <= roles
    best = study.entry("best conversions")
    assert best.optimism("conversions") == pytest.approx(
        best.tune.estimates["conversions"].delta - best.test.estimates["conversions"].delta
    )
    assert set(best.reordering) >= {"clicks", "conversions"}  # E0 beside E3


def test_trials_hold_production_first_and_no_number_where_refused(study):
    assert len(study.trials) == 300
    assert study.trials[0]["weights"] == pytest.approx(study.production.weights)
    assert all(("deltas" in trial) != ("reason" in trial) for trial in study.trials)
    assert all(max(trial["weights"].values()) == 1 for trial in study.trials)


def entry(name: str, refused: str = "", **lows: float) -> Entry:
    gates = Support(refused, 1.0, 0.01, 0.9, 0.0, 0.01)
    estimates = {} if refused else {key: Estimate(1.0, 0.1, low + 0.02, low, low + 0.04) for key, low in lows.items()}
    found = Evaluation({"pctr": 1.0}, gates, estimates)
    return Entry(name, (), found, found)


def test_the_rule_of_the_pick_by_hand():
    production = entry("production", conversions=0.0, clicks=0.0)
    sure, better = entry("sure", conversions=0.01, clicks=-0.005), entry("better", conversions=0.02, clicks=-0.01)
    greedy = entry("greedy", conversions=0.2, clicks=-0.011)  # breaks the guardrail on the lower bound
    doubtful = entry("doubtful", conversions=-0.001, clicks=0.1)  # the lower bound is no gain
    refused = entry("refused", "one request holds 9% of the weight")
    entries = [production, greedy, doubtful, refused, sure, better]
    guardrails = {"clicks": -0.01}
    assert pick(entries, "conversions", guardrails) is better
    assert pick(entries[:5], "conversions", guardrails) is sure
    assert pick(entries[:4], "conversions", guardrails) is None
    assert pick(entries, "conversions", {}) is greedy
    text = verdict(None, "conversions", guardrails, entries[:4])
    assert text == (
        "Keep production: no setting surely raises conversions on the test window while keeping clicks -1.0% on the "
        "lower bound (1 of 3 refused for lack of support)."
    )
    assert verdict(sure, "conversions", guardrails, entries) == (
        "Recommend pctr=1: conversions +3.0% [+1.0%, +5.0%], clicks +1.5% [-0.5%, +3.5%] (guardrail -1.0%: kept)."
    )


@pytest.mark.slow
def test_labels_that_mean_nothing_mean_keep_production(world, later):
    def shuffled(log, seed):
        rng = np.random.default_rng(seed)
        shown = np.flatnonzero(log.position >= 0)
        click = np.zeros_like(log.click)
        click[shown] = rng.random(len(shown)) < 0.25 * log.examination[log.position[shown]]
        conversion = (click * (rng.random(len(click)) < 0.3)).astype(np.int8)
        return replace(log, click=click, conversion=conversion, value=conversion.astype(np.float32))

    study = tune(
        shuffled(world.log, 0), shuffled(later.log, 1), production=world.production, trials=64, minimum_groups=100
    )
    assert study.verdict.startswith("Keep production:") and study.pick == ""
    with pytest.raises(UserError, match="verdict is to keep production"):
        study.apply("unused")


def test_the_study_file_round_trips_and_counts_looks(study, tmp_path):
    path = tmp_path / "study.json"
    assert study.save(path) == study
    assert Study.load(path) == study and len(study.looks) == 1
    again = replace(study, looks=("another",)).save(path)
    assert again.looks == (*study.looks, "another") and Study.load(path).looks == again.looks
    assert again.save(path).looks == again.looks  # saving is not looking
    assert len(again.looked("what if").looks) == 3
    fresh = replace(study, test=replace(study.test, window=(6000, 9000)), looks=("first",))
    assert fresh.save(path).looks == ("first",)
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match="should be a study file"):
        Study.load(path)
    with pytest.raises(UserError, match="should be a study file"):
        Study.load(tmp_path / "absent.json")
    path.write_text(json.dumps({"format": "seedrank-study", "format_version": 1}))
    with pytest.raises(UserError, match="another version of seedrank: tune again.*should be 2. Received: 1"):
        Study.load(path)
    rescored = replace(study, log_hashes={"tune": "a", "test": "b"}, looks=("again",))
    study.save(tmp_path / "rescored.json")
    assert rescored.save(tmp_path / "rescored.json").looks == (*study.looks, "again")  # the same labels, seen twice


def test_apply_writes_weights_that_load(study, tmp_path):
    weights = study.apply(tmp_path / "weights.json")
    loaded = FusionWeights.load(tmp_path / "weights.json", parameters_hash="p0")
    assert loaded == weights and loaded.weights == study.entry("pick").test.weights
    assert loaded.mu == study.production.mu
    with pytest.raises(UserError, match="`name` should be one of"):
        study.apply(tmp_path / "weights.json", "nobody")


@pytest.mark.slow
def test_the_seed_decides(study, world, later):
    again = run(world, later, guardrails={"clicks": -0.1}, trials=300)
    assert again.trials == study.trials and again.shortlist == study.shortlist


@pytest.mark.slow
def test_no_guardrails_and_another_objective(study_few):
    assert study_few.objective == "clicks" and study_few.guardrails == {}
    assert "knee" in {role for entry in study_few.shortlist for role in entry.roles}


def test_without_propensities_only_on_request_and_with_its_banner(world, later):
    blind = [replace(log, exposure_propensity=None) for log in (world.log, later.log)]
    with pytest.raises(UserError, match="allow_biased"):
        tune(*blind, production=world.production)
    study = tune(*blind, production=world.production, trials=32, minimum_groups=500, allow_biased=True)
    assert study.estimator == "E0" and "not causal" in study.verdict and "not causal" in study.banners[0]
    with pytest.raises(UserError, match="both have exposure propensities"):
        tune(world.log, blind[1], production=world.production)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minimum_groups": 2000}, "1044 informative groups.*'conversions'.*minimum_groups=2000"),
        ({"objective": "gmv"}, "should be among .*Received: 'gmv'"),
        ({"guardrails": {"gmv": -0.01}}, "should be among .*Received: 'gmv'"),
        ({"guardrails": {"clicks": 0.5}}, "least relative change"),
        ({"estimator": "E9"}, "`estimator` should be one of .*Received: 'E9'"),
        ({"estimator": "E2"}, "E2 can only re-order .*--allow-biased"),
        ({"trials": 3}, "`trials` should be at least 16"),
        ({"group": "day"}, "`group` should be one of"),
        ({"minimum_groups": 0}, "`minimum_groups` should be a positive integer"),
    ],
)
def test_refusals(world, later, changes, message):
    with pytest.raises(UserError, match=message):
        run(world, later, **changes)


def test_diversity_needs_categories(study, world, later):
    assert study.settings["axes"] == ["conversions", "clicks", "new_items", "diversity"]
    without = [
        replace(found, log=replace(found.log, category=None, category_column="", category_names=[]))
        for found in (world, later)
    ]
    with pytest.raises(UserError, match="too little of the objective 'diversity'.*--diversity COLUMN"):
        run(*without, guardrails={"diversity": -0.01})


def test_one_user_or_labels_that_are_all_equal(world, later):
    alone = replace(world.log, user=np.zeros_like(world.log.user))
    with pytest.raises(UserError, match="tune window should have at least two users"):
        tune(alone, later.log, production=world.production, minimum_groups=10)
    none = np.zeros_like(world.log.conversion)
    with pytest.raises(UserError, match="tune window has 0 informative groups .*'conversions'"):
        run(replace(world, log=replace(world.log, conversion=none)), later)
    everything = (world.log.position >= 0).astype(np.int8)
    with pytest.raises(UserError, match="`click` should differ between the shown rows"):
        run(replace(world, log=replace(world.log, click=everything)), later)


def test_windows_in_order_and_production_supported(world, later):
    with pytest.raises(UserError, match="should begin where the tune window ends"):
        tune(later.log, world.log, production=world.production, minimum_groups=10)
    anti = world.setting(similarity=-0.1, pctr=-1.0, pcvr=-0.1)
    with pytest.raises(UserError, match="does not support the production weights themselves"):
        run(world, later, production=anti)


def test_space_by_hand():
    # bounds [0, 1]: below .1 exactly 0; else 0.01 * 100 ** ((u - .1) / .9); then divided by the largest
    weights = FusionWeights("sum", {"pctr": 1.0, "pcvr": 0.0}, {"pctr": 0.0, "pcvr": 0.0}, {"pctr": 1.0, "pcvr": 1.0})
    space = Space.of(weights, ("pctr", "pcvr"))
    found = space.weights(np.array([[1.0, 0.05], [0.55, 0.55], [0.55, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found[:3], [[1, 0], [1, 1], [0.1, 1]])
    assert np.isnan(found[3]).all()
    # pcvr in [.2, .5] with production at .2: rows where pcvr would have to be the largest are outside
    narrow = replace(weights, weights={"pctr": 1.0, "pcvr": 0.2}, bounds={"pcvr": (0.2, 0.5)})
    found = Space.of(narrow, ("pctr", "pcvr")).weights(np.random.default_rng(0).random((200, 2)))
    inside = found[np.isfinite(found).all(axis=1)]
    assert 0 < len(inside) < 200 and inside[:, 1].min() >= 0.2 and inside[:, 1].max() <= 0.5
    # a price that production weighs negatively stays negative
    cheap = FusionWeights("sum", {"pctr": 1, "price": -0.1}, {"pctr": 0, "price": 0}, {"pctr": 1, "price": 1})
    assert Space.of(cheap, ("pctr", "price")).weights(np.array([[0.9, 0.9]]))[0, 1] == -1


def test_pareto_by_hand():
    assert pareto(np.array([[1, 1], [2, 0], [0, 2], [0, 1], [2, 0]])).tolist() == [True, True, True, False, True]
    assert pareto(np.zeros((0, 2))).tolist() == []


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(-3, 3)))
def test_pareto_is_what_nothing_beats(points):
    beaten = [any((other >= row).all() and (other > row).any() for other in points) for row in points]
    assert pareto(points).tolist() == [not lost for lost in beaten]


class Stop(Exception):
    pass


@pytest.mark.slow
def test_a_tuning_that_was_stopped_ends_as_without_the_stop(study, world, later, tmp_path, monkeypatch):
    path = tmp_path / "study.json.checkpoint"
    monkeypatch.setattr("ranking.replay.checkpoint._SECONDS", 0.0)
    arguments = {"guardrails": {"clicks": -0.1}, "trials": 300, "checkpoint": path}
    before = 0
    for stop in (100, 200):  # within the Sobol batch (1 + 128), then among the generations
        tried = []

        def progress(stage, done, total, tried=tried, stop=stop):
            tried.append(done)
            if done >= stop:
                raise Stop

        with pytest.raises(Stop):
            run(world, later, progress=progress, **arguments)
        rows = len(json.loads(path.read_text())["rows"])
        assert before < rows < 300
        before = rows
    with pytest.raises(UserError, match="is of another tuning, of another log or with other arguments"):
        run(world, later, **{**arguments, "seed": 1})
    with pytest.raises(UserError, match="is of another tuning"):
        tune(later.log, replace(world.log, window=(6000, 9000)), production=world.production, minimum_groups=500,
             **arguments)  # fmt: skip
    asked = []
    evaluate = Evaluator.deltas
    monkeypatch.setattr(Evaluator, "deltas", lambda self, batch: asked.append(len(batch)) or evaluate(self, batch))
    again = run(world, later, **arguments)
    # 1 of production, 128 of the Sobol batch and 2 generations of 64 were there; later calls are of the details.
    assert before == 257 and asked[0] == 43
    assert not path.exists()
    assert replace(again, looks=study.looks) == study
    path.write_text("[]")
    with pytest.raises(UserError, match="should be a checkpoint of `replay tune`"):
        run(world, later, **arguments)


def test_the_study_remembers_its_logs_and_its_examination(study, world, later):
    assert study.log_hashes == {"tune": world.log.hash, "test": later.log.hash}
    study.refuse_other("tune", world.log.hash)
    with pytest.raises(UserError, match="The study is of another log: the hash of its tune window"):
        study.refuse_other("tune", later.log.hash)
    assert study.examination == {"method": "stated", "theta": world.log.examination.tolist()}
    covariance = np.diag([0.0, 0.01, 0.04, 0.09]) ** 2
    estimated = [
        replace(found.log, examination_covariance=covariance, examination_method="estimated")
        for found in (world, later)
    ]
    # standard errors are the square roots of the diagonal
    assert _examination(estimated[0])["error"] == pytest.approx([0.0, 0.01, 0.04, 0.09])
    assert _examination(replace(world.log, examination=None)) == {}


def test_picks_by_name(study):
    assert study.entry("recommended") == study.entry("pick") == study.entry(study.pick)
    assert study.entry("best:clicks") == study.entry("best clicks")
    assert study.weights("production") == study.production
    with pytest.raises(
        UserError, match="'best:conversions'.*'knee'.*'recommended'.*'production'.*Received: 'best:gmv'"
    ):
        study.entry("best:gmv")


def test_a_rival_is_judged_and_cannot_be_applied(study):
    best = study.entry("pick")
    judged = [replace(row, weights={}) for row in (best.tune, best.test)]
    rival = Entry("learned fusion", ("rival",), *judged, description="A curve for each part.")
    beside = replace(study, rivals=(rival,))
    assert Study.from_json(json.loads(json.dumps(beside.to_json()))) == beside
    with pytest.raises(UserError, match="'learned fusion' is a rival to compare with: it has no fusion weights"):
        beside.weights("learned fusion")
    with pytest.raises(UserError, match="`name` should be one of"):
        beside.entry("rival")
