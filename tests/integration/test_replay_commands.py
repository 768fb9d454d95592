"""The replay commands, from a log to weights: what they print, what they write, what they refuse."""

import json
import shutil

import pytest

from ranking.data.simulator import load_world, simulate
from ranking.fusion import FusionWeights
from ranking.replay.study import Study

# Enough traffic in the windows that replay, and a policy that explores enough to judge others.
TRAFFIC = {
    "requests = 3000": "requests = 9000",
    "daily = [2, 2, 2, 2, 1, 1, 2, 2]": "daily = [1, 1, 1, 1, 1, 6, 5, 5]",
    "noise = 0.6": "noise = 1.5",
}
FEW = ("--trials", 100, "--minimum-groups", 300, "--no-rivals")


@pytest.fixture(scope="module")
def log(world_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    text = world_file.read_text()
    for old, new in TRAFFIC.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "world.toml").write_text(text)
    return simulate(load_world(folder / "world.toml"), folder / "data")


@pytest.fixture(scope="module")
def tuned(log, seedrank):
    """A study that found something, by the command line."""
    path = log.parent / "study.json"
    words = ("replay", "tune", log, "--objective", "conversions", "--guardrail", "clicks>=-8%", "--out", path)
    assert seedrank(*words, *FEW, "--segments", "segment", "--diversity", "category") == 0
    return path


@pytest.fixture
def study(tuned, tmp_path):
    """A copy, so that a look at the test window stays in it."""
    return shutil.copy(tuned, tmp_path / "study.json")


@pytest.mark.slow
def test_check(log, cli, rewritten):
    answer = cli("replay", "check", log)
    assert answer.code == 0 and "fit for a replay" in answer.out
    assert json.loads(cli("replay", "check", log, "--json").out)["ok"]

    def impossible(tables):
        tables["candidates"]["exposure_propensity"] = 0.0

    broken = cli("replay", "check", rewritten(log, impossible), "--json")
    assert broken.code == 2 and not json.loads(broken.out)["ok"]


@pytest.mark.slow
def test_tune_says_what_it_found(log, tuned, cli, tmp_path):
    study = Study.load(tuned)
    assert study.verdict.startswith("Recommend ") and study.pick and len(study.looks) == 1
    assert not tuned.with_name("study.json.checkpoint").exists()
    assert study.examination["method"] == "estimated" and len(study.examination["error"]) == 4
    assert study.source["source"] == str(log) and study.details["setting"] == study.pick
    out = tmp_path / "study.json"
    line = ("replay", "tune", log, "--guardrail", "clicks>=-8%", "--out", out, *FEW)
    answer = cli(*line)
    assert answer.code == 0
    assert answer.out.splitlines()[0].startswith("Recommend ")
    assert "looked at 1 time(s)" in answer.out and "Informative requests of the tune window: clicks" in answer.out
    assert f"Weights hash of {Study.load(out).pick}: {Study.load(out).weights().hash}" in answer.out
    again = json.loads(cli(*line, "--json").out)
    assert len(again["looks"]) == 2 == len(Study.load(out).looks)  # tuning again is another look


@pytest.mark.slow
def test_keep_production_is_an_answer_not_an_error(log, cli, tmp_path):
    answer = cli("replay", "tune", log, "--guardrail", "clicks>=0%", "--guardrail", "value>=0%", "--out",
                 tmp_path / "study.json", *FEW)  # fmt: skip
    assert answer.code == 0 and answer.out.startswith("Keep production: no setting")
    kept = cli("replay", "apply", tmp_path / "study.json", "--out", tmp_path / "weights.json")
    kept.mistake("verdict is to keep production")
    assert not (tmp_path / "weights.json").exists()
    assert cli("replay", "report", tmp_path / "study.json").code == 0


@pytest.mark.slow
def test_stated_examination_has_a_banner(log, cli, tmp_path):
    answer = cli("replay", "tune", log, "--examination", "stated", "--out", tmp_path / "study.json", *FEW)
    assert answer.code == 0 and "Examination as stated by the log" in answer.out
    assert "Examination as stated" not in cli("replay", "whatif", log, "--weights", "pctr=.5").out


@pytest.mark.slow
def test_whatif_agrees_with_the_study_and_counts_its_looks(log, study, cli):
    found = Study.load(study)
    pick = found.entry("recommended")
    weights = ",".join(f"{name}={weight!r}" for name, weight in pick.test.weights.items())
    tune = json.loads(cli("replay", "whatif", study, "--weights", weights, "--json").out)
    assert tune["window"] == "tune" and len(Study.load(study).looks) == 1
    expected = pick.tune.estimates["conversions"]
    assert tune["evaluations"][0]["estimates"]["conversions"]["delta"] == pytest.approx(expected.delta)
    test = cli("replay", "whatif", study, "--weights", weights, "--window", "test")
    assert "look at the test window: number 2 of this study" in test.out and len(Study.load(study).looks) == 2
    two = cli(
        "replay",
        "whatif",
        log,
        "--weights",
        "pctr=.5",
        "--weights",
        "similarity=-1,pctr=-1,price=-1",
        "--window",
        "test",
    )
    assert "no study counts it" in two.out and "supported, effective sample" in two.out
    assert two.code == 0 and "refused: " in two.out  # the unsupported one, with its reason


@pytest.mark.slow
def test_apply_writes_the_weights_and_tells_their_hash(study, cli, tmp_path):
    found = Study.load(study)
    answer = cli("replay", "apply", study, "--out", tmp_path / "weights.json")
    weights = FusionWeights.load(tmp_path / "weights.json")
    assert weights == found.weights("recommended") and f"Hash: {weights.hash}" in answer.out
    for name in ("knee", "best:clicks", "production"):
        assert cli("replay", "apply", study, "--pick", name, "--out", tmp_path / "weights.json").code == 0
        assert FusionWeights.load(tmp_path / "weights.json") == found.weights(name)


