"""Clustering of seeds against faiss and scikit-learn: CPU time of one thread at the same inertia.

python benchmarks/clustering.py [--quick] [--out clustering.json]

The libraries take turns on the same points in one run; times are medians of process CPU seconds, inertia is that of the
nearest of each library's final centroids, computed here in the same way for all.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import threadpoolctl
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from lookalike.clustering import cluster

ITERATIONS, WARM = 10, 2
# Seeds, k, dim, repeats: the seeds of an item, the defaults of the model, and larger items.
COLD = [
    (200, 20, 64, 100),
    (1_000, 20, 64, 200),
    (1_000, 20, 128, 100),
    (1_000, 100, 128, 60),
    (5_000, 20, 64, 40),
    (20_000, 20, 64, 24),
    (20_000, 100, 64, 10),
    (100_000, 20, 64, 7),
]
REPLACED = (0.0, 0.02, 0.1)  # share of the seeds that changed since the clustering that a warm start begins from
SMALL_DRIFT = 0.02  # up to it the limits of a warm start hold
ITEMS, SEEDS = 5_000, 1_000
LIMITS = {"cold": 0.5, "inertia": 1.002, "warm": 0.25, "warm inertia": 1.005}


def mixture(n: int, dim: int, seed: int) -> np.ndarray:
    """Points around 300 modes, standard deviation 1 within and between them."""
    rng = np.random.default_rng(seed)
    modes = rng.standard_normal((300, dim), np.float32)
    return modes[rng.integers(300, size=n)] + rng.standard_normal((n, dim), np.float32)


def with_ours(points: np.ndarray, k: int, seed: int, initial: np.ndarray | None = None) -> np.ndarray:
    offsets = np.array([0, len(points)])
    start = None if initial is None else initial[None]
    iterations = ITERATIONS if initial is None else WARM
    return cluster(points, offsets, k, iterations=iterations, seed=seed, initial=start, threads=1).centroids[0]


def with_faiss(points: np.ndarray, k: int, seed: int, initial: np.ndarray | None = None) -> np.ndarray:
    # Its defaults take 256 points a centroid at most and warn below 39.
    every = {"max_points_per_centroid": len(points), "min_points_per_centroid": 1}
    iterations = ITERATIONS if initial is None else WARM
    found = faiss.Kmeans(points.shape[1], k, niter=iterations, nredo=1, seed=seed + 1, **every)
    found.train(points, init_centroids=initial)
    return found.centroids


def with_scikit_learn(points: np.ndarray, k: int, seed: int, initial: np.ndarray | None = None) -> np.ndarray:
    start, iterations = ("k-means++", ITERATIONS) if initial is None else (initial, WARM)
    found = KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0, random_state=seed, algorithm="lloyd")
    return found.fit(points).cluster_centers_


LIBRARIES: dict[str, Callable[..., np.ndarray]] = {
    "seedrank": with_ours,
    "faiss": with_faiss,
    "scikit-learn": with_scikit_learn,
}


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    norms = np.sum(centroids * centroids, axis=1)
    nearest = np.argmin(norms - 2 * points @ centroids.T, axis=1)
    return float(np.sum((points - centroids[nearest]) ** 2, dtype=np.float64))


def take_turns(
    runs: dict[str, Callable[[int], np.ndarray]], repeats: int, total: Callable[[int, np.ndarray], float]
) -> dict:
    """CPU seconds and inertia of each run, in turns; who begins changes, for the first finds a cold cache."""
    names = list(runs)
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "inertia": []} for name in names}
    for repeat in range(-1, repeats):  # the first one compiles and loads
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.process_time()
            centroids = runs[name](repeat)
            seconds = time.process_time() - start
            if repeat >= 0:
                found[name]["seconds"].append(seconds)
                found[name]["inertia"].append(total(repeat, centroids))
    return {
        name: {"seconds": float(np.median(of["seconds"])), "inertia": float(np.mean(of["inertia"]))}
        for name, of in found.items()
    }


def ceiling(size: int = 2048, repeats: int = 9) -> float:
    """Floating point operations a second of one thread's float32 matrix product."""
    square = np.random.default_rng(0).random((size, size), np.float32)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        square @ square
        seconds.append(time.process_time() - start)
    return 2 * size**3 / float(np.median(seconds))


