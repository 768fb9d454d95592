"""CPU seconds of an audience expansion in one thread, beside the machine's own limit; JSON with --out FILE.

python benchmarks/expansion.py [--users 1000000] [--lists 100] [--full] [--out FILE]

A million users against one seed list and against a hundred in one pass, at k = 20 and 64 dimensions; then the same from
a Parquet file, row group by row group, with the peak of the memory: at a million users, and with --full at ten million
(a file of 2.6 GB, in the temporary folder, removed afterwards).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from ranking.progress import Bars, quiet

DIM, HIDDEN, K, SEEDS = 64, 64, 20, 1_000
CHUNK = 65_536  # users a chunk, and a row group of the file
PERCENT = 1


def scorer_and_lists(lists: int) -> tuple:
    """A model as it is initialised, and seed lists of users who lie in a few directions."""
    quiet()
    import keras

    from lookalike.audience import SeedList, seed_centroids
    from lookalike.scorer import Scorer
    from lookalike.similarity import LookalikeModel

    keras.utils.set_random_seed(0)
    scorer = Scorer.of(LookalikeModel(DIM, HIDDEN))
    rng = np.random.default_rng(1)
    made = []
    for number in range(lists):
        centres = rng.normal(size=(5, DIM))
        seeds = centres[rng.integers(5, size=SEEDS)] + rng.normal(size=(SEEDS, DIM))
        centroids, counts = seed_centroids(scorer, seeds.astype(np.float32), k=K, seed=number)
        made.append(SeedList(centroids, counts))
    return scorer, made


def users(number: int) -> Iterator[np.ndarray]:
    """The population in chunks, the same for every run."""
    rng = np.random.default_rng(2)
    for low in range(0, number, CHUNK):
        yield rng.standard_normal((min(CHUNK, number - low), DIM), np.float32)


def limit() -> float:
    """GF/s of a single-precision matrix product in one thread, the best of five."""
    from lookalike.threads import one_blas_thread

    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    seconds = []
    with one_blas_thread():
        for _ in range(5):
            start = time.process_time()
            a @ a
            seconds.append(time.process_time() - start)
    return 2 * 2048**3 / min(seconds) / 1e9


def flop(number: int, lists: int) -> float:
    """Of the matrix products alone: the shared layer, and 2 k + 1 columns a list."""
    return 2.0 * number * (DIM * HIDDEN + lists * (2 * K + 1) * HIDDEN)


def in_memory(number: int, lists: int, console: Console) -> dict:
    """Score and cut a population that is loaded already; the better of two runs."""
    from lookalike.audience import Cut, expand

    scorer, made = scorer_and_lists(lists)
    chunks = list(users(number))
    expand(scorer, chunks[:1], made, Cut(size=1))  # compiled before anything is timed
    seconds = []
    for run in range(2):
        with Bars(console) as bars:

            def bar(stage: str, done: int, total: int, bars: Bars = bars, run: int = run) -> None:
                bars(f"{stage}, {lists} list{'s' * (lists > 1)}, run {run + 1}", done, total)

            start = time.process_time()
            found = expand(scorer, chunks, made, Cut(percent=PERCENT), total=number, progress=bar)
            seconds.append(time.process_time() - start)
    assert all(len(audience.rows) == -(-number * PERCENT // 100) for audience in found)
    ceiling = limit()
    speed = flop(number, lists) / min(seconds) / 1e9
    return {
        "what": f"{number:,} users x {lists} list{'s' * (lists > 1)}",
        "users": number,
        "lists": lists,
        "cpu_seconds": min(seconds),
        "nanoseconds_a_pair": min(seconds) / number / lists * 1e9,
        "products_gflops": speed,
        "sgemm_gflops": ceiling,
        "share_of_sgemm": speed / ceiling,
    }


def write(path: Path, number: int) -> None:
    """A Parquet file of user_id and vector, a row group a chunk: it is never whole in memory."""
    schema = pa.schema([("user_id", pa.int64()), ("vector", pa.list_(pa.float32(), DIM))])
    low = 0
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for chunk in users(number):
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(chunk.ravel()), DIM)
            ids = pa.array(np.arange(low, low + len(chunk)))
            writer.write_table(pa.table([ids, vectors], schema=schema), row_group_size=CHUNK)
            low += len(chunk)


def read(path: Path) -> Iterator[np.ndarray]:
    """Vectors of a row group at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["vector"], use_threads=False)["vector"]
            for part in column.chunks:
                yield part.flatten().to_numpy().reshape(-1, DIM)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stream_here(path: Path, number: int, lists: int) -> dict:
    """Expand from the file, in a process of its own: the peak of the memory is the process's."""
    from lookalike.audience import Cut, expand

    scorer, made = scorer_and_lists(lists)
    expand(scorer, users(2 * CHUNK), made, Cut(size=1))
    before, start = peak_mib(), time.process_time()
    with Bars(Console(stderr=True)) as bars:
        expand(scorer, read(path), made, Cut(size=10_000), total=number, progress=bars)
    return {"cpu_seconds": time.process_time() - start, "mib_before": before, "mib_peak": peak_mib()}


def streamed(number: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "users.parquet"
        write(path, number)
        size = path.stat().st_size / 2**20
        command = [sys.executable, __file__, "--stream", str(path), "--users", str(number)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    return {"what": f"{number:,} users from Parquet", "users": number, "mib_file": size, **found}


def show(console: Console, scored: list[dict], streams: list[dict]) -> None:
    table = Table("what", "CPU s", "ns a pair", "products GF/s", "sgemm GF/s", "share", title="In memory, one thread")
    for row in scored:
        table.add_row(
            row["what"],
            f"{row['cpu_seconds']:.2f}",
            f"{row['nanoseconds_a_pair']:.0f}",
            f"{row['products_gflops']:.0f}",
            f"{row['sgemm_gflops']:.0f}",
            f"{row['share_of_sgemm']:.0%}",
        )
    console.print(table)
    table = Table("what", "file MiB", "CPU s", "MiB before", "MiB at the peak", title="Streamed, one list")
    for row in streams:
        table.add_row(
            row["what"],
            f"{row['mib_file']:,.0f}",
            f"{row['cpu_seconds']:.2f}",
            f"{row['mib_before']:.0f}",
            f"{row['mib_peak']:.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--lists", type=int, default=100)
    parser.add_argument("--full", action="store_true", help="stream ten times as many users, too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        print(json.dumps(stream_here(arguments.stream, arguments.users, 1)))
        return
    console = Console()
    sizes = [arguments.users, *([10 * arguments.users] if arguments.full else [])]
    streams = [streamed(size) for size in sizes]
    scored = [in_memory(arguments.users, lists, console) for lists in (1, arguments.lists)]
    show(console, scored, streams)
    if arguments.out:
        settings = {"dim": DIM, "hidden": HIDDEN, "k": K, "seeds": SEEDS, "percent": PERCENT}
        arguments.out.write_text(json.dumps({**settings, "scored": scored, "streamed": streams}, indent=1) + "\n")


if __name__ == "__main__":
    main()
