"""A training goes on: after a kill from its checkpoint, and on later days from a run."""

import json

import numpy as np
import pytest

from ranking.run import load_run

pytestmark = pytest.mark.slow

COMMAND = ["-c", "from ranking.cli import main; main()"]
# Two passes of the last stage: a kill comes between them.
SHORT = ("--lookalike", "representation_epochs=1,epochs=1", "--esmm", "epochs=2")
# One day more to learn from; the days that judge move on.
LATER = {
    'train = ["2025-03-05", "2025-03-07"]': 'train = ["2025-03-05", "2025-03-08"]',
    'calibrate = ["2025-03-07", "2025-03-08"]': 'calibrate = ["2025-03-08", "2025-03-09"]',
    'tune = ["2025-03-08", "2025-03-09"]': 'tune = ["2025-03-09", "2025-03-10"]',
    'test = ["2025-03-09", "2025-03-11"]': 'test = ["2025-03-10", "2025-03-11"]',
}


def arrays(path) -> list[np.ndarray]:
    run = load_run(path)
    return [*run.representation.get_weights(), *run.lookalike.get_weights(), *run.models["seedrank"][0].get_weights()]


@pytest.fixture(scope="module")
def whole(simulated, tmp_path_factory, seedrank):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert seedrank("train", "--data", simulated, "--out", out, *SHORT) == 0
    return out


def test_a_killed_training_ends_as_if_nothing_had_happened(simulated, whole, tmp_path, kill_when, cli):
    line = ["train", "--data", str(simulated), *SHORT, "--out"]
    out = tmp_path / "work" / "run"
    checkpoint = tmp_path / "work" / "run.checkpoint"
    for moment in ("representation.json", "ESMM.npz"):  # the first stage is done; a pass of the last one is
        kill_when([*COMMAND, *line, str(out), "--resume"], checkpoint, moment)
        assert not out.exists()
    cli(*line, out).mistake("run.checkpoint", "pass --resume to go on")
    cli(*line, out, "--resume", "--esmm", "wide=false").mistake("of another training, with other settings")
    assert cli(*line, out, "--resume").code == 0
    assert not checkpoint.exists()
    for one, other in zip(arrays(whole), arrays(out), strict=True):
        np.testing.assert_array_equal(one, other)
    told = [load_run(path).info["stages"]["esmm"] for path in (whole, out)]
    assert told[0]["loss"] == pytest.approx(told[1]["loss"], rel=1e-6) and told[0]["epochs"] == told[1]["epochs"]


def test_a_run_goes_on_with_later_days(tiny, rewritten, tmp_path, cli):
    later = rewritten(tiny.data, toml=LATER)
    out = tmp_path / "later"
    answer = cli("train", "--data", later, "--out", out, "--from", tiny.path, "--json")
    assert answer.code == 0, answer.err
    before, after = tiny.run, load_run(out)
    told = json.loads(answer.out)
    assert told["from"] == str(tiny.path)
    day = tiny.timeline
    new = (day.time >= before.info["trained_until"]) & (day.time < after.info["trained_until"])
    assert 0 < told["rows"]["trained"] == new.sum()  # the days since, and they alone
    # The user space stays, vocabularies grow at their end, and the model has learned.
    assert after.info["embedding_space"] == before.info["embedding_space"]
    grew = 0
    for name, vocabulary in before.encoder.vocabularies.items():
        values = after.encoder.vocabularies[name].values
        assert values[: len(vocabulary.values)].equals(vocabulary.values)
        grew += len(values) - len(vocabulary.values)
    assert grew > 0
    assert after.info["parameters_hash"] != before.info["parameters_hash"]
    assert after.state.tick > before.state.tick
    answer = cli("evaluate", "--run", out, "--data", later, "--replicates", 20, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["models"]["seedrank"]["click"]["auc"] > 0.5


def test_going_on_is_refused_where_it_would_be_another_model(tiny, rewritten, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("ranking.run.load_run", lambda path: tiny.run)  # seconds a call; above it is really loaded
    out = tmp_path / "run"
    again = ("train", "--data", tiny.data, "--out", out, "--from", tiny.path)
    cli(*again).mistake("newer than what the run has learned from")
    cli(*again, "--lookalike", "k=3").mistake("`--lookalike` should not be given with `--from`")
    cli(*again, "--with-baselines").mistake("`--with-baselines` should not be given with `--from`")
    later = rewritten(tiny.data, toml=LATER)
    cli(*again[:2], later, *again[3:], "--esmm", "sharing=mmoe").mistake("should have the architecture of the run")
    other = rewritten(tiny.data, toml={**LATER, "\nrating = ": "\nratings = "}, name="other")
    cli(*again[:2], other, *again[3:]).mistake("should declare what", "differs in features", "rating, ratings")
    assert not out.exists()


def test_two_processes_learn_what_one_does(simulated, whole, tmp_path, cli):
    told = {"memory": load_run(whole).info}  # of more passes: its first one is the same
    assert all(np.isfinite(weight).all() for weight in arrays(whole))
    short = (*SHORT, "--esmm", "epochs=1")
    for name, options in {"disk": ("--on-disk",), "workers": ("--workers", 2)}.items():
        answer = cli("train", "--data", simulated, "--out", tmp_path / name, *short, "--json", *options)
        assert answer.code == 0, answer.err
        told[name] = json.loads(answer.out)
        assert all(np.isfinite(weight).all() for weight in arrays(tmp_path / name))
    assert not list(tmp_path.glob("*.checkpoint"))
    assert told["disk"]["rows"] == told["workers"]["rows"]
    for name in ("trained", "repeats_dropped", "immature"):
        assert told["disk"]["rows"][name] == told["memory"]["rows"][name]
    losses = {name: info["stages"]["esmm"]["loss"][0] for name, info in told.items()}
    assert losses["workers"] == pytest.approx(losses["disk"], rel=0.01)  # the same order; dropout is drawn elsewhere
    assert losses["disk"] == pytest.approx(losses["memory"], rel=0.05)
    again = ("train", "--data", simulated, "--out", tmp_path / "b")
    cli(*again, "--workers", 2, "--with-baselines").mistake("need memory")
    aman = ("--on-disk", "--esmm", "strategy=aman")
    cli(*again, *aman).mistake("draws its examples anew")
