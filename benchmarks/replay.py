"""Replay of many settings: CPU seconds of one core beside a sort per setting, bootstrap, memory and a whole tune.

python benchmarks/replay.py [--quick] [--output replay.json]

Generated logs of 100 candidates a request, three score parts, ten places; a click on 2.6 rows of a request. Sorts and
pandas run on a few settings in turns with the kernel and are told a thousand settings; their numbers have to be equal.
Cost classes: 1, rows with a label (NDCG@10 and E3 of three objectives); 2, shown rows (E5 and the gates); 3, the first
ten of all rows (diversity, E6). The ceiling is the scoring alone, kept in the L1 cache: no replay can do less.
"""

import argparse
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import threadpoolctl
from rich.console import Console
from rich.table import Table

from ranking.fusion import FusionWeights, terms
from ranking.replay.intervals import USERS, resample
from ranking.replay.log import ReplayLog
from ranking.replay.propensity import plackett_luce_propensities
from ranking.replay.rank_kernels import LANES
from ranking.replay.ranks import DIVERSITY, RankSums
from ranking.replay.tuning import tune

CANDIDATES, PLACES, PARTS = 100, 10, 3
REQUESTS_A_USER = 2
REPLICATES = 500
OBJECTIVES = ("clicks", "conversions", "value")
LABELLED = tuple(f"{name} {what}" for what in ("NDCG", "E3") for name in OBJECTIVES)
CLASSES = {
    "1 labels": LABELLED,
    "2 shown": (*LABELLED[3:], "weight", "unsupported"),
    "3 top 10": ("model", DIVERSITY),
}
LIMITS = {"1": 2.0, "2": 4.0, "3": 5.0, "bootstrap": 2.0, "tune": 30.0, "memory": 3.0, "agree": 1e-6}


def generated(requests: int, seed: int = 0) -> RankSums:
    """Sums as the estimators make them: labels on few rows, propensities on the shown ones, a model on all."""
    rng = np.random.default_rng(seed)
    n = requests * CANDIDATES
    position = np.argsort(rng.random((requests, CANDIDATES), np.float32), axis=1).astype(np.int8).ravel()
    shown = position < PLACES
    click = shown & (rng.random(n, np.float32) < 0.26)
    conversion = click & (rng.random(n, np.float32) < 0.2)
    labels = {"clicks": click, "conversions": conversion, "value": conversion * rng.gamma(2, 5, n).astype(np.float32)}
    inverse = np.where(shown, 1 + rng.gamma(1, 1, n).astype(np.float32), 0)
    coefficients = {f"{name} NDCG": label.astype(np.float32) for name, label in labels.items()}
    coefficients |= {f"{name} E3": (label * inverse).astype(np.float32) for name, label in labels.items()}
    coefficients |= {"weight": (inverse / 5).astype(np.float32), "model": rng.random(n, np.float32)}
    coefficients["unsupported"] = (rng.random(n, np.float32) < 0.05).astype(np.float32)
    return RankSums(
        offsets=np.arange(0, n + 1, CANDIDATES),
        terms=rng.standard_normal((PARTS, n), np.float32),
        slots=np.full(requests, PLACES),
        cluster=np.arange(requests) // REQUESTS_A_USER,
        gains=np.stack([1 / np.arange(1, PLACES + 1) ** 0.7, 1 / np.log2(np.arange(PLACES) + 2)]),
        coefficients=coefficients,
        gain_of={name: 1 for name in LABELLED[:3]},
        category=rng.integers(0, 20, n).astype(np.int32),
    )


def chosen(settings: int) -> np.ndarray:
    """Log-uniform ratios over two powers of ten, as the search proposes them."""
    ratios = 10 ** np.random.default_rng(1).uniform(-2, 0, (settings, PARTS))
    return (ratios / ratios.max(axis=1, keepdims=True)).astype(np.float32)