def cold(n: int, k: int, dim: int, repeats: int, peak: float) -> dict:
    sets = [mixture(n, dim, seed) for seed in range(min(repeats, 20))]

    def run(method: Callable[..., np.ndarray]) -> Callable[[int], np.ndarray]:
        return lambda repeat: method(sets[repeat % len(sets)], k, repeat + 1)

    runs = {name: run(method) for name, method in LIBRARIES.items()}
    found = take_turns(runs, repeats, lambda repeat, centroids: inertia(sets[repeat % len(sets)], centroids))
    ours = found["seedrank"]
    return {
        "seeds": n,
        "k": k,
        "dim": dim,
        "repeats": repeats,
        "libraries": found,
        "times_of_faiss": ours["seconds"] / found["faiss"]["seconds"],
        "times_of_scikit_learn": ours["seconds"] / found["scikit-learn"]["seconds"],
        "inertia_of_faiss": ours["inertia"] / found["faiss"]["inertia"],
        "inertia_of_scikit_learn": ours["inertia"] / found["scikit-learn"]["inertia"],
        "times_of_floor": ours["seconds"] * peak / (2 * n * k * dim * ITERATIONS),
    }


def drifted(n: int, dim: int, replaced: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeds of an item, and the same with a share of them replaced by others around the same modes."""
    whole = mixture(2 * n, dim, seed)
    before, after = whole[:n], whole[:n].copy()
    gone = np.random.default_rng(seed).permutation(n)[: round(replaced * n)]
    after[gone] = whole[n + gone]
    return before, after


def warm(items: int, k: int, dim: int, replaced: float, repeats: int) -> dict:
    """Two iterations from the centroids before a share of the seeds changed, against ten from nothing.

    One call clusters all items; the few sets of them take turns, so that a call finds none of its own in the cache.
    """
    pairs = [drifted(SEEDS, dim, replaced, seed) for seed in range(items * max(2, 20 // items))]
    offsets = np.arange(items + 1) * SEEDS
    sets = []
    for low in range(0, len(pairs), items):
        before, after = (np.concatenate(side) for side in zip(*pairs[low : low + items], strict=True))
        sets.append((after, cluster(before, offsets, k, seed=low).centroids))

    def run_cold(repeat: int) -> np.ndarray:
        points, _ = sets[repeat % len(sets)]
        return cluster(points, offsets, k, seed=repeat + 1, threads=1).centroids

    def run_warm(repeat: int) -> np.ndarray:
        points, initial = sets[repeat % len(sets)]
        return cluster(points, offsets, k, iterations=WARM, initial=initial, threads=1).centroids

    def run_faiss(repeat: int) -> np.ndarray:
        points, initial = sets[repeat % len(sets)]
        own = points.reshape(items, SEEDS, dim)
        return np.stack([with_faiss(own[item], k, 0, initial[item]) for item in range(items)])

    def total(repeat: int, centroids: np.ndarray) -> float:
        own = sets[repeat % len(sets)][0].reshape(items, SEEDS, dim)
        return sum(inertia(own[item], centroids[item]) for item in range(items))

    found = take_turns({"cold": run_cold, "warm": run_warm, "faiss, warm": run_faiss}, repeats, total)
    for one in found.values():
        one["seconds"] /= items
    return {
        "items": items,
        "seeds": SEEDS,
        "k": k,
        "dim": dim,
        "replaced": replaced,
        "runs": found,
        "times_of_cold": found["warm"]["seconds"] / found["cold"]["seconds"],
        "inertia_of_cold": found["warm"]["inertia"] / found["cold"]["inertia"],
        "times_of_faiss": found["warm"]["seconds"] / found["faiss, warm"]["seconds"],
    }


def many(items: int, rounds: int) -> list[dict]:
    """Items a second, of one call over all items; the other libraries take a few of them one by one."""
    points = np.concatenate([mixture(SEEDS * min(100, items - low), 64, low) for low in range(0, items, 100)])
    offsets = np.arange(items + 1) * SEEDS
    initial = cluster(points, offsets, 20).centroids
    each = [points[low : low + SEEDS] for low in offsets[: min(items, 200)]]
    everything = {"seedrank, one thread": {"threads": 1}, "seedrank, all cores": {}}
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        name: (items, lambda arguments=arguments: cluster(points, offsets, 20, **arguments))
        for name, arguments in everything.items()
    }
    runs["seedrank, one thread, two iterations from a warm start"] = (
        items,
        lambda: cluster(points, offsets, 20, iterations=WARM, initial=initial, threads=1),
    )
    runs["faiss, one thread"] = (len(each), lambda: [with_faiss(own, 20, 0) for own in each])
    runs["scikit-learn, one thread"] = (len(each) // 4, lambda: [with_scikit_learn(own, 20, 0) for own in each[::4]])
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (_, run) in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    results = []
    for name, (count, _) in runs.items():
        wall, cpu = np.median(spent[name], axis=0)
        results.append({"what": name, "items": count, "per_second": count / wall, "per_cpu_second": count / cpu})
    return results


def verdicts(colds: list[dict], warms: list[dict]) -> list[dict]:
    found = []
    for row in colds:
        size = f"{row['seeds']:,} x {row['k']} x {row['dim']}"
        limit = LIMITS["cold"] if row["seeds"] == SEEDS else 1.0
        found += [
            {"what": f"cold, {size}: times faiss", "value": row["times_of_faiss"], "limit": limit},
            {"what": f"cold, {size}: times scikit-learn", "value": row["times_of_scikit_learn"], "limit": 1.0},
            {"what": f"cold, {size}: inertia of faiss", "value": row["inertia_of_faiss"], "limit": LIMITS["inertia"]},
        ]
    for row in warms:
        if row["replaced"] > SMALL_DRIFT:
            continue
        size = f"{row['items']} x {row['seeds']:,} x {row['k']} x {row['dim']}, {row['replaced']:.0%} replaced"
        limits = (LIMITS["warm"], LIMITS["warm inertia"])
        found += [
            {"what": f"warm, {size}: times cold", "value": row["times_of_cold"], "limit": limits[0]},
            {"what": f"warm, {size}: inertia of cold", "value": row["inertia_of_cold"], "limit": limits[1]},
        ]
    return [{**one, "met": one["value"] <= one["limit"]} for one in found]


def show(console: Console, summary: dict) -> None:
    table = Table(title=f"Cold, {ITERATIONS} iterations, one thread: CPU ms (inertia of faiss = 1)")
    for column in ("seeds x k x dim", *LIBRARIES, "times faiss", "times GEMM floor"):
        table.add_column(column, justify="right")
    for row in summary["cold"]:
        least = row["libraries"]["faiss"]["inertia"]
        cells = [f"{of['seconds'] * 1e3:.2f} ({of['inertia'] / least:.4f})" for of in row["libraries"].values()]
        ratios = (f"{row['times_of_faiss']:.2f}", f"{row['times_of_floor']:.2f}")
        table.add_row(f"{row['seeds']:,} x {row['k']} x {row['dim']}", *cells, *ratios)
    console.print(table)
    table = Table(title=f"Warm start, {WARM} iterations: CPU ms an item (inertia of cold = 1)")
    for column in ("items x seeds x k x dim", "replaced", "cold", "warm", "faiss, warm", "times cold"):
        table.add_column(column, justify="right")
    for row in summary["warm"]:
        cells = [
            f"{of['seconds'] * 1e3:.3f} ({of['inertia'] / row['runs']['cold']['inertia']:.4f})"
            for of in row["runs"].values()
        ]
        size = f"{row['items']} x {row['seeds']:,} x {row['k']} x {row['dim']}"
        table.add_row(size, f"{row['replaced']:.0%}", *cells, f"{row['times_of_cold']:.3f}")
    console.print(table)
    table = Table("items", "items/s", "items/CPU-s", title=f"Items of {SEEDS:,} seeds, k = 20, dim = 64")
    for row in summary["many"]:
        rates = (f"{row['per_second']:,.0f}", f"{row['per_cpu_second']:,.0f}")
        table.add_row(f"{row['what']} ({row['items']:,})", *rates)
    console.print(table)
    console.print(f"sgemm ceiling of one thread: {summary['ceiling'] / 1e9:.0f} GFLOP/s")
    missed = [one for one in summary["verdicts"] if not one["met"]]
    console.print(f"{len(summary['verdicts']) - len(missed)} of {len(summary['verdicts'])} limits met")
    for one in missed:
        console.print(f"missed: {one['what']} {one['value']:.4f}, limit {one['limit']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, 500 items, no item above 20,000 seeds")
    parser.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    cases = [case for case in COLD if case[0] <= 20_000] if args.quick else COLD
    share = 4 if args.quick else 1
    shapes = [(1, 20, 64, 400), (50, 20, 64, 24), (1, 20, 128, 200), (50, 20, 128, 16), (1, 100, 128, 60)]
    with threadpoolctl.threadpool_limits(1):
        peak = ceiling()
        summary = {
            "about": {
                "machine": platform.processor() or platform.machine(),
                **{name: version(name) for name in ("numpy", "numba", "faiss-cpu", "scikit-learn")},
            },
            "ceiling": peak,
            "cold": [cold(n, k, dim, max(5, repeats // share), peak) for n, k, dim, repeats in cases],
            "warm": [
                warm(items, k, dim, replaced, repeats // share)
                for items, k, dim, repeats in shapes
                for replaced in REPLACED
            ],
            "many": many(ITEMS // (10 if args.quick else 1), 1 if args.quick else 3),
        }
    summary["verdicts"] = verdicts(summary["cold"], summary["warm"])
    show(Console(), summary)
    if args.out:
        args.out.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
