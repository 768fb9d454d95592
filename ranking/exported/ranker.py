"""The exported graph: look-ups and tables around the network, and the signatures that it answers."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ranking.exported.columns import BehaviorColumn, FeatureColumn
from ranking.exported.lookup import id_dtype, rows_of, search
from ranking.exported.network import SplitNetwork
from ranking.exported.tables import cross_columns, shapes, table_arrays
from ranking.exported.wire import Specs, Wire, require, user_inputs
from ranking.fusion_layer import ServedFusion
from ranking.run import Run
from ranking.statistics import combine

__all__ = ["ServedRanker", "space_id"]

Arrays = dict[str, tf.Tensor]


class ServedRanker(tf.Module):
    """A run as a graph; `tf.saved_model.save(served, folder, signatures=served.signatures())` exports it.

    Every signature refuses more than 5,000 candidates, numbers that are not finite (a context's and a user's may be
    NaN, which is missing) and prices that are negative; a missing price is NaN and becomes the item's own. Ids that are
    not in the tables get the features of nobody and are flagged.

    Args:
        run: Run. Its state at the watermark becomes the tables, each a variable of any number of rows, so that
            `ranking.republish` changes them without a new graph.
        users: bool. Whether the users are in the tables; without them a request brings its user along:
            `rank_features`, `rank_embedding`. Defaults to `True`.
        network: SplitNetwork of the run, or what has its interface; made where `None`. Defaults to `None`.
    """

    def __init__(self, run: Run, *, users: bool = True, network: Any = None):
        super().__init__()
        state, schema = run.state, run.schema
        self._wire = Wire(schema, state.item_ids, priced=bool(np.isfinite(state.prices).any()))
        self.network = SplitNetwork(run) if network is None else network
        self.fusion = ServedFusion(run.weights, segmented=bool(schema.segment))
        self._weights, self._users = run.weights, users
        self._user_dtype = id_dtype(state.user_ids)
        self._crosses = cross_columns(state)
        arrays = table_arrays(run, state, self.network, users=users)
        free = shapes(arrays, schema)
        tables: dict[str, dict[str, tf.Variable]] = {}
        for path, values in arrays.items():
            group, name = path.split("/", 1)
            tables.setdefault(group, {})[name] = tf.Variable(values, shape=free[path], trainable=False)
        self.tables = tables
        self.context = [FeatureColumn(feature, run.encoder) for feature in schema.side("context")]
        # A user in his own words is read twice: ESMM and the representation were fitted on different windows.
        self.user_columns = [FeatureColumn(feature, run.encoder) for feature in schema.side("user")]
        self.user_columns += [BehaviorColumn(behavior, run.encoder) for behavior in schema.behaviors]
        self.profile_columns = [FeatureColumn(feature, run.lookalike_encoder) for feature in schema.side("user")]
        self.profile_columns += [BehaviorColumn(behavior, run.lookalike_encoder) for behavior in schema.behaviors]
        self._user_names = user_inputs(schema)
        self.space = tf.Variable(space_id(run), trainable=False, dtype=tf.int64)

    def signatures(self) -> dict[str, Callable[..., Any]]:
        """Concrete functions by name, each with named inputs.

        | signature | its user |
        |---|---|
        | `rank`, `rank_top`, `rank_with_weights` | user_id `[1]` |
        | `serving_default` | user_id `[N]`: everything is a row's own |
        | `rank_features` | his columns and behaviours, raw |
        | `rank_embedding` | user_vector `[1, m]` of the embedding space |

        Weights of the rank form have no `serving_default`: its rows need not be of one request.
        """
        request = self._wire.request()
        dtypes = {column.array: column.dtype for column in self.user_columns}
        vector = self.tables["user"]["user_vector"].shape[1]
        embedding = {
            "user_vector": tf.TensorSpec([1, vector], tf.float32, name="user_vector"),
            "embedding_space_id": tf.TensorSpec([1], tf.int64, name="embedding_space_id"),
        }
        found = {
            "rank_features": self._signature(self._user_of_features, {**self._wire.user(dtypes), **request}),
            "rank_embedding": self._signature(self._user_of_vector, {**embedding, **request}),
        }
        if not self._users:
            return found

        def known(rows: int | None) -> Specs:
            user_id = tf.TensorSpec([rows], self._user_dtype, name="user_id")
            return {"user_id": user_id, **self._wire.request(rows)}

        top = {"top": tf.TensorSpec([1], tf.int32, name="top")}
        weights = {
            f"weight_{name}": tf.TensorSpec([1], tf.float32, name=f"weight_{name}") for name in self._weights.weights
        }
        found["rank"] = self._signature(self._user_of_id, known(1))
        found["rank_top"] = self._signature(self._user_of_id, {**known(1), **top})
        found["rank_with_weights"] = self._signature(self._user_of_id, {**known(1), **weights})
        if self._weights.form != "rank":
            found["serving_default"] = self._signature(self._user_of_id, known(None))
        return found

    def _signature(self, user_of: Callable[[Arrays], Arrays], specs: Specs) -> Callable[..., Any]:
        def call(**inputs: tf.Tensor) -> Arrays:
            inputs = self._wire.checked(inputs, specs)
            weights = self._checked_weights(inputs) if "weight_pctr" in specs else None
            found = self._score(user_of(inputs), inputs, weights)
            return _best(found, inputs) if "top" in specs else found

        return tf.function(call).get_concrete_function(**specs)

    def _checked_weights(self, inputs: Arrays) -> Arrays:
        weights, limits = {}, []
        for name in self._weights.weights:
            value = inputs[f"weight_{name}"][0]
            bounds = self.fusion.bounds(name)
            inside = tf.math.is_finite(value) & (value >= bounds[0]) & (value <= bounds[1])
            limits.append(require(inside, f"weight_{name} should be in", bounds, "received", value))
            weights[name] = value
        with tf.control_dependencies(limits):
            return {name: tf.identity(value) for name, value in weights.items()}

    def _user_of_id(self, inputs: Arrays) -> Arrays:
        """All that is known of users `[U, ...]`; `user_row` and `known_user` too."""
        tables = self.tables["user"]
        row, known = rows_of(inputs["user_id"], tables["keys"], tables["rows"])
        return self._user_row(row) | {"known_user": known}

    def _user_row(self, row: tf.Tensor) -> Arrays:
        tables = {name: table for name, table in self.tables["user"].items() if name not in ("keys", "rows")}
        return {name: table.sparse_read(row) for name, table in tables.items()} | {"user_row": row}

    def _nobody(self) -> Arrays:
        last = tf.ensure_shape(self.tables["user"]["rows"].read_value()[-1:], [1])  # one user, known when traced
        return self._user_row(last) | {"known_user": tf.constant([False])}

    def _user_of_features(self, inputs: Arrays) -> Arrays:
        """A user whom the model has not seen: nobody, but for his features and the vector that they make."""
        user = self._nobody()
        profile: Arrays = {}
        for column in self.user_columns:
            user |= column(inputs[self._user_names[column.array]])
        numbers = {}
        for column in self.profile_columns:
            raw = inputs[self._user_names[column.array]]
            profile |= column(raw)
            if raw.dtype == tf.float32:
                numbers[column.array] = raw
        if numbers:  # as `Encoder.profile`: of whom no number is known, a mean would be a claim
            none = tf.reduce_all(tf.math.is_nan(tf.stack(list(numbers.values()))), axis=0)  # [1]
            profile |= {name: tf.where(none, np.float32(np.nan), profile[name]) for name in numbers}
        vector = self.network.represent(profile)
        return user | {"user_vector": tf.ensure_shape(vector, [1, self.tables["user"]["user_vector"].shape[1]])}

    def _user_of_vector(self, inputs: Arrays) -> Arrays:
        """Nobody, but for his vector."""
        space = inputs["embedding_space_id"][0]
        rule = "embedding_space_id: the vector should be of the space of this model,"
        with tf.control_dependencies([require(tf.equal(space, self.space), rule, self.space, "; received", space)]):
            return self._nobody() | {"user_vector": tf.identity(inputs["user_vector"])}

    def _score(self, user: Arrays, inputs: Arrays, weights: Arrays | None) -> Arrays:
        tables = self.tables["item"]
        items = tf.size(inputs["item_id"])
        row, known_item = rows_of(inputs["item_id"], tables["keys"], tables["rows"])  # [N]
        item = {name: table.sparse_read(row) for name, table in tables.items() if name not in ("keys", "rows")}
        extra = {name: values for name, values in item.items() if name != "price"}
        for column in self.context:
            extra |= column(inputs[column.feature.name])
        known = {**user, **extra, "item_row": row}
        extra |= {name: self._cross(name, columns, known) for name, columns in self._crosses.items()}
        found = self.network(self.network.of_user(user), row, self.tables["network"], extra)
        found["price"] = item["price"]
        if "price" in inputs:
            found["price"] = tf.where(tf.math.is_nan(inputs["price"]), item["price"], inputs["price"])
        found["has_similarity"] = item["has_similarity"]
        parts = {name: found[name] for name in (*self._weights.weights, "has_similarity")}
        version = self.tables["version"]
        filled = {
            "has_similarity": item["has_similarity"] > 0,
            "known_user": user["known_user"],
            "known_item": known_item,
            "table_version": version["table_version"].read_value()[tf.newaxis],
            "seed_watermark": version["seed_watermark"].read_value()[tf.newaxis],
            "embedding_space_id": self.space.read_value()[tf.newaxis],
        }
        return {
            **{name: tf.identity(found[name]) for name in ("similarity", "pctr", "pcvr", "pctcvr")},
            "score": self.fusion.score(parts, weights, segment=inputs.get("segment")),
            **{name: tf.broadcast_to(values, [items]) for name, values in filled.items()},
        }

    def _cross(self, name: str, columns: tuple[str, ...], known: Arrays) -> tf.Tensor:
        """A statistic of several sides, `[1, 2]` or `[N, 2]`."""
        codes = self.tables["codes"][name].read_value()
        sizes = tf.unstack(self.tables["sizes"][name].read_value(), len(columns))
        code = combine([(tf.cast(known[c], tf.int64), size) for c, size in zip(columns, sizes, strict=True)])
        place, _ = search(codes, code)
        return self.tables["values"][name].sparse_read(place)


def _best(found: Arrays, inputs: Arrays) -> Arrays:
    """The best `top` candidates in order, of equal ones the first; with their ids."""
    count = tf.minimum(inputs["top"][0], tf.size(inputs["item_id"]))
    order = tf.math.top_k(found["score"], count).indices  # of equal ones the lower place first, as it promises
    return {name: tf.gather(values, order) for name, values in {"item_id": inputs["item_id"], **found}.items()}


def space_id(run: Run) -> int:
    """`embedding_space_id` of a run on the wire."""
    return int(hashlib.sha256(run.info["embedding_space"].encode()).hexdigest()[:15], 16)
