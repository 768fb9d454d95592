"""What realtime.py measures of clicks on their way in: the log, its HTTP door, and how soon a click is a seed.

python benchmarks/realtime_clicks.py post|trickle|follow ...    # are the other processes
"""

import contextlib
import http.client
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.clicklog import ClickLog

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
USERS, ITEMS = 6_000_011, 2_000  # a prime: strides through the users meet all of them
EVENT_BYTES = 20  # of int64 ids, in the log, about
POLL = 0.1  # seconds between two looks of a follower at the log


class Clicks:
    """Clicks without end: items by Zipf's law, a user never twice on an item, so that every click is a seed."""

    def __init__(self, seed: int = 0, items: int = ITEMS, start: int = 1_740_960_000_000) -> None:
        self._rng, self._start, self._made = np.random.default_rng(seed), start, 0
        weights = 1 / np.arange(1, items + 1) ** 0.8
        self._shares, self._counts = np.cumsum(weights / weights.sum()), np.zeros(items, np.int64)

    def __call__(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        item = np.searchsorted(self._shares, self._rng.random(count)).clip(max=len(self._counts) - 1)
        order = np.argsort(item, kind="stable")
        sizes = np.bincount(item, minlength=len(self._counts))
        number = np.empty(count, np.int64)  # of the click among its item's
        number[order] = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        user = ((self._counts[item] + number) * 2_654_435 + item * 7919) % USERS
        self._counts += sizes
        self._made += count
        return user, item, self._start + (self._made - count + np.arange(count)) // 50


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def until(seconds: float, work: Callable[[], Any]) -> list[float]:
    """Calls again and again for so long; the seconds of each call."""
    found, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        work()
        found.append(time.perf_counter() - start)
    return found


# The log.


@contextlib.contextmanager
def raw_file(folder: Path) -> Iterator[Callable[[int], None]]:
    """`write(bytes)`: appends so much to a file and syncs it. What no log can pass."""
    path = folder / "raw"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(size: int) -> None:
        os.write(descriptor, bytes(size))
        os.fdatasync(descriptor)

    try:
        yield write
    finally:
        os.close(descriptor)
        path.unlink()


def appends(folder: Path, sizes: list[int], seconds: float, rounds: int = 3) -> list[dict]:
    """Batches of each size beside plain writes of as many bytes, in turns."""
    clicks = Clicks()
    batches = {size: clicks(size) for size in sizes}
    seen: dict[int, dict[str, list[float]]] = {size: {"log": [], "raw": [], "cpu": []} for size in sizes}
    with ClickLog(folder / "appends", user_ids="int64", item_ids="int64") as log, raw_file(folder) as write:
        for _ in range(rounds):
            for size, batch in batches.items():
                seen[size]["raw"] += until(seconds / 2, lambda size=size: write(size * EVENT_BYTES))
                cpu = time.process_time()
                calls = until(seconds, lambda batch=batch: log.append(*batch))
                seen[size]["cpu"].append((time.process_time() - cpu) / (size * len(calls)))
                seen[size]["log"] += calls
        bytes_each = log.counters["bytes"] / log.counters["events"]
    return [
        {
            "batch": size,
            "per_second": size / float(np.mean(found["log"])),
            "p50": 1e3 * float(np.percentile(found["log"], 50)),
            "p99": 1e3 * float(np.percentile(found["log"], 99)),
            "ceiling": size / float(np.mean(found["raw"])),
            "cpu_each": float(np.median(found["cpu"])),
            "bytes": bytes_each,
        }
        for size, found in seen.items()
    ]


def shared_syncs(folder: Path, threads: int, size: int, seconds: float) -> dict:
    """Many threads that append small batches: those that wait share a sync."""
    batch = Clicks()(size)
    with ClickLog(folder / "shared", user_ids="int64", item_ids="int64") as log:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            work = [pool.submit(until, seconds, lambda: log.append(*batch)) for _ in range(threads)]
            calls = [call for one in work for call in one.result()]
            took = time.perf_counter() - start
        counters = log.counters
    return {
        "threads": threads,
        "batch": size,
        "per_second": size * len(calls) / took,
        "p99": 1e3 * float(np.percentile(calls, 99)),
        "appends_a_sync": len(calls) / counters["syncs"],
    }


# The door.


class Service:
    """`seedrank ingest` in a process of its own."""

    def __init__(self, log: Path) -> None:
        words = ["ingest", "--log", str(log), "--port", "0", "--user-ids", "int64", "--item-ids", "int64"]
        code = "from ranking.cli import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"http://[^:]+:(\d+)/v1/clicks", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit("seedrank ingest did not start")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def cpu(self) -> float:
        return cpu_of(self._process.pid)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)


def start(*words: object) -> subprocess.Popen:
    """A script of this folder, the first word, as another process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, *map(str, words)]
    return subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen) -> dict:
    """Ends its standard input; the object that it prints last."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    said = process.stdout.read()
    if process.wait(600):
        raise SystemExit(f"a process of the benchmark failed: {process.args}")
    return json.loads(said.splitlines()[-1])


