"""Similarity of a target user to an item's seeds, and the model that learns it."""

from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from lookalike.attention import GlobalAttention, LocalAttention

__all__ = ["LookalikeModel", "SimilarityLogit", "build_similarity_trainer", "cosine", "leave_one_out"]


@keras.saving.register_keras_serializable(package="lookalike")
class LookalikeModel(keras.layers.Layer):
    """How much a target user resembles an item's seeds.

    One dense layer, shared by target users and seeds against overfitting, transforms the user embeddings; an item is
    known by the centroids of its transformed seeds. With transformed user `u` and centroids `E`:

        similarity = alpha cos(u, global(E)) + beta cos(u, local(E, u))

    Args:
        user_dim: int. Width of the user embeddings.
        hidden: int. Width of the transformed embeddings. Defaults to `128`.
        activation: str. `"prelu"` or `"relu"`. Defaults to `"prelu"`.
        dropout: float. Rate behind the shared layer. Defaults to `0.1`.
        alpha: float. Share of the global part. Defaults to `0.3`.
        beta: float. Share of the local part; the two sum to 1. Defaults to `0.7`.
        squash: bool. As in `LocalAttention`. Defaults to `True`.

    Call arguments:
        inputs: dict of `user` `[batch or 1, user_dim]`, as the representation made them; `centroids`
            `[batch, k, hidden]`, transformed; `centroid_mask` `[batch, k]`, 0 where there is none; and optionally
            `global_embedding` `[batch, hidden]`, where `summarize` was called ahead of time.

    Returns:
        float32 tensor `[batch]` in [-1, 1]; exactly 0 for an item without centroids.

    Raises:
        ValueError: if an argument is out of its range, or a tensor has another width.

    Example:
        >>> layer = LookalikeModel(user_dim=16, hidden=8)
        >>> seeds = {"centroids": ops.ones((3, 4, 8)), "centroid_mask": ops.ones((3, 4))}
        >>> layer({"user": ops.ones((1, 16)), **seeds}).shape
        TensorShape([3])

    Reference: Liu et al., KDD 2019, equation 2 and section 4.2.
    """

    def __init__(
        self,
        user_dim: int,
        hidden: int = 128,
        activation: Literal["prelu", "relu"] = "prelu",
        dropout: float = 0.1,
        alpha: float = 0.3,
        beta: float = 0.7,
        squash: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("user_dim", user_dim), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value}.")
        if activation not in ("prelu", "relu"):
            raise ValueError(f"`activation` should be 'prelu' or 'relu'. Received: activation={activation!r}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: dropout={dropout}.")
        if alpha < 0 or beta < 0 or abs(alpha + beta - 1) > 1e-6:
            raise ValueError(
                f"`alpha` and `beta` should be shares that sum to 1. Received: alpha={alpha}, beta={beta}."
            )
        self.user_dim, self.hidden, self.activation, self.dropout = user_dim, hidden, activation, dropout
        self.alpha, self.beta, self.squash = alpha, beta, squash
        self.projection = keras.layers.Dense(hidden, name="projection")
        self.dropout_layer = keras.layers.Dropout(dropout, name="dropout")
        self.global_attention = GlobalAttention(name="global_attention")
        self.local_attention = LocalAttention(squash, name="local_attention")

    def build(self, input_shape: Any = None) -> None:
        """Create the shared layer and both attentions; all widths are known beforehand."""
        if input_shape is not None and input_shape["user"][-1] != self.user_dim:
            raise ValueError(f"`user` should be {self.user_dim} wide. Received: shape {input_shape['user']}.")
        if input_shape is not None and input_shape["centroids"][-1] != self.hidden:
            raise ValueError(f"`centroids` should be {self.hidden} wide. Received: shape {input_shape['centroids']}.")
        self.projection.build((None, self.user_dim))
        if self.activation == "prelu":
            self.slope = self.add_weight(shape=(self.hidden,), initializer=_constant(0.25), name="slope")
        self.global_attention.build((None, None, self.hidden))
        self.local_attention.build((None, self.hidden), (None, None, self.hidden))

    def transform(self, embeddings: Any, training: bool | None = None) -> Any:
        """User embeddings `[..., user_dim]` -> `[..., hidden]`: what seeds are clustered in."""
        if not self.built:
            self.build()
        outputs = self.projection(embeddings)
        positive = ops.relu(outputs)
        if self.activation == "prelu":
            positive = positive - self.slope * ops.relu(-outputs)
        return self.dropout_layer(positive, training=training)

    def summarize(self, centroids: Any, mask: Any) -> Any:
        """Global embeddings `[items, hidden]`, which no target user enters."""
        if not self.built:
            self.build()
        return self.global_attention(centroids, mask=mask)

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Similarity of each user to the item beside it, or of one user to all items."""
        centroids, mask = inputs["centroids"], inputs["centroid_mask"]  # [batch, k, hidden], [batch, k]
        user = self.transform(inputs["user"], training=training)  # [batch or 1, hidden]
        summary = inputs["global_embedding"] if "global_embedding" in inputs else self.summarize(centroids, mask)
        personal = self.local_attention(user, centroids, mask=mask)  # [batch, hidden]
        similarity = self.alpha * cosine(user, summary) + self.beta * cosine(user, personal)  # [batch]
        return ops.clip(similarity, -1.0, 1.0)  # rounding may pass 1

    def compute_output_shape(self, input_shape: dict[str, Any]) -> tuple[int | None, ...]:
        """Shape `[batch]`."""
        return (input_shape["centroids"][0],)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("user_dim", "hidden", "activation", "dropout", "alpha", "beta", "squash")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="lookalike")
class SimilarityLogit(keras.layers.Layer):
    """What the look-alike model is trained on: the logit of a click.

        logit = scale * similarity + bias

    A bare sigmoid of a cosine would live in [0.27, 0.73]. The centroids come untransformed, as means of the user
    embeddings of each cluster, and pass the shared layer here: the gradient reaches it through both towers. With
    centroids fixed in the transformed space it only reaches the user's side, the two drift apart within an epoch, and
    clustering again at the next one throws away what was learned. A user who is among the item's seeds is taken out of
    them first (`leave_one_out`): his own click must not predict itself.

    Args:
        lookalike: `LookalikeModel`. Shared, not copied.
        scale: float. Start of the learned scale. Defaults to `5.0`.
        bias: float. Start of the learned bias; `logit(base rate) - scale * mean similarity` saves Adam thousands of
            steps. Defaults to `0.0`.

    Call arguments:
        inputs: dict of `user` `[batch, user_dim]`, `centroids` `[batch, k, user_dim]`, untransformed, `counts`
            `[batch, k]`, `own_cluster` int32 `[batch]` (-1: not a seed) and `own_embedding` `[batch, user_dim]`, the
            user as he was clustered, untransformed.

    Returns:
        float32 tensor `[batch, 1]`: on rank 1, Keras' losses would weight the mean instead of the rows.

    Reference: Liu et al., KDD 2019, equation 11.
    Departs from the paper: scale, bias, leave-one-out, and centroids transformed after averaging while training.
    """

    def __init__(self, lookalike: LookalikeModel, scale: float = 5.0, bias: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not np.isfinite(bias):
            raise ValueError(f"`bias` should be a finite number. Received: bias={bias}.")
        self.lookalike, self.scale, self.bias = lookalike, scale, float(bias)

    def build(self, input_shape: Any) -> None:
        """Create scale and bias."""
        if not self.lookalike.built:
            self.lookalike.build()
        self.logit_scale = self.add_weight(shape=(), initializer=_constant(self.scale), name="logit_scale")
        self.logit_bias = self.add_weight(shape=(), initializer=_constant(self.bias), name="logit_bias")

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Logit of each row."""
        centroids, mask = leave_one_out(
            inputs["centroids"], inputs["counts"], inputs["own_cluster"], inputs["own_embedding"]
        )
        seeds = self.lookalike.transform(centroids, training=training)  # [batch, k, hidden]
        similarity = self.lookalike(
            {"user": inputs["user"], "centroids": seeds, "centroid_mask": mask}, training=training
        )
        return ops.expand_dims(self.logit_scale * similarity + self.logit_bias, -1)  # [batch, 1]

    def compute_output_shape(self, input_shape: dict[str, Any]) -> tuple[int | None, ...]:
        """Shape `[batch, 1]`."""
        return (input_shape["user"][0], 1)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        lookalike = keras.saving.serialize_keras_object(self.lookalike)
        return {**super().get_config(), "lookalike": lookalike, "scale": self.scale, "bias": self.bias}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SimilarityLogit":
        """Rebuild from `get_config`."""
        return cls(**{**config, "lookalike": keras.saving.deserialize_keras_object(config["lookalike"])})


