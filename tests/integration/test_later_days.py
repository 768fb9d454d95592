"""A run on data it was not trained on: other folders, other days, unknown ids; and replays that must refuse."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from ranking.cli_replay import tune_source
from ranking.data.kuairand import import_kuairand
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.evaluation import HEADS, evaluate_run
from ranking.fusion import FusionWeights
from ranking.replay.estimators import BIASED_BANNER
from ranking.replay.log import ReplayLog
from ranking.replay.tuning import tune
from ranking.scoring import score_candidates

pytestmark = pytest.mark.slow

WEEK = 7 * 86_400_000
MODELS = {"seedrank", "no_similarity", "base", "popularity", "logistic"}
METRICS = {"auc", "gauc", "ndcg", "logloss", "pcoc", "ece", "auc_se"}


@pytest.fixture(scope="module")
def evaluated(tiny):
    return evaluate_run(tiny.run, tiny.dataset, replicates=20)


def only_test(tiny, tables, *, shift):
    """Keeps the impressions of the test window, `shift` ms later; nothing else of the log."""
    start, end = tiny.timeline.window("test")
    frame = tables["impressions"]
    frame = frame[(frame["timestamp"] >= start) & (frame["timestamp"] < end)].reset_index(drop=True)
    for column in ("timestamp", "click_time", "conversion_time"):
        frame[column] = frame[column] + shift
    tables["impressions"] = frame
    for name in ("candidates", "requests"):
        del tables[name]


def later_toml(text):
    """One window; the log was closed a week later too."""
    head, rest = text.split("[windows]\n")
    windows, rest = rest.split("\n\n", 1)
    assert 'test = ["2025-03-09", "2025-03-11"]' in windows and "observed_until = 2025-03-12T00:00:00Z" in head
    head = head.replace("observed_until = 2025-03-12T00:00:00Z", "observed_until = 2025-03-19T00:00:00Z")
    return f'{head}[windows]\ntest = ["2025-03-16", "2025-03-18"]\n\n{rest}'


def test_the_same_rows_in_another_folder_give_the_same_numbers(tiny, rewritten, evaluated):
    """Frozen tables: only what a row holds counts, not the log around it."""
    later = rewritten(tiny.data, lambda tables: only_test(tiny, tables, shift=WEEK), later_toml)
    found = evaluate_run(tiny.run, Dataset(later), replicates=20)
    for key in ("rows", "unknown", "rows_new_items", "rows_rare_items", "immature"):
        assert found[key] == evaluated[key], key
    for model, heads in evaluated["models"].items():
        for head, metrics in heads.items():
            for name in METRICS - {"auc_se"}:
                assert found["models"][model][head][name] == pytest.approx(metrics[name], abs=1e-6), (model, head, name)
    assert found["similarity"]["auc"] == pytest.approx(evaluated["similarity"]["auc"], abs=1e-6)


def test_evaluate_later_days_with_unknown_ids(tiny, rewritten, cli):
    strangers = {}

    def edit(tables):
        only_test(tiny, tables, shift=WEEK)
        frame = tables["impressions"]
        for side, ids in (("user", tiny.user_ids[:2]), ("item", tiny.item_ids[:3])):
            rows = frame[f"{side}_id"].isin(ids)
            frame.loc[rows, f"{side}_id"] = frame.loc[rows, f"{side}_id"].map({old: 7 + n for n, old in enumerate(ids)})
            known = getattr(tiny.run.state, f"{side}_ids")
            strangers[f"{side}s"] = int((~frame[f"{side}_id"].isin(known)).sum())
            assert strangers[f"{side}s"] >= rows.sum() > 0

    later = rewritten(tiny.data, edit, later_toml)
    answer = cli("evaluate", "--run", tiny.path, "--data", later, "--replicates", 20, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["unknown"] == strangers
    assert found["rows"] == len(pd.read_parquet(later / "impressions.parquet"))
    assert set(found["models"]) == MODELS
    for heads in found["models"].values():
        assert set(heads) == set(HEADS) == {"click", "cvr", "ctcvr", "ctcvr_common"}
        assert all(set(metrics) >= METRICS for metrics in heads.values())
    assert {"auc", "precision_at_10"} <= set(found["similarity"])
    assert all(math.isfinite(found["models"][model]["click"][name]) for model in MODELS for name in METRICS)
    assert all(0 <= row["se"] < 1 for row in found["differences"] if row["items"] == "all")


def test_evaluate_rolling(tiny, evaluated, cli):
    answer = cli(
        "evaluate", "--run", tiny.path, "--data", tiny.data, "--state", "rolling", "--replicates", 20, "--json"
    )
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["rows"] == evaluated["rows"] and found["state"] == "rolling"
    click, frozen = found["models"]["seedrank"]["click"], evaluated["models"]["seedrank"]["click"]
    assert click["auc"] != frozen["auc"]  # a day more of seeds and statistics
    assert abs(click["auc"] - frozen["auc"]) < 0.1


def test_evaluate_prints_a_table(text, cli):
    answer = cli("evaluate", "--run", text.path, "--data", text.data, "--replicates", 20)
    assert answer.code == 0, answer.err
    assert "seedrank" in answer.out and "click" in answer.out
    with pytest.raises(ValueError):
        json.loads(answer.out)


def test_replay_refuses_a_run_that_was_fitted_on_its_tune_window(text, tmp_path, cli):
    study = tmp_path / "study.json"
    cli("replay", "tune", text.path, "--data", text.data, "--out", study).mistake(str(text.path), "--refit")
    assert not study.exists()


def test_replay_refuses_too_few_groups(tiny, tmp_path, cli):
    study = tmp_path / "study.json"
    tune_run = ("replay", "tune", tiny.path, "--out", study)
    cli(*tune_run).mistake("--data")
    cli(*tune_run, "--data", tiny.data).mistake("tune window", "informative groups", "minimum_groups=2000")
    cli("replay", "tune", tiny.data, "--out", study).mistake("tune window", "informative groups")
    assert not study.exists()


def test_replay_of_375_requests_recommends_nothing(tiny):
    """With the minimum of groups lifted the gate of conversions and the intervals still stand."""
    with pytest.raises(UserError, match="too little of the objective 'conversions'"):
        tune_source(tiny.data, None, minimum_groups=10, trials=64)
    study = tune_source(tiny.data, None, minimum_groups=10, trials=64, objective="clicks", guardrails={})
    assert study.verdict.startswith("Keep production") and not study.pick


def test_a_run_scores_the_rows_that_a_replay_reads(tiny, rewritten):
    """Without candidates a request is where its first impression is, also one that goes on past the window's end."""
    end = tiny.timeline.window("tune")[1]

    def edit(tables):
        del tables["candidates"], tables["requests"]
        frame = tables["impressions"]
        last = frame.loc[frame["timestamp"] < end, "request_id"].max()
        frame.loc[(frame["request_id"] == last) & (frame["position"] > 1), "timestamp"] = end + 1
        for column in ("click_time", "conversion_time"):
            frame[column] += 100_000_000

    dataset = Dataset(rewritten(tiny.data, edit))
    inside = tiny.timeline.rows_in("tune")
    parts = score_candidates(tiny.run, dataset, "tune")
    assert len(parts["pctr"]) == len(inside)
    wanted = {name: parts[name] for name in ("similarity", "has_similarity", "pctr", "pcvr", "price")}
    log = ReplayLog.from_dataset(dataset, "tune", wanted)
    np.testing.assert_array_equal(log.parts["pctr"], parts["pctr"])
    assert len(score_candidates(tiny.run, dataset, "test")["pctr"]) == len(tiny.timeline.rows_in("test"))