@pytest.mark.slow
def test_export_to_optuna(study, cli, tmp_path):
    answer = cli("replay", "export", study, "--storage", tmp_path / "trials.journal")
    assert answer.code == 0 and "optuna-dashboard" in answer.out and (tmp_path / "trials.journal").is_file()
    cli("replay", "export", study, "--storage", tmp_path / "trials.journal").mistake("exists already")


@pytest.mark.slow
def test_the_page_has_the_commands(log, study, cli):
    assert cli("replay", "report", study, "--data", log).code == 0
    page = study.with_suffix(".html").read_text()
    assert "replay apply" in page and "--pick recommended MODELS" in page
    assert f"replay tune {log} --objective conversions" in page and "clicks&gt;=-8%" in page


def one_user(tables):
    for name in ("requests", "impressions"):
        tables[name]["user_id"] = tables["users"]["user_id"].iloc[0]


def equal_labels(tables):
    tables["impressions"]["click"] = 1
    tables["impressions"]["conversion"] = 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [(one_user, ["at least two users"]), (equal_labels, ["`click` should differ"])],
)
def test_a_log_that_tells_nothing(log, rewritten, cli, tmp_path, edit, words):
    data = rewritten(log, edit)
    weights = ("--production", log / "production_weights.json")
    cli("replay", "tune", data, *weights, "--out", tmp_path / "study.json", *FEW).mistake(*words)
    assert not (tmp_path / "study.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--guardrail", "gmv>=-1%"], ["`guardrails`", "'gmv'"]),
        (["--guardrail", "clicks"], ["clicks>=-1%"]),
        (["--guardrail", "clicks>=5%"], ["[-1, 0]"]),
        (["--objective", "likes"], ["'likes'"]),
        (["--objective", "diversity"], ["--diversity COLUMN"]),
        (["--diversity", "colour"], ["`category`", "'colour'"]),
        (["--segments", "planet"], ["`segment`", "'planet'"]),
        (["--group", "day"], ["`group`", "'day'"]),
        (["--estimator", "E7"], ["`estimator`", "'E7'"]),
        (["--examination", "guessed"], ["`examination`", "'guessed'"]),
        (["--minimum-groups", "2000"], ["informative groups", "minimum_groups=2000"]),
        (["--trials", "5"], ["`trials`", "trials=5"]),
        (["--production", "absent.json"], ["absent.json"]),
        (["--data", "elsewhere"], ["`--data` is for a run"]),
    ],
)
def test_tune_refuses(log, cli, tmp_path, words, said):
    cli("replay", "tune", log, "--out", tmp_path / "study.json", *FEW, *words).mistake(*said)
    assert list(tmp_path.iterdir()) == []


def test_files_that_may_not_be_replaced_are_refused_first(log, cli, tmp_path):
    out = tmp_path / "study.json"
    out.write_text('{"format": "seedrank-study", "format_version": 1}')
    cli("replay", "tune", log, "--out", out, *FEW).mistake("another version", "Received: 1")
    (tmp_path / "new.json.checkpoint").write_text("{}")
    cli("replay", "tune", log, "--out", tmp_path / "new.json", *FEW).mistake("new.json.checkpoint", "--resume")
    (tmp_path / "new.json.checkpoint").write_text('{"hash": "aa", "rows": []}')
    line = ("replay", "tune", log, "--out", tmp_path / "new.json", *FEW, "--resume")
    cli(*line).mistake("new.json.checkpoint", "of another tuning")


@pytest.mark.slow
def test_whatif_and_apply_refuse(study, simulated, cli, tmp_path):
    cli("replay", "whatif", study, "--weights", "similarity=2").mistake("bounds, -1 to 1", "similarity=2")
    cli("replay", "whatif", study, "--weights", "gmv=1").mistake("'gmv'")
    cli("replay", "whatif", study, "--weights", "pctr").mistake("similarity=.2,pctr=1")
    cli("replay", "whatif", study, "--weights", "pctr=0,similarity=0,pcvr=0,price=0").mistake("not all 0")
    cli("replay", "whatif", study, "--weights", "pctr=1", "--window", "train").mistake("tune or test")
    other = ("--data", simulated)
    cli("replay", "whatif", study, "--weights", "pctr=1", *other).mistake("of another log")
    cli("replay", "report", study, *other).mistake("of another log")
    cli("replay", "apply", study, "--out", tmp_path / "weights.json", *other).mistake("of another log")
    cli("replay", "apply", study).mistake("MODELS", "--out")
    cli("replay", "apply", study, "--pick", "nobody", "--out", tmp_path / "weights.json").mistake("'nobody'")
    assert not (tmp_path / "weights.json").exists() and len(Study.load(study).looks) == 1


@pytest.mark.slow
def test_a_kill_and_resume_end_where_no_kill_would(log, tuned, kill_when, cli, tmp_path):
    often = "import ranking.replay.checkpoint as c; c._SECONDS = 0; from ranking.cli import main; main()"
    out = tmp_path / "study.json"
    line = ["replay", "tune", log, "--objective", "conversions", "--guardrail", "clicks>=-8%", "--out", out, *FEW]
    line = [*map(str, line), "--segments", "segment", "--diversity", "category"]
    kill_when(["-c", often, *line], tmp_path, "study.json.checkpoint")
    assert not out.exists() and (tmp_path / "study.json.checkpoint").exists()
    cli(*line).mistake("--resume")
    assert cli(*line, "--resume").code == 0
    found, wanted = (Study.load(path).to_json() for path in (out, tuned))
    assert {**found, "looks": []} == {**wanted, "looks": []}
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".tmp-")] == ["study.json"]
