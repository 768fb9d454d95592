"""Verification in processes of their own, one folder each, with one ready ahead; and what it refuses beside answers."""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from serving.errors import ServingError
from serving.manifest import Content, write_manifest
from serving.publish import publish, versions, write_golden
from serving.verifier import Verifier
from serving.verify import main, verify
from serving.warmup import WARMUP, write_warmup


def fake_python(tmp_path, monkeypatch, script):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))


SAYS = """
while read -r asked; do
  folder=$(echo "$asked" | sed 's/.*"directory": "\\([^"]*\\)".*/\\1/')
  echo "$$ $folder" >> "$(dirname $0)/said"
  case "$asked" in
    *bad*) echo '{"refused": "no good"}';;
    *broken*) echo "first" >&2; echo "what is wrong" >&2; exit 1;;
    *requests*) echo '{"answer": [{"y": [1.5]}]}';;
    *) echo '{"answer": 0}';;
  esac
done
"""
ASK = [{"signature": "s", "inputs": {"x": [1.0]}}]


def said(tmp_path):
    lines = (tmp_path / "said").read_text().splitlines()
    return [line.split(" ", 1) for line in lines]


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


def test_each_folder_has_a_process_of_its_own_and_one_is_ready_ahead(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, SAYS)
    with Verifier() as verifier:
        ahead = [verifier._spare.pid]
        for name in ("a", "b c"):
            verifier.verify(tmp_path / name)
            ahead.append(verifier._spare.pid)
        with pytest.raises(ServingError, match="^not published: no good$"):
            verifier.verify(tmp_path / "bad")
        with pytest.raises(ServingError, match="^not published: what is wrong$"):
            verifier.verify(tmp_path / "broken")
        verifier.verify(tmp_path / "d")  # one that refused is no reason to refuse the next
        last = verifier._spare.pid
    pids = [int(pid) for pid, _ in said(tmp_path)]
    assert len(set(pids)) == 5 and pids[:3] == ahead
    assert [folder for _, folder in said(tmp_path)] == [
        str(tmp_path / name) for name in ("a", "b c", "bad", "broken", "d")
    ]
    assert all(gone(pid) for pid in [*pids, last])  # the end of its input ended it


def test_what_has_answered_for_a_folder_verifies_it_and_no_other(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, SAYS)
    with contextlib.closing(Verifier()) as verifier:
        assert verifier.predict(tmp_path / "a", ASK) == [{"y": [1.5]}]
        verifier.verify(tmp_path / "a")
        verifier.verify(tmp_path / "a")
        verifier.predict(tmp_path / "b", ASK)
        verifier.verify(tmp_path / "c")
        left = said(tmp_path)[-2][0]
        assert not gone(left)
        verifier.predict(tmp_path / "d", ASK)  # of b there came no verification: it is not waited for
        assert gone(left)
        with pytest.raises(ServingError, match="not published: no good"):
            verifier.predict(tmp_path / "bad", ASK)
        assert verifier._loaded is None
        verifier.predict(tmp_path / "e", ASK)
    pids = [pid for pid, _ in said(tmp_path)]
    assert pids[0] == pids[1] and len(set(pids)) == len(pids) - 1
    assert all(gone(pid) for pid in pids)


def test_without_a_context_nothing_is_left_running(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, SAYS)
    verifier = Verifier()
    verifier.verify(tmp_path / "a")
    assert verifier._spare is None and len(said(tmp_path)) == 1


def test_a_spare_that_died_is_replaced(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, SAYS)
    with Verifier() as verifier:
        os.kill(verifier._spare.pid, signal.SIGKILL)
        os.waitid(os.P_PID, verifier._spare.pid, os.WEXITED | os.WNOWAIT)
        verifier.verify(tmp_path / "a")
    assert len(said(tmp_path)) == 1


