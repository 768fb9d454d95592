"""Binary cross-entropies of one number an example, exact in float32 for the rarest events."""

import math
from typing import Any

import keras
from keras import ops

__all__ = ["LogBinaryCrossentropy", "LogitBinaryCrossentropy", "log1mexp"]


def log1mexp(x: Any) -> Any:
    """`log(1 - exp(x))` of a negative tensor, without cancellation at either end.

    Each branch sees a harmless value where the other one is taken: a `where` alone would let its NaN gradient through.

    Reference: Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    x = ops.minimum(x, -1e-30)  # exp(x) rounds to 1 far above: keeps the logarithm finite
    near = x > -math.log(2)
    from_near = ops.log(-ops.expm1(ops.where(near, x, -1.0)))
    from_far = ops.log1p(-ops.exp(ops.where(near, -1.0, x)))
    return ops.where(near, from_near, from_far)


@keras.saving.register_keras_serializable(package="esmm")
class LogitBinaryCrossentropy(keras.losses.Loss):
    """Cross-entropy of labels `y` and logits `z`: `y softplus(-z) + (1 - y) softplus(z)`.

    Both terms have exact gradients, `-sigmoid(-z)` and `sigmoid(z)`, however certain the model is. One value an
    example, so that sample weights count: Keras' own losses average over the last axis, here the batch.

    Args:
        reduction: str. `"sum_over_batch_size"` is the mean over the batch of weight times loss. Defaults to it.

    Returns:
        A scalar in nats, or `[B]` with `reduction="none"`.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example, in nats."""
        y_true = ops.cast(y_true, y_pred.dtype)
        return y_true * ops.softplus(-y_pred) + (1 - y_true) * ops.softplus(y_pred)


@keras.saving.register_keras_serializable(package="esmm")
class LogBinaryCrossentropy(keras.losses.Loss):
    """Cross-entropy of labels `y` and log probabilities `L`: `-y L - (1 - y) log(1 - exp(L))`.

    A product of probabilities has a sum of logarithms; taking the loss from it needs no clipping, and 1e-12 is as
    exact as 0.5.

    Args:
        reduction: str. `"sum_over_batch_size"` is the mean over the batch of weight times loss. Defaults to it.

    Returns:
        A scalar in nats, or `[B]` with `reduction="none"`.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example, in nats."""
        y_true = ops.cast(y_true, y_pred.dtype)
        return -y_true * y_pred - (1 - y_true) * log1mexp(y_pred)
