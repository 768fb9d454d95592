"""All figures of near-real-time seeds in one table, beside what the machine itself can do in the same run.

python benchmarks/realtime.py [--quick] [--only log,http,seed,store,served,refresh] [--work FOLDER] [--json FILE]

log: appends, each durable (fdatasync) before it is acknowledged. http: `seedrank ingest` in a process of its own, asked
by a second one. seed: from a click over HTTP to a store that follows the log. store: replay, restart, bytes a seed.
served: `seedrank up` with a small model, from clicks on an item without a similarity until the server answers with one.
refresh: clustering (realtime_refresh.py). Everything shares the cores of this machine, clients included; what is said
of syncs holds for this disk. --work keeps what was made: a second run does not train the small model again.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import realtime_clicks as clicks
import realtime_store as store
from rich.console import Console
from rich.table import Table

PARTS = ("log", "http", "seed", "store", "served", "refresh")
BATCHES = (100, 1_000, 10_000)
REQUESTS = ((32, 1), (8, 100), (4, 1_000))  # connections, clicks a request


class Figures:
    """Rows of the table: what was aimed at, what was measured."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        figure: str,
        measured: float,
        unit: str,
        *,
        least: float | None = None,
        most: float | None = None,
        note: str = "",
    ) -> None:
        met = None
        if least is not None:
            met = measured >= least
        if most is not None:
            met = measured <= most
        row = {"figure": figure, "least": least, "most": most, "measured": float(measured), "unit": unit}
        self.rows.append({**row, "met": met, "note": note})

    def table(self) -> Table:
        table = Table("figure", "aim", "measured", "met", "beside")
        for row in self.rows:
            aims = [(">=", row["least"]), ("<=", row["most"])]
            aim = "".join(f"{sign} {bound:,.15g}" for sign, bound in aims if bound is not None)
            digits = 0 if abs(row["measured"]) >= 1000 else 1 if abs(row["measured"]) >= 10 else 2
            met = {None: "", True: "yes", False: "NO"}[row["met"]]
            table.add_row(row["figure"], aim, f"{row['measured']:,.{digits}f} {row['unit']}", met, row["note"])
        return table


def machine(figures: Figures, found: dict[str, float]) -> None:
    figures.add("machine: fdatasync of 4 kB, median", found["sync_p50"], "ms", note=f"p99 {found['sync_p99']:.2f} ms")
    figures.add("machine: write and sync of 4 MB", found["disk_bytes_per_second"] / 1e6, "MB/s")
    figures.add("machine: memory copied, read and written", found["copied_bytes_per_second"] / 1e6, "MB/s")
    figures.add("machine: random places of 512 MB", found["places_per_second"], "/s")


def log(figures: Figures, folder: Path, quick: bool) -> dict:
    rows = clicks.appends(folder, list(BATCHES), 0.5 if quick else 2.0)
    for row in rows:
        note = f"p99 {row['p99']:.1f} ms, {row['cpu_each'] * 1e6:.2f} us CPU a click, "
        note += f"{row['per_second'] / row['ceiling']:.2f} of plain writes with sync"
        least = 300_000 if row["batch"] >= 1000 else None
        figures.add(f"log: batches of {row['batch']:,}", row["per_second"], "clicks/s", least=least, note=note)
    shared = clicks.shared_syncs(folder, 16, 100, 1.0 if quick else 4.0)
    note = f"p99 {shared['p99']:.1f} ms, {shared['appends_a_sync']:.1f} appends a sync"
    figures.add("log: 16 threads, batches of 100", shared["per_second"], "clicks/s", note=note)
    return {"appends": rows, "shared": shared}


def http(figures: Figures, folder: Path, quick: bool) -> dict:
    rows = clicks.over_http(folder, list(REQUESTS), 2.0 if quick else 8.0)
    for row in rows:
        note = f"{row['connections']} connections, p99 {row['p99']:.0f} ms, CPU a click: "
        note += f"server {row['server_cpu'] * 1e6:.1f} us, client {row['client_cpu'] * 1e6:.1f} us"
        size = row["clicks_a_request"]
        name = f"HTTP: requests of {size:,}" if size > 1 else "HTTP: requests of a single click"
        figures.add(name, row["per_second"], "clicks/s", least=20_000 if size > 1 else None, note=note)
    return {"requests": rows}


def seed(figures: Figures, folder: Path, quick: bool) -> dict:
    row = clicks.click_to_seed(folder, 100.0, 5.0 if quick else 30.0)
    note = f"p50 {row['p50']:.0f} ms, most {row['most']:.0f} ms; acknowledged p99 {row['acknowledged_p99']:.0f} ms"
    figures.add("click to seed, p99", row["p99"] / 1e3, "s", most=2.0, note=f"{row['rate']:.0f} clicks/s; {note}")
    if row["seen"] != row["sent"]:
        raise SystemExit(f"clicks are missing: {row}")
    return row