def build_similarity_trainer(
    lookalike: LookalikeModel, bias: float = 0.0, name: str = "similarity_trainer"
) -> keras.Model:
    """Functional model around `SimilarityLogit`.

    Compile it with `BinaryCrossentropy(from_logits=True)`; cluster the seeds again, and feed new centroids, after every
    epoch: the embedding space has moved.

    Args:
        lookalike: `LookalikeModel`. Trained in place.
        bias: float. As in `SimilarityLogit`. Defaults to `0.0`.
        name: str. Name of the model. Defaults to `"similarity_trainer"`.

    Returns:
        Model of the inputs of `SimilarityLogit`, by name -> logit float32 `[batch, 1]`.
    """
    inputs = {
        "user": keras.Input((lookalike.user_dim,), name="user"),
        "centroids": keras.Input((None, lookalike.user_dim), name="centroids"),
        "counts": keras.Input((None,), name="counts"),
        "own_cluster": keras.Input((), dtype="int32", name="own_cluster"),
        "own_embedding": keras.Input((lookalike.user_dim,), name="own_embedding"),
    }
    return keras.Model(inputs, SimilarityLogit(lookalike, bias=bias, name="logit")(inputs), name=name)


def leave_one_out(centroids: Any, counts: Any, own_cluster: Any, own_embedding: Any) -> tuple[Any, Any]:
    """Take a user out of the seeds that he is one of, in closed form.

    His centroid `c` of `n` seeds becomes `(n c - e) / (n - 1)`, here in the form `c + (c - e) / (n - 1)` that keeps its
    digits for large `n`; a cluster of one is masked.

    Args:
        centroids: tensor `[batch, k, hidden]`.
        counts: tensor `[batch, k]`. Seeds of each centroid; 0 where there is none.
        own_cluster: int tensor `[batch]`. The user's own centroid, -1 for a user who is no seed of the item.
        own_embedding: tensor `[batch, hidden]`. The user as he was clustered; ignored for -1.

    Returns:
        `(centroids, mask)`: `[batch, k, hidden]` and float32 0/1 `[batch, k]`.
    """
    sizes = ops.cast(counts, "float32")  # [batch, k]
    index = ops.expand_dims(ops.cast(own_cluster, "int32"), -1)  # [batch, 1]
    own = ops.cast(ops.equal(ops.arange(ops.shape(sizes)[1], dtype="int32"), index), "float32")  # [batch, k]
    step = own / ops.maximum(sizes - 1, 1)  # [batch, k], 0 for all centroids but his own
    difference = centroids - ops.expand_dims(own_embedding, 1)  # [batch, k, hidden]
    left = ops.cast(ops.greater(sizes - own, 0), "float32")
    return centroids + ops.expand_dims(step, -1) * difference, left


def cosine(a: Any, b: Any) -> Any:
    """Cosine of the last axes; 0, with a gradient of 0, where a vector is (almost) zero.

    Args:
        a: float tensor `[..., dim]`.
        b: float tensor `[..., dim]`, broadcast against `a`.

    Returns:
        Tensor `[...]`.
    """
    return ops.sum(_normalize(a) * _normalize(b), axis=-1)


def _normalize(x: Any) -> Any:
    squares = ops.sum(x * x, axis=-1, keepdims=True)
    # The inner where keeps the square root away from 0, whose gradient is infinite even where it is not selected.
    usable = squares > 1e-12
    root = ops.sqrt(ops.where(usable, squares, ops.ones_like(squares)))
    return ops.where(usable, x / root, ops.zeros_like(x))


def _constant(value: float) -> Any:
    return keras.initializers.Constant(value)
