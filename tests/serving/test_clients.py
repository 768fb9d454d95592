"""The two clients: same calls, same answers, clear refusals. How they try again is in test_retries.py."""

import inspect
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.client import Client
from serving.errors import InvalidArgument, NotFound, ServingError
from serving.manifest import Content, write_manifest
from serving.pin import PIN
from serving.rest import RankClient as RestClient
from serving.rpc import RankClient as GrpcClient
from serving.server import Server
from serving.signature import Signature, Tensor, rank_inputs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(ranker):
    with Server(ranker, rest_port=0, grpc_port=0) as server:
        yield server


@pytest.fixture(params=["rest", "grpc"])
def connect(request, server):
    def make(model="seedrank", **options):
        if request.param == "rest":
            return RestClient(f"http://127.0.0.1:{server.rest_port}", model, **{"timeout": 20.0, **options})
        return GrpcClient(f"127.0.0.1:{server.grpc_port}", model, **{"timeout": 20.0, **options})

    return make


def test_rank(connect):
    # score = 0.1 (item % 1000) + user + tab + price if known: item 9007199254740993 % 1000 = 993
    with connect() as client:
        answer = client.rank(2, [5, 9007199254740993], context={"tab": 1}, price=[10.0, math.nan])
        assert answer["echo"] == [5, 9007199254740993]
        assert answer["known_item"] == [True, False]
        assert answer["score"] == pytest.approx([0.5 + 2 + 1 + 10, 99.3 + 2 + 1], rel=1e-6)
        assert client.rank(2, np.array([5]), context={"tab": "1"})["score"] == pytest.approx([3.5])


def test_rank_with_weights(connect):
    with connect() as client:
        answer = client.rank(2, [5], context={"tab": 1}, weights={"pctr": 2})
        assert answer["score"] == pytest.approx([7.0])
        with pytest.raises(ServingError, match="`weights` should give at least one part"):
            client.rank(2, [5], context={"tab": 1}, weights={})
        with pytest.raises(ServingError, match="`weight_gmv` is not an input of the model"):
            client.rank(2, [5], context={"tab": 1}, weights={"pctr": 1, "gmv": 1})


def test_string_ids(connect):
    with connect("text") as client:
        assert client.rank(7, ["a/b", '喜"欢', 3]) == {"joined": ["7:a/b", '7:喜"欢', "7:3"]}
        with pytest.raises(ServingError, match="`price` is not an input of the model. It has: item_id, user_id."):
            client.rank(7, ["a"], price=[1.0])


def test_live(tmp_path, ranker):
    """What the manifest says, and the pin, come over both wires, of the version that answers."""
    shutil.copytree(ranker / "text", tmp_path / "text")
    facts = {"seed_watermark": 5, "weights": {"pctr": 1.0}}
    write_manifest(tmp_path / "text" / "1", 1, "", Content({"weights": "abc", "tables": "天"}, facts))
    (tmp_path / "text" / PIN).write_text('{"version": 1, "at": "2026-01-01"}')
    with Server(tmp_path, rest_port=0, grpc_port=0) as server:
        clients = (
            RestClient(f"http://127.0.0.1:{server.rest_port}", "text", timeout=20),
            GrpcClient(f"127.0.0.1:{server.grpc_port}", "text", timeout=20),
        )
        for client in clients:
            with client:
                assert client.live() == {
                    "version": 1,
                    "state": "AVAILABLE",
                    "table_age_seconds": None,
                    "pinned": {"version": 1, "at": "2026-01-01"},
                    "hashes": {"weights": "abc", "tables": "天"},
                    "facts": facts,
                }


def test_live_without_hashes_or_model(connect):
    with connect() as client:
        empty = {"table_age_seconds": None, "pinned": None, "hashes": {}, "facts": {}}
        assert client.live() == {"version": 7, "state": "AVAILABLE", **empty}
    with connect("absent") as client, pytest.raises(NotFound):
        client.live()


