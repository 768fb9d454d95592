"""RALM beside what it has to beat, and RALM's switches one at a time, on one dataset.

Everything is fitted on the look-alike window and frozen at its end; judged are the impressions of the next window
whose item has seeds, without users who are among them. Every number is the mean over the random seeds; the switches are
compared with RALM of the same random seeds, so that `difference` is paired. Each finished row is kept in the work
folder: an interrupted run goes on where it was.

    python benchmarks/ablation_ralm.py --data slice --label conversion --group item --work work/slice
    python benchmarks/ablation_ralm.py --data reference --work work/reference

Columns: AUC on all rows; GAUC within an item (which users like it) and within a user (which items he likes); prec@10
and prec@50 over the groups of --group; then the ten best items for each of some users out of all that have seeds:
category and tag richness, coverage and Gini of the catalogue (lower is more even), the share outside the head 20 %.
"""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ranking.progress import quiet

SWITCHES = {  # what differs from RALM: settings of the look-alike stages
    "RALM": {},
    "RALM, average": {"attention": "average", "size_bias": True},
    "concat merge": {"merge": "concat"},
    "logQ correction": {"correct_sampling": True},
    "hits removed": {"remove_hits": True},
    "ReLU": {"activation": "relu"},
    "no dropout": {"dropout": 0.0},
    "multi-class": {"loss": "multiclass"},
    "learned temperature": {"attention": "tempered"},
    "no tanh": {"attention": "linear"},
    "size bias": {"size_bias": True},
    "learned alpha": {"alpha": "learned"},
    "k = 5": {"k": 5},
    "k = 10": {"k": 10},
    "k = 50": {"k": 50},
    "k = 100": {"k": 100},
    "k = 20, served at 100": {"served": 100},
}
FIRST_STAGE = ("merge", "correct_sampling", "remove_hits")
LISTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished rows")
    parser.add_argument("--window", default="train", help="window that is judged; the look-alike window ends before it")
    parser.add_argument("--label", default="click", choices=["click", "conversion"], help="what the seeds did")
    parser.add_argument("--group", default="user", choices=["user", "item"], help="whose best rows prec@K looks at")
    parser.add_argument("--category", default="item_category", help="item feature, of several values the first counts")
    parser.add_argument("--tags", default="item_tags", help="item feature")
    parser.add_argument("--seeds", type=int, default=3, help="random seeds")
    parser.add_argument("--users", type=int, default=1000, help="users whose ten best items are looked at")
    parser.add_argument("--samples", type=int, default=100_000, help="labelled samples of the look-alike stage")
    parser.add_argument("--epochs", type=int, default=2, help="passes of the look-alike stage")
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: all cores")
    parser.add_argument("--only", help="comma separated rows")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to write the plot over k, an HTML page")
    arguments = parser.parse_args()
    quiet()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.threads:
        import tensorflow as tf
        import threadpoolctl

        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
        threadpoolctl.threadpool_limits(arguments.threads)
    task = Task(arguments)
    only = arguments.only.split(",") if arguments.only else None
    for name in BASELINES:
        if only is None or name in only:
            task.finish(name, 0, lambda name=name: BASELINES[name](task))
    for seed in range(arguments.seeds):
        if only is None or "YouTube DNN" in only:
            task.finish("YouTube DNN", seed, lambda seed=seed: task.youtube(seed))
        for name, switches in SWITCHES.items():
            if only is None or name in only:
                task.finish(name, seed, lambda seed=seed, switches=switches: task.ralm(seed, dict(switches)))
    report(task, arguments)


