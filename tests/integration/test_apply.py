"""Weights applied to a live model of a real run: what the server answers and says of itself, form by form."""

import dataclasses
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from ranking.apply import apply_weights
from ranking.errors import UserError
from ranking.export import ServedRanker, export_run
from ranking.exported.tables import tables_hash
from ranking.fusion import FusionWeights, fuse
from ranking.scoring import score_rows
from serving.publish import version_hashes, versions
from serving.rest import RankClient as RestClient
from serving.rpc import RankClient as GrpcClient
from serving.server import Server

pytestmark = pytest.mark.slow

N = 40
PARTS = ("similarity", "has_similarity", "pctr", "pcvr")


def segmented(run):
    return dataclasses.replace(run, schema=dataclasses.replace(run.schema, segment="segment"))


def in_form(run, form, **weights):
    """Weights of the run in a form, with constants of some of its own scores."""
    state = run.state
    items, users = state.item_ids[:N], state.user_ids[:5].repeat(N)
    frame = pd.DataFrame({"tab": ["home"] * len(users)})
    found = score_rows(run, state, users, pd.Index(np.tile(items, 5)), frame)
    parts = {name: found[name] for name in (*PARTS, "price")}
    offsets = np.arange(0, len(users) + 1, N)
    return FusionWeights.fit(parts, form, weights, run.info["parameters_hash"], offsets=offsets)


def wide(found, price):
    return {**{name: np.asarray(found[name], np.float64) for name in PARTS}, "price": np.asarray(price, np.float64)}


def wait_for(client, version):
    for _ in range(600):
        if client.live()["version"] == version:
            return client.live()
        time.sleep(0.05)
    raise AssertionError(f"version {version} was never live")


@pytest.fixture(autouse=True)
def ordinary_loads(monkeypatch):
    monkeypatch.setattr("serving.server.runtime.LOAD_NICENESS", 0)  # beside other processes one would never come about


@pytest.mark.parametrize("form", ["product", "sum", "rank"])
def test_what_is_served_is_fuse_before_and_after(tiny, tmp_path, form):
    """The hash of the weights file, of the manifest and of the server are one; the parts stay what they were."""
    run = segmented(tiny.run)
    first = in_form(run, form, similarity=0.2, pctr=1, pcvr=0.6, price=0.3)
    second = dataclasses.replace(
        first,
        weights={"similarity": 1.0, "pctr": 0.1, "pcvr": -0.2, "price": 0.0},
        segments={"new": {"similarity": -0.7, "price": 0.5}},
    )
    export_run(run, tmp_path / "models", weights=first)
    user, items = tiny.user_ids[0], run.state.item_ids[:N].tolist()
    price = np.linspace(1, 300, N).astype(np.float32)
    with Server(tmp_path / "models", rest_port=0, grpc_port=0, poll_seconds=0.05) as server:
        clients = (
            RestClient(f"http://127.0.0.1:{server.rest_port}", timeout=60),
            GrpcClient(f"127.0.0.1:{server.grpc_port}", timeout=60),
        )
        answers = {}
        for weights in (first, second):
            if weights is second:
                weights.save(tmp_path / "fusion.json")
                read = FusionWeights.load(tmp_path / "fusion.json", run.info["parameters_hash"])
                folder = apply_weights(tmp_path / "models", read)
                assert version_hashes(folder)["weights"] == weights.hash
                said = wait_for(clients[0], int(folder.name))
                assert said["hashes"] == version_hashes(folder)
                assert clients[1].live() | {"table_age_seconds": said["table_age_seconds"]} == said  # it grows
            for client in clients:
                assert client.live()["hashes"]["weights"] == weights.hash
                assert client.live()["hashes"]["parameters"] == run.info["parameters_hash"]
                for segment in ("new", "loyal"):
                    context = {"tab": "home", "segment": segment}
                    found = client.rank(user, items, context=context, price=price)
                    expected = fuse(wide(found, price), weights, segment=segment, offsets=[0, N])
                    np.testing.assert_allclose(found["score"], expected, rtol=1e-6, atol=1e-6)
                    answers[weights.hash, segment] = found
            declared = clients[0].metadata()["metadata"]["signature_def"]["signature_def"]
            assert ("serving_default" in declared) == (form != "rank")
            assert declared["rank"]["inputs"]["segment"]["tensor_shape"]["dim"][0]["size"] == "1"
        for client in clients:
            client.close()
    before, after = answers[first.hash, "new"], answers[second.hash, "new"]
    for name in before.keys() - {"score"}:
        assert np.array_equal(before[name], after[name]), name
    assert np.argsort(before["score"]).tolist() != np.argsort(after["score"]).tolist()
    assert answers[first.hash, "loyal"]["score"] == before["score"]
    assert answers[second.hash, "loyal"]["score"] != after["score"]


def test_weights_of_another_run_are_refused(exported, text, tmp_path):
    models = shutil.copytree(exported, tmp_path / "models")
    before = versions(models / "seedrank")
    with pytest.raises(UserError, match="belong to other parameters"):
        apply_weights(models, text.run.weights)
    assert versions(models / "seedrank") == before and len(before) == 1


def test_every_table_is_in_the_hash_of_the_tables(tiny):
    """Two exports of one state have one hash; any table that differs shows."""
    run = tiny.run

    def version(state):
        return tables_hash(state)[1]

    state, changed = run.state, []
    for name in ("prices", "centroids", "seed_counts", "user_vectors"):
        values = getattr(state, name).copy()
        values.flat[0] = 7
        changed.append(version(dataclasses.replace(state, **{name: values})))
    items = {**state.items, "item_id": state.items["item_id"][::-1].copy()}
    changed.append(version(dataclasses.replace(state, items=items)))
    table = state.statistics["item_ctr"]
    other = dataclasses.replace(table, values=table.values + 1)
    changed.append(version(dataclasses.replace(state, statistics={**state.statistics, "item_ctr": other})))
    assert len({version(state), *changed}) == 7 and version(state) == version(state)


def test_a_context_feature_called_segment_is_the_segment(tiny):
    def renamed(**changes):
        run = segmented(tiny.run)
        (tab,) = run.schema.side("context")
        features = [f for f in run.schema.features if f is not tab]
        schema = dataclasses.replace(
            run.schema, features=(*features, dataclasses.replace(tab, name="segment", **changes))
        )
        return dataclasses.replace(run, schema=schema)

    with pytest.raises(UserError, match="context feature `segment` has the name that the segment has on the wire"):
        ServedRanker(renamed(per="candidate"))
