"""The network that serving is measured with, exported as it is served and plainly, and what its arithmetic must take.

python benchmarks/serving_model.py [--items 10000] [--users 100000] [--threads 1] [--rounds 15] [--sharing embedding]

Random weights, no training: ESMM towers of 360-200-80, embeddings of 18, 30 feature fields, k = 20 centroids of 64 an
item. `split` is what `seedrank export` publishes; `plain` has the same look-ups, tables and signatures around the
ranker as Keras has it, where every row brings all of its user along. The floor is the matrix products of the split
network at the rate of one matrix product of each of its shapes, measured in this run, and the bytes that it must read
at the measured rate of a copy. All run one after the other, in rounds, in one process; CPU seconds are those of the
process, so that a busy machine changes them little.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

CANDIDATES = (1000, 5000)
TOWERS, DIM, K, HIDDEN, VECTOR = (360, 200, 80), 18, 20, 64, 128
STATISTICS, CROSSES = 5, 2  # of items, and of items and the user or the context: what enters a candidate
DATASET = """
schema_version = 1
[ids]
user = "int64"
item = "int64"
[windows]
train = ["2025-03-01", "2025-03-02"]
[features.user]
age = { kind = "categorical" }
city = { kind = "categorical" }
gender = { kind = "categorical" }
device = { kind = "categorical" }
interests = { kind = "multi" }
activity = { kind = "numeric" }
income = { kind = "numeric" }
[features.item]
category = { kind = "categorical" }
author = { kind = "categorical" }
brand = { kind = "categorical" }
tags = { kind = "multi" }
rating = { kind = "numeric" }
price = { kind = "numeric" }
[features.context]
tab = { kind = "categorical" }
hour = { kind = "categorical" }
network = { kind = "categorical" }
[features.behavior]
clicked = { vocabulary = "item", keep = 50 }
searched = { vocabulary = "own", keep = 20 }
[features.statistic]
item_ctr = { key = ["item_id"], event = "click" }
item_cvr = { key = ["item_id"], event = "conversion", per = "click" }
category_ctr = { key = ["category"], event = "click" }
author_ctr = { key = ["author"], event = "click" }
brand_ctr = { key = ["brand"], event = "click" }
item_tab_ctr = { key = ["item_id", "tab"], event = "click" }
user_category_ctr = { key = ["user_id", "category"], event = "click" }
[state]
k = 20
"""
SIZES = {
    "user_age": 10, "user_city": 300, "user_gender": 3, "user_device": 50, "user_interests": 200,
    "item_category": 100, "item_author": 3000, "item_brand": 500, "item_tags": 2000,
    "context_tab": 8, "context_hour": 24, "context_network": 4, "behavior_searched": 5000,
}  # fmt: skip
MULTI = {"user_interests": 5, "item_tags": 6, "behavior_clicked": 50, "behavior_searched": 20}


def random_run(
    items: int = 10_000,
    users: int = 100_000,
    *,
    dataset: str = DATASET,
    lookalike: dict[str, Any] | None = None,
    positions: int = 0,
    **architecture: Any,
) -> Any:
    """A run with random weights: ESMM has 30 inputs, the similarity's three among them.

    Args:
        items: int. Defaults to `10_000`.
        users: int. Defaults to `100_000`.
        dataset: str. A dataset.toml with the features of `DATASET`, and no others.
        lookalike: dict or `None`. Arguments of LookalikeModel beside the widths.
        positions: int. As in `build_esmm`. Defaults to `0`.
        **architecture: arguments of esmm.Architecture beside the widths.
    """
    from esmm import Architecture, Calibration, build_esmm
    from esmm.monotone import MonotoneMap
    from lookalike.representation import UserRepresentation, user_inputs
    from lookalike.similarity import LookalikeModel
    from ranking.data.schema import parse_schema
    from ranking.features import Encoder, Vocabulary
    from ranking.fusion import FusionWeights
    from ranking.model import esmm_features, representation_fields
    from ranking.run import Run, Scales

    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    schema = parse_schema(dataset)
    vocabularies = {"user_id": Vocabulary(pd.RangeIndex(users)), "item": Vocabulary(pd.RangeIndex(items))}
    for name, size in SIZES.items():
        vocabularies[name] = Vocabulary(pd.Index([f"v{number}" for number in range(size)]))
    numeric = ("user_activity", "user_income", "item_rating", "item_price")
    encoder = Encoder(vocabularies, {name: (0.0, 1.0, 0.5) for name in numeric}, 0)
    fields = representation_fields(schema, encoder)
    inputs = user_inputs(fields)
    representation = keras.Model(inputs, UserRepresentation(fields, dim=VECTOR)(inputs))
    similarity = LookalikeModel(VECTOR, HIDDEN, **(lookalike or {}))
    similarity.build()
    shape = Architecture(**{"embedding_dim": DIM, "towers": TOWERS, **architecture})
    esmm = build_esmm(esmm_features(schema, encoder), shape, base_rates=(0.08, 0.15), positions=positions)
    for variable in esmm.trainable_variables:  # the zeros too: biases, the wide part
        variable.assign_add(generator.normal(0, 0.02, variable.shape))
    knots = np.linspace(-6, 3, 9)
    calibration = Calibration(*(MonotoneMap(tuple(knots), tuple(a + knots + 0.1 * np.sin(knots))) for a in (0.1, -0.1)))
    statistics = {f"statistic_{statistic.name}": ([0.5, -2.0], [0.5, 0.5]) for statistic in schema.statistics}
    parts = {"similarity": 0.0, "pctr": -2.5, "pcvr": -1.9, "price": 3.0}
    weights = {"similarity": 0.2, "pctr": 1.0, "pcvr": 0.6, "price": 0.3}
    return Run(
        path=None,
        schema=schema,
        info={"parameters_hash": "", "embedding_space": "random"},
        lookalike_encoder=encoder,
        encoder=encoder,
        representation=representation,
        lookalike=similarity,
        models={"seedrank": [esmm]},
        calibrations={"seedrank": [calibration]},
        scales=Scales(statistics, (0.3, 0.2), (3.0, 1.5)),
        state=_state(items, users, vocabularies, similarity, generator),
        weights=FusionWeights("product", weights, parts, dict.fromkeys(parts, 0.5)),
        impressions=np.zeros(items, np.int64),
    )


def _state(items: int, users: int, vocabularies: dict[str, Any], lookalike: Any, generator: np.random.Generator) -> Any:
    """What is known of random users and items; every item has 20 centroids of users who resemble one another."""
    from ranking.state import State
    from ranking.statistics import StatisticTable

    def features(side: str, rows: int) -> dict[str, np.ndarray]:
        found = {f"{side}_id": np.append(np.arange(2, rows + 2), 1).astype(np.int32)}
        for name in (*SIZES, "behavior_clicked"):
            if name.startswith(side) or (side == "user" and name.startswith("behavior")):
                size = vocabularies["item" if name == "behavior_clicked" else name].size
                shape = (rows + 1, MULTI[name]) if name in MULTI else (rows + 1,)
                found[name] = generator.integers(0 if name in MULTI else 1, size, shape, dtype=np.int32)
        for name in {"user": ("activity", "income"), "item": ("rating", "price")}[side]:
            found[f"{side}_{name}"] = generator.random(rows + 1, np.float32)
        return found

    of_users, of_items = features("user", users), features("item", items)

    def values(rows: int) -> np.ndarray:
        return generator.normal([0.5, -2.0], [0.3, 0.5], (rows, 2)).astype(np.float32)

    names = ("item_ctr", "item_cvr", "category_ctr", "author_ctr", "brand_ctr")
    statistics = {name: StatisticTable("item", values(items + 1)) for name in names}
    for name, columns in {
        "item_tab_ctr": (("item_row", items + 1), ("context_tab", SIZES["context_tab"] + 2)),
        "user_category_ctr": (("user_row", users + 1), ("item_category", SIZES["item_category"] + 2)),
    }.items():
        codes = np.unique(generator.integers(0, columns[0][1] * columns[1][1], 500_000))
        statistics[name] = StatisticTable("cross", values(len(codes) + 1), columns, codes)
    vectors = generator.normal(size=(users + 1, VECTOR)).astype(np.float32)
    tastes = np.asarray(lookalike.transform(generator.normal(size=(items + 1, VECTOR)).astype(np.float32)))
    spread = generator.normal(0, 0.5, (items + 1, K, HIDDEN)).astype(np.float32)
    counts = generator.integers(1, 200, (items + 1, K))
    counts[generator.random(items + 1) < 0.1, K // 2 :] = 0  # fewer seeds than centroids
    counts[-1] = 0
    return State(
        tick=1_740_787_200_000,
        user_ids=pd.RangeIndex(users),
        item_ids=pd.RangeIndex(items),
        users=of_users,
        items=of_items,
        user_vectors=vectors,
        centroids=np.where(counts[..., None] > 0, tastes[:, None] + spread, 0).astype(np.float32),
        centroid_counts=counts,
        seed_counts=counts.sum(axis=1),
        prices=np.append(generator.lognormal(3, 1, items), np.nan).astype(np.float32),
        statistics=statistics,
    )


def make_models(
    folder: str | Path, *, items: int = 10_000, users: int = 100_000, sharing: str = "embedding"
) -> dict[str, Path]:
    """Exports the network as it is served, `split`; so, with the other centroids, `bfloat16`; and `plain`.

    Returns:
        name -> SavedModel folder.
    """
    from ranking.exported.network import SplitNetwork
    from ranking.exported.ranker import ServedRanker

    run, found = random_run(items, users, sharing=sharing), {}
    networks = {
        "split": SplitNetwork(run),
        "bfloat16": SplitNetwork(run, centroid_dtype="bfloat16"),
        "plain": PlainNetwork(run),
    }
    for name, network in networks.items():
        served = ServedRanker(run, network=network)
        found[name] = Path(folder) / name
        tf.saved_model.save(served, str(found[name]), signatures=served.signatures())
    return found


class PlainNetwork(tf.Module):
    """The interface of `SplitNetwork` around the ranker as Keras has it: every row brings all of its user along."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        ranker = run.ranker()
        self.parameters = [variable.value for variable in (*ranker.variables, *run.representation.variables)]
        self._call, self.represent = lambda arrays: ranker(arrays), lambda user: run.representation(user)
        self._inputs = {tensor.name: tensor.shape[1:] for tensor in ranker.inputs}

    def item_arrays(self, state: Any) -> dict[str, np.ndarray]:
        """The features as they are."""
        counts = state.centroid_counts.astype(np.float32)
        return {**state.items, "centroids": state.centroids, "centroid_counts": counts}

    def user_arrays(self, state: Any) -> dict[str, np.ndarray]:
        """As in `SplitNetwork`."""
        return {"user_vector": state.user_vectors}

    def of_user(self, user: Any) -> Any:
        """Nothing is done once."""
        return user

    def __call__(self, user: Any, rows: Any, tables: Any, extra: Any) -> Any:
        """similarity, pctr, pcvr and pctcvr, `[N]`."""
        arrays = {**user, **extra, **{name: tf.gather(table, rows) for name, table in tables.items()}}
        arrays["price"] = tf.zeros([1])  # of the score alone, which is not fetched and so never computed
        n = tf.shape(rows)
        for name in self._inputs:
            if arrays[name].shape[0] == 1:
                arrays[name] = tf.tile(arrays[name], tf.concat([n, [1] * (arrays[name].shape.rank - 1)], 0))
        found = self._call({name: arrays[name] for name in self._inputs})
        return {name: found[name] for name in ("similarity", "pctr", "pcvr", "pctcvr")}


