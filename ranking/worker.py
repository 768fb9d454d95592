"""One process of a training on several workers; started by `ranking.workers`."""

import copy
import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import esmm  # noqa: F401 (registers the classes that a model file names)
from esmm.loop import training_step
from ranking.atomic import atomic_file
from ranking.checkpoints import Checkpoint
from ranking.errors import UserError
from ranking.spool import TARGET, WEIGHT, Spool, supervised

__all__ = ["PROGRESS", "REFUSED", "STATE", "Plan", "main"]

STATE = "workers"  # the name of the checkpoint
PROGRESS = "progress.json"
REFUSED = 2  # exit status of a mistake of the user's: another try would end alike


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every process of a training is told.

    Attributes:
        model: str. A `.keras` file: the network and its first weights.
        spool: str. The folder of the rows.
        folder: str. Of the checkpoint; in a cluster, one that all machines see.
        losses: dict. Output -> serialized keras loss.
        loss_weights: dict. Output -> float.
        optimizer: dict. Serialized keras optimizer.
        epochs: int. Passes over the rows.
        batch_size: int. Rows of a step: of all workers together, or of each under parameter servers.
        seed: int. Of the order of the rows.
        save_steps: int. Steps from one checkpoint to the next.
    """

    model: str
    spool: str
    folder: str
    losses: dict[str, Any]
    loss_weights: dict[str, float]
    optimizer: dict[str, Any]
    epochs: int
    batch_size: int
    seed: int
    save_steps: int

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint has to agree with for training to go on from it."""
        told = dataclasses.asdict(self)
        return {name: told[name] for name in told if name not in ("model", "spool", "folder", "save_steps")}


class _Training:
    """The model, where it stands, and the checkpoint that keeps both."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan, self.index = plan, index
        self.spool = Spool(plan.spool)
        self.model = keras.models.load_model(plan.model, compile=False)
        # A copy: Keras puts the schedule that it makes into the settings it was given.
        self.optimizer = keras.saving.deserialize_keras_object(copy.deepcopy(plan.optimizer))
        losses = {name: keras.saving.deserialize_keras_object(loss) for name, loss in plan.losses.items()}
        self.step = training_step(self.model, self.optimizer, losses, loss_weights=plan.loss_weights)
        inputs = [tensor.name for tensor in self.model.inputs]
        weights = [WEIGHT + name for name in losses if WEIGHT + name in self.spool.names]
        self.names = [*inputs, *(TARGET + name for name in losses), *weights]
        fingerprint = {**plan.fingerprint(), "rows": self.spool.rows}
        self.checkpoint = Checkpoint(Path(plan.folder), fingerprint, resume=True)
        self.steps = -(-self.spool.rows // plan.batch_size)  # of an epoch
        self.curve: list[Any] = []  # the loss of every step so far
        self.told = 0.0

    def save(self) -> None:
        """Keeps the state; refuses to keep one that cannot get better."""
        curve = np.array([float(loss) for loss in self.curve], np.float32)
        if not np.isfinite(curve).all():
            raise UserError(
                f"the loss is {curve[~np.isfinite(curve)][0]} at step {int(np.argmin(np.isfinite(curve)))}: "
                "look for infinite numbers among the features, or lower the learning rate."
            )
        self.curve = list(curve)
        self.checkpoint.keep(
            STATE,
            {"epoch": len(curve) // self.steps, "step": len(curve) % self.steps},
            model=[variable.numpy() for variable in self.model.variables],
            optimizer=[variable.numpy() for variable in self.optimizer.variables],
            curve=[curve],
        )
        self.tell(always=True)

    def restore(self) -> None:
        """Goes back to the checkpoint."""
        found = self.checkpoint.kept(STATE)
        if found is None:
            raise UserError(f"{self.plan.folder} holds no checkpoint that this worker sees: share it with the chief.")
        for kind, variables in (("model", self.model.variables), ("optimizer", self.optimizer.variables)):
            for variable, value in zip(variables, found[1][kind], strict=True):
                variable.assign(value)
        for variable in self.model.variables:
            if self.index and variable.name == "seed_generator_state":  # else all workers drop the same units
                variable.assign(variable.numpy() + np.array([self.index, 0], np.uint32))
        self.curve = list(found[1]["curve"][0])

    def batches(self, part: tuple[int, int]) -> Iterator[tuple[dict, dict, dict]]:
        """The batches that are left, of all epochs."""
        first = len(self.curve)
        for epoch in range(first // self.steps, self.plan.epochs):
            start = max(first - epoch * self.steps, 0)
            how: dict[str, Any] = {"batch_size": self.plan.batch_size, "seed": self.plan.seed, "epoch": epoch}
            for batch in self.spool.batches(self.names, **how, start=start, part=part):
                yield supervised(batch)

    def tell(self, *, always: bool = False) -> None:
        """Writes how far it is, about once a second."""
        if always or time.monotonic() > self.told + 1:
            epoch, step = divmod(len(self.curve), self.steps)
            done = epoch * self.spool.rows + step * self.plan.batch_size
            with atomic_file(Path(self.plan.folder) / PROGRESS) as temporary:
                temporary.write_text(json.dumps({"done": done, "total": self.plan.epochs * self.spool.rows}))
            self.told = time.monotonic()


def _synchronously(plan: Plan, index: int, workers: int) -> None:
    """Dense and synchronous: each worker has its part of every batch, and all have the same weights."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        training = _Training(plan, index)

    @tf.function
    def meet() -> tf.Tensor:
        one = strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))
        )
        return strategy.reduce(tf.distribute.ReduceOp.SUM, one, axis=None)

    with strategy.scope():
        if index == 0 and training.checkpoint.kept(STATE) is None:
            training.save()
        meet()  # the checkpoint is there
        training.restore()
        for batch in training.batches((index, workers)):
            training.curve.append(training.step(*batch))
            if len(training.curve) % plan.save_steps == 0:
                if index == 0:
                    training.save()
            elif index == 0:
                training.tell()
        if index == 0:
            training.save()
        meet()  # the result is there


