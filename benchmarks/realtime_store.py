"""What realtime.py measures of the seed store: replay, restart, bytes a seed; and what the machine itself can do.

python benchmarks/realtime_store.py LOG SNAPSHOTS save|load    # is the store's process
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
from realtime_clicks import TICKS, Clicks, answer, raw_file, start, until

from lookalike.clicklog import ClickLog

BATCH = 500_000


def memory(what: str = "VmRSS") -> int:
    """Bytes of this process in memory."""
    return int(re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def fill(folder: Path, clicks: Clicks, count: int) -> float:
    """Appends so many clicks in large batches; clicks a second."""
    took = 0.0
    with ClickLog(folder, user_ids="int64", item_ids="int64") as log:
        for low in range(0, count, BATCH):
            batch = clicks(min(BATCH, count - low))
            begin = time.perf_counter()
            log.append(*batch)
            took += time.perf_counter() - begin
    return count / took


def from_disk(*folders: Path) -> None:
    """Lets go of what the system holds of the files in memory: a restart reads them from the disk."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def stores(folder: Path, seeds: int, more: int, restarts: int) -> dict:
    """A replay from nothing, a snapshot, more clicks, and restarts: each in a process of its own."""
    log, snapshots, clicks = folder / "store", folder / "snapshots", Clicks()
    filled = fill(log, clicks, seeds)
    small = folder / "small"
    fill(small, Clicks(), 1000)
    answer(start(__file__, small, folder / "none", "load"))  # compiled code is on the disk from here on
    replay = answer(start(__file__, log, snapshots, "save"))
    fill(log, clicks, more)
    found = []
    for _ in range(restarts):
        from_disk(log, snapshots)
        begin = time.perf_counter()
        process = start(__file__, log, snapshots, "load")
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        found.append({**ready, "wall": time.perf_counter() - begin, "replayed": more})
        answer(process)
    size = max(path.stat().st_size for path in snapshots.rglob("*") if path.is_file())
    return {"filled": filled, "replay": replay, "restarts": found, "snapshot": size}


def store(folder: str, snapshots: str, then: str) -> dict:
    """The store's process: from its start to a store that answers; a snapshot where it is asked for."""
    began = _started()
    from lookalike.seeds import SeedStore
    from lookalike.snapshots import Snapshots, open_store

    SeedStore().items()  # what code takes is no seed
    imported, before = time.clock_gettime(time.CLOCK_BOOTTIME), memory()
    with ClickLog(folder, write=False) as log:
        reading = time.perf_counter()
        events = sum(len(batch) for batch in log.read()) if then == "save" else 0
        reading = time.perf_counter() - reading
        cpu, opening = time.process_time(), time.perf_counter()
        opened = open_store(log, Snapshots(snapshots))
        took, cpu = time.perf_counter() - opening, time.process_time() - cpu
        seeds = int(opened.seed_counts(opened.items()).sum())
        row = {"start": imported - began, "open": took, "cpu": cpu, "all_cpu": time.process_time(), "events": log.end}
        row |= {"seeds": seeds, "nbytes": opened.nbytes, "resident": memory() - before}
        row |= {"most": memory("VmHWM") - before, "read_per_second": events / reading if events else None}
        print(json.dumps(row), flush=True)  # it is ready
        if then == "save":
            begin, cpu = time.perf_counter(), time.process_time()
            Snapshots(snapshots).save(opened)
            row |= {"save": time.perf_counter() - begin, "save_cpu": time.process_time() - cpu}
    return row


def _started() -> float:
    """The moment this process began, in seconds since the machine did."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return ticks / TICKS


def ceilings(folder: Path, seconds: float) -> dict:
    """What this machine does: syncs, bytes to its disk, bytes and places of its memory, all in one thread."""
    import numba

    with raw_file(folder) as write:
        syncs = until(seconds, lambda: write(4096))
        large = until(seconds, lambda: write(4 << 20))
    source = np.ones(8 << 20)  # 64 MB: no cache holds it
    target = source.copy()
    copies = until(seconds, lambda: np.copyto(target, source))

    @numba.njit
    def touch(table: np.ndarray, times: int) -> int:
        place = np.uint64(88172645463325252)
        for _ in range(times):
            place ^= place << np.uint64(13)
            place ^= place >> np.uint64(7)
            place ^= place << np.uint64(17)
            table[place & np.uint64(len(table) - 1)] += 1
        return int(table[0])

    table = np.ones(1 << 26, np.int64)  # 512 MB
    touch(table, 1000)
    places = until(seconds, lambda: touch(table, 5_000_000))
    return {
        "sync_p50": 1e3 * float(np.percentile(syncs, 50)),
        "sync_p99": 1e3 * float(np.percentile(syncs, 99)),
        "syncs_per_second": 1 / float(np.mean(syncs)),
        "disk_bytes_per_second": (4 << 20) / float(np.mean(large)),
        "copied_bytes_per_second": 2 * source.nbytes / float(np.median(copies)),
        "places_per_second": 5_000_000 / float(np.median(places)),
    }


if __name__ == "__main__":
    print(json.dumps(store(*sys.argv[1:])))
