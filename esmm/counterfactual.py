"""Conversion risks over all impressions from clicked ones: each click counts by how unlikely it was."""

from typing import Any

import keras
from keras import ops

__all__ = ["DoublyRobust", "InversePropensity"]


def _entropy(label: Any, logit: Any) -> Any:
    """Cross-entropy of labels in [0, 1] and logits, `[B]`."""
    return ops.softplus(logit) - label * logit


@keras.saving.register_keras_serializable(package="esmm")
class InversePropensity(keras.losses.Loss):
    """The conversion's cross-entropy on clicked rows, weighed to stand for all rows.

    A conversion is known where there was a click, and clicked rows are not like the others. With the propensity
    `o = max(pctr, clip)`, `w = observed / o` and `d` the cross-entropy of the conversion,

        risk = sum(w d) / sum(w)

    A row that is clicked one time in twenty stands for twenty. No gradient passes through the propensity: the click
    tower would learn to shrink the risk in place of predicting clicks. Dividing by the weights' sum (self-normalised)
    makes up for the clip and for what a batch happens to hold. It is also what rejection sampling of clicks, each
    accepted with probability `clip / o`, gives in expectation.

    `y_true` is `[B, 2]`: observed (1 for a clicked row whose conversion is final) and conversion. `y_pred` is
    `[B, 2]`: click logit and conversion logit. A batch without an observed row has risk 0. Under a distribution
    strategy each replica divides by its own sum.

    Args:
        clip: float. The least propensity, in (0, 1]. Set it well below the mean click rate: at it, rows count nearly
            alike and nothing is corrected; far below, few rows decide. Defaults to `0.01`.
        reduction: str. Over the batch. Defaults to `"sum_over_batch_size"`.

    Returns:
        A scalar in nats, or `[B]` with `reduction="none"`.

    Reference: Wang et al., SIGIR 2022 (ESCM2), equation of the IPS risk, `mean(observed d / pctr)`.
    Departs from the paper: self-normalised; clipped; the propensity is held constant.
    """

    def __init__(self, clip: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < clip <= 1:
            raise ValueError(f"`clip` should be in (0, 1]. Received: clip={clip}.")
        self.clip = float(clip)

    def _weights(self, observed: Any, click_logit: Any) -> Any:
        """Self-normalised weights, `[B]`, of mean 1 over the batch."""
        propensity = ops.maximum(ops.sigmoid(ops.stop_gradient(click_logit)), self.clip)  # [B]
        weights = observed / propensity  # [B]
        total = ops.sum(weights)
        return weights * ops.cast(ops.size(weights), weights.dtype) / ops.where(total > 0, total, 1.0)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """What each row adds to the risk, `[B]`; its mean is the risk."""
        observed, conversion = y_true[:, 0], y_true[:, 1]
        return self._weights(observed, y_pred[:, 0]) * _entropy(conversion, y_pred[:, 1])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "clip": self.clip}


@keras.saving.register_keras_serializable(package="esmm")
class DoublyRobust(InversePropensity):
    """The inverse-propensity risk, with imputed labels where no conversion could be seen.

    A third tower imputes the conversion `r'` of every row. With `d(r)` the cross-entropy of label `r` under the
    predicted conversion, and `w` the self-normalised weights of `InversePropensity`,

        risk = mean(d(r') + w (d(r) - d(r'))) + mean(w CE(r, r'))

    The first part is right in expectation when either the propensities or the imputed labels are. The second trains
    the imputation; `r'` is constant in the first, and nothing reaches the click tower.

    `y_true` is as in `InversePropensity`; `y_pred` is `[B, 3]`: click, conversion and imputation logit. A rare click
    has a label `r' + w (r - r')` far outside [0, 1], so that the risk has no lower bound: keep its weight small.

    Args:
        clip: float. The least propensity, in (0, 1]. Defaults to `0.01`.
        reduction: str. Over the batch. Defaults to `"sum_over_batch_size"`.

    Returns:
        A scalar in nats, or `[B]` with `reduction="none"`.

    Reference: Wang et al., SIGIR 2022 (ESCM2), `mean(e + observed (d - e) / pctr) + mean(observed (d - e)^2 / pctr)`
    with `e` the output of the imputation tower.
    Departs from the paper: the tower imputes the label, not the error `e`, as in Wang et al., ICML 2019 (DR-JL): an
    `e` that does not depend on the predicted conversion has no gradient for its tower. It learns by cross-entropy,
    whose gradient is bounded, not by the squared error of `e`. Self-normalised and clipped as `InversePropensity`.
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """What each row adds to the risk, `[B]`; its mean is the risk."""
        observed, conversion = y_true[:, 0], y_true[:, 1]
        logit, imputation_logit = y_pred[:, 1], y_pred[:, 2]
        weights = self._weights(observed, y_pred[:, 0])
        imputed = ops.sigmoid(ops.stop_gradient(imputation_logit))
        # d(r) - d(r') = (r' - r) logit: the entropy of a label is linear in it
        risk = _entropy(imputed + weights * (conversion - imputed), logit)
        return risk + weights * _entropy(conversion, imputation_logit)
