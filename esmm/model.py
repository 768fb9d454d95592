"""ESMM: one network for click and conversion, trained on every impression."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from esmm.architecture import Architecture
from esmm.dropout import ByteDropout
from esmm.embedding import Feature, SharedEmbedding, WideLinear
from esmm.losses import LogBinaryCrossentropy, LogitBinaryCrossentropy
from esmm.sharing import sharing_layer

__all__ = [
    "STEPS",
    "PositionBias",
    "SharedTowers",
    "build_esmm",
    "feature_inputs",
    "funnel_outputs",
    "losses",
    "targets",
]

STEPS = ("click", "conversion")
DEFAULT = Architecture()


@keras.saving.register_keras_serializable(package="esmm")
class SharedTowers(keras.layers.Layer):
    """A tower a task over what the tasks share, and beside it a wide part.

        logit[t] = tower_t(shared_t(embedding(x))) + wide_t(x) + log(rate_t / (1 - rate_t))

    Args:
        features: sequence of `esmm.Feature`.
        architecture: Architecture. Among others which `shared_t`; with `"embedding"` it is the identity.
        tasks: sequence of str. Their names, in the order of the funnel.
        base_rates: sequence of float. Mean label of each task, in (0, 1): the output biases start there, so that the
            first steps need not look for them.

    Returns:
        float32 logits `[B, tasks]`.

    Reference: Ma et al., SIGIR 2018, figure 2.
    Departs from the paper: one logit in place of a softmax over two; the wide part; dropout.
    """

    def __init__(
        self,
        features: Sequence[Any],
        architecture: Any,
        tasks: Sequence[str],
        base_rates: Sequence[float],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.architecture = Architecture(**architecture) if isinstance(architecture, Mapping) else architecture
        self.tasks, self.base_rates = tuple(tasks), tuple(float(rate) for rate in base_rates)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"`tasks` should be distinct names. Received: tasks={self.tasks}.")
        if len(self.base_rates) != len(self.tasks) or not all(0 < rate < 1 for rate in self.base_rates):
            raise ValueError(
                f"`base_rates` should be in (0, 1), one a task of {self.tasks}. Received: base_rates={self.base_rates}."
            )
        shape, policy = self.architecture, self.dtype_policy
        self.embedding = SharedEmbedding(features, shape.embedding_dim, shape.l2, dtype=policy, name="embedding")
        self.wide = WideLinear(features, len(self.tasks), dtype=policy, name="wide") if shape.wide else None
        self.sharing, widths = sharing_layer(shape, len(self.tasks), policy)
        self.towers = [self._tower(*task, widths) for task in zip(self.tasks, self.base_rates, strict=True)]

    def _tower(self, task: str, rate: float, widths: Sequence[int]) -> keras.Sequential:
        hidden: list[keras.layers.Layer] = []
        for units in widths:
            hidden.append(keras.layers.Dense(units, activation="relu", dtype=self.dtype_policy))
            hidden.append(ByteDropout(self.architecture.dropout, dtype=self.dtype_policy))
        bias = keras.initializers.Constant(math.log(rate / (1 - rate)))
        logit = keras.layers.Dense(1, bias_initializer=bias, dtype=self.dtype_policy)
        return keras.Sequential([*hidden, logit], name=f"tower_{task}")

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Create the embedding, the wide part, what is shared and the towers."""
        self.embedding.build(input_shape)
        if self.wide is not None:
            self.wide.build(input_shape)
        width = self.embedding.width
        if self.sharing is not None:
            self.sharing.build((None, width))
            width = self.architecture.towers[-1 if self.architecture.sharing == "hierarchical" else 0]
        for tower in self.towers:
            tower.build((None, width))

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Logits `[B, tasks]` of a dict of features."""
        shared = self.embedding(inputs, training=training)  # [B, width]
        # [B, width of a tower's input], one a task
        read = [shared] * len(self.tasks) if self.sharing is None else self.sharing(shared, training=training)
        own = [tower(x, training=training) for tower, x in zip(self.towers, read, strict=True)]  # [B, 1] each
        logits = ops.concatenate(own, axis=1)  # [B, tasks]
        if self.wide is not None:
            logits = logits + self.wide(inputs)
        return ops.cast(logits, "float32")

    def freeze(self, task: str) -> None:
        """Stop training everything that the task's logit depends on: the other tasks then learn around it.

        The embedding and the wide part are read by every task, and stop for all; with `"hierarchical"`, so do the
        levels of the tasks before. Compile the model again afterwards; the optimizer can be kept, moments and all. A
        position's logit is a layer of its own, `"position_bias"`.

        Args:
            task: str. One of `tasks`.

        Raises:
            ValueError: no such task.
        """
        if task not in self.tasks:
            raise ValueError(f"`task` should be one of {self.tasks}. Received: task={task!r}.")
        place = self.tasks.index(task)
        self.embedding.trainable = self.towers[place].trainable = False
        if self.wide is not None:
            self.wide.trainable = False
        if self.sharing is not None:
            self.sharing.freeze(place)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = {
            "features": self.embedding.get_config()["features"],
            "architecture": dataclasses.asdict(self.architecture),
            "tasks": self.tasks,
            "base_rates": self.base_rates,
        }
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="esmm")
class PositionBias(keras.layers.Layer):
    """The examination logit of a position, so that the click tower need not explain the position.

    Index 0 (position not given) and index 1 (the first position) are exactly 0 and stay there: what the rest of the
    model learns is then P(click | examined as at the top), and serving passes 0. Index i > 1 is position i - 1.

    The variable is a tenth of the logit: Adam moves a variable by about its learning rate a step, and one epoch at
    1e-3 would leave the logits of far positions short of where they belong.

    Args:
        positions: int. How many positions have a logit, the first included; later ones take the last one's.

    Returns:
        float32 `[B]` of `position`, int `[B]`.

    Reference: Guo et al., RecSys 2019 (PAL).
    Departs from the paper: added to the logit, not a factor of the probability.
    """

    def __init__(self, positions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if positions < 2:
            raise ValueError(f"`positions` should be at least 2. Received: positions={positions}.")
        self.positions = int(positions)

    def build(self, input_shape: Any) -> None:
        """Create the logits of the positions after the first."""
        self.tenths = self.add_weight(shape=(self.positions - 1,), initializer="zeros", name="tenths")

    def logits(self) -> Any:
        """The logit of each index, `[positions + 1]`; the first two are 0."""
        tenths = ops.convert_to_tensor(self.tenths)
        return ops.concatenate([ops.zeros((2,), tenths.dtype), 10 * tenths])

    def call(self, position: Any) -> Any:
        """Logit of each index, `[B]`."""
        return ops.take(self.logits(), ops.clip(position, 0, self.positions))  # [B]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "positions": self.positions}


def feature_inputs(features: Sequence[Feature]) -> dict[str, Any]:
    """The symbolic inputs of a model, by name: int32 for ids, float32 for numbers and for the weights of values."""
    inputs = {}
    for feature in features:
        dtype = "float32" if feature.kind == "numeric" else "int32"
        inputs[feature.name] = keras.Input(feature.input_shape, name=feature.name, dtype=dtype)
        if feature.weights:
            inputs[feature.weights] = keras.Input(feature.input_shape, name=feature.weights, dtype="float32")
    return inputs


def _check_steps(steps: Sequence[str]) -> tuple[str, ...]:
    steps = tuple(steps)
    if len(steps) < 2 or len(set(steps)) != len(steps) or not all(step.isidentifier() for step in steps):
        raise ValueError(f"`steps` should be at least two distinct identifiers. Received: steps={steps}.")
    return steps


def funnel_outputs(*logits: Any, steps: Sequence[str] = STEPS) -> dict[str, Any]:
    """The outputs of a model of a funnel, each `[B]` float32.

    Step k happens only after step k - 1, and `logits[k]` is of its probability given that:

        log P(step k) = -sum over j <= k of softplus(-logits[j])

    Args:
        *logits: `[B]` each, one a step.
        steps: sequence of str. Their names, in the order of the funnel. Defaults to `("click", "conversion")`.

    Returns:
        dict: `pctr`, P(first step); `pcvr`, P(last step given the first); `pctcvr`, P(last step), their product; and
        what the losses take: `click_logit`, of the first step, and `log_pctcvr`. With two steps `conversion_logit`
        too; with more, of each step between, `p_<step>`, its probability, and `log_p_<step>`.
    """
    steps = _check_steps(steps)
    if len(logits) != len(steps):
        raise ValueError(f"`logits` should be one a step of {steps}. Received: {len(logits)} logits.")
    conditional = [ops.sigmoid(logit) for logit in logits]
    log_p = -ops.softplus(-logits[0])
    outputs = {"pctr": conditional[0], "pcvr": conditional[1], "click_logit": logits[0]}
    for k in range(1, len(steps)):
        log_p = log_p - ops.softplus(-logits[k])
        if k > 1:
            outputs["pcvr"] = outputs["pcvr"] * conditional[k]
        if k < len(steps) - 1:
            outputs[f"p_{steps[k]}"] = outputs["pctr"] * outputs["pcvr"]
            outputs[f"log_p_{steps[k]}"] = log_p
    if len(steps) == 2:
        outputs["conversion_logit"] = logits[1]
    return outputs | {"pctcvr": outputs["pctr"] * outputs["pcvr"], "log_pctcvr": log_p}


def build_esmm(
    features: Sequence[Feature],
    architecture: Architecture = DEFAULT,
    *,
    base_rates: Sequence[float] = (0.5, 0.5),
    positions: int = 0,
    steps: Sequence[str] = STEPS,
) -> keras.Model:
    """The entire-space model: `pctcvr = pctr * pcvr`, and no loss on `pcvr` itself.

    Conversions are seen for clicked impressions only, but predicted for all: trained through the product, the
    conversion tower learns on the space it is used on. A longer funnel is a longer product, and every step but the
    conditional ones has its loss over all impressions. Compile it with `losses()`, fit it on `targets(...)`.

    Args:
        features: sequence of `Feature`. The inputs, by name; `"position"` is kept for the position.
        architecture: Architecture. Defaults to `Architecture()`.
        base_rates: sequence of float. P(step given the one before), one a step, where the output biases start.
            Defaults to `(0.5, 0.5)`.
        positions: int. Positions with an examination logit; the model then has an input `position`, int32 `[B]`,
            0 where not given and p + 1 for the 0-based position p. `pctr` is of that position: pass 0 for
            P(click given examined at the top). Defaults to `0`: no such input.
        steps: sequence of str. The funnel after the impression. Defaults to `("click", "conversion")`.

    Returns:
        keras.Model. Its outputs are those of `funnel_outputs`.

    Raises:
        ValueError: an argument out of its range, or a feature named `"position"`.

    Example:
        >>> model = build_esmm([Feature("item_id", "categorical", size=1000)], base_rates=(0.05, 0.1))
        >>> model.compile(RowAdam(), loss=losses())
        >>> model.fit(inputs, targets(click, conversion), batch_size=1024)

    Reference: Ma et al., SIGIR 2018, equation 3.
    """
    features, steps = tuple(features), _check_steps(steps)
    if any("position" in (feature.name, feature.weights) for feature in features):
        raise ValueError("`features` should not be named 'position': pass `positions` for that input.")
    inputs = feature_inputs(features)
    towers = SharedTowers(features, architecture, steps, base_rates, name="shared_towers")
    logits = ops.unstack(towers(inputs), len(steps), axis=1)  # [B] each
    if positions:
        inputs["position"] = keras.Input((), name="position", dtype="int32")
        logits[0] = logits[0] + PositionBias(positions, name="position_bias")(inputs["position"])
    return keras.Model(inputs, funnel_outputs(*logits, steps=steps), name="esmm")


def _supervised(steps: Sequence[str]) -> tuple[str, ...]:
    """The output that each step's label supervises."""
    first, *between, last = _check_steps(steps)
    return ("click_logit", *(f"log_p_{step}" for step in between), "log_pctcvr")


