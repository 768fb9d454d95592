"""A generated log is fit; each defect put into it is found, in one line of its own."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ranking.data.simulator import load_world, simulate
from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.check import check_lines, check_log

TABLES = ("impressions", "users", "items", "candidates", "requests")


def world(exploration):
    demo = load_world("demo")
    return replace(
        demo,
        users=replace(demo.users, count=300),
        items=replace(demo.items, count=60, born_per_day=4),
        traffic=replace(demo.traffic, requests=6000, candidates=10, examination=(1.0, 0.8, 0.6)),
        policy=replace(demo.policy, exploration=exploration),
    )


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    return simulate(world("plackett_luce"), tmp_path_factory.mktemp("explored") / "data")


@pytest.fixture(scope="module")
def sorted_log(tmp_path_factory):
    return simulate(world("none"), tmp_path_factory.mktemp("sorted") / "data")


def changed(source, target, edit, toml=lambda text: text):
    """The dataset with its tables edited; the weights file comes along."""
    data = Dataset(source)
    tables = {name: data.table(name).copy() for name in TABLES}
    edit(tables)
    kept = {name: table for name, table in tables.items() if table is not None}
    path = write_dataset(target / "data", toml((source / "dataset.toml").read_text()), kept)
    (path / "production_weights.json").write_bytes((source / "production_weights.json").read_bytes())
    return path


def told(check, topic):
    return [(found.level, found.line) for found in check.findings if found.topic == topic]


def inside(data, tables):
    """Mask of the requests in the tune window."""
    start, end = Dataset(data).schema.windows["tune"]
    return (tables["requests"]["timestamp"] >= start) & (tables["requests"]["timestamp"] < end)


def test_a_right_log_is_fit(explored):
    steps = []
    check = check_log(explored, progress=lambda *step: steps.append(step))
    assert check.ok and check.level == "ok", check_lines(check)
    assert {found.topic for found in check.findings} >= {"score", "propensities", "exposure", "support", "maturity"}
    assert {name for name, reason in check.estimators.items() if not reason} == {"E0", "E2", "E3", "E4", "E5", "E6"}
    assert "uniformly random order" in check.estimators["E1"]
    assert abs(check.numbers["weight_mean"] - 1) < 0.1 and 0 < check.numbers["effective"] <= 1
    (examination,) = told(check, "examination")
    assert "what dataset.toml states agrees" in examination[1]
    lines = check_lines(check)
    assert lines[0].endswith("window tune: fit for a replay.") and "E3 can be used" in lines
    assert all("\n" not in line for line in lines)
    assert json.loads(json.dumps(check.to_json()))["level"] == "ok"
    assert steps[0] == ("tables", 0, 6) and steps[-1] == ("", 6, 6)


def test_a_log_that_never_explored_can_only_be_reordered(sorted_log):
    check = check_log(sorted_log)
    assert check.level == "warn"
    assert "Places follow the scores in" in told(check, "order")[0][1]
    assert "only re-ordering estimates (E0, E2)" in told(check, "propensities")[0][1]
    assert "hardly vary" in told(check, "examination")[0][1]
    assert {name for name, reason in check.estimators.items() if not reason} == {"E0", "E2"}
    assert "fit for a replay, with warnings" in check_lines(check)[0]


def rows_of_window(data, tables, table="candidates"):
    return tables[table]["request_id"].isin(tables["requests"]["request_id"][inside(data, tables)])


def scale_score(data, tables):
    # Odds and so propensities change too: only the first candidate of one request, which must not have been shown.
    rows = tables["candidates"]
    row = rows.index[rows_of_window(data, tables) & (rows["position"] < 0)][0]
    rows.loc[row, "pctr"] *= 1.01


def drop_candidates(data, tables):
    first = tables["requests"]["request_id"][inside(data, tables)].iloc[:5]
    tables["candidates"] = tables["candidates"][~tables["candidates"]["request_id"].isin(first)]


def drop_impressions(data, tables):
    rows = tables["impressions"].index[rows_of_window(data, tables, "impressions")]
    tables["impressions"] = tables["impressions"].drop(rows[:7])


def stray(data, tables):
    rows = tables["impressions"].index[rows_of_window(data, tables, "impressions")][:4]
    added = tables["impressions"].loc[rows].assign(item_id=tables["items"]["item_id"].max() + 1 + np.arange(4))
    tables["impressions"] = pd.concat([tables["impressions"], added], ignore_index=True)


def same_place(data, tables):
    rows = tables["candidates"]
    rows.loc[rows.index[rows_of_window(data, tables) & (rows["position"] == 1)][:3], "position"] = 0


def no_clicks(data, tables):
    rows = tables["impressions"]
    rows[["click", "conversion"]] = 0
    rows[["click_time", "conversion_time", "value"]] = np.nan


def one_user(data, tables):
    for name in ("requests", "impressions"):
        tables[name]["user_id"] = tables["users"]["user_id"].iloc[0]


def few_conversions(data, tables):
    rows = tables["impressions"]
    rows["conversion"] = 0
    rows[["conversion_time", "value"]] = np.nan


def no_score(data, tables):
    del tables["candidates"]["score"]


def hot(data, tables):
    tables["requests"]["temperature"] *= 1.5


def nan_exposure(data, tables):
    del tables["candidates"]["score"]  # else the policy's own numbers would be compared first
    rows = tables["candidates"]
    rows.loc[rows.index[rows_of_window(data, tables)][3], "exposure_propensity"] = np.nan


def exposures_of_another_theta(data, tables):
    del tables["candidates"]["score"]
    tables["candidates"]["exposure_propensity"] *= 0.9


@pytest.mark.parametrize(
    ("edit", "topic", "level", "words"),
    [
        (scale_score, "score", "refuse", "1 of .* candidates .* does not come out of the logged parts"),
        (drop_candidates, "candidates", "warn", "5 of .* requests .* have no candidates"),
        (drop_impressions, "impressions", "warn", "7 of .* shown rows .* have no impression"),
        (stray, "impressions", "warn", "4 of .* impressions .* not among the shown candidates"),
        (same_place, "log", "refuse", "unique in a request. Received: 0 twice in request .* 3 such rows"),
        (no_clicks, "labels", "refuse", "Received: 0 clicks of"),
        (one_user, "users", "refuse", "at least two users. Received: 1"),
        (few_conversions, "labels", "warn", "0 matured conversions, 100 are needed"),
        (no_score, "score", "warn", "candidates have no `score`"),
        (no_score, "propensities", "warn", "can't be checked"),
        (hot, "log", "refuse", "`position_propensity` should be .* of another policy"),
        (nan_exposure, "propensities", "refuse", "`exposure_propensity` should be in .* Received: nan"),
        (exposures_of_another_theta, "propensities", "refuse", "should add up to the examination"),
    ],
)
def test_defects(explored, tmp_path, edit, topic, level, words):
    path = changed(explored, tmp_path, lambda tables: edit(explored, tables))
    check = check_log(path)
    found = told(check, topic)
    assert [line for line in found if line[0] == level and pd.Series([line[1]]).str.contains(words)[0]], check_lines(
        check
    )
    assert check.ok == (level != "refuse")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "above 0 and at most 1. Received: 0.0"), (1.5, "above 0 and at most 1. Received: 1.5")],
)
def test_impossible_propensities(explored, tmp_path, value, words):
    def edit(tables):
        rows = tables["candidates"]
        rows.loc[rows.index[rows["position"] == 0][0], "position_propensity"] = value

    check = check_log(changed(explored, tmp_path, edit))
    assert not check.ok and words in check.findings[-1].line and not check.estimators


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("requests", "request_id", "request_id should be unique"),
        ("candidates", "item_id", "request_id and item_id should be unique"),
        ("impressions", "item_id", r"\(request_id, item_id\) should be unique"),
    ],
)
def test_duplicates(explored, tmp_path, name, key, words):
    def edit(tables):
        tables[name] = pd.concat([tables[name], tables[name].tail(1)], ignore_index=True)

    check = check_log(changed(explored, tmp_path, edit))
    assert not check.ok and pd.Series([check.findings[-1].line]).str.contains(words)[0], check.findings[-1].line


def test_order_against_scores(sorted_log, tmp_path):
    def swap(tables):
        rows = tables["candidates"]
        window = rows_of_window(sorted_log, tables)
        for place, other in ((0, 1), (1, 0)):
            chosen = rows.index[window & (Dataset(sorted_log).candidates["position"] == place)][:6]
            rows.loc[chosen, "position"] = other

    check = check_log(changed(sorted_log, tmp_path, swap))
    assert told(check, "order")[0][0] == "refuse" and told(check, "order")[0][1].startswith("6 of ")

    def skip(tables):
        rows = tables["candidates"]
        window = rows_of_window(sorted_log, tables)
        best = rows.index[window & (rows["position"] == 0)][:6]
        rows.loc[best, ["position", "position_propensity"]] = [-1, np.nan]

    found = told(check_log(changed(sorted_log, tmp_path / "skip", skip)), "order")
    assert found[0][0] == "warn" and "left out a candidate with a better score" in found[0][1]


def test_maturity_tells_how_long_to_wait(explored, tmp_path):
    # The log closes as the tune window ends: the last conversions come 48 h after the last request.
    end = Dataset(explored).schema.windows["tune"][1]
    closed = pd.Timestamp(end, unit="ms").strftime("%Y-%m-%dT%H:%M:%SZ")

    def edit(tables):
        for name in ("requests", "impressions"):
            tables[name] = tables[name][tables[name]["timestamp"] < end]

    def toml(text):
        return "\n".join(
            f"observed_until = {closed}" if line.startswith("observed_until") else line for line in text.split("\n")
        )

    check = check_log(changed(explored, tmp_path, edit, toml))
    ((level, line),) = told(check, "maturity")
    assert level == "warn" and "all are final 2.0 days after the log was closed" in line
    assert "within" in line and "(attribution 48 h)" in line


def test_stated_examination_that_the_log_contradicts(explored, tmp_path):
    wrong = changed(explored, tmp_path, lambda tables: no_score(explored, tables), lambda text: text)
    text = (
        (wrong / "dataset.toml").read_text().replace("examination = [1.0, 0.8, 0.6]", "examination = [1.0, 0.3, 0.1]")
    )
    data = Dataset(explored)
    tables = {name: data.table(name) for name in TABLES}
    tables["candidates"] = tables["candidates"].drop(columns=["exposure_propensity", "position_propensity"])
    other = write_dataset(tmp_path / "other", text, tables)
    ((level, line),) = told(check_log(other), "examination")
    assert level == "warn" and "standard errors away from it: replay with the estimate" in line


def test_without_weights_or_candidates(explored, tmp_path):
    data = Dataset(explored)
    tables = {name: data.table(name) for name in TABLES}
    toml = (explored / "dataset.toml").read_text()
    bare = write_dataset(tmp_path / "bare", toml, tables)
    check = check_log(bare)
    assert "pass the weights that served the log" in told(check, "support")[0][1] and check.estimators == {}
    assert check_log(bare, production=explored / "production_weights.json").level == "ok"
    del tables["candidates"]
    check = check_log(write_dataset(tmp_path / "none", toml, tables))
    assert not check.ok and "pass `parts`, the score parts of a trained model" in check.findings[-1].line
    assert "can only be re-ordered (E0)" in told(check, "candidates")[0][1]


def test_a_foreign_log_is_rescored_by_the_run(explored, tmp_path, monkeypatch):
    """The run is a stand-in: its scores are the log's, its weights are not what served the log."""
    served = FusionWeights.load(explored / "production_weights.json")
    weights = replace(served, weights={**served.weights, "similarity": 0.4})
    weights.save(tmp_path / "fusion.json")
    data = Dataset(explored)
    start, end = data.schema.windows["tune"]
    requests = data.requests[(data.requests["timestamp"] >= start) & (data.requests["timestamp"] < end)]
    rows = data.candidates[data.candidates["request_id"].isin(requests["request_id"])]
    scores = {name: rows[name].to_numpy(np.float32) for name in ("similarity", "pctr", "pcvr", "price")}
    monkeypatch.setitem(sys.modules, "ranking.run", SimpleNamespace(load_run=lambda path: None))
    scoring = SimpleNamespace(score_candidates=lambda run, dataset, window, progress: scores)
    monkeypatch.setitem(sys.modules, "ranking.scoring", scoring)
    check = check_log(explored, tmp_path)
    ((level, line),) = told(check, "score")
    assert level == "warn" and line.startswith("A foreign log, re-scored by the run")
    assert check.ok


def test_arguments(explored, tmp_path):
    with pytest.raises(UserError, match="`window` should be one of .* Received: 'monday'"):
        check_log(explored, window="monday")
    with pytest.raises(UserError, match="should be a file of fusion weights"):
        check_log(explored, production=tmp_path / "none.json")
