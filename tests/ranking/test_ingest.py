"""Clicks over HTTP: acknowledged when they are in the log, refused with a reason, never lost in silence."""

import concurrent.futures
import contextlib
import errno
import gzip
import http.client
import json
import logging
import os
import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lookalike.clicklog import ClickLog, keys_of
from ranking import ingest_http, ingest_log
from ranking.errors import UserError
from ranking.ingest import Ingest, read_token
from ranking.ingest_clicks import ClickFormat, WrongClick
from serving.server import body as bodies
from tests.ranking.test_ingest_streams import wait_until

T = 1_767_225_600_000
TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ingest") / "log"
    with Ingest(folder, user_ids="int64", item_ids="string", port=0, token=TOKEN) as service:
        yield service


@pytest.fixture(autouse=True)
def still_right(request):
    """After every test: it answers, its counters balance, and it never said 500."""
    yield
    if "service" in request.fixturenames:
        service = request.getfixturevalue("service")
        assert ask(service, "/v1/clicks", lines(click()))[0] == 200
        assert balances(service)
        assert service.metrics.value("requests", "500") == 0


def balances(service):
    value = service.metrics.value
    refused = value("refused", "invalid") + value("refused", "log")
    return value("received", "http") == value("accepted", "http") + refused


def ask(service, path, body=None, method=None, **headers):
    link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        link.request(method or ("GET" if body is None else "POST"), path, body, names)
        reply = link.getresponse()
        text = reply.read()
    finally:
        link.close()
    return reply.status, text if path == "/metrics" else json.loads(text), reply.headers


def click(user=7, item="i", **other):
    return {"user_id": user, "item_id": item, "time": T, **other}


def lines(*rows):
    return "\n".join(map(json.dumps, rows)).encode()


def logged(service, first=0):
    log = service.log.log if isinstance(service, Ingest) else service
    return [
        row
        for batch in log.read(first, raw=True)
        for row in zip(batch.user.tolist(), batch.item_ids, batch.time.tolist(), batch.kind.tolist(), strict=True)
    ]


# What is taken.


def test_what_is_acknowledged_is_in_the_log(service):
    end = service.log.log.end
    status, reply, _ = ask(service, "/v1/clicks", lines(click(9007199254740993, "雪"), click(8, kind="unclick")))
    assert (status, reply) == (200, {"first": end, "next": end + 2, "accepted": 2})
    assert logged(service, end) == [(9007199254740993, "雪", T, 0), (8, "i", T, 1)]


def test_columns_and_times_of_arrival(service):
    before = time.time_ns() // 1_000_000
    body = json.dumps({"user_id": [1, 2], "item_id": ["a", "b"]})
    status, reply, _ = ask(service, "/v1/clicks", body, Content_Type="application/json")
    assert (status, reply["accepted"]) == (200, 2)
    found = logged(service, reply["first"])
    assert [row[:2] for row in found] == [(1, "a"), (2, "b")]
    assert before <= found[0][2] == found[1][2] <= time.time_ns() // 1_000_000


def test_gzip(service):
    body = gzip.compress(lines(click()))
    assert ask(service, "/v1/clicks", body, Content_Encoding="gzip")[0] == 200
    assert ask(service, "/v1/clicks", body)[0] == 400
    assert ask(service, "/v1/clicks", body[:-9], Content_Encoding="gzip")[0] == 400
    assert ask(service, "/v1/clicks", body, Content_Encoding="br")[0] == 415


def test_sent_twice_is_the_same_event_twice(service):
    body = lines(click(5), click(6))
    first, second = (ask(service, "/v1/clicks", body)[1]["first"] for _ in range(2))
    assert second == first + 2
    found = logged(service, first)
    assert found[:2] == found[2:]  # the store takes the same user, item and time once


def test_many_at_once_share_offsets_and_syncs(service):
    end, syncs = service.log.log.end, service.log.log.counters["syncs"]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        replies = [*pool.map(lambda n: ask(service, "/v1/clicks", lines(click(n), click(n)))[1], range(100))]
    taken = sorted(offset for reply in replies for offset in range(reply["first"], reply["next"]))
    assert taken == [*range(end, end + 200)]
    for number, reply in enumerate(replies):
        assert [row[0] for row in logged(service, reply["first"])[:2]] == [number, number]
    assert service.log.log.counters["syncs"] - syncs <= 100


