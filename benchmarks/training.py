"""Measures how fast ESMM trains and scores, beside the same network of DeepCTR, and what it has then learned.

python benchmarks/training.py [--examples 500000] [--batch-size 1024] [--rows 5000000] [--cores 1] [--quick]

Generated impressions of 12 ids (10 to 200,000 values, Zipf) and 4 numbers, with their truth; embeddings of 18, towers
of 360-200-80, float32, Adam at 1e-3, one epoch. Every contender has a process of its own, one after the other: CPU
seconds are those of the process, all threads, while it trains (with `--cores 1` none of them waits for another, and two
cores that are one to the machine below do not share it); memory is its peak. Both libraries score in batches of
4096 by one traced function. With `--rows` the speed alone is measured, with tables of so many rows. The floor is what
the matrix products alone would take, forward and backward.

DeepCTR is left out where it is not installed: pip install --no-deps deepctr (its other requirements are here already).
"""

import argparse
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from ranking.metrics import auc

DIM, TOWERS, NUMBERS = 18, (360, 200, 80), 4
SIZES = tuple(int(size) for size in np.geomspace(10, 200_000, 12).round())
CLICK_RATE, CONVERSION_RATE, SHARED = 0.05, 0.05, 0.5
TEST = 200_000
SPEED_ALONE = 60_000  # examples where only the speed is measured: Keras' Adam takes a second a step there
WARM = 10  # batches before the clock starts: tracing, allocation

CONTENDERS = {  # name: architecture of ours (None: DeepCTR), optimizer of ours or l2 of DeepCTR
    "seedrank, the network of DeepCTR": ({"dropout": 0.0, "wide": False}, "RowAdam"),
    "seedrank, defaults": ({}, "RowAdam"),
    "seedrank, RowAdagrad": ({"dropout": 0.0, "wide": False}, "RowAdagrad"),
    "seedrank, Keras' Adam": ({"dropout": 0.0, "wide": False}, "Adam"),
    "DeepCTR, defaults": (None, 1e-5),
    "DeepCTR, no L2": (None, 0.0),
}
AT_ROWS = ("seedrank, the network of DeepCTR", "seedrank, Keras' Adam")