def over_http(folder: Path, cases: list[tuple[int, int]], seconds: float) -> list[dict]:
    """So many connections, each with requests of so many clicks, one after the other."""
    found = []
    with Service(folder / "http") as service:
        for connections, size in cases:
            cpu = service.cpu()
            row = answer(start(__file__, "post", service.port, connections, size, seconds))
            row["server_cpu"] = (service.cpu() - cpu) / row["clicks"]
            found.append({"connections": connections, "clicks_a_request": size, **row})
    return found


def post(port: int, connections: int, size: int, seconds: float) -> dict:
    """The client's process: prepared bytes in one thread, so that it takes little of the machine."""
    clicks, now, requests = Clicks(), int(time.time() * 1000), []
    for _ in range(8):
        user, item, _ = clicks(size)
        lines = zip(user.tolist(), item.tolist(), strict=True)
        body = "".join(f'{{"user_id":{u},"item_id":{i},"time":{now}}}\n' for u, i in lines)
        head = f"POST /v1/clicks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append((head + body).encode())
    calls, number = [], 0
    with selectors.DefaultSelector() as selector:
        asked: dict[socket.socket, float] = {}

        def ask(connection: socket.socket) -> None:
            nonlocal number
            number += 1
            asked[connection] = time.perf_counter()
            connection.sendall(requests[number % len(requests)])

        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
            ask(connection)
        while asked:
            for key, _ in selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                read_reply(connection)
                calls.append(time.perf_counter() - asked.pop(connection))
                if time.perf_counter() < begin + seconds:
                    ask(connection)
                else:
                    selector.unregister(connection)
                    connection.close()
    took, sent = time.perf_counter() - begin, size * len(calls)
    p50, p99 = np.percentile(calls, [50, 99])
    row = {"clicks": sent, "per_second": sent / took, "p50": 1e3 * p50, "p99": 1e3 * p99}
    return {**row, "client_cpu": (time.process_time() - cpu) / sent}


def _closed() -> bytes:
    raise SystemExit("the service closed a connection")


def read_reply(connection: socket.socket) -> None:
    """A reply, which has to be a good one, to its last byte."""
    data = b""
    while not (found := re.search(rb"Content-Length: (\d+)\r\n(?:.*\r\n)*?\r\n", data)):
        data += connection.recv(65536) or _closed()
    if not data.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"a request was refused: {data[:300]!r}")
    while len(data) < found.end() + int(found[1]):
        data += connection.recv(65536) or _closed()


def click_to_seed(folder: Path, rate: float, seconds: float) -> dict:
    """Requests of a click each at random moments, whatever becomes of those before: until a follower's store has it."""
    with Service(folder / "trickle") as service:
        follower = start(__file__, "follow", folder / "trickle")
        assert follower.stdout is not None
        follower.stdout.readline()  # it has opened the log
        sent = answer(start(__file__, "trickle", service.port, rate, seconds))
        time.sleep(1.0)
        seen = answer(follower)
    return {"rate": rate, "poll": POLL, **sent, **seen}


def trickle(port: int, rate: float, seconds: float) -> dict:
    """The client's process. A click's time is the moment it was due: a late client does not flatter."""
    rng = np.random.default_rng(1)
    due = time.time() + 0.2 + np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    local, user, item = threading.local(), rng.integers(USERS, size=len(due)), rng.integers(ITEMS, size=len(due))

    def send(number: int) -> float:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port)
        click = {"user_id": int(user[number]), "item_id": int(item[number]), "time": int(due[number] * 1000)}
        local.connection.request("POST", "/v1/clicks", json.dumps(click))
        reply = local.connection.getresponse()
        reply.read()
        if reply.status != 200:
            raise SystemExit(f"{reply.status}")
        return time.time() - due[number]

    with ThreadPoolExecutor(16) as pool:
        work = []
        for number, moment in enumerate(due):
            time.sleep(max(0.0, moment - time.time()))
            work.append(pool.submit(send, number))
        waited = [one.result() for one in work]
    p50, p99 = np.percentile(waited, [50, 99])
    return {"sent": len(due), "acknowledged_p50": 1e3 * p50, "acknowledged_p99": 1e3 * p99}


def follow(folder: str) -> dict:
    """A follower's process: a store beside the log, until standard input ends."""
    from lookalike.snapshots import Snapshots, catch_up, open_store

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with tempfile.TemporaryDirectory() as temporary, ClickLog(folder, write=False) as log:
        store = open_store(log, Snapshots(temporary))
        print("open", flush=True)
        ages: list[np.ndarray] = []
        while not ended.wait(POLL):
            before = store.offset
            catch_up(store, log)
            now = time.time() * 1000
            if store.offset > before:
                ages += [now - batch.time for batch in log.read(before, until=store.offset)]
        counts = store.counts
    p50, p99 = np.percentile(np.concatenate(ages), [50, 99])
    row = {"seen": counts.accepted, "applied": counts.applied, "p50": p50, "p99": p99}
    return {**row, "most": float(np.concatenate(ages).max())}


if __name__ == "__main__":
    name, *words = sys.argv[1:]
    if name == "post":
        print(json.dumps(post(int(words[0]), int(words[1]), int(words[2]), float(words[3]))))
    elif name == "trickle":
        print(json.dumps(trickle(int(words[0]), float(words[1]), float(words[2]))))
    else:
        print(json.dumps(follow(words[0])))
