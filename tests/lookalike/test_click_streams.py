"""From a stream into the log: what is acknowledged is on the disk; the contract of a source on Redis and on Kafka."""

import base64
import errno
import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from lookalike.click_kafka import KafkaSource
from lookalike.click_packing import pack
from lookalike.click_redis import RedisStreamSource
from lookalike.click_streams import Entry, Pump
from lookalike.clicklog import CLICK, UNCLICK, ClickLog
from lookalike.redis_link import StoreUnavailable
from lookalike.seeds import SeedStore
from tests.lookalike.redis_server import Fake, Server, allow, needed

pytestmark = pytest.mark.slow  # a real server, and waits

NOW = 1_760_000_000_000
numbers = itertools.count()


def line(user, item=7, time=NOW, **more):
    return json.dumps({"user_id": user, "item_id": item, "time": time, **more}).encode()


def users(log):
    return [user for batch in log.read() for user in batch.user.tolist()]


def aside(pump):
    return [json.loads(text) for text in pump.set_aside.read_text().splitlines()] if pump.set_aside.exists() else []


@pytest.fixture
def log(tmp_path):
    with ClickLog(tmp_path / "log") as log:
        yield log


# The pump, on a source that is a list.


class Listed:
    def __init__(self, *values):
        self.left = [Entry(f"at {number}", number, value) for number, value in enumerate(values)]
        self.acknowledged, self.given, self.fail = [], [], None

    def pull(self, wait):
        if self.fail:
            raise StoreUnavailable(self.fail)
        self.given = self.left
        return self.given

    def acknowledge(self, entries):
        self.acknowledged += [entry.receipt for entry in entries]
        self.left = [entry for entry in self.left if entry.receipt not in self.acknowledged]

    def again(self):
        self.left = self.given

    def close(self):
        pass


def test_good_entries_are_taken_and_bad_ones_set_aside(log):
    values = [line(1) + b"\n" + line(2), b"rubbish", pack([3, 4], [7, 7], [NOW, NOW], [CLICK, UNCLICK]), line("text")]
    source = Listed(*values, {b"user_id": b"5", b"item_id": b"7", b"time": b"1"}, {b"odd": b"\xff"})
    pump = Pump(source, log)
    assert pump.once() == 5
    assert users(log) == [1, 2, 3, 4, 5]
    assert source.acknowledged == [0, 1, 2, 3, 4, 5]
    found = aside(pump)
    assert [one["place"] for one in found] == ["at 1", "at 3", "at 5"]
    assert [base64.b64decode(one["base64"]) for one in found[:2]] == [b"rubbish", values[3]]
    assert found[2]["base64"] == {"b2Rk": "/w=="}
    assert pump.counters == {"entries": 6, "events": 5, "malformed": 3, "dropped": 0, "failures": 0}
    assert pump.once() == 0


def test_what_the_log_refuses_is_set_aside_and_the_rest_taken(tmp_path):
    with ClickLog(tmp_path / "log", user_ids="string") as log:
        source = Listed(line("a"), line("x" * 100_000), line(""), line("\ud800"), line("b"))
        pump = Pump(source, log)
        assert pump.once() == 2
        assert [text for batch in log.read(raw=True) for text in batch.user_ids] == ["a", "b"]
        assert len(aside(pump)) == 3 and len(source.acknowledged) == 5


def test_the_file_is_bounded_and_the_count_goes_on(log):
    source = Listed(*[b"rubbish"] * 10)
    pump = Pump(source, log, set_aside_bytes=300)
    pump.once()
    assert pump.set_aside.stat().st_size <= 300
    assert pump.counters["malformed"] == 10 == pump.counters["dropped"] + len(aside(pump))


@pytest.mark.parametrize("broken", ["log", "file"])
def test_nothing_is_acknowledged_that_is_not_on_the_disk(log, monkeypatch, broken):
    source = Listed(line(1), b"rubbish")
    pump = Pump(source, log)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync" if broken == "log" else "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            pump.once()
    assert source.acknowledged == [] and pump.counters["failures"] == 1
    assert aside(pump) == []
    pump.once()
    assert source.acknowledged == [0, 1] and len(aside(pump)) == 1
    store = SeedStore()
    for batch in log.read():
        store.apply(batch)
    assert store.seed_counts([7]).tolist() == [1]  # however often it was delivered


