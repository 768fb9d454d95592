"""The ranker as it is served: each part computed once for as long as its inputs stay the same."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import tensorflow as tf

from esmm.calibration import IDENTITY, MonotoneCalibration
from esmm.model import funnel_outputs
from esmm.split import SplitTowers
from ranking.exported.similarity import SplitSimilarity
from ranking.run import Run
from ranking.state import State, in_batches

__all__ = ["SHARE_BYTES", "SplitNetwork"]

SHARE_BYTES = 1 << 28  # of the items' share of the first layers; beyond it, it is made from gathered rows per request


class SplitNetwork(tf.Module):
    """`Run.ranker()` split by what its inputs depend on: the same four outputs, within 1e-5.

    ESMM's first layers are a sum over input blocks (`esmm.SplitTowers`), and so are made block by block:

        user        features, behaviours, own statistics          once a request
        context     columns declared per request                  once a request
        item        id and features                               at export, as a table, up to SHARE_BYTES
        candidate   statistics, similarity, other context         for every candidate

    Args:
        run: Run. Its parameters become variables; its state gives names and sizes only.
        centroid_dtype: str. Of the table of centroids, `"float32"` or `"bfloat16"`. Defaults to `"float32"`.
    """

    def __init__(self, run: Run, *, centroid_dtype: Literal["float32", "bfloat16"] = "float32") -> None:
        super().__init__()
        self.similarity = SplitSimilarity(run.lookalike, dtype=centroid_dtype)
        self.similarity_mean, self.similarity_sd = run.scales.similarity
        model = run.models["seedrank"][0]
        self.towers = SplitTowers(model.get_layer("shared_towers"))
        blocks = _blocks(run)
        shares = {name: self.towers.share(names) for name, names in blocks.items() if names and name != "item"}
        self.shares = shares
        item = self.towers.share(blocks["item"])
        self._item_names = [name for f in item.features for name in (f.name, f.weights) if name]
        # Tracked only where requests need it: its table holds every item's embedding.
        self._item_share = item.__call__
        self.item_precomputed = (len(run.state.item_ids) + 1) * sum(self.towers.sizes) * 4 <= SHARE_BYTES
        if not self.item_precomputed:
            self.item_share = item
        calibration = run.calibrations["seedrank"][0]
        self._maps = [
            (lambda logit: logit) if map_ == IDENTITY else MonotoneCalibration(map_.knots, map_.values)
            for map_ in (calibration.click, calibration.conversion)
        ]
        self._represent = run.representation
        self.representation = [variable.value for variable in run.representation.variables]

    def item_arrays(self, state: State) -> dict[str, np.ndarray]:
        """The items' tables, `[items + 1, ...]` in the order of the state, the unknown item last.

        Args:
            state: State. Of the run's models and vocabularies.

        Returns:
            `centroids`, `centroid_bias` (see `SplitSimilarity`), and `first` [items + 1, columns], the static features'
            share of the first layers; where it were larger than SHARE_BYTES for the items of the run, the features
            themselves.
        """
        arrays = self.similarity.arrays(state.centroids, state.centroid_counts)
        features = {name: state.items[name] for name in self._item_names}
        if not self.item_precomputed:
            return arrays | features
        return arrays | {"first": in_batches(self._item_share, features, 4096)}

    def user_arrays(self, state: State) -> dict[str, np.ndarray]:
        """The users' tables, `[users + 1, ...]`, the unknown user last: `user_vector`."""
        return {"user_vector": state.user_vectors}

    def represent(self, user: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """User vectors `[U, m]` of the encoded inputs of the user representation, `[U, ...]` each."""
        return self._represent({tensor.name: user[tensor.name] for tensor in self._represent.inputs})

    def of_user(self, user: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What candidates need of their user: to be computed once.

        Args:
            user: dict of tensors `[U, ...]`: the encoded features, behaviours, the users' own statistics (scaled), and
                `user_vector` `[U, m]`. U is 1, known when traced, or the number of candidates.

        Returns:
            dict of tensors `[U, ...]`, for `__call__`.
        """
        made = self.similarity.of_user(user["user_vector"])
        return made | {"first": self.shares["user"](user) + self.towers.bias}

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
        item = {name: tf.gather(tables[name], rows) for name in tables}
        has = extra["has_similarity"]
        similarity = self.similarity(user, item)
        scaled = has * (similarity - self.similarity_mean) / self.similarity_sd
        arrays = {**extra, "similarity": scaled}
        first = user["first"] + (item["first"] if self.item_precomputed else self._item_share(item))
        for name in ("context", "candidate"):
            if name in self.shares:
                first += self.shares[name](_one_length(self.shares[name].features, arrays))
        logits = tf.unstack(self.towers.logits(tf.split(first, self.towers.sizes, axis=1)), axis=1)
        found = funnel_outputs(*(map_(logit) for map_, logit in zip(self._maps, logits, strict=True)))
        shown = tf.where(has > 0, similarity, self.similarity_mean)
        return {"similarity": shown, **{name: found[name] for name in ("pctr", "pcvr", "pctcvr")}}


def _blocks(run: Run) -> dict[str, list[str]]:
    """The features of ESMM by what they depend on."""
    per_request = {f"context_{feature.name}" for feature in run.schema.side("context") if feature.per == "request"}
    blocks: dict[str, list[str]] = {"user": [], "context": [], "item": [], "candidate": []}
    for feature in run.features():
        name = feature.name
        table = run.state.statistics.get(name.removeprefix("statistic_")) if name.startswith("statistic_") else None
        if table is not None:
            of_request = all(column.startswith("user_") or column in per_request for column, _ in table.columns)
            cross = "context" if of_request else "candidate"
            blocks[{"user": "user", "item": "candidate", "cross": cross}[table.side]].append(name)
        elif name.startswith(("user_", "behavior_")):
            blocks["user"].append(name)
        elif name.startswith("item_"):
            blocks["item"].append(name)
        else:
            blocks["context" if name in per_request else "candidate"].append(name)
    return blocks


def _one_length(features: list, arrays: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A block's arrays, those of one row repeated where others have more."""
    wanted = {name: tf.convert_to_tensor(arrays[name]) for f in features for name in (f.name, f.weights) if name}
    many = [values for values in wanted.values() if values.shape[0] != 1]
    if not many:
        return wanted
    n = tf.shape(many[0])[:1]
    return {
        name: values if values.shape[0] != 1 else tf.broadcast_to(values, tf.concat([n, tf.shape(values)[1:]], 0))
        for name, values in wanted.items()
    }
