"""The seed store on Redis or Valkey: clicks a second of CPU, bytes a seed, reads; on a server of its own.

python benchmarks/realtime_redis.py [--server /path/to/valkey-server] [--clicks 1000000]
"""

import argparse
import contextlib
import multiprocessing
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import redis
from realtime_clicks import Clicks, cpu_of

from lookalike.clicklog import Batch
from lookalike.seeds_redis import RedisSeedStore

BATCH = 20_000


@contextlib.contextmanager
def served(binary: str, folder: Path) -> Iterator[tuple[subprocess.Popen, redis.Redis, str]]:
    """A server with an append-only file, on a socket: the process, a client, the URL."""
    path = folder / "s"
    settings = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "yes", "--dir", folder]
    process = subprocess.Popen([binary, *map(str, settings)], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=str(path), protocol=2)
    try:
        for _ in range(500):
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.02)
        yield process, client, f"unix://{path}"
    finally:
        client.close()
        process.terminate()
        process.wait()


def batches(user: np.ndarray, item: np.ndarray, time_: np.ndarray) -> Iterator[Batch]:
    for low in range(0, len(user), BATCH):
        columns = [column[low : low + BATCH] for column in (user, item, time_)]
        yield Batch(low, *columns, np.zeros(len(columns[0]), np.uint8), columns[2])


def applied(store: RedisSeedStore, columns: Any, server: int) -> dict[str, float]:
    """Applies clicks, and says how fast by the clock and by the CPU of both sides."""
    begin, own, its = time.perf_counter(), time.process_time(), cpu_of(server)
    longest = 0.0
    for batch in batches(*columns):
        start = time.perf_counter()
        store.apply(batch)
        longest = max(longest, time.perf_counter() - start)
    count = len(columns[0])
    found = {"wall": count / (time.perf_counter() - begin), "client": count / (time.process_time() - own)}
    return found | {"server": count / max(cpu_of(server) - its, 0.01), "longest": longest}


def said(what: str, found: dict[str, float]) -> None:
    numbers = " | ".join(f"{found[name]:,.0f}" for name in ("wall", "client", "server"))
    print(f"| {what} | {numbers} | {1e3 * found['longest']:.0f} |", flush=True)


def speeds(process: subprocess.Popen, client: redis.Redis, url: str, count: int) -> None:
    print("| clicks | a second | per CPU-s of the writer | per CPU-s of the server | longest batch, ms |")
    print("|---|---|---|---|---|")
    columns = Clicks()(count)
    store = RedisSeedStore(url, name="new")
    said("new seeds of 2,000 items", applied(store, columns, process.pid))
    again = RedisSeedStore(url, name="new", partition="again")
    said("the same again", applied(again, columns, process.pid))
    hot = np.arange(count), np.zeros(count, np.int64), columns[2]
    full = RedisSeedStore(url, name="hot", latest=count // 2)
    said(f"new seeds of one item, which keeps {count // 2:,}", applied(full, hot, process.pid))
    flood = np.arange(count // 4), np.arange(count // 4), columns[2][: count // 4]
    said("a new item each", applied(RedisSeedStore(url, name="flood"), flood, process.pid))

    begin = time.perf_counter()
    items = store.items()
    offsets, _, _ = store.seeds(items, newest=20_000)
    took = time.perf_counter() - begin
    print(f"\nreading the newest 20,000 of {len(items):,} items: {offsets[-1] / took:,.0f} seeds a second")
    begin = time.perf_counter()
    full.seeds([0])
    print(f"reading one item of {count // 2:,}: {time.perf_counter() - begin:.2f} s")
    begin = time.perf_counter()
    store.seed_counts(items), store.changed_since(store.mark() - 1)
    print(f"counts and changes of {len(items):,} items: {1e3 * (time.perf_counter() - begin):.0f} ms")
    client.execute_command("FLUSHALL", "SYNC")


def write(url: str, partition: str, columns: Any) -> None:
    store = RedisSeedStore(url, name="many", partition=partition)
    for batch in batches(*columns):
        store.apply(batch)


def writers(process: subprocess.Popen, client: redis.Redis, url: str, count: int) -> None:
    fork = multiprocessing.get_context("fork")
    print("\n| writers | clicks a second together |\n|---|---|")
    for number in (1, 2, 4):
        make = Clicks(seed=number)
        parts = [make(count // number) for _ in range(number)]
        begin = time.perf_counter()
        running = [fork.Process(target=write, args=(url, str(n), part)) for n, part in enumerate(parts)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        found = RedisSeedStore(url, name="many").counts
        assert found.accepted == found.applied == count // number * number
        print(f"| {number} | {found.accepted / (time.perf_counter() - begin):,.0f} |", flush=True)
        client.execute_command("FLUSHALL", "SYNC")


def sizes(client: redis.Redis, url: str) -> None:
    print("\n| seeds of an item | bytes a seed |\n|---|---|")
    for each, items in ((10, 20_000), (100, 4000), (128, 4000), (1000, 500), (10_000, 50), (1_000_000, 1)):
        client.execute_command("FLUSHALL", "SYNC")
        before = client.info("memory")["used_memory"]
        store = RedisSeedStore(url, name="size")
        count = each * items
        generator = np.random.default_rng(1)
        user = generator.integers(0, 1 << 62, count)
        columns = user, np.arange(count) % items, np.full(count, 1_740_960_000_000) + np.arange(count)
        for batch in batches(*columns):
            store.apply(batch)
        taken = client.info("memory")["used_memory"] - before
        assert store.nbytes == 16 * count
        print(f"| {each:,} | {taken / count:.0f} |", flush=True)
    client.execute_command("FLUSHALL", "SYNC")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=shutil.which("redis-server") or "valkey-server")
    parser.add_argument("--clicks", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(options.server, Path(folder)) as (process, client, url):
        info = client.info("server")
        print(f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}\n")
        speeds(process, client, url, options.clicks)
        writers(process, client, url, options.clicks // 2)
        sizes(client, url)


if __name__ == "__main__":
    main()
