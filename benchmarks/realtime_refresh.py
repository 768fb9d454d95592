"""What realtime.py measures of the refresh: CPU seconds of its clustering, and how long until a click is served."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from realtime_clicks import ROOT, Service, cpu_of

from lookalike.clicklog import Batch
from lookalike.seeds import SeedStore

K, DIM, WARM = 20, 64, 2
NOW = 1_760_000_000_000
LARGE = 3_000_000
DRIFT = 0.02  # of the seeds of an item are new since it was clustered
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


# Clustering.


def taste(users: int, seed: int = 0) -> np.ndarray:
    """Embeddings `[users, DIM]` around 300 modes, standard deviation 1 within and between them."""
    rng = np.random.default_rng(seed)
    modes = rng.standard_normal((300, DIM), np.float32)
    return modes[rng.integers(300, size=users)] + rng.standard_normal((users, DIM), np.float32)


def click(store: SeedStore, items: np.ndarray, first: int, each: int, users: int, time: int) -> None:
    """Gives every item `each` more seeds, its own clickers number `first` and on."""
    number = np.tile(np.arange(first, first + each), len(items))
    item = np.repeat(items, each)
    user = (number * 7919 + item * 104_729) % users  # 7919 is prime: no user twice on an item
    moment = np.full(len(user), time)
    store.apply(Batch(store.offset, user, item, moment, np.zeros(len(user), np.uint8), moment))


class Bench:
    """A store, users and the refresh's own clusterer around them, without a model."""

    def __init__(self, stack: ExitStack, users: int, newest: int) -> None:
        from ranking.refresh_seeds import SeedReader
        from ranking.refresh_worker import ClusterWorker

        self.users, self.store = users, SeedStore()
        self.worker = stack.enter_context(ClusterWorker(deadline=600.0))
        self.worker.embeddings(users, DIM)[:] = taste(users)
        index = pd.Index(np.arange(users, dtype=np.int64))
        usable = np.ones(users, bool)
        self.reader = SeedReader(self.store, index, usable, newest=newest, cohorts=None, max_share=0.1)

    def table(self, items: np.ndarray) -> Any:
        from ranking.refresh_centroids import CentroidTable

        nothing = {name: np.zeros(len(items), np.int64) for name in
                   ("seeds", "clustered", "embedded", "unknown", "at", "waited", "failed")}  # fmt: skip
        centroids, counts = np.zeros((len(items), K, DIM), np.float32), np.zeros((len(items), K), np.int64)
        return CentroidTable(pd.Index(items), centroids, counts, **nothing)

    def cluster(self, table: Any, tick: int) -> dict:
        """One refresh's clustering of the whole table; CPU seconds of this process and of the worker."""
        from ranking.refresh_clusters import Clusterer
        from ranking.refresh_report import Refreshed

        table.seeds[:] = self.store.seed_counts(table.item_ids)
        done = Refreshed(tick=tick)
        clusterer = Clusterer(self.worker, self.reader, min_seeds=100, warm_iterations=WARM)
        here, there, start = time.process_time(), cpu_of(self.worker.pid or 0), time.perf_counter()
        clusterer.run(table, np.arange(len(table.seeds)), done, threading.Event(), seconds=float("inf"))
        if done.failures or done.warm + done.cold != len(table.seeds):
            raise SystemExit(f"not every item was clustered: {done}")
        row = {"warm": done.warm, "cold": done.cold, "wall": time.perf_counter() - start}
        row |= {"reading_cpu": time.process_time() - here, "clustering_cpu": cpu_of(self.worker.pid or 0) - there}
        return {**row, "cpu": row["reading_cpu"] + row["clustering_cpu"]}


