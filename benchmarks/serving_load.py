"""Loads the embedded server from a second process: latency, swaps of versions, overload, beside the model alone.

python benchmarks/serving_load.py [--quick] [--models FOLDER] [--json FILE]

The network is that of serving_model.py, exported as it is served (`split`) and plainly (`plain`). Calls of the model
in this process, over gRPC, over REST by column and by row take turns in one run, so that a busy machine weighs on all
of them alike; ratios and differences are of medians. (Not named serving.py: a script's folder comes first on the
path, and that name would hide the package from every benchmark here.) What the server adds to a call of the model is
measured with requests that are already bytes: to make and read messages is the client's part.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from rich.table import Table
from serving_client import CORES, MODEL, Load, Process, Stub, add_version, by_row, one_model

from serving import rest, rpc

CANDIDATES = (100, 1000, 5000)
DEADLINE = 1.0  # seconds, of every call of the overload


def spread(seconds: list[float]) -> dict[str, float]:
    p50, p99, p999 = np.percentile(seconds, [50, 99, 99.9])
    return {"p50": p50 * 1e3, "p99": p99 * 1e3, "p999": p999 * 1e3, "calls": len(seconds)}


def latencies(server: Process, bundles: dict[str, Any], requests: Any, rounds: dict[int, int]) -> list[dict]:
    """One call of each way in turn, for so many rounds."""
    found = []
    with rpc.RankClient(f"127.0.0.1:{server.ports['grpc']}", timeout=60) as grpc, \
            rest.RankClient(f"http://127.0.0.1:{server.ports['rest']}", timeout=60) as http:  # fmt: skip
        for candidates in CANDIDATES:
            inputs = [requests(candidates, number) for number in range(8)]
            rows, stub = by_row(server.ports["rest"], inputs[0]), Stub(server.ports["grpc"], inputs)
            ways: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
                **{
                    f"model alone, {name}": lambda arrays, bundle=bundle: bundle.predict(arrays, signature="rank")
                    for name, bundle in bundles.items()
                },
                "gRPC, prepared bytes": lambda _, stub=stub: stub(0),
                "gRPC": lambda arrays: grpc.predict(arrays, signature="rank"),
                "REST by column": lambda arrays: http.predict(arrays, signature="rank"),
                **({"REST by row": lambda _, rows=rows: rows()} if candidates <= 1000 else {}),
            }
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            cpu: dict[str, list[float]] = {name: [] for name in ways}
            of_server = dict.fromkeys(ways, 0.0)
            for number in range(-3, rounds[candidates]):
                for name, way in ways.items():
                    there, here, start = server.cpu(), time.process_time(), time.perf_counter()
                    way(inputs[number % len(inputs)])
                    if number >= 0:
                        seconds[name].append(time.perf_counter() - start)
                        cpu[name].append(time.process_time() - here)
                        of_server[name] += server.cpu() - there
            stub.close()
            for name in ways:
                row = {"candidates": candidates, "way": name, **spread(seconds[name])}
                row["client_cpu"] = 1e3 * float(np.median(cpu[name]))
                row["server_cpu"] = 1e3 * of_server[name] / rounds[candidates]  # in ticks of 10 ms: the mean
                found.append(row)
    return found


def throughput(server: Process, stub: Stub, candidates: int, clients: int, seconds: float) -> dict:
    """A closed loop of so many clients with prepared requests."""
    here, there, start = time.process_time(), server.cpu(), time.perf_counter()
    with Load(stub, clients) as load:
        time.sleep(seconds)
    took = time.perf_counter() - start
    row = {
        "candidates": candidates,
        "clients": clients,
        **spread([call[1] for call in load.calls]),
        "failed": len(load.failed),
    }
    row |= {"per_second": len(load.calls) / took, "server_cpu": (server.cpu() - there) / took}
    return {**row, "client_cpu": (time.process_time() - here) / took}


def swaps(source: Path, inputs: list[dict[str, np.ndarray]], count: int, pause: float) -> dict:
    """New versions under a closed loop of one client a core."""
    windows, resident = [], {}
    with one_model(source) as models, Process(models) as server:
        stub = Stub(server.ports["grpc"], inputs)
        with rpc.RankClient(f"127.0.0.1:{server.ports['grpc']}") as client, Load(stub, CORES) as load:
            time.sleep(2 * pause)
            for version in range(2, count + 2):
                begin = time.perf_counter()
                add_version(models, source, version)
                while not _swapped(client, version):
                    time.sleep(0.02)
                windows.append((begin, time.perf_counter()))
                shutil.rmtree(models / MODEL / str(version - 1))
                time.sleep(pause)
                if version - 1 in (5, count):
                    resident[version - 1] = server.resident()
        stub.close()
    during, steady = [], []
    for start, took in load.calls:
        inside = any(start < end and start + took > begin for begin, end in windows)
        (during if inside else steady).append(took)
    row = {"swaps": count, "failed": len(load.failed), "errors": sorted(set(load.failed))[:3]}
    row |= {"seconds_a_swap": float(np.median([end - begin for begin, end in windows]))}
    row |= {"steady": spread(steady), "during": spread(during), "resident": resident}
    return {**row, "growth": resident[count] / resident[min(5, count)]}


def _swapped(client: rpc.RankClient, version: int) -> bool:
    states = {row["version"]: row["state"] for row in client.status()}
    return states.get(version) == "AVAILABLE" and states.get(version - 1) == "END"


def overload(server: Process, stub: Stub, peak: float, seconds: float) -> dict:
    """Open loop: requests at ten times the rate of the peak, whatever becomes of them, with a deadline each."""
    codes: dict[str, int] = {}
    good, waiting, lock, sent = [], [], threading.Lock(), 0

    def done(future: Any, start: float) -> None:
        name = future.code().name
        with lock:
            codes[name] = codes.get(name, 0) + 1
            if name == "OK":
                good.append(time.perf_counter() - start)

    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            waiting.append(server.number("seedrank_requests_waiting"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin, before = time.perf_counter(), server.resident()
    while (now := time.perf_counter() - begin) < seconds:
        while sent < now * 10 * peak:
            call, start = stub.calls[sent % CORES], time.perf_counter()
            future = call.future(stub.requests[sent % len(stub.requests)], timeout=DEADLINE)
            future.add_done_callback(lambda future, start=start: done(future, start))
            sent += 1
        time.sleep(0.002)
    took = time.perf_counter() - begin
    time.sleep(DEADLINE + 0.5)
    stop.set()
    watcher.join()
    row = {"offered": sent / took, "peak": peak, "goodput": len(good) / took, "codes": codes, **spread(good or [0.0])}
    return {**row, "longest_queue": max(waiting, default=0.0), "grown_by": server.resident() - before}


def first_request(models: Path, inputs: dict[str, np.ndarray]) -> dict:
    """Seconds to start, and the first requests of a fresh server beside its later ones."""
    with Process(models) as server:
        stub, seconds = Stub(server.ports["grpc"], [inputs]), []
        with rpc.RankClient(f"127.0.0.1:{server.ports['grpc']}") as client:
            client.status()  # the connection
        for number in range(60):
            start = time.perf_counter()
            stub(number * CORES)
            seconds.append(time.perf_counter() - start)
        stub.close()
        row = {"start": server.seconds_to_start, "first": seconds[0] * 1e3, "later": spread(seconds[10:])}
        return {**row, "resident": server.resident()}


def verdicts(summary: dict) -> list[dict]:
    def row(candidates: int, way: str) -> dict:
        return next(r for r in summary["latencies"] if (r["candidates"], r["way"]) == (candidates, way))

    found = []

    def add(what: str, value: float, limit: float, least: bool = False) -> None:
        met = value >= limit if least else value <= limit
        found.append({"what": what, "value": float(value), "limit": limit, "least": least, "met": bool(met)})

    for candidates in (1000, 5000):
        plain, split = (row(candidates, f"model alone, {name}") for name in ("plain", "split"))
        ratio = plain["client_cpu"] / split["client_cpu"]
        add(f"plain / split export, CPU, {candidates:,} candidates", ratio, 1.8, least=True)
    floor = row(5000, "model alone, split")["client_cpu"] / (1e3 * summary["floor"]["total"])
    add("split export / floor, CPU, 5,000", floor, 3)
    for candidates in CANDIDATES:
        served, alone = row(candidates, "gRPC, prepared bytes"), row(candidates, "model alone, split")
        add(f"server over the model alone, p50, ms, {candidates:,}", served["p50"] - alone["p50"], 2)
    alone = {row["candidates"]: row for row in summary["throughput"] if row["clients"] == 1}
    for candidates, served in alone.items():
        add(f"gRPC p99 / p50, closed loop, {candidates:,}", served["p99"] / served["p50"], 2.5)
    add("REST by column / gRPC, p50, 1,000", row(1000, "REST by column")["p50"] / row(1000, "gRPC")["p50"], 2)
    for candidates, limit in ((1000, 6), (5000, 30)):
        add(f"gRPC p50, ms, closed loop, {candidates:,} (idle machine)", alone[candidates]["p50"], limit)
    swap, over = summary["swaps"], summary["overload"]
    add(f"failed requests in {swap['swaps']} swaps", swap["failed"], 0)
    add("p99 during a swap / steady", swap["during"]["p99"] / swap["steady"]["p99"], 2)
    add(f"memory after {swap['swaps']} swaps / after 5", swap["growth"], 1.05)
    add("goodput at 10 times the load / peak", over["goodput"] / over["peak"], 0.8, least=True)
    add("longest queue", over["longest_queue"], 16 * CORES)
    return found


def show(console: Console, summary: dict) -> None:
    table = Table(
        "candidates", "way", "p50 ms", "p99", "p999", "client CPU ms", "server CPU ms", title="One call at a time"
    )
    for row in summary["latencies"]:
        numbers = [f"{row[key]:.2f}" for key in ("p50", "p99", "p999", "client_cpu", "server_cpu")]
        table.add_row(f"{row['candidates']:,}", row["way"], *numbers)
    console.print(table)
    floor, first, swap, over = (summary[name] for name in ("floor", "first", "swaps", "overload"))
    console.print(
        f"Floor at 5,000: {1e3 * floor['total']:.2f} ms of CPU, {floor['flop_per_second'] / 1e9:.0f} GFLOP/s."
    )
    table = Table(
        "candidates", "clients", "requests/s", "p50 ms", "p99", "p999", "server cores", "client cores",
        title="Closed loop",
    )  # fmt: skip
    for row in summary["throughput"]:
        numbers = [f"{row[key]:.2f}" for key in ("p50", "p99", "p999", "server_cpu", "client_cpu")]
        table.add_row(f"{row['candidates']:,}", str(row["clients"]), f"{row['per_second']:.0f}", *numbers)
    console.print(table)
    console.print(
        f"Start: {first['start']:.2f} s to the open ports, {first['resident']:.0f} MB; first request "
        f"{first['first']:.2f} ms, later ones {first['later']['p50']:.2f} (p99 {first['later']['p99']:.2f})."
    )
    memory = ", ".join(f"{mb:.0f} MB after {swaps}" for swaps, mb in swap["resident"].items())
    console.print(
        f"{swap['swaps']} swaps of {swap['seconds_a_swap']:.2f} s: {swap['failed']} failed; steady p50 "
        f"{swap['steady']['p50']:.2f} p99 {swap['steady']['p99']:.2f}, during p50 {swap['during']['p50']:.2f} p99 "
        f"{swap['during']['p99']:.2f} ms; memory {memory}."
    )
    console.print(
        f"Overload: {over['offered']:.0f} requests/s offered, {over['goodput']:.0f} answered, peak {over['peak']:.0f}; "
        f"{over['codes']}; p50 {over['p50']:.0f} p99 {over['p99']:.0f} ms; memory grew by {over['grown_by']:.0f} MB."
    )
    table = Table("target", "limit", "value", "", title="Targets")
    for row in summary["verdicts"]:
        sign = ">=" if row["least"] else "<="
        table.add_row(row["what"], f"{sign} {row['limit']:g}", f"{row['value']:.3g}", "met" if row["met"] else "MISSED")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few calls, 6 swaps")
    parser.add_argument("--models", type=Path, help="where `split` and `plain` lie, or are written to")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    import serving_model

    from serving.server.bundle import Bundle
    from serving.warmup import write_warmup

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.models or Path(temporary)
        if not (folder / "split").is_dir():
            for path in serving_model.make_models(folder).values():
                warm = [{"signature": "rank", "inputs": serving_model.request(n)} for n in (1, *CANDIDATES)]
                write_warmup(path, warm)
        bundles = {name: Bundle(folder / name) for name in ("split", "plain")}
        rounds = {100: 60, 1000: 40, 5000: 12} if args.quick else {100: 1500, 1000: 1000, 5000: 300}
        inputs = [serving_model.request(1000, number) for number in range(16)]
        summary: dict[str, Any] = {"about": {"machine": platform.processor() or platform.machine(), "cores": CORES}}
        with one_model(folder / "split") as models:
            summary["first"] = first_request(models, inputs[0])
            with Process(models) as server:
                summary["latencies"] = latencies(server, bundles, serving_model.request, rounds)
                summary["floor"] = serving_model.floor_seconds(5000)
                seconds, loads = 3.0 if args.quick else 10.0, []
                for candidates in (100, 5000, 1000):
                    some = [serving_model.request(candidates, number) for number in range(16)]
                    stub = Stub(server.ports["grpc"], some)
                    for clients in (1, CORES, 4 * CORES) if candidates == 1000 else (1,):
                        loads.append(throughput(server, stub, candidates, clients, seconds))
                    if candidates != 1000:
                        stub.close()
                summary["throughput"] = loads
                peak = max(row["per_second"] for row in loads if row["candidates"] == 1000)
                summary["overload"] = overload(server, stub, peak, 2 * seconds)
                stub.close()
        for bundle in bundles.values():
            bundle.close()
        summary["swaps"] = swaps(folder / "split", inputs, 6 if args.quick else 60, 0.5 if args.quick else 1.0)
    summary["verdicts"] = verdicts(summary)
    show(Console(width=None if sys.stdout.isatty() else 140), summary)
    if args.json:
        args.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
