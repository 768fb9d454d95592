"""The last stage: ESMM on the impressions, with what the look-alike stages say of them."""

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from esmm.embedding import Feature
from esmm.model import PositionBias, SharedTowers
from esmm.optimizers import PassDecay, RowAdam
from ranking.batches import Progress, Steps, silent
from ranking.board import Board
from ranking.checkpoints import Checkpoint
from ranking.errors import UserError
from ranking.esmm_settings import EsmmSettings
from ranking.lookalike_settings import LookalikeSettings
from ranking.metrics import auc, logloss
from ranking.rows import Rows
from ranking.sources import MemoryRows, Source, SpooledRows
from ranking.workers import Workers, train_on_workers

__all__ = ["TASKS", "Settings", "train_esmm"]

EPSILON = 1e-5  # of Adam: rows and tasks with few positives have tiny gradients, which 1e-8 makes as loud as any
TASKS = {"click": ("click",), "conversion": ("conversion", "ctcvr")}  # task -> names of the towers that serve it
SAVE_SECONDS = 30.0  # between two saves of the state within a pass


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the stages are trained.

    Attributes:
        lookalike: LookalikeSettings. Of the look-alike stages.
        esmm: EsmmSettings. Of the last one.
    """

    lookalike: LookalikeSettings = dataclasses.field(default_factory=LookalikeSettings)
    esmm: EsmmSettings = dataclasses.field(default_factory=EsmmSettings)


def train_esmm(
    rows: Rows | SpooledRows,
    features: Sequence[Feature],
    settings: EsmmSettings,
    *,
    validation: Rows | None = None,
    schedule: Mapping[str, int] | None = None,
    start: keras.Model | None = None,
    seed: int = 0,
    progress: Progress = silent,
    stage: str = "ESMM",
    board: Board | None = None,
    checkpoint: Checkpoint | None = None,
    workers: Workers | None = None,
) -> tuple[keras.Model, dict[str, Any]]:
    """Stage 3: click and conversion over all impressions, with the similarity among the inputs.

    With `validation`, each task stops by itself. Ids are learned by heart in a second pass, but not by every task: a
    task whose log loss there has risen goes back to the pass before, and all that it reads is frozen; the other task
    goes on in its own tower.

    Args:
        rows: Rows or SpooledRows. Scaled features; repeats are dropped, immature conversions weigh nothing.
        features: sequence of Feature. The inputs to use.
        settings: EsmmSettings.
        validation: Rows or `None`. What decides how many passes, at most `settings.epochs`.
        schedule: dict or `None`. Passes of each task, as found by another training. Defaults to `settings.epochs`.
        start: keras.Model or `None`. Where to start in place of new weights.
        seed: int. The random seed.
        progress: Progress.
        stage: str. What progress and checkpoint call it.
        board: Board or `None`. Takes the curves.
        checkpoint: Checkpoint or `None`. Takes the state as training goes, and gives it back after a kill: the curve
            is then the same as without.
        workers: Workers or `None`. Several processes in place of this one; needs `SpooledRows` and a checkpoint. The
            moments of the optimizer start anew in each pass, and the tasks stop together, at the first that is worse.

    Returns:
        The model, and what happened: examples, passes of each task, losses, examples a second.

    Raises:
        UserError: a task of one class only, a number that is not finite, or a loss that is not finite any more.
    """
    done = checkpoint.finished(stage) if checkpoint is not None else None
    if done is not None:
        progress(stage, 1, 1)
        return done
    source = MemoryRows(rows, stage) if isinstance(rows, Rows) else rows
    training = _Training(source, features, settings, stage, seed=seed, start=start)
    training.steps = Steps(progress, stage, settings.batch_size, source.examples, settings.epochs)
    training.board, training.checkpoint, training.workers = board, checkpoint, workers
    training.progress = progress
    training.resume()
    if validation is not None:
        training.until_best(validation)
    else:
        training.by(schedule or dict.fromkeys(TASKS, settings.epochs))
    progress(stage, training.steps.total, training.steps.total)
    info = training.info()
    if checkpoint is not None:
        checkpoint.finish(stage, training.model, info)
    return training.model, info


class _Training:
    """One training under way: the model, and how far it is."""

    def __init__(
        self,
        source: Source,
        features: Sequence[Feature],
        settings: EsmmSettings,
        stage: str,
        *,
        seed: int,
        start: keras.Model | None,
    ) -> None:
        self.source, self.settings, self.stage, self.seed = source, settings, stage, seed
        self.strategy = settings.training_strategy()
        positions = source.positions if source.positions > 1 else 0  # one position explains nothing
        self.inputs = _inputs(features) + (["position"] if positions else [])
        keras.utils.set_random_seed(seed)
        self.model = start or self.strategy.build(
            features, settings.architecture(), base_rates=source.base_rates, positions=positions
        )
        self.board: Board | None = None
        self.checkpoint: Checkpoint | None = None
        self.workers: Workers | None = None
        self.progress: Progress = silent
        self.steps: Steps
        self.passes = 0  # made or under way, those that were taken back included
        self.step = 0  # of the pass under way
        self.loss = 0.0  # its mean until there
        self.epochs: dict[str, int] = {}  # task -> passes, of those that have stopped
        self.losses: list[float] = []
        self.validated: list[dict[str, float]] = []
        self.best: list[np.ndarray] | None = None
        self.best_losses: dict[str, float] = {}
        self._resumed: list[np.ndarray] | None = None
        self._compile()

    def _compile(self) -> None:
        optimizer = self._optimizer()
        self.model.compile(optimizer, self.strategy.losses(), loss_weights=self._loss_weights())
        optimizer.build(self.model.trainable_variables)

    def _optimizer(self) -> RowAdam:
        """Adam whose steps shrink within each pass: the last ones settle the level of rare conversions."""
        steps = math.ceil(self.source.examples / self.settings.batch_size)
        return RowAdam(PassDecay(self.settings.learning_rate, steps), epsilon=EPSILON)

    def _loss_weights(self) -> dict[str, float]:
        own, weights = self.settings.conversion_weight, self.strategy.loss_weights()
        return {
            name: weights.get(name, 1.0) * (1.0 if name == "click_logit" else own) for name in self.strategy.losses()
        }

    def _variables(self) -> list[Any]:
        """All that a step changes: weights, moments, the states of the random number generators."""
        return [*_without_metrics(self.model), *self.model.optimizer.variables]

    def resume(self) -> None:
        """Takes the state of the checkpoint, if there is one."""
        found = self.checkpoint.kept(self.stage) if self.checkpoint is not None else None
        if found is None:
            return
        state, arrays = found
        for name, value in state.items():
            setattr(self, name, value)
        for task in self.epochs:
            _freeze(self.model, task)
        if self.epochs:
            self._compile()
        self.best = arrays.get("best")
        if len(arrays["now"]) != len(self._variables()):
            raise UserError(f"{self.stage}: the checkpoint is of another model; pass --overwrite to start anew.")
        for variable, value in zip(self._variables(), arrays["now"], strict=True):
            variable.assign(value)
        self.steps.done = min(self.step * self.settings.batch_size, self.steps.total)

    def keep(self, step: int, loss: float) -> None:
        """Saves the state after a step of the pass under way (0: before its first)."""
        if self.checkpoint is None:
            return
        names = ("passes", "epochs", "losses", "validated", "best_losses")
        state = {name: getattr(self, name) for name in names} | {"step": step, "loss": loss}
        now = [np.asarray(variable) for variable in self._variables()]
        self.checkpoint.keep(self.stage, state, now=now, best=self.best or [])

    def by(self, schedule: Mapping[str, int]) -> None:
        """Makes the passes of a schedule."""
        while self.passes < max(schedule.values()):
            over = [task for task, epochs in schedule.items() if epochs <= self.passes and task not in self.epochs]
            if over:
                self._stop(over, self.passes)
            self._one_pass()
            self.keep(0, 0.0)
        self.epochs = dict(schedule)

    def until_best(self, validation: Rows) -> None:
        """Makes passes until each task's log loss has risen, or `epochs` of them."""
        while len(self.epochs) < len(TASKS) and len(self.validated) < self.settings.epochs:
            self._one_pass()
            found = _judge(self.model, validation, self.settings.batch_size)
            if self.board is not None:
                self.board.scalars("ESMM", self.passes - 1, {"loss": self.losses[-1], **found})
            active = [task for task in TASKS if task not in self.epochs]
            worse = [t for t in active if self.best_losses and found[f"{t}_loss"] > self.best_losses[t]]
            if worse and self.workers is not None:
                worse = active
            if worse:
                self.model.set_weights(self.best)
                self._stop(worse, len(self.validated))
            else:
                self.validated.append(found)
                self.best, self.best_losses = self.model.get_weights(), {t: found[f"{t}_loss"] for t in TASKS}
            self.keep(0, 0.0)
        self.epochs = {task: self.epochs.get(task, len(self.validated)) for task in TASKS}

    def _stop(self, tasks: Sequence[str], epochs: int) -> None:
        for task in tasks:
            self.epochs[task] = epochs
            _freeze(self.model, task)
        if len(self.epochs) < len(TASKS):
            self._compile()

    def _one_pass(self) -> None:
        """One pass over the rows, or what is left of it."""
        if self.workers is not None:
            self._one_pass_of_workers(self.workers)
            return
        watch = _Watch(self)
        if self.step * self.settings.batch_size < self.source.examples:
            data = self.source.batches(self.inputs, self.settings, seed=self.seed, number=self.passes, step=self.step)
            self.model.fit(data, shuffle=False, verbose=0, callbacks=[self.steps, watch])
        if not np.isfinite(watch.loss):
            raise UserError(
                f"{self.stage}: the loss is {watch.loss} after step {watch.step} of pass {self.passes + 1}; lower the "
                f"learning rate. Received: learning_rate={self.settings.learning_rate}."
            )
        self.losses.append(watch.loss)
        self.passes, self.step, self.loss = self.passes + 1, 0, 0.0

    def _one_pass_of_workers(self, workers: Workers) -> None:
        if self.checkpoint is None or not isinstance(self.source, SpooledRows):
            raise UserError("`workers` need rows on disk and a checkpoint.")
        folder = self.checkpoint.folder / f"{self.stage}, pass {self.passes + 1}"
        self.model, found = train_on_workers(
            self.model,
            self.source.spool,
            self.strategy.losses(),
            optimizer=self._optimizer(),
            folder=folder,
            how=workers,
            loss_weights=self._loss_weights(),
            batch_size=self.settings.batch_size,
            seed=self.seed + self.passes,
            progress=self.progress,
            stage=f"{self.stage}, pass {self.passes + 1}",
        )
        shutil.rmtree(folder, ignore_errors=True)
        self.losses += found["loss"]
        self.steps.done += self.source.examples
        self.passes += 1

    def info(self) -> dict[str, Any]:
        """What happened."""
        return {
            "examples": self.source.examples,
            "epochs": self.epochs,
            "loss": self.losses,
            "validation": self.validated,
            "examples_per_second": self.steps.per_second,
        }


