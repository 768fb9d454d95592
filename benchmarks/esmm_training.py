"""Measures how fast ESMM trains: RowAdam against Keras' Adam, as the embedding table grows.

python benchmarks/esmm_training.py --examples 100000 --rows 20000 400000 --output esmm_training.json
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from esmm import Architecture, Feature, RowAdam, build_esmm, losses, targets  # noqa: E402

CATEGORICAL, NUMERIC = 12, 4


def batch_of(examples: int, rows: int, seed: int = 0) -> tuple[list[Feature], dict, dict]:
    """Twelve categorical features of `rows` rows together, sizes in geometric series, Zipf-like ids; four numbers."""
    generator = np.random.default_rng(seed)
    sizes = np.geomspace(1, 2**CATEGORICAL, CATEGORICAL)
    sizes = np.maximum(10, (sizes / sizes.sum() * rows)).astype(int)
    features = [Feature(f"id_{i}", "categorical", size=int(size)) for i, size in enumerate(sizes)]
    inputs = {f.name: (f.size ** generator.random(examples)).astype(np.int32) for f in features}
    for i in range(NUMERIC):
        features.append(Feature(f"number_{i}", "numeric"))
        inputs[f"number_{i}"] = generator.random(examples).astype(np.float32)
    click = generator.random(examples) < 0.05
    return features, inputs, targets(click, click & (generator.random(examples) < 0.05))


def measure(name: str, rows: int, args: argparse.Namespace) -> dict:
    keras.utils.set_random_seed(0)
    features, inputs, labels = batch_of(args.examples, rows)
    model = build_esmm(features, Architecture(dropout=args.dropout), base_rates=(0.05, 0.05))
    optimizer = {"RowAdam": RowAdam, "keras Adam": keras.optimizers.Adam}[name](1e-3)
    model.compile(optimizer, loss=losses(), jit_compile={"auto": "auto", "on": True, "off": False}[args.jit])
    warm = {key: value[: 4 * args.batch_size] for key, value in inputs.items()}
    model.fit(warm, {k: v[: 4 * args.batch_size] for k, v in labels.items()}, batch_size=args.batch_size, verbose=0)
    whole = args.examples // args.batch_size * args.batch_size  # a smaller last batch would be traced anew
    inputs = {key: value[:whole] for key, value in inputs.items()}
    labels = {key: value[:whole] for key, value in labels.items()}
    wall, cpu = time.perf_counter(), time.process_time()
    model.fit(inputs, labels, batch_size=args.batch_size, verbose=0)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "optimizer": name,
        "rows": sum(feature.size for feature in features),
        "examples": whole,
        "examples_per_second": whole / wall,
        "examples_per_cpu_second": whole / cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 400_000])
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--jit", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--threads", type=int, default=0, help="TensorFlow's threads; 0: its own choice")
    parser.add_argument("--output", type=Path, default=None, help="where to write the numbers as JSON")
    args = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)

    results = [measure(name, rows, args) for rows in args.rows for name in ("RowAdam", "keras Adam")]
    table = Table(title=f"ESMM 360-200-80, 12 ids of 18 and 4 numbers, batches of {args.batch_size}")
    for column in ("optimizer", "table rows", "examples/s", "examples/CPU-s"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for r in results:
        speeds = (f"{r['examples_per_second']:,.0f}", f"{r['examples_per_cpu_second']:,.0f}")
        table.add_row(r["optimizer"], f"{r['rows']:,}", *speeds)
    Console().print(table)
    if args.output:
        about = {"tensorflow": tf.__version__, "keras": keras.__version__, "machine": platform.processor()}
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        args.output.write_text(json.dumps({"about": about, "settings": settings, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
