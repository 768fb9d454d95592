"""Weights-only versions: what changes, what may not, and what is refused. The model is parts in, score out."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from ranking.apply import apply_weights
from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.fusion_layer import ServedFusion
from ranking.golden import FUSION, write_golden_scores
from serving import publish as publishing
from serving import verifier
from serving.errors import ServingError
from serving.publish import Content, publish, version_content, version_hashes, versions, write_golden
from serving.server.bundle import Bundle
from serving.verify import Loaded, predict, verify

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
N = 30
HERE = SimpleNamespace(  # a verifier without a process
    verify=verify,
    predict=lambda folder, asked, known_graph: predict(Loaded(folder, known_graph=known_graph).bundle, asked),
    close=lambda: None,
)
SEGMENTS = {"new": {"similarity": 0.9, "pctr": -0.5}}


def parts_of(seed=0):
    generator = np.random.default_rng(seed)
    parts = {
        "similarity": generator.uniform(-1, 1, N),
        "has_similarity": generator.random(N) < 0.8,
        "pctr": generator.beta(1, 20, N),
        "pcvr": generator.beta(1, 10, N),
        "price": np.where(generator.random(N) < 0.8, generator.lognormal(3, 1, N), np.nan),
    }
    return {name: values.astype(np.float32) for name, values in parts.items()}


PRODUCTION = FusionWeights.fit(parts_of(9), "product", {"similarity": 0.2, "pctr": 1, "pcvr": 0.6, "price": -0.5}, "p")


def other(**weights):
    return dataclasses.replace(PRODUCTION, weights={**PRODUCTION.weights, **weights})


class Version(tf.Module):
    """Parts in; parts and score out; and tables of every kind of value."""

    def __init__(self, weights, segmented):
        super().__init__()
        self.fusion = ServedFusion(weights, segmented=segmented)
        self.tables = [
            tf.Variable(values) for values in (["a", "天"], [2**53 + 1], [True, False], np.eye(3, dtype="f4"))
        ]

    @tf.function
    def rank(self, **inputs):
        parts = {name: values for name, values in inputs.items() if name not in ("item_id", "segment")}
        score = self.fusion.score(parts, segment=inputs.get("segment"))
        return {**{name: tf.identity(parts[name]) for name in parts if name != "price"}, "score": score}


def export(models, weights=PRODUCTION, *, segmented=False, tables="t", verified=False):
    specs = {name: tf.TensorSpec([None], tf.float32, name=name) for name in parts_of()}
    specs["item_id"] = tf.TensorSpec([None], tf.int64, name="item_id")
    inputs = {**parts_of(), "item_id": np.arange(N)}
    if segmented:
        specs["segment"] = tf.TensorSpec([1], tf.string, name="segment")
        inputs["segment"] = np.array(["new"], object)

    def build(folder, live):
        version = Version(weights, segmented)
        tf.saved_model.save(version, str(folder), signatures={"rank": version.rank.get_concrete_function(**specs)})
        outputs = {name: inputs[name] for name in ("similarity", "pctr", "pcvr")}
        request = {"signature": "rank", "inputs": inputs, "outputs": outputs, "parts": {"price": inputs["price"]}}
        write_golden(folder, [request])
        write_golden_scores(folder, weights, HERE)
        weights.save(folder / FUSION)
        return Content({"parameters": weights.parameters_hash, "weights": weights.hash, "tables": tables}, {"kept": 7})

    return models / "seedrank" / str(publish(models / "seedrank", build, verify=verified))


def answer(folder, parts, segment=None):
    bundle = Bundle(folder)
    known = {} if segment is None else {"segment": np.array([segment.encode()], object)}
    found = bundle.predict({**parts, "item_id": np.arange(N), **known}, signature="rank")
    bundle.close()
    return found


@pytest.fixture
def unverified(monkeypatch):
    """Without the fresh process of every publish; the test calls `verify` itself where it counts."""
    for module in (publishing, verifier):
        monkeypatch.setattr(module, "Verifier", lambda: HERE)


def test_apply_changes_the_order_and_nothing_else(tmp_path):
    """With the verification in a fresh process, as it is used."""
    live = export(tmp_path)
    weights = other(similarity=-1, pctr=0.1)
    applied = apply_weights(tmp_path, weights)
    assert versions(tmp_path / "seedrank") == [int(live.name), int(applied.name)]
    parts = parts_of(3)
    before, after = answer(live, parts), answer(applied, parts)
    wide = {name: values.astype(np.float64) for name, values in parts.items()}
    np.testing.assert_allclose(before["score"], fuse(wide, PRODUCTION), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(after["score"], fuse(wide, weights), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(np.argsort(-after["score"]), np.argsort(-fuse(wide, weights)))
    assert np.argsort(-after["score"]).tolist() != np.argsort(-before["score"]).tolist()
    for name in before.keys() - {"score"}:
        assert before[name].tobytes() == after[name].tobytes()
    # the graph is the same file, the checkpoint but for the weights the same values
    assert (live / "saved_model.pb").read_bytes() == (applied / "saved_model.pb").read_bytes()
    old, new = (tf.train.load_checkpoint(str(folder / "variables" / "variables")) for folder in (live, applied))
    assert old.get_variable_to_shape_map() == new.get_variable_to_shape_map()
    assert old.get_variable_to_dtype_map() == new.get_variable_to_dtype_map()
    changed = [
        name
        for name in old.get_variable_to_shape_map()
        if np.asarray(old.get_tensor(name)).tolist() != np.asarray(new.get_tensor(name)).tolist()
    ]
    assert [name.split("/.")[0] for name in changed] == ["fusion/arrays/weights"]
    # TensorFlow's own loader, which TensorFlow Serving's is
    loaded = tf.saved_model.load(str(applied))
    fed = {**parts, "item_id": np.arange(N)}
    found = loaded.signatures["rank"](**{name: tf.constant(values) for name, values in fed.items()})
    np.testing.assert_allclose(found["score"].numpy(), after["score"], rtol=1e-6)
    fingerprints = [tf.saved_model.experimental.read_fingerprint(str(folder)) for folder in (live, applied)]
    assert fingerprints[0].saved_model_checksum == fingerprints[1].saved_model_checksum
    assert fingerprints[0].checkpoint_hash != fingerprints[1].checkpoint_hash


def test_the_hash_goes_from_the_weights_to_the_manifest(tmp_path, unverified):
    live = export(tmp_path)
    weights = other(pcvr=1)
    applied = apply_weights(tmp_path, weights)
    assert FusionWeights.load(applied / FUSION).hash == weights.hash
    assert version_hashes(applied) == {"parameters": "p", "weights": weights.hash, "tables": "t"}
    assert version_hashes(live) == {"parameters": "p", "weights": PRODUCTION.hash, "tables": "t"}
    facts = version_content(applied).facts
    assert facts["kept"] == 7 and facts["form"] == "product" and facts["weights"]["pcvr"] == 1
    assert FusionWeights(**facts["fusion"]) == weights
    manifest = json.loads((applied / "manifest.json").read_text())
    assert manifest["version"] == int(applied.name) and "variables/variables.index" in manifest["files"]


def test_segments_and_bounds_change_with_the_weights(tmp_path, unverified):
    export(tmp_path, segmented=True)
    bounds = {name: (-0.5, 1.0) for name in PRODUCTION.weights}
    weights = dataclasses.replace(PRODUCTION, segments={"gone": {"price": 0.5}, **SEGMENTS}, bounds=bounds)
    applied = apply_weights(tmp_path, weights)
    parts = parts_of(4)
    wide = {name: values.astype(np.float64) for name, values in parts.items()}
    for segment in ("new", "gone", "", "never seen"):
        found = answer(applied, parts, segment)["score"]
        np.testing.assert_allclose(found, fuse(wide, weights, segment=segment), rtol=1e-6, atol=1e-6)
    # and back to weights without them
    again = apply_weights(tmp_path, PRODUCTION)
    np.testing.assert_allclose(answer(again, parts, "new")["score"], fuse(wide, PRODUCTION), rtol=1e-6, atol=1e-6)


def test_rollback_is_the_old_content_under_a_higher_number(tmp_path, unverified):
    live = export(tmp_path)
    applied = apply_weights(tmp_path, other(similarity=1))

    def old_content(folder, newest):
        assert newest == applied
        shutil.copytree(live, folder, dirs_exist_ok=True)
        return version_content(live)

    back = tmp_path / "seedrank" / str(publish(tmp_path / "seedrank", old_content))
    assert int(back.name) > int(applied.name) and version_hashes(back) == version_hashes(live)
    parts = parts_of(5)
    assert answer(back, parts)["score"].tobytes() == answer(live, parts)["score"].tobytes()
    # and weights may be applied to what was brought back
    assert version_hashes(apply_weights(tmp_path, other(similarity=1))) == version_hashes(applied)


def test_a_version_with_wrong_weights_is_not_published(tmp_path, unverified, monkeypatch):
    """The golden scores are those of the weights: a checkpoint with others does not pass."""
    live = export(tmp_path)
    monkeypatch.setattr("ranking.apply.rewrite_version", lambda live, folder, arrays: shutil.copytree(
        live, folder, dirs_exist_ok=True
    ))  # fmt: skip
    with pytest.raises(ServingError, match="`score` at"):
        apply_weights(tmp_path, other(similarity=-1))
    assert versions(tmp_path / "seedrank") == [int(live.name)]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (dataclasses.replace(PRODUCTION, parameters_hash="q"), "other parameters.*should be 'p'. Received: 'q'"),
        (dataclasses.replace(PRODUCTION, parameters_hash=""), "other parameters.*should be 'p'. Received: ''"),
        (dataclasses.replace(PRODUCTION, form="sum"), "`form` of the weights should be that of .*'product'"),
        (dataclasses.replace(PRODUCTION, mu={**PRODUCTION.mu, "pctr": 0.0}), "`mu` of the weights should be that of"),
        (
            FusionWeights(
                "product", {"pctr": 1}, {"pctr": PRODUCTION.mu["pctr"]}, {"pctr": PRODUCTION.sd["pctr"]}, "p"
            ),
            "`mu` of the weights should be that of",
        ),
        (dataclasses.replace(PRODUCTION, segments=SEGMENTS), r"declare \[replay\] `segment`"),
    ],
)
def test_refused_weights(shared, weights, message):
    before = sorted(path.name for path in (shared / "seedrank").iterdir())
    with pytest.raises(UserError, match=message):
        apply_weights(shared, weights)
    assert sorted(path.name for path in (shared / "seedrank").iterdir()) == before


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    export(folder)
    return folder


def test_refused_models(shared, tmp_path):
    with pytest.raises(UserError, match="absent should hold a published version: seedrank export"):
        apply_weights(tmp_path, PRODUCTION, name="absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(ServingError, match=r"`name` should be of letters.* Received: '../x'"):
        apply_weights(tmp_path, PRODUCTION, name="../x")
    shutil.copytree(shared, tmp_path, dirs_exist_ok=True)
    (folder,) = (path for path in (tmp_path / "seedrank").iterdir() if path.is_dir())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "hashes": {}}))
    with pytest.raises(UserError, match="does not say what it is made of: publish it again"):
        apply_weights(tmp_path, PRODUCTION)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="does not say what it is made of"):
        apply_weights(tmp_path, PRODUCTION)


APPLY = """
import sys
import types
from ranking import apply
from ranking.fusion import FusionWeights
from serving import verifier
from serving.verify import Loaded, predict
verifier.Verifier = lambda: types.SimpleNamespace(
    close=lambda: None, verify=lambda folder, known_graph: None,
    predict=lambda folder, asked, known_graph: predict(Loaded(folder, known_graph=known_graph).bundle, asked))
