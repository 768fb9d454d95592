"""The ranker as it is served: each part computed once for as long as its inputs stay the same."""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import tensorflow as tf

from esmm.calibration import IDENTITY, MonotoneCalibration
from esmm.model import funnel_outputs
from esmm.split import InputShare, SplitTowers
from ranking.exported.similarity import SplitSimilarity
from ranking.run import Run
from ranking.state import State, in_batches

__all__ = ["SHARE_BYTES", "SplitNetwork"]

PIECE = 500  # candidates: more leave the second-level cache, and with fewer the number of operations begins to tell
SHARE_BYTES = 1 << 28  # of the items' share of the first layers; beyond it, it is made from gathered rows per request


class SplitNetwork(tf.Module):
    """`Run.ranker()` split by what its inputs depend on: the same four outputs, within 1e-5.

    ESMM's first layers are a sum over blocks of inputs (`esmm.SplitTowers`), and so are made block by block:

        user        features, behaviours, own statistics          once a request
        context     columns declared per request                  once a request
        item        id and features                               at export, as a table, up to SHARE_BYTES
        candidate   statistics, similarity, other context         for every candidate

    Candidates are taken in pieces whose rows and activations stay in a core's cache: a quarter less time at 5,000.

    Args:
        run: Run. Its parameters become variables; its state gives names and sizes only.
        centroid_dtype: str. Of the table of centroids, `"float32"` or `"bfloat16"`: half the bytes, for an error of the
            similarity below 1e-3. Defaults to `"float32"`.
    """

    def __init__(self, run: Run, *, centroid_dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        self.similarity = SplitSimilarity(run.lookalike, dtype=centroid_dtype)
        self._mean, self._sd = run.scales.similarity
        self.towers = SplitTowers(run.models["seedrank"][0].get_layer("shared_towers"))
        blocks = _blocks(run)
        item = self.towers.share(blocks.pop("item"))
        self.shares = {name: self.towers.share(names) for name, names in blocks.items() if names}
        self._item_names = [name for feature in item.features for name in (feature.name, feature.weights) if name]
        self._item_share = item.__call__
        self._precomputed = (len(run.state.item_ids) + 1) * sum(self.towers.sizes) * 4 <= SHARE_BYTES
        if not self._precomputed:
            self.item_share = item  # saved only where requests need it: it holds every item's embedding
        calibration = run.calibrations["seedrank"][0]
        self._maps = [
            (lambda logit: logit) if map_ == IDENTITY else MonotoneCalibration(map_.knots, map_.values)
            for map_ in (calibration.click, calibration.conversion)
        ]
        representation = run.representation
        self.representation = [variable.value for variable in representation.variables]
        self._represent = lambda user: representation(
            {tensor.name: user[tensor.name] for tensor in representation.inputs}
        )

    def item_arrays(self, state: State) -> dict[str, np.ndarray]:
        """The items' tables, `[items + 1, ...]` in the order of the state, the unknown item last.

        Args:
            state: State. Of the run's models and vocabularies.

        Returns:
            `centroids` and `centroid_bias`, see `SplitSimilarity`; and `first_<n>`, the static features' share of each
            first layer, or, where it were larger than SHARE_BYTES for the items of the run, the features themselves.
        """
        arrays = self.similarity.arrays(state.centroids, state.centroid_counts)
        features = {name: state.items[name] for name in self._item_names}
        if not self._precomputed:
            return arrays | features
        first = np.split(in_batches(self._item_share, features), np.cumsum(self.towers.sizes)[:-1], axis=1)
        return arrays | {f"first_{number}": np.ascontiguousarray(values) for number, values in enumerate(first)}

    def user_arrays(self, state: State) -> dict[str, np.ndarray]:
        """The users' tables, `[users + 1, ...]`, the unknown user last: `user_vector`."""
        return {"user_vector": state.user_vectors}

    def represent(self, user: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """User vectors `[U, m]` of the encoded inputs of the user representation, `[U, ...]` each."""
        return self._represent(user)

    def of_user(self, user: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What candidates need of their user: to be computed once.

        Args:
            user: dict of tensors `[U, ...]`: the encoded features, behaviours, the users' own statistics (scaled), and
                `user_vector` `[U, m]`. U is 1, known when traced, or the number of candidates.

        Returns:
            dict of tensors `[U, ...]`, for `__call__`.
        """
        return self.similarity.of_user(user["user_vector"]) | {"first": self.shares["user"](user) + self.towers.bias}

    def __call__(
        self,
        user: Mapping[str, tf.Tensor],
        rows: tf.Tensor,
        tables: Mapping[str, tf.Variable],
        extra: Mapping[str, tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """The network's outputs for N candidates.

        Args:
            user: dict of tensors `[U, ...]`, of `of_user`.
            rows: int32 `[N]`. The candidates' rows of the tables.
            tables: dict of variables, of `item_arrays`.
            extra: dict of tensors, `[1, ...]` known when traced or `[N, ...]`: encoded context, the items' and cross
                statistics (scaled), `has_similarity`, `log_seed_count` (scaled).

        Returns:
            `similarity`, `pctr`, `pcvr`, `pctcvr`: float32 `[N]`. A similarity is the frozen mean where an item has
            none.
        """
        sizes, tasks, has = self.towers.sizes, self.towers.tasks, extra["has_similarity"]
        base = user["first"]  # [1 or N, columns]
        if "context" in self.shares:
            base += self.shares["context"](_of_one_length(self.shares["context"], extra))
        bases = tf.split(base, sizes, axis=1)
        of_candidate = self.shares["candidate"]
        numbers = of_candidate.vector(_of_one_length(of_candidate, extra))  # [N, inputs of a candidate]
        kernel = tf.concat([of_candidate.kernel, self.shares["similarity"].kernel], axis=0)
        kernels = tf.split(kernel, sizes, axis=1)

        def piece(start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
            own = {name: _part(values, start, end) for name, values in user.items()}
            item = {name: tf.gather(table, rows[start:end]) for name, table in tables.items()}
            similarity = self.similarity(own, item)  # [n]
            scaled = has[start:end] * (similarity - self._mean) / self._sd
            inputs = tf.concat([numbers[start:end], scaled[:, tf.newaxis]], axis=1)
            if self._precomputed:
                static = [item[f"first_{number}"] for number in range(len(sizes))]
            else:
                static = tf.split(self._item_share(item), sizes, axis=1)
            first = [
                _plus(tf.matmul(inputs, k), _part(b, start, end)) + share
                for k, b, share in zip(kernels, bases, static, strict=True)
            ]
            return tf.concat([similarity[:, tf.newaxis], self.towers.logits(first)], axis=1)  # [n, 1 + tasks]

        similarity, *logits = tf.unstack(_in_pieces(piece, tf.size(rows), 1 + tasks), axis=1)
        found = funnel_outputs(*(map_(logit) for map_, logit in zip(self._maps, logits, strict=True)))
        shown = tf.where(has > 0, similarity, self._mean)
        return {"similarity": shown, **{name: found[name] for name in ("pctr", "pcvr", "pctcvr")}}


def _in_pieces(piece: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], n: tf.Tensor, width: int) -> tf.Tensor:
    """`[n, width]` of a function of places (start, end), called on pieces of at most PIECE rows, one after another."""
    count = tf.maximum((n + PIECE - 1) // PIECE, 1)
    step = (n + count - 1) // count

    def body(number: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        values = piece(number * step, tf.minimum((number + 1) * step, n))
        return number + 1, found.write(number, values)

    # Two at a time would evict each other's rows; over the cores go requests, and the operations within a piece.
    pieces = tf.TensorArray(tf.float32, count, element_shape=[None, width], infer_shape=False)
    _, pieces = tf.while_loop(lambda number, _: number < count, body, [0, pieces], parallel_iterations=1)
    return tf.ensure_shape(pieces.concat(), [None, width])


def _part(values: tf.Tensor, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """The rows of a piece; of what is one a request, all of it."""
    return values if values.shape[0] == 1 else values[start:end]


def _plus(values: tf.Tensor, base: tf.Tensor) -> tf.Tensor:
    """Their sum; of one row's base in the form that the runtime fuses with the product before it."""
    return tf.nn.bias_add(values, base[0]) if base.shape[0] == 1 else values + base


def _blocks(run: Run) -> dict[str, list[str]]:
    """The features of ESMM by what they depend on."""
    per_request = {f"context_{feature.name}" for feature in run.schema.side("context") if feature.per == "request"}
    blocks: dict[str, list[str]] = {"user": [], "context": [], "item": [], "candidate": [], "similarity": []}
    for feature in run.features():
        name = feature.name
        table = run.state.statistics.get(name.removeprefix("statistic_")) if name.startswith("statistic_") else None
        if table is not None:
            of_request = all(column.startswith("user_") or column in per_request for column, _ in table.columns)
            cross = "context" if of_request else "candidate"
            blocks[{"user": "user", "item": "candidate", "cross": cross}[table.side]].append(name)
        elif name == "similarity":
            blocks[name].append(name)  # apart: it is known only where the others are already side by side
        elif name.startswith(("user_", "behavior_")):
            blocks["user"].append(name)
        elif name.startswith("item_"):
            blocks["item"].append(name)
        else:
            blocks["context" if name in per_request else "candidate"].append(name)
    return blocks


def _of_one_length(share: InputShare, arrays: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A block's arrays; those of one row are repeated where others have more."""
    names = [name for feature in share.features for name in (feature.name, feature.weights) if name]
    wanted = {name: tf.convert_to_tensor(arrays[name]) for name in names}
    longer = [values for values in wanted.values() if values.shape[0] != 1]
    if not longer:
        return wanted
    n = tf.shape(longer[0])[:1]
    return {
        name: values if values.shape[0] != 1 else tf.broadcast_to(values, tf.concat([n, tf.shape(values)[1:]], 0))
        for name, values in wanted.items()
    }