def test_a_run_goes_on_when_the_source_is_back(log, caplog):
    caplog.set_level(logging.WARNING)
    source, stop = Listed(line(1)), threading.Event()
    source.fail = "the stream is away"
    runner = threading.Thread(target=Pump(source, log).run, args=(stop,))
    runner.start()
    try:
        wait_until(lambda: "the stream is away" in caplog.text)
        source.fail = None
        wait_until(lambda: source.acknowledged)
    finally:
        stop.set()
        runner.join(20)
    assert users(log) == [1] and not runner.is_alive()


def wait_until(true, seconds=40):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# The contract of a source.


class Redis:
    """A stream of a real server, read by the user that the docstring describes."""

    def __init__(self, server):
        self.server, self.name = server, f"clicks-{next(numbers)}"
        self.admin = server.admin()
        self.url = server.url(*allow(self.admin, RedisStreamSource.__doc__, **{"~clicks": "~clicks*"}))

    def add(self, *values):
        for value in values:
            self.admin.xadd(self.name, value if isinstance(value, dict) else {"events": value})

    def source(self, **settings):
        return RedisStreamSource(self.url, stream=self.name, group="g", **{"deadline": 60.0, **settings})

    def left(self):
        group = self.admin.xinfo_groups(self.name)[0]
        return group["pending"] + (group["lag"] or 0)


class Kafka:
    """A topic of the mock cluster that librdkafka starts in this process."""

    def __init__(self, kafka):
        self.kafka, self.name = kafka, f"clicks-{next(numbers)}"
        self.producer = kafka.Producer({"test.mock.num.brokers": 1, "logger": Quiet()})
        broker = next(iter(self.producer.list_topics(timeout=20).brokers.values()))
        self.servers = f"{broker.host}:{broker.port}"
        self.added = 0

    def add(self, *values):
        for value in values:
            self.producer.produce(self.name, value, partition=0)
            self.added += 1
        assert self.producer.flush(20) == 0

    def source(self, **settings):
        quick = {"session.timeout.ms": 15_000, "topic.metadata.refresh.interval.ms": 200, "heartbeat.interval.ms": 100}
        settings = {"settings": quick | settings.pop("settings", {}), **settings}
        return KafkaSource(self.servers, topic=self.name, group="g", **settings)

    def left(self):
        consumer = self.kafka.Consumer({"bootstrap.servers": self.servers, "group.id": "g", "logger": Quiet()})
        offset = consumer.committed([self.kafka.TopicPartition(self.name, 0)], timeout=20)[0].offset
        consumer.close()
        return self.added - max(offset, 0)


