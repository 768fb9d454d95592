"""The shared seed store: the contract on a real server, several writers, rights, faults of server and network."""

import itertools
import multiprocessing
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from lookalike import redis_ledger, redis_reads, redis_writes, seeds_redis
from lookalike.clicklog import CLICK, FORGET, UNCLICK, ClickLog, keys_of
from lookalike.redis_partition import open_partition
from lookalike.seeds import SeedStore
from lookalike.seeds_redis import RedisSeedStore, StoreUnavailable
from lookalike.snapshots import SnapshotError
from tests.lookalike.redis_server import BINARY, Fake, Proxy, Server, allow, needed
from tests.lookalike.seed_store_contract import NOW, SeedStoreContract, balanced, batch, clicks, expected, feed, listed

pytestmark = pytest.mark.slow  # a real server, and waits

names = (f"test-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    needed()
    made = Server(tmp_path_factory.mktemp("r"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def application(server):
    """URL of the user whom the docstring describes, for stores named test-*."""
    return server.url(*allow(server.admin(), **{"~{seeds}:*": "~{test-*}:*"}))


class TestContract(SeedStoreContract):
    @pytest.fixture
    def make_store(self, application):
        made = []

        def make(**settings):
            for store in made:
                store.close()
            made.append(RedisSeedStore(application, name=next(names), **{"deadline": 60.0, **settings}))
            return made[-1]

        yield make
        for store in made:
            store.close()


# Several writers.


def some_events(seed, count=600):
    generator = random.Random(seed)
    return [
        (generator.randrange(200), generator.randrange(4), NOW - generator.randrange(5000), kind)
        for kind in generator.choices([CLICK, UNCLICK, FORGET], [30, 3, 0.1], k=count)
    ]


def write(url, name, partition, events, latest, size=40):
    store = RedisSeedStore(url, name=name, partition=partition, latest=latest)
    while store.offset < len(events):
        start = store.offset
        store.apply(batch(start, events[start : start + size]))
    store.close()


@pytest.mark.parametrize("lease", [2000, 1])  # nothing depends on the lock: for 1 ms it helps nobody
def test_writers_of_several_partitions_and_two_of_one(application, monkeypatch, lease):
    monkeypatch.setattr(redis_ledger, "_LEASE", lease)
    parts = [some_events(seed) for seed in range(3)]
    name = next(names)
    fork = multiprocessing.get_context("fork")
    writers = [
        fork.Process(target=write, args=(application, name, str(number), events, 50))
        for number, events in [*enumerate(parts), (0, parts[0])]
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store = RedisSeedStore(application, name=name, latest=50)
    _, seeds = expected([event for part in parts for event in part], 50)
    assert listed(store, sorted(seeds)) == dict(sorted(seeds.items()))
    assert balanced(store).accepted == sum(map(len, parts))  # partition 0 once, for all its two writers


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_loses_nothing_and_counts_nothing_twice(application, server):
    events, name = some_events(9, 6000), next(names)
    fork, generator = multiprocessing.get_context("fork"), random.Random(1)
    killed = 0
    for _ in range(200):
        writer = fork.Process(target=write, args=(application, name, "0", events, 50, 30))
        writer.start()
        writer.join(generator.uniform(0.02, 0.12))
        if writer.exitcode == 0:
            break
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        killed += 1
        store = RedisSeedStore(application, name=name, latest=50)
        offset = store.offset
        _, seeds = expected(events[:offset], 50)
        assert listed(store, sorted(seeds)) == dict(sorted(seeds.items()))
        assert balanced(store).accepted == offset and offset % 30 == 0
        store.close()
        server.admin().delete(f"{{{name}}}:lock")  # in place of the end of its lease
    assert killed >= 3


def test_a_dead_writers_lock_delays_and_does_not_stop(application, server, monkeypatch):
    monkeypatch.setattr(redis_ledger, "_LEASE", 200)
    name = next(names)
    server.admin().set(f"{{{name}}}:lock", "1")  # for ever
    store = RedisSeedStore(application, name=name)
    feed(store, clicks((1, 7, 0)))
    assert listed(store, [7]) == {7: [(1, 0)]}


def test_offset_and_counts_are_of_one_moment_for_who_looks_on(application):
    name, events = next(names), some_events(3, 2000)
    writer = threading.Thread(target=write, args=(application, name, "0", events, 1000, 13))
    writer.start()
    looker = RedisSeedStore(application, name=name, latest=1000)
    while writer.is_alive():
        numbers = looker._numbers()
        assert sum(numbers.get(kind, 0) for kind in ("applied", "late", "invalid", "duplicate")) == numbers.get(
            "offset 0", 0
        )
    writer.join()
    assert looker.counts.accepted == looker.offset == 2000


def test_writers_with_other_settings_are_refused(application):
    name = next(names)
    feed(RedisSeedStore(application, name=name), clicks((1, 7, 0)))
    other = RedisSeedStore(application, name=name, latest=5)
    for work in (lambda: other.apply(batch(1, clicks((2, 7, 0)))), lambda: other.offset):
        with pytest.raises(ValueError, match="every writer of the store should have its settings"):
            work()


# The same as the engine in memory, with little room in every part.


@pytest.mark.parametrize("seed", range(6))
def test_small_parts_and_pages_change_nothing(application, monkeypatch, seed):
    monkeypatch.setattr(redis_reads, "_PAGE", 7)
    monkeypatch.setattr(redis_writes, "_SLICE", 3)
    monkeypatch.setattr(seeds_redis, "_CHUNK", 11)
    monkeypatch.setattr(seeds_redis, "_CUT", 2)
    settings = {"latest": 40, "byte_budget": None if seed % 2 else 16 * 90}
    memory, shared = SeedStore(**settings), RedisSeedStore(application, name=next(names), **settings)
    events = some_events(seed, 700)
    for start in range(0, 700, 100):
        for store in (memory, shared):
            store.apply(batch(start, events[start : start + 100]))
        assert shared.effective_latest == memory.effective_latest
        for newest in (None, 3, 20):
            assert listed(shared, range(5), newest=newest) == listed(memory, range(5), newest=newest)
    assert shared.erase(range(30)) == memory.erase(range(30))
    assert listed(shared, range(5)) == listed(memory, range(5))


def test_numbers_kept_are_those_of_the_keys(application, server):
    name = next(names)
    store = RedisSeedStore(application, name=name, latest=30, byte_budget=16 * 80)
    feed(store, some_events(2, 900), (70,))
    store.erase(range(20))
    admin, prefix = server.admin(), f"{{{name}}}:"
    entries = {key: admin.zcard(key) for key in admin.keys(prefix + "c:*")}
    sizes = admin.zrange(prefix + "sizes", 0, -1, withscores=True)
    assert sum(entries.values()) == sum(score for _, score in sizes) == store.nbytes / 16
    for key in admin.keys(prefix + "r:*"):  # none is removed who has no entry
        assert set(admin.zrange(key, 0, -1)) <= set(admin.zrange(key.replace(b":r:", b":c:"), 0, -1))


# Rights, secrets, injection.

FORBIDDEN = [
    "EVAL return 0", "EVALSHA a 0", "SCRIPT LOAD x", "FUNCTION LIST", "CONFIG GET *", "KEYS *", "SCAN 0", "FLUSHALL",
    "FLUSHDB", "MODULE LIST", "ACL LIST", "SHUTDOWN", "REPLICAOF a 1", "MONITOR", "SAVE", "BGSAVE",
    "CLIENT LIST", "SUBSCRIBE a", "MIGRATE a 1 a 0 1", "RENAME {test-1}:a {test-1}:b", "GET {test-1}:meta", "DUMP a",
    "DEL other", "HGETALL {other}:meta", "ZADD {other}:c:1 1 a",
]  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN)
def test_the_user_of_the_docstring_may_do_no_more(application, command):
    import redis

    client = redis.Redis.from_url(application, protocol=2)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split())
    client.close()


@pytest.mark.parametrize("password", ["wrong-secret", "no:such@secret"])
def test_wrong_password(server, password):
    from urllib.parse import quote

    store = RedisSeedStore(server.url("seedrank", quote(password, safe="")), name=next(names))
    with pytest.raises(StoreUnavailable, match="access refused") as caught:
        store.apply(batch(0, clicks((1, 7, 0))))
    assert "secret" not in str(caught.value) + repr(store) + str(caught.value.__cause__)


def test_no_login(server):
    server.admin().config_set("requirepass", "abc")
    try:
        with pytest.raises(StoreUnavailable, match="refused"):
            RedisSeedStore(server.url(), name=next(names)).items()
    finally:
        import redis

        redis.Redis(unix_socket_path=str(server.socket), password="abc").config_set("requirepass", "")


NASTY = [
    "a\r\nFLUSHALL\r\n", "{other}:meta", "*3\r\n$3\r\nSET\r\n", "\x00", "}{", "seeds}:meta", "x" * 60_000,
    "🎈", "../..", "' OR 1=1", "a b",
]  # fmt: skip


def test_texts_as_ids_cannot_reach_into_keys_or_commands(application, server, tmp_path):
    name = next(names)
    admin = server.admin()
    admin.set("canary", "sings")
    store = RedisSeedStore(application, name=name)
    with ClickLog(tmp_path / "log", user_ids="string", item_ids="string") as log:
        pairs = [(user, item) for user in NASTY for item in NASTY]
        log.append([user for user, _ in pairs], [item for _, item in pairs], [NOW] * len(pairs))
        for one in log.read():
            store.apply(one)
        with pytest.raises(ValueError, match="at most"):
            log.append(["x" * 1_000_000], ["a"], [NOW])
    assert store.seed_counts(keys_of([*NASTY, "x" * 1_000_000])).tolist() == [len(NASTY)] * len(NASTY) + [0]
    assert sorted(store.seeds(keys_of(NASTY[:1]))[1].tolist()) == sorted(keys_of(NASTY).tolist())
    pattern = rf"\{{{name}\}}:(meta|sizes|changed|removals|forgotten|[cr]:[0-9a-f]{{16}})"
    of_store = [key.decode() for key in admin.keys("*") if name.encode() in key]
    assert len(of_store) == 3 + len(NASTY) and all(re.fullmatch(pattern, key) for key in of_store)
    assert admin.get("canary") == b"sings"
    of_items = [key for key in of_store if ":c:" in key]
    assert {len(member) for key in of_items for member in admin.zrange(key, 0, -1)} == {8}


@pytest.mark.parametrize("name", ["", "a}b", "{a}", "a b", "a\n", "é", "x" * 65, None, "a:b"])
def test_names_that_could_be_keys_are_refused(name):
    needed()
    for argument in ("name", "partition"):
        with pytest.raises(ValueError, match=f"`{argument}` should be 1 to 64 letters"):
            RedisSeedStore("redis://localhost", **{argument: name})


@pytest.mark.parametrize(
    "url",
    ["http://u:secret@h", "secret", "redis:/secret", "redis://u:se/cret@h:99999999", "", "redis://h?secret=1",
     "redis://u:secret@h?db=x"],
)  # fmt: skip
def test_urls_that_are_none_are_refused_without_being_shown(url):
    needed()
    with pytest.raises(ValueError, match="`url` should") as caught:
        RedisSeedStore(url)
    assert "cret" not in str(caught.value)


def test_rejected_settings(application):
    for wrong in ({"deadline": 0.0}, {"latest": 2**30 + 1}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` should be"):
            RedisSeedStore(application, **wrong)


# TLS.


def certificate(folder):
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout k.pem -out c.pem"
    )
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command.split(), *name], cwd=folder, check=True, capture_output=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def test_tls(tmp_path):
    needed()
    if which("openssl") is None:
        pytest.skip("no openssl on the PATH")
    if b"SSL_CTX_new" not in Path(BINARY).read_bytes():
        pytest.skip("the server was built without TLS")
    certificate(tmp_path)
    port = free_port()
    options = f"--tls-port {port} --tls-cert-file c.pem --tls-key-file k.pem --tls-auth-clients no".split()
    server = Server(tmp_path, *options)
    try:
        store = RedisSeedStore(f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/c.pem")
        feed(store, clicks((1, 7, 0)))
        assert listed(store, [7]) == {7: [(1, 0)]}
        for url in (f"rediss://127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):  # nobody vouches for it; no TLS
            with pytest.raises(StoreUnavailable):
                RedisSeedStore(url, deadline=2.0).items()
    finally:
        server.stop()


# Faults.


def test_server_down_and_back(redis_server):
    store = RedisSeedStore(redis_server.url(), deadline=10.0)
    feed(store, [*clicks((1, 7, 0), (2, 7, 1), (3, 8, 2)), (3, 9, NOW, UNCLICK)])
    before = listed(store, [7, 8]), store.items().tolist(), store.counts, store.mark()
    counts = store.seed_counts([7, 8, 9]).tolist()
    assert not store.stale and store.age == 0
    redis_server.stop()
    with pytest.raises(StoreUnavailable, match="no connection"):
        store.apply(batch(4, clicks((4, 7, 3))))
    assert (listed(store, [8, 7]), store.items().tolist(), store.counts, store.mark()) == (
        {8: before[0][8], 7: before[0][7]},
        *before[1:],
    )
    assert store.seed_counts([7, 8, 9]).tolist() == counts
    assert store.stale
    first = store.age
    time.sleep(0.01)
    assert store.age > first
    with pytest.raises(StoreUnavailable):
        store.seeds([7, 10])  # 10 was never read
    for work in (lambda: store.changed_since(0), lambda: store.offset):  # never of a copy
        with pytest.raises(StoreUnavailable):
            work()
    redis_server.start()
    wait_until_back(store)
    feed(store, clicks((4, 7, 3)))
    assert listed(store, [7]) == {7: [(4, 3), (2, 1), (1, 0)]} and not store.stale
    assert balanced(store).accepted == 5


def wait_until_back(store, seconds=30):
    """Until the server answers again, which the store finds out by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if store.items() is not None and not store.stale:
                return
        except StoreUnavailable:
            pass
        time.sleep(0.02)
    raise AssertionError("the store is not back")


def test_server_that_stands_still(redis_server):
    store = RedisSeedStore(redis_server.url(), deadline=3.0)
    feed(store, clicks((1, 7, 0)))
    before = listed(store, [7])
    with redis_server.frozen():
        with pytest.raises(StoreUnavailable, match="no answer within 3 s"):
            store.apply(batch(1, clicks((2, 7, 1))))
        assert listed(store, [7]) == before and store.stale
    wait_until_back(store)
    at_last(lambda: store.apply(batch(1, clicks((2, 7, 1), (3, 7, 2)))))  # the first of them may be there
    assert at_last(lambda: store.offset) == 3 and at_last(lambda: balanced(store)).accepted == 3


def test_server_killed_at_any_moment_and_started_again(redis_server):
    store = RedisSeedStore(redis_server.url(), latest=50, deadline=10.0)
    store._link._rest, store._link._retries = 0.01, 0
    events, generator = some_events(6, 40_000), random.Random(2)
    failures, stop = [], threading.Event()

    def write_on():
        while not stop.is_set():
            try:
                start = store.offset
                store.apply(batch(start, events[start : start + 20]))
            except StoreUnavailable as error:
                failures.append(error)

    writer = threading.Thread(target=write_on)
    writer.start()
    kills = 0
    while writer.is_alive() and kills < 5:
        time.sleep(generator.uniform(0.05, 0.3))
        redis_server.kill()
        kills += 1
        redis_server.start()
    stop.set()
    writer.join(60)
    assert not writer.is_alive() and failures and kills == 5
    wait_until_back(store)
    _, seeds = expected(events[: store.offset], 50)
    assert listed(store, sorted(seeds)) == dict(sorted(seeds.items()))
    assert balanced(store).accepted == store.offset


def at_last(work):
    """What `work` gives, as soon as the server is there."""
    for _ in range(1000):
        try:
            return work()
        except StoreUnavailable:
            time.sleep(0.02)
    raise AssertionError("the store is not back")


def test_connections_cut_at_any_byte_lose_nothing_and_count_nothing_twice(server, monkeypatch):
    monkeypatch.setattr(redis_ledger, "_LEASE", 5)  # most cuts leave the lock behind
    generator, failures = random.Random(5), 0

    def limits():
        return generator.randrange(1, 15_000), generator.randrange(1, 4000)

    events = some_events(7, 2000)
    whole = RedisSeedStore(server.url(), name=next(names), latest=50)
    feed(whole, events, (40,))
    proxy = Proxy(server, limits)
    try:
        store = RedisSeedStore(proxy.url, name=next(names), latest=50, deadline=5.0)
        store._link._rest, store._link._retries = 0.001, 0
        for start in range(0, len(events), 40):
            while True:  # the same again, whether or not it was done
                try:
                    store.apply(batch(start, events[start : start + 40]))
                    break
                except StoreUnavailable:
                    failures += 1
    finally:
        proxy.close()
    store = RedisSeedStore(server.url(), name=store._ledger.prefix.decode()[1:-2], latest=50)
    assert failures > 20
    assert store.counts == whole.counts and store.items().tolist() == whole.items().tolist()
    assert listed(store, range(4)) == listed(whole, range(4))


def test_a_way_that_stalls(server):
    proxy = Proxy(server)
    try:
        store = RedisSeedStore(proxy.url, name=next(names), deadline=3.0)
        feed(store, clicks((1, 7, 0)))
        before = listed(store, [7])
        proxy.passing.clear()
        with pytest.raises(StoreUnavailable, match="no answer within 3 s"):
            store.apply(batch(1, clicks((2, 7, 1))))
        assert listed(store, [7]) == before and store.stale
        proxy.passing.set()
        wait_until_back(store)
        at_last(lambda: store.apply(batch(1, clicks((2, 7, 1)))))
        assert at_last(lambda: store.offset) == 2 and at_last(lambda: balanced(store)).accepted == 2
    finally:
        proxy.close()


def test_lost_data_show_as_a_gap_and_come_back_from_the_log(redis_server):
    store = RedisSeedStore(redis_server.url())
    events = some_events(4, 100)
    feed(store, events, (30,))
    before = listed(store, range(4))
    redis_server.admin().flushall()
    with pytest.raises(ValueError, match="should start at 0 or below. Received: offset=100"):
        store.apply(batch(100, clicks((1, 7, 0))))
    feed(store, events, (30,))
    assert listed(store, range(4)) == before


def test_a_full_server_refuses_and_takes_nothing_by_halves(redis_server):
    store = RedisSeedStore(redis_server.url())
    feed(store, clicks((1, 7, 0)))
    admin = redis_server.admin()
    admin.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="refused"):
        store.apply(batch(1, clicks(*((user, 7, 1) for user in range(2, 100)))))
    admin.config_set("maxmemory", 0)
    wait_until_back(store)
    assert store.offset == 1 and store.seed_counts([7]).tolist() == [1]
    store.apply(batch(1, clicks((2, 7, 1))))
    assert store.offset == 2


# A partition and its log.


def appended(folder, events):
    with ClickLog(folder) as log:
        log.append(*(np.array(column) for column in zip(*events, strict=True)))
    return ClickLog(folder, write=False)


def test_a_partition_is_brought_up_to_its_log_and_belongs_to_no_other(application, tmp_path):
    name, events = next(names), some_events(8, 500)
    store = RedisSeedStore(application, name=name, latest=50)
    log = appended(tmp_path / "one", events[:300])
    told = []
    open_partition(store, log, progress=lambda *numbers: told.append(numbers))
    assert store.offset == 300 and told[-1] == (300, 300)
    appended(tmp_path / "one", events[300:])
    again = RedisSeedStore(application, name=name, latest=50)
    open_partition(again, log)
    _, seeds = expected(events, 50)
    assert listed(again, sorted(seeds)) == dict(sorted(seeds.items())) and balanced(again).accepted == 500
    other = appended(tmp_path / "two", events)
    with pytest.raises(SnapshotError, match="of another log than .*two. Bring the right log back, or name a new"):
        open_partition(again, other)
    open_partition(RedisSeedStore(application, name=name, latest=50, partition="two"), other)
    assert listed(again, sorted(seeds)) == dict(sorted(seeds.items())) and balanced(again).accepted == 1000


def test_an_offset_ahead_of_the_log_and_one_before_its_start(application, tmp_path):
    store = RedisSeedStore(application, name=next(names))
    with ClickLog(tmp_path / "log", segment_bytes=1) as log:
        for number in range(4):
            log.append([number], [7], [NOW])
        log.retain(3)
        with pytest.raises(SnapshotError, match="begins at offset 3, and .* is at 0: the events between are gone"):
            open_partition(store, log)
        open_partition(store, log, accept_loss=True)
        assert store.offset == 4 and store.counts.accepted == 1
        store.skip(9)
        with pytest.raises(SnapshotError, match="its offset is 9, ahead of .*, which ends at 4"):
            open_partition(store, log)


def test_copies_are_bounded(application):
    store = RedisSeedStore(application, name=next(names), copy_bytes=5000)
    feed(store, clicks(*((user, item, user) for user in range(20) for item in range(20))))
    for item in range(20):
        store.seeds([item])
    assert store._held <= 5000
    assert store._held == sum(size for _, size, _ in store._copies.values())


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def garbage(connection, _):
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def half_then_reset(connection, _):
    connection.recv(65536)
    connection.sendall(b"*4\r\n$8\r\nabc")
    reset(connection)


def half_then_closed(connection, _):
    connection.recv(65536)
    connection.sendall(b"*4\r\n$8\r\nabc")


def replies(data):
    def talk(connection, _):
        while connection.recv(1 << 20):
            connection.sendall(data)

    talk.__name__ = repr(data[:30])
    return talk


def silent(connection, _):
    time.sleep(5)


def dripping(connection, _):
    connection.recv(65536)
    connection.sendall(b"*100\r\n")
    for _ in range(50):
        connection.sendall(b"$")
        time.sleep(0.1)


FAULTS = [
    garbage, half_then_reset, half_then_closed, silent, dripping,
    replies(b"*1\r\n$3\r\nabc\r\n"),  # half a pair
    replies(b"*2\r\n$1\r\na\r\n$1\r\nb\r\n"),  # no number
    replies(b"*2\r\n:1\r\n:2\r\n"),
    replies(b":5\r\n"),
    replies(b"$-1\r\n"),
    replies(b"+OK\r\n"),
    replies(b"-ERR \x1b[31mhidden\r\n"),
    replies(b"-LOADING Redis is loading\r\n"),
    replies(b"*-1\r\n"),
    replies(b"*2\r\n*1\r\n$1\r\na\r\n:1\r\n"),
    replies(b"*2\r\n$-5\r\nabc\r\n"),
    replies(b"$99999999999999999999\r\n"),
    replies(b"*99999999\r\n"),
    replies(b"\xff\xfe\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("talk", FAULTS, ids=lambda talk: talk.__name__)
def test_answers_that_cannot_be_right(talk):
    pytest.importorskip("redis")
    fake = Fake(talk)
    try:
        store = RedisSeedStore(fake.url, deadline=0.2)
        for work in (lambda: store.apply(batch(0, clicks((1, 7, 0)))), store.items, lambda: store.seeds([7])):
            store._link._rest_until = 0.0  # no rest between them
            with pytest.raises(StoreUnavailable) as caught:
                work()
            text = str(caught.value)
            assert "127.0.0.1" in text and "app" not in text and text.isprintable() and len(text) < 400
    finally:
        fake.close()


def scripted(lists):
    """The first asks are answered as an empty store answers; then comes what is given."""

    def talk(connection, _):
        for data in [b"*0\r\n", *lists]:
            connection.recv(1 << 20)
            connection.sendall(data)
        while connection.recv(1 << 20):
            pass

    return talk


@pytest.mark.parametrize(
    "data",
    [
        b"*2\r\n$1\r\n3\r\n$1\r\n3\r\n*1\r\n:0\r\n",  # two sizes for one item
        b"*1\r\n$1\r\n3\r\n*0\r\n",
        b"*1\r\n$3\r\ninf\r\n*1\r\n:0\r\n",
        b"*1\r\n$3\r\nnan\r\n*1\r\n:0\r\n",
        b"*1\r\n$5\r\n1e300\r\n*1\r\n:0\r\n",
    ],
)
def test_numbers_that_cannot_be_right(data):
    pytest.importorskip("redis")
    fake = Fake(scripted([data]))
    try:
        with pytest.raises(StoreUnavailable, match="cannot be right"):
            RedisSeedStore(fake.url, deadline=2.0).seed_counts([7])
    finally:
        fake.close()


@pytest.mark.parametrize("member", [b"abc", b"123456789", b""])
def test_members_of_another_length_are_no_users(member):
    pytest.importorskip("redis")
    page = b"+OK\r\n+QUEUED\r\n*1\r\n*2\r\n$%d\r\n%s\r\n$1\r\n5\r\n" % (len(member), member)
    fake = Fake(scripted([b"*1\r\n$1\r\n1\r\n*1\r\n:0\r\n", page]))
    try:
        with pytest.raises(StoreUnavailable, match="8 bytes"):
            RedisSeedStore(fake.url, deadline=2.0).seeds([7])
    finally:
        fake.close()


def test_a_broken_connection_is_tried_anew_and_a_dead_server_gets_a_rest():
    pytest.importorskip("redis")
    fake = Fake(lambda connection, number: reset(connection) if number < 3 else replies(b"*0\r\n")(connection, number))
    store = RedisSeedStore(fake.url, deadline=2.0)
    assert store.offset == 0 and fake.connections == 3
    fake.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="no connection"):
        store.changed_since(0)
    with pytest.raises(StoreUnavailable, match="tried again in a moment"):
        store.changed_since(0)  # at once, without another try


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ImportError, match=r"pip install 'seedrank\[redis\]'"):
        RedisSeedStore("redis://localhost")


def test_rows_are_of_one_length_and_members_sort_as_numbers():
    # Scores have 13 digits for every valid time, so that rows are of one length; members sort as the numbers do.
    from lookalike.redis_wire import keys_from, members_packed, scored_packed

    keys = np.array([-(2**63), -1, 0, 1, 2**53 + 1, 2**63 - 1])
    rows = [row.tobytes() for row in members_packed(keys)]
    assert rows == sorted(rows) and rows[2] == b"$8\r\n\x80\0\0\0\0\0\0\0\r\n"
    assert keys_from([row[4:12] for row in rows]).tolist() == keys.tolist()
    packed = scored_packed(np.array([946_684_800_000]), np.array([0])).tobytes()
    assert packed == b"$13\r\n0946684800000\r\n$8\r\n\x80\0\0\0\0\0\0\0\r\n"
