"""One tiny world, trained once a session: with int64 ids, and with text ids (and a final refit) on request."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ranking.data.simulator import load_world, simulate
from ranking.data.tables import TABLES, Dataset, write_dataset

ROOT = Path(__file__).resolve().parents[2]

WORLD = """
name = "tiny"
seed = 7
start = 2025-03-03

[users]
count = 600
history_clicks = {history}
history_days = 10

[items]
count = {items}
born_per_day = 2
categories = 6
drift = 0.05

[traffic]
requests = {requests}
daily = [2, 2, 2, 2, 1, 1, 2, 2]
candidates = 12
examination = [1.0, 0.8, 0.7, 0.6]
tabs = ["home", "search"]

[feedback]
click_rate = 0.2
conversion_rate = 0.3
interaction_share = 0.5
spread = [1.4, 1.2]
kinship = 0.4
delay_hours = 6
attribution_hours = 24

[policy]
name = "production"
weights = {{ similarity = 1.0, pctr = 1.0, pcvr = 0.1, price = 0.3 }}
exploration = "plackett_luce"
temperature = 1.2
epsilon = 0
noise = 0.6
blind_days = 1

[windows]
lookalike = [-10, 2]
train = [2, 4]
calibrate = [4, 5]
tune = [5, 6]
test = [6, 8]

[state]
seed_event = "behaviors.clicked"
k = {k}
min_seeds = {min_seeds}
"""
TINY = {"requests": 3000, "history": 10, "items": 100, "k": 4, "min_seeds": 8}
# Few seeds an item: one more among them shows in the similarity, so that a planted leak does.
SPARSE = {"requests": 6000, "history": 3, "items": 500, "k": 20, "min_seeds": 3}

# As float32 (above 2^24) and as float64 (above 2^53) each is its neighbour. Both neighbours are in the log.
AWKWARD_NUMBERS = (2**24 + 1, 2**24, 2**53 + 1, 2**53)
AWKWARD_TEXTS = ('"quoted"', "it's", "a/b\\c?d=e&f", "张伟 的店", "007", "7", "a,b", "émoji 🙂\ttab")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A dataset folder and what was trained on it; the run comes back from its folder, as every command sees it."""

    data: Path
    path: Path
    user_ids: tuple[Any, ...]
    item_ids: tuple[Any, ...]

    @cached_property
    def run(self) -> Any:
        from ranking.run import load_run

        return load_run(self.path)

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset(self.data)

    @cached_property
    def timeline(self) -> Any:
        from ranking.timeline import Timeline

        return Timeline(self.dataset)

    @cached_property
    def builder(self) -> Any:
        return self.run.builder(self.timeline)


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a dataset as they are stored."""
    return {
        name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES if (folder / f"{name}.parquet").exists()
    }


def train_tiny(data: Path, out: Path, **arguments: Any) -> Any:
    from ranking.esmm_settings import EsmmSettings
    from ranking.fit import fit_run
    from ranking.lookalike_settings import LookalikeSettings
    from ranking.training import Settings

    settings = Settings(LookalikeSettings(representation_epochs=1, epochs=1), EsmmSettings(epochs=1))
    return fit_run(Dataset(data), out, settings=settings, **arguments)


def run_command(*arguments: object) -> int:
    """Runs the command line in this process; its exit code."""
    from ranking.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["seedrank", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0


def _renamed(
    source: Path, out: Path, kind: str, names: tuple[Any, ...], ordinary: Callable[[str, int], Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The same log with other ids: the most clicked on users and items get `names`, the others `ordinary` ones."""
    tables = read_tables(source)
    used = tables["impressions"]
    maps: dict[str, dict[int, Any]] = {}
    for side in ("user", "item"):
        frequent = used.loc[used["click"] == 1, f"{side}_id"].value_counts().index[: len(names)]
        ids = tables[f"{side}s"][f"{side}_id"]
        maps[side] = {old: ordinary(side, number) for number, old in enumerate(ids)}
        maps[side] |= dict(zip(frequent, names, strict=True))
    for frame in tables.values():
        for column, side in (("user_id", "user"), ("item_id", "item"), ("value", "item")):
            if column in frame and (column != "value" or "field" in frame):
                frame[column] = frame[column].map(maps[side])
    toml = (source / "dataset.toml").read_text().replace('"int64"', f'"{kind}"')
    write_dataset(out, toml, tables)
    shutil.copy(source / "production_weights.json", out)
    return names, names


@pytest.fixture(scope="session")
def world_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("world") / "tiny.toml"
    path.write_text(WORLD.format(**TINY))
    return path


@pytest.fixture(scope="session")
def simulated(world_file, tmp_path_factory) -> Path:
    return simulate(load_world(world_file), tmp_path_factory.mktemp("simulated") / "data")


@pytest.fixture(scope="session")
def tiny(simulated, tmp_path_factory) -> Trained:
    """int64 ids, baselines of one random seed."""
    folder = tmp_path_factory.mktemp("tiny")
    ids = _renamed(
        simulated, folder / "data", "int64", AWKWARD_NUMBERS, lambda side, n: (10**10 if side == "user" else 5000) + n
    )
    train_tiny(folder / "data", folder / "run", baselines=True, seeds=1)
    return Trained(folder / "data", folder / "run", *ids)


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory) -> Path:
    """A models folder with the tiny run, to be copied."""
    from ranking.export import export_run

    folder = tmp_path_factory.mktemp("exported") / "models"
    export_run(tiny.run, folder)
    return folder