@pytest.fixture(scope="module")
def slice_dataset(kuairand_slice, tmp_path_factory):
    out = tmp_path_factory.mktemp("kuairand") / "data"
    import_kuairand(kuairand_slice, out, conversion="long_view")
    return Dataset(out)


def test_replay_on_the_slice_needs_scores_and_says_so(slice_dataset, tmp_path, cli):
    study, weights = tmp_path / "study.json", tmp_path / "weights.json"
    cli("replay", "tune", slice_dataset.path, "--out", study).mistake("--production")
    FusionWeights.from_exponents(pctr=1, pcvr=1).save(weights)
    answer = cli("replay", "tune", slice_dataset.path, "--out", study, "--production", weights)
    answer.mistake("no candidates table", "`parts`")
    assert not study.exists()


def test_replay_on_the_slice_refuses_or_carries_its_banner(slice_dataset):
    """It has what was shown and no candidates: nothing but a re-ordering can be said, and hardly that."""
    generator = np.random.default_rng(0)
    frame = slice_dataset.impressions
    begun = frame.groupby("request_id")["timestamp"].transform("first")
    logs = []
    for window in ("tune", "test"):
        start, end = slice_dataset.schema.window(window)
        rows = int(((begun >= start) & (begun < end)).sum())
        parts = {name: generator.uniform(0.01, 0.5, rows).astype(np.float32) for name in ("pctr", "pcvr")}
        logs.append(ReplayLog.from_dataset(slice_dataset, window, parts))
    production = FusionWeights.fit(logs[0].parts, "product", {"pctr": 1.0, "pcvr": 1.0})
    with pytest.raises(UserError, match="with exposure propensities"):
        tune(*logs, production=production)
    study = tune(*logs, production=production, allow_biased=True, trials=64)
    assert BIASED_BANNER in study.banners and study.verdict.endswith(BIASED_BANNER)
    assert study.verdict.startswith("Keep production")  # the scores are noise
    with pytest.raises(UserError, match="informative groups"):
        tune(*logs, production=production, allow_biased=True, minimum_groups=study.tune.informative["conversions"] + 1)
