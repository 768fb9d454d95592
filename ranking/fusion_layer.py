"""The fusion formula as a Keras layer: the last one of the served graph."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from ranking.fusion import FusionWeights, fuse

__all__ = ["FusionLayer"]


@keras.saving.register_keras_serializable(package="ranking")
class FusionLayer(keras.layers.Layer):
    """`ranking.fusion.fuse` in the graph.

    Args:
        weights: FusionWeights, or the dict of its `to_dict()`.

    Returns:
        The score, float32 `[B]`, of a dict `{similarity, has_similarity, pctr, pcvr[, price]}` of `[B]` and, where
        given, a dict of weights `[]`, `[1]` or `[B]` that stand in for those of the layer, clipped to their bounds.
    """

    def __init__(self, weights: FusionWeights | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fusion = weights if isinstance(weights, FusionWeights) else FusionWeights(**weights)

    def call(self, parts: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> Any:
        """Score `[B]` of the parts, with other weights where `weights` names them."""
        return fuse(parts, self.fusion, weights, xp=ops)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "weights": self.fusion.to_dict()}