class Quiet:
    def log(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    needed()
    made = Server(tmp_path_factory.mktemp("r"))
    yield made
    made.stop()


@pytest.fixture(params=["redis", "kafka"])
def stream(request):
    if request.param == "redis":
        return Redis(request.getfixturevalue("server"))
    return Kafka(pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed"))


def move(pump, events):
    """Moves until so many events were appended."""
    end = time.monotonic() + 60
    while pump.counters["events"] < events:
        assert time.monotonic() < end
        pump.once(0.2)


class TestSource:
    def test_moves_and_acknowledges(self, stream, log):
        stream.add(line(1), pack(np.arange(2, 502), np.full(500, 7), np.full(500, NOW)), line(502) + b"\n" + line(503))
        source = stream.source()
        pump = Pump(source, log)
        move(pump, 503)
        assert users(log) == [*range(1, 504)]
        assert stream.left() == 0
        stream.add(line(504))
        move(pump, 504)
        source.close()
        assert users(log)[-1] == 504 and stream.left() == 0

    @pytest.mark.slow  # Kafka's group waits for who left it
    def test_what_was_not_acknowledged_comes_again_after_a_crash(self, stream, log):
        stream.add(*map(line, range(10)))
        first = stream.source()
        pulled = 0
        while not pulled:
            pulled = len(first.pull(0.5))
        first.close()  # before it acknowledged anything
        second = stream.source()
        move(Pump(second, log), 10)
        second.close()
        assert users(log) == [*range(10)] and stream.left() == 0

    def test_what_could_not_be_appended_comes_again(self, stream, log, monkeypatch):
        stream.add(*map(line, range(10)))
        source = stream.source()
        pump = Pump(source, log)
        with monkeypatch.context() as patch:
            patch.setattr(log, "append", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
            wait_until(lambda: failed(pump))
        assert users(log) == [] and stream.left() == 10
        move(pump, 10)
        source.close()
        assert sorted(set(users(log))) == [*range(10)] and stream.left() == 0

    def test_malformed_entries_do_not_stop_it(self, stream, log):
        stream.add(b"rubbish", line(1), b"", b"SRC1", line("x"), line(2))
        source = stream.source()
        pump = Pump(source, log)
        move(pump, 2)
        wait_until(lambda: pump.once(0.1) == 0)
        source.close()
        assert users(log) == [1, 2] and len(aside(pump)) == 4 and stream.left() == 0

    def test_rejected(self, stream):
        name = "entries" if isinstance(stream, Redis) else "messages"
        with pytest.raises(ValueError, match=f"`{name}` should be a positive integer. Received: {name}=0."):
            stream.source(**{name: 0})


def failed(pump):
    try:
        pump.once(0.2)
    except OSError:
        return True
    return False


# Of Redis alone.


def test_entries_of_an_event_each(server, log):
    stream = Redis(server)
    for user in range(3):
        stream.add({"user_id": user, "item_id": 7, "time": NOW, "kind": "unclick"})
    stream.add({"user_id": 9}, {"user_id": 9, "item_id": 7, "time": NOW, "events": "x"})
    pump = Pump(stream.source(), log)
    move(pump, 3)
    assert users(log) == [0, 1, 2] and len(aside(pump)) == 2 and stream.left() == 0


def test_a_dead_consumers_entries_are_taken_over(server, log):
    stream = Redis(server)
    stream.add(*map(line, range(250)))
    dead = stream.source(consumer="dead", entries=120)
    assert len(dead.pull(0.1)) == 120
    live = stream.source(consumer="live", idle=0.2)
    pump = Pump(live, log)
    move(pump, 250)
    assert sorted(users(log)) == [*range(250)] and stream.left() == 0


def test_entries_trimmed_off_before_they_were_read_are_counted(server, log):
    stream = Redis(server)
    stream.add(*map(line, range(20)))
    assert len(stream.source(entries=10).pull(0.1)) == 10
    stream.admin.xtrim(stream.name, maxlen=5, approximate=False)
    source = stream.source(entries=3)
    move(Pump(source, log), 5)
    assert users(log) == [15, 16, 17, 18, 19] and source.deleted == 10
    assert stream.admin.xinfo_groups(stream.name)[0]["pending"] == 0


def test_a_stream_deleted_meanwhile_is_made_anew(server, log):
    stream = Redis(server)
    stream.add(line(1))
    pump = Pump(stream.source(), log)
    move(pump, 1)
    stream.admin.delete(stream.name)
    with pytest.raises(StoreUnavailable, match="NOGROUP"):
        pump.once(0.1)
    stream.add(line(2))
    pump._source._link._rest_until = 0.0
    move(pump, 2)
    assert users(log) == [1, 2]


def test_a_reply_lost_on_the_way_is_read_again(server, log, monkeypatch):
    stream = Redis(server)
    stream.add(line(1), line(2))
    source = stream.source()
    read, lost = source._read, []

    def losing(session, after, wait):
        found = read(session, after, wait)
        if after == b">" and not lost:
            lost.append(found)
            raise ConnectionResetError("reset by peer")
        return found

    monkeypatch.setattr(source, "_read", losing)
    move(Pump(source, log), 2)
    assert users(log) == [1, 2] and len(lost[0]) == 2 and stream.left() == 0


def test_the_user_of_the_docstring_may_do_no_more(server):
    import redis

    stream = Redis(server)
    client = redis.Redis.from_url(stream.url, protocol=2)
    name = stream.name
    for command in (
        "XADD {0} * a b", "XDEL {0} 0-1", "XTRIM {0} MAXLEN 0", "XGROUP DESTROY {0} g", "XGROUP SETID {0} g 0",
        "DEL {0}", "XACK other g 0-1", "EVAL return 0", "KEYS *", "CONFIG GET *", "FLUSHALL",
    ):  # fmt: skip
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.format(name).split())


def consume(url, name, folder):
    with ClickLog(folder) as log:
        Pump(RedisStreamSource(url, stream=name, group="g", consumer="c", entries=3), log).run(threading.Event())


@pytest.mark.slow
def test_a_consumer_killed_at_any_moment_loses_nothing(server, tmp_path):
    stream = Redis(server)
    fork, generator = multiprocessing.get_context("fork"), random.Random(3)
    for user in range(900):
        stream.add(line(user))
    stream.source().pull(0.05)  # the group is there; these are pending
    kills = 0
    while stream.left() and kills < 100:
        process = fork.Process(target=consume, args=(stream.url, stream.name, tmp_path / "log"))
        process.start()
        time.sleep(generator.uniform(0.01, 0.15) * (1 + kills / 10))  # longer lives where a disk is slow
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if kills == 3:
            stream.source(idle=0.001, entries=1000)._link.run(  # what this test pulled is let go
                lambda session: session.ask_one(b"XAUTOCLAIM", stream.name, b"g", b"c", 0, b"0-0", b"COUNT", 1000)
            )
    with ClickLog(tmp_path / "log", write=False) as log:
        assert set(users(log)) == {*range(900)} and kills > 3


GARBLED = [
    b"*1\r\n$1\r\na\r\n", b":1\r\n", b"+OK\r\n", b"*2\r\n*0\r\n*0\r\n", b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n:5\r\n",
    b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*1\r\n:1\r\n", b"nonsense\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", GARBLED)
def test_answers_that_cannot_be_right(data, log):
    pytest.importorskip("redis")

    def talk(connection, _):
        while connection.recv(65536):
            connection.sendall(data)

    fake = Fake(talk)
    try:
        source = RedisStreamSource(fake.url, stream="s", group="g", deadline=0.5)
        pump = Pump(source, log)
        with pytest.raises(StoreUnavailable) as caught:
            pump.once(0.1)
        assert "hidden" not in str(caught.value)
        assert users(log) == [] and pump.counters["failures"] == 1
    finally:
        fake.close()


@pytest.mark.parametrize(("name", "wrong"), [("stream", ""), ("group", ""), ("idle", 0.0)])
def test_rejected(name, wrong):
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match=f"`{name}` should"):
        RedisStreamSource("redis://localhost", **{"stream": "s", "group": "g", name: wrong})


# Of Kafka alone.


@pytest.fixture
def kafka():
    return pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"no.such.setting": 1}, "librdkafka"),
        ({"enable.auto.commit": True}, "leave enable.auto.commit alone"),
        ({"bootstrap.servers": "x"}, "leave bootstrap.servers alone"),
    ],
)
def test_settings_of_kafka(kafka, settings, words):
    with pytest.raises(ValueError, match=words):
        KafkaSource("localhost:1", topic="t", group="g", settings=settings)


