"""What a refresh costs: items clustered again, and tables published; each beside what the machine must take for it.

python benchmarks/realtime_refresh.py [--quick] [--json FILE]

The floor of clustering is its arithmetic at the rate of a large matrix product, measured in this run on one thread, and
its bytes at the rate of a copy: every seed read once from the store and its embedding once from the table. The floor
of publishing is the version's bytes: read, written and synced, and read by who verifies them.
"""

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import threadpoolctl
from realtime_clicks import cpu_of
from rich.console import Console
from rich.table import Table

from lookalike.clicklog import Batch
from lookalike.seeds import SeedStore

K, DIM, WARM, COLD = 20, 64, 2, 10
NOW = 1_760_000_000_000
ITEMS, SEEDS, USERS = 5_000, 10_000, 1_000_003  # a prime: strides through the users meet all of them
LARGE, LARGE_USERS = 3_000_000, 4_000_037
PUBLISHED, ROUNDS = 10_000, 3  # items of the published tables; publishes
DRIFT = 0.02  # of the seeds of an item are new since it was clustered


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

    def warm_up(self, items: np.ndarray) -> None:
        """Compiled code is loaded, and memory is there."""
        table = self.table(items)
        self.cluster(table, NOW + 1)
        table.clustered[:] = 0
        self.cluster(table, NOW + 1)

    def cluster(self, table: Any, tick: int) -> dict:
        """One refresh's clustering of the whole table; CPU seconds of this process and of the worker."""
        from ranking.refresh_clusters import Clusterer
        from ranking.refresh_report import Refreshed
        from ranking.refresh_seeds import id_keys, look

        done = Refreshed(tick=tick)
        clusterer = Clusterer(self.worker, self.reader, min_seeds=100, warm_iterations=WARM)
        here, there, start = time.process_time(), cpu_of(self.worker.pid or 0), time.perf_counter()
        seen = look(self.store, id_keys(table.item_ids), table.at, np.ones(len(table.seeds), bool), tick)
        table.seeds[:] = seen.seeds
        order, dirty = table.order(seen.fresh, 100, 0)
        clusterer.run(table, order, done, threading.Event(), seconds=float("inf"))
        if done.failures or done.warm + done.cold != len(table.seeds) or dirty != len(table.seeds):
            raise SystemExit(f"not every item was clustered: {done}")
        row = {"seeds": int(seen.seeds.sum()), "wall": time.perf_counter() - start}
        row |= {"reading": time.process_time() - here, "clustering": cpu_of(self.worker.pid or 0) - there}
        return {**row, "CPU": row["reading"] + row["clustering"]}