def cpu(run: Callable[[], object], repeats: int = 3) -> float:
    """CPU seconds of the quickest of some runs: the machine is shared."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


@numba.njit(nogil=True)
def _scores_only(terms, weights, out):
    for row in range(terms.shape[1]):
        a, b, c = terms[0, row], terms[1, row], terms[2, row]
        for lane in range(LANES):
            out[lane] = weights[0, lane] * a + weights[1, lane] * b + weights[2, lane] * c


def ceiling(sums: RankSums, settings: np.ndarray) -> float:
    """CPU seconds of the scores of all settings, a block after the other, kept nowhere."""
    lanes = [np.ascontiguousarray(settings[low : low + LANES].T) for low in range(0, len(settings), LANES)]
    lanes = [np.pad(block, ((0, 0), (0, LANES - block.shape[1]))) for block in lanes]
    out = np.empty(LANES, np.float32)
    _scores_only(sums.terms[:, :1], lanes[0], out)
    return cpu(lambda: [_scores_only(sums.terms, block, out) for block in lanes])


def by_sort(sums: RankSums, settings: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """A stable argsort a setting: totals `[S]`."""
    requests = len(sums.slots)
    found = {name: np.zeros(len(settings)) for name in names}
    first = np.arange(requests)[:, None] * CANDIDATES
    for index, weights in enumerate(settings):
        score = (weights[:, None] * sums.terms).sum(axis=0, dtype=np.float32).reshape(requests, CANDIDATES)
        best = first + np.argsort(-score, axis=1, kind="stable")[:, :PLACES]
        for name in names:
            found[name][index] = (sums.coefficients[name][best] @ sums.gains[sums.gain_of.get(name, 0)]).sum()
    return found


def by_pandas(sums: RankSums, settings: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The same with a data frame: sort, number within the request, sum."""
    request = np.repeat(np.arange(len(sums.slots)), CANDIDATES)
    frame = pd.DataFrame({"request": request, **{name: sums.coefficients[name] for name in names}})
    found = {name: np.zeros(len(settings)) for name in names}
    for index, weights in enumerate(settings):
        frame["score"] = (weights[:, None] * sums.terms).sum(axis=0, dtype=np.float32)
        ordered = frame.sort_values("score", ascending=False, kind="stable")
        place = ordered.groupby("request").cumcount().to_numpy()
        top, place = ordered[place < PLACES], place[place < PLACES]
        for name in names:
            gain = sums.gains[sums.gain_of.get(name, 0)][place]
            found[name][index] = (top[name].to_numpy(np.float64) * gain).sum()
    return found


def counted(sums: RankSums, name: str, settings: int) -> dict[str, float]:
    """Operations of one pass by the formula: scores, and compares (class 3: if no row could be dropped early)."""
    rows = sums.terms.shape[1]
    needed = np.any([sums.coefficients[output] for output in CLASSES[name] if output in sums.coefficients], axis=0)
    per_request = needed.reshape(-1, CANDIDATES).sum(axis=1)
    selected = name.startswith("3") | (per_request > 2 * PLACES)
    compares = np.where(selected, (PLACES + 1) * CANDIDATES, per_request * CANDIDATES).sum()
    return {"gflop": (2 * PARTS - 1) * rows * settings / 1e9, "gcompares": float(compares) * settings / 1e9}


def classes(sums: RankSums, settings: np.ndarray, repeats: int) -> list[dict]:
    floor = ceiling(sums, settings)
    rows = []
    for name, outputs in CLASSES.items():
        sums.totals(settings[:1], outputs)
        seconds = cpu(lambda outputs=outputs: sums.totals(settings, outputs), repeats)
        size = sums.terms.shape[1] / 1e6 * len(settings) / 1000
        limit = LIMITS[name[0]] * size
        row = {"class": name, "rows": sums.terms.shape[1], "settings": len(settings), "seconds": seconds}
        rows.append({**row, "limit": limit, "ceiling": floor, "times_ceiling": seconds / floor})
        rows[-1] |= counted(sums, name, len(settings))
    return rows