@pytest.fixture(scope="session")
def text(simulated, tmp_path_factory) -> Trained:
    """Text ids; trained from the command line, refitted on train + calibrate + tune."""
    folder = tmp_path_factory.mktemp("text")
    ids = _renamed(simulated, folder / "data", "string", AWKWARD_TEXTS, lambda side, n: f"{side}-{n:04d}")
    run_command("train", "--data", folder / "data", "--out", folder / "run", "--refit", "--esmm", "epochs=1", "--json")
    return Trained(folder / "data", folder / "run", *ids)


@pytest.fixture(scope="session")
def shuffled(tmp_path_factory) -> Trained:
    """A world whose labels have nothing to do with user or item."""
    folder = tmp_path_factory.mktemp("shuffled")
    (folder / "world.toml").write_text(WORLD.format(**SPARSE))
    simulate(load_world(folder / "world.toml"), folder / "data", shuffle_labels=True)
    train_tiny(folder / "data", folder / "run")
    return Trained(folder / "data", folder / "run", (), ())


@pytest.fixture
def rewritten(tmp_path) -> Callable[..., Path]:
    """`(source, edit=f, toml=g) -> Path`: a copy of a dataset whose tables or `dataset.toml` were changed.

    `edit` changes the dict of stored tables in place.
    """

    def make(
        source: Path,
        edit: Callable[[dict[str, pd.DataFrame]], Any] | None = None,
        toml: Callable[[str], str] | Mapping[str, str] | None = None,
        *,
        name: str = "changed",
    ) -> Path:
        content = (source / "dataset.toml").read_text()
        if isinstance(toml, Mapping):
            for old, new in toml.items():
                assert old in content
                content = content.replace(old, new)
        elif toml is not None:
            content = toml(content)
        tables = read_tables(source)
        if edit is not None:
            edit(tables)
        out = tmp_path / name
        out.mkdir()
        for table, frame in tables.items():
            frame.to_parquet(out / f"{table}.parquet", index=False)
        (out / "dataset.toml").write_text(content)
        return out

    return make


STAGE = r"  [^:]+: [\d,]+ in [\d.]+ s"


@pytest.fixture(scope="session")
def seedrank() -> Callable[..., int]:
    """`(argument, ...) -> exit code`: the command line, for fixtures of a whole session."""
    return run_command


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    def mistake(self, *words: str) -> None:
        """Exit code 2 and one line on standard error, with all the words, beside those of stages already finished."""
        assert self.code == 2, (self.code, self.err)
        lines = [line for line in self.err.splitlines() if not re.fullmatch(STAGE, line)]
        assert len(lines) == 1 and lines[0].startswith("seedrank: "), self.err
        for word in words:
            assert word in lines[0], (word, lines[0])


@pytest.fixture
def cli(capfd) -> Callable[..., Answer]:
    """`(argument, ...) -> Answer`: runs the command line in this process."""

    def call(*arguments: object) -> Answer:
        capfd.readouterr()
        code = run_command(*arguments)
        said = capfd.readouterr()
        return Answer(code, said.out, said.err)

    return call


COMMAND = "from ranking.cli import main; main()"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def process() -> Callable[..., Answer]:
    """`(argument, ...) -> Answer`: the same in a fresh process."""

    def call(*arguments: object) -> Answer:
        line = [sys.executable, "-c", COMMAND, *map(str, arguments)]
        done = subprocess.run(line, env=_environment(), capture_output=True, text=True, timeout=240, cwd="/")
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen]]:
    """`(argument, ...) -> Popen`: the command line, left running in a fresh process; killed after the test."""
    running = []

    def start(*arguments: object) -> subprocess.Popen:
        line = [sys.executable, "-c", COMMAND, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(line, env=_environment(), cwd="/", **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def kill_when() -> Callable[[list[str], Path, str], None]:
    """`(arguments of python, folder, pattern) -> None`: starts a process and kills it (SIGKILL) as soon as the folder
    holds a file of that pattern; tries again where it was faster."""

    def killed(line: list[str], folder: Path, pattern: str) -> bool:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = subprocess.Popen([sys.executable, *line], env=_environment(), cwd="/", **pipes)
        try:
            while started.poll() is None and not any(folder.glob(pattern)):
                time.sleep(0.0005)
        finally:
            with contextlib.suppress(ProcessLookupError):
                started.kill()
            said = started.communicate()
        assert started.returncode in (0, -9), said
        return started.returncode == -9

    def run(line: list[str], folder: Path, pattern: str) -> None:
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()} if folder.exists() else {}
        for _ in range(5):
            if killed(line, folder, pattern):
                return
            for path in folder.iterdir():
                if before.get(path) != path.stat().st_mtime_ns:
                    shutil.rmtree(path)
        raise AssertionError(f"{pattern} was never seen before the process ended")

    return run
