"""The last stage: ESMM on the impressions, with what the look-alike stages say of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from esmm.architecture import Architecture
from esmm.embedding import Feature
from esmm.model import build_esmm, losses, targets
from esmm.optimizers import RowAdam
from esmm.strategies import base_losses, base_targets, base_weights, build_base
from ranking.batches import Progress, Steps, batches, silent
from ranking.board import Board
from ranking.lookalike_settings import LookalikeSettings
from ranking.metrics import auc
from ranking.rows import Rows

__all__ = ["Settings", "train_esmm"]

EPSILON = 1e-5  # of Adam: rows and tasks with few positives have tiny gradients, which 1e-8 makes as loud as any


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the stages are trained.

    Attributes:
        lookalike: LookalikeSettings. Of the look-alike stages.
        epochs: int. ESMM passes to try; the calibrate window chooses how many.
        batch_size: int. Of ESMM.
        learning_rate: float. Of ESMM.
        dropout: float. In ESMM's towers.
    """

    lookalike: LookalikeSettings = dataclasses.field(default_factory=LookalikeSettings)
    epochs: int = 2
    batch_size: int = 1024
    learning_rate: float = 3e-3
    dropout: float = 0.2


def _inside(label: np.ndarray) -> float:
    """The rate of a label, kept inside (0, 1) for a log that has only one class."""
    return float((label.sum() + 0.5) / (len(label) + 1))


def train_esmm(
    rows: Rows,
    features: Sequence[Feature],
    settings: Settings,
    *,
    validation: Rows | None = None,
    strategy: str = "esmm",
    seed: int = 0,
    progress: Progress = silent,
    stage: str = "ESMM",
    board: Board | None = None,
) -> tuple[keras.Model, dict[str, Any]]:
    """Stage 3: click and conversion over all impressions, with the similarity among the inputs.

    Args:
        rows: Rows. Scaled features; repeats are dropped, immature conversions weigh nothing.
        features: sequence of Feature. The inputs to use.
        settings: Settings. Of them `epochs`: how many passes (the most, with `validation`).
        validation: Rows or `None`. With it, training stops at the epoch whose loss there is lowest.
        strategy: str. `"esmm"`, or `"base"`: click and conversion apart, the conversion on clicked rows only.
        seed: int. The random seed.
        progress: Progress.
        stage: str. What progress calls it.
        board: Board or `None`. Takes the curves.

    Returns:
        The model, and what happened: examples, the best number of epochs, losses, examples a second.
    """
    rows = rows.take(~rows.repeat)
    names = [feature.name for feature in features]
    positions = int(rows.features["position"].max()) if "position" in rows.features else 0
    positions = positions if positions > 1 else 0  # one position explains nothing
    keras.utils.set_random_seed(seed)
    mature = rows.mature & (rows.click > 0)
    build, criteria = (build_base, base_losses()) if strategy == "base" else (build_esmm, losses())
    extra: dict[str, Any] = {"positions": positions} if positions else {}
    model = build(
        features,
        Architecture(dropout=settings.dropout),
        base_rates=(_inside(rows.click), _inside(rows.conversion[mature])),
        **extra,
    )
    model.compile(RowAdam(settings.learning_rate, epsilon=EPSILON), criteria)

    def data(of: Rows, order: np.ndarray, size: int) -> tf.data.Dataset:
        arrays = {name: of.features[name] for name in names + (["position"] if positions else [])}
        mature = of.mature.astype(np.float32)
        if strategy == "base":
            labels, weights = base_targets(of.click, of.conversion), base_weights(of.click)
            weights["conversion_logit"] *= mature
        else:
            labels = targets(of.click, of.conversion)
            weights = {"click_logit": np.ones_like(mature), "log_pctcvr": mature}
        return batches(arrays, labels, weights, order=order, batch_size=size)

    generator = np.random.default_rng(seed)
    steps = Steps(progress, stage, settings.batch_size, len(rows.row), settings.epochs)
    history: list[float] = []
    validated: list[float] = []
    best: Any = None
    for epoch in range(settings.epochs):
        order = generator.permutation(len(rows.row))
        fitted = model.fit(data(rows, order, settings.batch_size), shuffle=False, verbose=0, callbacks=[steps])
        history.append(float(fitted.history["loss"][0]))
        curves = {"loss": history[-1]}
        if validation is not None:
            found = model.evaluate(data(validation, np.arange(len(validation.row)), 4096), verbose=0, return_dict=True)
            validated.append(float(found["loss"]))
            curves["validation_loss"] = validated[-1]
        if board is not None:
            judged = _areas(model, validation) if validation is not None else {}
            board.scalars("ESMM", epoch, curves | judged)
        if validation is not None:
            if validated[-1] > min(validated):
                break
            best = model.get_weights()
    if best is not None:
        model.set_weights(best)
    progress(stage, steps.total, steps.total)
    return model, {
        "examples": len(rows.row),
        "epochs": int(np.argmin(validated)) + 1 if validated else settings.epochs,
        "loss": history,
        "validation_loss": validated,
        "examples_per_second": steps.per_second,
    }


def _areas(model: keras.Model, rows: Rows) -> dict[str, float]:
    """AUC of clicks, and of clicks with conversion where that label is final."""
    found = model.predict({tensor.name: rows.features[tensor.name] for tensor in model.inputs}, 8192, verbose=0)
    mature = rows.mature
    return {
        "click_auc": auc(rows.click, found["pctr"]),
        "ctcvr_auc": auc(rows.conversion[mature], found["pctcvr"][mature]),
    }
