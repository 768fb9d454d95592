"""What ESMM is compared with: other ways to train a conversion model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from esmm.architecture import Architecture
from esmm.embedding import Feature
from esmm.losses import LogitBinaryCrossentropy
from esmm.model import PositionBias, SharedTowers, feature_inputs, funnel_outputs, targets

__all__ = ["base_losses", "base_targets", "base_weights", "build_base"]

DEFAULT = Architecture()


def build_base(
    features: Sequence[Feature],
    architecture: Architecture = DEFAULT,
    *,
    base_rates: Sequence[float] = (0.5, 0.5),
    positions: int = 0,
) -> keras.Model:
    """BASE: a click network and, apart from it, a conversion network that learns from clicked rows only.

    The two share nothing, not even the embedding; they live in one model so that one `fit` trains both and one
    evaluation judges BASE and ESMM alike. Compile it with `base_losses()`, fit it on `base_targets(...)` with
    `sample_weight=base_weights(...)`: the weight of an unclicked row is 0 in the conversion loss.

    Args:
        features: sequence of `Feature`.
        architecture: Architecture. Of both networks. Defaults to `Architecture()`.
        base_rates: sequence of float. P(click) and P(conversion given click), where the biases start. Defaults to
            `(0.5, 0.5)`.
        positions: int. As in `build_esmm`: an examination logit on the click network only. Defaults to `0`: none.

    Returns:
        keras.Model. Its outputs are those of `esmm.funnel_outputs`.

    Reference: Ma et al., SIGIR 2018, section 3.1 (BASE).
    """
    features = tuple(features)
    inputs = feature_inputs(features)
    click_logit, conversion_logit = (
        SharedTowers(features, architecture, (task,), (rate,), name=f"{task}_network")(inputs)[:, 0]
        for task, rate in zip(("click", "conversion"), base_rates, strict=True)
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
