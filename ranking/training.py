"""The last stage: ESMM on the impressions, with what the look-alike stages say of them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esmm.embedding import Feature
from esmm.model import PositionBias, SharedTowers
from esmm.optimizers import RowAdam
from esmm.strategies import value_weights
from ranking.batches import Progress, Steps, batches, silent
from ranking.board import Board
from ranking.checkpoints import Checkpoint
from ranking.errors import UserError
from ranking.esmm_settings import EsmmSettings
from ranking.lookalike_settings import LookalikeSettings
from ranking.metrics import auc, logloss
from ranking.rows import Rows

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
    rows: Rows,
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
) -> tuple[keras.Model, dict[str, Any]]:
    """Stage 3: click and conversion over all impressions, with the similarity among the inputs.

    With `validation`, each task stops by itself. Ids are learned by heart in a second pass, but not by every task: a
    task whose log loss there has risen goes back to the pass before, and all that it reads is frozen; the other task
    goes on in its own tower.

    Args:
        rows: Rows. Scaled features; repeats are dropped, immature conversions weigh nothing.
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

    Returns:
        The model, and what happened: examples, passes of each task, losses, examples a second.

    Raises:
        UserError: a task of one class only, a number that is not finite, or a loss that is not finite any more.
    """
    done = checkpoint.finished(stage) if checkpoint is not None else None
    if done is not None:
        progress(stage, 1, 1)
        return done
    training = _Training(rows.take(~rows.repeat), features, settings, stage, seed=seed, start=start)
    training.steps = Steps(progress, stage, settings.batch_size, len(training.rows.row), settings.epochs)
    training.board, training.checkpoint = board, checkpoint
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
        rows: Rows,
        features: Sequence[Feature],
        settings: EsmmSettings,
        stage: str,
        *,
        seed: int,
        start: keras.Model | None,
    ) -> None:
        _refuse_one_class(rows, stage)
        self.rows, self.settings, self.stage, self.seed = rows, settings, stage, seed
        self.strategy = settings.training_strategy()
        positions = int(rows.features["position"].max()) if "position" in rows.features else 0
        self.inputs = _inputs(features) + (["position"] if positions > 1 else [])  # one position explains nothing
        _refuse_infinite(rows, self.inputs)
        keras.utils.set_random_seed(seed)
        clicked = rows.mature & (rows.click > 0)
        rates = (_inside(rows.click), _inside(rows.conversion[clicked]))
        self.model = start or self.strategy.build(
            features, settings.architecture(), base_rates=rates, positions=positions if positions > 1 else 0
        )
        self.board: Board | None = None
        self.checkpoint: Checkpoint | None = None
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
        weights = self.strategy.loss_weights()
        weights = {name: weights.get(name, 1.0) * self._weight(name) for name in self.strategy.losses()}
        optimizer = RowAdam(self.settings.learning_rate, epsilon=EPSILON)
        self.model.compile(optimizer, self.strategy.losses(), loss_weights=weights)
        optimizer.build(self.model.trainable_variables)

    def _weight(self, output: str) -> float:
        return 1.0 if output == "click_logit" else self.settings.conversion_weight

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
        generator = np.random.default_rng([self.seed, self.passes])
        order = generator.permutation(len(self.rows.row))[self.step * self.settings.batch_size :]
        watch = _Watch(self)
        if len(order):
            self.model.fit(self._data(order, generator), shuffle=False, verbose=0, callbacks=[self.steps, watch])
        if not np.isfinite(watch.loss):
            raise UserError(
                f"{self.stage}: the loss is {watch.loss} after step {watch.step} of pass {self.passes + 1}; lower the "
                f"learning rate. Received: learning_rate={self.settings.learning_rate}."
            )
        self.losses.append(watch.loss)
        self.passes, self.step, self.loss = self.passes + 1, 0, 0.0

    def _data(self, order: np.ndarray, generator: np.random.Generator) -> tf.data.Dataset:
        rows = self.rows
        arrays = {name: rows.features[name] for name in self.inputs}
        conversion_weight = None
        if self.settings.value_power:
            if rows.value is None:
                raise UserError("`value_power` needs the impressions' column `value`: what a conversion was worth.")
            conversion_weight = value_weights(rows.value, rows.conversion, power=self.settings.value_power)
        labels, weights = self.strategy.supervise(
            rows.click, rows.conversion, final=rows.mature, conversion_weight=conversion_weight, generator=generator
        )
        return batches(arrays, labels, weights, order=order, batch_size=self.settings.batch_size)

    def info(self) -> dict[str, Any]:
        """What happened."""
        return {
            "examples": len(self.rows.row),
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


def _inside(label: np.ndarray) -> float:
    """The rate of a label, kept inside (0, 1)."""
    return float((label.sum() + 0.5) / (len(label) + 1))


def _inputs(features: Sequence[Feature]) -> list[str]:
    """The arrays that features read: their own, and the weights of weighted ones."""
    return [name for feature in features for name in (feature.name, feature.weights) if name]


def _refuse_one_class(rows: Rows, stage: str) -> None:
    final = rows.conversion[rows.mature & (rows.click > 0)]
    for task, label, of in (("click", rows.click, "impressions"), ("conversion", final, "clicks with a final label")):
        if not 0 < label.sum() < len(label):
            raise UserError(
                f"{stage}: the {task} task should have both classes to learn from. Received: "
                f"{int(label.sum())} of {len(label)} {of} with a {task}."
            )


def _refuse_infinite(rows: Rows, inputs: Sequence[str]) -> None:
    for name in inputs:
        values = rows.features[name]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(
                f"input `{name}` should be finite numbers. Received: {int((~np.isfinite(values)).sum())} that are not."
            )


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
