"""Publishing: whole versions only, one publisher at a time, verified in a fresh process."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from serving.errors import ServingError
from serving.publish import Content, publish, version_content, version_hashes, versions, write_golden
from serving.verify import verify

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path, live: Path | None) -> None:
    (folder / "variables").mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")


def test_versions_grow_and_old_ones_go(tmp_path):
    before = int(time.time() * 1000)
    published = [publish(tmp_path / "m", build, keep=2, verify=False) for _ in range(4)]
    assert before <= published[0] <= int(time.time() * 1000)
    assert published == sorted(set(published))
    assert versions(tmp_path / "m") == published[-2:]


def test_version_is_one_more_than_a_last_from_the_future(tmp_path):
    (tmp_path / "9000000000000000").mkdir()
    assert publish(tmp_path, build, verify=False) == 9000000000000001


def test_versions_reads_names_as_numbers(tmp_path):
    for name in ("00000123", "7", "-1", "1.5", "notes", ".tmp-1", str(1 << 63)):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file")
    assert versions(tmp_path) == [7, 123]
    assert versions(tmp_path / "absent") == []


def test_manifest_holds_the_hash_of_every_file(tmp_path):
    version = publish(tmp_path, build, verify=False)
    manifest = json.loads((tmp_path / str(version) / "manifest.json").read_text())
    assert manifest["version"] == version
    assert manifest["files"] == {
        "saved_model.pb": {"bytes": 5, "sha256": hashlib.sha256(b"graph").hexdigest()},
        "variables/variables.index": {"bytes": 5, "sha256": hashlib.sha256(b"index").hexdigest()},
    }


def test_a_failed_build_leaves_nothing(tmp_path):
    def broken(folder, live):
        build(folder, live)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        publish(tmp_path, broken, verify=False)
    assert [path.name for path in tmp_path.iterdir()] == [".lease"]


def test_rejected_arguments(tmp_path):
    with pytest.raises(ServingError, match="`keep` should be a positive integer. Received: keep=0."):
        publish(tmp_path, build, keep=0)
    with pytest.raises(ServingError, match="`build` should write a SavedModel"):
        publish(tmp_path, lambda folder, live: None, verify=False)


KILLED = """
import os, signal, sys
from serving.publish import publish
def build(folder, live):
    (folder / "saved_model.pb").write_bytes(b"half")
    print("building", flush=True)
    signal.pause()
publish(sys.argv[1], build, verify=False)
"""


def test_kill_in_the_build_leaves_nothing_a_server_would_load(tmp_path):
    first = publish(tmp_path, build, verify=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGKILL)
    leftovers = list(tmp_path.glob(".tmp-*"))
    assert len(leftovers) == 1
    assert versions(tmp_path) == [first]
    second = publish(tmp_path, build, verify=False)  # the dead publisher's lease is free, its leftover goes
    assert versions(tmp_path) == [first, second]
    assert list(tmp_path.glob(".tmp-*")) == []


def test_publishers_take_turns(tmp_path):
    inside, most = [], []

    def slow(folder, live):
        inside.append(folder)
        most.append(len(inside))
        time.sleep(0.05)
        build(folder, live)
        inside.remove(folder)

    threads = [threading.Thread(target=publish, args=(tmp_path, slow), kwargs={"verify": False}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert len(versions(tmp_path)) == 3


def test_build_is_given_the_newest_version(tmp_path):
    seen = []

    def look(folder, live):
        seen.append(live)
        build(folder, live)

    first, second = (publish(tmp_path, look, verify=False) for _ in range(2))
    (tmp_path / "00000000000000000007").mkdir()
    publish(tmp_path, look, verify=False)
    assert seen == [None, tmp_path / str(first), tmp_path / str(second)]


def test_what_build_returns_is_kept(tmp_path):
    def hashed(folder, live):
        build(folder, live)
        return Content({"weights": "abc"}, {"seed_watermark": 3})

    first, second = publish(tmp_path, hashed, verify=False), publish(tmp_path, build, verify=False)
    assert version_hashes(tmp_path / str(first)) == {"weights": "abc"}
    assert version_hashes(tmp_path / str(second)) == version_hashes(tmp_path / "absent") == {}
    assert version_content(tmp_path / str(first)) == Content({"weights": "abc"}, {"seed_watermark": 3})
    (tmp_path / str(first) / "manifest.json").write_text("[half")
    assert version_content(tmp_path / str(first)) == Content()


COUNTING = """
import json, shutil, sys
from serving.publish import publish
def count(folder, live):
    shutil.copytree(live, folder, dirs_exist_ok=True)
    counts = json.loads((live / "saved_model.pb").read_text())
    counts[sys.argv[2]] += 1
    (folder / "saved_model.pb").write_text(json.dumps(counts))
