"""The fusion formula in a graph: as a Keras layer, and as served, with weights that a version may change alone."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from ranking.errors import UserError
from ranking.fingerprints import NO_FINGERPRINT, fingerprints
from ranking.fusion import FusionWeights, fuse, terms, weighted_sum

__all__ = ["MAX_SEGMENTS", "FusionLayer", "ServedFusion", "fusion_arrays"]

MAX_SEGMENTS = 64  # rows that every version has, so that a version of other weights has the same shapes


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


def fusion_arrays(weights: FusionWeights, *, segmented: bool) -> dict[str, np.ndarray]:
    """What a version with other weights changes, by the name of its variable.

    Args:
        weights: FusionWeights with J parts.
        segmented: bool. Whether the version is told the segment of a request.

    Returns:
        `weights` [J], `bounds` [J, 2]; and where `segmented`, `segment_keys` [64], sorted fingerprints of the segments,
        and `segment_differences` [64, J], float64.

    Raises:
        UserError: more segments than there are rows, or segments that the version is not told.
    """
    arrays = {
        "weights": np.array(list(weights.weights.values())),
        "bounds": np.array([weights.bounds[name] for name in weights.weights]),
    }
    if not segmented:
        if weights.segments:
            raise UserError(
                "weights that differ by segment need a model that is told the segment: declare [replay] `segment` in "
                f"dataset.toml, train and export. Received: segments {sorted(weights.segments)}."
            )
        return arrays
    names = list(weights.segments)
    if len(names) > MAX_SEGMENTS:
        raise UserError(f"`segments` should be at most {MAX_SEGMENTS}. Received: {len(names)}.")
    keys = fingerprints(tf.constant(names, tf.string)).numpy()
    order = np.argsort(keys)
    if len(set(keys.tolist())) < len(names):
        raise UserError("two segments have one 64-bit fingerprint; rename one of them.")
    arrays["segment_keys"] = np.full(MAX_SEGMENTS, NO_FINGERPRINT)
    arrays["segment_keys"][: len(names)] = keys[order]
    arrays["segment_differences"] = np.zeros((MAX_SEGMENTS, len(weights.weights)))
    for row, place in enumerate(order):
        differences = weights.segments[names[place]]
        arrays["segment_differences"][row] = [differences.get(name, 0.0) for name in weights.weights]
    return arrays


class ServedFusion(tf.Module):
    """`ranking.fusion.fuse` in an exported model: its weights, bounds and segments are variables.

    The form, `mu` and `sd` are constants of the graph, because they belong to the parameters. It computes in float64,
    so that what is served is `fuse` of the served parts to the last digit of float32.

    Args:
        weights: FusionWeights.
        segmented: bool. Whether `score` is given segments.
    """

    def __init__(self, weights: FusionWeights, *, segmented: bool) -> None:
        super().__init__()
        self.constants = weights
        values = fusion_arrays(weights, segmented=segmented)
        self.arrays = {name: tf.Variable(array, trainable=False) for name, array in values.items()}

    def bounds(self, name: str) -> tf.Tensor:
        """(low, high) of a part's weight, float32 `[2]`: as exact as a weight on the wire."""
        return tf.cast(self.arrays["bounds"][list(self.constants.weights).index(name)], tf.float32)

    def score(
        self,
        parts: Mapping[str, tf.Tensor],
        override: Mapping[str, tf.Tensor] | None = None,
        *,
        segment: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The score, float32 `[B]`.

        Args:
            parts: dict of tensors `[B]`: the parts of the weights, and `has_similarity`.
            override: dict of part -> tensor `[]`, of every part: in place of the weights and of what differs by
                segment. Defaults to `None`.
            segment: string tensor `[1]` or `[B]`. Defaults to `None`.
        """
        z = terms({name: tf.cast(values, tf.float64) for name, values in parts.items()}, self.constants, xp=ops)
        if override is not None:
            used = {name: tf.cast(value, tf.float64) for name, value in override.items()}
        else:
            rows = self.arrays["weights"][tf.newaxis]  # [1, J]
            if segment is not None:
                rows = self._of_segment(rows, segment)  # [1 or B, J]
            used = dict(zip(self.constants.weights, tf.unstack(rows, axis=1), strict=True))
        return tf.cast(weighted_sum(z, used), tf.float32)

    def _of_segment(self, rows: tf.Tensor, segment: tf.Tensor) -> tf.Tensor:
        keys, wanted = self.arrays["segment_keys"], fingerprints(segment)
        place = tf.minimum(tf.searchsorted(keys, wanted), MAX_SEGMENTS - 1)
        known = tf.equal(tf.gather(keys, place), wanted)[:, tf.newaxis]
        differences = tf.where(known, tf.gather(self.arrays["segment_differences"], place), 0.0)
        low, high = tf.unstack(self.arrays["bounds"], axis=1)
        return tf.clip_by_value(rows + differences, low, high)