def request(candidates: int, number: int = 0, *, items: int = 10_000, users: int = 100_000) -> dict[str, np.ndarray]:
    """The inputs of signature `rank` for one user and random items."""
    generator = np.random.default_rng(number)
    return {
        "user_id": generator.integers(0, users, 1),
        "item_id": generator.choice(items, candidates, replace=candidates > items),
        **{name: np.array([f"v{number % 4}"], object) for name in ("tab", "hour", "network")},
        "price": np.full(candidates, np.nan, np.float32),
    }


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of one call, of all threads of the process."""
    start = time.process_time()
    call()
    return time.process_time() - start


class Floor:
    """What the arithmetic of one request must take, counted for the split network with towers of its own a task.

    Products: 2 FLOP a weight and candidate of the layers that are not made ahead, and of the similarity's three passes
    over the centroids, at the rate of one product of each of the layers' shapes. Bytes: the rows of the tables, read
    once, at the rate of a copy.
    """

    def __init__(self, candidates: int) -> None:
        numbers = 2 * (STATISTICS + CROSSES) + 3  # of a candidate: statistics, and the similarity's three
        layers = [(numbers, 2 * TOWERS[0])] + 2 * list(zip(TOWERS, (*TOWERS[1:], 1), strict=True))
        self.products = []
        product = tf.function(lambda x, kernel: tf.matmul(x, kernel), input_signature=[tf.TensorSpec([None, None])] * 2)
        generator = np.random.default_rng(0)
        for a, b in layers:
            x, kernel = (tf.constant(generator.random(shape, np.float32)) for shape in ((candidates, a), (a, b)))
            self.products.append(functools.partial(product, x, kernel))
        self.layers = 2 * candidates * sum(a * b for a, b in layers)
        self.flop = self.layers + 2 * candidates * 3 * (K + 1) * HIDDEN
        self.read = 4 * candidates * ((K + 1) * (HIDDEN + 1) + 2 * TOWERS[0] + 2 + numbers)
        self.source = np.ones(self.read, np.uint8)
        self.target = np.empty_like(self.source)
        self.measure()

    def measure(self) -> dict[str, float]:
        """CPU seconds, now: `products`, `bytes` and their sum `total`; and the rates they were made of."""
        taken = sum(cpu_seconds(product) for product in self.products)
        copied = cpu_seconds(lambda: np.copyto(self.target, self.source))
        found = {"products": taken * self.flop / self.layers, "bytes": copied / 2}  # a copy reads and writes
        rates = {"flop_per_second": self.layers / taken, "bytes_per_second": 2 * self.read / copied}
        return {**found, "total": sum(found.values()), **rates}


def floor_seconds(candidates: int, *, rounds: int = 15) -> dict[str, float]:
    """The median of so many measurements of `Floor`."""
    floor = Floor(candidates)
    measured = [floor.measure() for _ in range(rounds)]
    return {name: float(np.median([one[name] for one in measured])) for name in measured[0]}


def measure(bundles: dict[str, Any], candidates: int, rounds: int, sizes: dict[str, int]) -> tuple[Any, Any, Any]:
    """Seconds of each model and of the floor, a round a row, and the largest difference from the plain scores."""
    floor, taken = Floor(candidates), []
    differences: dict[str, float] = {name: 0.0 for name in bundles}
    for number in range(rounds + 3):  # the first three trace, allocate and fill the caches
        inputs, found, row = request(candidates, number, **sizes), {}, {}
        for name, bundle in bundles.items():
            start = time.process_time()
            found[name] = bundle.predict(inputs, signature="rank")
            row[name] = time.process_time() - start
        taken.append({**row, "floor": floor.measure()["total"]})
        for name in bundles:
            for output in ("similarity", "pctr", "pcvr", "pctcvr"):
                off = float(np.abs(found[name][output] - found["plain"][output]).max())
                differences[name] = max(differences[name], off)
    return {name: np.array([row[name] for row in taken[3:]]) for name in taken[0]}, differences, found


def main() -> None:
    """Prints CPU seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1, help="of one operation; operations run one after another")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sharing", default="embedding")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from serving.server.bundle import Bundle

    sizes = {"items": arguments.items, "users": arguments.users}
    titles = ("candidates", "model", "CPU, ms", "plain / model", "model / floor", "off from plain", "order (Kendall)")
    table = Table(*titles)
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(folder, sharing=arguments.sharing, **sizes)
        bundles = {name: Bundle(path) for name, path in models.items()}
        for candidates in CANDIDATES:
            seconds, differences, found = measure(bundles, candidates, arguments.rounds, sizes)
            for name in (*bundles, "floor"):
                cells = ["", "", "", ""]
                if name in bundles:
                    cells[0] = f"{np.median(seconds['plain'] / seconds[name]):.2f}"
                    cells[1] = f"{np.median(seconds[name] / seconds['floor']):.2f}"
                    cells[2] = f"{differences[name]:.1e}"
                    cells[3] = f"{kendalltau(found[name]['score'], found['plain']['score']).statistic:.5f}"
                table.add_row(f"{candidates:,}", name, f"{1e3 * np.median(seconds[name]):.2f}", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