def dirty_items(items: int, seeds: int, users: int) -> dict:
    """So many items that all are dirty: from their clicks in the store to their centroids, cold and then warm."""
    with ExitStack() as stack:
        bench = Bench(stack, users, newest=20_000)
        numbers = np.arange(items)
        for part in np.array_split(numbers, max(1, items // 100)):
            click(bench.store, part, 0, seeds, users, NOW)
        table = bench.table(numbers)
        warm_up = bench.table(numbers[:2])
        bench.cluster(warm_up, NOW + 1)  # compiled code is loaded
        bench.cluster(warm_up, NOW + 1)
        cold = bench.cluster(table, NOW + 1)
        for part in np.array_split(numbers, max(1, items // 100)):
            click(bench.store, part, seeds, round(DRIFT * seeds), users, NOW + 2)
        warm = bench.cluster(table, NOW + 3)
    return {"items": items, "seeds": seeds, "users": users, "cold": cold, "warm": warm}


def large_item(seeds: int, users: int) -> dict:
    """One item alone with all of its seeds: cold, then warm with some new ones."""
    with ExitStack() as stack:
        bench = Bench(stack, users, newest=seeds)
        click(bench.store, np.array([1]), 0, 20_000, users, NOW)
        warm_up = bench.table(np.array([1]))
        bench.cluster(warm_up, NOW + 1)
        bench.cluster(warm_up, NOW + 1)
        click(bench.store, np.array([7]), 0, seeds, users, NOW)
        table = bench.table(np.array([7]))
        cold = bench.cluster(table, NOW + 1)
        click(bench.store, np.array([7]), seeds, round(DRIFT * seeds), users, NOW + 2)
        return {"seeds": seeds, "cold": cold, "warm": bench.cluster(table, NOW + 3)}


# Served.


def seedrank(*words: object) -> list[str]:
    return [sys.executable, "-c", "from ranking.cli import main; main()", *map(str, words)]


def small_model(folder: Path) -> None:
    """A world, a run and its first version, by the commands that anyone would use."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    world, data, run, models, log = (folder / name for name in ("world.toml", "data", "run", "models", "clicks"))
    world.write_text(WORLD)
    epochs = ["--lookalike", "representation_epochs=1,epochs=1", "--esmm", "epochs=1"]
    for words in (
        ["data", "simulate", "--world", world, "--out", data],
        ["train", "--data", data, "--out", run, *epochs],
        ["export", "--run", run, "--models", models],
        ["refresh", "--run", run, "--models", models, "--log", log, "--data", data, "--backfill", "--once"],
    ):
        done = subprocess.run(seedrank(*words), env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"seedrank {' '.join(map(str, words))}: {done.stderr[-500:]}")


@contextmanager
def refreshing(folder: Path, every: float) -> Iterator[list[dict]]:
    """`seedrank refresh` in a process of its own; the list fills with what each refresh did."""
    words = ["refresh", "--run", folder / "run", "--models", folder / "models", "--log", folder / "clicks"]
    words += ["--data", folder / "data", "--every", f"{every:g}s", "--port", 0, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(seedrank(*words), env=environment, **quiet)
    done: list[dict] = []

    def listen() -> None:
        for line in process.stdout or ():
            if line.startswith("{"):
                done.append(json.loads(line))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        process.terminate()
        process.wait(120)
        thread.join()


def click_to_served(folder: Path, every: float, clicks: int) -> dict:
    """Clicks at random moments through the door: until the server's watermark has passed them."""
    import urllib3
    from serving_client import Process

    from serving import rest

    users = pd.read_parquet(folder / "data" / "users.parquet")["user_id"].to_numpy()
    items = pd.read_parquet(folder / "data" / "items.parquet")["item_id"].to_numpy()
    rng, waited = np.random.default_rng(3), []
    with ExitStack() as stack:
        door = stack.enter_context(Service(folder / "clicks"))
        server = stack.enter_context(Process(folder / "models"))
        done = stack.enter_context(refreshing(folder, every))
        client = stack.enter_context(rest.RankClient(f"http://127.0.0.1:{server.ports['rest']}"))

        def answer() -> dict:
            return client.rank(int(users[0]), items, context={"tab": "home"}, price=np.ones(len(items)))

        def send(user: np.ndarray, item: int) -> float:
            now = int(time.time() * 1000)
            lines = [json.dumps({"user_id": int(one), "item_id": int(item), "time": now}) for one in user]
            reply = urllib3.request("POST", f"http://127.0.0.1:{door.port}/v1/clicks", body="\n".join(lines))
            if reply.status != 200:
                raise SystemExit(f"clicks were refused: {reply.data!r}")
            return now / 1000

        while len(done) < 2:  # it has started, and has its pace
            time.sleep(0.1)
        for _ in range(clicks):
            time.sleep(rng.uniform(0, every))
            at = send(rng.choice(users, 1), rng.choice(items))
            while int(np.max(answer()["seed_watermark"])) <= 1000 * at:
                time.sleep(0.05)
            waited.append(time.time() - at)
        before = answer()
        bare = np.flatnonzero(~np.asarray(before["has_similarity"], bool))
        gained = None
        if len(bare):
            at = send(users[:300], items[bare[0]])
            while not np.asarray(answer()["has_similarity"], bool)[bare[0]] and time.time() < at + 10 * every:
                time.sleep(0.05)
            gained = time.time() - at
        last = done[-1]
    steps = {name: float(np.median([row["seconds"][name] for row in done[1:]])) for name in last["seconds"]}
    row = {"every": every, "clicks": clicks, "p50": float(np.median(waited)), "most": max(waited)}
    return {**row, "to_similarity": gained, "refreshes": len(done), "steps": steps}