class _Watch(keras.callbacks.Callback):
    """Follows the mean loss of a pass, ends it where that is no number, and saves the state now and then."""

    def __init__(self, training: _Training) -> None:
        super().__init__()
        self.training = training
        self.first, self.before = training.step, training.loss
        self.step, self.loss = training.step, training.loss
        self.saved = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keras tells the mean over the steps of this call; those before it count too."""
        self.step = self.first + batch + 1
        self.loss = (self.first * self.before + (batch + 1) * float(logs["loss"])) / self.step
        if not np.isfinite(self.loss):
            self.model.stop_training = True
        elif time.monotonic() - self.saved > SAVE_SECONDS:
            self.training.keep(self.step, self.loss)
            self.saved = time.monotonic()


def _inputs(features: Sequence[Feature]) -> list[str]:
    """The arrays that features read: their own, and the weights of weighted ones."""
    return [name for feature in features for name in (feature.name, feature.weights) if name]


def _without_metrics(model: keras.Model) -> list[Any]:
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _freeze(model: keras.Model, task: str) -> None:
    """Freezes all that the task's probability depends on."""
    for layer in model.layers:
        if isinstance(layer, SharedTowers):
            for tower in set(TASKS[task]) & set(layer.tasks):
                layer.freeze(tower)
        elif isinstance(layer, PositionBias) and task == "click":
            layer.trainable = False


def _judge(model: keras.Model, rows: Rows, batch_size: int) -> dict[str, float]:
    """Log loss of each task, and areas under the curves; conversions where that label is final."""
    inputs = {tensor.name: rows.features[tensor.name] for tensor in model.inputs}
    found = model.predict(inputs, max(batch_size, 4096), verbose=0)
    mature = rows.mature
    clicked = mature & (rows.click > 0)
    return {
        "click_loss": logloss(rows.click, found["pctr"]),
        "conversion_loss": logloss(rows.conversion[mature], found["pctcvr"][mature]),
        "click_auc": auc(rows.click, found["pctr"]),
        "cvr_auc": auc(rows.conversion[clicked], found["pcvr"][clicked]),
        "ctcvr_auc": auc(rows.conversion[mature], found["pctcvr"][mature]),
    }
