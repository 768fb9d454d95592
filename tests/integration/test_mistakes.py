"""A user's mistake is exit code 2 and one line that names the file, column or value; never a traceback."""

import json
import shutil
import signal
import socket

import pytest


def drop(table, column):
    return lambda tables: tables[table].drop(columns=column, inplace=True)


def convert(table, column, change):
    def edit(tables):
        tables[table][column] = change(tables[table][column])

    return edit


def conversion_without_click(tables):
    tables["impressions"].loc[tables["impressions"]["click"].idxmin(), "conversion"] = 1


def twice(tables):
    tables["users"].loc[1, "user_id"] = tables["users"].loc[0, "user_id"]


BROKEN = {
    "missing column": (drop("impressions", "click"), {}, ["impressions.parquet", "`click`"]),
    "missing feature": (drop("users", "city"), {}, ["users.parquet", "`city`"]),
    "missing context": (drop("impressions", "tab"), {}, ["impressions.parquet", "`tab`"]),
    "conversion without click": (conversion_without_click, {}, ["impressions.parquet", "`conversion`", "click is 0"]),
    "label of another kind": (
        convert("impressions", "click", lambda click: click * 2),
        {},
        ["impressions.parquet", "`click`", "Received: 2"],
    ),
    "text where int64 ids are declared": (
        convert("impressions", "user_id", lambda ids: "u" + ids.astype(str)),
        {},
        ["impressions.parquet", "`user_id`", "'u"],
    ),
    "numbers where text ids are declared": (None, {'item = "int64"': 'item = "string"'}, ["`item_id`", '"string"']),
    "ids as floats": (
        convert("impressions", "item_id", lambda ids: ids.astype("float64")),
        {},
        ["impressions.parquet", "`item_id`", "float"],
    ),
    "an id twice": (twice, {}, ["users.parquet", "`user_id`", "unique"]),
    "unknown feature kind": (
        None,
        {'income = { kind = "numeric"': 'income = { kind = "number"'},
        ["dataset.toml", "`income`", "'number'", "categorical, multi, numeric"],
    ),
    "unknown key": (None, {"min_seeds": "min_seed"}, ["dataset.toml", "`min_seed`", "did you mean `min_seeds`"]),
    "label as a feature": (
        None,
        {"tab = { kind": "value = { kind"},
        ["dataset.toml", "`value`", "label"],
    ),
    "empty window": (
        None,
        {'test = ["2025-03-09", "2025-03-11"]': 'test = ["2025-03-09", "2025-03-09"]'},
        ["dataset.toml", "`test`", "2025-03-09"],
    ),
    "windows out of order": (
        None,
        {'tune = ["2025-03-08", "2025-03-09"]': 'tune = ["2025-03-06", "2025-03-07"]'},
        ["dataset.toml", "`tune`", "`calibrate`"],
    ),
    "window without impressions": (
        lambda tables: tables["impressions"].query("timestamp < 1741305600000", inplace=True),  # 2025-03-07
        {},
        ["window calibrate", "no impression"],
    ),
    "missing window": (None, {"calibrate =": "# calibrate ="}, ["dataset.toml", "`calibrate`"]),
    "not TOML": (None, {"[state]": "[state"}, ["dataset.toml", "not valid TOML"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_train_refuses(name, simulated, rewritten, tmp_path, cli):
    edit, toml, words = BROKEN[name]
    data = rewritten(simulated, edit, toml)
    cli("train", "--data", data, "--out", tmp_path / "run").mistake(*words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["missing column", "conversion without click", "text where int64 ids are declared"])
def test_data_check_reports(name, simulated, rewritten, cli):
    edit, toml, words = BROKEN[name]
    answer = cli("data", "check", rewritten(simulated, edit, toml), "--json")
    assert answer.code == 2 and not answer.err
    (error,) = json.loads(answer.out)["errors"]
    assert all(word in error for word in words)


@pytest.mark.slow
def test_in_a_fresh_process(simulated, rewritten, tmp_path, process):
    """TensorFlow has nothing to say either."""
    data = rewritten(simulated, conversion_without_click)
    process("train", "--data", data, "--out", tmp_path / "run").mistake("impressions.parquet", "`conversion`")
    process("data", "check", tmp_path).mistake(f"{tmp_path}/dataset.toml")


def test_a_folder_that_is_no_run(simulated, tmp_path, cli):
    for folder in (simulated, tmp_path / "nothing"):
        cli("evaluate", "--run", folder, "--data", simulated).mistake(str(folder), "not a run folder")
        cli("export", "--run", folder, "--models", tmp_path / "models").mistake(str(folder), "not a run folder")
    cli("replay", "tune", tmp_path, "--out", tmp_path / "study.json").mistake(str(tmp_path), "dataset.toml")
    cli("train", "--data", tmp_path, "--out", tmp_path / "run").mistake(f"{tmp_path}/dataset.toml")
    assert not (tmp_path / "models").exists() and not (tmp_path / "study.json").exists()


@pytest.mark.slow  # a run has to be trained for it
@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", "{", ["run.json"]),
        ("run.json", '{"format": 99}', ["run.json", "99"]),
        ("encoder.json", None, ["encoder.json"]),
        ("seedrank_0.keras", None, ["seedrank_0.keras"]),
        ("state.npz", None, ["state.npz"]),
        ("fusion.json", "[]", ["fusion.json"]),
    ],
)
def test_a_damaged_run(text, tmp_path, cli, file, content, words):
    run = tmp_path / "run"
    shutil.copytree(text.path, run)
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    cli("evaluate", "--run", run, "--data", text.data).mistake(*words)


def test_serve(tmp_path, cli):
    models = tmp_path / "models"
    cli("serve", models).mistake(str(models), "not a folder")
    models.mkdir()
    cli("serve", models).mistake(str(models), "no model")
    (models / "seedrank").mkdir()
    cli("serve", models).mistake(str(models / "seedrank"), "no version")
    for age in ("soon", "0s", "-1h", "90"):
        cli("serve", models, "--hard-table-age", age).mistake("--hard-table-age", f"'{age}'")
    cli("serve", models, "--engine", "tfserving", "--hard-table-age", "1h").mistake("--hard-table-age", "tfserving")
    (models / "seedrank" / "1").mkdir()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            cli("serve", models, "--rest-port", port, "--grpc-port", 0).mistake(str(port), "in use")
            cli("serve", models, "--rest-port", 0, "--grpc-port", port).mistake(str(port), "in use")
        cli("serve", models, "--rest-port", 70000, "--grpc-port", 0).mistake("70000")
        # a version without a model in it
        cli("serve", models, "--rest-port", 0, "--grpc-port", 0).mistake("saved_model.pb", "seedrank/1")
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_rank(tmp_path, cli):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    ask = ("rank", "--user", 1, "--url", f"http://127.0.0.1:{port}")
    cli(*ask, "--items", "1,2").mistake(f"127.0.0.1:{port}")
    cli(*ask, "--items", f"@{tmp_path}/items.txt").mistake(f"{tmp_path}/items.txt")
    cli(*ask, "--items", "1,2", "--prices", "1.5,cheap").mistake("--prices", "'cheap'")
    cli(*ask, "--items", "1,2", "--context", "home").mistake("--context", "'home'")
    cli(*ask, "--items", "1,2", "--weights", "gmv=1").mistake("'gmv'", "similarity, pctr, pcvr, price")
    cli("rank", "--user", 1, "--items", 1, "--url", "127.0.0.1").mistake("http://", "127.0.0.1")


def test_simulate(simulated, tmp_path, cli):
    cli("data", "simulate", "--out", simulated).mistake(str(simulated), "--overwrite")
    cli("data", "simulate", "--out", tmp_path / "data", "--world", "atlantis").mistake("'atlantis'", "demo, reference")
    world = tmp_path / "world.toml"
    world.write_text('name = "x"\nseeds = 3\n')
    cli("data", "simulate", "--out", tmp_path / "data", "--world", world).mistake(str(world), "`seeds`")
    cli("data", "import", "netflix", "--source", tmp_path, "--out", tmp_path / "data").mistake("'netflix'", "kuairand")
    cli("data", "import", "kuairand", "--source", tmp_path, "--out", tmp_path / "data").mistake(str(tmp_path))
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_evaluate_arguments(text, cli):
    ask = ("evaluate", "--run", text.path, "--data", text.data)
    cli(*ask, "--window", "yesterday").mistake("dataset.toml", "`yesterday`", "lookalike, train")
    cli(*ask, "--window", "train").mistake(str(text.data), "'train'", "watermark", "--state rolling")
    cli(*ask, "--state", "thawed").mistake("--state", "'thawed'")


def test_replay_files(simulated, tmp_path, cli):
    missing, other = tmp_path / "study.json", tmp_path / "other.json"
    other.write_text("{}")
    for command in (("report",), ("apply", "--out", tmp_path / "weights.json")):
        cli("replay", command[0], missing, *command[1:]).mistake(str(missing))
        cli("replay", command[0], other, *command[1:]).mistake(str(other))
    tune = ("replay", "tune", simulated, "--out", missing)
    cli(*tune, "--objective", "fame").mistake("'fame'")
    cli(*tune, "--guardrail", "clicks").mistake("--guardrail", "'clicks'")
    cli(*tune, "--production", other).mistake(str(other))
    assert not missing.exists()
