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

        similarity = alpha cos(u, global(E)) + (1 - alpha) cos(u, local(E, u))

    Nothing in it knows how many centroids there are: `k` may be 20 while it is trained and 100 where it serves.

    Args:
        user_dim: int. Width of the user embeddings.
        hidden: int. Width of the transformed embeddings. Defaults to `128`.
        activation: str. `"prelu"`, as in the authors' post, or `"relu"`, as in the paper, which leaves all embeddings
            in one orthant. Defaults to `"prelu"`.
        dropout: float. Rate behind the shared layer: few items have many samples, and it overfits to them. The authors
            added it after the paper. Defaults to `0.1`.
        alpha: float or `"learned"`. Share of the global part; learned, it starts at the paper's 0.3. Defaults to `0.3`.
        attention: str. How the centroids are weighed: `"tanh"`, `"tempered"` or `"linear"` as in `LocalAttention`;
            or `"average"`, all alike in both parts: RALM with average pooling. Defaults to `"tanh"`.
        size_bias: bool. Whether centroids weigh by their seeds, as in `GlobalAttention`. Defaults to `False`.

    Call arguments:
        inputs: dict of `user` `[batch or 1, user_dim]`, as the representation made them; `centroids`
            `[batch, k, hidden]`, transformed; `centroid_counts` `[batch, k]`, their seeds, 0 where there is none; and
            optionally `global_embedding` `[batch, hidden]`, where `summarize` was called ahead of time.

    Returns:
        float32 tensor `[batch]` in [-1, 1]; exactly 0 for an item without centroids.

    Raises:
        ValueError: if an argument is out of its range, or a tensor has another width.

    Example:
        >>> layer = LookalikeModel(user_dim=16, hidden=8)
        >>> seeds = {"centroids": ops.ones((3, 4, 8)), "centroid_counts": ops.ones((3, 4))}
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
        alpha: float | Literal["learned"] = 0.3,
        attention: Literal["tanh", "tempered", "linear", "average"] = "tanh",
        size_bias: bool = False,
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
        if alpha != "learned" and (isinstance(alpha, str) or not 0 <= alpha <= 1):
            raise ValueError(f"`alpha` should be 'learned' or a share in [0, 1]. Received: alpha={alpha!r}.")
        if attention not in ("tanh", "tempered", "linear", "average"):
            raise ValueError(
                f"`attention` should be 'tanh', 'tempered', 'linear' or 'average'. Received: attention={attention!r}."
            )
        self.user_dim, self.hidden, self.activation, self.dropout = user_dim, hidden, activation, dropout
        self.alpha, self.attention, self.size_bias = alpha, attention, bool(size_bias)
        self.projection = keras.layers.Dense(hidden, name="projection")
        self.dropout_layer = keras.layers.Dropout(dropout, name="dropout")
        average = attention == "average"
        self.global_attention = GlobalAttention(average=average, size_bias=size_bias, name="global_attention")
        # Averaged, both parts are one and the same.
        self.local_attention = None
        if attention != "average":
            self.local_attention = LocalAttention(attention, size_bias, name="local_attention")

    def build(self, input_shape: Any = None) -> None:
        """Create the shared layer and both attentions; all widths are known beforehand."""
        if input_shape is not None and input_shape["user"][-1] != self.user_dim:
            raise ValueError(f"`user` should be {self.user_dim} wide. Received: shape {input_shape['user']}.")
        if input_shape is not None and input_shape["centroids"][-1] != self.hidden:
            raise ValueError(f"`centroids` should be {self.hidden} wide. Received: shape {input_shape['centroids']}.")
        self.projection.build((None, self.user_dim))
        if self.activation == "prelu":
            self.slope = self.add_weight(shape=(self.hidden,), initializer=_constant(0.25), name="slope")
        if self.alpha == "learned" and self.local_attention is not None:
            start = float(np.log(0.3 / 0.7))
            self.share_logit = self.add_weight(shape=(), initializer=_constant(start), name="share_logit")
        self.global_attention.build((None, None, self.hidden))
        if self.local_attention is not None:
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

    def summarize(self, centroids: Any, counts: Any) -> Any:
        """Global embeddings `[items, hidden]`, which no target user enters."""
        if not self.built:
            self.build()
        return self.global_attention(centroids, mask=counts)

    def global_share(self) -> float:
        """`alpha` as it is now: 1 where the seeds are averaged and there is no local part."""
        if self.local_attention is None:
            return 1.0
        if self.alpha != "learned":
            return float(self.alpha)
        if not self.built:
            self.build()
        return float(ops.sigmoid(self.share_logit))

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Similarity of each user to the item beside it, or of one user to all items."""
        centroids, counts = inputs["centroids"], inputs["centroid_counts"]  # [batch, k, hidden], [batch, k]
        user = self.transform(inputs["user"], training=training)  # [batch or 1, hidden]
        summary = inputs["global_embedding"] if "global_embedding" in inputs else self.summarize(centroids, counts)
        similarity = cosine(user, summary)  # [batch]
        if self.local_attention is not None:
            alpha = ops.sigmoid(self.share_logit) if self.alpha == "learned" else self.alpha
            personal = self.local_attention(user, centroids, mask=counts)  # [batch, hidden]
            similarity = alpha * similarity + (1 - alpha) * cosine(user, personal)
        return ops.clip(similarity, -1.0, 1.0)  # rounding may pass 1

    def compute_output_shape(self, input_shape: dict[str, Any]) -> tuple[int | None, ...]:
        """Shape `[batch]`."""
        return (input_shape["centroids"][0],)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = ("user_dim", "hidden", "activation", "dropout", "alpha", "attention", "size_bias")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="lookalike")
class SimilarityLogit(keras.layers.Layer):
    """What the look-alike model is trained on: the logit of a click, or of each of several items.

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
            user as he was clustered, untransformed. With several items a user all but `user` and `own_embedding` have
            one more axis behind the first, `[batch, items, ...]`.

    Returns:
        float32 tensor `[batch, 1]` (on rank 1, Keras' losses would weight the mean instead of the rows), or
        `[batch, items]`.

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
        # A softmax does not see a constant: with several items there is no bias to learn.
        self.logit_bias = None
        if len(input_shape["centroids"]) == 3:
            self.logit_bias = self.add_weight(shape=(), initializer=_constant(self.bias), name="logit_bias")

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Logit of each row, or of each item of each row."""
        if self.logit_bias is not None:
            similarity = self._similarity(inputs, training)  # [batch]
            return ops.expand_dims(self.logit_scale * similarity + self.logit_bias, -1)  # [batch, 1]
        items, k, dim = inputs["centroids"].shape[1:]
        flat = {
            "centroids": ops.reshape(inputs["centroids"], (-1, k, dim)),  # [batch * items, k, dim]
            "counts": ops.reshape(inputs["counts"], (-1, k)),
            "own_cluster": ops.reshape(inputs["own_cluster"], (-1,)),
            **{name: ops.repeat(inputs[name], items, axis=0) for name in ("user", "own_embedding")},
        }
        return self.logit_scale * ops.reshape(self._similarity(flat, training), (-1, items))  # [batch, items]

    def _similarity(self, inputs: dict[str, Any], training: bool | None) -> Any:
        centroids, counts = leave_one_out(
            inputs["centroids"], inputs["counts"], inputs["own_cluster"], inputs["own_embedding"]
        )
        seeds = self.lookalike.transform(centroids, training=training)  # [batch, k, hidden]
        return self.lookalike(
            {"user": inputs["user"], "centroids": seeds, "centroid_counts": counts}, training=training
        )

    def compute_output_shape(self, input_shape: dict[str, Any]) -> tuple[int | None, ...]:
        """Shape `[batch, 1]` or `[batch, items]`."""
        shape = input_shape["centroids"]
        return (input_shape["user"][0], shape[1] if len(shape) == 4 else 1)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        lookalike = keras.saving.serialize_keras_object(self.lookalike)
        return {**super().get_config(), "lookalike": lookalike, "scale": self.scale, "bias": self.bias}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SimilarityLogit":
        """Rebuild from `get_config`."""
        return cls(**{**config, "lookalike": keras.saving.deserialize_keras_object(config["lookalike"])})


def build_similarity_trainer(
    lookalike: LookalikeModel, bias: float = 0.0, items: int = 1, *, k: int | None = None, name: str = "similarity"
) -> keras.Model:
    """Functional model around `SimilarityLogit`.

    Compile it with `BinaryCrossentropy(from_logits=True)`; cluster the seeds again, and feed new centroids, after every
    epoch: the embedding space has moved. With `items` above 1 it is the multi-class task of the authors' post, "whose
    seeds does this user belong to": the item he clicked in column 0, others beside it,
    `SparseCategoricalCrossentropy(from_logits=True)` and labels 0. It learns an order and no probability, so it suits
    logs without refusals; where these are logged the binary task also learns from them.

    Args:
        lookalike: `LookalikeModel`. Trained in place.
        bias: float. As in `SimilarityLogit`. Defaults to `0.0`.
        items: int. Items a row. Defaults to `1`: the binary task of the paper.
        k: int or `None`. Centroids an item; needed where `items` is above 1. Defaults to `None`: any.
        name: str. Name of the model. Defaults to `"similarity"`.

    Returns:
        Model of the inputs of `SimilarityLogit`, by name -> logit float32 `[batch, items]`.

    Raises:
        ValueError: if `items` is not positive, or above 1 without `k`.
    """
    if items < 1 or (items > 1 and not k):
        raise ValueError(f"`items` should be positive, and above 1 with a `k`. Received: items={items}, k={k}.")
    several = (items,) if items > 1 else ()
    inputs = {
        "user": keras.Input((lookalike.user_dim,), name="user"),
        "centroids": keras.Input((*several, k, lookalike.user_dim), name="centroids"),
        "counts": keras.Input((*several, k), name="counts"),
        "own_cluster": keras.Input(several, dtype="int32", name="own_cluster"),
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
        `(centroids, counts)`: `[batch, k, hidden]` and float32 `[batch, k]`, the seeds that are left.
    """
    sizes = ops.cast(counts, "float32")  # [batch, k]
    index = ops.expand_dims(ops.cast(own_cluster, "int32"), -1)  # [batch, 1]
    own = ops.cast(ops.equal(ops.arange(ops.shape(sizes)[1], dtype="int32"), index), "float32")  # [batch, k]
    step = own / ops.maximum(sizes - 1, 1)  # [batch, k], 0 for all centroids but his own
    difference = centroids - ops.expand_dims(own_embedding, 1)  # [batch, k, hidden]
    return centroids + ops.expand_dims(step, -1) * difference, ops.maximum(sizes - own, 0)


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