class Task:
    """The dataset as every model sees it, and what is measured of a model."""

    def __init__(self, arguments):
        from ranking.data.tables import Dataset
        from ranking.features import Encoder
        from ranking.lookalike_samples import Seeds
        from ranking.timeline import Timeline

        self.arguments = arguments
        self.timeline = timeline = Timeline(Dataset(arguments.data))
        self.end = timeline.window("lookalike")[1]
        self.encoder = Encoder.fit(timeline, before=self.end, rank_by_seeds=True)
        self.seeds = Seeds(timeline)
        rows = timeline.some_rows_in(arguments.window)
        user, item = timeline.user[rows], timeline.item[rows]
        nothing = np.zeros(len(self.seeds.users), np.int32)
        kept = self.seeds.enough[item] & (self.seeds.own(item, user, nothing) < 0)
        self.user, self.item = user[kept], item[kept]
        self.label = timeline.impressions[arguments.label].to_numpy()[rows[kept]]
        # The ten best of every item with seeds, for some of the users; what they are seeds of is left out.
        generator = np.random.default_rng(0)
        everyone = np.unique(self.user)
        self.some = np.sort(generator.choice(everyone, min(arguments.users, len(everyone)), replace=False))
        self.catalogue = np.flatnonzero(self.seeds.enough)
        self.grid = np.repeat(self.some, len(self.catalogue)), np.tile(self.catalogue, len(self.some))
        self.liked = self.seeds.own(self.grid[1], self.grid[0], nothing) >= 0
        items = self.encoder.static(timeline, "item")
        category = items[arguments.category]
        self.category = (category[:, 0] if category.ndim == 2 else category)[self.catalogue]
        self.tags = items[arguments.tags][self.catalogue]
        self.attributes = {name: values[:-1] for name, values in items.items() if name != "item_id"}
        self.profile = {name: values[:-1] for name, values in self.encoder.profile(timeline).items()}
        everybody = np.arange(len(timeline.user_ids))
        behaviors = self.encoder.behavior(timeline, everybody, np.full(len(everybody), self.end), None)
        self.with_history = self.profile | behaviors
        self._models: dict = {}

    def finish(self, name: str, seed: int, make) -> None:
        """Fits and measures a row, unless that was done before."""
        path = self.arguments.work / f"{name.replace(' ', '_').replace(',', '')}-{seed}.json"
        if path.exists():
            return
        began = time.process_time()
        score, extra = make()
        found = {"name": name, "seed": seed, **extra, **self.measure(score), "cpu_s": time.process_time() - began}
        path.with_suffix(".part").write_text(json.dumps(found))
        path.with_suffix(".part").rename(path)
        print(f"{name:<24} seed {seed}: AUC {found['auc']:.4f}, {found['cpu_s']:.0f} CPU s", flush=True)

    def measure(self, score) -> dict:
        from ranking.diversity import coverage, gini, impressions, long_tail_share, richness
        from ranking.metrics import auc, gauc, precision_at

        values = score(self.user, self.item)
        group = self.item if self.arguments.group == "item" else self.user
        width = len(self.catalogue)
        lists = np.empty((len(self.some), LISTS), np.int64)
        for start in range(0, len(self.some), 250):  # the grid in pieces: millions of pairs
            piece = slice(start * width, (start + 250) * width)
            if hasattr(score, "matrix"):
                found = score.matrix(self.some[start : start + 250]).astype(np.float64)
            else:
                found = score(self.grid[0][piece], self.grid[1][piece]).astype(np.float64).reshape(-1, width)
            found[self.liked[piece].reshape(-1, width)] = -np.inf
            lists[start : start + 250] = np.argsort(-found, axis=1, kind="stable")[:, :LISTS]
        return {
            "auc": auc(self.label, values),
            "gauc_item": gauc(self.label, values, self.item),
            "gauc_user": gauc(self.label, values, self.user),
            "precision_10": precision_at(self.label, values, group, 10),
            "precision_50": precision_at(self.label, values, group, 50),
            "categories": richness(lists, self.category),
            "tags": richness(lists, self.tags),
            "coverage": coverage(lists, width),
            "gini": gini(impressions(lists, width)),
            "long_tail": long_tail_share(lists, self.seeds.counts[self.catalogue]),
        }

    def settings(self, **switches):
        from ranking.lookalike_settings import LookalikeSettings

        arguments = self.arguments
        return LookalikeSettings(samples=arguments.samples, epochs=arguments.epochs, **switches)

    def next_item(self, seed: int, **switches):
        """The first stage; fits of one random seed serve all that share its switches."""
        from ranking.lookalike_training import train_next_item

        key = seed, tuple(sorted(switches.items()))
        if key not in self._models:
            self._models = {other: model for other, model in self._models.items() if other[0] == seed}
            settings = self.settings(**switches)
            self._models[key] = train_next_item(self.timeline, self.encoder, settings, seed=seed)
        return self._models[key]

    def vectors(self, model) -> np.ndarray:
        """Everybody as of the end of the look-alike window."""
        from ranking.batches import tf_function
        from ranking.lookalike_training import representation_of
        from ranking.state import in_batches

        return in_batches(tf_function(representation_of(model)), self.with_history)

    def youtube(self, seed: int):
        """User vector times item vector, both of the network that concatenates the fields."""
        model, info = self.next_item(seed, merge="concat")
        users = self.vectors(model)
        table = model.get_layer("candidate_logits").item_table.embeddings.numpy()
        items = table[self.encoder.vocabularies["item"].encode(self.timeline.item_ids)]

        def score(user, item):
            found = np.empty(len(user), np.float32)
            for start in range(0, len(user), 1 << 18):
                piece = slice(start, start + (1 << 18))
                found[piece] = np.einsum("nd,nd->n", users[user[piece]], items[item[piece]])
            return found

        return score, {"next_item_auc": info["auc"][-1]}

    def ralm(self, seed: int, switches: dict):
        from lookalike.clustering import cluster
        from lookalike.scorer import Scorer
        from ranking.lookalike_training import representation_of, train_lookalike
        from ranking.state import LLOYD_ITERATIONS, in_batches, similarity_of

        served = switches.pop("served", None)
        first = {name: switches[name] for name in FIRST_STAGE if name in switches}
        model, info = self.next_item(seed, **first)
        settings = self.settings(**switches)
        lookalike, second = train_lookalike(self.timeline, self.encoder, representation_of(model), settings, seed=seed)
        vectors = self.vectors(model)
        transformed = in_batches(lambda batch: lookalike.transform(batch["user"]), {"user": vectors})
        k = served or settings.k or self.timeline.schema.k
        found = cluster(transformed[self.seeds.users], self.seeds.offsets, k, iterations=LLOYD_ITERATIONS, seed=seed)
        state = SimpleNamespace(user_vectors=vectors, centroids=found.centroids, centroid_counts=found.counts)

        def score(user, item):
            return similarity_of(lookalike, state, user, item)["similarity"]

        scorer = Scorer.of(lookalike)
        summary = scorer.summarize(found.centroids[self.catalogue], found.counts[self.catalogue])
        score.matrix = lambda user: scorer.similarity(vectors[user], summary)
        extra = {"next_item_auc": info["auc"][-1], "loss": second["loss"], "alpha": lookalike.global_share()}
        return score, extra


