"""A Redis stream followed by an ingest: durable before it is acknowledged, wrong entries set aside."""

import http.client
import json
import threading
import time

import pytest

from lookalike.click_kafka import KafkaSource
from lookalike.click_packing import pack
from lookalike.click_redis import RedisStreamSource
from lookalike.clicklog import FORGET
from ranking.errors import UserError
from ranking.ingest import Ingest
from ranking.ingest_log import LogWriter
from ranking.ingest_metrics import IngestMetrics
from ranking.ingest_streams import Stream, open_source
from tests.lookalike.redis_server import Server, needed

T = 1_767_225_600_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    needed()
    made = Server(tmp_path_factory.mktemp("r"))
    yield made
    made.stop()


def line(user=7, item="i", time=T, **more):
    return json.dumps({"user_id": user, "item_id": item, "time": time, **more})


def logged(log):
    return [
        row
        for batch in log.read(raw=True)
        for row in zip(batch.user.tolist(), batch.item_ids, batch.time.tolist(), batch.kind.tolist(), strict=True)
    ]


def wait_until(true, seconds=40):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def health(ingest):
    link = http.client.HTTPConnection("127.0.0.1", ingest.port, timeout=30)
    try:
        link.request("GET", "/healthz")
        return json.loads(link.getresponse().read())
    finally:
        link.close()


def test_an_ingest_follows_a_stream(server, tmp_path):
    admin, folder = server.admin(), tmp_path / "log"
    admin.xadd("clicks", {"events": line(1) + "\n" + line(2, kind="unclick")})
    url = f"{server.url()}?stream=clicks&group=g"
    with Ingest(folder, user_ids="int64", item_ids="string", port=0, stream=url) as ingest:
        value = ingest.metrics.value
        admin.xadd("clicks", {"events": pack([3, 4], ["a", "-"], [T, T], [0, FORGET])})
        for wrong in ("rubbish", line(item="a\nb"), line(item="x" * 300), line(time=5), line(user="7")):
            admin.xadd("clicks", {"events": wrong})
        admin.xadd("clicks", {"user_id": 5, "item_id": "ü", "time": T})
        wait_until(lambda: value("received", "stream") == 10)
        wait_until(lambda: admin.xinfo_groups("clicks")[0]["pending"] == 0)
        assert health(ingest)["stream"] == {"failing": ""}
        rows = [(1, "i", T, 0), (2, "i", T, 1), (3, "a", T, 0), (4, "-", T, FORGET), (5, "ü", T, 0)]
        assert sorted(logged(ingest.log.log)) == rows
        assert value("accepted", "stream") == value("refused", "stream") == 5
        reasons = [json.loads(one)["reason"] for one in (folder / "set-aside.jsonl").read_text().splitlines()]
        assert len(reasons) == 5 and any("control characters" in one for one in reasons)
        assert "seedrank_ingest_stream_failing 0" in ingest.metrics.text()


@pytest.mark.slow
def test_a_stream_that_is_away_is_told_and_comes_back(server, tmp_path):
    url = f"{server.url()}?stream=later"
    metrics = IngestMetrics()
    log = LogWriter(tmp_path / "log", metrics, user_ids="int64", item_ids="string")
    stream, stop = Stream(url, log, metrics), threading.Event()
    runner = threading.Thread(target=stream.run, args=(stop,))
    server.kill()
    runner.start()
    try:
        wait_until(lambda: "no connection" in stream.failing)
        server.start()
        server.admin().xadd("later", {"events": line()})
        wait_until(lambda: metrics.value("accepted", "stream") == 1 and not stream.failing)
    finally:
        stop.set()
        runner.join(30)
        log.close()
    assert not runner.is_alive()


def test_a_log_that_can_not_be_written_acknowledges_nothing(server, tmp_path, monkeypatch):
    admin, metrics = server.admin(), IngestMetrics()
    admin.xadd("kept", {"events": line()})
    log = LogWriter(tmp_path / "log", metrics, user_ids="int64", item_ids="string")
    stream = Stream(f"{server.url()}?stream=kept", log, metrics)

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(log.log, "append", broken)
        with pytest.raises(OSError, match="can not be written"):
            stream.step(0.1)
        assert admin.xinfo_groups("kept")[0]["pending"] == 1 and metrics.value("received") == 0
    assert stream.step(0.1) == 1
    assert admin.xinfo_groups("kept")[0]["pending"] == 0 and logged(log.log) == [(7, "i", T, 0)]
    log.close()


def test_urls(monkeypatch):
    pytest.importorskip("redis")
    pytest.importorskip("confluent_kafka")
    made = open_source("rediss://u:p%2Fw@h:6380/2?ssl_ca_certs=/c.pem&stream=a%20b&group=g", "me")
    assert isinstance(made, RedisStreamSource)
    assert (made._stream, made._group, made._consumer) == ("a b", "g", "me")
    settings = made._link._new.keywords
    assert (settings["password"], settings["db"], settings["ssl_ca_certs"]) == ("p/w", 2, "/c.pem")
    found = {}
    monkeypatch.setattr(KafkaSource, "__init__", lambda self, servers, **words: found.update(words, servers=servers))
    open_source("kafka://one:9092,two:9092/clicks?security.protocol=SSL&client.id=a%2Bb", "me")
    settings = {"security.protocol": "SSL", "client.id": "a+b"}
    assert found == {"servers": "one:9092,two:9092", "topic": "clicks", "group": "seedrank", "settings": settings}


@pytest.mark.parametrize(
    "url",
    ["", "clicks", "http://h/x", "redis://h/0", "redis://h/0?stream=", "redis://h?stream=x&group=", "kafka://h:9092",
     "kafka:///clicks", "kafka://u:secret@h/clicks", "redis://h:port?stream=x", "redis://h?stream=x&&y",
     "redis://u:secret@h?stream=x&no=option", "kafka://h/clicks?no.such=1", "kafka://h/clicks?enable.auto.commit=true"],
)  # fmt: skip
def test_urls_that_are_none(url):
    pytest.importorskip("redis")
    pytest.importorskip("confluent_kafka")
    with pytest.raises(UserError, match="--stream") as caught:
        open_source(url, "me")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("redis://h?stream=x", "redis", "redis"), ("kafka://h/x", "confluent_kafka", "kafka")],
)
def test_a_missing_extra_is_named(monkeypatch, url, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'seedrank\[{extra}\]'"):
        open_source(url, "me")
