"""`seedrank publish | versions | rollback | prune`: what they print, and what they refuse in one line."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from ranking import cli
from ranking.cli_versions import _age, _size, _watermark
from serving.manifest import Content
from serving.pin import pinned
from serving.publish import publish, versions
from serving.verifier import Verifier


@pytest.fixture(autouse=True)
def accepted(monkeypatch):
    """Verification is tested elsewhere."""
    monkeypatch.setattr(Verifier, "verify", lambda self, folder, known_graph: None)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line: its exit code, standard output and the lines of standard error."""

    def command(*words, columns=200):
        monkeypatch.setattr("sys.argv", ["seedrank", *map(str, words)])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            cli.main()
            raise SystemExit(0)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err.splitlines()

    return command


@pytest.fixture
def models(tmp_path):
    for number in (1, 2, 3):

        def build(folder, live, number=number):
            (folder / "saved_model.pb").write_bytes(b"x" * 1500 * number)
            parts = {part: f"{part[0]}{number}".ljust(64, "0") for part in ("parameters", "weights", "tables")}
            return Content(parts, {"seed_watermark": 1650931200000})

        publish(tmp_path / "models" / "seedrank", build, verify=False)
    return tmp_path / "models"


def test_versions_lists_the_newest_first_with_marks(models, run):
    one, two, three = versions(models / "seedrank")
    assert run("rollback", models, "--to", one)[0] == 0
    four = versions(models / "seedrank")[-1]
    (models / "models.config").write_text(
        'model_config_list { config { name: "seedrank" base_path: "/models/seedrank" model_platform: "tensorflow" '
        f'version_labels {{ key: "stable" value: {two} }} }} }}'
    )
    code, out, _ = run("versions", models)
    assert code == 0
    rows = [line.split(maxsplit=1)[0] for line in out.splitlines() if re.match(r"\d{13}", line)]
    assert rows == [str(version) for version in (four, three, two, one)]
    lines = {int(line.split()[0]): line for line in out.splitlines() if re.match(r"\d{13}", line)}
    assert f"live, pinned, content of {one}" in lines[four] and "stable" in lines[two]
    assert "p10000" in lines[four] and "2022-04-26 00:00" in lines[four]
    (shown,) = json.loads(run("versions", models, "--json")[1]).values()
    assert [row["version"] for row in shown] == rows
    assert shown[0]["rolled_back_to"] == str(one) and shown[0]["pinned"] and shown[2]["labels"] == ["stable"]
    assert shown[0]["hashes"]["tables"] == "t1".ljust(64, "0") and shown[0]["facts"] == {
        "seed_watermark": 1650931200000
    }


def test_a_narrow_screen_breaks_no_row(models, run):
    assert run("rollback", models)[0] == 0
    wide, narrow = (run("versions", models, columns=columns)[1].splitlines() for columns in (200, 40))
    assert [line.split()[3:] for line in narrow] == [line.split()[3:] for line in wide]  # without the ages
    assert len(narrow) == 6 and "live, pinned, content of" in narrow[2]


def test_rollback_says_what_it_went_back_to_and_how_to_unpin(models, run):
    one, two, three = versions(models / "seedrank")
    code, out, _ = run("rollback", models)
    four = versions(models / "seedrank")[-1]
    assert code == 0 and out.splitlines() == [
        f"Rolled back to {two}: its content is live as {four}, and {models / 'seedrank'} is pinned to it.",
        f"When refreshes may go on: seedrank rollback {models} --name seedrank --unpin",
    ]
    assert pinned(models / "seedrank")["version"] == two
    assert run("rollback", models, "--unpin")[1] == f"{models / 'seedrank'} is no longer pinned: refreshes go on.\n"
    assert pinned(models / "seedrank") is None
    assert run("rollback", models, "--unpin")[1] == f"{models / 'seedrank'} was not pinned.\n"
    assert json.loads(run("rollback", models, "--json")[1])["rolled_back_to"] == str(one)


def test_publish_brings_a_version_of_elsewhere_with_what_it_is_made_of(models, run, tmp_path):
    two = versions(models / "seedrank")[1]
    code, out, _ = run("publish", models / "seedrank" / str(two), tmp_path / "other", "--name", "shop")
    (version,) = versions(tmp_path / "other" / "shop")
    assert code == 0 and out == f"Published {version}\nNext: seedrank versions {tmp_path / 'other'}\n"
    (rows,) = json.loads(run("versions", tmp_path / "other", "--name", "shop", "--json")[1]).values()
    assert rows[0]["hashes"]["weights"] == "w2".ljust(64, "0")


def test_prune_says_what_it_removed(models, run):
    one, two, three = versions(models / "seedrank")
    assert run("prune", models, "--keep", "2")[1] == f"Removed {one}. Left: {two}, {three}.\n"
    assert json.loads(run("prune", models, "--keep", "2", "--json")[1]) == {
        "removed": [],
        "left": [str(two), str(three)],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["publish", "MODELS", "MODELS"], "MODELS should be a SavedModel's folder. Received: no saved_model.pb in it."),
        (["publish", "MODELS", "MODELS", "--name", "../x"], "`name` should be of letters"),
        (["versions", "MODELS/absent"], "MODELS/absent should be a folder of models. Received: no such folder."),
        (["versions", "MODELS/seedrank"], "MODELS/seedrank should hold MODEL/VERSION/saved_model.pb."),
        (["versions", "MODELS", "--name", "shop"], "MODELS/shop should hold a published version. Received: none."),
        (["rollback", "MODELS", "--to", "3"], "`to` should be a version of MODELS/seedrank: "),
        (["rollback", "MODELS", "--to", "3", "--unpin"], "`--to` should not be given with `--unpin`"),
        (["rollback", "MODELS", "--name", "shop"], "MODELS/shop should hold a published version. Received: none."),
        (["prune", "MODELS", "--keep", "1", "--name", "shop"], "MODELS/shop should be the folder of a model."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(models, run, words, message):
    code, out, errors = run(*(word.replace("MODELS", str(models)) for word in words))
    assert code == 2 and out == ""
    assert errors[-1].startswith("seedrank: " + message.replace("MODELS", str(models)))
    assert sum("seedrank:" in line for line in errors) == 1


def test_ages_sizes_and_watermarks_for_people():
    now = datetime(2026, 1, 10, tzinfo=UTC)
    ages = {5: "5 s", 119: "119 s", 120: "2 min", 7200: "2 h", 86400 * 2: "2 d", -3: "0 s"}
    for seconds, words in ages.items():
        assert _age((now - timedelta(seconds=seconds)).isoformat(), now) == words
    assert _age("some day", now) == _age("2026-01-01", now) == "-"  # no time, no zone
    sizes = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 61_500_000: "61.5 MB", 2e9: "2.0 GB"}
    assert [_size(count) for count in sizes] == list(sizes.values())
    # 2022-04-26 is 19108 days after 1970-01-01: 19108 * 86,400,000 ms
    assert _watermark(19108 * 86_400_000) == "2022-04-26 00:00"
    assert (_watermark(4096), _watermark(None)) == ("4096", "-")