def popularity(task: Task):
    from lookalike.baselines import Popularity

    return Popularity.fit(task.seeds.offsets, task.seeds.users, len(task.timeline.user_ids)).score, {}


def profile_match(task: Task):
    from lookalike.baselines import ProfileMatch

    return ProfileMatch.fit(task.seeds.offsets, task.seeds.users, task.profile).score, {}


def logistic(task: Task):
    from lookalike.regression import LogisticPairs
    from ranking.lookalike_samples import lookalike_samples

    shown = lookalike_samples(task.timeline)
    return LogisticPairs.fit(shown.user, shown.item, shown.label, task.profile, task.attributes).score, {}


def classifier(task: Task):
    from lookalike.regression import Classifier

    return Classifier.fit(task.seeds.offsets, task.seeds.users, task.with_history).score, {}


def yahoo(task: Task):
    from lookalike.hashing import HashedNeighbors

    return HashedNeighbors.fit(task.seeds.offsets, task.seeds.users, task.with_history, rows=3).score, {}


def propagation(task: Task):
    from lookalike.graph import LabelPropagation

    user, item, time_, _ = task.timeline.seed_events()
    early = time_ < task.end
    population = len(task.timeline.user_ids)
    return LabelPropagation.fit(task.seeds.offsets, task.seeds.users, (user[early], item[early]), population).score, {}


