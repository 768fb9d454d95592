"""Trains ESMM on rows that need not fit in memory, and prints speed, peak memory and how well the rows are mixed.

python benchmarks/streaming.py --rows 20000000 --output streaming.json
python benchmarks/streaming.py --rows 500000 --compare 3    # beside training on arrays in memory

The rows are written to a temporary folder; each training is a process of its own, so that its peak is its own.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

FIELDS = {f"id_{i}": int(size) for i, size in enumerate(np.geomspace(10, 200_000, 12).round())}
NUMBERS = 4
CHUNK = 1_000_000
HELD_OUT = 200_000
LIMIT = 3_000  # MB


def chunk_of(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Zipf-like ids, four numbers, and labels that depend on both."""
    generator = np.random.default_rng(seed)
    arrays = {name: (2 + (size - 2) ** generator.random(rows) - 1).astype(np.int32) for name, size in FIELDS.items()}
    arrays |= {f"number_{i}": generator.random(rows, np.float32) for i in range(NUMBERS)}
    logits = []
    for task, (base, fields) in enumerate([(-2.5, range(0, 12, 2)), (-2.0, range(1, 12, 2))]):
        effects = sum(np.sin(arrays[f"id_{i}"] * (1.7 + task + i)) for i in fields)  # fixed, and as good as random
        logits.append(base + 0.6 * effects + arrays["number_0"] - arrays["number_1"])
    uniform = generator.random((2, rows))
    click, conversion = (uniform < 1 / (1 + np.exp(-np.array(logits)))).astype(np.float32)
    return arrays | {"target:click_logit": click, "target:log_pctcvr": click * conversion}


def write(folder: Path, rows: int) -> None:
    from ranking.spool import SpoolWriter

    with SpoolWriter(folder) as writer:
        for seed, first in enumerate(range(0, rows, CHUNK)):
            writer.append(chunk_of(min(CHUNK, rows - first), seed))


def train(way: str, folder: Path, batch_size: int, seed: int) -> dict:
    """One epoch: from disk, or (`way` "memory") on the same rows as arrays."""
    import keras

    from esmm.embedding import Feature
    from esmm.model import build_esmm, losses
    from esmm.optimizers import RowAdam
    from ranking.batches import batches
    from ranking.spool import Spool, supervised

    spool = Spool(folder)
    held = supervised(chunk_of(HELD_OUT, 10_000_000))[:2]  # rows that no training sees
    keras.utils.set_random_seed(seed)
    features = [Feature(name, "categorical", size=size) for name, size in FIELDS.items()]
    features += [Feature(f"number_{i}", "numeric") for i in range(NUMBERS)]
    model = build_esmm(features, base_rates=(0.1, 0.15))
    model.compile(RowAdam(1e-3), losses())
    if way == "memory":
        chunks = [chunk_of(min(CHUNK, spool.rows - at), i) for i, at in enumerate(range(0, spool.rows, CHUNK))]
        inputs, targets, _ = supervised({name: np.concatenate([c[name] for c in chunks]) for name in spool.names})
        order = np.random.default_rng(seed).permutation(spool.rows)
        data = batches(inputs, targets, order=order, batch_size=batch_size)
    else:
        data = spool.batches(spool.names, batch_size=batch_size, seed=seed, epoch=0)
        data = data.map(lambda batch: supervised(batch)[:2])
    whole = spool.rows // batch_size
    data = data.take(whole)  # a smaller last batch would be traced anew, in the time of this one
    model.evaluate(*held, batch_size=batch_size, verbose=0)
    read, wall, cpu = _read(), time.perf_counter(), time.process_time()
    loss = model.fit(data, shuffle=False, verbose=0).history["loss"][0]
    wall, cpu, read = time.perf_counter() - wall, time.process_time() - cpu, _read() - read
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "way": way,
        "rows": whole * batch_size,
        "rows_per_second": whole * batch_size / wall,
        "rows_per_cpu_second": whole * batch_size / cpu,
        "bytes_read": read,
        "peak_mb": peak,
        "loss": loss,
        "held_out_loss": model.evaluate(*held, batch_size=10_000, verbose=0, return_dict=True)["loss"],
    }


def _read() -> int:
    """Bytes that this process has asked the system to read."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def mixing(folder: Path, batch_size: int) -> dict:
    """How the rows of a batch lie on disk, beside what a uniform order would give (1)."""
    from ranking.spool import GROUP, Spool, SpoolWriter

    rows = Spool(folder).rows
    with tempfile.TemporaryDirectory() as temporary:
        with SpoolWriter(Path(temporary) / "numbers") as writer:
            for first in range(0, rows, CHUNK):
                writer.append({"row": np.arange(first, min(first + CHUNK, rows), dtype=np.int32)})
        spool = Spool(Path(temporary) / "numbers")
        numbers = [b["row"] for b in spool.batches(["row"], batch_size=batch_size, seed=0, epoch=0).as_numpy_iterator()]
    groups = -(-rows // GROUP)
    found = np.mean([len(np.unique(batch // GROUP)) for batch in numbers[:-1]])
    expected = groups * (1 - (1 - 1 / groups) ** batch_size)
    return {
        "groups_of_a_batch": float(found / expected),
        "rank_correlation": float(np.corrcoef(np.concatenate(numbers), np.arange(rows))[0, 1]),
    }


def measure(way: str, folder: Path, batch_size: int, seed: int) -> dict:
    """`train` in a process of its own."""
    command = [sys.executable, __file__, "--train", way, "--folder", str(folder)]
    command += ["--batch-size", str(batch_size), "--seed", str(seed)]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--compare", type=int, default=0, help="train so many times beside arrays in memory, in turns")
    parser.add_argument("--output", type=Path, default=None, help="where to write the numbers as JSON")
    for inner in ("--train", "--folder"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        print(json.dumps(train(args.train, Path(args.folder), args.batch_size, args.seed)))
        return

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "rows"
        started = time.perf_counter()
        write(folder, args.rows)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{args.rows:,} rows written in {time.perf_counter() - started:.0f} s, {size / 1e6:,.0f} MB")
        mixed = mixing(folder, args.batch_size)
        print("groups of a batch / of a uniform order: {groups_of_a_batch:.2f}".format(**mixed), end="; ")
        print("rank correlation with the order on disk: {rank_correlation:.4f}".format(**mixed))
        results = []
        for seed in range(max(args.compare, 1)):
            for way in ("disk", "memory") if args.compare else ("disk",):
                found = measure(way, folder, args.batch_size, seed)
                results.append({"seed": seed, **found})
                print(
                    f"{way:6} {found['rows_per_second']:>9,.0f} rows/s "
                    f"{found['rows_per_cpu_second']:>9,.0f} rows/CPU-s "
                    f"{found['bytes_read'] / 1e6:>8,.0f} MB read {found['peak_mb']:>7,.0f} MB peak "
                    f"loss {found['loss']:.5f} held out {found['held_out_loss']:.5f}",
                    flush=True,
                )
    peak = max(found["peak_mb"] for found in results if found["way"] == "disk")
    print(f"peak memory from disk {peak:,.0f} MB, {'under' if peak < LIMIT else 'NOT under'} {LIMIT:,} MB")
    if args.output:
        told = {"platform": platform.platform(), "file_mb": size / 1e6, "mixing": mixed, "results": results}
        args.output.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
