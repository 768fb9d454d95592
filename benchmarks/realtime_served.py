"""What realtime.py measures of the whole: from a click over HTTP until `seedrank up` serves another similarity."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import urllib3
from realtime_clicks import ROOT

from serving import rest

LOOK = 0.05  # seconds between two looks at what is served
CLICKS = 150  # on an item that has no similarity: it takes 100 seeds to have one
LONGEST = 600.0  # seconds, of any wait
WORLD = """
name = "small"
seed = 7
start = 2025-03-03
[users]
count = 800
history_clicks = 10
history_days = 10
[items]
count = 100
born_per_day = 2
categories = 6
drift = 0.05
[traffic]
requests = 3000
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
weights = { similarity = 1.0, pctr = 1.0, pcvr = 0.1, price = 0.3 }
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
k = 4
min_seeds = 8
"""


def seedrank(*words: object) -> list[str]:
    return [sys.executable, "-c", "from ranking.cli import main; main()", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def small_run(folder: Path) -> None:
    """A world and a run, by the commands that anyone would use; left alone where they are there."""
    world, data, run = (folder / name for name in ("world.toml", "data", "run"))
    if run.is_dir():
        return
    folder.mkdir(exist_ok=True)
    world.write_text(WORLD)
    epochs = ["--lookalike", "representation_epochs=1,epochs=1", "--esmm", "epochs=1"]
    for words in (
        ["data", "simulate", "--world", world, "--out", data],
        ["train", "--data", data, "--out", run, *epochs],
    ):
        done = subprocess.run(seedrank(*words), env=environment(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"seedrank {' '.join(map(str, words))}: {done.stderr[-500:]}")


@contextlib.contextmanager
def everything(model: Path, folder: Path, every: float) -> Iterator[dict[str, int]]:
    """`seedrank up` with new folders of models and clicks; yields its ports when all answer."""
    ports = dict(zip(("ingest", "refresh", "rest", "grpc"), free_ports(4), strict=True))
    words = ["up", "--run", model / "run", "--models", folder / "models", "--log", folder / "clicks"]
    words += ["--data", model / "data", "--every", f"{every:g}s", "--no-live"]
    words += [word for name, port in ports.items() for word in (f"--{name}-port", port)]
    with open(folder / "up.log", "wb") as said:
        process = subprocess.Popen(seedrank(*words), env=environment(), stdout=said, stderr=said)
    try:
        wait_for(lambda: number(ports["refresh"], "/metrics", "seedrank_refresh_rounds_total") >= 2, process)
        wait_for(lambda: asked(ports["ingest"], "/healthz") and asked(ports["rest"], "/v1/models/seedrank"), process)
        yield ports
    finally:
        process.terminate()
        process.wait(200)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all are held until all are found
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def asked(port: int, path: str) -> str:
    """What is answered; nothing while nobody answers well."""
    try:
        reply = urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False, timeout=5.0)
    except urllib3.exceptions.HTTPError:
        return ""
    return reply.data.decode() if reply.status == 200 else ""


def number(port: int, path: str, name: str) -> float:
    """A figure of a page of metrics; -1 where it is not there."""
    found = re.search(rf"^{name} (\S+)$", asked(port, path), re.MULTILINE)
    return float(found[1]) if found else -1.0


def wait_for(come: Any, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + LONGEST
    while not come():
        if time.monotonic() > end or (process and process.poll() is not None):
            raise SystemExit("seedrank up: not what was waited for")
        time.sleep(LOOK)


class Watch(threading.Thread):
    """Asks for the ranking of all items again and again, and notes what changes."""

    def __init__(self, port: int, user: int, items: np.ndarray) -> None:
        super().__init__(daemon=True)
        self._url, self._user, self._items = f"http://127.0.0.1:{port}", user, items
        self._inputs: dict[str, Any] = {"context": {"tab": "home"}, "price": np.ones(len(items))}
        self._ended = threading.Event()
        self.similar = np.ones(len(items), bool)
        self.seen: list[tuple[float, float]] = []  # a watermark, and when it was first seen
        self.failed = 0

    def run(self) -> None:
        with rest.RankClient(self._url) as client:
            while not self._ended.wait(LOOK):
                try:
                    found = client.rank(
                        self._user, self._items, context={"tab": "home"}, price=np.ones(len(self._items))
                    )
                except Exception:  # counted: none should fail
                    self.failed += 1
                    continue
                self.similar = np.asarray(found["has_similarity"], bool)
                watermark = float(np.max(found["seed_watermark"])) / 1000
                if not self.seen or watermark > self.seen[-1][0]:
                    self.seen.append((watermark, time.time()))

    def end(self) -> None:
        self._ended.set()
        self.join()


def click_to_served(model: Path, folder: Path, every: float, trials: int) -> dict:
    """Clicks on items without a similarity, at random moments: until the seed store has them, and until it is served.

    The worst moment for a click is that of a refresh's watermark: it waits until the next watermark is served. So each
    two refreshes that follow each other give the longest wait that was possible between them.
    """
    small_run(model)
    users = pd.read_parquet(model / "data" / "users.parquet")["user_id"].to_numpy()
    items = pd.read_parquet(model / "data" / "items.parquet")["item_id"].to_numpy()
    rng, seed, served = np.random.default_rng(3), [], []
    with everything(model, folder, every) as ports:
        watch = Watch(ports["rest"], int(users[0]), items)
        watch.start()
        wait_for(lambda: len(watch.seen) >= 2)
        for item in rng.permutation(np.flatnonzero(~watch.similar))[:trials]:
            time.sleep(rng.uniform(0, every))
            before = time.time()
            end = send(ports["ingest"], rng.choice(users, CLICKS, replace=False), items[item])
            wait_for(lambda end=end: number(ports["refresh"], "/metrics", "seedrank_seeds_offset") >= end)
            seed.append(time.time() - before)
            wait_for(lambda item=item: watch.similar[item])
            served.append(time.time() - before)
        watch.end()
        steps = re.findall(r'step_seconds\{step="(\w+)"\} (\S+)', asked(ports["refresh"], "/metrics"))
    if not served:
        raise SystemExit("no item was without a similarity")
    worst = [when - mark for (mark, _), (_, when) in pairwise(watch.seen[1:])]
    row = {"every": every, "trials": len(served), "seed": max(seed), "p50": float(np.median(served))}
    row |= {"most": max(served), "worst": max(worst), "refreshes": len(worst), "failed": watch.failed}
    return {**row, "all": served, "steps": {name: float(seconds) for name, seconds in steps}}


def send(port: int, users: np.ndarray, item: int) -> int:
    """Clicks over HTTP; the offset behind them."""
    now = int(time.time() * 1000)
    lines = [json.dumps({"user_id": int(user), "item_id": int(item), "time": now}) for user in users]
    reply = urllib3.request("POST", f"http://127.0.0.1:{port}/v1/clicks", body="\n".join(lines), retries=False)
    if reply.status != 200:
        raise SystemExit(f"clicks were refused: {reply.data[:200]!r}")
    return int(reply.json()["next"])