def _on_parameter_servers(plan: Plan, resolver: Any) -> None:
    """The tables on parameter servers; workers read rows of them, and write back, each at its own pace.

    The batches come from here: whichever worker is free takes the next one, so that each is taken once.
    """
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        training = _Training(plan, 0)
        if training.checkpoint.kept(STATE) is None:
            training.save()
        training.restore()
        for batch in training.batches((0, 1)):
            arguments = tf.nest.map_structure(lambda tensor: tensor.numpy(), batch)
            training.curve.append(coordinator.schedule(training.step, args=arguments))
            if len(training.curve) % plan.save_steps == 0:
                _join(training, coordinator)
            training.tell()
        _join(training, coordinator)


def _join(training: _Training, coordinator: Any) -> None:
    coordinator.join()
    training.curve = [loss.fetch() if hasattr(loss, "fetch") else loss for loss in training.curve]
    training.save()


def _die_with_parent() -> None:
    """Ends this process when its starter is gone: nobody else would, and it may wait for its peers for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(path: str) -> None:
    """Plays the role that TF_CONFIG gives this process in the plan of a JSON file."""
    _die_with_parent()
    plan = Plan(**json.loads(Path(path).read_text()))
    config: Mapping[str, Any] = json.loads(os.environ["TF_CONFIG"])
    role, index = config["task"]["type"], int(config["task"]["index"])
    cluster = config["cluster"]
    try:
        if "ps" not in cluster:
            chiefs = len(cluster.get("chief", []))
            place = index + (chiefs if role == "worker" else 0)
            _synchronously(plan, place, chiefs + len(cluster.get("worker", [])))
        elif role == "chief":
            _on_parameter_servers(plan, tf.distribute.cluster_resolver.TFConfigClusterResolver())
        else:
            spec = tf.train.ClusterSpec(cluster)
            tf.distribute.Server(spec, job_name=role, task_index=index, protocol="grpc", start=True).join()
    except ValueError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(REFUSED)
    sys.stdout.flush()
    os._exit(0)  # servers of a cluster that is coming down may hang in their destructors


if __name__ == "__main__":
    main(sys.argv[1])
