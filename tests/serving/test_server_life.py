"""The server from its configuration to its end: models.config and its changes, health, metrics, the drain at a stop."""

import json
import subprocess
import sys
import threading
import time

import pytest
import urllib3

from serving.errors import ServingError, Unavailable
from serving.rest import RankClient
from serving.rpc import RankClient as GrpcClient
from serving.server import Server
from serving.server.bundle import Bundle
from serving.server.encode import LIVE_BYTES, live_reply
from serving.server.memory import Memory
from serving.server.versions import VersionStatus


def config(*models):
    listed = "\n".join(
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}'
        for name, path, more in models
    )
    return f"model_config_list {{ {listed} }}"


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def answer(server, name="half", **which):
    with RankClient(f"http://127.0.0.1:{server.rest_port}", name, retries=0, timeout=20) as client:
        return client.predict({"x": [[0.0]]}, **which)["y"][0][0]


def get(server, path):
    with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=20) as pool:
        return pool.urlopen("GET", path).data.decode()


@pytest.fixture
def halves(tmp_path, save_half):
    """half/1: y = 0.5 x + 1; half/2: + 2; other/1: + 3."""
    for path, constant in (("half/1", 1.0), ("half/2", 2.0), ("other/1", 3.0)):
        save_half(tmp_path / "models" / path, constant)
    return tmp_path / "models"


def test_a_change_of_the_file_takes_effect_while_it_runs(tmp_path, halves):
    file = tmp_path / "models.config"
    both = "model_version_policy { latest { num_versions: 2 } }"
    file.write_text(config(("half", halves / "half", both + ' version_labels { key: "stable" value: 1 }')))
    with Server(models_config=file, config_poll_seconds=0.02, poll_seconds=0.02, rest_port=0, grpc_port=0) as server:
        assert [answer(server), answer(server, label="stable")] == [2.0, 1.0]
        file.write_text("model_config_list { config { nam")  # half written: stays as it was
        time.sleep(0.1)
        assert answer(server, label="stable") == 1.0
        file.write_text(
            config(
                ("half", halves / "half", both + ' version_labels { key: "stable" value: 2 }'),
                ("other", halves / "other", ""),
            )
        )
        until(lambda: '"AVAILABLE"' in get(server, "/v1/models/other"))
        assert [answer(server, label="stable"), answer(server, "other")] == [2.0, 3.0]


def test_what_a_server_is_started_with(tmp_path, halves):
    with pytest.raises(ServingError, match="one of `models_dir` and `models_config` should be given"):
        Server()
    with pytest.raises(ServingError, match="one of `models_dir` and `models_config` should be given"):
        Server(halves, models_config=tmp_path / "models.config")
    with pytest.raises(ServingError, match="`config_poll_seconds` should not be negative. Received: .*=-1"):
        Server(models_config=tmp_path / "models.config", config_poll_seconds=-1)
    with pytest.raises(ServingError, match="`models_config` should be a file"):
        Server(models_config=tmp_path / "models.config", rest_port=0, grpc_port=0).start()


def health(channel, service=""):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(
        stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
    )


@pytest.fixture
def counting(tmp_path):
    """n -> n by counting up: as slow as asked for."""
    import tensorflow as tf

    class Count(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="n")])
        def run(self, n):
            zero = tf.zeros([], tf.int64)
            return {"y": tf.while_loop(lambda i: i < n, lambda i: i + 1, [zero], parallel_iterations=1)[0]}

    module = Count()
    tf.saved_model.save(module, str(tmp_path / "count" / "1"), signatures=module.run)
    return tmp_path / "count"