def user_rate(task: Task):
    """Not a look-alike: how often the user liked what he was shown, whatever it was."""
    from ranking.lookalike_samples import lookalike_samples

    shown = lookalike_samples(task.timeline)
    users, prior = len(task.timeline.user_ids), 5.0
    liked, total = (np.bincount(shown.user, weights, users) for weights in (shown.label, np.ones(len(shown.user))))
    rate = (liked + prior * shown.label.mean()) / (total + prior)
    return lambda user, item: rate[user], {}


def average(task: Task):
    from lookalike.baselines import AverageEmbedding

    vectors = task.vectors(task.next_item(0)[0])
    return AverageEmbedding.fit(task.seeds.offsets, task.seeds.users, vectors).score, {}


BASELINES = {
    "popularity": popularity,
    "user's rate alone": user_rate,
    "profile-tag match": profile_match,
    "logistic regression": logistic,
    "classifier a list": classifier,
    "LSH (Yahoo)": yahoo,
    "label propagation": propagation,
    "average, not learned": average,
}
COLUMNS = {
    "auc": "AUC",
    "difference": "- RALM",
    "se": "s.e.",
    "gauc_item": "GAUC item",
    "gauc_user": "GAUC user",
    "precision_10": "prec@10",
    "precision_50": "prec@50",
    "categories": "categories",
    "tags": "tags",
    "coverage": "coverage",
    "gini": "Gini",
    "long_tail": "long tail",
}


def report(task: Task, arguments) -> None:
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(arguments.work.glob("*.json")):
        row = json.loads(path.read_text())
        found.setdefault(row["name"], {})[row["seed"]] = row
    base = {seed: row["auc"] for seed, row in found.get("RALM", {}).items()}
    table = []
    for name in [*BASELINES, "YouTube DNN", *SWITCHES]:
        if name not in found:
            continue
        rows = found[name]
        means = {
            key: float(np.mean([row[key] for row in rows.values()]))
            for key in (*COLUMNS, "next_item_auc")
            if all(key in row for row in rows.values())
        }
        gaps = [rows.get(seed, rows[0])["auc"] - value for seed, value in base.items() if name != "RALM"]
        if gaps:
            means["difference"] = float(np.mean(gaps))
            if len(gaps) > 1:
                means["se"] = float(np.std(gaps, ddof=1) / len(gaps) ** 0.5)
        table.append({"name": name, "seeds": len(rows), **means})
    rows, positives = len(task.label), task.label.mean()
    print(
        f"\n{rows:,} rows, {positives:.3f} positive, {len(task.catalogue):,} items with seeds, label {arguments.label}"
    )
    print(f"{'':<24}" + "".join(f"{title:>11}" for title in COLUMNS.values()) + f"{'next item':>11}")
    for row in table:
        cells = [f"{row[key]:>11.4f}" if key in row else f"{'':>11}" for key in (*COLUMNS, "next_item_auc")]
        print(f"{row['name']:<24}" + "".join(cells))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "rate": positives, "table": table}, indent=1) + "\n")
    if arguments.plot:
        plot(found, arguments.plot)


def plot(found: dict[str, dict[int, dict]], path: Path) -> None:
    """AUC and prec@10 against k, with the spread over random seeds."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    names = {5: "k = 5", 10: "k = 10", 20: "RALM", 50: "k = 50", 100: "k = 100"}
    figure = make_subplots(1, 3, subplot_titles=["AUC", "GAUC within an item", "prec@10"], horizontal_spacing=0.08)
    for place, key in enumerate(("auc", "gauc_item", "precision_10"), start=1):
        values = {k: [row[key] for row in found[name].values()] for k, name in names.items() if name in found}
        figure.add_trace(
            go.Scatter(
                x=list(values),
                y=[float(np.mean(v)) for v in values.values()],
                error_y={"type": "data", "array": [float(np.std(v, ddof=1) / len(v) ** 0.5) for v in values.values()]},
                mode="lines+markers",
                line={"color": "#2457a6"},
            ),
            1,
            place,
        )
        figure.update_xaxes(type="log", tickvals=list(values), title="k, centroids an item", row=1, col=place)
    figure.update_layout(template="plotly_white", showlegend=False, height=380, margin={"t": 40})
    figure.write_html(path, include_plotlyjs=True)


if __name__ == "__main__":
    main()