def dirty_items(items: int, seeds: int, users: int) -> dict:
    """So many items that all are dirty: from their clicks in the store to their centroids, cold and then warm."""
    with ExitStack() as stack:
        bench = Bench(stack, users, newest=20_000)
        numbers = np.arange(items)
        for part in np.array_split(numbers, max(1, items // 100)):
            click(bench.store, part, 0, seeds, users, NOW)
        table = bench.table(numbers)
        bench.warm_up(numbers[:2])
        cold = bench.cluster(table, NOW + 1)
        for part in np.array_split(numbers, max(1, items // 100)):
            click(bench.store, part, seeds, round(DRIFT * seeds), users, NOW + 2)
        warm = bench.cluster(table, NOW + 3)
    return {"cold": cold, "warm": warm}


def large_item(seeds: int, users: int) -> dict:
    """One item alone with all of its seeds: cold, then warm with some new ones."""
    with ExitStack() as stack:
        bench = Bench(stack, users, newest=seeds)
        click(bench.store, np.array([1]), 0, 20_000, users, NOW)
        bench.warm_up(np.array([1]))
        click(bench.store, np.array([7]), 0, seeds, users, NOW)
        table = bench.table(np.array([7]))
        cold = bench.cluster(table, NOW + 1)
        click(bench.store, np.array([7]), seeds, round(DRIFT * seeds), users, NOW + 2)
        return {"cold": cold, "warm": bench.cluster(table, NOW + 3)}


# Published.


def published(items: int, users: int, rounds: int) -> dict:
    """A live version of so many items again with other centroids, verified by a spare process; median of rounds."""
    from serving_model import random_run

    from ranking.export import export_run
    from ranking.republish import republish_tables
    from serving.verifier import Verifier

    run, rows = random_run(items, users), []
    with tempfile.TemporaryDirectory() as folder, Verifier() as verifier:
        version = export_run(run, folder, verifier=verifier)
        for number in range(rounds + 1):  # the first one traces
            spare = verifier._spare
            await_idle(spare.pid if spare else 0)
            state = dataclasses.replace(run.state, tick=run.state.tick + number, centroids=run.state.centroids * 1.01)
            before = used(spare.pid if spare else 0)
            start = time.perf_counter()
            version = republish_tables(folder, run, state, verifier=verifier)
            row = {"wall": time.perf_counter() - start, "CPU": used(0) - before}
            row["bytes"] = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
            rows.append(row | written(Path(folder) / "written", row["bytes"]))
    return {name: float(np.median([row[name] for row in rows[1:]])) for name in rows[0]}


def used(pid: int) -> float:
    """CPU seconds of this process, of children that ended, and of one that runs."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) + (cpu_of(pid) if pid else 0)


def await_idle(pid: int) -> None:
    """Waits until a process does nothing: it has started."""
    before = -1.0
    while pid and cpu_of(pid) > before:
        before = cpu_of(pid)
        time.sleep(0.5)


def written(path: Path, size: int) -> dict[str, float]:
    """Seconds of so many bytes read, written and synced, and read again: what no publisher can do without."""
    content = np.random.default_rng(0).bytes(size)
    path.write_bytes(content)
    start = time.perf_counter()
    content = path.read_bytes()
    with open(path, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    path.read_bytes()
    seconds = time.perf_counter() - start
    path.unlink()
    return {"floor": seconds}


# Floors.


def ceilings() -> dict[str, float]:
    """FLOP/s of a product of matrices and bytes/s of a copy (read and written), on one thread: the best of some."""
    random = np.random.default_rng(0)
    one, other = random.random((2048, 512), np.float32), random.random((512, 512), np.float32)
    source = np.ones(1 << 28, np.uint8)
    target = np.empty_like(source)

    def best(call: Callable[[], Any], times: int) -> float:
        taken = []
        for _ in range(times):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
        return min(taken)

    with threadpoolctl.threadpool_limits(1):
        product = best(lambda: one @ other, 30)
    return {
        "flop": 2 * 2048 * 512 * 512 / product,
        "bytes": 2 * len(source) / best(lambda: np.copyto(target, source), 5),
    }


def floor_of(seeds: int, iterations: int, rates: dict[str, float]) -> dict[str, float]:
    """What clustering so many seeds must take: products with k centroids and a sum, an iteration; the inertia."""
    flop = seeds * DIM * (iterations * (2 * K + 2) + 3)
    moved = seeds * (DIM * 4 + 8 + 16)  # embedding, row, and the store's user and time
    return {"gflop": flop / 1e9, "gb": moved / 1e9, "floor": flop / rates["flop"] + moved / rates["bytes"]}


# All of it.


def measure(quick: bool) -> dict[str, float]:
    """Prints a table of what was measured; name -> seconds, the aims and floors among them."""
    part = 20 if quick else 1
    rates = ceilings()
    rows: list[tuple[str, float, float | None, float]] = []  # what, seconds, aim, floor
    found = {f"one thread, {name} per second": value for name, value in rates.items()}
    many = dirty_items(ITEMS // part, SEEDS, USERS)
    one = large_item(LARGE // part, LARGE_USERS // part)
    for name, case, aims in (
        (f"{ITEMS // part:,} items of {SEEDS:,} seeds", many, {"warm, CPU": 60.0 / part}),
        (f"one item of {LARGE // part:,} seeds", one, {"warm, wall": 5.0 / part, "cold, wall": 5.0 / part}),
    ):
        for how, iterations in (("warm", WARM), ("cold", COLD)):
            row, floor = case[how], floor_of(case[how]["seeds"], iterations, rates)
            for kind in ("CPU", "wall"):
                rows.append((f"{name}: {how}, {kind}", row[kind], aims.get(f"{how}, {kind}"), floor["floor"]))
            parts = {"reading": row["reading"], "clustering": row["clustering"]}
            found |= {f"{name}: {how}, {what}": value for what, value in (floor | parts).items()}
    items = PUBLISHED // part
    row = published(items, items, ROUNDS)
    name = f"publish of {items:,} items x {K} x {DIM}"
    rows += [(f"{name}: wall", row["wall"], 3.0, row["floor"]), (f"{name}: CPU", row["CPU"], None, row["floor"])]
    found[f"{name}: MB"] = row["bytes"] / 1e6
    show(rows, rates)
    for what, seconds, aim, floor in rows:
        found |= {what: seconds, f"{what}, floor": floor} | ({} if aim is None else {f"{what}, aim": aim})
    return found


def show(rows: list[tuple[str, float, float | None, float]], rates: dict[str, float]) -> None:
    table = Table("refresh", "seconds", "aim", "", "floor", "times the floor")
    for what, seconds, aim, floor in rows:
        verdict = ("", "") if aim is None else (f"{aim:g}", "met" if seconds <= aim else "MISSED")
        table.add_row(what, f"{seconds:.2f}", *verdict, f"{floor:.2f}", f"{seconds / floor:.1f}")
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print(
        f"One thread: {rates['flop'] / 1e9:.0f} GFLOP/s of a matrix product, {rates['bytes'] / 1e9:.1f} GB/s of a copy."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the items and seeds; few clicks")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    found = measure(arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