def test_refusals(connect):
    with connect() as client:
        with pytest.raises(ServingError, match="`context` should give 'tab'"):
            client.rank(2, [5])
        with pytest.raises(ServingError, match="`user_id` should be int64 values. Received: 'bob'."):
            client.rank("bob", [5], context={"tab": 1})
        with pytest.raises(ServingError, match="`item_ids` should be a list. Received: item_ids=5."):
            client.rank(1, 5, context={"tab": 1})
        with pytest.raises(ServingError, match="the model has no signature 'serving_default'. It has: rank, "):
            client.predict({"x": [1]})
        with pytest.raises(InvalidArgument):
            client.predict({"user_id": [1], "item_id": [1, 2], "tab": [0], "price": [1.0, 2.0, 3.0]}, signature="rank")
        with pytest.raises(NotFound, match=r"Servable not found for request: Specific\(seedrank, 99\)"):
            client.predict({}, signature="rank", version=99)
    with connect("nope") as client:
        with pytest.raises(NotFound, match="Could not find any versions of model nope"):
            client.status()
        with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(nope\)"):
            client.rank(1, [2])


def test_status_and_versions(connect):
    with connect() as client:
        assert client.status() == [{"version": 7, "state": "AVAILABLE", "error_code": "OK", "error_message": ""}]
        assert client.predict(
            {"user_id": [1], "item_id": [2], "tab": [0], "price": [0.0]}, signature="rank", version=7
        )["score"] == pytest.approx([1.2])


def test_grpc_sends_no_number_changed(server):
    with GrpcClient(f"127.0.0.1:{server.grpc_port}", timeout=20) as client:
        good = {"user_id": [1], "item_id": [2], "tab": [0], "price": [0]}
        for wrong in ({"user_id": [1.5]}, {"user_id": [2**63]}, {"price": ["1"]}, {"tab": [True]}):
            with pytest.raises(ServingError, match=f"`{next(iter(wrong))}` can not be sent as"):
                client.predict({**good, **wrong}, signature="rank")
        assert client.predict({**good, "item_id": [], "price": []}, signature="rank")["echo"] == []
        with pytest.raises(InvalidArgument, match=r"Sent extra: \{nope\}"):
            client.predict({**good, "nope": [1]}, signature="rank")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RestClient("127.0.0.1:8501"), "`url` should start with http"),
        (lambda: RestClient(timeout=0), "`timeout` should be positive. Received: timeout=0."),
        (lambda: RestClient(retries=-1), "`retries` should not be negative. Received: retries=-1."),
        (
            lambda: RestClient(max_table_age=0),
            "`max_table_age` should be a positive number of seconds. Received: .*=0.",
        ),
        (lambda: RestClient(hard_table_age=math.nan), "`hard_table_age` should be a positive .* Received: .*=nan."),
        (lambda: GrpcClient("http://x:1"), "`address` should be host:port"),
        (lambda: GrpcClient(timeout=-1), "`timeout` should be positive. Received: timeout=-1."),
        (lambda: GrpcClient(max_table_age=-1), "`max_table_age` should be a positive .* Received: .*=-1."),
        (lambda: GrpcClient(hard_table_age=math.inf), "`hard_table_age` should be a positive .* Received: .*=inf."),
        (lambda: GrpcClient(retries=-1), "`retries` should not be negative. Received: retries=-1."),
    ],
)
def test_rejected_arguments(make, message):
    with pytest.raises(ServingError, match=message):
        make()


def test_a_context_column_by_candidate_repeats_a_single_value():
    tensors = {"user_id": ("DT_INT64", (1,)), "item_id": ("DT_INT64", (-1,)), "slot": ("DT_INT32", (-1,))}
    signature = Signature({name: Tensor(*parts) for name, parts in tensors.items()}, {})
    assert rank_inputs(signature, {"user_id": 1}, [7, 8], context={"slot": 3})["slot"] == [3, 3]
    assert rank_inputs(signature, {"user_id": 1}, [7, 8], context={"slot": [3, 4]})["slot"] == [3, 4]
    with pytest.raises(ServingError, match="`slot` should be int32 values. Received: 3.5."):
        rank_inputs(signature, {"user_id": 1}, [7, 8], context={"slot": 3.5})


def test_both_have_the_same_calls():
    def calls(kind):
        public = {name: member for name, member in inspect.getmembers(kind) if callable(member) and name[0] != "_"}
        return {name: str(inspect.signature(member)) for name, member in public.items()}

    assert calls(RestClient) == calls(GrpcClient) == calls(Client)
    assert {"rank", "rank_top", "rank_features", "rank_embedding", "predict", "status", "metadata", "live"} <= set(
        calls(Client)
    )
    both = [list(inspect.signature(kind).parameters)[1:4] for kind in (RestClient, GrpcClient)]
    assert both == [["model", "timeout", "retries"]] * 2


