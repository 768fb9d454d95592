"""How much of what can be known is learned: a run judged against the simulator's truth.

The share of a head is (L(base rate) - L(model)) / (L(base rate) - L(truth)) with L the log loss on the test window:
0 knows only the rate, 1 knows everything. `click` and `ctcvr` are judged on the labels; `pcvr` is the conversion head
over the entire space: judged on the true probability of every impression, clicked or not. Standard errors by a
bootstrap over users, paired between models.

    python benchmarks/reference_world.py --work /tmp/reference --json reference.json
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ranking.progress import quiet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the dataset and the runs; reused if there")
    parser.add_argument("--world", default="reference")
    parser.add_argument("--shuffled", action="store_true", help="also train on permuted labels: AUC should be 0.50")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    quiet()
    from rich.console import Console

    from ranking.data.simulator import load_world, simulate
    from ranking.data.tables import Dataset
    from ranking.evaluation import evaluate_run
    from ranking.fit import fit_run
    from ranking.progress import Bars
    from ranking.run import load_run

    figures = {}
    with Bars(Console(stderr=True)) as bars:
        for kind in ["true"] + ["shuffled"] * arguments.shuffled:
            data, out = arguments.work / f"{kind}_data", arguments.work / f"{kind}_run"
            started = time.perf_counter()
            if not data.exists():
                simulate(load_world(arguments.world), data, shuffle_labels=kind == "shuffled", progress=bars)
            dataset = Dataset(data)
            if not out.exists():
                fit_run(dataset, out, baselines=True, progress=bars)
            run = load_run(out)
            if kind == "true":
                figures |= shares(run, dataset)
            found = evaluate_run(run, dataset, replicates=100, progress=bars)
            figures[kind] = {
                "auc": {head: values["auc"] for head, values in found["models"]["seedrank"].items()},
                "auc_se": {head: values["auc_se"] for head, values in found["models"]["seedrank"].items()},
                "similarity": found["similarity"],
                "differences": [d for d in found["differences"] if d["from"] == "no_similarity"],
                "seconds": time.perf_counter() - started,
            }
    heads = ("click", "ctcvr", "pcvr")
    print(f"{'share closed':<15}" + "".join(f"{head:>14}{'s.e.':>8}" for head in heads))
    for model, row in figures["shares"].items():
        print(f"{model:<15}" + "".join(f"{row[head]:>14.3f}{row[head + '_se']:>8.3f}" for head in heads))
    gain = figures["seedrank_minus_base"]
    for head in heads:
        print(f"seedrank - base, {head}: {gain[head]:+.3f}, s.e. {gain[head + '_se']:.3f}")
    if arguments.shuffled:
        print("shuffled labels, AUC:", {h: round(v, 4) for h, v in figures["shuffled"]["auc"].items()})
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def shares(run, dataset) -> dict:
    """The share of the log-loss gap that each model closes on the test window."""
    from ranking.evaluation import frozen_rows
    from ranking.metrics import log_losses
    from ranking.timeline import Timeline

    timeline = Timeline(dataset)
    rows = frozen_rows(run, timeline, "test")
    truth = pd.read_parquet(dataset.path / "truth" / "impressions.parquet").iloc[rows.row]
    click = (truth["examination"] * truth["pctr"]).to_numpy(np.float64)
    pcvr = truth["pcvr"].to_numpy(np.float64)
    labels = {"click": rows.click, "ctcvr": rows.conversion, "pcvr": pcvr}
    true = {"click": click, "ctcvr": click * pcvr, "pcvr": pcvr}
    past = timeline.rows_in("train")
    rate = {
        "click": timeline.impressions["click"].to_numpy()[past].mean(),
        "ctcvr": timeline.impressions["conversion"].to_numpy()[past].mean(),
    }
    rate["pcvr"] = rate["ctcvr"] / rate["click"]
    item_row = run.state.rows("item", timeline.impressions["item_id"].iloc[rows.row])
    predicted = {
        variant: [run.predict(rows.features, variant, number, position=True) for number in range(len(models))]
        for variant, models in run.models.items()
    }
    predicted["popularity"] = [run.popularity.predict(item_row)]
    predicted["logistic"] = [run.logistic.predict(rows.features, run.features(similarity=False))]
    part = {"click": "pctr", "ctcvr": "pctcvr", "pcvr": "pcvr"}

    users, index = np.unique(timeline.user[rows.row], return_inverse=True)

    def by_user(values: np.ndarray) -> np.ndarray:
        return np.bincount(index, values, minlength=len(users))

    def log_loss(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
        return label * log_losses(np.ones(len(label)), probability) + (1 - label) * log_losses(
            np.zeros(len(label)), probability
        )

    losses = {}
    for head, label in labels.items():
        losses[head] = {
            "truth": by_user(log_loss(label, true[head])),
            "base rate": by_user(log_loss(label, np.full(len(label), rate[head]))),
        }
        for model, seeds in predicted.items():
            losses[head][model] = by_user(np.mean([log_loss(label, found[part[head]]) for found in seeds], axis=0))
    generator = np.random.default_rng(0)
    draws = generator.multinomial(len(users), np.full(len(users), 1 / len(users)), size=1000)
    draws = np.vstack([np.ones(len(users)), draws])  # the first is the log as it is
    found: dict = {"shares": {model: {} for model in predicted}, "seedrank_minus_base": {}}
    for head, parts in losses.items():
        totals = {name: draws @ values for name, values in parts.items()}
        gap = totals["base rate"] - totals["truth"]
        share = {model: (totals["base rate"] - totals[model]) / gap for model in predicted}
        for model, values in share.items():
            found["shares"][model] |= {head: values[0], f"{head}_se": values[1:].std(ddof=1)}
        difference = share["seedrank"] - share["base"]
        found["seedrank_minus_base"] |= {head: difference[0], f"{head}_se": difference[1:].std(ddof=1)}
    return found


if __name__ == "__main__":
    main()