def stored(figures: Figures, folder: Path, quick: bool) -> dict:
    seeds = 2_000_000 if quick else 20_000_000
    found = store.stores(folder, seeds, seeds // 10, 1 if quick else 3)
    replay, restarts = found["replay"], found["restarts"]
    last = restarts[-1]
    note = f"{replay['events'] / replay['cpu']:,.0f} a CPU-second; reading alone {replay['read_per_second']:,.0f}/s"
    figures.add("replay", replay["events"] / replay["open"], "clicks/s", least=1_000_000, note=note)
    wall = max(row["wall"] for row in restarts)
    note = f"slowest of {len(restarts)}; {last['start']:.1f} s to import, {last['all_cpu']:.1f} s CPU, "
    note += f"{last['replayed']:,} clicks replayed behind the snapshot of {found['snapshot'] / 1e6:.0f} MB"
    figures.add(f"restart to ready, {last['seeds'] / 1e6:.0f} M seeds", wall, "s", most=15.0, note=note)
    for name, row in (("after a replay", replay), ("after a restart", last)):
        note = f"tables {row['nbytes'] / row['seeds']:.1f}, most ever {row['most'] / row['seeds']:.1f}"
        figures.add(f"bytes a seed in memory, {name}", row["resident"] / row["seeds"], "B", most=32.0, note=note)
    note = f"{replay['save_cpu']:.1f} s CPU"
    figures.add("snapshot written", found["snapshot"] / replay["save"] / 1e6, "MB/s", note=note)
    return found


def served(figures: Figures, folder: Path, quick: bool) -> dict:
    from realtime_served import click_to_served

    row = click_to_served(folder.parent / "model", folder, 20.0 if quick else 30.0, 2 if quick else 6)
    aim = row["every"] + 10
    note = f"refresh every {row['every']:.0f} s; p50 {row['p50']:.1f} s, {row['trials']} items"
    figures.add("click to served", row["most"], "s", most=aim, note=note)
    note = f"the longest wait possible, of {row['refreshes']} refreshes; {row['failed']} failed requests"
    figures.add("click to served, at the worst moment", row["worst"], "s", most=aim, note=note)
    figures.add("click to seed, in seedrank refresh", row["seed"], "s", most=2.0, note="the slowest of those clicks")
    return row


def refresh(figures: Figures, folder: Path, quick: bool) -> dict:
    import realtime_refresh

    found = realtime_refresh.measure(quick)
    for name in found:
        if (aim := found.get(f"{name}, aim")) is not None:
            note = f"{found[name] / found[f'{name}, floor']:.1f} times its floor"
            figures.add(f"refresh: {name}", found[name], "s", most=aim, note=note)
    return found


@contextlib.contextmanager
def work(folder: Path | None) -> Iterator[Path]:
    """A folder of the machine's disk; the one that was asked for stays."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="seedrank-realtime-") as made:
            yield Path(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, a tenth of the seeds")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--work", type=Path, help="where files are made, and where the small model is kept")
    parser.add_argument("--json", type=Path, help="where to write everything that was measured")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only should be of {', '.join(PARTS)}. Received: {', '.join(sorted(unknown))}.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the processes that were started end too
    figures, told = Figures(), {}
    console = Console(width=None if sys.stdout.isatty() else 150)
    load = [os.getloadavg()[0]]
    measures: dict[str, Callable[[Figures, Path, bool], dict]] = {
        "log": log, "http": http, "seed": seed, "store": stored, "served": served, "refresh": refresh,
    }  # fmt: skip
    try:
        with work(arguments.work) as folder:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                told["machine"] = store.ceilings(Path(own), 0.5 if arguments.quick else 2.0)
                machine(figures, told["machine"])
            for part in chosen:
                begin = time.perf_counter()
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    told[part] = measures[part](figures, Path(own), arguments.quick)
                load.append(os.getloadavg()[0])
                console.print(
                    f"{part}: {time.perf_counter() - begin:.0f} s, load average {load[-1]:.1f}", highlight=False
                )
    finally:  # one that fails takes nothing from the others
        console.print(figures.table())
        about = f"{platform.machine()}, {os.cpu_count()} cores; load average from {min(load):.1f} to {max(load):.1f}"
        console.print(f"{about} (the benchmark itself is part of it).", highlight=False)
        if arguments.json:
            told |= {"figures": figures.rows, "load": load, "cores": os.cpu_count(), "quick": arguments.quick}
            arguments.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
