"""Tables that grow old: answers say so, then there is no answer; a balancer is told; a newer version ends it."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import urllib3

from serving import age
from serving.age import table_age
from serving.errors import RequestError, ServingError, StaleTables
from serving.manifest import Content, write_manifest
from serving.rest import RankClient as RestClient
from serving.rpc import RankClient as GrpcClient
from serving.server import Server

TICK = 1_800_000_000_000  # milliseconds
HOUR = 3600


class Clock:
    """Seconds since 1970, as the test says: `at` after TICK."""

    def __init__(self):
        self.at = 0.0

    def time(self):
        return TICK / 1000 + self.at


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(age, "time", SimpleNamespace(time=clock.time))
    return clock


@pytest.fixture
def add(tmp_path, save_model):
    """`add(version, watermark, model="m")`: score = item, from tables of that watermark."""
    import tensorflow as tf

    def build(watermark):
        def signatures(v1):
            user, item = v1.placeholder(tf.int64, [1]), v1.placeholder(tf.int64, [None])
            outputs = {"score": tf.cast(item, tf.float32)}
            if watermark is not None:
                outputs["seed_watermark"] = tf.fill(tf.shape(item), tf.constant(watermark, tf.int64))
            return {"rank": ("predict", {"user_id": user, "item_id": item}, outputs)}

        return signatures

    def add(version, watermark, model="m"):
        staged = save_model(tmp_path / "staged" / model / str(version), build(watermark))
        write_manifest(staged, version, "", Content({}, {} if watermark is None else {"seed_watermark": watermark}))
        (tmp_path / "models" / model).mkdir(parents=True, exist_ok=True)
        staged.rename(tmp_path / "models" / model / str(version))
        return tmp_path / "models"

    return add


@pytest.fixture
def serve():
    servers = []

    def start(models, **options):
        servers.append(Server(models, rest_port=0, grpc_port=0, poll_seconds=0.02, **options))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def connect(kind, server, model="m", **limits):
    if kind == "rest":
        return RestClient(f"http://127.0.0.1:{server.rest_port}", model, timeout=20, **limits)
    return GrpcClient(f"127.0.0.1:{server.grpc_port}", model, timeout=20, **limits)


def get(server, path):
    with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=20) as pool:
        reply = pool.urlopen("GET", path)
        return reply.status, reply.data.decode()


def healthz(server):
    status, text = get(server, "/healthz")
    return status, json.loads(text)


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def asked(server):
    """How many requests the server has been sent."""
    _, text = get(server, "/monitoring/prometheus/metrics")
    name = ':tensorflow:serving:request_count{model_name="m",status="OK"} '
    return sum(int(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


def test_the_age_of_a_watermark(clock):
    clock.at = HOUR
    assert table_age(TICK) == 3600.0
    assert table_age(TICK + 3_600_500) == 0.0  # by a clock that is ahead
    # Counts and not times: ordinal datasets; what a model of one's own may call the same.
    for other in (900, 10**12 - 1, -1, None, "1800000000000", math.nan, [TICK], True):
        assert table_age(other) is None


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_an_answer_is_stale_then_refused_and_a_newer_version_ends_it(kind, clock, add, serve):
    server = serve(add(1, TICK))
    with connect(kind, server, max_table_age=HOUR, hard_table_age=2 * HOUR) as client:
        for at, stale in ((-5, False), (0, False), (HOUR, False), (HOUR + 1, True), (2 * HOUR, True)):
            clock.at = at
            answer = client.rank(1, [7, 8])
            assert answer == {"score": [7.0, 8.0], "seed_watermark": [TICK] * 2}
            assert (answer.table_age, answer.stale) == (max(at, 0), stale)
        clock.at = 2 * HOUR + 1
        for outputs in (None, ["score"]):
            with pytest.raises(
                StaleTables, match="the tables are 7,201 seconds old; `hard_table_age` is 7200."
            ) as caught:
                client.rank(1, [7, 8], outputs=outputs)
            assert caught.value.code == "FAILED_PRECONDITION"
        with connect(kind, server) as other:  # who gave no limits gets answers
            answer = other.rank(1, [7, 8])
            assert (answer.table_age, answer.stale) == (7201.0, False)
        add(2, TICK + 7_200_000)
        until(lambda: client.live()["version"] == 2)
        answer = client.rank(1, [7], outputs=["score"])
        assert (answer, answer.table_age, answer.stale) == ({"score": [7.0]}, 1.0, False)


def test_the_refusal_is_one_a_caller_knows():
    assert issubclass(StaleTables, RequestError)  # who falls back at those falls back here


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_outputs_without_the_watermark_cost_one_more_request_a_version_at_most(kind, clock, add, serve):
    server = serve(add(1, TICK))
    clock.at = HOUR
    with connect(kind, server, max_table_age=60) as client:
        counts = []
        for _ in range(3):
            answer = client.rank(1, [7], outputs=["score"])
            assert (answer, answer.table_age, answer.stale) == ({"score": [7.0]}, 3600.0, True)
            counts.append(asked(server))
        assert counts == ([1, 2, 3] if kind == "rest" else [2, 3, 4])


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_model_that_does_not_tell(kind, clock, add, serve):
    server = serve(add(1, None))
    with connect(kind, server) as client:
        assert client.rank(1, [7]).table_age is None
    with (
        connect(kind, server, hard_table_age=1) as client,
        pytest.raises(ServingError, match="needs the output seed_watermark of 'rank'. It has: score."),
    ):
        client.rank(1, [7])


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_watermark_that_is_no_time_never_is_stale(kind, clock, add, serve):
    with connect(kind, serve(add(1, 900)), max_table_age=1, hard_table_age=1) as client:
        answer = client.rank(1, [7])
        assert (answer.table_age, answer.stale) == (None, False)


def test_metrics_and_live_tell_the_age(clock, add, serve):
    for model, watermark in (("m", TICK), ("ordinal", 900), ("silent", None)):
        models = add(1, watermark, model)
    server = serve(models)
    for at in (HOUR, HOUR + 60):
        clock.at = at
        _, text = get(server, "/monitoring/prometheus/metrics")
        lines = [line for line in text.splitlines() if line.startswith("seedrank_table_age_seconds")]
        assert lines == [f'seedrank_table_age_seconds{{model_name="m",version="1"}} {at}']
        for kind in ("rest", "grpc"):
            for model, expected in (("m", at), ("ordinal", None), ("silent", None)):
                with connect(kind, server, model) as client:
                    assert client.live()["table_age_seconds"] == expected


def health(server):
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", "ModelService", "PredictionService")
        found = {stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status for name in names}
    return {health_pb2.HealthCheckResponse.ServingStatus.Name(status) for status in found}  # while it changes, both


def test_a_server_of_old_tables_is_not_ready_and_answers(clock, add, serve, monkeypatch):
    from serving.server import server as server_module

    monkeypatch.setattr(server_module, "HEALTH_SECONDS", 0.02)
    add(1, None, "silent")
    models = add(1, TICK)
    clock.at = HOUR
    server = serve(models, hard_table_age=HOUR)
    assert healthz(server) == (200, {"ready": True})
    assert health(server) == {"SERVING"}
    clock.at = HOUR + 180
    old = (503, {"ready": False, "error": "The tables of model m are 1:03:00 old."})
    assert healthz(server) == old
    until(lambda: health(server) == {"NOT_SERVING"})
    for kind in ("rest", "grpc"):
        with connect(kind, server) as client:
            assert client.rank(1, [7])["score"] == [7.0]
    assert healthz(serve(models, hard_table_age=HOUR)) == old  # from its start on
    assert healthz(serve(models)) == (200, {"ready": True})  # no limit
    add(2, TICK + 3_600_000)
    until(lambda: healthz(server) == (200, {"ready": True}))
    until(lambda: health(server) == {"SERVING"})


def test_a_server_that_stops_is_not_ready(clock):
    from serving.server.health import Health

    problems = [""]
    health = Health(lambda: problems[0])
    assert health.problem() == ""
    health.stop()
    assert health.problem() == "The server is shutting down."
    health.look()  # a look that comes late changes nothing
    health.watch(0.001)  # and the looking is over


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf])
def test_rejected_limits_of_a_server(limit):
    with pytest.raises(ServingError, match="`hard_table_age` should be a positive number of seconds. Received: hard"):
        Server("models", hard_table_age=limit)