def losses(*, steps: Sequence[str] = STEPS) -> dict[str, keras.losses.Loss]:
    """The losses of `build_esmm`: of each step's label, over all rows, equal in weight."""
    first, *rest = _supervised(steps)
    return {first: LogitBinaryCrossentropy(), **{name: LogBinaryCrossentropy() for name in rest}}


def targets(*labels: Any, steps: Sequence[str] = STEPS) -> dict[str, np.ndarray]:
    """The labels of `losses()`: float32 `[B]` arrays.

    Args:
        *labels: arrays `[B]` of 0 and 1, one a step, in the order of the funnel: each 0 where the one before it is.
        steps: sequence of str. Defaults to `("click", "conversion")`.

    Raises:
        ValueError: a step without the one before it (a conversion without a click).
    """
    names = _supervised(steps)
    arrays = [np.asarray(label) for label in labels]
    if len(arrays) != len(names) or len({array.shape for array in arrays}) > 1:
        raise ValueError(
            f"`labels` should be one a step of {tuple(steps)}, of one shape. "
            f"Received: shapes {[array.shape for array in arrays]}."
        )
    for step, array in zip(steps, arrays, strict=True):
        wrong = int(np.sum((array != 0) & (array != 1)))  # a NaN is neither
        if wrong:
            raise ValueError(f"`{step}` should be 0 or 1. Received: {wrong} other values, e.g. {_other(array)}.")
    for before, step, low, high in zip(steps, steps[1:], arrays, arrays[1:], strict=False):
        orphans = int(np.sum(high > low))
        if orphans:
            raise ValueError(
                f"`{step}` should be 0 where `{before}` is 0. Received: {orphans} {step}s without {before}."
            )
    return {name: array.astype(np.float32) for name, array in zip(names, arrays, strict=True)}


def _other(array: np.ndarray) -> Any:
    return array[(array != 0) & (array != 1)].flat[0]
