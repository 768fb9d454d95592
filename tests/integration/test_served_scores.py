"""What an exported model answers is what Python says: over every tick, signature, wire and kind of id."""

import dataclasses
import json
import math
import re
import shutil
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest

from ranking.export import MAX_CANDIDATES, ServedRanker
from ranking.exported.tables import table_arrays
from ranking.fusion import fuse
from ranking.rows import training_rows
from ranking.scoring import score_rows
from serving.errors import InvalidArgument
from serving.protos import messages
from serving.publish import versions
from serving.rest import RankClient as RestClient
from serving.rpc import RankClient as GrpcClient
from serving.server import Server
from serving.server.bundle import Bundle
from serving.warmup import read_warmup

pytestmark = pytest.mark.slow

SCORES = ("similarity", "pctr", "pcvr", "pctcvr", "score")
OUTPUTS = {*SCORES, "has_similarity", "known_user", "known_item"} | {
    "table_version",
    "seed_watermark",
    "embedding_space_id",
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def models(exported, text, tmp_path_factory, seedrank):
    """Both runs as `seedrank export` publishes them."""
    folder = shutil.copytree(exported, tmp_path_factory.mktemp("both") / "models")
    assert seedrank("export", "--run", text.path, "--models", folder, "--name", "text") == 0
    return folder


@pytest.fixture(scope="module")
def server(models):
    with Server(models, rest_port=0, grpc_port=0) as started:
        yield started


@pytest.fixture(params=[(), ("--grpc",)], ids=["rest", "grpc"])
def ask(request, server, cli):
    """`(model, user, items, option, ...) -> rows`: `seedrank rank`, over REST and over gRPC."""

    def rank(model, user, items, *options):
        where = ("--url", f"http://127.0.0.1:{server.rest_port}", "--address", f"127.0.0.1:{server.grpc_port}")
        line = ("rank", "--name", model, *where, "--user", user, "--items", items, *options, *request.param)
        return cli(*line)

    return rank


@pytest.fixture(params=["rest", "grpc"])
def connect(request, server):
    """`(model) -> client`, over REST and over gRPC."""
    opened = []

    def client(model):
        if request.param == "rest":
            opened.append(RestClient(f"http://127.0.0.1:{server.rest_port}", model=model, timeout=60))
        else:
            opened.append(GrpcClient(f"127.0.0.1:{server.grpc_port}", model=model, timeout=60))
        return opened[-1]

    yield client
    for one in opened:
        one.close()


def python_scores(run, user, items, tab, price=None):
    """The Python path for one user: five outputs `[n]`, has_similarity and the parts of the score."""
    n = len(items)
    users = pd.Index([user] * n, dtype=run.state.user_ids.dtype)
    ids = pd.Index(items, dtype=run.state.item_ids.dtype)
    return score_rows(run, run.state, users, ids, pd.DataFrame({"tab": [tab] * n}), price)


def some_items(run, n=40):
    """Items of the run with and without a similarity."""
    state = run.state
    has = state.centroid_counts[:-1].sum(axis=1) > 0
    assert has.any() and (~has).any()
    return [*state.item_ids[has][: n // 2].tolist(), *state.item_ids[~has][: n // 2].tolist()]


@pytest.mark.parametrize(("window", "day"), [("train", 0), ("train", 1), ("test", 1)])
def test_the_log_replayed_through_the_export_of_its_tick_is_the_training_column(tiny, tmp_path, window, day):
    import tensorflow as tf

    run, timeline, builder = tiny.run, tiny.timeline, tiny.builder
    start = timeline.window(window)[0]
    at = None if window == "train" else start
    rows = training_rows(builder, window, user_statistics_at=at)
    tick = start + day * timeline.schema.tick_ms
    rows = rows.take(np.flatnonzero(timeline.tick(timeline.time[rows.row]) == tick))
    assert len(rows.row) > 500

    frozen = dataclasses.replace(run, state=builder.at(tick, user_statistics_at=at))
    served = ServedRanker(frozen)
    tf.saved_model.save(served, str(tmp_path), signatures=served.signatures())
    frame = timeline.impressions.iloc[rows.row]
    answer = Bundle(tmp_path).predict(
        {
            "user_id": frame["user_id"].to_numpy(np.int64),
            "item_id": frame["item_id"].to_numpy(np.int64),
            "tab": np.array([tab.encode() for tab in frame["tab"]], object),
            "price": np.full(len(frame), np.nan, np.float32),
        }
    )

    has = rows.features["has_similarity"] > 0
    assert 0.5 < has.mean() < 1
    np.testing.assert_array_equal(answer["has_similarity"], has)
    np.testing.assert_allclose(answer["similarity"][has], rows.features["similarity"][has], **CLOSE)
    expected = run.predict(rows.features)
    for name in ("pctr", "pcvr", "pctcvr"):
        np.testing.assert_allclose(answer[name], expected[name], **CLOSE)
    parts = {name: expected[name] for name in ("pctr", "pcvr")}
    parts |= {name: rows.features[name] for name in ("similarity", "has_similarity")}
    parts["price"] = builder.prices[timeline.item[rows.row]]
    np.testing.assert_allclose(answer["score"], fuse(parts, run.weights), **CLOSE)
    assert np.ptp(answer["score"]) > 0.5
    assert set(answer["seed_watermark"]) == {tick}


def test_rank(tiny, connect):
    run, items = tiny.run, some_items(tiny.run)
    user = tiny.user_ids[0]
    found = connect("seedrank").rank(user, items, context={"tab": "search"})
    assert set(found) == OUTPUTS
    expected = python_scores(run, user, items, "search")
    for name in SCORES:
        np.testing.assert_allclose(found[name], expected[name], **CLOSE, err_msg=name)
    assert found["has_similarity"] == (expected["has_similarity"] > 0).tolist()
    assert found["known_user"] == found["known_item"] == [True] * len(items)
    assert set(found["seed_watermark"]) == {run.state.tick}
    assert len(set(found["table_version"])) == len(set(found["embedding_space_id"])) == 1


def test_context_and_price_count(tiny, connect):
    client, items, user = connect("seedrank"), some_items(tiny.run), tiny.user_ids[1]
    home, search, nowhere = (
        client.rank(user, items, context={"tab": tab}) for tab in ("home", "search", "no such tab")
    )
    assert home["pctr"] != search["pctr"] and home["similarity"] == search["similarity"]
    expected = python_scores(tiny.run, user, items, "no such tab")
    np.testing.assert_allclose(nowhere["pctr"], expected["pctr"], **CLOSE)
    price = np.linspace(1, 500, len(items)).astype(np.float32)
    price[::2] = np.nan  # then the item's own
    weights = {"similarity": 0.0, "pctr": 0.0, "pcvr": 0.0, "price": 1.0}
    priced = client.rank(user, items, context={"tab": "home"}, price=price, weights=weights)
    parts = python_scores(tiny.run, user, items, "home", price)
    np.testing.assert_allclose(priced["score"], fuse(parts_of(parts), tiny.run.weights, weights), **CLOSE)
    assert np.argmax(priced["score"]) == len(items) - 1
    with pytest.raises(ValueError, match="tab"):
        client.rank(user, items)


def parts_of(found):
    return {name: found[name] for name in ("similarity", "has_similarity", "pctr", "pcvr", "price")}


def test_rank_with_weights(tiny, connect):
    client, items, user = connect("seedrank"), some_items(tiny.run), tiny.user_ids[2]
    expected = parts_of(python_scores(tiny.run, user, items, "home"))
    usual = client.rank(user, items, context={"tab": "home"})
    for weights in (
        {"similarity": 1.0, "pctr": 0.1, "pcvr": 0.0, "price": 0.0},
        {"similarity": -0.5, "pctr": 0.25, "pcvr": 1.0, "price": -1.0},
    ):
        found = client.rank(user, items, context={"tab": "home"}, weights=weights)
        # of the parts as they were answered: of a part that hardly varies, the last digit is many in the score
        served = expected | {name: np.asarray(found[name], np.float64) for name in ("similarity", "pctr", "pcvr")}
        np.testing.assert_allclose(found["score"], fuse(served, tiny.run.weights, weights), **CLOSE)
        assert np.abs(np.subtract(found["score"], usual["score"])).max() > 0.1
        for name in SCORES[:-1]:
            np.testing.assert_allclose(found[name], usual[name], rtol=1e-6)
    # the weights it was exported with
    found = client.rank(user, items, context={"tab": "home"}, weights=tiny.run.weights.weights)
    np.testing.assert_allclose(found["score"], usual["score"], **CLOSE)


def test_serving_default_takes_a_row_each(tiny, connect):
    """Every row has its own user, item and tab."""
    frame = tiny.timeline.impressions.tail(64)
    found = connect("seedrank").predict(
        {
            "user_id": frame["user_id"].tolist(),
            "item_id": frame["item_id"].tolist(),
            "tab": frame["tab"].tolist(),
            "price": [float("nan")] * len(frame),
        }
    )
    state = tiny.run.state
    expected = score_rows(tiny.run, state, pd.Index(frame["user_id"]), pd.Index(frame["item_id"]), frame)
    for name in SCORES:
        np.testing.assert_allclose(found[name], expected[name], **CLOSE, err_msg=name)
    assert found["known_item"] == frame["item_id"].isin(state.item_ids).tolist()


def test_row_json(tiny, server):
    """What curl sends: `instances`, a JSON object a row."""
    user, item = tiny.user_ids[0], tiny.item_ids[0]
    rows = [{"user_id": user, "item_id": item, "tab": tab, "price": 9.5} for tab in ("home", "search")]
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.rest_port}/v1/models/seedrank:predict", json.dumps({"instances": rows}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        found = json.load(reply)["predictions"]
    for row, tab in zip(found, ("home", "search"), strict=True):
        expected = python_scores(tiny.run, user, [item], tab, np.array([9.5], np.float32))
        np.testing.assert_allclose([row[name] for name in SCORES], [expected[name][0] for name in SCORES], **CLOSE)


def test_unknown_ids_are_flagged(tiny, text, connect):
    for model, trained, stranger in (("seedrank", tiny, 123), ("text", text, "nobody's id")):
        client, items = connect(model), [*trained.item_ids[:3], stranger]
        found = client.rank(trained.user_ids[0], items, context={"tab": "home"})
        assert found["known_item"] == [True, True, True, False] and found["known_user"] == [True] * 4
        assert found["has_similarity"][-1] is False
        found = client.rank(stranger, items, context={"tab": "home"})
        assert found["known_user"] == [False] * 4
        expected = python_scores(trained.run, stranger, items, "home")
        for name in SCORES:
            np.testing.assert_allclose(found[name], expected[name], **CLOSE, err_msg=name)


def test_awkward_ids_survive_there_and_back(tiny, text, connect):
    """Ids that lose a digit as a float, and ids that need escaping: each is known, and is itself."""
    for model, trained in (("seedrank", tiny), ("text", text)):
        client, items = connect(model), list(trained.item_ids)
        assert set(items) <= set(trained.run.state.item_ids)
        scores = []
        for user in trained.user_ids:
            found = client.rank(user, items, context={"tab": "home"})
            assert found["known_user"] == found["known_item"] == [True] * len(items), user
            scores += found["score"]
        pairs = pd.MultiIndex.from_product([trained.user_ids, items])
        state, tab = trained.run.state, pd.DataFrame({"tab": ["home"] * len(pairs)})
        expected = score_rows(trained.run, state, *(pd.Index(pairs.get_level_values(at)) for at in (0, 1)), tab)
        np.testing.assert_allclose(scores, expected["score"], **CLOSE)
        assert len(set(scores)) == len(pairs)
        # one step beside: not the same id
        beside = 2**53 + 2 if model == "seedrank" else "07"
        assert client.rank(beside, [beside], context={"tab": "home"})["known_item"] == [False]


def test_too_many_candidates_are_refused(tiny, connect, server):
    client, user, item = connect("seedrank"), tiny.user_ids[0], tiny.item_ids[0]
    found = client.rank(user, [item] * MAX_CANDIDATES, context={"tab": "home"})
    assert len(found["score"]) == MAX_CANDIDATES
    with pytest.raises(InvalidArgument, match="at most 5000 candidates") as refused:
        client.rank(user, [item] * (MAX_CANDIDATES + 1), context={"tab": "home"})
    assert refused.value.code == "INVALID_ARGUMENT"
    with pytest.raises(InvalidArgument, match="at least one candidate"):
        client.rank(user, [], context={"tab": "home"})


def test_what_the_graph_refuses_is_status_400(tiny, server):
    inputs = {
        "user_id": [tiny.user_ids[0]],
        "item_id": [tiny.item_ids[0]] * (MAX_CANDIDATES + 1),
        "tab": ["home"],
        "price": [1.0] * (MAX_CANDIDATES + 1),
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.rest_port}/v1/models/seedrank:predict",
        json.dumps({"signature_name": "rank", "inputs": inputs}).encode(),
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 400


@pytest.mark.parametrize("bad", [1.5, -1.01, float("nan"), float("inf")])
def test_weights_out_of_bounds_are_refused(tiny, connect, bad):
    weights = {"similarity": 0.1, "pctr": bad, "pcvr": 1.0, "price": 0.0}
    with pytest.raises(InvalidArgument, match="weight_pctr should be in"):
        connect("seedrank").rank(tiny.user_ids[0], [tiny.item_ids[0]], context={"tab": "home"}, weights=weights)


@pytest.mark.parametrize("price", [-1.0, float("inf")])
def test_impossible_prices_are_refused(tiny, connect, price):
    with pytest.raises(InvalidArgument, match="price: should be finite"):
        connect("seedrank").rank(tiny.user_ids[0], [tiny.item_ids[0]], context={"tab": "home"}, price=[price])


def test_a_version_holds_what_it_needs_and_no_more(tiny, models):
    """The optimizer's slots are two more copies of every parameter."""
    import tensorflow as tf

    (version,) = versions(models / "seedrank")
    stored = tf.train.list_variables(str(models / "seedrank" / str(version) / "variables" / "variables"))
    stored = {name: math.prod(shape) for name, shape in stored}
    assert not [name for name in stored if "optimizer" in name or "seed_generator" in name]
    size = sum(values for name, values in stored.items() if name.startswith("network/"))
    run = tiny.run
    assert size <= sum(math.prod(v.shape) for v in (*run.ranker().variables, *run.representation.variables))
    # each table once: the state, the items' share of the first layers, their centroids with the global embedding
    size = sum(values for name, values in stored.items() if name.startswith("tables/"))
    assert size == sum(values.size for values in table_arrays(run, run.state).values())


def test_every_signature_is_warmed_up_at_real_sizes_and_for_the_usual_outputs(models):
    """A choice of outputs is compiled by itself: the first to ask for it would wait."""
    kind = messages("tensorflow_serving/apis/predict.proto").PredictRequest
    (version,) = versions(models / "seedrank")
    found = set()
    for request in map(kind.FromString, read_warmup(models / "seedrank" / str(version))):
        count = request.inputs["item_id"].tensor_shape.dim[0].size
        found.add((request.model_spec.signature_name, count, *request.output_filter))
    others = {"rank_top", "rank_features", "rank_embedding", "rank_with_weights", "serving_default"}
    sizes = {("rank", count) for count in (1, 100, 1000, MAX_CANDIDATES)} | {(name, 1000) for name in others}
    assert found == sizes | {("rank", 1000, "score"), ("rank_top", 1000, "item_id", "score")}


def test_status_and_metadata(connect, server):
    client = connect("text")
    (status,) = client.status()
    assert status["state"] == "AVAILABLE" and status["error_code"] == "OK"
    declared = client.metadata()["metadata"]["signature_def"]["signature_def"]
    assert {"rank", "rank_top", "rank_features", "rank_embedding", "rank_with_weights", "serving_default"} <= set(
        declared
    )
    assert declared["rank"]["inputs"]["user_id"]["dtype"] == "DT_STRING"
    assert set(declared["rank"]["outputs"]) == OUTPUTS


def test_the_rank_command(tiny, text, ask, tmp_path):
    user, items = tiny.user_ids[2], some_items(tiny.run, 10)
    listed = ",".join(map(str, items))
    answer = ask("seedrank", user, listed, "--context", "tab=home", "--json")
    assert answer.code == 0 and not answer.err
    rows = json.loads(answer.out)
    expected = python_scores(tiny.run, user, items, "home")["score"]
    assert [row["item_id"] for row in rows] == [str(items[place]) for place in np.argsort(-expected, kind="stable")]
    np.testing.assert_allclose([row["score"] for row in rows], np.sort(expected)[::-1], **CLOSE)
    weights = ("--weights", "similarity=0,pctr=0,pcvr=0,price=1", "--prices", ",".join("5" * 9) + ",")
    priced = json.loads(ask("seedrank", user, listed, "--context", "tab=home", *weights, "--json").out)
    assert sum(row["score"] == priced[0]["score"] for row in priced) in (1, 9)  # the last one has its own price
    # ids with commas, one a line
    (tmp_path / "items.txt").write_text("\n".join(text.item_ids) + "\n", encoding="utf-8")
    answer = ask("text", text.user_ids[0], f"@{tmp_path}/items.txt", "--context", "tab=home", "--json")
    rows = json.loads(answer.out)
    assert {row["item_id"] for row in rows} == set(text.item_ids) and all(row["known_item"] for row in rows)
    assert "score" in ask("seedrank", user, listed, "--context", "tab=home").out


def test_what_the_server_refuses_is_one_line(tiny, ask):
    user, item = tiny.user_ids[0], tiny.item_ids[0]
    ask("seedrank", user, item).mistake("'tab'")
    ask("seedrank", "me", item, "--context", "tab=home").mistake("`user_id`", "'me'")
    ask("seedrank", user, f"{item},x", "--context", "tab=home").mistake("`item_id`", "'x'")
    ask("seedrank", user, item, "--context", "tab=home", "--context", "hour=3").mistake("`hour`")
    ask("seedrank", user, item, "--context", "tab=home", "--prices", "1,2").mistake("price")
    ask("seedrank", user, item, "--context", "tab=home", "--weights", "pctr=2,similarity=0,pcvr=0,price=0").mistake(
        "weight_pctr", "[-1"
    )
    ask("other", user, item, "--context", "tab=home").mistake("other")


def test_the_serve_command(tiny, models, started):
    """Says where it listens, answers, and ends at once when it is told to."""
    process = started("serve", models, "--rest-port", 0, "--grpc-port", 0)
    rest, grpc = map(int, re.findall(r"127\.0\.0\.1:(\d+)", process.stderr.readline()))
    with RestClient(f"http://127.0.0.1:{rest}") as one, GrpcClient(f"127.0.0.1:{grpc}") as other:
        asked = (tiny.user_ids[0], list(tiny.item_ids))
        found = one.rank(*asked, context={"tab": "home"})["score"]
        np.testing.assert_allclose(found, other.rank(*asked, context={"tab": "home"})["score"], rtol=1e-6)
    process.terminate()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and not out and "Traceback" not in err


def test_a_weights_file_of_another_run_is_not_exported(tiny, text, tmp_path, cli):
    answer = cli("export", "--run", tiny.path, "--models", tmp_path / "models", "--weights", text.path / "fusion.json")
    answer.mistake("fusion.json", "belongs to other parameters")
    assert versions(tmp_path / "models" / "seedrank") == []
