"""Where the similarity helps: with it and without it, on a weak base and on a strong one.

Bases: weak = ids and profile; strong = all inputs, point-in-time statistics and behaviours among them. Each is fitted
without the similarity, with the item's seed count alone, and with both; the differences are paired by user and random
seed, overall and by how often an item had been shown and how old it was at the watermark. Then each model picks the ten
best items of all for some users: how rich and how even is what it shows?

    seedrank train --data data --out run --refit
    python benchmarks/similarity_value.py --run run --data data
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ranking.progress import quiet

VARIANTS = {  # inputs beside the base's own
    "without": (),
    "seed count": ("has_similarity", "log_seed_count"),
    "similarity": ("has_similarity", "log_seed_count", "similarity"),
}
SHOWN = {
    "never shown": (0, 1),
    "shown 1-9": (1, 10),
    "10-49": (10, 50),
    "50-199": (50, 200),
    "200 or more": (200, 1e12),
}
AGE = {"first seen < 1 day": (-1e9, 1), "1-3 days": (1, 3), "3 days or more": (3, 1e9)}
DAY = 86_400_000
LISTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="random seeds of each model")
    parser.add_argument("--replicates", type=int, default=200, help="of the bootstrap over users")
    parser.add_argument("--users", type=int, default=150, help="users whose ten best items are looked at")
    parser.add_argument("--category", default="item_category")
    parser.add_argument("--tags", default="item_tags")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    quiet()
    from rich.console import Console

    from ranking.data.tables import Dataset
    from ranking.evaluation import frozen_rows
    from ranking.progress import Bars
    from ranking.rows import training_rows
    from ranking.run import load_run
    from ranking.timeline import Timeline

    with Bars(Console(stderr=True)) as bars:
        run = load_run(arguments.run)
        timeline = Timeline(Dataset(arguments.data))
        windows = ("train", "calibrate", "tune") if run.info["refit"] else ("train",)
        rows = training_rows(run.builder(timeline), *windows, progress=bars)
        test = frozen_rows(run, timeline, "test")
        models = fit(run, rows, arguments.seeds, bars)
        found = {"rows": len(test.row), "segments": differences(run, timeline, test, models, arguments.replicates)}
        found["rankings"] = rankings(run, timeline, test, models, arguments, bars)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def fit(run, rows, seeds: int, progress) -> dict:
    """(base, variant) -> one model a random seed, trained as the run's own was."""
    import dataclasses

    from ranking.fit import settings_of
    from ranking.training import train_esmm

    scaled = dataclasses.replace(rows, features=run.scales.apply(rows.features))
    settings, schedule = settings_of(run).esmm, run.info["stages"]["esmm"]["epochs"]
    strong = run.features(similarity=False)
    bases = {"weak": [f for f in strong if f.name in ("user_id", "item_id") or f.name.startswith("user_")]}
    bases["strong"] = list(strong)
    extra = {feature.name: feature for feature in run.features() if feature not in strong}
    models: dict = {}
    for base, features in bases.items():
        for variant, names in VARIANTS.items():
            wanted = [*features, *(extra[name] for name in names)]
            for seed in range(seeds):
                stage = f"{base}, {variant}, random seed {seed}"
                model, _ = train_esmm(
                    scaled, wanted, settings, schedule=schedule, seed=seed, progress=progress, stage=stage
                )
                models.setdefault((base, variant), []).append(model)
    return models


def predict(run, model, features: dict, *, position: bool) -> dict:
    arrays = run.scales.apply(features)
    inputs = {tensor.name: arrays.get(tensor.name) for tensor in model.inputs}
    if "position" in inputs and not position:
        inputs["position"] = np.zeros(len(features["user_id"]), np.int32)
    return model.predict(inputs, batch_size=8192, verbose=0)


def segments(run, timeline, test) -> dict[str, np.ndarray]:
    """Name -> which test rows; by impressions and by age at the watermark."""
    frame = timeline.impressions.iloc[test.row]
    item_row = run.state.rows("item", frame["item_id"])
    shown = np.append(run.impressions, 0)[item_row]
    item = timeline.item[test.row]
    first = np.full(len(timeline.item_ids), np.iinfo(np.int64).max)
    np.minimum.at(first, timeline.item, timeline.time)
    table = timeline.static("item")
    if "born" in table:
        born = table["born"].to_numpy(np.float64, na_value=np.nan)
        first = np.where(np.isfinite(born), born, first)
    days = (run.state.tick - first[item]) / DAY
    chosen = {"all": np.ones(len(item), bool)}
    chosen |= {name: (shown >= low) & (shown < high) for name, (low, high) in SHOWN.items()}
    chosen |= {name: (days >= low) & (days < high) for name, (low, high) in AGE.items()}
    return {name: mask for name, mask in chosen.items() if mask.any()}