@pytest.mark.parametrize("call", ["verify", "predict"])
def test_no_answer_is_a_refusal(tmp_path, monkeypatch, call):
    fake_python(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr("serving.verifier.VERIFY_SECONDS", 0.2)
    more = [ASK] if call == "predict" else []
    with pytest.raises(ServingError, match="not published: the verification gave no answer in 0.2 s"):
        getattr(Verifier(), call)(tmp_path / "a", *more)


def test_one_that_is_killed_is_no_answer_in_time(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "read -r asked; kill -9 $$")
    with pytest.raises(ServingError, match="^not published: exit code -9$"):
        Verifier().verify(tmp_path / "a")


@pytest.fixture
def half(tmp_path, save_half):
    return save_half(tmp_path / "half")


def test_the_real_one_answers_twice_and_imports_no_tensorflow(half, tmp_path):
    write_golden(half, [{"signature": "serving_default", "inputs": {"x": [[4.0]]}, "outputs": {"y": [[4.0]]}}])

    def build(folder, live):
        shutil.copytree(half, folder, dirs_exist_ok=True)

    with Verifier() as verifier:
        for number in (1, 2):
            publish(tmp_path / "m", build, verifier=verifier)
            assert len(versions(tmp_path / "m")) == number
        (half / "saved_model.pb").write_bytes(b"")
        with pytest.raises(ServingError, match="not published: .*should hold a graph. Received: none"):
            publish(tmp_path / "m", build, verifier=verifier)


@pytest.mark.parametrize("changed", [False, True])
def test_the_real_one_answers_and_then_verifies_what_it_loaded(half, tmp_path, changed, save_half):
    """4 / 2 + 2 = 4; the golden request is written in between, as who asks for parts of an answer does."""
    with contextlib.closing(Verifier()) as verifier:
        asked = {"signature": "serving_default", "inputs": {"x": [[4.0], [1.0]]}}
        assert verifier.predict(half, [asked, asked]) == [{"y": [[4.0], [2.5]]}] * 2
        write_golden(half, [{**asked, "outputs": {"y": [[4.0], [2.5]]}}])
        if changed:  # other variables: what was loaded says nothing about them
            for file in (half / "variables").iterdir():
                file.write_bytes(b"")
            with pytest.raises(ServingError, match="not published"):
                verifier.verify(half)
        else:
            verifier.verify(half)
        with pytest.raises(ServingError, match="not published: the model has no such signature"):
            verifier.predict(save_half(tmp_path / "other"), [{**asked, "signature": "none"}])


def test_of_a_known_graph_one_signature_answers_for_all(half):
    """Its tables are those of the others, whose graphs were verified before."""
    right = {"signature": "serving_default", "inputs": {"x": [[4.0]]}, "outputs": {"y": [[4.0]]}}  # 4 / 2 + 2
    write_golden(half, [right, {**right, "signature": "other"}, right])
    assert verify(half, known_graph=True) == 2
    with pytest.raises(ServingError, match=r"request 1 \(other\): the model has no such signature"):
        verify(half)
    write_golden(half, [right, {**right, "outputs": {"y": [[4.5]]}}])
    with pytest.raises(ServingError, match="request 1 .* should be 4.5"):
        verify(half, known_graph=True)


def test_a_graph_is_known_where_it_is_that_of_the_live_version(half, tmp_path):
    class Fake:
        def verify(self, folder, *, known_graph):
            seen.append(known_graph)

    seen: list[bool] = []
    for content in (b"", b"", b"\0", b""):
        (half / "saved_model.pb").write_bytes((half / "saved_model.pb").read_bytes() + content)
        publish(
            tmp_path / "m",
            lambda folder, _: shutil.copytree(half, folder, dirs_exist_ok=True) and None,
            verifier=Fake(),
        )
    assert seen == [False, True, False, True]


def test_the_command_needs_a_folder(capsys, monkeypatch, half):
    assert main([]) == 2 and "usage: python -m serving.verify DIRECTORY" in capsys.readouterr().out
    assert main([str(half)]) == 0 and capsys.readouterr().out == "ok: 0 golden requests\n"
    (half / "extra").write_text("")
    assert main([str(half)]) == 2 and "should hold the files of a SavedModel only" in capsys.readouterr().out


@pytest.fixture
def ranked(tmp_path, save_model):
    """A model that tells what its tables are, as a ranker does."""
    import tensorflow as tf

    def signature(v1):
        x = v1.placeholder(tf.float32, [None], name="x")
        told = {"embedding_space_id": 7, "seed_watermark": 1650931200000, "table_version": 9007199254740993}
        outputs = {name: tf.fill(tf.shape(x), tf.constant(value, tf.int64)) for name, value in told.items()}
        return {"rank": ("predict", {"x": x}, {"score": x * 2.0, **outputs})}

    folder = save_model(tmp_path / "ranked", signature)
    write_golden(folder, [{"signature": "rank", "inputs": {"x": [1.0, 2.0]}, "outputs": {"score": [2.0, 4.0]}}])
    return folder


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"embedding_space_id": 7, "seed_watermark": 1650931200000, "table_version": 9007199254740993, "k": 20}, None),
        ({}, None),
        (
            {"embedding_space_id": 8},
            "request 0 .rank.: `embedding_space_id` should be 8, as the facts say. Received: 7",
        ),
        (
            {"seed_watermark": 1650931200001},
            "`seed_watermark` should be 1650931200001, as the .* Received: 1650931200000",
        ),
        (
            {"table_version": 9007199254740992},
            "`table_version` should be 9007199254740992, .* Received: 9007199254740993",
        ),
        ({"embedding_space_id": "7"}, "`embedding_space_id` should be '7', as the facts say. Received: 7"),
    ],
)
def test_answers_are_of_the_embedding_space_and_watermark_that_the_facts_say(ranked, facts, message):
    write_manifest(ranked, 1, "now", Content({}, facts))
    if message is None:
        assert verify(ranked) == 1
    else:
        with pytest.raises(ServingError, match=message):
            verify(ranked)


def test_a_warm_up_record_that_fails_is_refused(ranked, half):
    # read as it should be, but the model beside it has no such signature
    write_warmup(ranked, [{"signature": "rank", "inputs": {"x": np.float32([1, 2])}}])
    assert verify(ranked) == 1
    (half / WARMUP).parent.mkdir()
    shutil.copy(ranked / WARMUP, half / WARMUP)
    with pytest.raises(ServingError, match='Serving signature key "rank" not found'):
        verify(half)


def test_a_warm_up_that_can_not_be_read_is_refused(half):
    write_warmup(half, [{"signature": "serving_default", "inputs": {"x": np.float32([[1], [2]])}}])
    assert verify(half) == 0
    whole = (half / WARMUP).read_bytes()
    for damaged in (b"no records at all", whole[:-1], whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]):
        (half / WARMUP).write_bytes(damaged)
        with pytest.raises(ServingError, match="corrupted record|truncated record|TFRecord"):
            verify(half)
    write_warmup(half, [{"signature": "serving_default", "inputs": {"x": np.float32([[1], [2]])}}])
    assert verify(half) == 0


def test_missing_variables_and_truncated_ones_are_refused(half):
    data = half / "variables" / "variables.data-00000-of-00001"
    whole = data.read_bytes()
    for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], b""):
        data.write_bytes(damaged)
        with pytest.raises(ServingError):
            verify(half)
    data.unlink()
    with pytest.raises(ServingError):
        verify(half)
    data.write_bytes(whole)
    assert verify(half) == 0
