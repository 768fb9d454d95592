"""RALM's three attentions: over a user's fields, over an item's seeds, and over the seeds as one user sees them."""

from typing import Any, Literal

import keras
from keras import ops

__all__ = ["AttentionMerge", "GlobalAttention", "LocalAttention"]


@keras.saving.register_keras_serializable(package="lookalike")
class AttentionMerge(keras.layers.Layer):
    """Merge a user's feature fields by attention, in place of concatenation.

    A strong field (what he read yesterday) should not drown the weak ones of users who have nothing else. With the
    fields stacked in `H`, `[fields, width]`:

        a = softmax(W2 tanh(W1 H^T)),   output = a H

    Args:
        units: int. Rows of `W1`, `[units, width]`. Defaults to `64`.
        kernel_initializer: str or initializer. Of `W1` and `W2`. Defaults to `"glorot_uniform"`.

    Returns:
        Tensor `[batch, width]`; zeros where every field is masked.

    Raises:
        ValueError: if `units` is not positive, or the input is not `[batch, fields, width]`.

    Example:
        >>> AttentionMerge(8)(keras.ops.ones((2, 5, 16))).shape
        TensorShape([2, 16])

    Reference: Liu et al., KDD 2019, equations 6 to 8, with the shapes of the authors' erratum.
    Departs from the paper: empty fields (`mask` 0) get no weight.
    """

    def __init__(self, units: int = 64, kernel_initializer: Any = "glorot_uniform", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.units = _positive("units", units)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create `W1` and `W2`."""
        width = _last_of_three("inputs", input_shape, "[batch, fields, width]")
        self.w1 = self.add_weight(shape=(self.units, width), initializer=self.kernel_initializer, name="w1")
        self.w2 = self.add_weight(shape=(self.units, 1), initializer=self.kernel_initializer, name="w2")

    def attention(self, inputs: Any, mask: Any = None) -> Any:
        """Weight of each field, `[batch, fields]`: sums to 1, or is all 0 where every field is masked."""
        hidden = ops.tanh(ops.matmul(inputs, ops.transpose(self.w1)))  # [batch, fields, units]
        return _masked_softmax(ops.squeeze(ops.matmul(hidden, self.w2), -1), mask)  # [batch, fields]

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Merge `inputs` `[batch, fields, width]`; `mask` `[batch, fields]` is 0 at empty fields."""
        return _pool(self.attention(inputs, mask), inputs)  # [batch, width]

    def compute_mask(self, *args: Any, **kwargs: Any) -> None:
        """The mask ends here: the masked axis is summed."""

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return {**super().get_config(), "units": self.units, "kernel_initializer": initializer}


@keras.saving.register_keras_serializable(package="lookalike")
class GlobalAttention(keras.layers.Layer):
    """Summary of an item's seeds that is the same for every target user.

    With centroids `E`, `[k, dim]`, of `n` seeds each:

        a = softmax(tanh(E W^T) w + size_bias log n),   output = a E

    It may be made ahead of time, once per item; it works for any `k`.

    Args:
        units: int. Rows of `W`, `[units, dim]`. Defaults to `64`.
        average: bool. Whether all centroids weigh alike and there is nothing to learn: the average pooling that RALM
            is compared with. Defaults to `False`.
        size_bias: bool. Whether a centroid counts by its number of seeds. Without it the centroid of a million seeds
            weighs as much as one of ten. Defaults to `False`, as in the paper.
        kernel_initializer: str or initializer. Of `W` and `w`. Defaults to `"glorot_uniform"`.

    Returns:
        Tensor `[batch, dim]`; zeros where every centroid is masked.

    Raises:
        ValueError: if `units` is not positive, or the input is not `[batch, k, dim]`.

    Reference: Liu et al., KDD 2019, equation 10.
    Departs from the paper: its printed shapes do not multiply; this is the self-attention pooling of its figure 4.
    """

    def __init__(
        self,
        units: int = 64,
        average: bool = False,
        size_bias: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.units, self.average, self.size_bias = _positive("units", units), bool(average), bool(size_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create `W` and `w`."""
        dim = _last_of_three("centroids", input_shape, "[batch, k, dim]")
        if not self.average:
            self.kernel = self.add_weight(shape=(self.units, dim), initializer=self.kernel_initializer, name="kernel")
            self.query = self.add_weight(shape=(self.units, 1), initializer=self.kernel_initializer, name="query")

    def attention(self, centroids: Any, mask: Any = None) -> Any:
        """Weight of each centroid, `[batch, k]`."""
        if self.average:
            logits = ops.zeros_like(centroids[..., 0])  # [batch, k]
        else:
            hidden = ops.tanh(ops.matmul(centroids, ops.transpose(self.kernel)))  # [batch, k, units]
            logits = ops.squeeze(ops.matmul(hidden, self.query), -1)  # [batch, k]
        return _masked_softmax(_by_size(logits, mask) if self.size_bias else logits, mask)

    def call(self, centroids: Any, mask: Any = None) -> Any:
        """Summarise `centroids` `[batch, k, dim]`; `mask` `[batch, k]` holds their seeds, 0 where there is none."""
        return _pool(self.attention(centroids, mask), centroids)  # [batch, dim]

    def compute_mask(self, *args: Any, **kwargs: Any) -> None:
        """The mask ends here: the masked axis is summed."""

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "units": self.units,
            "average": self.average,
            "size_bias": self.size_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="lookalike")
class LocalAttention(keras.layers.Layer):
    """Summary of an item's seeds as one target user sees them.

    With centroids `E` of shape `[k, dim]`, of `n` seeds each, and target user `u`:

        a = softmax(squash(E W u) + size_bias log n),   output = a E

    `W u` comes first, once per user: `dim` times fewer multiplications than `E W` for every item. One user (batch 1)
    broadcasts over the items.

    Args:
        squash: str. `"tanh"`, as in the paper: two weights differ by at most e^2, so that the best of 20 centroids
            gets 0.28 at most and the best of 100 0.07; `"tempered"`: a learned multiple of the tanh, which may focus
            as far as it pays; `"linear"`: none, which focuses freely and is less stable. Defaults to `"tanh"`.
        size_bias: bool. As in `GlobalAttention`; without `squash` the local attention is then that over the seeds
            themselves, each standing at its centroid. Defaults to `False`.
        kernel_initializer: str or initializer. Of `W`, `[dim, dim]`. Defaults to `"glorot_uniform"`.

    Returns:
        Tensor `[batch, dim]`; zeros where every centroid is masked.

    Raises:
        ValueError: if `squash` is unknown, or the shapes are not `[batch or 1, dim]` and `[batch, k, dim]`.

    Reference: Liu et al., KDD 2019, equation 9.
    Departs from the paper: masked centroids get no weight.
    """

    def __init__(
        self,
        squash: Literal["tanh", "tempered", "linear"] = "tanh",
        size_bias: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if squash not in ("tanh", "tempered", "linear"):
            raise ValueError(f"`squash` should be 'tanh', 'tempered' or 'linear'. Received: squash={squash!r}.")
        self.supports_masking = True
        self.squash, self.size_bias = squash, bool(size_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, user_shape: tuple[int | None, ...], centroids_shape: tuple[int | None, ...]) -> None:
        """Create `W`, and the temperature where it is learned."""
        dim = _last_of_three("centroids", centroids_shape, "[batch, k, dim]")
        if len(user_shape) != 2 or user_shape[-1] != dim:
            raise ValueError(
                f"`user` should have shape [batch, {dim}], the width of `centroids`. Received: {user_shape}."
            )
        self.kernel = self.add_weight(shape=(dim, dim), initializer=self.kernel_initializer, name="kernel")
        if self.squash == "tempered":
            self.temperature = self.add_weight(shape=(), initializer="ones", name="temperature")

    def attention(self, user: Any, centroids: Any, mask: Any = None) -> Any:
        """Weight of each centroid for this user, `[batch, k]`."""
        query = ops.matmul(user, ops.transpose(self.kernel))  # [batch or 1, dim]
        # One user: a single large product, twice as fast as one small product for each item.
        column = ops.transpose(query) if query.shape[0] == 1 else ops.expand_dims(query, -1)
        logits = ops.squeeze(ops.matmul(centroids, column), -1)  # [batch, k]
        if self.squash != "linear":
            logits = ops.tanh(logits)
        if self.squash == "tempered":
            logits = self.temperature * logits
        return _masked_softmax(_by_size(logits, mask) if self.size_bias else logits, mask)

    def call(self, user: Any, centroids: Any, mask: Any = None) -> Any:
        """Summarise `centroids` `[batch, k, dim]` for `user` `[batch or 1, dim]`; `mask` as in `GlobalAttention`."""
        return _pool(self.attention(user, centroids, mask), centroids)  # [batch, dim]

    def compute_mask(self, *args: Any, **kwargs: Any) -> None:
        """The mask ends here: the masked axis is summed."""

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "squash": self.squash,
            "size_bias": self.size_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _by_size(logits: Any, counts: Any) -> Any:
    """Logits `[batch, k]` raised by the logarithm of the seed counts; alike where there are none given."""
    if counts is None:
        return logits
    return logits + ops.log(ops.maximum(ops.cast(counts, logits.dtype), 1))


def _masked_softmax(logits: Any, mask: Any) -> Any:
    """Softmax of the last axis over the entries whose mask is not 0; all 0 where none is left."""
    if mask is None:
        return ops.softmax(logits, axis=-1)
    keep = ops.cast(mask, "bool")
    # Far below any logit, yet finite: a row without any entry must not turn into NaN, nor its gradient.
    weights = ops.softmax(ops.where(keep, logits, ops.cast(-3e4, logits.dtype)), axis=-1)
    return ops.where(keep, weights, ops.zeros_like(weights))


def _pool(weights: Any, values: Any) -> Any:
    """`[batch, n]` weights, `[batch, n, dim]` values -> `[batch, dim]`."""
    return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), values), 1)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value!r}.")
    return value


def _last_of_three(name: str, shape: tuple[int | None, ...], expected: str) -> int:
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(f"`{name}` should have shape {expected} with a known last axis. Received: {shape}.")
    return shape[-1]