def differences(run, timeline, test, models: dict, replicates: int) -> list[dict]:
    """AUC of each variant minus that of "without", paired; one row a base, variant, head and segment."""
    from ranking.bootstrap import AUC, user_bootstrap

    chosen = segments(run, timeline, test)
    columns: dict = {"click": test.click, "conversion": test.conversion}
    statistics, pairs = {}, {}
    parts: dict = {}
    heads = {"click": ("click", "pctr", np.ones(len(test.row), bool)), "ctcvr": ("conversion", "pctcvr", test.mature)}
    for (base, variant), fitted in models.items():
        for number, model in enumerate(fitted):
            found = predict(run, model, test.features, position=True)
            for head, (_, output, _) in heads.items():
                columns[f"{base}/{variant}/{head}/{number}"] = found[output].astype(np.float64)
    for segment, mask in chosen.items():
        for head, (label, _, usable) in heads.items():
            where = f"{segment}/{head}"
            columns[where] = mask & usable
            for base, variant in models:
                name = f"{base}/{variant}/{head}/{segment}"
                seeds = range(len(models[base, variant]))
                parts[name] = [AUC(label, f"{base}/{variant}/{head}/{number}", where=where) for number in seeds]
                for number, part in enumerate(parts[name]):
                    statistics[f"{name}/{number}"] = part
                    if variant != "without":
                        other = f"{base}/without/{head}/{segment}/{number}"
                        pairs[f"{name}/{number}/difference"] = (f"{name}/{number}", other)
    drawn = user_bootstrap(
        timeline.user[test.row], columns, statistics, differences=pairs, replicates=replicates, seed=0
    )
    rows = []
    for name, seeds in parts.items():
        base, variant, head, segment = name.split("/")
        row = {"base": base, "variant": variant, "head": head, "items": segment}
        row |= {"rows": int(columns[f"{segment}/{head}"].sum())}
        row["auc"] = float(np.mean([drawn.estimate[f"{name}/{number}"] for number in range(len(seeds))]))
        if variant != "without":
            keys = [f"{name}/{number}/difference" for number in range(len(seeds))]
            gaps = [drawn.estimate[key] for key in keys]
            over_users = np.nanstd(np.mean([drawn.draws[key] for key in keys], axis=0), ddof=1)
            # Other users, and other random seeds: both could have been drawn otherwise.
            over_seeds = np.std(gaps, ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
            row |= {"difference": float(np.mean(gaps)), "se": float(np.hypot(over_users, over_seeds))}
        rows.append(row)
    return rows


def rankings(run, timeline, test, models: dict, arguments, progress) -> list[dict]:
    """What the ten best of all items look like, by pctr times pcvr, for some users of the test window."""
    from ranking.diversity import coverage, gini, impressions, long_tail_share, richness
    from ranking.state import similarity_of

    state, generator = run.state, np.random.default_rng(0)
    places = generator.permutation(len(test.row))
    users = state.rows("user", timeline.impressions["user_id"].iloc[test.row])
    _, first = np.unique(users[places], return_index=True)
    chosen = np.sort(generator.choice(places[first], min(arguments.users, len(first)), replace=False))
    items = np.arange(len(state.item_ids))
    category = state.items[arguments.category]
    category = (category[:, 0] if category.ndim == 2 else category)[:-1]
    lists: dict = {key: [] for key in models}
    for done, place in enumerate(chosen):
        user = np.full(len(items), users[place])
        context = {
            name: np.repeat(values[place : place + 1], len(items), axis=0)
            for name, values in test.features.items()
            if name.startswith("context_")
        }
        features = state.features(user, items, context) | similarity_of(run.lookalike, state, user, items)
        for key, fitted in models.items():
            found = predict(run, fitted[0], features, position=False)
            lists[key].append(np.argsort(-found["pctcvr"], kind="stable")[:LISTS])
        progress("lists", done + 1, len(chosen))
    rows = []
    for (base, variant), found in lists.items():
        best = np.array(found)
        rows.append(
            {
                "base": base,
                "variant": variant,
                "categories": richness(best, category),
                "tags": richness(best, state.items[arguments.tags][:-1]),
                "coverage": coverage(best, len(items)),
                "gini": gini(impressions(best, len(items))),
                "long_tail": long_tail_share(best, run.impressions),
            }
        )
    return rows


def show(found: dict) -> None:
    print(f"\n{found['rows']:,} test rows; AUC minus that without the similarity (s.e.)")
    for head in ("click", "ctcvr"):
        print(f"\n{head:<22}{'rows':>9}", end="")
        for base in ("weak", "strong"):
            print(f"{base:>9}" + "".join(f"{'+ ' + variant:>19}" for variant in list(VARIANTS)[1:]), end="")
        print()
        for segment in ("all", *SHOWN, *AGE):
            of = {
                (row["base"], row["variant"]): row
                for row in found["segments"]
                if row["head"] == head and row["items"] == segment
            }
            if not of:
                continue
            print(f"{segment:<22}{of['weak', 'without']['rows']:>9,}", end="")
            for base in ("weak", "strong"):
                print(f"{of[base, 'without']['auc']:>9.4f}", end="")
                for variant in list(VARIANTS)[1:]:
                    row = of[base, variant]
                    print(f"{row['difference']:>+11.4f} ({row['se']:.4f})".replace("(0.", "(."), end="")
            print()
    print(f"\n{'ten best of all items':<24}{'categories':>11}{'tags':>9}{'coverage':>10}{'Gini':>9}{'long tail':>11}")
    for row in found["rankings"]:
        name = f"{row['base']}, {row['variant']}"
        print(
            f"{name:<24}{row['categories']:>11.2f}{row['tags']:>9.2f}{row['coverage']:>10.4f}{row['gini']:>9.4f}"
            f"{row['long_tail']:>11.4f}"
        )


if __name__ == "__main__":
    main()