def test_no_broker_is_an_error_and_no_hang(kafka):
    source = KafkaSource("127.0.0.1:1", topic="t", group="g", settings={"sasl.password": "hidden"})
    begin = time.monotonic()
    try:
        for _ in range(3):
            source.pull(0.2)
    except StoreUnavailable as error:
        assert "hidden" not in str(error)
    assert time.monotonic() - begin < 30
    source.close()


def test_kafka_errors_reach_the_pump(kafka, log):
    """Commits that fail, and messages that are errors, on a consumer that answers as told."""

    class Consumer:
        fail = False

        def consume(self, count, wait):
            return [Message(1)] if not self.fail else [Message(0, kafka.KafkaError(kafka.KafkaError._ALL_BROKERS_DOWN))]

        def commit(self, offsets, asynchronous):
            raise kafka.KafkaException(kafka.KafkaError(kafka.KafkaError.ILLEGAL_GENERATION))

    class Message:
        def __init__(self, offset, error=None):
            self.error, self.offset = (lambda: error), (lambda: offset)
            self.topic, self.partition, self.value = (lambda: "t"), (lambda: 0), (lambda: line(1))

    source = KafkaSource("127.0.0.1:1", topic="t", group="g")
    real, source._consumer = source._consumer, Consumer()
    pump = Pump(source, log)
    with pytest.raises(StoreUnavailable, match="generation"):
        pump.once()
    assert users(log) == [1]  # durable, and comes again
    source._consumer.fail = True
    with pytest.raises(StoreUnavailable, match="broker"):
        pump.once()
    real.close()


@pytest.mark.parametrize(("module", "extra"), [("redis", "redis"), ("confluent_kafka", "kafka")])
def test_without_the_package_it_says_what_to_install(monkeypatch, module, extra):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'seedrank\[{extra}\]'"):
        if module == "redis":
            RedisStreamSource("redis://localhost", stream="s", group="g")
        else:
            KafkaSource("localhost", topic="t", group="g")
