"""The two clients: same calls, same answers, clear refusals."""

import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from serving.errors import DeadlineExceeded, InvalidArgument, NotFound, ServingError, Unavailable
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
    """The hashes of the manifest come over both wires, of the version that answers."""
    shutil.copytree(ranker / "text", tmp_path / "text")
    (tmp_path / "text" / "1" / "manifest.json").write_text('{"hashes": {"weights": "abc", "tables": "天"}}')
    with Server(tmp_path, rest_port=0, grpc_port=0) as server:
        clients = (
            RestClient(f"http://127.0.0.1:{server.rest_port}", "text", timeout=20),
            GrpcClient(f"127.0.0.1:{server.grpc_port}", "text", timeout=20),
        )
        for client in clients:
            with client:
                expected = {"version": 1, "state": "AVAILABLE", "hashes": {"weights": "abc", "tables": "天"}}
                assert client.live() == expected


def test_live_without_hashes_or_model(connect):
    with connect() as client:
        assert client.live() == {"version": 7, "state": "AVAILABLE", "hashes": {}}
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


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with RestClient(f"http://127.0.0.1:{port}", retries=2) as client, pytest.raises(Unavailable, match=str(port)):
        client.status()
    assert 0.15 <= time.monotonic() - start < 4  # pauses of 0.05 and 0.1 s between three attempts
    with GrpcClient(f"127.0.0.1:{port}", retries=1) as rpc, pytest.raises(Unavailable):
        rpc.status()


class _Flaky(BaseHTTPRequestHandler):
    answers: list[tuple[int, bytes]] = []

    def do_GET(self):
        if not self.answers:
            time.sleep(0.6)
        status, body = self.answers.pop(0) if self.answers else (200, b"{}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def flaky():
    server = HTTPServer(("127.0.0.1", 0), _Flaky)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_retries_only_what_may_pass(flaky):
    good = (200, b'{"model_version_status": []}')
    busy = (503, b'{"error": "busy"}')
    with RestClient(flaky, retries=2) as client:
        _Flaky.answers = [busy, busy, good]
        assert client.status() == []
        _Flaky.answers = [busy, busy, busy, good]
        with pytest.raises(Unavailable, match="busy"):
            client.status()
        assert _Flaky.answers == [good]
        _Flaky.answers = [(400, b'{"error": "no"}'), good]
        with pytest.raises(InvalidArgument, match="no"):
            client.status()
        assert _Flaky.answers == [good]
        _Flaky.answers = [(502, b"<html>")]
        with pytest.raises(ServingError, match="HTTP status 502"):
            client.status()


def test_deadline(flaky):
    _Flaky.answers = []
    with RestClient(flaky, timeout=0.2) as client, pytest.raises(DeadlineExceeded, match="within 0.2 seconds"):
        client.status()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RestClient("127.0.0.1:8501"), "`url` should start with http"),
        (lambda: RestClient(timeout=0), "`timeout` should be positive. Received: timeout=0."),
        (lambda: RestClient(retries=-1), "`retries` should not be negative. Received: retries=-1."),
        (lambda: GrpcClient("http://x:1"), "`address` should be host:port"),
        (lambda: GrpcClient(timeout=-1), "`timeout` should be positive. Received: timeout=-1."),
        (lambda: GrpcClient(retries=-1), "`retries` should not be negative. Received: retries=-1."),
    ],
)
def test_rejected_arguments(make, message):
    with pytest.raises(ServingError, match=message):
        make()


def test_a_context_column_by_candidate_repeats_a_single_value():
    tensors = {"user_id": ("DT_INT64", (1,)), "item_id": ("DT_INT64", (-1,)), "slot": ("DT_INT32", (-1,))}
    signature = Signature({name: Tensor(*parts) for name, parts in tensors.items()}, {})
    assert rank_inputs(signature, 1, [7, 8], context={"slot": 3})["slot"] == [3, 3]
    assert rank_inputs(signature, 1, [7, 8], context={"slot": [3, 4]})["slot"] == [3, 4]
    with pytest.raises(ServingError, match="`slot` should be int32 values. Received: 3.5."):
        rank_inputs(signature, 1, [7, 8], context={"slot": 3.5})


def test_the_rest_client_is_light():
    code = (
        "import sys, serving, serving.rest, serving.server, serving.publish, serving.rpc;"
        "heavy = {'tensorflow', 'keras', 'grpc'} & sys.modules.keys(); sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import sys, serving.rest; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
