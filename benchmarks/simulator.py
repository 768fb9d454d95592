"""Rows per second of CPU of the simulator and of the exact propensities; a table, and JSON with --json FILE.

python benchmarks/simulator.py [--world demo] [--json FILE]
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ranking.data.simulator import load_world, simulate
from ranking.replay.propensity import log_propensities, plackett_luce_propensities


def simulation(name: str, folder: Path) -> list[dict]:
    world = load_world(name)
    marks: list[tuple[str, float]] = []
    simulate(world, folder / name, progress=lambda stage, done, total: marks.append((stage, time.process_time())))
    rows = world.traffic.requests * world.traffic.candidates
    stages = [
        {
            "what": stage,
            "size": f"{rows:,} candidates",
            "cpu_seconds": end - start,
            "rows_per_second": rows / (end - start),
        }
        for (stage, start), (_, end) in zip(marks, marks[1:], strict=False)
    ]
    seconds = marks[-1][1] - marks[0][1]
    whole = {"what": f"simulate: {name}, all of it", "size": f"{rows:,} candidates"}
    return [*stages, {**whole, "cpu_seconds": seconds, "rows_per_second": rows / seconds}]


def propensity(requests: int, candidates: int, slots: int) -> dict:
    scores = 1.5 * np.random.default_rng(0).normal(size=requests * candidates)
    offsets = np.arange(requests + 1) * candidates
    position = np.full(scores.size, -1)
    start = time.process_time()
    log_propensities(scores, offsets, position, np.ones(slots), temperature=1.0)
    seconds = time.process_time() - start
    size = f"{requests:,} requests x {candidates} x {slots}"
    return {
        "what": "Plackett-Luce propensities",
        "size": size,
        "cpu_seconds": seconds,
        "rows_per_second": scores.size / seconds,
    }


def error(candidates: int, slots: int) -> float:
    """Largest difference between 64 and 400 nodes."""
    logits = 2 * np.random.default_rng(1).normal(size=candidates)
    exact = plackett_luce_propensities(logits, slots, nodes=400)
    return float(np.abs(plackett_luce_propensities(logits, slots) - exact).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="reference")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    plackett_luce_propensities([0.0, 1.0], 2)  # compiled before anything is timed
    log_propensities([0.0, 1.0], [0, 2], [-1, -1], [1.0], temperature=1.0)
    with tempfile.TemporaryDirectory() as folder:
        results = simulation(arguments.world, Path(folder))
    results += [propensity(*size) for size in ((60_000, 50, 10), (10_000, 100, 10), (1_000, 1_000, 10))]
    summary = {
        "results": results,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "largest_error_64_nodes": {"50 x 10": error(50, 10), "50 x 50": error(50, 50)},
    }
    table = Table("what", "size", "CPU s", "rows/s")
    for row in results:
        table.add_row(row["what"], row["size"], f"{row['cpu_seconds']:.2f}", f"{row['rows_per_second']:,.0f}")
    console = Console()
    console.print(table)
    console.print(f"peak memory {summary['peak_memory_mib']:.0f} MiB; error {summary['largest_error_64_nodes']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
