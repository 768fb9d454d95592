"""A kill at any moment leaves nothing half-written that a later command would take for whole."""

import pytest

from ranking.export import export_run
from ranking.run import load_run, save_run
from serving.publish import versions

pytestmark = pytest.mark.slow

COMMAND = ["-c", "from ranking.cli import main; main()"]
# What `seedrank train` does last, without the minutes before it.
SAVE = """
import sys
from pathlib import Path
from ranking.run import load_run, save_run
run, out = load_run(sys.argv[1]), Path(sys.argv[2])
save_run(run, out, Path(sys.argv[1]) / "dataset.toml", run.attributes(), overwrite=out.exists())
"""
BEGUN = ".tmp-*"
TABLES_HALF_WRITTEN = ".tmp-*/.tmp-*/users.parquet"


@pytest.mark.parametrize("moment", [BEGUN, TABLES_HALF_WRITTEN])
def test_simulate(world_file, tmp_path, kill_when, cli, moment):
    out = tmp_path / "data"
    line = ["data", "simulate", "--world", str(world_file), "--out", str(out)]
    kill_when([*COMMAND, *line], tmp_path, moment)
    assert not out.exists()
    cli("data", "check", out).mistake(str(out))
    assert cli(*line).code == 0
    assert cli("data", "check", out).code == 0


def test_simulate_again(simulated, world_file, tmp_path, kill_when, cli):
    """What is being replaced stays whole."""
    out = tmp_path / "data"
    line = ["data", "simulate", "--world", str(world_file), "--out", str(out)]
    assert cli(*line).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    kill_when([*COMMAND, *line, "--overwrite"], tmp_path, TABLES_HALF_WRITTEN)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_save(text, tmp_path, kill_when, cli):
    out = tmp_path / "run"
    line = ["-c", SAVE, str(text.path), str(out)]
    kill_when(line, tmp_path, ".tmp-*/seedrank_0.keras")
    assert not out.exists()
    cli("evaluate", "--run", out, "--data", text.data).mistake(str(out), "not a run folder")
    save_run(text.run, out, text.path / "dataset.toml", text.run.attributes())
    assert load_run(out).info == text.run.info
    kill_when(line, tmp_path, ".tmp-*/seedrank_0.keras")
    assert load_run(out).info == text.run.info


@pytest.mark.slow
def test_export(text, tmp_path, kill_when, cli):
    models, base = tmp_path / "models", tmp_path / "models" / "seedrank"
    line = [*COMMAND, "export", "--run", str(text.path), "--models", str(models)]
    base.mkdir(parents=True)
    kill_when(line, base, ".tmp-*/assets.extra/golden.json")  # whole to the eye, and being verified
    assert any(base.glob(".tmp-*/saved_model.pb")) and versions(base) == []
    cli("serve", models).mistake(str(base), "no version")
    export_run(text.run, models)
    assert len(versions(base)) == 1 and not any(base.glob(".tmp-*"))