def test_metadata(connect, server):
    with connect() as client:
        found = client.metadata(version=7)
        assert found["model_spec"] == {"name": "seedrank", "signature_name": "", "version": "7"}
        tensor = found["metadata"]["signature_def"]["signature_def"]["rank"]["inputs"]["user_id"]
        assert tensor["dtype"] == "DT_INT64"
        with pytest.raises(ServingError, match="`version` and `label` should not both be given. Received: 7 and 'x'."):
            client.metadata(version=7, label="x")


def test_outputs(connect):
    with connect() as client:
        assert client.rank(2, [5], context={"tab": 1}, outputs=["echo"]) == {"echo": [5]}
        with pytest.raises(ServingError, match="`outputs` should be of the model's: echo, known_item, score. Received"):
            client.rank(2, [5], context={"tab": 1}, outputs=["scores"])


def test_arrays_and_lists_are_the_same(connect):
    ids = np.arange(2**53, 2**53 + 5000)
    prices = np.linspace(0, 9, 5000, dtype=np.float32)
    with connect() as client:
        answer = client.rank(np.int64(2), ids, context={"tab": np.array([1])}, price=prices)
        assert answer["echo"] == list(range(2**53, 2**53 + 5000))  # no double holds the odd ones
        assert answer == client.rank(2, ids.tolist(), context={"tab": 1}, price=prices.tolist())


def test_many_threads_with_one_client(connect):
    wrong = []

    def ask(user):
        for item in range(10):
            answer = client.rank(user, [item], context={"tab": 0})
            if abs(answer["score"][0] - (user + 0.1 * item)) > 1e-4:
                wrong.append((user, item, answer))

    with connect() as client:
        threads = [threading.Thread(target=ask, args=(user,)) for user in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_compressed_requests(server):
    with RestClient(f"http://127.0.0.1:{server.rest_port}", timeout=20, compress=True) as client:
        assert client.rank(2, list(range(1000)), context={"tab": 1})["echo"] == list(range(1000))


class _Scripted(Client):
    """A client whose model changes: `models` are its input and output names, each with dtype and shape."""

    def __init__(self, *models):
        super().__init__("m", 5.0, 2)
        self.models = list(models)
        self.asked = []

    def _metadata(self, which, deadline):
        def side(tensors):
            return {
                name: {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(size)} for size in shape]}}
                for name, (dtype, shape) in tensors.items()
            }

        signatures = {
            name: {"inputs": side(inputs), "outputs": side({"score": ("DT_FLOAT", [-1])})}
            for name, inputs in self.models[0].items()
        }
        return {"metadata": {"signature_def": {"signature_def": signatures}}}

    def _predict(self, signature, declared, inputs, outputs, which, deadline):
        if declared.inputs.keys() != self.models[0][signature].keys():
            raise InvalidArgument("input size does not match signature")
        self.asked.append((signature, inputs, which))
        return {"score": [1.0]}, None

    def status(self): ...

    def live(self): ...

    def close(self): ...


ITEM = {"item_id": ("DT_INT64", [-1])}


def test_top_features_and_embedding():
    model = {
        "rank_top": {"user_id": ("DT_INT64", [1]), "top": ("DT_INT32", [1]), **ITEM, "tab": ("DT_STRING", [1])},
        "rank_features": {"age": ("DT_FLOAT", [1]), "tags": ("DT_STRING", [1, -1]), **ITEM},
        "rank_embedding": {"user_vector": ("DT_FLOAT", [1, 2]), "embedding_space_id": ("DT_INT64", [1]), **ITEM},
    }
    client = _Scripted(model)
    client.rank_top(7, [1, 2], 1, context={"tab": "home"}, label="canary")
    assert client.asked[-1] == (
        "rank_top", {"user_id": [7], "top": [1], "item_id": [1, 2], "tab": ["home"]}, (None, "canary")
    )  # fmt: skip
    client.rank_features({"age": 30, "tags": ["a", "b"]}, [1], version=3)
    assert client.asked[-1] == ("rank_features", {"age": [30], "tags": [["a", "b"]], "item_id": [1]}, (3, None))
    client.rank_embedding([0.5, 1.0], 2**60 + 1, [1])
    assert client.asked[-1][1] == {"user_vector": [[0.5, 1.0]], "embedding_space_id": [2**60 + 1], "item_id": [1]}
    client.rank_embedding(np.array([0.5, 1.0]), 9, np.array([1]))
    assert client.asked[-1][1]["user_vector"].shape == (1, 2)
    with pytest.raises(ServingError, match="`features` or `context` should give 'tags': the model asks for it."):
        client.rank_features({"age": 30}, [1])
    with pytest.raises(ServingError, match="the model has no signature 'rank'. It has: rank_embedding, rank_feat"):
        client.rank(7, [1])