def world(examples: int, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> dict[str, np.ndarray]:
    """Impressions and their truth: additive in ids and numbers, and two latent interactions.

    Half of the variance of the conversion's weights is the click's (rho .5): what one task learns of an id helps the
    other. The intercepts are found by bisection, so that the rates are 5 % and 5 %.
    """
    generator = np.random.default_rng(seed)
    columns, logits = {}, np.zeros((examples, 2), np.float32)
    vectors = np.zeros((4, examples, 4), np.float32)
    for place, size in enumerate(sizes):
        ids = (size ** generator.random(examples)).astype(np.int32) - 1  # Zipf
        columns[f"id_{place}"] = ids + 2  # 0 is missing, 1 out of vocabulary
        click, own = generator.standard_normal((2, size), np.float32)
        weights = np.stack([click, SHARED * click + (1 - SHARED**2) ** 0.5 * own], axis=1)
        logits += 0.4 * weights[ids]
        if place in (4, 5, 6, 7):
            vectors[place - 4] = generator.standard_normal((size, 4), np.float32)[ids]
    for task, (one, other) in enumerate(((0, 1), (2, 3))):
        logits[:, task] += 0.3 * (vectors[one] * vectors[other]).sum(axis=1)
    for place in range(NUMBERS):
        number = generator.random(examples, np.float32)
        columns[f"number_{place}"] = number
        logits += 0.8 * (number - 0.5)[:, None] * generator.standard_normal(2, np.float32)
    pctr = _with_rate(logits[:, 0], CLICK_RATE, np.ones(examples))
    pcvr = _with_rate(logits[:, 1], CONVERSION_RATE, pctr)
    click = generator.random(examples) < pctr
    conversion = click & (generator.random(examples) < pcvr)
    return columns | {"pctr": pctr, "pcvr": pcvr, "click": click, "conversion": conversion}


def _with_rate(logits: np.ndarray, rate: float, weights: np.ndarray) -> np.ndarray:
    """Probabilities of the logits, shifted so that their weighted mean is `rate`."""
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        if np.average(1 / (1 + np.exp(-(logits + middle))), weights=weights) < rate:
            low = middle
        else:
            high = middle
    return 1 / (1 + np.exp(-(logits + middle)))


def sizes_of(rows: int) -> tuple[int, ...]:
    """The sizes in the same proportions, `rows` together."""
    return tuple(max(10, round(size * rows / sum(SIZES))) for size in SIZES)


def pair(outputs: Any, one: Any, other: Any) -> Any:
    """Two outputs side by side, `[B, 2]`."""
    import keras

    return keras.ops.stack([outputs[one], outputs[other]], axis=1)


def ours(contender: str, sizes: tuple[int, ...], args: argparse.Namespace) -> tuple[Any, Any]:
    """Two functions: one trains our model on rows `low` to `high`, one scores columns."""
    import keras

    from esmm import Architecture, Feature, RowAdagrad, RowAdam, build_esmm, losses, targets
    from ranking.batches import batches, tf_function
    from ranking.state import in_batches

    architecture, optimizer = CONTENDERS[contender]
    features = [Feature(f"id_{place}", "categorical", size=size + 2) for place, size in enumerate(sizes)]
    features += [Feature(f"number_{place}", "numeric") for place in range(NUMBERS)]
    shape = Architecture(embedding_dim=DIM, towers=TOWERS, **architecture)
    model = build_esmm(features, shape, base_rates=(CLICK_RATE, CONVERSION_RATE))
    made = {
        "RowAdam": lambda: RowAdam(1e-3, epsilon=1e-7),  # Keras' epsilon, which DeepCTR has too
        "RowAdagrad": lambda: RowAdagrad(1e-2, initial_accumulator_value=1e-7),
        "Adam": lambda: keras.optimizers.Adam(1e-3),
    }[optimizer]()
    model.compile(made, losses(), jit_compile={"auto": "auto", "on": True, "off": False}[args.jit])
    generator = np.random.default_rng(0)
    scored = functools.partial(in_batches, tf_function(lambda batch: pair(model(batch), "pctr", "pcvr")))

    def train(columns: dict[str, np.ndarray], low: int, high: int) -> None:
        arrays = {feature.name: columns[feature.name][low:high] for feature in features}
        labels = targets(columns["click"][low:high], columns["conversion"][low:high])
        data = batches(arrays, labels, order=generator.permutation(high - low), batch_size=args.batch_size)
        model.fit(data, shuffle=False, verbose=0)

    def score(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = scored({feature.name: columns[feature.name] for feature in features}, 4096)
        return found[:, 0], found[:, 1], found[:, 0] * found[:, 1]

    return train, score


def deepctr(contender: str, sizes: tuple[int, ...], args: argparse.Namespace) -> tuple[Any, Any]:
    """The model of DeepCTR as its documentation has it; pcvr is the quotient of its outputs."""
    import contextlib
    import io

    import requests

    from ranking.batches import tf_function
    from ranking.state import in_batches

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("its import would ask for the newest version")

    requests.get = offline
    with contextlib.redirect_stdout(io.StringIO()):
        from deepctr.feature_column import DenseFeat, SparseFeat
        from deepctr.models import ESMM

    ids = [SparseFeat(f"id_{place}", size + 2, embedding_dim=DIM) for place, size in enumerate(sizes)]
    features = [*ids, *(DenseFeat(f"number_{place}", 1) for place in range(NUMBERS))]
    model = ESMM(features, TOWERS, l2_reg_embedding=CONTENDERS[contender][1])
    model.compile("adam", ["binary_crossentropy"] * 2)
    scored = functools.partial(in_batches, tf_function(lambda batch: pair([x[:, 0] for x in model(batch)], 0, 1)))

    def train(columns: dict[str, np.ndarray], low: int, high: int) -> None:
        arrays = {feature.name: columns[feature.name][low:high] for feature in features}
        labels = [columns[name][low:high].astype(np.float32) for name in ("click", "conversion")]
        model.fit(arrays, labels, batch_size=args.batch_size, verbose=0)

    def score(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        arrays = {feature.name: columns[feature.name] for feature in features}
        pctr, pctcvr = scored(arrays, 4096).T
        return pctr, pctcvr / pctr, pctcvr

    return train, score


def measure(contender: str, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Speed of one contender, and where `rows` is 0 (the data's own tables) what it has learned."""
    from ranking.progress import quiet

    quiet()
    import keras

    sizes = sizes_of(rows) if rows else SIZES
    keras.utils.set_random_seed(args.seed)
    number = args.examples // args.batch_size * args.batch_size  # a smaller last batch would be traced anew
    columns = world(number + (TEST if not args.quick else 50_000), sizes)
    test = {name: column[number:] for name, column in columns.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build = ours if CONTENDERS[contender][0] is not None else deepctr
    train, score = build(contender, sizes, args)
    warm = WARM * args.batch_size
    train(columns, 0, warm)
    wall, cpu = time.perf_counter(), time.process_time()
    train(columns, warm, number)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    result = {
        "contender": contender,
        "table_rows": sum(sizes),
        "examples": number - warm,
        "examples_per_second": (number - warm) / wall,
        "examples_per_cpu_second": (number - warm) / cpu,
    }
    if not rows:
        score(test)
        wall, cpu = time.perf_counter(), time.process_time()
        pctr, pcvr, pctcvr = score(test)
        result["scored_per_second"] = len(pctr) / (time.perf_counter() - wall)
        result["scored_per_cpu_second"] = len(pctr) / (time.process_time() - cpu)
        clicked = test["click"]
        result |= {
            "click_auc": auc(clicked, pctr),
            "cvr_auc": auc(test["conversion"][clicked], pcvr[clicked]),
            "ctcvr_auc": auc(test["conversion"], pctcvr),
            **against_truth(test, pctr, pcvr, pctcvr),
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result | {"peak_mb": peak / 1024, "peak_mb_of_the_data": before / 1024}


def against_truth(test: dict[str, np.ndarray], pctr: np.ndarray, pcvr: np.ndarray, pctcvr: np.ndarray) -> dict:
    """Expected AUC over all labels that the truth could have drawn: no noise of rare labels, pcvr on all rows."""
    found = {}
    truths = {"click": test["pctr"], "cvr": test["pcvr"], "ctcvr": test["pctr"] * test["pcvr"]}
    for (name, truth), score in zip(truths.items(), (pctr, pcvr, pctcvr), strict=True):
        labels, weights = np.repeat([1, 0], len(truth)), np.concatenate([truth, 1 - truth])
        found[f"{name}_auc_true"] = float(roc_auc_score(labels, np.tile(score, 2), sample_weight=weights))
    return found


def floor(args: argparse.Namespace) -> dict[str, Any]:
    """What the products of the towers alone take, in one thread: forward, and backward to weights and to inputs."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    widths = (len(SIZES) * DIM + NUMBERS, *TOWERS, 1)
    flop, seconds = 0.0, 0.0
    for width, units in zip(widths, widths[1:], strict=False):
        x, w = tf.random.normal((args.batch_size, width)), tf.random.normal((width, units))
        d = tf.random.normal((args.batch_size, units))
        products = [(x, w, False, False), (d, w, False, True), (x, d, True, False)]
        for a, b, transpose_a, transpose_b in products:
            product = tf.function(lambda a=a, b=b, s=transpose_a, t=transpose_b: tf.matmul(a, b, s, t))
            taken = []
            for _ in range(5):
                start = time.process_time()
                for _ in range(20):
                    product()
                taken.append((time.process_time() - start) / 20)
            seconds += 2 * min(taken)  # two towers
            flop += 2 * 2 * args.batch_size * width * units
    weights = 2 * sum(width * units + units for width, units in zip(widths, widths[1:], strict=False))
    update = 12.0 * weights  # Adam's arithmetic on the dense weights
    rate = flop / seconds
    return {
        "contender": "floor: the matrix products alone",
        "flop_per_example": (flop + update) / args.batch_size,
        "gflop_per_cpu_second": rate / 1e9,
        "examples_per_cpu_second": args.batch_size / ((flop + update) / rate),
    }


def alone(name: str, rows: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """One measurement in a process of its own; None where it failed, with what it said."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--one", name, "--rows", str(rows), "--output", str(file)]
        examples = min(args.examples, SPEED_ALONE) if rows else args.examples
        command += ["--examples", str(examples), "--batch-size", str(args.batch_size), "--seed", str(args.seed)]
        command += ["--jit", args.jit, *(["--quick"] if args.quick else [])]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode or not file.exists():
            lines = done.stderr.strip().splitlines() or ["no message"]
            Console(stderr=True).print(f"{name}: {lines[-1]}")
            return None
        return json.loads(file.read_text())


def shown(results: list[dict[str, Any]], args: argparse.Namespace) -> Table:
    table = Table(title=f"ESMM 360-200-80, 12 ids of 18 and 4 numbers, one epoch, batches of {args.batch_size}")
    heads = ("contender", "table rows", "trains/s", "per CPU-s", "scores/s", "per CPU-s", "peak MB")
    areas = ("click", "CVR", "CTCVR")
    for column in (*heads, *(f"{area} AUC (true)" for area in areas)):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for r in results:
        numbers = ("table_rows", "examples_per_second", "examples_per_cpu_second", "scored_per_second")
        numbers += ("scored_per_cpu_second", "peak_mb")
        quality = [
            f"{r[f'{area}_auc']:.4f} ({r[f'{area}_auc_true']:.4f})" if f"{area}_auc" in r else ""
            for area in ("click", "cvr", "ctcvr")
        ]
        table.add_row(r["contender"], *(f"{r[name]:,.0f}" if name in r else "" for name in numbers), *quality)
    return table


def targets_met(results: list[dict[str, Any]]) -> list[str]:
    """What the table says of the targets, a line each."""
    main = {r["contender"]: r for r in results if "cvr_auc" in r or "gflop_per_cpu_second" in r}
    lines = []
    us, bound = main.get("seedrank, the network of DeepCTR"), main.get("floor: the matrix products alone")
    them = main.get("DeepCTR, defaults")
    if us and them:
        for name, words in (
            ("examples_per_cpu_second", "examples per CPU-second"),
            ("examples_per_second", "examples/s"),
        ):
            lines.append(f"{us[name] / them[name]:.2f} times DeepCTR's {words}")
    if us and bound:
        times = bound["examples_per_cpu_second"] / us["examples_per_cpu_second"]
        lines.append(f"{times:.2f} times the floor ({bound['gflop_per_cpu_second']:.0f} GFLOP/CPU-s at these shapes)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=500_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="*", default=[5_000_000], help="table rows to measure the speed at")
    parser.add_argument("--jit", choices=["auto", "on", "off"], default="auto", help="XLA for ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=0, help="run on so many cores only; 0: on all")
    parser.add_argument("--quick", action="store_true", help="60,000 examples, tables of 1,000,000 rows")
    parser.add_argument("--output", type=Path, default=None, help="where to write the numbers as JSON")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    if args.cores:  # what is started from here inherits it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    if args.one:
        found = floor(args) if args.one == "floor" else measure(args.one, args.rows[0], args)
        args.output.write_text(json.dumps(found))
        return
    if args.quick:
        args.examples, args.rows = 60_000, [1_000_000]
    work = [
        ("floor", 0),
        *((name, 0) for name in CONTENDERS),
        *((name, rows) for rows in args.rows for name in AT_ROWS),
    ]
    results = [found for name, rows in work if (found := alone(name, rows, args))]
    Console().print(shown(results, args))
    for line in targets_met(results):
        Console().print(line)
    if args.output:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
        about = {"python": platform.python_version(), "processors": os.cpu_count()}
        args.output.write_text(json.dumps({"about": about, "settings": settings, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
