"""What ESMM is compared with: other ways to train a conversion model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from esmm.embedding import Feature
from esmm.losses import LogitBinaryCrossentropy
from esmm.model import PositionBias, SharedTowers, feature_inputs, funnel_outputs, targets

__all__ = ["base_losses", "base_targets", "base_weights", "build_base"]


def build_base(
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
    """BASE: a click network and, apart from it, a conversion network that learns from clicked rows only.

    The two share nothing, not even the embedding; they live in one model so that one `fit` trains both and one
    evaluation judges BASE and ESMM alike. Compile it with `base_losses()`, fit it on `base_targets(...)` with
    `sample_weight=base_weights(...)`: the weight of an unclicked row is 0 in the conversion loss.

    Args:
        features: sequence of `Feature`.
        embedding_dim: int. Defaults to `18`.
        towers: sequence of int. Defaults to `(360, 200, 80)`.
        dropout: float. Defaults to `0.2`.
        click_rate: float. P(click), where the click bias starts. Defaults to `0.5`.
        conversion_rate: float. P(conversion given click), where the conversion bias starts. Defaults to `0.5`.
        positions: int. As in `build_esmm`: an examination logit on the click network only. Defaults to `0`: none.
        wide: bool. Whether both networks have a linear part. Defaults to `True`.
        l2: float. On the embedding rows looked up. Defaults to `0.0`.

    Returns:
        keras.Model. Its outputs are those of `esmm.funnel_outputs`.

    Reference: Ma et al., SIGIR 2018, section 3.1 (BASE).
    """
    features = tuple(features)
    inputs = feature_inputs(features)
    networks = {"click_network": click_rate, "conversion_network": conversion_rate}
    click_logit, conversion_logit = (
        SharedTowers(features, embedding_dim, towers, dropout, (rate,), wide, l2, name=name)(inputs)[:, 0]
        for name, rate in networks.items()
    )
    if positions:
        inputs["position"] = keras.Input((), name="position", dtype="int32")
        click_logit = click_logit + PositionBias(positions, name="position_bias")(inputs["position"])
    return keras.Model(inputs, funnel_outputs(click_logit, conversion_logit), name="base")


def base_losses() -> dict[str, keras.losses.Loss]:
    """The losses of `build_base`: of the click on all rows, of the conversion on clicked rows."""
    return {"click_logit": LogitBinaryCrossentropy(), "conversion_logit": LogitBinaryCrossentropy()}


def base_targets(click: Any, conversion: Any) -> dict[str, np.ndarray]:
    """The labels of `base_losses()`: float32 `[B]` arrays of 0 and 1."""
    labels = targets(click, conversion)
    return {"click_logit": labels["click_logit"], "conversion_logit": labels["log_pctcvr"]}


def base_weights(click: Any) -> dict[str, np.ndarray]:
    """The weights of the rows, float32 `[B]`: 1 in the click loss, `click` in the conversion loss."""
    click = np.asarray(click, np.float32)
    return {"click_logit": np.ones_like(click), "conversion_logit": click}