def rivals(sums: RankSums, settings: np.ndarray, few: int) -> list[dict]:
    """Sorts on a few settings, told a thousand; their numbers against ours."""
    ours = cpu(lambda: sums.totals(settings, LABELLED)) / len(settings)
    mine = sums.totals(settings[:few], LABELLED).sum
    rows = []
    for name, run, count in (("numpy, a sort a setting", by_sort, few), ("pandas", by_pandas, max(1, few // 4))):
        start = time.process_time()
        found = run(sums, settings[:count], LABELLED)
        seconds = (time.process_time() - start) / count
        apart = max(float(np.abs(mine[n][:count] / found[n] - 1).max()) for n in LABELLED)
        row = {"who": name, "settings": count, "seconds_of_1000": seconds * 1000, "times_ours": seconds / ours}
        rows.append({**row, "apart": apart})
    return rows


def bootstrap(sums: RankSums, settings: np.ndarray) -> dict:
    """Of E3 of three objectives: the resampling alone (sums by user at hand), and with the passes over the log."""
    names = LABELLED[3:]
    size = 1_000_000 // (len(names) * len(settings)) // USERS * USERS or USERS
    blocks = list(sums.cluster_blocks(settings, names, size))
    alone = cpu(lambda blocks=blocks: resample(blocks, REPLICATES), 2)
    del blocks
    scores = sums.terms.nbytes
    tracemalloc.start()
    start = time.process_time()
    found = resample(sums.cluster_blocks(settings, names, size), REPLICATES)
    everything = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = sum(rows.nbytes for rows in found.drawn.values())
    row = {"settings": len(settings), "replicates": REPLICATES, "requests": len(sums.slots), "seconds": alone}
    return {**row, "with_passes": everything, "peak_of_scores": peak / scores, "result_of_scores": held / scores}


def generated_log(requests: int, candidates: int, seed: int, begin: int) -> tuple[ReplayLog, dict[str, np.ndarray]]:
    """A log of a Plackett-Luce policy over a position-based world, with its score parts."""
    rng = np.random.default_rng(seed)
    n, theta = requests * candidates, 1 / np.arange(1, PLACES + 1) ** 0.7
    quality, intent = rng.normal(-1.2, 1, n), rng.normal(-0.5, 1, n)
    pctr, pcvr = 1 / (1 + np.exp(-quality)), 1 / (1 + np.exp(-intent))
    parts = {
        "similarity": np.tanh(0.5 * (quality + 1.2) + rng.normal(0, 0.4, n)).astype(np.float32),
        "has_similarity": np.ones(n, np.float32),
        "pctr": (1 / (1 + np.exp(-quality - rng.normal(0, 0.5, n)))).astype(np.float32),
        "pcvr": (1 / (1 + np.exp(-intent - rng.normal(0, 0.3, n)))).astype(np.float32),
    }
    production = FusionWeights.fit(parts, "product", {"similarity": 0.1, "pctr": 1.0, "pcvr": 0.1}, "generated")
    z = terms(parts, production)
    score = sum(np.float32(weight) * z[name] for name, weight in production.weights.items()).astype(np.float32)
    position, exposure = np.full(n, -1, np.int32), np.zeros(n)
    for start in range(0, n, candidates):
        logits = score[start : start + candidates].astype(np.float64) / 2
        exposure[start : start + candidates] = plackett_luce_propensities(logits, PLACES) @ theta
        order = np.argsort(-(logits + rng.gumbel(size=candidates)))[:PLACES]
        position[start + order] = np.arange(PLACES)
    looked = (position >= 0) & (rng.random(n) < np.where(position >= 0, theta[position], 0))
    click = looked & (rng.random(n) < pctr)
    conversion = click & (rng.random(n) < pcvr)
    log = ReplayLog(
        offsets=np.arange(0, n + 1, candidates),
        request_id=np.arange(requests),
        timestamp=begin + np.arange(requests),
        user=rng.integers(0, requests // REQUESTS_A_USER, requests),
        parts=parts,
        item=rng.integers(0, 2000, n),
        position=position,
        click=click.astype(np.int8),
        conversion=conversion.astype(np.int8),
        value=np.where(conversion, rng.gamma(2, 5, n), 0).astype(np.float32),
        mature=np.ones(requests, bool),
        new=rng.random(n) < 0.2,
        exposure_propensity=exposure,
        logged_score=score,
        examination=theta,
        exploration=("plackett_luce",),
        window=(begin, begin + requests),
    )
    return log, parts


def whole_tune(requests: int, candidates: int, trials: int) -> dict:
    """From two logs to the study and its page: search, intervals, details, report."""
    from ranking.report.replay import render

    log, parts = generated_log(requests, candidates, 0, 0)
    later, _ = generated_log(requests, candidates, 1, requests)
    production = FusionWeights.fit(parts, "product", {"similarity": 0.1, "pctr": 1.0, "pcvr": 0.1}, "generated")
    small = log.take(np.arange(min(requests, 2500)))
    tune(small, later, production=production, trials=16, minimum_groups=1)  # compiles
    start, wall = time.process_time(), time.perf_counter()
    study = tune(log, later, production=production, trials=trials, minimum_groups=1000)
    searched = time.process_time() - start
    page = render(study)
    row = {"rows": requests * candidates, "trials": trials, "seconds": time.process_time() - start}
    row |= {"without_report": searched, "wall": time.perf_counter() - wall, "page_bytes": len(page.encode())}
    return {**row, "verdict": study.verdict}


def verdicts(summary: dict) -> list[dict]:
    found = [
        {"what": f"{row['class']}, {row['rows'] / 1e6:g} M rows: CPU s", "value": row["seconds"], "limit": row["limit"]}
        for row in summary["classes"]
    ]
    boot, whole = summary["bootstrap"], summary["tune"]
    small = boot["requests"] < 10_000  # there the resamples outgrow the scores
    for what, value, limit in (
        ("bootstrap: CPU s", boot["seconds"], "bootstrap"),
        *([] if small else [("evaluation: peak memory, times the scores", boot["peak_of_scores"], "memory")]),
        ("tune, intervals and report: CPU s", whole["seconds"], "tune"),
        *((f"agreement with {row['who']}", row["apart"], "agree") for row in summary["rivals"]),
    ):
        found.append({"what": what, "value": value, "limit": LIMITS[limit]})
    return [{**row, "met": row["value"] <= row["limit"]} for row in found]


def show(console: Console, summary: dict) -> None:
    columns = ("class", "M rows", "settings", "CPU s", "target", "GFLOP", "Gcmp", "scoring", "ratio")
    table = Table(*columns, title="Totals of all outputs, one core")
    for row in summary["classes"]:
        numbers = (f"{row['seconds']:.2f}", f"{row['limit']:.1f}", f"{row['gflop']:.1f}", f"{row['gcompares']:.1f}")
        tail = (f"{row['ceiling']:.2f}", f"{row['times_ceiling']:.1f}")
        table.add_row(row["class"], f"{row['rows'] / 1e6:g}", f"{row['settings']:,}", *numbers, *tail)
    console.print(table)
    table = Table("who", "settings run", "CPU s of 1,000", "times ours", "apart", title="The same numbers by sorting")
    for row in summary["rivals"]:
        ratio = (f"{row['seconds_of_1000']:.0f}", f"{row['times_ours']:.0f}", f"{row['apart']:.1e}")
        table.add_row(row["who"], str(row["settings"]), *ratio)
    console.print(table)
    boot, whole = summary["bootstrap"], summary["tune"]
    console.print(
        f"Bootstrap, {boot['replicates']} resamples of {boot['settings']:,} settings, {boot['requests']:,} requests, "
        f"three objectives: {boot['seconds']:.2f} CPU s; with the passes over the log {boot['with_passes']:.2f}. Peak "
        f"memory {boot['peak_of_scores']:.2f} times the scores, {boot['result_of_scores']:.2f} of it the resamples."
    )
    console.print(
        f"Tune, {whole['trials']:,} settings on {whole['rows']:,} rows a window, with intervals, details and report: "
        f"{whole['seconds']:.1f} CPU s ({whole['without_report']:.1f} without the report), {whole['wall']:.1f} s."
    )
    missed = [row for row in summary["verdicts"] if not row["met"]]
    console.print(f"{len(summary['verdicts']) - len(missed)} of {len(summary['verdicts'])} targets met")
    for row in missed:
        console.print(f"missed: {row['what']} {row['value']:.3g}, target {row['limit']:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 rows, 256 settings, a short tune")
    parser.add_argument("--output", type=Path, help="where to write the numbers as JSON")
    args = parser.parse_args()
    sizes = [1_000] if args.quick else [10_000, 30_000, 100_000]
    settings = chosen(256 if args.quick else 1000)
    summary: dict = {
        "about": {
            "machine": platform.processor() or platform.machine(),
            **{name: version(name) for name in ("numpy", "numba", "pandas", "optuna")},
        },
        "classes": [],
    }
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    with threadpoolctl.threadpool_limits(1):
        for requests in sizes:
            sums = generated(requests)
            summary["classes"] += classes(sums, settings, 1 if requests > 30_000 else 3)
            if requests == sizes[0]:
                summary["rivals"] = rivals(sums, settings, 8)
                summary["bootstrap"] = bootstrap(sums, settings)
        os.sched_setaffinity(0, cores)
        summary["tune"] = whole_tune(*((3_000, 30, 200) if args.quick else (10_000, CANDIDATES, 2000)))
    summary["verdicts"] = verdicts(summary)
    show(Console(), summary)
    if args.output:
        args.output.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