@pytest.mark.slow
def test_a_stop_answers_what_runs_and_refuses_what_is_new(counting, monkeypatch):
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    go, predict = threading.Event(), Bundle.predict
    monkeypatch.setattr(Bundle, "predict", lambda *a, **named: go.wait(120) and predict(*a, **named))
    with Server(counting, rest_port=0, grpc_port=0) as server:
        address = f"127.0.0.1:{server.grpc_port}"
        answers, seen = [], []
        with grpc.insecure_channel(address) as channel:
            assert [health(channel, name) for name in ("", "ModelService", "PredictionService")] == ["SERVING"] * 3
            with pytest.raises(grpc.RpcError) as caught:
                health(channel, "nothing")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watching).status == health_pb2.HealthCheckResponse.SERVING

            def ask():
                with GrpcClient(address, "count", timeout=120) as client:
                    answers.append(client.predict({"n": 4_000})["y"])

            running = threading.Thread(target=ask)
            running.start()
            until(lambda: "seedrank_requests_running{} 1" in get(server, "/monitoring/prometheus/metrics"))
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            seen.append(next(watching).status)
            assert not answers  # told before the last answer is there
            until(lambda: server._admission._draining)
            with GrpcClient(address, "count", retries=0, timeout=20) as client, pytest.raises(Unavailable):
                client.predict({"n": 1}, signature="serving_default")
            go.set()
            stopping.join()
            running.join()
        assert seen == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert [int(value) for value in answers] == [4_000]


def test_a_stop_leaves_no_thread(halves):
    before = set(threading.enumerate())
    with Server(halves, rest_port=0, grpc_port=0, hard_table_age=3600.0) as server:
        assert answer(server, "other") == 3.0
    until(lambda: not [thread.name for thread in set(threading.enumerate()) - before if "serving" in thread.name])


def test_metrics_of_a_server(halves):
    with Server(halves, rest_port=0, grpc_port=0) as server:
        answer(server)
        with GrpcClient(f"127.0.0.1:{server.grpc_port}", "half", timeout=20) as client:
            client.predict({"x": [[0.0]]})
        text = get(server, "/monitoring/prometheus/metrics")
    assert ':tensorflow:serving:request_count{model_name="half",status="OK"} 2\n' in text
    for api, entrypoint in (("Predict", "GRPC"), ("predict", "REST")):
        labels = f'{{model_name="half",API="{api}",entrypoint="{entrypoint}"}}'
        assert f":tensorflow:serving:request_latency_count{labels} 1\n" in text
    assert (
        f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{halves / "half" / "2"}",status="success"}} 1'
        in text
    )
    assert 'seedrank_loaded_version{model_name="half",version="2"} 1\n' in text
    assert "process_resident_memory_bytes{} " in text


def test_the_live_reply_fits_into_a_header():
    facts = {"seed_watermark": 5, "huge": ["x" * 10_000], "weights": {"pctr": 1.0}}
    hashes = {f"part{number}": "0" * 64 for number in range(100)}
    reply = live_reply(VersionStatus(1, "AVAILABLE", hashes={"tables": "a"}, facts=facts))
    found = json.loads(reply)
    assert found["facts"] == {"seed_watermark": 5, "weights": {"pctr": 1.0}}
    assert (found["left_out"], found["pinned"]) == (1, None)
    assert len(live_reply(VersionStatus(1, "AVAILABLE", hashes=hashes, facts=facts))) < LIVE_BYTES + 200


def test_a_limit_of_the_process_counts():
    code = """
import resource
from serving.server.memory import available_bytes
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (100 << 20), resource.RLIM_INFINITY))
print(available_bytes() >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 80 <= int(done.stdout) <= 100


def test_limits_of_groups(tmp_path, monkeypatch):
    """1,000 bytes of which 700 are taken, 200 of them by files' pages: 500 are left; the group above has no limit."""
    from serving.server import memory

    inner = tmp_path / "fs" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("1000\n")
    (inner.parent / "memory.max").write_text("max\n")
    for folder in (inner, inner.parent):
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    real = memory.Path
    places = {"/proc/self/cgroup": tmp_path / "cgroup", "/sys/fs/cgroup": tmp_path / "fs"}
    monkeypatch.setattr(memory, "Path", lambda path: places.get(str(path), real(path)))
    assert list(memory._groups()) == [500]
    assert Memory()._available() <= 500
