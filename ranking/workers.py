"""Training on several processes: starts them, watches them, and starts them again from the last checkpoint."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ranking.batches import Progress, silent
from ranking.checkpoints import Checkpoint
from ranking.errors import UserError
from ranking.spool import TARGET, Spool
from ranking.worker import PROGRESS, REFUSED, STATE, Plan

__all__ = ["Workers", "run_workers", "train_on_workers"]

POLL = 0.1  # seconds between two looks at the processes
GRACE = 5.0  # seconds a process has to end by itself


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many processes train, and how.

    Attributes:
        workers: int. Processes that compute.
        parameter_servers: int. Processes that hold the weights, each variable whole on one of them; `0`: every worker
            holds them all, and they step together.
        save_steps: int. Steps from one checkpoint to the next, which is the work that a kill can cost. A checkpoint
            is three times the tables.
        retries: int. How many times all are started again after one has died.
    """

    workers: int = 2
    parameter_servers: int = 0
    save_steps: int = 1_000
    retries: int = 3

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("parameter_servers", 0), ("save_steps", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` should be at least {least}. Received: {name}={getattr(self, name)}.")

    def roles(self) -> dict[str, int]:
        """Processes by role."""
        if not self.parameter_servers:
            return {"worker": self.workers}
        return {"chief": 1, "ps": self.parameter_servers, "worker": self.workers}


def train_on_workers(
    model: keras.Model,
    spool: Spool,
    losses: Mapping[str, keras.losses.Loss],
    *,
    optimizer: keras.optimizers.Optimizer,
    folder: str | Path,
    how: Workers,
    loss_weights: Mapping[str, float] | None = None,
    epochs: int = 1,
    batch_size: int = 1024,
    seed: int = 0,
    progress: Progress = silent,
    stage: str = "ESMM",
) -> tuple[keras.Model, dict[str, Any]]:
    """Trains a model on the rows of a spool by several processes, on this machine or on a cluster's.

    Without parameter servers the workers take their parts of the same batches and step together: the result is that of
    one process. With them a worker takes the next batch when it is free, and steps on weights that others change
    meanwhile: faster where steps are uneven, and no two runs are alike.

    Where TF_CONFIG is set, it says what the cluster is, and this call plays one role in it: every machine calls this
    function with the same arguments, a folder that all see, and its copy of the rows.

    Args:
        model: keras.Model. The network and its first weights. Inputs and outputs are dicts.
        spool: Spool. Holds an array for each input, `target:<output>` for each loss, and where the rows do not count
            alike `weight:<output>`.
        losses: dict. Output -> loss, as for `model.compile`.
        optimizer: keras optimizer, not used yet. Its settings are taken.
        folder: str or Path. Of the checkpoint. One of the same training is gone on with, and a finished one is read;
            remove it when the model is kept.
        how: Workers.
        loss_weights: dict or `None`. Output -> float. Defaults to `None`: all 1.
        epochs: int. Defaults to `1`.
        batch_size: int. Rows of a step: of all workers together, or with parameter servers of each. Defaults to `1024`.
        seed: int. Of the order of the rows. Defaults to `0`.
        progress: Progress.
        stage: str. What progress calls it. Defaults to `"ESMM"`.

    Returns:
        The model, with its weights trained, and what happened: `loss`, the mean of each epoch; `curve`, the loss of
        each step, float32; `restarts`; `examples_per_second`, starts of processes included.

    Raises:
        UserError: the spool lacks an array, the checkpoint is another training's, the loss is no number, or a process
            died once more than `how.retries`.
    """
    needed = [*(tensor.name for tensor in model.inputs), *(TARGET + name for name in losses)]
    if missing := sorted(set(needed) - set(spool.names)):
        raise UserError(f"{spool.folder} holds no {', '.join(missing)}: the rows are not of this model.")
    if epochs < 1 or batch_size < 1:
        raise UserError(f"`epochs` and `batch_size` should be positive. Received: {epochs}, {batch_size}.")
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as own:
        plan = Plan(
            model=f"{own}/model.keras",
            spool=str(spool.folder.absolute()),
            folder=str(folder),
            losses={name: _settings(loss) for name, loss in losses.items()},
            loss_weights={name: float(weight) for name, weight in (loss_weights or {}).items()},
            optimizer=_settings(optimizer),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            save_steps=how.save_steps,
        )
        model.save(plan.model)
        Path(own, "plan.json").write_text(json.dumps(dataclasses.asdict(plan)))
        restarts = run_workers(
            [sys.executable, "-m", "ranking.worker", f"{own}/plan.json"],
            how.roles(),
            retries=how.retries,
            logs=folder / "logs",
            watch=lambda: _tell(folder, progress, stage),
        )
    found = Checkpoint(folder, {**plan.fingerprint(), "rows": spool.rows}, resume=True).kept(STATE)
    if found is None or found[0]["epoch"] != epochs:
        raise UserError(f"{folder} does not hold the trained model: the chief of the cluster writes it there.")
    for variable, value in zip(model.variables, found[1]["model"], strict=True):
        variable.assign(value)
    progress(stage, epochs * spool.rows, epochs * spool.rows)
    curve = found[1]["curve"][0]
    sizes = np.full(len(curve) // epochs, batch_size)
    sizes[-1] = spool.rows - batch_size * (len(sizes) - 1)
    return model, {
        "loss": [float(np.average(of, weights=sizes)) for of in curve.reshape(epochs, -1)],
        "curve": curve,
        "restarts": restarts,
        "examples_per_second": epochs * spool.rows / (time.perf_counter() - started),
    }


def _settings(of: Any) -> dict[str, Any]:
    """A loss or an optimizer for a process to make anew; without its name, which is numbered differently each time."""
    told = keras.saving.serialize_keras_object(of)
    del told["config"]["name"]
    return told


def _tell(folder: Path, progress: Progress, stage: str) -> bool:
    """Passes on what the chief wrote; whether the training is finished."""
    path = folder / PROGRESS
    if not path.is_file():
        return False
    told = json.loads(path.read_text())
    progress(stage, told["done"], told["total"])
    return bool(told["done"] >= told["total"])


def run_workers(
    command: Sequence[str],
    roles: Mapping[str, int],
    *,
    logs: Path,
    retries: int = 3,
    watch: Callable[[], bool] = lambda: False,
) -> int:
    """Runs a command once for each role, with TF_CONFIG set, until all workers, or the chief, have ended well.

    When one of them dies, all are ended and started anew: what they agree on, and do over, is theirs to keep. Where
    TF_CONFIG is set already, only the role that it gives this process is run.

    Args:
        command: sequence of str.
        roles: dict. Role (`"chief"`, `"worker"`, `"ps"`) -> how many; in a cluster, what TF_CONFIG says.
        logs: Path. Folder of what each process prints, `<role>-<index>.log`.
        retries: int. How many times to start anew. Defaults to `3`.
        watch: function. Called about ten times a second; returns whether the work is finished, when servers of a
            cluster are ended. Defaults to one that never knows.

    Returns:
        How many times all were started anew.

    Raises:
        UserError: one refused its task (exit status 2), or died once more than `retries`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for attempt in range(retries + 1):
        failed = _attempt(command, roles, logs, watch)
        if failed is None:
            return attempt
        name, status, last = failed
        if status == REFUSED:
            raise UserError(last)
    said = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    raise UserError(f"{name} {said}, after {retries} new starts of all: see {logs / f'{name}.log'}. {last}")


def _attempt(
    command: Sequence[str], roles: Mapping[str, int], logs: Path, watch: Callable[[], bool]
) -> tuple[str, int, str] | None:
    """One start of all; `None` when they ended well, else who did not, its exit status and its last words."""
    with contextlib.ExitStack() as stack:
        processes: dict[str, subprocess.Popen] = {}
        servers = set()
        for config in _configs(roles):
            name = f"{config['task']['type']}-{config['task']['index']}"
            if "ps" in config["cluster"] and config["task"]["type"] != "chief":
                servers.add(name)  # serves until it is ended
            root = str(Path(__file__).resolve().parents[1])
            paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "TF_CONFIG": json.dumps(config), "PYTHONPATH": paths}
            if "ps" in roles:  # with a single thread the steps and their coordinator wait for one another for ever
                environment.pop("TF_NUM_INTEROP_THREADS", None)
            log = stack.enter_context((logs / f"{name}.log").open("ab"))
            processes[name] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            stack.callback(_end, processes[name])
        while True:
            finished = watch()
            ended = {name: status for name, process in processes.items() if (status := process.poll()) is not None}
            failed = [name for name, status in ended.items() if status or name in servers]
            if failed:
                name = min(failed, key=lambda name: ended[name] != REFUSED)  # the others die of its death
                lines = (logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
                return name, ended[name], lines[-1] if lines else ""
            if set(ended) | servers == set(processes) and (ended or finished):
                return None
            time.sleep(POLL)


def _configs(roles: Mapping[str, int]) -> list[dict[str, Any]]:
    """TF_CONFIG of each process to start: the one of the environment, or one a role with free ports."""
    if given := os.environ.get("TF_CONFIG"):
        try:
            config = json.loads(given)
            return [
                {"cluster": dict(config["cluster"]), "task": {name: config["task"][name] for name in ("type", "index")}}
            ]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"TF_CONFIG should be JSON with `cluster` and `task`. Received: {given}.") from None
    with contextlib.ExitStack() as stack:  # all are held until all are chosen
        cluster: dict[str, list[str]] = {}
        for role, count in roles.items():
            for _ in range(count):
                held = stack.enter_context(socket.socket())
                held.bind(("127.0.0.1", 0))
                cluster.setdefault(role, []).append(f"127.0.0.1:{held.getsockname()[1]}")
    tasks = [{"type": role, "index": index} for role, addresses in cluster.items() for index in range(len(addresses))]
    return [{"cluster": cluster, "task": task} for task in tasks]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