for _ in range(20):
    publish(sys.argv[1], count, verify=False)
"""


def test_what_several_processes_change_is_never_lost(tmp_path):
    def zero(folder, live):
        (folder / "saved_model.pb").write_text('{"a": 0, "b": 0, "c": 0}')

    publish(tmp_path, zero, verify=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = ([sys.executable, "-c", COUNTING, str(tmp_path), name] for name in "abc")
    processes = [subprocess.Popen(line, env=environment) for line in lines]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    newest = tmp_path / str(versions(tmp_path)[-1])
    assert json.loads((newest / "saved_model.pb").read_text()) == {"a": 20, "b": 20, "c": 20}


def golden(x, y, signature="serving_default"):
    return {"signature": signature, "inputs": {"x": np.float32(x)}, "outputs": {"y": np.float32(y)}}


def test_publish_verifies_in_a_fresh_process(tmp_path, save_half):
    def build_half(folder, live):
        folder.rmdir()
        save_half(folder)
        write_golden(folder, [golden([[1], [4]], [[2.5], [4.0]])])  # y = 0.5 x + 2: 1 -> 2.5, 4 -> 4

    assert versions(tmp_path) == [] != [publish(tmp_path, build_half)] == versions(tmp_path)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'loading'; echo '`score` should differ'; exit 2", "not published: `score` should differ"),
        ("echo 'Fatal: out of memory' >&2; kill -9 $$", "not published: Fatal: out of memory"),
        ("exit 7", "not published: exit code 7"),
    ],
)
def test_what_is_refused_is_not_published(tmp_path, monkeypatch, script, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ServingError, match=message):
        publish(tmp_path / "m", build)
    assert [path.name for path in (tmp_path / "m").iterdir()] == [".lease"]


@pytest.fixture
def half(tmp_path, save_half):
    return save_half(tmp_path / "half")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (golden([[1]], [[2.6]]), r"request 0 \(serving_default\): `y` at \(0, 0\) should be 2.5999"),
        (golden([[math.nan]], [[2.5]]), "`y` should be finite. Received: nan"),
        (golden([[1]], [[2.5]], "rank"), "request 0 (rank): the model has no such signature"),
        (golden([[1]], [2.5]), r"`y` should have shape \(1,\). Received: \(1, 1\)"),
        ({**golden([[1]], [[2.5]]), "outputs": {"z": [1.0]}}, "the model has no output `z`"),
        ({**golden([[1]], [[2.5]]), "inputs": {}}, "Missing named input: x"),
    ],
)
def test_verify_refuses(half, request_, message):
    write_golden(half, [request_])
    with pytest.raises(ServingError, match=message.replace("(rank)", r"\(rank\)")):
        verify(half)


def test_verify_accepts_and_counts(half):
    assert verify(half) == 0
    write_golden(half, [golden([[1]], [[2.5 + 9e-6]]), golden([[4]], [[4.0]])])
    assert verify(half) == 2


def test_parts_of_a_golden_request_are_kept_and_not_replayed(half):
    path = write_golden(half, [{**golden([[1]], [[2.5]]), "parts": {"price": np.array([3.0, math.nan])}}])
    (request,) = json.loads(path.read_text())["requests"]
    assert request["parts"]["price"][0] == 3.0 and math.isnan(request["parts"]["price"][1])
    assert verify(half) == 1


def test_verify_refuses_equal_scores(ranker):
    content = {
        "signature": "rank",
        "inputs": {"user_id": [1], "item_id": [5, 5, 5], "tab": [0], "price": [math.nan] * 3},
        "outputs": {},
    }
    folder = ranker / "seedrank" / "7"
    path = write_golden(folder, [content])
    try:
        with pytest.raises(ServingError, match="`score` should differ between candidates. Received: 1.5 for all 3"):
            verify(folder)
    finally:
        path.unlink()
        path.parent.rmdir()


def test_verify_refuses_what_does_not_load(half, tmp_path):
    with pytest.raises(ServingError, match="should be a SavedModel's folder. Received: no saved_model.pb"):
        verify(tmp_path / "absent")
    for path in (half / "variables").iterdir():
        path.unlink()
    with pytest.raises(ServingError, match="variables"):
        verify(half)