# What is refused.


@pytest.mark.parametrize(
    "body, words, line, field",
    [
        (lines(click(), click("7")), "line 2, `user_id`: should be a whole number from -2^63", 2, "user_id"),
        (lines(click(item=7)), "line 1, `item_id`: should be a text of 1 to 256 characters", 1, "item_id"),
        (lines(click(item="x" * 257)), "line 1, `item_id`: should be a text of 1 to 256 characters", 1, "item_id"),
        (lines(click(item="a\r\nb")), 'Received: "a\\r\\nb".', 1, "item_id"),
        (lines(click(time=T // 1000)), "line 1, `time`: should be whole milliseconds", 1, "time"),
        (lines(click(kind="forget")), 'line 1, `kind`: should be "click" or "unclick"', 1, "kind"),
        (lines(click(when=T)), "line 1: should have no other fields than", 1, None),
        (b"\n\n[", "line 3: should be one JSON object", 3, None),
    ],
)
def test_a_wrong_line_refuses_the_request_and_is_named(service, body, words, line, field):
    end = service.log.log.end
    status, reply, _ = ask(service, "/v1/clicks", lines(click()) + b"\n" + body)
    assert status == 400
    assert (reply["line"], reply["field"]) == (line + 1, field)
    assert words.replace(f"line {line}", f"line {line + 1}") in reply["error"]
    assert len(reply["error"]) < 400 and reply["error"].isascii()
    assert service.log.log.end == end


def test_nothing_and_too_much(service, monkeypatch):
    assert ask(service, "/v1/clicks", b"")[0] == 400
    assert ask(service, "/v1/clicks", b"\n \r\n")[0] == 400
    assert ask(service, "/v1/clicks", b'{"user_id": [], "item_id": []}')[0] == 400
    monkeypatch.setattr(ingest_http, "MOST_CLICKS", 3)
    assert ask(service, "/v1/clicks", lines(*[click()] * 3))[0] == 200
    assert ask(service, "/v1/clicks", lines(*[click()] * 4))[0] == 413
    assert ask(service, "/v1/clicks", b'{"user_id": [1,1,1,1], "item_id": ["a","a","a","a"]}')[0] == 413


def test_bodies_beyond_the_limit(service):
    assert ask(service, "/v1/clicks", bytes(bodies.MAX_REQUEST_BYTES + 1))[0] == 413
    bomb = gzip.compress(bytes(bodies.MAX_REQUEST_BYTES + 1))
    assert ask(service, "/v1/clicks", bomb, Content_Encoding="gzip")[0] == 413
    assert ask(service, "/v1/clicks", b"\n" * bodies.MAX_REQUEST_BYTES)[0] == 400


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 404),
        ("POST", "/v1/clicks/", 404),
        ("POST", "/v1/../v1/clicks", 404),
        ("POST", "/v1/clicks?x=1", 404),
        ("GET", "/v1/clicks", 405),
        ("DELETE", "/v1/clicks", 405),
        ("GET", "/v1/forget", 405),
        ("POST", "/metrics", 405),
        ("OPTIONS", "/v1/clicks", 405),
    ],
)
def test_other_paths_and_methods(service, method, path, status):
    found, reply, headers = ask(service, path, method=method)[:3] if path != "/metrics" else (405, {"error": ""}, {})
    assert found == status and "error" in reply
    if status == 405 and path != "/metrics":
        assert headers["Allow"] == "POST"


def test_web_pages_can_not_send_clicks(service):
    assert ask(service, "/v1/clicks", lines(click()), Origin="http://example.org")[0] == 403


