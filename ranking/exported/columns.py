"""Raw columns and behaviours to the arrays of the models, in the graph, as `ranking.features.Encoder` makes them."""

import re

import numpy as np
import tensorflow as tf

from ranking.data.schema import Behavior, Feature
from ranking.exported.lookup import id_dtype, lookup_arrays, rows_of
from ranking.exported.wire import require
from ranking.features import MISSING, OUT_OF_VOCABULARY, Encoder, Vocabulary

__all__ = ["BehaviorColumn", "FeatureColumn"]

MAX_VALUES = 1 << 22  # of all texts of a column together: one long text would make every other as wide


class _Indices(tf.Module):
    """Values of a vocabulary to their indices."""

    def __init__(self, vocabulary: Vocabulary, what: str):
        super().__init__()
        found = lookup_arrays(vocabulary.values, what)
        # A row is the place of a value in the vocabulary, two before its index; the last row is any other value's.
        found["rows"] = np.append(found["rows"][:-1] + 2, OUT_OF_VOCABULARY).astype(np.int32)
        self.keys = tf.Variable(found["keys"], trainable=False)
        self.rows = tf.Variable(found["rows"], trainable=False)
        self.dtype = id_dtype(vocabulary.values)

    def __call__(self, values: tf.Tensor) -> tf.Tensor:
        """int32 of the shape of the values; an empty text is missing."""
        index, _ = rows_of(tf.reshape(values, [-1]), self.keys, self.rows)
        index = tf.ensure_shape(tf.reshape(index, tf.shape(values)), values.shape)
        return index if self.dtype == tf.int64 else tf.where(tf.equal(values, ""), MISSING, index)


class FeatureColumn(tf.Module):
    """A column of users or of the context, as `Encoder.arrays` encodes it.

    Args:
        feature: Feature. Of a user or of the context.
        encoder: Encoder.
    """

    def __init__(self, feature: Feature, encoder: Encoder):
        super().__init__()
        self.feature = feature
        self.array = f"{feature.side}_{feature.name}"
        self.dtype = tf.float32 if feature.kind == "numeric" else tf.string
        if feature.kind == "numeric":
            self.low, self.high, self.mean = encoder.ranges[self.array]
        else:
            self.indices = _Indices(encoder.vocabularies[self.array], f"{feature.side} {feature.name}")

    def __call__(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        """Arrays by name, of raw values `[n]`."""
        if self.feature.kind == "numeric":
            return {self.array: self._number(values)}
        if self.feature.kind == "categorical":
            return {self.array: self.indices(values)}
        split = tf.strings.split(values, self.feature.separator)
        if not self.feature.weights:
            texts = split.to_tensor("", shape=[values.shape[0], self.feature.keep])
            return {self.array: self.indices(texts)}
        sign = re.escape(self.feature.weights)
        text = tf.where(tf.equal(split.flat_values, ""), f"{self.feature.weights}0", split.flat_values)
        weight = tf.strings.to_number(tf.strings.regex_replace(text, f"(?s)^.*{sign}", ""))
        good = tf.reduce_all(tf.math.is_finite(weight) & (weight >= 0))
        few = tf.reduce_prod(split.bounding_shape()) <= MAX_VALUES
        rules = {"a weight should be a finite number of 0 or more": good, "fewer values in a text": few}
        limits = [require(kept, f"{self.feature.name}: {rule}") for rule, kept in rules.items()]
        with tf.control_dependencies(limits):
            weight = tf.identity(weight)
        value = tf.strings.regex_replace(text, f"(?s)^(.*){sign}.*$", r"\1")
        dense = split.with_flat_values(weight).to_tensor(-1.0)  # [n, L]; padding last
        heaviest = tf.argsort(-dense, axis=1, stable=True)[:, : self.feature.keep]
        dense = tf.gather(dense, heaviest, batch_dims=1)
        found = self.indices(tf.gather(split.with_flat_values(value).to_tensor(""), heaviest, batch_dims=1))
        found, dense = (tf.ensure_shape(array, [values.shape[0], None]) for array in (found, dense))
        return {self.array: found, f"{self.array}_weight": tf.where(tf.equal(found, MISSING), 0.0, dense)}

    def _number(self, values: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(values, tf.float64)
        if self.feature.transform == "log1p":
            wide = tf.math.log1p(tf.maximum(wide, 0.0))
        span = self.high - self.low if self.high > self.low else 1.0
        scaled = (tf.clip_by_value(wide, self.low, self.high) - self.low) / span
        mean = tf.constant(self.mean, tf.float64)
        return tf.cast(tf.where(tf.math.is_nan(values), mean, scaled), tf.float32)


class BehaviorColumn(tf.Module):
    """What one user did, the latest last, as `Encoder.behavior` encodes it.

    Args:
        behavior: Behavior.
        encoder: Encoder.
    """

    def __init__(self, behavior: Behavior, encoder: Encoder):
        super().__init__()
        self.behavior = behavior
        self.array = f"behavior_{behavior.name}"
        vocabulary = "item" if behavior.vocabulary == "item" else self.array
        self.indices = _Indices(encoder.vocabularies[vocabulary], f"behaviour {behavior.name}")
        self.dtype = self.indices.dtype

    def __call__(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        """`[1, keep]`, the newest first, padded, of raw values `[L]`."""
        keep = self.behavior.keep
        found = self.indices(values[-keep:][::-1])
        padded = tf.pad(found, [[0, keep - tf.size(found)]], constant_values=MISSING)
        return {self.array: tf.reshape(padded, [1, keep])}
