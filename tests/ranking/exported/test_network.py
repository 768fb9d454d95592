"""The served network says what the unsplit ranker says, for every shape it can have and however requests are made."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.serving_model import DATASET, random_run
from lookalike.similarity import LookalikeModel
from ranking.exported import network
from ranking.exported.network import PIECE, SplitNetwork
from ranking.exported.similarity import SplitSimilarity
from ranking.run import Run

ITEMS, USERS = 30, 20
OUTPUTS = ("similarity", "pctr", "pcvr", "pctcvr")
# Values with weights, a column of each candidate, a statistic of the user and the request alone.
OTHER = (
    DATASET.replace('tags = { kind = "multi" }', 'tags = { kind = "multi", weights = ":" }')
    .replace('network = { kind = "categorical" }', 'network = { kind = "categorical", per = "candidate" }')
    .replace('"user_id", "category"]', '"user_id", "tab"]')
)


def tiny(**options) -> Run:
    run = random_run(ITEMS, USERS, **{"towers": (16, 8), "embedding_dim": 4, **options})
    weights = np.random.default_rng(1).random(run.state.items["item_tags"].shape, np.float32)
    items = {**run.state.items, "item_tags_weight": weights}
    statistics = dict(run.state.statistics)
    if options.get("dataset") == OTHER:
        table = statistics["user_category_ctr"]
        statistics["user_category_ctr"] = dataclasses.replace(
            table, columns=(("user_row", USERS + 1), ("context_tab", 10))
        )
    return dataclasses.replace(run, state=dataclasses.replace(run.state, items=items, statistics=statistics))


@functools.cache
def standard() -> Run:
    return tiny()


def arrays_of(run: Run, user: int, item: np.ndarray) -> dict[str, np.ndarray]:
    """All that the ranker reads of rows of (user, item), statistics scaled."""
    state, users = run.state, np.full(len(item), user)
    context = {f"context_{name}": np.full(len(item), code, np.int32) for name, code in (("tab", 3), ("hour", 9))}
    context["context_network"] = np.full(len(item), 2, np.int32)
    if any(feature.per == "candidate" for feature in run.schema.side("context")):
        context["context_network"] = np.arange(len(item), dtype=np.int32) % 5
    has = np.asarray((state.centroid_counts[item] > 0).any(axis=1), np.float32)
    nothing = {"similarity": np.zeros(len(item), np.float32), "has_similarity": has}
    return {
        **run.scales.apply(state.features(users, item, context) | nothing),
        "user_vector": state.user_vectors[users],
        "centroids": state.centroids[item],
        "centroid_counts": state.centroid_counts[item].astype(np.float32),
        "price": state.prices[item],
    }


def expected(run: Run, users: dict[int, dict]) -> dict[int, dict[str, np.ndarray]]:
    ranker = run.ranker()
    found = {
        user: ranker({tensor.name: arrays[tensor.name] for tensor in ranker.inputs}) for user, arrays in users.items()
    }
    return {user: {name: outputs[name].numpy() for name in OUTPUTS} for user, outputs in found.items()}


def per_request(run: Run) -> set[str]:
    """Names of arrays that are one a request."""
    found = {f"context_{feature.name}" for feature in run.schema.side("context") if feature.per == "request"}
    if ("context_tab", 10) in run.state.statistics["user_category_ctr"].columns:
        found.add("statistic_user_category_ctr")
    return found


def variables(split: SplitNetwork, run: Run) -> dict[str, tf.Variable]:
    return {
        name: tf.Variable(values, shape=[None, *values.shape[1:]])
        for name, values in split.item_arrays(run.state).items()
    }


def served(run: Run, users: dict[int, dict], item: np.ndarray, *, rows: bool = False, **options) -> dict[int, dict]:
    """User -> outputs of the split network, in one traced function of one user, or with everything `[N]`."""
    split, once = SplitNetwork(run, **options), per_request(run)
    tables = variables(split, run)

    def inputs(arrays: dict) -> tuple[dict, np.ndarray, dict]:
        of_user = {n: v for n, v in arrays.items() if n.startswith(("user_", "behavior_"))}
        extra = {n: v for n, v in arrays.items() if n.startswith(("context_", "statistic_", "has_", "log_"))}
        if not rows:
            of_user = {name: values[:1] for name, values in of_user.items()}
            extra = {name: values[:1] if name in once else values for name, values in extra.items()}
        return of_user, item.astype(np.int32), extra

    def spec(values: np.ndarray, one: bool) -> tf.TensorSpec:
        return tf.TensorSpec([1 if one else None, *values.shape[1:]], values.dtype)

    of_user, _, extra = inputs(next(iter(users.values())))
    signature = (
        {name: spec(values, not rows) for name, values in of_user.items()},
        tf.TensorSpec([None], tf.int32),
        {name: spec(values, not rows and name in once) for name, values in extra.items()},
    )
    call = tf.function(lambda u, r, e: split(split.of_user(u), r, tables, e), input_signature=signature)
    found = {user: call(*inputs(arrays)) for user, arrays in users.items()}
    return {user: {name: values.numpy() for name, values in outputs.items()} for user, outputs in found.items()}


def distance(run: Run, *, rows: bool = False, **options) -> float:
    """The largest of all outputs from those of the whole ranker: known and unknown users and items, the ones without a
    similarity and with masked centroids among them."""
    item = np.arange(ITEMS + 1)
    users = {user: arrays_of(run, user, item) for user in (0, USERS)}
    apart = []
    right = expected(run, users)
    for user, found in served(run, users, item, rows=rows, **options).items():
        for name in OUTPUTS:
            assert found[name].dtype == np.float32 and found[name].shape == (len(item),)
            assert np.isfinite(found[name]).all() and np.isfinite(right[user][name]).all()
            apart.append(np.abs(found[name] - right[user][name]).max())
    return max(apart)


@functools.cache
def traced() -> tuple:
    """The standard network of one user, traced once, and its tables."""
    run = standard()
    split = SplitNetwork(run)
    tables = variables(split, run)
    return tf.function(lambda u, r, e: split(split.of_user(u), r, tables, e), reduce_retracing=True), tables


def of_standard(user: int, item: np.ndarray, *, shift: int = 0) -> dict[str, np.ndarray]:
    """Its answer for items whose rows are so many further down."""
    arrays = arrays_of(standard(), user, item)
    of_user = {n: tf.constant(v[:1]) for n, v in arrays.items() if n.startswith(("user_", "behavior_"))}
    extra = {n: tf.constant(v) for n, v in arrays.items() if n.startswith(("context_", "statistic_", "has_", "log_"))}
    found = traced()[0](of_user, tf.constant(item + shift, tf.int32), extra)
    return {name: values.numpy() for name, values in found.items()}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"sharing": "mmoe", "positions": 6, "wide": False}, marks=pytest.mark.slow),
        pytest.param(
            {"dataset": OTHER, "lookalike": {"attention": "tempered", "alpha": "learned", "size_bias": True}},
            id="other features, tempered",
            marks=pytest.mark.slow,
        ),
        pytest.param({"lookalike": {"attention": "average"}}, marks=pytest.mark.slow),
        pytest.param({"sharing": "hard"}, marks=pytest.mark.slow),
        pytest.param({"sharing": "hierarchical"}, marks=pytest.mark.slow),
        pytest.param({"sharing": "shared_private", "experts": 2}, marks=pytest.mark.slow),
        pytest.param({"towers": ()}, marks=pytest.mark.slow),
        pytest.param({"lookalike": {"attention": "linear", "activation": "relu"}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_one_user_and_every_shape(options):
    assert distance(tiny(**options)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, pytest.param({"dataset": OTHER}, id="other features")], ids=str)
def test_rows_of_their_own_users(options):
    assert distance(tiny(**options) if options else standard(), rows=True) < 1e-5


@pytest.mark.parametrize("candidates", [1, 2, PIECE, PIECE + 1, 3 * PIECE - 1])
def test_pieces_leave_no_seam(candidates):
    item = np.random.default_rng(candidates).integers(0, ITEMS + 1, candidates)
    found, right = of_standard(4, item), of_standard(4, np.arange(ITEMS + 1))
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], right[name][item], rtol=0, atol=2e-6)


def test_a_share_of_the_items_over_the_limit_is_made_from_their_features(monkeypatch):
    run = standard()
    small = sum(variable.shape.num_elements() for variable in SplitNetwork(run).variables)
    monkeypatch.setattr(network, "SHARE_BYTES", (ITEMS + 1) * (2 * 16 + 2) * 4 - 1)
    split = SplitNetwork(run)
    assert {"item_id", "item_tags"} < set(split.item_arrays(run.state))
    assert "first_0" not in split.item_arrays(run.state)
    # The kernel of 5 ids and 2 numbers, and the table of what only items have; rows of 4 and two wide weights.
    table = sum(size + 2 for size in (100, 3000, 500, 2000)) + ITEMS + 2
    assert sum(v.shape.num_elements() for v in split.variables) - small == (5 * 6 + 2) * (2 * 16 + 2) + table * 6
    assert distance(run) < 1e-5


def test_tables_may_grow_under_the_traced_graph():
    item = np.arange(ITEMS + 1)
    before = of_standard(3, item)["pctr"]
    call, tables = traced()
    traces, old = call.experimental_get_tracing_count(), {name: table.numpy() for name, table in tables.items()}
    for table in tables.values():
        table.assign(tf.concat([table[:1], table], axis=0))
    after = of_standard(3, item, shift=1)["pctr"]
    for name, table in tables.items():
        table.assign(old[name])
    np.testing.assert_array_equal(before, after)
    assert call.experimental_get_tracing_count() == traces


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, ITEMS), min_size=1, max_size=40), st.integers(0, USERS))
def test_a_candidate_has_its_own_answer_whoever_stands_beside_it(item, user):
    run, whole = standard(), np.arange(ITEMS + 1)
    found = of_standard(user, np.array(item))
    alone = of_standard(user, whole)
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], alone[name][item], rtol=0, atol=2e-6)
    assert np.all(found["similarity"][np.array(item) == ITEMS] == np.float32(run.scales.similarity[0]))  # no seeds


def test_bfloat16_centroids_halve_the_table_and_cost_a_little():
    run = standard()
    wide, narrow = (SplitNetwork(run, centroid_dtype=d).item_arrays(run.state) for d in ("float32", "bfloat16"))
    assert narrow["centroids"].nbytes * 2 == wide["centroids"].nbytes
    assert 1e-5 < distance(run, centroid_dtype="bfloat16") < 4e-3  # of 8 bits: 2^-9 an entry


def test_another_type_of_centroids_is_refused():
    with pytest.raises(ValueError, match="`dtype` should be 'float32' or 'bfloat16'. Received: dtype='int8'"):
        SplitNetwork(standard(), centroid_dtype="int8")


def test_centroids_that_point_apart_keep_their_digits():
    # Two centroids +c and -c + e, all weights alike (W = 0): E = e / 2 exactly, cos = e . v / |e|, with |c| / |e| 1000.
    # Summed first, float32 leaves it an error of 1e-7 * 1000; by squares through a Gram matrix it were 1e-7 * 1000^2.
    layer = LookalikeModel(4, 4, activation="relu", alpha=0.0)
    layer.build()
    layer.projection.kernel.assign(np.eye(4))
    layer.local_attention.kernel.assign(np.zeros((4, 4)))
    generator = np.random.default_rng(0)
    c, e = generator.normal(size=(50, 4)), 1e-3 * generator.normal(size=(50, 4))
    centroids = np.stack([c, e - c], axis=1).astype(np.float32)
    user = np.abs(generator.normal(size=(1, 4))).astype(np.float32)
    split = SplitSimilarity(layer)
    rows = split.arrays(centroids, np.ones((50, 2)))
    found = split(split.of_user(tf.constant(user)), {name: tf.constant(values) for name, values in rows.items()})
    e = centroids.astype(np.float64).sum(axis=1)
    right = (e @ user[0]) / np.linalg.norm(e, axis=1) / np.linalg.norm(user)
    np.testing.assert_allclose(found, right, rtol=0, atol=2e-3)
