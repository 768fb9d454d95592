"""The look-alike similarity as it is served: what only the user needs once a request, what only an item needs ahead."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import tensorflow as tf

from lookalike.similarity import LookalikeModel

__all__ = ["SplitSimilarity"]

NOTHING = -3e4  # logit of what gets no weight: its exponential is 0 in float32
ALMOST_ZERO = 1e-12  # squared length, as in `lookalike.cosine`


class SplitSimilarity(tf.Module):
    """`LookalikeModel` for many candidates of one user, from rows of a table.

    An item's row holds its centroids and behind them its global embedding, of length 1: no user enters that, so it is
    made ahead of time. With `c_j` the entries of a row, `v` the transformed user at length 1 and `q = W u`:

        cos(u, global) = c_k . v
        cos(u, local) = E . v / |E|,   E = sum over j of w_j c_j,   w = softmax over j of squash(c_j . q) + bias_j

    where `bias` keeps the masked centroids and the global embedding out. `E` is summed before its length is taken:
    through the centroids' Gram matrix no second pass over them were needed, but where centroids point apart the
    squares cancel, and float32 loses twice the digits.

    Args:
        lookalike: LookalikeModel. Trained.
        dtype: str. Of the table: `"float32"`, or `"bfloat16"`, half the bytes. Defaults to `"float32"`.
    """

    def __init__(self, lookalike: LookalikeModel, *, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"`dtype` should be 'float32' or 'bfloat16'. Received: dtype={dtype!r}.")
        self.dtype, self.hidden = tf.as_dtype(dtype), lookalike.hidden
        self.share = lookalike.global_share()  # alpha
        self.size_bias = lookalike.size_bias
        local = lookalike.local_attention
        self.squash = local.squash if local is not None else ""
        self.temperature = float(local.temperature) if local is not None and local.squash == "tempered" else 1.0
        # Functions, not the layer: tracked, it would be saved with all that Keras keeps of it.
        self._transform, self._summarize = lookalike.transform, lookalike.summarize
        self.parameters = [variable.value for variable in lookalike.projection.variables]
        if lookalike.activation == "prelu":
            self.parameters.append(lookalike.slope.value)
        if local is not None:
            self.kernel = local.kernel.value  # W

    def arrays(self, centroids: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The tables, a row an item.

        Args:
            centroids: float32 `[items, k, hidden]`.
            counts: `[items, k]`. Their seeds, 0 where there is none.

        Returns:
            `centroids` `[items, (k + 1) * hidden]` of `dtype` and `centroid_bias` float32 `[items, k + 1]`; with
            average pooling, where nothing depends on the user, the global embedding alone and no bias.
        """
        there = counts > 0
        summary = np.asarray(self._summarize(centroids, counts.astype(np.float32)))
        squares = np.square(summary, dtype=np.float64).sum(axis=1, keepdims=True)
        summary = np.where(squares > ALMOST_ZERO, summary / np.sqrt(np.maximum(squares, ALMOST_ZERO)), 0.0)
        if not self.squash:
            return {"centroids": summary.astype(self.dtype.as_numpy_dtype)}
        rows = np.empty((len(centroids), centroids.shape[1] + 1, self.hidden), self.dtype.as_numpy_dtype)
        rows[:, :-1], rows[:, -1] = centroids, summary
        rows[:, :-1][~there] = 0.0
        bias = np.log(np.maximum(counts, 1)) if self.size_bias else np.zeros(counts.shape)
        bias = np.pad(np.where(there, bias, NOTHING), ((0, 0), (0, 1)), constant_values=NOTHING)
        return {"centroids": rows.reshape(len(rows), -1), "centroid_bias": bias.astype(np.float32)}

    def of_user(self, vectors: tf.Tensor) -> dict[str, tf.Tensor]:
        """What candidates need of users `[U, m]`: `unit` and `query`, both `[U, hidden]`."""
        user = tf.convert_to_tensor(self._transform(vectors))
        squares = tf.reduce_sum(user * user, axis=1, keepdims=True)
        unit = tf.where(squares > ALMOST_ZERO, user * tf.math.rsqrt(tf.maximum(squares, ALMOST_ZERO)), 0.0)
        if not self.squash:
            return {"unit": unit}
        return {"unit": unit, "query": tf.matmul(user, self.kernel, transpose_b=True)}

    def __call__(self, user: Mapping[str, tf.Tensor], rows: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Similarity `[N]` in [-1, 1] of rows of `arrays` and of `of_user`, of one user or of N."""
        centroids = tf.cast(rows["centroids"], tf.float32)
        if not self.squash:
            return tf.clip_by_value(tf.reduce_sum(centroids * user["unit"], axis=1), -1.0, 1.0)
        bias = rows["centroid_bias"]
        seeds = tf.reshape(centroids, [-1, bias.shape[1], self.hidden])  # [N, k + 1, hidden]
        along, logits = tf.unstack(self._products(seeds, user))  # [N, k + 1] each
        if self.squash != "linear":
            logits = tf.tanh(logits)
        if self.squash == "tempered":
            logits = self.temperature * logits
        weights = tf.nn.softmax(logits + bias)  # [N, k + 1]
        local = tf.squeeze(tf.matmul(weights[:, tf.newaxis], seeds), 1)  # [N, hidden]
        squares = tf.reduce_sum(local * local, axis=1)
        dot = tf.reduce_sum(weights * along, axis=1)
        cosine = tf.where(squares > ALMOST_ZERO, dot * tf.math.rsqrt(tf.maximum(squares, ALMOST_ZERO)), 0.0)
        return tf.clip_by_value(self.share * along[:, -1] + (1 - self.share) * cosine, -1.0, 1.0)  # [N]

    def _products(self, seeds: tf.Tensor, user: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """`[2, N, k + 1]`: each entry's product with the `unit` and the `query` of the one user, or of its own."""
        if user["unit"].shape[0] != 1:
            both = tf.stack([user["unit"], user["query"]], axis=2)  # [N, hidden, 2]
            return tf.transpose(tf.matmul(seeds, both), [2, 0, 1])
        both = tf.concat([user["unit"], user["query"]], axis=0)  # [2, hidden]
        flat = tf.matmul(both, tf.reshape(seeds, [-1, self.hidden]), transpose_b=True)  # reads the entries once
        return tf.reshape(flat, [2, -1, seeds.shape[1]])
