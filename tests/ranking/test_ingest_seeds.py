"""Clicks of a log into a shared store by the command: stopped, started again, beside another, with the server away."""

import threading

import pytest
from typer.testing import CliRunner

from lookalike.clicklog import ClickLog
from lookalike.seeds_redis import RedisSeedStore
from ranking.cli import app
from ranking.errors import UserError
from ranking.ingest_seeds import follow, open_shared
from tests.ranking.test_ingest_streams import wait_until

T = 1_767_225_600_000


def seeds(*words):
    found = CliRunner().invoke(app, ["seeds", *map(str, words)])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


def test_two_logs_into_one_store(tmp_path, redis_server):
    with ClickLog(tmp_path / "one") as one, ClickLog(tmp_path / "two") as two:
        one.append([1, 2], [7, 7], [T, T + 1])
        two.append([2, 3], [7, 8], [T + 2, T])
        for _ in range(2):  # the second time there is nothing new
            assert "at offset 2" in seeds("--log", one.folder, "--redis", redis_server.url(), "--once")
            seeds("--log", two.folder, "--redis", redis_server.url(), "--partition", "two", "--once")
        with pytest.raises(UserError, match="--redis: .* of another log than .*two"):
            seeds("--log", two.folder, "--redis", redis_server.url(), "--once")
    store = RedisSeedStore(redis_server.url())
    assert store.seeds([7, 8])[1].tolist() == [2, 1, 3] and store.counts.accepted == 4


def test_a_log_that_was_cut_behind_the_store_is_refused_and_the_loss_can_be_accepted(tmp_path, redis_server):
    words = ("--log", tmp_path / "clicks", "--redis", redis_server.url(), "--once")
    with ClickLog(tmp_path / "clicks", segment_bytes=1) as log:
        for user in range(4):
            log.append([user], [7], [T])
        log.retain(3)
        with pytest.raises(UserError, match="begins at offset 3, and .* is at 0: .*accept the loss .--accept-loss;"):
            seeds(*words)
        assert "at offset 4" in seeds(*words, "--accept-loss")
        assert "at offset 4" in seeds(*words)  # once is enough
    assert RedisSeedStore(redis_server.url()).counts.accepted == 1


def test_it_follows_the_log_while_the_server_comes_and_goes(tmp_path, redis_server, caplog):
    stop = threading.Event()
    with ClickLog(tmp_path / "clicks") as log:
        store = open_shared(redis_server.url(), ClickLog(tmp_path / "clicks", write=False))
        runner = threading.Thread(target=follow, args=(store, log, stop))
        runner.start()
        try:
            log.append([1], [7], [T])
            wait_until(lambda: RedisSeedStore(redis_server.url()).offset == 1)
            redis_server.kill()
            wait_until(lambda: "clicks wait in their log" in caplog.text)
            log.append([2], [7], [T])
            redis_server.start()
            wait_until(lambda: RedisSeedStore(redis_server.url()).offset == 2)
        finally:
            stop.set()
            runner.join(30)
    assert RedisSeedStore(redis_server.url()).counts.applied == 2


def test_rejected(tmp_path, redis_server, monkeypatch):
    ClickLog(tmp_path / "clicks").close()
    for words, rule in (
        (("--log", tmp_path / "no", "--redis", redis_server.url()), "there is no click log"),
        (("--log", tmp_path / "clicks", "--redis", "http://u:secret@h"), "`url` should start with redis://"),
        (("--log", tmp_path / "clicks", "--redis", redis_server.url(), "--partition", "a b"), "`partition` should be"),
        (("--log", tmp_path / "clicks", "--redis", "redis://u:secret@127.0.0.1:1"), "no connection"),
    ):
        with pytest.raises(UserError, match=rule) as caught:
            seeds(*words, "--once")
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(UserError, match=r"pip install 'seedrank\[redis\]'"):
        seeds("--log", tmp_path / "clicks", "--redis", redis_server.url(), "--once")
