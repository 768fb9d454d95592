"""A writer, its store and its snapshots killed at random moments: nothing acknowledged is lost, nothing counts twice.

python tests/integration/test_seed_kills.py    # is the process that forks those that are killed
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.clicklog import FORGET, UNCLICK, ClickLog
from lookalike.snapshots import Snapshots, catch_up, open_store, state_of

ROOT = Path(__file__).resolve().parents[2]
RESENT_KILLS = 25
ITEMS, USERS, EVENTS = 80, 1500, 1_000_000
STORE = {"latest": 200, "byte_budget": 16 * 60 * ITEMS}
STEPS = 60  # calls of the operating system that a life has at most, of those that change files
# Appends of a life that ends at a moment, at most; then it waits for the kill. Else 100 lives on a fast machine reach
# the end of the stream and are not killed: with 300 events an append, half of them 30 appends, half STEPS / 2 at most.
APPENDS = 30
COUNTED = ("write", "pwrite", "fdatasync", "fsync", "ftruncate", "replace", "rename", "unlink")


def stream() -> tuple[np.ndarray, ...]:
    """Every event there will be: late and repeated ones, removals, times out of range."""
    rng = np.random.default_rng(7)
    item = (ITEMS * rng.random(EVENTS) ** 3).astype(np.int64)
    user = rng.integers(USERS, size=EVENTS)
    time = 1_740_960_000_000 + 50 * np.arange(EVENTS) + rng.integers(-20_000, 20_000, EVENTS)
    time = np.where(rng.random(EVENTS) < 0.03, time - rng.integers(10_000_000, size=EVENTS), time)
    time[rng.random(EVENTS) < 0.01] = rng.choice([0, -1, 4_200_000_000_000])
    kind = np.zeros(EVENTS, np.uint8)
    draw = rng.random(EVENTS)
    kind[draw < 0.03], kind[draw < 0.003] = UNCLICK, FORGET
    return user, item, time, kind


# The process that is killed.


def fragile(steps: int, rng: np.random.Generator) -> None:
    """Kills this process at its n-th change of a file: before it, after it, or half way through what is written."""
    left = [steps]

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                try:
                    if "write" in name:
                        descriptor, data, *place = arguments
                        real(descriptor, data[: rng.integers(len(data) + 1)], *place)
                    elif rng.random() < 0.5:
                        real(*arguments, **named)
                finally:  # an unlink of what may be missing raises, and its caller goes on
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for name in COUNTED:
        setattr(os, name, wrapped(name, getattr(os, name)))


def live(folder: Path, steps: int | None, seed: int, start: int | None, until: int, appends: int | None = None) -> None:
    """Opens what is there and goes on until `until`: appends, acknowledges, applies, and saves now and then.

    After `appends` it waits to be killed.

    With `start` None the producer goes on behind the log's end; else behind what it was told had been acknowledged.
    """
    rng = np.random.default_rng(seed)
    told = os.open(folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    tell = os.write

    def say(*words: object) -> None:
        tell(told, (json.dumps(words) + "\n").encode())

    if steps is not None:
        fragile(steps, rng)
    with ClickLog(folder / "log", segment_bytes=100_000) as log:
        snapshots = Snapshots(folder / "snapshots")
        store = open_store(log, snapshots, **STORE)
        say("opened", log.end, store.offset, store.counts.accepted)
        place = log.end if start is None else start
        while place < until:
            if appends is not None:
                if appends == 0:
                    signal.pause()
                appends -= 1
            after = min(place + int(rng.integers(1, 600)), until)
            first, last = log.append(*(column[place:after] for column in STREAM))
            say("acknowledged", first, last, after)
            place = after
            catch_up(store, log)
            if rng.random() < 0.25:
                snapshots.save(store)
        snapshots.save(store)


def warm_up() -> None:
    """Compiled code is loaded once, before the forks."""
    with tempfile.TemporaryDirectory() as folder:
        live(Path(folder), None, 0, None, 2000)


def nursery() -> None:
    """For each line of standard input a fork that lives it, killed after `seconds` where that is said."""
    global STREAM
    STREAM = stream()
    warm_up()
    for line in sys.stdin:
        told = json.loads(line)
        seconds = told.pop("seconds")
        child = os.fork()
        if child == 0:
            try:
                live(Path(told.pop("folder")), **told)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


# The tests.


@pytest.fixture(scope="module")
def lives() -> Iterator[Callable[..., int]]:
    """`(folder, steps=, seconds=, seed=, start=, until=) -> exit code` of a life in a process of its own."""
    line = [sys.executable, __file__]
    process = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    def call(folder: Path, **told: Any) -> int:
        defaults = {"steps": None, "seconds": None, "seed": 0, "start": None, "until": EVENTS}
        process.stdin.write(json.dumps({"folder": str(folder), **defaults, **told}) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield call
    process.stdin.close()
    process.wait(30)


def heard(folder: Path, word: str) -> list[list[int]]:
    lines = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
    return [rest for first, *rest in map(json.loads, lines) if first == word]


def tear(folder: Path, rng: np.random.Generator) -> None:
    """What the file system may leave behind a process that was writing: pieces of frames, zeros, anything."""
    last = max((folder / "log").glob("*.clicks"), default=None)
    if last is None:
        return
    data = last.read_bytes()
    low = int(rng.integers(len(data) + 1))
    torn = [data[low : low + 5000], bytes(100), rng.bytes(77), data[:30]][rng.integers(4)]
    with open(last, "ab") as file:
        file.write(torn)


def kill_times(lives: Callable[..., int], folder: Path, kills: int, *, resend: bool) -> None:
    """Lives that end by a kill; half of them at a step, half at a moment."""
    rng = np.random.default_rng(kills)
    for number in range(kills):
        start = max((row[2] for row in heard(folder, "acknowledged")), default=0) if resend else None
        if number % 2:
            end = {"steps": int(rng.integers(1, STEPS))}
        else:
            end = {"seconds": float(rng.uniform(0.0, 0.15)), "appends": APPENDS}
        assert lives(folder, seed=number, start=start, **end) == -signal.SIGKILL
        if rng.random() < 0.3:
            tear(folder, rng)


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_acknowledged_is_lost_and_nothing_counts_twice(lives, tmp_path, kills):
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    killed.mkdir(), calm.mkdir()
    kill_times(lives, killed, kills, resend=False)
    with ClickLog(killed / "log", write=False) as log:
        acknowledged = max(last for _, last, _ in heard(killed, "acknowledged"))
        assert log.end >= acknowledged > 100 * kills  # they did live
    until = acknowledged + 1000
    assert lives(killed, until=until) == 0

    # The log is the stream: each event once, in its place.
    with ClickLog(killed / "log", write=False) as log:
        assert (log.start, log.end, log.damage) == (0, until, [])
        columns = zip(*((b.user, b.item, b.time, b.kind) for b in log.read()), strict=True)
        for read, sent in zip(columns, stream(), strict=True):
            np.testing.assert_array_equal(np.concatenate(read), sent[:until])
    # Each event counted once, after each of the kills.
    for end, offset, accepted in heard(killed, "opened"):
        assert end == offset == accepted
    # What one process makes of the same events, undisturbed.
    assert lives(calm, until=until, seed=1) == 0
    mine, its = (Snapshots(folder / "snapshots").paths()[0] for folder in (killed, calm))
    assert mine.name == its.name  # the offset
    assert state_of(mine) == state_of(its)


@pytest.mark.slow
def test_a_producer_that_sends_again_changes_no_seeds(lives, tmp_path):
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    killed.mkdir(), calm.mkdir()
    kill_times(lives, killed, RESENT_KILLS, resend=True)
    after = max(row[2] for row in heard(killed, "acknowledged"))
    assert lives(killed, start=after, until=after + 1000) == 0
    assert lives(calm, until=after + 1000) == 0
    with ClickLog(killed / "log", write=False) as log, ClickLog(calm / "log", write=False) as once:
        assert log.end > once.end == after + 1000  # some came twice
        with_repeats, without = (
            open_store(each, Snapshots(folder / "snapshots"), **STORE) for each, folder in ((log, killed), (once, calm))
        )
        assert with_repeats.counts.accepted == log.end
        items = without.items()
        for one, other in zip(with_repeats.seeds(items), without.seeds(items), strict=True):
            np.testing.assert_array_equal(one, other)
        assert with_repeats.effective_latest == without.effective_latest < STORE["latest"]


if __name__ == "__main__":
    nursery()
