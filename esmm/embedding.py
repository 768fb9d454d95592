"""The shared embedding: every id of a batch is looked up in one table, by one gather."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

__all__ = ["Feature", "SharedEmbedding", "WideLinear"]

KINDS = ("categorical", "multi", "numeric")
LABELS = ("click", "conversion", "value", "click_time", "conversion_time")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input of the model.

    Args:
        name: str. Its key in the dict of arrays.
        kind: str. `"categorical"`: int `[B]`; `"multi"`: int `[B, L]`, padded with zeros; `"numeric"`: float `[B]`
            or `[B, size]`. Indices: 0 missing or padding, 1 out of vocabulary, from 2 on known.
        vocabulary: str. Features of one vocabulary share their rows. Defaults to a vocabulary of its own.
        size: int. Rows of the vocabulary, indices 0 and 1 included; of a numeric feature its width, where 0 and 1
            both mean one number. Defaults to `0`.
        weights: str. Of a multi feature: the key of float `[B, L]` weights of its values, not negative. Defaults to
            none: all weigh the same.

    Raises:
        ValueError: an argument out of its range, or the name of a label: what is to be predicted is no input.
    """

    name: str
    kind: str
    vocabulary: str = ""
    size: int = 0
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError(f"`name` should be a non-empty string. Received: name={self.name!r}.")
        if self.name in LABELS or self.weights in LABELS:
            raise ValueError(
                f"a feature should not be named like a label, any of {LABELS}. "
                f"Received: name={self.name!r}, weights={self.weights!r}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"`kind` of feature {self.name!r} should be one of {KINDS}. Received: kind={self.kind!r}.")
        if self.weights and self.kind != "multi":
            raise ValueError(
                f"`weights` should be of a multi feature. Received: weights={self.weights!r}, "
                f"kind={self.kind!r} of feature {self.name!r}."
            )
        if self.kind == "numeric" and (self.vocabulary or self.size < 0):
            raise ValueError(
                f"numeric feature {self.name!r} should have no vocabulary and a size >= 0. "
                f"Received: vocabulary={self.vocabulary!r}, size={self.size}."
            )
        if self.kind != "numeric" and self.size < 2:
            raise ValueError(
                f"`size` of feature {self.name!r} should be at least 2 (missing, out of vocabulary). "
                f"Received: size={self.size}."
            )

    @property
    def table(self) -> str:
        """The name of the vocabulary whose rows the feature reads."""
        return self.vocabulary or self.name

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of one example: `()`, `(None,)` for a multi feature, `(size,)` for a numeric vector."""
        if self.kind == "multi":
            return (None,)
        return (self.size,) if self.kind == "numeric" and self.size > 1 else ()


class _FusedTable(keras.layers.Layer):
    """One table for all vocabularies: each has its block of rows, and a lookup is one gather."""

    def __init__(self, features: Sequence[Any], dim: int, initializer: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features = tuple(Feature(**f) if isinstance(f, Mapping) else f for f in features)
        names = [name for feature in self.features for name in (feature.name, feature.weights) if name]
        if len(set(names)) != len(names):
            raise ValueError(f"`features` should have distinct names and weights. Received: {names}.")
        if dim < 1:
            raise ValueError(f"the width of the table should be a positive integer. Received: {dim}.")
        self.dim = int(dim)
        self.initializer = keras.initializers.get(initializer)
        self.categorical = [f for f in self.features if f.kind == "categorical"]
        self.multi = [f for f in self.features if f.kind == "multi"]
        self.numeric = [f for f in self.features if f.kind == "numeric"]
        sizes: dict[str, int] = {}
        for feature in self.categorical + self.multi:
            if sizes.setdefault(feature.table, feature.size) != feature.size:
                raise ValueError(
                    f"features of vocabulary {feature.table!r} should have one `size`. "
                    f"Received: {sizes[feature.table]} and {feature.size} (feature {feature.name!r})."
                )
        if not sizes:
            raise ValueError(f"`features` should hold a categorical or a multi feature. Received: {names}.")
        self.names = tuple(names)
        self.offsets: dict[str, int] = {}
        self.rows = 0
        for vocabulary, size in sizes.items():
            self.offsets[vocabulary] = self.rows
            self.rows += size
        self.numeric_width = sum(max(feature.size, 1) for feature in self.numeric)

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Create the table."""
        missing = [name for name in self.names if name not in input_shape]
        if missing:
            raise ValueError(f"inputs should hold every feature. Received: {sorted(input_shape)}, without {missing}.")
        # autocast off: under mixed precision the whole table would be cast at each step to read a few rows
        self.table = self.add_weight(
            shape=(self.rows, self.dim), initializer=self.initializer, autocast=False, name="table"
        )

    def _rows_of(self, indices: Any, features: Sequence[Feature]) -> Any:
        """Indices of vocabularies -> rows of the table; an index past its vocabulary is out of vocabulary (1)."""
        indices = ops.cast(indices, "int32")
        sizes = tf.constant([feature.size for feature in features], "int32")
        offsets = tf.constant([self.offsets[feature.table] for feature in features], "int32")
        known = tf.logical_and(indices >= 0, indices < sizes)
        return tf.where(known, indices, 1) + offsets

    def lookup(self, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns the vectors `[B, features, dim]` (categorical, then multi averaged) and the squared norm looked up.

        The second is the sum over all looked-up rows, padding left out, of their squared entries: a scalar tensor.
        """
        columns = []
        if self.categorical:
            stacked = tf.stack([inputs[f.name] for f in self.categorical], axis=1)
            columns.append(self._rows_of(stacked, self.categorical))  # [B, C]
        columns += [self._rows_of(inputs[feature.name], [feature]) for feature in self.multi]  # [B, L] each
        # tf.gather on the variable itself: reads the rows only, and its gradient is IndexedSlices of those rows
        rows = tf.gather(self.table.value, tf.concat(columns, axis=1))  # [B, C + sum of L, dim]
        rows = ops.cast(rows, self.compute_dtype)
        parts = tf.split(rows, [tf.shape(column)[1] for column in columns], axis=1) if len(columns) > 1 else [rows]
        vectors, squared = [], []
        if self.categorical:
            vectors.append(tf.ensure_shape(parts[0], (None, len(self.categorical), self.dim)))
            squared.append(tf.reduce_sum(tf.square(parts[0])))
        for feature, part in zip(self.multi, parts[len(vectors) :], strict=True):
            present = ops.cast(tf.not_equal(inputs[feature.name], 0), self.compute_dtype)[..., None]  # [B, L, 1]
            kept = part * present  # [B, L, dim]
            squared.append(tf.reduce_sum(tf.square(kept)))
            if feature.weights:
                weights = present * ops.cast(inputs[feature.weights], self.compute_dtype)[..., None]  # [B, L, 1]
                total, kept = tf.reduce_sum(weights, axis=1, keepdims=True), part * weights
                vectors.append(tf.math.divide_no_nan(tf.reduce_sum(kept, axis=1, keepdims=True), total))  # [B, 1, dim]
            else:
                count = tf.maximum(tf.reduce_sum(present, axis=1, keepdims=True), 1)  # [B, 1, 1]
                vectors.append(tf.reduce_sum(kept, axis=1, keepdims=True) / count)  # [B, 1, dim]
        return tf.concat(vectors, axis=1), tf.add_n(squared)

    def numbers(self, inputs: Mapping[str, Any]) -> Any:
        """All numeric features side by side, `[B, numeric_width]`."""
        width = self.numeric_width
        parts = [ops.reshape(inputs[f.name], (-1, max(f.size, 1))) for f in self.numeric]
        return ops.reshape(ops.cast(ops.concatenate(parts, axis=1), self.compute_dtype), (-1, width))

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "features": [dataclasses.asdict(feature) for feature in self.features]}


@keras.saving.register_keras_serializable(package="esmm")
class SharedEmbedding(_FusedTable):
    """Turns a dict of features into one vector, which every tower reads.

    A conversion is rare and a click is not: rows shared by both tasks are learned from the clicks too. One table
    holds all vocabularies, so that a batch needs one gather and an optimizer one sparse update.

        output = concat(table[index of f] for categorical f, mean of table[indices != 0] for multi f, numeric f)

    The mean of a multi feature with weights is weighted: `sum of w table[index] / sum of w`.

    Args:
        features: sequence of `Feature`. What is looked up or passed on.
        dim: int. Width of a row. Defaults to `18`.
        l2: float. Weight of the squared norm of the rows looked up, a mean over the batch, added to the loss in
            training; rows not looked up are not shrunk. Defaults to `0.0`.
        initializer: str or initializer. Of the table. Defaults to `"uniform"`.

    Returns:
        float32 `[B, (categorical + multi) * dim + numeric width]`. A multi feature with padding only, or
        weights of 0 only, is a zero vector.

    Reference: Ma et al., SIGIR 2018, section 2.3 ("feature representation transfer").
    """

    def __init__(
        self, features: Sequence[Any], dim: int = 18, l2: float = 0.0, initializer: Any = "uniform", **kwargs: Any
    ) -> None:
        super().__init__(features, dim, initializer, **kwargs)
        if not l2 >= 0:
            raise ValueError(f"`l2` should not be negative. Received: l2={l2}.")
        self.l2 = float(l2)

    @property
    def width(self) -> int:
        """Width of the output."""
        return (len(self.categorical) + len(self.multi)) * self.dim + self.numeric_width

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """One vector an example, `[B, width]`, of a dict of features."""
        vectors, squared = self.lookup(inputs)  # [B, F, dim]
        flat = ops.reshape(vectors, (-1, vectors.shape[1] * self.dim))  # [B, F * dim]
        if self.l2 and training:
            self.add_loss(self.l2 * squared / ops.cast(ops.shape(flat)[0], squared.dtype))
        if self.numeric:
            flat = ops.concatenate([flat, self.numbers(inputs)], axis=1)  # [B, F * dim + numeric]
        return flat

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        config = {"dim": self.dim, "l2": self.l2, "initializer": keras.initializers.serialize(self.initializer)}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="esmm")
class WideLinear(_FusedTable):
    """One weight an id and a task: the logistic regression that the towers only have to improve on.

    It starts at zero, and is sparse in the same way as the embedding.

        output = sum over categorical and multi f of weight[f] (multi: their mean) + numeric kernel

    Args:
        features: sequence of `Feature`.
        tasks: int. Number of logits. Defaults to `2`.

    Returns:
        float32 `[B, tasks]`, to be added to the logits of the towers.

    Reference: Cheng et al., DLRS 2016 (wide and deep).
    """

    def __init__(self, features: Sequence[Any], tasks: int = 2, **kwargs: Any) -> None:
        super().__init__(features, tasks, "zeros", **kwargs)

    def build(self, input_shape: Mapping[str, Any]) -> None:
        """Create the table and the kernel of the numeric features."""
        super().build(input_shape)
        if self.numeric:
            self.kernel = self.add_weight(shape=(self.numeric_width, self.dim), initializer="zeros", name="kernel")

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Logits `[B, tasks]` of a dict of features."""
        vectors, _ = self.lookup(inputs)  # [B, F, tasks]
        logits = ops.sum(vectors, axis=1)  # [B, tasks]
        if self.numeric:
            logits = logits + ops.matmul(self.numbers(inputs), self.kernel)
        return logits

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "tasks": self.dim}