def raw(service, data, *, end=False):
    """What comes back for bytes: the status, 0 where the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as link:
        link.sendall(data)
        if end:
            link.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            reply = link.recv(65536)
            return int(reply.split()[1]) if reply else 0
    return 0


def test_slow_senders(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_http, "IDLE_SECONDS", 0.5)  # of a service of its own: a busy machine is slow too
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    head = b"POST /v1/clicks HTTP/1.1\r\nHost: h\r\n"
    with Ingest(tmp_path / "log", user_ids="int64", item_ids="string", port=0) as service:
        assert raw(service, head + b"Content-Length: 1000\r\n\r\n{") == 408  # body never comes
        assert raw(service, head) in (0, 408)  # nor do the headers
        assert balances(service) and service.metrics.value("requests", "500") == 0


def test_broken_senders(service):
    head = b"POST /v1/clicks HTTP/1.1\r\nHost: h\r\n"
    assert raw(service, head + b"Content-Length: 1000\r\n\r\n{", end=True) in (0, 400)
    assert raw(service, head + b"Content-Length: -1\r\n\r\n") == 400
    assert raw(service, head + b"Content-Length: 99999999999\r\n\r\n") == 413
    assert raw(service, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n") == 400
    assert raw(service, b"\0\1\2\r\n\r\n") == 400


# No room, no disk.


class Held:
    """Appends that wait until they are let go."""

    def __init__(self, service, monkeypatch):
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        append = service.log.log.append

        def wait(*arguments):
            self.entered.release()
            assert self.go.wait(30)
            return append(*arguments)

        monkeypatch.setattr(service.log.log, "append", wait)


@pytest.mark.parametrize("name, limit", [("HELD_REQUESTS", 2), ("HELD_BYTES", 150)])
def test_without_room_it_refuses_and_takes_again_after(service, monkeypatch, name, limit):
    monkeypatch.setattr(ingest_http, name, limit)
    held = Held(service, monkeypatch)
    body = lines(click())  # 55 bytes: two fit
    assert 150 // 3 < len(body) <= 150 // 2
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, service, "/v1/clicks", body) for _ in range(2)]
        for _ in waiting:
            assert held.entered.acquire(timeout=30)
        status, reply, headers = ask(service, "/v1/clicks", body)
        assert (status, headers["Retry-After"]) == (429, "1")
        assert reply == {"error": "The service has too much in hand."}
        assert ask(service, "/healthz")[0] == 200  # questions need no room
        held.go.set()
        assert [future.result()[0] for future in waiting] == [200, 200]
    assert ask(service, "/v1/clicks", body)[0] == 200
    assert service._http._held_bytes == service._http._held_requests == 0


def test_bodies_that_are_not_whole_are_bounded_together(service, monkeypatch):
    monkeypatch.setattr(bodies, "BUFFERED", 1000)
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as link:
        link.sendall(b"POST /v1/clicks HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + b" " * 990)
        until(lambda: service._http._bodies._buffered >= 990)
        status, _, headers = ask(service, "/v1/clicks", lines(click()))
        assert (status, headers["Retry-After"]) == (429, "1")
    until(lambda: not service._http._bodies._buffered)


def until(done):
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_acknowledges_nothing_and_recovers(service, monkeypatch, number):
    monkeypatch.setattr(ingest_log, "_PROBE_SECONDS", 0.0)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    end = service.log.log.end
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "fsync", fail)
        for _ in range(3):
            status, reply, headers = ask(service, "/v1/clicks", lines(click(), click()))
            assert (status, headers["Retry-After"]) == (503, "1")
            assert reply == {"error": f"The click log can not be written ({os.strerror(number)}): nothing was taken."}
        status, state, _ = ask(service, "/healthz")
        assert (status, state["ready"], state["writable"], state["end"]) == (503, False, False, end)
        assert b"seedrank_ingest_log_writable 0" in ask(service, "/metrics")[1]
    assert ask(service, "/healthz")[1]["ready"]  # by a look at the disk, before any click
    status, reply, _ = ask(service, "/v1/clicks", lines(click(33)))
    assert (status, reply["first"]) == (200, end)
    assert logged(service, end) == [(33, "i", T, 0)]
    assert not any(name.startswith(".ingest") for name in os.listdir(service.log.folder))


def test_a_log_of_no_use_is_opened_again(service, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    end = service.log.log.end
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "ftruncate", fail)  # what was written can not be taken back
        assert ask(service, "/v1/clicks", lines(click()))[0] == 503
    statuses = [ask(service, "/v1/clicks", lines(click(34)))[0] for _ in range(3)]
    assert statuses[-1] == 200
    # The one that could not be taken back was whole on the disk: not acknowledged, and there.
    assert [row[0] for row in logged(service, end)] == [7] + [34] * statuses.count(200)


# Admin verbs.


def test_forget(service):
    before = time.time_ns() // 1_000_000
    status, reply, _ = ask(service, "/v1/forget", b'{"user_id": 77}', **BEARER)
    assert (status, reply["accepted"]) == (200, 1)
    ((user, _, moment, kind),) = logged(service, reply["first"])
    assert (user, kind) == (77, 2)
    assert before <= moment <= time.time_ns() // 1_000_000


def test_erase_and_retain(tmp_path):
    with Ingest(tmp_path / "log", user_ids="string", item_ids="int64", port=0, token=TOKEN) as service:
        assert ask(service, "/v1/clicks", lines(click("ann", 1), click("bob", 1)))[0] == 200
        assert ask(service, "/v1/forget", b'{"user_id": "ann"}', **BEARER)[0] == 200
        assert ask(service, "/v1/erase", b'{"user_id": "ann"}', **BEARER)[:2] == (200, {"erased": 2, "set_aside": 0})
        assert ask(service, "/v1/clicks", lines(click("ann", 1)))[1]["first"] == 3
        assert ask(service, "/v1/retain", b'{"before": 3}', **BEARER)[:2] == (200, {"start": 3})
        assert ask(service, "/v1/retain", b'{"before": -1}', **BEARER)[0] == 400
    with ClickLog(tmp_path / "log", write=False) as log:
        assert [batch.user.tolist() for batch in log.read()] == [keys_of(["ann"]).tolist()]


def test_erase_takes_the_lines_that_were_set_aside_too(tmp_path):
    followed, folder = tmp_path / "clicks.jsonl", tmp_path / "log"
    first, second = lines(click("ann", "no item")) + b"\n", lines(click("bob", "no item")) + b"\n"
    followed.write_bytes(first + second)
    with Ingest(folder, user_ids="string", item_ids="int64", port=0, token=TOKEN, tails=[followed]) as service:

        def count():
            return sum(path.read_bytes().count(b"\n") for path in folder.glob("tails/*.rejects"))

        wait_until(lambda: count() == 2)
        (rejects,) = folder.glob("tails/*.rejects")
        (folder / "set-aside.jsonl").write_text(
            json.dumps({"place": "clicks 1", "reason": "malformed", "base64": "YW5u"}) + "\n"  # ann
        )
        assert ask(service, "/v1/erase", b'{"user_id": "ann"}', **BEARER)[:2] == (200, {"erased": 0, "set_aside": 2})
        assert (folder / "set-aside.jsonl").read_bytes() == b""
        assert [json.loads(line)["byte"] for line in rejects.open()] == [len(first)]
        with followed.open("ab") as file:  # the next one is set aside as before
            file.write(b"no click\n")
        wait_until(lambda: count() == 2)


@pytest.mark.parametrize("path", ["/v1/forget", "/v1/erase", "/v1/retain"])
def test_admin_verbs_need_the_token(service, path):
    end = service.log.log.end
    for headers, status in [
        ({}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": "Basic " + TOKEN}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 403),
        ({"Authorization": f"Bearer {TOKEN}x"}, 403),
        ({"Authorization": "Bearer \xe9"}, 403),
        ({**BEARER, "Origin": "http://localhost"}, 403),
    ]:
        found, reply, answered = ask(service, path, b'{"user_id": 7}', **headers)
        assert found == status
        assert TOKEN not in json.dumps(reply)
        assert (answered["WWW-Authenticate"] == "Bearer") == (status == 401)
    assert service.log.log.end == end


@pytest.mark.parametrize("body", [b"", b"{}", b"[7]", b'{"user_id": "7"}', b'{"user_id": 7, "x": 1}', b'{"before": 1}'])
def test_admin_bodies_that_are_wrong(service, body):
    assert ask(service, "/v1/forget", body, **BEARER)[0] == 400


def test_without_a_token_admin_verbs_are_off(tmp_path):
    with Ingest(tmp_path / "log", port=0) as service:
        assert ask(service, "/v1/forget", b'{"user_id": 7}', **BEARER)[0] == 403


def test_admin_verbs_are_for_loopback(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest_http, "_is_loopback", lambda address: False)
    with Ingest(tmp_path / "a", port=0, token=TOKEN) as service:
        assert ask(service, "/v1/forget", b'{"user_id": 7}', **BEARER)[0] == 403
        assert ask(service, "/v1/clicks", lines(click(item=1)))[0] == 200
    with Ingest(tmp_path / "b", port=0, token=TOKEN, admin_anywhere=True) as service:
        assert ask(service, "/v1/forget", b'{"user_id": 7}', **BEARER)[0] == 200


def test_what_is_loopback():
    known = {
        "127.0.0.1": 1,
        "127.9.9.9": 1,
        "::1": 1,
        "::ffff:127.0.0.1": 1,
        "10.0.0.1": 0,
        "::": 0,
        "": 0,
        "fe80::1%e": 0,
    }
    assert {address: ingest_http._is_loopback(address) for address in known} == known


@pytest.mark.parametrize("text", [b"", b"short", b"two words of a token", b"\xff" * 20, b"x" * 20 + b"\0"])
def test_files_that_hold_no_token(tmp_path, text):
    (tmp_path / "token").write_bytes(text)
    with pytest.raises(UserError, match="--token-file"):
        read_token(tmp_path / "token")


def test_token_file(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    with pytest.raises(UserError, match="No such file"):
        read_token(tmp_path / "absent")


# Life.


def test_it_ends_with_everything_answered(tmp_path, monkeypatch):
    service = Ingest(tmp_path / "log", port=0)
    service.start()
    held = Held(service, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, service, "/v1/clicks", lines(click(n, 1))) for n in range(3)]
        for _ in waiting:
            assert held.entered.acquire(timeout=30)
        ending = pool.submit(service.stop)
        until(lambda: service._http._draining)
        status, _, headers = ask(service, "/v1/clicks", lines(click(9, 1)))
        assert (status, headers["Retry-After"], headers["Connection"]) == (503, "1", "close")
        assert ask(service, "/healthz")[0] == 503
        held.go.set()
        replies = [future.result() for future in waiting]
        ending.result(30)
    assert [reply[0] for reply in replies] == [200] * 3
    with ClickLog(tmp_path / "log") as log:  # another writer may have it
        assert sorted(user for batch in log.read() for user in batch.user.tolist()) == [0, 1, 2]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", service.port), timeout=5)
    service.stop()


def test_one_writer(service, tmp_path):
    with pytest.raises(UserError, match=f"process {os.getpid()} writes this log"):
        Ingest(service.log.folder, port=0)
    with pytest.raises(UserError, match="can not be listened on"):
        Ingest(tmp_path / "log", port=service.port)


def test_other_kinds_of_ids_than_the_log_has(tmp_path):
    ClickLog(tmp_path / "log", user_ids="string").close()
    with pytest.raises(UserError, match='user_ids="string"'):
        Ingest(tmp_path / "log", user_ids="int64", port=0)
    with Ingest(tmp_path / "log", port=0) as service:
        assert (service.log.user_ids, service.log.item_ids) == ("string", "int64")


def test_tails_beside_http(tmp_path):
    file = tmp_path / "clicks.jsonl"
    file.write_bytes(lines(click(1, 1), click(2, 1)) + b"\n")
    with pytest.raises(UserError, match="each file once"):
        Ingest(tmp_path / "log", port=0, tails=[file, file])
    with Ingest(tmp_path / "log", port=0, tails=[file]) as service:
        until(lambda: service.log.log.end == 2)
        assert ask(service, "/v1/clicks", lines(click(3, 1)))[1]["first"] == 2
        state = ask(service, "/healthz")[1]
        assert state["tails"] == [{"tail": 1, "behind": 0, "failing": ""}]
        assert b'seedrank_ingest_tail_behind_bytes{tail="1"} 0' in ask(service, "/metrics")[1]


def test_metrics_are_of_prometheus_form_and_of_few_labels(service):
    ask(service, "/v1/clicks", lines(click("x")))
    text = ask(service, "/metrics")[1].decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) < 60
    for sample in samples:
        name, _, number = sample.rpartition(" ")
        assert name.startswith("seedrank_ingest_")
        float(number)
    found = dict(sample.rsplit(" ", 1) for sample in samples)
    buckets = [int(found[key]) for key in found if key.startswith("seedrank_ingest_append_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == int(found["seedrank_ingest_append_seconds_count"])


def test_logs_hold_no_ids_paths_or_tokens(service, monkeypatch, caplog):
    def broken(clicks, source):
        raise ValueError(f"about user {clicks.user[0]}")

    count = service.metrics.value("requests", "500")
    with caplog.at_level(logging.DEBUG, "ranking.ingest"):
        ask(service, "/v1/forget", b'{"user_id": 424242}', **BEARER)
        ask(service, "/v1/clicks", lines(click(424242, "\n")))
        with monkeypatch.context() as patch:
            patch.setattr(service.log, "append", broken)
            status, reply, _ = ask(service, "/v1/clicks", lines(click(424242)))
    assert (status, reply) == (500, {"error": "internal error: see the service's log"})
    assert "ValueError" in caplog.text and "424242" not in caplog.text
    assert TOKEN not in caplog.text and str(service.log.folder) not in caplog.text
    # Counted out again for the check after each test.
    service.metrics.count("requests", "500", count - service.metrics.value("requests", "500"))
    service.metrics.count("refused", "log", 1)


# Anything at all.

WORDS = [
    *b'{}[]:,"\\ \n\r\t0\0',
    0xFF,
    b'"user_id"',
    b'"item_id"',
    b'"time"',
    b'"kind"',
    b"null",
    b"1e9",
    b"NaN",
    b"{}",
]
pieces = st.one_of(
    st.sampled_from([word if isinstance(word, bytes) else bytes([word]) for word in WORDS]),
    st.sampled_from(
        [lines(click()), lines(click(1, "\n")), lines(click(2**63)), b'{"user_id": [1], "item_id": ["a"]}']
    ),
    st.binary(max_size=8),
)


def mutated(data):
    body, cuts = data
    for place, piece in cuts:
        place %= len(body) + 1
        body = body[:place] + piece + body[place + len(piece) // 2 :]
    return body


anything = st.one_of(
    st.lists(pieces, max_size=8).map(b"".join),
    st.tuples(
        st.lists(st.just(lines(click())), min_size=1, max_size=4).map(b"\n".join),
        st.lists(st.tuples(st.integers(0, 300), pieces), min_size=1, max_size=3),
    ).map(mutated),
)


FEW = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
any_body = given(anything, st.sampled_from(["", "", "", "gzip", "deflate"]))


@FEW
@any_body
def test_300_bodies(service, fuzzed, body, encoding):
    is_taken_or_refused(service, fuzzed, body, encoding)


@pytest.mark.slow
@settings(FEW, max_examples=2000)
@any_body
def test_2000_bodies(service, fuzzed, body, encoding):
    is_taken_or_refused(service, fuzzed, body, encoding)


def is_taken_or_refused(service, fuzzed, body, encoding):
    accepted = ClickFormat("int64", "string")
    end = service.log.log.end
    for _ in range(2):
        try:
            fuzzed.request("POST", "/v1/clicks", body, {"Content-Encoding": encoding} if encoding else {})
            reply = fuzzed.getresponse()
        except ConnectionError:  # kept alive for so long only: this machine may have slept
            fuzzed.close()
            continue
        found = json.loads(reply.read())
        if reply.status != 408:  # asleep, it had no body for as long as it waits for one
            break
    assert reply.status in (200, 400)
    if reply.status == 200:
        assert found == {"first": end, "next": service.log.log.end, "accepted": service.log.log.end - end}
        assert found["accepted"] == len(accepted.from_json(body, now=1)) > 0
    else:
        assert service.log.log.end == end
        assert len(found["error"]) < 400 and found["error"].isprintable()
        if not encoding:
            with contextlib.suppress(WrongClick):
                assert not len(accepted.from_json(body, now=1))


@pytest.fixture(scope="module")
def fuzzed(service):
    link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    yield link
    link.close()