write = apply.rewrite_version
def pausing(*arguments):  # the live version has been read, the new one begun
    write(*arguments)
    print("inside", flush=True)
    sys.stdin.readline()
apply.rewrite_version = pausing
weights = FusionWeights.load(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
apply.apply_weights(sys.argv[1], weights)
"""


@pytest.fixture
def applying(tmp_path):
    """Another process that applies `other(similarity=-1)`: `ready`, then `inside`, each awaiting a line."""
    other(similarity=-1).save(tmp_path / "weights.json")
    line = [sys.executable, "-c", APPLY, str(tmp_path), str(tmp_path / "weights.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    yield process
    process.kill()
    process.communicate()


def heard(process, word):
    assert process.stdout.readline() == f"{word}\n"


def new_tables(folder, live):
    """What a refresh is: the live version with other tables."""
    shutil.copytree(live, folder, dirs_exist_ok=True)
    return Content({**version_hashes(live), "tables": version_hashes(live)["tables"] + "+"})


def has_both(models):
    newest = models / "seedrank" / str(versions(models / "seedrank")[-1])
    assert version_hashes(newest) == {"parameters": "p", "weights": other(similarity=-1).hash, "tables": "t+"}
    assert verify(newest) == 1


def test_tables_published_while_weights_are_applied_are_not_lost(tmp_path, applying):
    export(tmp_path)
    heard(applying, "ready")
    applying.stdin.write("go\n")
    heard(applying, "inside")
    thread = threading.Thread(target=publish, args=(tmp_path / "seedrank", new_tables), kwargs={"verify": False})
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and len(versions(tmp_path / "seedrank")) == 1  # it waits for the other process
    applying.stdin.write("go\n")
    thread.join(60)
    assert applying.wait(60) == 0
    has_both(tmp_path)


def test_weights_applied_while_tables_are_published_are_not_lost(tmp_path, applying):
    export(tmp_path)
    heard(applying, "ready")

    def slow(folder, live):
        applying.stdin.write("go\n")
        time.sleep(0.5)
        assert applying.poll() is None and len(versions(tmp_path / "seedrank")) == 1
        return new_tables(folder, live)

    publish(tmp_path / "seedrank", slow, verify=False)
    heard(applying, "inside")
    applying.stdin.write("go\n")
    assert applying.wait(60) == 0
    has_both(tmp_path)


def test_a_kill_in_the_middle_leaves_the_old_version(tmp_path, applying):
    live = export(tmp_path)
    heard(applying, "ready")
    applying.stdin.write("go\n")
    heard(applying, "inside")
    assert len(list((tmp_path / "seedrank").glob(".tmp-*/saved_model.pb"))) == 1
    applying.send_signal(signal.SIGKILL)
    applying.wait(60)
    assert versions(tmp_path / "seedrank") == [int(live.name)]
    assert verify(live) == 1
    publish(tmp_path / "seedrank", new_tables, verify=False)  # the lease is free, what was left over goes
    assert not list((tmp_path / "seedrank").glob(".tmp-*"))
