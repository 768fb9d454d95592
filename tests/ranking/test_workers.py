"""Training on several processes of this machine."""

import json
import os
import signal
import sys
import time

import keras
import numpy as np
import pytest

from esmm.architecture import Architecture
from esmm.embedding import Feature
from esmm.loop import training_step
from esmm.model import build_esmm, losses, targets
from esmm.optimizers import RowAdam
from ranking.errors import UserError
from ranking.spool import Spool, SpoolWriter, supervised
from ranking.workers import Workers, run_workers, train_on_workers

ROWS, BATCH, EPOCHS = 1_001, 100, 2  # the last batch has one row: one worker has none of it
FEATURES = (
    Feature("user", "categorical", size=200),
    Feature("tags", "multi", size=30),
    Feature("age", "numeric"),
)


@pytest.fixture(scope="module")
def spool(tmp_path_factory):
    generator = np.random.default_rng(0)
    inputs = {
        "user": generator.integers(0, 200, ROWS).astype(np.int32),
        "tags": generator.integers(0, 30, (ROWS, 3)).astype(np.int32),
        "age": generator.random(ROWS).astype(np.float32),
    }
    click = generator.random(ROWS) < np.where(inputs["user"] % 2, 0.8, 0.1)
    labels = targets(click, click & (generator.random(ROWS) < 0.3))
    folder = tmp_path_factory.mktemp("spool") / "rows"
    with SpoolWriter(folder) as writer:
        weight = (generator.random(ROWS) < 0.8).astype(np.float32)
        labels = {f"target:{name}": label for name, label in labels.items()}
        writer.append({**inputs, **labels, "weight:log_pctcvr": weight})
    return Spool(folder)


def model_of(dropout=0.0):
    keras.utils.set_random_seed(0)
    return build_esmm(FEATURES, Architecture(embedding_dim=4, towers=(8,), dropout=dropout, l2=1e-3))


@pytest.fixture(scope="module")
def alone(spool):
    """The loss of every step, and the weights, of one process with the whole batches."""
    model = model_of()
    step = training_step(model, RowAdam(0.01), losses(), loss_weights={"log_pctcvr": 2.0})
    curve = []
    for epoch in range(EPOCHS):
        for batch in spool.batches(spool.names, batch_size=BATCH, seed=5, epoch=epoch):
            curve.append(float(step(*supervised(batch))))
    return np.array(curve), model.get_weights()


def train(spool, folder, model=None, how=None, **other):
    other = {"loss_weights": {"log_pctcvr": 2.0}, "epochs": EPOCHS, "batch_size": BATCH, "seed": 5} | other
    other |= {"optimizer": RowAdam(0.01), "folder": folder, "how": how or Workers(2, save_steps=4)}
    return train_on_workers(model or model_of(), spool, losses(), **other)


@pytest.mark.slow
def test_two_workers_are_one_process_also_when_one_is_killed(spool, alone, tmp_path):
    killed = []

    def kill(stage, done, total):
        # the second process of the first start, once a checkpoint has been written mid-training
        if not killed and BATCH <= done < total:
            victims = [pid for pid in children() if b'"type": "worker", "index": 1' in environment(pid)]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            killed.extend(victims)

    model, told = train(spool, tmp_path / "training", progress=kill)
    assert len(killed) == 1 and told["restarts"] == 1
    curve, weights = alone
    assert len(curve) == 2 * 11
    np.testing.assert_allclose(told["curve"], curve, atol=1e-5)
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # 10 batches of 100 rows and one of 1
    np.testing.assert_allclose(told["loss"][1], (curve[11:21].sum() * 100 + curve[21]) / 1001, rtol=1e-4)
    # what is finished is not trained again, and another training does not go on from it
    again, _ = train(spool, tmp_path / "training", progress=kill)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    with pytest.raises(UserError, match="seed"):
        train(spool, tmp_path / "training", seed=6)


def children():
    mine = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                    mine.append(int(pid))
        except OSError:
            pass
    return mine


