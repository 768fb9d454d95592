"""More requests than the machine carries: served as well as before, the rest refused at once; and a quiet end."""

import json
import threading
import time

import pytest
import urllib3

from serving.protos import messages
from serving.server import Server
from serving.server import server as server_module
from serving.server.admission import Admission

PATH = "/v1/models/slow:predict"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory):
    """n -> n by counting up: as slow as asked for."""
    import tensorflow as tf

    path = tmp_path_factory.mktemp("slow") / "slow"

    class Count(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="n")])
        def run(self, n):
            zero = tf.zeros([], tf.int64)
            return {"y": tf.while_loop(lambda i: i < n, lambda i: i + 1, [zero], parallel_iterations=1)[0]}

    module = Count()
    tf.saved_model.save(module, str(path / "1"), signatures=module.run)
    return path


@pytest.fixture
def small(monkeypatch):
    """A server that works on one request at a time and has two wait."""
    monkeypatch.setattr(server_module, "Admission", lambda: Admission(limit=1, queue=2))


def message(n):
    request = messages("tensorflow_serving/apis/predict.proto").PredictRequest()
    request.model_spec.name = "slow"
    request.inputs["n"].dtype = 9
    request.inputs["n"].int64_val.append(n)
    return request.SerializeToString()


def rest(server, n, **options):
    with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=60) as pool:
        response = pool.urlopen("POST", PATH, body=json.dumps({"inputs": n}), retries=False, **options)
    return response.status, json.loads(response.data)


def counted(server, seconds=20.0, **wanted):
    """Waits until the server has so many running and waiting."""
    end = time.monotonic() + seconds
    while {name: server._admission.counts[name] for name in wanted} != wanted:
        assert time.monotonic() < end, server._admission.counts
        time.sleep(0.005)


@pytest.fixture(scope="module")
def long_count(slow_model):
    """How far to count for a quarter of a second or more."""
    with Server(slow_model, rest_port=0, grpc_port=0, poll_seconds=3600) as server:
        n = 10_000
        rest(server, n)  # the first is slower
        while True:
            begun = time.monotonic()
            assert rest(server, n)[0] == 200
            if time.monotonic() - begun > 0.25:
                return n
            n *= 2


def in_background(work, count):
    found = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def test_both_transports_share_one_queue(slow_model, long_count, small):
    import grpc

    with (
        Server(slow_model, rest_port=0, grpc_port=0, poll_seconds=3600) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        call = channel.unary_unary(PREDICT)
        first = call.future(message(2 * long_count), timeout=60)
        counted(server, running=1)
        threads, found = in_background(lambda: rest(server, 1), 1)
        second = call.future(message(1), timeout=60)
        counted(server, running=1, waiting=2)
        words = "The server has too much to do: 2 requests wait already."
        assert rest(server, 1) == (429, {"error": words})
        with pytest.raises(grpc.RpcError) as caught:
            call(message(1), timeout=60)
        assert (caught.value.code().name, caught.value.details()) == ("RESOURCE_EXHAUSTED", words)
        # Questions after the state are answered meanwhile.
        with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=20) as pool:
            assert pool.urlopen("GET", "/v1/models/slow").status == 200
            text = pool.urlopen("GET", "/monitoring/prometheus/metrics").data.decode()
        assert "seedrank_requests_waiting{} 2" in text
        assert first.result() and second.result()
        threads[0].join()
        assert found == [(200, {"outputs": 1})]
        counted(server, running=0, waiting=0, refused=2)


def test_deadlines_and_cancels_in_the_queue_free_it(slow_model, long_count, small):
    import grpc

    with (
        Server(slow_model, rest_port=0, grpc_port=0, poll_seconds=3600) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        call = channel.unary_unary(PREDICT)
        first = call.future(message(2 * long_count), timeout=60)
        counted(server, running=1)
        hasty = call.future(message(1), timeout=0.05)
        fickle = call.future(message(1), timeout=60)
        assert hasty.exception(timeout=20).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        counted(server, running=1, waiting=1)
        fickle.cancel()
        counted(server, running=1, waiting=0)
        # A REST client that goes away while it waits.
        with pytest.raises(urllib3.exceptions.TimeoutError):
            with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=0.05) as pool:
                pool.urlopen("POST", PATH, body=b'{"inputs": 1}', retries=False)
        counted(server, running=1, waiting=0)
        with pytest.raises(grpc.RpcError) as caught:
            call(message(1), timeout=0.001)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert first.result()


def test_ten_times_too_much(slow_model, long_count, small):
    """Thirty callers where three have a place: what is served is as much as with three, the rest is refused."""
    n = long_count // 4

    def served(server, callers, seconds=2.0):
        end = time.monotonic() + seconds
        counts = {200: 0, 429: 0}
        lock = threading.Lock()

        def ask():
            with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=60) as pool:
                while time.monotonic() < end:
                    status = pool.urlopen("POST", PATH, body=json.dumps({"inputs": n}), retries=False).status
                    with lock:
                        counts[status] += 1
                    if status == 429:
                        time.sleep(0.25)  # as a client that is told to

        for thread in in_background(ask, callers)[0]:
            thread.join()
        return counts

    with Server(slow_model, rest_port=0, grpc_port=0, poll_seconds=3600) as server:
        usual, overload = served(server, 3), served(server, 30)
    assert usual[429] == 0
    assert overload[429] > overload[200] > 0
    assert (
        overload[200] >= 0.5 * usual[200]
    )  # the callers take their share of the machine: the benchmark's have their own


def test_a_stop_under_load_fails_nothing_that_had_begun(slow_model, long_count, small):
    import grpc

    server = Server(slow_model, rest_port=0, grpc_port=0, poll_seconds=3600)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(PREDICT)
        first = call.future(message(2 * long_count), timeout=60)
        counted(server, running=1)
        threads, found = in_background(lambda: rest(server, long_count), 1)
        counted(server, running=1, waiting=1)
        second = call.future(message(long_count), timeout=60)
        counted(server, running=1, waiting=2)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while not server._admission._draining:
            time.sleep(0.005)
        assert rest(server, 1) == (503, {"error": "The server is shutting down."})
        with pytest.raises(grpc.RpcError) as caught:
            call(message(1), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert first.result() and second.result()
        threads[0].join()
        stopping.join()
    assert found == [(200, {"outputs": long_count})]
