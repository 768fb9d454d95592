"""ESMM: one network for click and conversion, trained on every impression."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from esmm.embedding import Feature, SharedEmbedding, WideLinear
from esmm.losses import LogBinaryCrossentropy, LogitBinaryCrossentropy

__all__ = ["PositionBias", "SharedTowers", "build_esmm", "feature_inputs", "funnel_outputs", "losses", "targets"]


@keras.saving.register_keras_serializable(package="esmm")
class SharedTowers(keras.layers.Layer):
    """A tower a task over one shared embedding, and beside it a wide part.

        logit[t] = tower_t(embedding(x)) + wide_t(x) + log(rate_t / (1 - rate_t))

    Args:
        features: sequence of `esmm.Feature`.
        embedding_dim: int. Width of an embedding row. Defaults to `18`, the paper's.
        towers: sequence of int. Widths of a tower's hidden layers, ReLU. Defaults to `(360, 200, 80)`, the paper's.
        dropout: float. After each hidden layer, in [0, 1). Defaults to `0.2`.
        base_rates: sequence of float. Mean label of each task, in (0, 1): the output biases start there, so that the
            first steps need not look for them. One tower each. Defaults to `(0.5, 0.5)`.
        wide: bool. Whether a linear weight an id and a task is added. Defaults to `True`.
        l2: float. On the embedding rows looked up; see `esmm.SharedEmbedding`. Defaults to `0.0`.

    Returns:
        float32 logits `[B, tasks]`.

    Reference: Ma et al., SIGIR 2018, figure 2.
    Departs from the paper: one logit in place of a softmax over two; the wide part; dropout.
    """

    def __init__(
        self,
        features: Sequence[Any],
        embedding_dim: int = 18,
        towers: Sequence[int] = (360, 200, 80),
        dropout: float = 0.2,
        base_rates: Sequence[float] = (0.5, 0.5),
        wide: bool = True,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if any(units < 1 for units in towers):
            raise ValueError(f"`towers` should be positive integers. Received: towers={tuple(towers)}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: dropout={dropout}.")
        if not base_rates or not all(0 < rate < 1 for rate in base_rates):
            raise ValueError(f"`base_rates` should be in (0, 1), one a task. Received: base_rates={base_rates}.")
        self.units = tuple(int(units) for units in towers)
        self.dropout = float(dropout)
        self.base_rates = tuple(float(rate) for rate in base_rates)
        self.embedding = SharedEmbedding(features, embedding_dim, l2, dtype=self.dtype_policy, name="embedding")
        self.wide = WideLinear(features, len(self.base_rates), dtype=self.dtype_policy, name="wide") if wide else None
        self.towers = [self._tower(task, rate) for task, rate in enumerate(self.base_rates)]

    def _tower(self, task: int, rate: float) -> keras.Sequential:
        hidden: list[keras.layers.Layer] = []
        for units in self.units:
            hidden.append(keras.layers.Dense(units, activation="relu", dtype=self.dtype_policy))
            hidden.append(keras.layers.Dropout(self.dropout, dtype=self.dtype_policy))
        bias = keras.initializers.Constant(math.log(rate / (1 - rate)))
        logit = keras.layers.Dense(1, bias_initializer=bias, dtype=self.dtype_policy)
        return keras.Sequential([*hidden, logit], name=f"tower_{task}")

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Create the embedding, the wide part and the towers."""
        self.embedding.build(input_shape)
        if self.wide is not None:
            self.wide.build(input_shape)
        ids = len(self.embedding.categorical) + len(self.embedding.multi)
        for tower in self.towers:
            tower.build((None, ids * self.embedding.dim + self.embedding.numeric_width))

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Logits `[B, tasks]` of a dict of features."""
        shared = self.embedding(inputs, training=training)  # [B, width]
        logits = ops.concatenate([tower(shared, training=training) for tower in self.towers], axis=1)  # [B, tasks]
        if self.wide is not None:
            logits = logits + self.wide(inputs)
        return ops.cast(logits, "float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = {
            "features": self.embedding.get_config()["features"],
            "embedding_dim": self.embedding.dim,
            "towers": self.units,
            "dropout": self.dropout,
            "base_rates": self.base_rates,
            "wide": self.wide is not None,
            "l2": self.embedding.l2,
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
    """The symbolic inputs of a model, by name: int32 for ids, float32 for numbers."""
    return {
        feature.name: keras.Input(
            feature.input_shape, name=feature.name, dtype="float32" if feature.kind == "numeric" else "int32"
        )
        for feature in features
    }


def funnel_outputs(click_logit: Any, conversion_logit: Any) -> dict[str, Any]:
    """The outputs of a click-then-conversion model, each `[B]` float32.

    Returns:
        dict: `pctr`, P(click); `pcvr`, P(conversion given click); `pctcvr`, their product; and what the losses take:
        `click_logit`, `conversion_logit` and `log_pctcvr = -softplus(-click_logit) - softplus(-conversion_logit)`.
    """
    pctr, pcvr = ops.sigmoid(click_logit), ops.sigmoid(conversion_logit)
    return {
        "pctr": pctr,
        "pcvr": pcvr,
        "pctcvr": pctr * pcvr,
        "click_logit": click_logit,
        "conversion_logit": conversion_logit,
        "log_pctcvr": -ops.softplus(-click_logit) - ops.softplus(-conversion_logit),
    }


def build_esmm(
    features: Sequence[Feature],
    *,
    embedding_dim: int = 18,
    towers: Sequence[int] = (360, 200, 80),
    dropout: float = 0.2,
    click_rate: float = 0.5,
    conversion_rate: float = 0.5,
    positions: int = 0,
    wide: bool = True,
    l2: float = 0.0,
) -> keras.Model:
    """The entire-space model: `pctcvr = pctr * pcvr`, and no loss on `pcvr` itself.

    Conversions are seen for clicked impressions only, but predicted for all: trained through the product, the
    conversion tower learns on the space it is used on. Compile it with `losses()`, fit it on `targets(...)`.

    Args:
        features: sequence of `Feature`. The inputs, by name; `"position"` is kept for the position.
        embedding_dim: int. Defaults to `18`.
        towers: sequence of int. Defaults to `(360, 200, 80)`.
        dropout: float. Defaults to `0.2`.
        click_rate: float. P(click), where the click bias starts. Defaults to `0.5`.
        conversion_rate: float. P(conversion given click), where the conversion bias starts. Defaults to `0.5`.
        positions: int. Positions with an examination logit; the model then has an input `position`, int32 `[B]`,
            0 where not given and p + 1 for the 0-based position p. `pctr` is of that position: pass 0 for
            P(click given examined at the top). Defaults to `0`: no such input.
        wide: bool. Whether there is a linear part. Defaults to `True`.
        l2: float. On the embedding rows looked up. Defaults to `0.0`.

    Returns:
        keras.Model. Its outputs are those of `funnel_outputs`.

    Raises:
        ValueError: an argument out of its range, or a feature named `"position"`.

    Example:
        >>> model = build_esmm([Feature("item_id", "categorical", size=1000)], click_rate=0.05, conversion_rate=0.1)
        >>> model.compile(RowAdam(), loss=losses())
        >>> model.fit(inputs, targets(click, conversion), batch_size=1024)

    Reference: Ma et al., SIGIR 2018, equation 3.
    """
    features = tuple(features)
    if any(feature.name == "position" for feature in features):
        raise ValueError("`features` should not be named 'position': pass `positions` for that input.")
    inputs = feature_inputs(features)
    logits = SharedTowers(
        features, embedding_dim, towers, dropout, (click_rate, conversion_rate), wide, l2, name="shared_towers"
    )(inputs)  # [B, 2]
    click_logit, conversion_logit = logits[:, 0], logits[:, 1]
    if positions:
        inputs["position"] = keras.Input((), name="position", dtype="int32")
        click_logit = click_logit + PositionBias(positions, name="position_bias")(inputs["position"])
    return keras.Model(inputs, funnel_outputs(click_logit, conversion_logit), name="esmm")


def losses() -> dict[str, keras.losses.Loss]:
    """The losses of `build_esmm`: of the click and of the click with conversion, equal in weight, over all rows."""
    return {"click_logit": LogitBinaryCrossentropy(), "log_pctcvr": LogBinaryCrossentropy()}


def targets(click: Any, conversion: Any) -> dict[str, np.ndarray]:
    """The labels of `losses()`: float32 `[B]` arrays.

    Args:
        click: array `[B]` of 0 and 1.
        conversion: array `[B]` of 0 and 1; without a click it should be 0.

    Raises:
        ValueError: a conversion without a click.
    """
    click, conversion = np.asarray(click), np.asarray(conversion)
    if click.shape != conversion.shape:
        raise ValueError(
            f"`click` and `conversion` should have one shape. Received: {click.shape}, {conversion.shape}."
        )
    orphans = int(np.sum(conversion > click))
    if orphans:
        raise ValueError(f"`conversion` should be 0 where `click` is 0. Received: {orphans} conversions without click.")
    return {"click_logit": click.astype(np.float32), "log_pctcvr": conversion.astype(np.float32)}