def environment(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()


@pytest.mark.slow
def test_tables_on_a_parameter_server(spool, tmp_path):
    how = Workers(2, parameter_servers=1, save_steps=40)
    model, told = train(spool, tmp_path / "training", model_of(0.2), how, epochs=18)
    assert len(told["curve"]) == 18 * 11 and told["restarts"] == 0
    # the entropy of clicks, of which users tell half, and of conversions: from 0.69 + 2 * 0.69 downwards
    assert told["loss"][-1] < 0.7 * told["loss"][0]
    odd = {"user": np.arange(2, 200, dtype=np.int32), "tags": np.zeros((198, 3), np.int32), "age": np.zeros(198)}
    clicks = model.predict(odd, verbose=0)["pctr"]
    # .8 and .1 in truth; how far it comes depends on how stale the rows are that a worker steps from
    assert clicks[1::2].mean() > clicks[::2].mean() + 0.3


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_training(spool, tmp_path):
    model = model_of()
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    with pytest.raises(UserError, match="the loss is nan at step 0"):
        train(spool, tmp_path / "training", model, Workers(1))


def script(tmp_path, text):
    (tmp_path / "script.py").write_text("import json, os, pathlib, sys, time\n" + text)
    return [sys.executable, str(tmp_path / "script.py")]


def test_each_process_knows_its_role(tmp_path):
    command = script(
        tmp_path,
        f"""
config = json.loads(os.environ["TF_CONFIG"])
task = config["task"]
pathlib.Path({str(tmp_path)!r}, f"{{task['type']}}-{{task['index']}}.json").write_text(json.dumps(config))
if task["type"] != "chief":
    time.sleep(600)  # a server serves until it is ended
""",
    )
    started = time.monotonic()
    assert run_workers(command, {"chief": 1, "ps": 1, "worker": 2}, logs=tmp_path / "logs", retries=0) == 0
    assert time.monotonic() - started < 300
    chief = json.loads((tmp_path / "chief-0.json").read_text())
    assert {role: len(addresses) for role, addresses in chief["cluster"].items()} == {"chief": 1, "ps": 1, "worker": 2}
    addresses = sum(chief["cluster"].values(), [])
    assert len(set(addresses)) == 4


def test_all_start_again_when_one_dies(tmp_path):
    command = script(
        tmp_path,
        f"""
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
starts = pathlib.Path({str(tmp_path)!r}, f"starts-{{index}}")
starts.write_text((starts.read_text() if starts.exists() else "") + "x")
if len(starts.read_text()) < 3:
    if index == 0:
        time.sleep(600)
    other = pathlib.Path({str(tmp_path)!r}, "starts-0")
    while not other.exists() or len(other.read_text()) < len(starts.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
""",
    )
    assert run_workers(command, {"worker": 2}, logs=tmp_path / "logs", retries=2) == 2
    assert (tmp_path / "starts-0").read_text() == (tmp_path / "starts-1").read_text() == "xxx"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print('the rows are not there'); sys.exit(2)", "^the rows are not there$"),
        ("print('out of luck'); sys.exit(1)", "worker-0 ended with status 1, after 1 new starts.*out of luck"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
    ],
)
def test_who_keeps_dying_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        run_workers(script(tmp_path, text), {"worker": 1}, logs=tmp_path / "logs", retries=1)


def test_in_a_cluster_one_role_runs(tmp_path, monkeypatch):
    cluster = {"worker": ["a:1", "b:2"], "ps": ["c:3"], "chief": ["d:4"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}}))
    command = script(
        tmp_path,
        f"""
path = pathlib.Path({str(tmp_path)!r}, "new." + str(os.getpid()))
path.write_text(os.environ["TF_CONFIG"])
path.rename(path.with_suffix(".told"))
time.sleep(600)
""",
    )

    def finished():  # in truth what the chief writes, elsewhere
        return any(tmp_path.glob("*.told"))

    assert run_workers(command, {"worker": 5}, logs=tmp_path / "logs", watch=finished) == 0
    (told,) = [json.loads(path.read_text()) for path in tmp_path.glob("new.*")]
    assert told == {"cluster": cluster, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(UserError, match="TF_CONFIG"):
        run_workers(command, {"worker": 1}, logs=tmp_path / "logs")


def test_what_does_not_fit_is_refused(spool, tmp_path):
    with pytest.raises(UserError, match="workers=0"):
        Workers(0)
    with pytest.raises(UserError, match="epochs"):
        train(spool, tmp_path / "training", epochs=0)
    other = build_esmm([Feature("item", "categorical", size=9)])
    with pytest.raises(UserError, match="holds no item"):
        train(spool, tmp_path / "training", other)
