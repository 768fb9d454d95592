"""What the clients do when a server is slow, busy, away or broken: scripted servers, one a protocol."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from serving import client as client_module
from serving.errors import (
    CODES,
    HTTP_STATUS,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RequestError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from serving.protos import messages
from serving.rest import RankClient as RestClient
from serving.rpc import RankClient as GrpcClient

STATUS = messages("tensorflow_serving/apis/get_model_status.proto")


class _Script:
    """What the server answers, one a request: a code, or seconds to wait before it is fine; then always fine."""

    def __init__(self):
        self.ended = threading.Event()
        self.answers = []
        self.requests = []  # REST: the paths; gRPC: label and seconds left
        self.connections = set()

    def next(self):
        return self.answers.pop(0) if self.answers else "OK"


def _rest_server(script):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            script.requests.append(self.path)
            script.connections.add(self.client_address)
            answer = script.next()
            if isinstance(answer, float):
                script.ended.wait(answer)
                answer = "OK"
            words = {"error": f"the words of {answer}"}
            content = json.dumps({"model_version_status": []} if answer == "OK" else words).encode()
            with contextlib.suppress(OSError):  # the client may have left
                self.send_response(HTTP_STATUS[answer])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    return f"http://127.0.0.1:{server.server_port}", stop


def _grpc_server(script):
    codes = {code.value[0]: code for code in grpc.StatusCode}

    def status(request, context):
        script.requests.append((request.model_spec.version_label, context.time_remaining()))
        script.connections.add(context.peer())
        answer = script.next()
        if isinstance(answer, float):
            script.ended.wait(answer)
        elif answer != "OK":
            context.abort(codes[CODES.index(answer)], f"the words of {answer}")
        return STATUS.GetModelStatusResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        status, STATUS.GetModelStatusRequest.FromString, STATUS.GetModelStatusResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", {"GetModelStatus": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return f"127.0.0.1:{port}", lambda: server.stop(0).wait()


@pytest.fixture(params=["rest", "grpc"])
def flaky(request):
    """`(script, connect)`."""
    script = _Script()
    address, stop = {"rest": _rest_server, "grpc": _grpc_server}[request.param](script)
    kind = {"rest": RestClient, "grpc": GrpcClient}[request.param]
    yield script, lambda **options: kind(address, **{"timeout": 20.0, **options})
    script.ended.set()
    stop()


@pytest.fixture
def pauses(monkeypatch):
    """The upper ends of the pauses; none is slept."""
    ends = []
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: ends.append((low, high)) or 0.0)
    return ends


def test_unavailable_is_tried_again(flaky, pauses):
    script, connect = flaky
    with connect(retries=2) as client:
        script.answers = ["UNAVAILABLE", "UNAVAILABLE"]
        assert client.status() == []
        assert len(script.requests) == 3
        assert pauses == [(0, 0.05), (0, 0.1)]
        script.answers = ["UNAVAILABLE"] * 4
        with pytest.raises(Unavailable, match="^the words of UNAVAILABLE$"):
            client.status()
        assert len(script.requests) == 6 and len(script.answers) == 1
    with connect(retries=0) as client, pytest.raises(Unavailable):
        client.status()


def test_pauses_do_not_grow_for_ever(flaky, pauses):
    script, connect = flaky
    script.answers = ["UNAVAILABLE"] * 7
    with connect(retries=7) as client:
        client.status()
    assert [high for _, high in pauses] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("RESOURCE_EXHAUSTED", ResourceExhausted),
        ("INVALID_ARGUMENT", InvalidArgument),
        ("NOT_FOUND", NotFound),
        ("DEADLINE_EXCEEDED", DeadlineExceeded),
        ("INTERNAL", Internal),
        ("UNAUTHENTICATED", Unauthenticated),
        ("PERMISSION_DENIED", PermissionDenied),
        ("ABORTED", RequestError),
    ],
)
def test_other_errors_are_raised_at_once(flaky, code, kind):
    script, connect = flaky
    script.answers = [code]
    with connect() as client, pytest.raises(kind, match=f"^the words of {code}$") as caught:
        client.status()
    assert type(caught.value) is kind and caught.value.code == code
    assert len(script.requests) == 1


@pytest.mark.slow
def test_the_deadline_is_that_of_all_attempts(flaky, monkeypatch):
    script, connect = flaky
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: 0.2)
    with connect(timeout=4.0, retries=5) as client:
        script.answers = ["UNAVAILABLE", 60.0]
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.status()
        assert time.monotonic() - start < 30  # not the 60 s of the server
        assert len(script.requests) == 2
    if isinstance(client, GrpcClient):
        (_, first), (_, second) = script.requests
        # The server is told what is left: not 4 s an attempt. (gRPC rounds longer ones up to whole seconds.)
        assert second < first - 0.1


def test_no_pause_beyond_the_deadline(flaky, monkeypatch):
    script, connect = flaky
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: 30.0)
    script.answers = ["UNAVAILABLE"]
    with connect() as client, pytest.raises(Unavailable):
        client.status()
    assert len(script.requests) == 1


def test_one_connection(flaky):
    script, connect = flaky
    with connect() as client:
        script.answers = ["OK", "NOT_FOUND", "OK", "UNAVAILABLE"]
        for _ in range(5):
            try:
                client.status()
            except NotFound:
                pass
    assert len(script.requests) == 6 and len(script.connections) == 1


@pytest.mark.parametrize("kind", [RestClient, GrpcClient])
def test_nobody_there(kind, pauses):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}" if kind is RestClient else f"127.0.0.1:{port}"
    with kind(address, retries=2) as client, pytest.raises(Unavailable):
        client.status()
    assert len(pauses) == 2


def test_labels_and_versions_are_part_of_the_path(pauses):
    script = _Script()
    script.answers = ["NOT_FOUND"] * 2
    url, stop = _rest_server(script)
    with RestClient(url, model="a/b", timeout=60) as client:
        for which in ({"label": "new one"}, {"version": 3}):
            with pytest.raises(NotFound):
                client.metadata(**which)
    stop()
    assert script.requests == [
        "/v1/models/a%2Fb/labels/new%20one/metadata", "/v1/models/a%2Fb/versions/3/metadata"
    ]  # fmt: skip


class _Raw:
    """Sends the given bytes after a request and hangs up."""

    def __init__(self, reply: bytes):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.requests = 0
        self.reply = reply
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                self.requests += 1
                connection.sendall(self.reply)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.mark.parametrize(
    ("reply", "attempts", "kind", "message"),
    [
        (b"", 3, Unavailable, "can not be reached"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", 1, RequestError, "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 1, RequestError, "broke off"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\n{", 1, RequestError, "broke off"),
        (b"SSH-2.0-OpenSSH\r\n", 1, RequestError, "is broken"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", 1, RequestError, "no JSON"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", 3, Unavailable, "HTTP status 502"),
        (b"HTTP/1.1 418 Tea\r\nContent-Length: 2\r\n\r\n[]", 1, RequestError, "HTTP status 418"),
        (b"HTTP/1.1 413 Big\r\nContent-Length: 0\r\n\r\n", 1, ResourceExhausted, "HTTP status 413"),
    ],
)
def test_a_reply_that_began_is_not_asked_for_again(reply, attempts, kind, message, pauses):
    server = _Raw(reply)
    with RestClient(server.url, retries=2, timeout=60) as client, pytest.raises(kind, match=message) as caught:
        client.status()
    server.close()
    assert type(caught.value) is kind
    assert server.requests == attempts


def test_a_reply_that_trickles():
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def run():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=run)
    thread.start()
    with RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=3.0) as client:
        with pytest.raises(DeadlineExceeded, match=r"no whole answer from .* within 3.0 seconds"):
            client.status()
    stop.set()
    thread.join()
    listener.close()