def test_a_new_version_with_other_inputs():
    old = {"rank": {"user_id": ("DT_INT64", [1]), **ITEM}}
    new = {"rank": {"user_id": ("DT_INT64", [1]), **ITEM, "tab": ("DT_STRING", [1])}}
    text = {"rank": {"user_id": ("DT_STRING", [1]), **ITEM}}
    client = _Scripted(old)
    client.rank(7, [1])
    client.models = [new]
    client.rank(7, [1], context={"tab": "home"})  # refused by what was known, before it was sent
    assert client.asked[-1][1]["tab"] == ["home"]
    client.models = [old]
    client.rank(7, [1])  # likewise
    client.models = [text]
    with pytest.raises(ServingError, match="`context` should give 'tab'"):
        client.models = [new]
        client.rank(7, [1])
    client.models = [text]
    client.rank("bob", [1])
    assert client.asked[-1][1]["user_id"] == ["bob"]


def test_a_new_version_on_a_server(tmp_path, save_half, ranker, connect):
    """The server refuses what was right for the version before; the client reads the metadata again."""
    save_half(tmp_path / "m" / "1")
    with Server(tmp_path, rest_port=0, grpc_port=0, poll_seconds=0.05) as server:
        clients = (
            RestClient(f"http://127.0.0.1:{server.rest_port}", "m", timeout=20),
            GrpcClient(f"127.0.0.1:{server.grpc_port}", "m", timeout=20),
        )
        for client in clients:
            assert client.predict({"x": [[2.0]]}) == {"y": [[3.0]]}  # 0.5 * 2 + 2
        staged = tmp_path / "staged"
        shutil.copytree(ranker / "seedrank" / "7", staged)
        staged.rename(tmp_path / "m" / "2")
        while not any(found["version"] == 2 and found["state"] == "AVAILABLE" for found in clients[0].status()):
            pass
        for client in clients:
            with client:
                assert client.rank(2, [5], context={"tab": 1})["echo"] == [5]


def test_the_clients_are_light():
    code = (
        "import sys, serving.rpc, serving.rest;"
        "heavy = {'grpc', 'google.protobuf'} & sys.modules.keys();"
        "serving.rpc.RankClient();"
        "heavy |= {'tensorflow', 'keras', 'tensorflow_serving'} & sys.modules.keys(); sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import sys, serving.rest; sys.exit(bool({'numpy', 'grpc', 'tensorflow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_labels(ranker, tmp_path):
    """The same over both wires, on a server with labels."""
    config = tmp_path / "models.config"
    config.write_text(
        f"""model_config_list {{ config {{
            name: "seedrank" base_path: "{ranker / "seedrank"}" model_platform: "tensorflow"
            version_labels {{ key: "stable" value: 7 }} }} }}"""
    )
    with Server(models_config=config, rest_port=0, grpc_port=0) as server:
        clients = (
            RestClient(f"http://127.0.0.1:{server.rest_port}", timeout=20),
            GrpcClient(f"127.0.0.1:{server.grpc_port}", timeout=20),
        )
        for client in clients:
            with client:
                assert client.rank(2, [5], context={"tab": 1}, label="stable")["echo"] == [5]
                assert client.metadata(label="stable")["model_spec"]["version"] == "7"
                with pytest.raises(InvalidArgument, match="Unrecognized servable version label: canary"):
                    client.rank(2, [5], context={"tab": 1}, label="canary")
