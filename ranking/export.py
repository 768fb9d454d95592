"""A run to a SavedModel: raw ids in, five outputs and what is known about them out."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from ranking.data.schema import Feature, Schema
from ranking.errors import UserError
from ranking.features import MISSING, OUT_OF_VOCABULARY, Vocabulary
from ranking.fingerprints import fingerprints
from ranking.fusion import FusionWeights
from ranking.fusion_layer import ServedFusion
from ranking.golden import FUSION, golden_requests, raw_ids, write_golden_scores
from ranking.run import Run, state_arrays
from ranking.state import State
from ranking.statistics import combine
from serving.publish import Content, publish, write_golden

__all__ = ["MAX_CANDIDATES", "ServedRanker", "export_run"]

MAX_CANDIDATES = 5000


class _Lookup(tf.Module):
    """Raw ids to row numbers, by binary search in sorted 64-bit keys; the row after the last is the unknown one's."""

    def __init__(self, ids: pd.Index, what: str):
        super().__init__()
        keys = fingerprints(tf.constant(raw_ids(ids))).numpy()
        self.order = np.argsort(keys, kind="stable")
        keys = keys[self.order]
        if len(keys) > 1 and (np.diff(keys) == 0).any():
            raise UserError(f"{what}: two ids have one 64-bit fingerprint; rename one of them.")
        self.dtype = tf.int64 if ids.dtype.kind == "i" else tf.string
        self.keys = tf.Variable(keys, trainable=False, name="keys")

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """int32 rows [n] of raw ids [n]."""
        size = tf.size(self.keys)
        keys = fingerprints(ids)
        place = tf.searchsorted(self.keys, keys)
        found = tf.equal(tf.gather(self.keys, tf.minimum(place, size - 1)), keys) & (place < size)
        return tf.where(found, place, size)

    def table(self, values: np.ndarray) -> tf.Variable:
        """A table whose rows follow the keys; its last row stays the last."""
        return tf.Variable(values[np.append(self.order, len(self.order))], trainable=False)


class _ContextColumn(tf.Module):
    """A context column from the wire to its arrays, as `Encoder.arrays` does it."""

    def __init__(self, feature: Feature, run: Run):
        super().__init__()
        self.feature = feature
        self.array = f"context_{feature.name}"
        if feature.kind == "numeric":
            self.low, self.high, self.mean = run.encoder.ranges[self.array]
        else:
            vocabulary = run.encoder.vocabularies[self.array]
            self.lookup = _Lookup(vocabulary.values, f"context {feature.name}")
            self.index = self.lookup.table(_indices(vocabulary))

    @property
    def spec(self) -> tf.TypeSpec:
        dtype = tf.float32 if self.feature.kind == "numeric" else tf.string
        return tf.TensorSpec([1 if self.feature.per == "request" else None], dtype, name=self.feature.name)

    def __call__(self, values: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.feature.kind == "numeric":
            wide = tf.cast(values, tf.float64)
            if self.feature.transform == "log1p":
                wide = tf.math.log1p(tf.maximum(wide, 0.0))
            span = self.high - self.low if self.high > self.low else 1.0
            scaled = (tf.clip_by_value(wide, self.low, self.high) - self.low) / span
            mean = tf.constant(self.mean, tf.float64)
            return {self.array: tf.cast(tf.where(tf.math.is_nan(wide), mean, scaled), tf.float32)}
        if self.feature.kind == "categorical":
            return {self.array: self._indices(values)}
        split = tf.strings.split(values, self.feature.separator)
        if not self.feature.weights:
            return {self.array: self._indices(split.to_tensor("", shape=[None, self.feature.keep]))}
        sign = re.escape(self.feature.weights)
        text = tf.where(tf.equal(split.flat_values, ""), f"{self.feature.weights}0", split.flat_values)
        weight = tf.strings.to_number(tf.strings.regex_replace(text, f"(?s)^.*{sign}", ""))
        value = tf.strings.regex_replace(text, f"(?s)^(.*){sign}.*$", r"\1")
        dense = split.with_flat_values(weight).to_tensor(-1.0)  # [n, L]; padding last
        heaviest = tf.argsort(-dense, axis=1, stable=True)[:, : self.feature.keep]
        dense = tf.gather(dense, heaviest, batch_dims=1)
        found = self._indices(tf.gather(split.with_flat_values(value).to_tensor(""), heaviest, batch_dims=1))
        return {self.array: found, f"{self.array}_weight": tf.where(tf.equal(found, MISSING), 0.0, dense)}

    def _indices(self, texts: tf.Tensor) -> tf.Tensor:
        found = tf.gather(self.index, tf.reshape(self.lookup(tf.reshape(texts, [-1])), tf.shape(texts)))
        return tf.where(tf.equal(texts, ""), MISSING, found)


def _indices(vocabulary: Vocabulary) -> np.ndarray:
    return np.append(np.arange(len(vocabulary.values), dtype=np.int32) + 2, np.int32(OUT_OF_VOCABULARY))


class ServedRanker(tf.Module):
    """The exported graph: tables and look-ups around the ranker.

    Args:
        run: Run. Its state at the watermark becomes the tables.

    Every signature refuses more than 5,000 candidates and prices that are negative or infinite; a missing price is
    NaN and becomes the item's own. Ids that are not in the tables get the features of nobody and are flagged.
    """

    def __init__(self, run: Run):
        super().__init__()
        state, schema = run.state, run.schema
        _refuse_ambiguous_segment(schema)
        ranker = run.ranker()
        # Its variables, not the model: tracked itself, it would bring the optimizer's slots into every version.
        self.parameters = [variable.value for variable in ranker.variables]
        self.ranker = lambda arrays: ranker({tensor.name: arrays[tensor.name] for tensor in ranker.inputs})
        self.fusion = ServedFusion(run.weights, segmented=bool(schema.segment))
        self.weights = run.weights
        self.segmented = bool(schema.segment)
        self.similarity_mean = run.scales.similarity[0]
        self.user_lookup = _Lookup(state.user_ids, "user ids")
        self.item_lookup = _Lookup(state.item_ids, "item ids")
        users = {name: self.user_lookup.table(values) for name, values in state.users.items()}
        items = {name: self.item_lookup.table(values) for name, values in state.items.items()}
        users["user_vector"] = self.user_lookup.table(state.user_vectors)
        count_mean, count_sd = run.scales.log_seed_count
        mask = state.centroid_counts > 0
        items |= {
            "centroids": self.item_lookup.table(state.centroids),
            "centroid_counts": self.item_lookup.table(state.centroid_counts.astype(np.float32)),
            "has_similarity": self.item_lookup.table(np.asarray(mask.any(axis=1), np.float32)),
            "log_seed_count": self.item_lookup.table(
                np.asarray((np.log1p(state.seed_counts).astype(np.float32) - count_mean) / count_sd, np.float32)
            ),
            "price": self.item_lookup.table(state.prices),
        }
        crosses: dict[str, tuple[tf.Variable, tf.Variable, tuple[tuple[str, int], ...]]] = {}
        for name, table in state.statistics.items():
            mean, sd = run.scales.statistics[f"statistic_{name}"]
            values = ((table.values - mean) / sd).astype(np.float32)
            if table.side == "cross":
                codes = tf.Variable(table.codes, trainable=False)
                crosses[f"statistic_{name}"] = (codes, tf.Variable(values, trainable=False), table.columns)
            elif table.side == "user":
                users[f"statistic_{name}"] = self.user_lookup.table(values)
            else:
                items[f"statistic_{name}"] = self.item_lookup.table(values)
        # A cross code is made of row numbers as the state counts them, not in the order of the keys.
        users["user_row"] = self.user_lookup.table(np.arange(len(state.user_ids) + 1, dtype=np.int64))
        items["item_row"] = self.item_lookup.table(np.arange(len(state.item_ids) + 1, dtype=np.int64))
        self.users, self.items, self.crosses = users, items, crosses  # whole: a tracked dict may not grow by |=
        self.context = [_ContextColumn(feature, run) for feature in schema.side("context")]
        self.has_price = bool(np.isfinite(state.prices).any())
        self.version = tf.Variable(_int64_hash(_tables_hash(state)), trainable=False, dtype=tf.int64)
        self.watermark = tf.Variable(state.tick, trainable=False, dtype=tf.int64)
        self.space = tf.Variable(_int64_hash(run.info["embedding_space"]), trainable=False, dtype=tf.int64)

    def _score(self, inputs: dict[str, tf.Tensor], weights: dict[str, tf.Tensor] | None) -> dict[str, tf.Tensor]:
        items = tf.size(inputs["item_id"])
        limits = [
            tf.debugging.assert_less_equal(items, MAX_CANDIDATES, f"item_id: at most {MAX_CANDIDATES} candidates"),
            tf.debugging.assert_greater(items, 0, "item_id: at least one candidate"),
        ]
        for name, values in inputs.items():
            rows = tf.size(values)
            one_or_all = tf.equal(rows, items) | tf.equal(rows, 1)
            limits.append(tf.debugging.Assert(one_or_all, [f"{name}: one value, or one a candidate; received", rows]))
        if self.has_price:
            price = inputs["price"]
            fine = tf.reduce_all(tf.math.is_nan(price) | ((price >= 0) & tf.math.is_finite(price)))
            limits.append(tf.debugging.Assert(fine, ["price: should be finite, 0 or more, or NaN where missing"]))
        with tf.control_dependencies(limits):
            user, item = self.user_lookup(inputs["user_id"]), self.item_lookup(inputs["item_id"])

        def whole(values: tf.Tensor) -> tf.Tensor:
            rank_one = tf.concat([[items], tf.ones([values.shape.rank - 1], tf.int32)], axis=0)
            return tf.cond(tf.equal(tf.shape(values)[0], items), lambda: values, lambda: tf.tile(values, rank_one))

        arrays = {name: whole(tf.gather(table, user)) for name, table in self.users.items()}
        arrays |= {name: tf.gather(table, item) for name, table in self.items.items()}
        for column in self.context:
            arrays |= {name: whole(values) for name, values in column(inputs[column.feature.name]).items()}
        for name, (codes, values, columns) in self.crosses.items():
            code = combine([(tf.cast(arrays[column], tf.int64), size) for column, size in columns])
            size = tf.size(codes)
            place = tf.searchsorted(codes, code)
            padded = tf.concat([codes, tf.constant([-1], codes.dtype)], axis=0)
            found = tf.equal(tf.gather(padded, place), code)
            arrays[name] = tf.gather(values, tf.where(found, place, size))
        if self.has_price:
            arrays["price"] = tf.where(tf.math.is_nan(inputs["price"]), arrays["price"], inputs["price"])
        found = self.ranker(arrays)  # its own score, of constants, is never fetched and so never computed
        parts = {name: {**arrays, **found}[name] for name in (*self.weights.weights, "has_similarity")}
        found["score"] = self.fusion.score(parts, weights, segment=inputs.get("segment") if self.segmented else None)
        known = {
            "has_similarity": arrays["has_similarity"] > 0,
            "known_user": whole(user < tf.size(self.user_lookup.keys)),
            "known_item": item < tf.size(self.item_lookup.keys),
        }
        constants = {
            "table_version": self.version,
            "seed_watermark": self.watermark,
            "embedding_space_id": self.space,
        }
        filled = {name: tf.fill([items], value.read_value()) for name, value in constants.items()}
        return {**{name: tf.identity(value) for name, value in found.items()}, **known, **filled}

    def _specs(self, user_rows: int | None) -> dict[str, tf.TypeSpec]:
        specs = {
            "user_id": tf.TensorSpec([user_rows], self.user_lookup.dtype, name="user_id"),
            "item_id": tf.TensorSpec([None], self.item_lookup.dtype, name="item_id"),
            **{
                column.feature.name: column.spec if user_rows else tf.TensorSpec([None], column.spec.dtype)
                for column in self.context
            },
        }
        if self.has_price:
            specs["price"] = tf.TensorSpec([None], tf.float32, name="price")
        if self.segmented:
            specs["segment"] = tf.TensorSpec([user_rows], tf.string, name="segment")
        return specs

    def _weight_specs(self) -> dict[str, tf.TypeSpec]:
        return {name: tf.TensorSpec([1], tf.float32, name=f"weight_{name}") for name in self.weights.weights}

    def signatures(self) -> dict[str, Callable[..., Any]]:
        """`rank`, `rank_with_weights` and `serving_default` as concrete functions with named inputs.

        Weights of the rank form have no `serving_default`: its rows need not be of one request.
        """
        weight_specs = self._weight_specs()

        def weighted(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            weights, limits = {}, []
            for name in weight_specs:
                value = inputs.pop(f"weight_{name}")[0]
                bounds = self.fusion.bounds(name)
                inside = tf.math.is_finite(value) & (value >= bounds[0]) & (value <= bounds[1])
                limits.append(tf.debugging.Assert(inside, [f"weight_{name} should be in", bounds, "received", value]))
                weights[name] = value
            with tf.control_dependencies(limits):
                return self._score(inputs, {name: tf.identity(value) for name, value in weights.items()})

        def plain(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return self._score(inputs, None)

        one, many = self._specs(1), self._specs(None)
        with_weights = {**one, **{f"weight_{name}": spec for name, spec in weight_specs.items()}}
        signatures = {
            "rank": tf.function(plain).get_concrete_function(**one),
            "rank_with_weights": tf.function(weighted).get_concrete_function(**with_weights),
        }
        if self.weights.form != "rank":
            signatures["serving_default"] = tf.function(plain).get_concrete_function(**many)
        return signatures


def _refuse_ambiguous_segment(schema: Schema) -> None:
    """A context feature called `segment` and the segment are one input, so they have to be one column."""
    for feature in schema.side("context"):
        one_text = feature.kind != "numeric" and feature.per == "request" and schema.segment == feature.name
        if schema.segment and feature.name == "segment" and not one_text:
            raise UserError(
                "the context feature `segment` has the name that the segment has on the wire: [replay] `segment` "
                f"should be this column, one text a request. Received: {schema.segment!r}."
            )


def _int64_hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)  # 60 bits: never negative


def _tables_hash(state: State) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(state_arrays(state).items()):
        array = np.ascontiguousarray(values)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def export_run(run: Run, models: str | Path, *, name: str = "seedrank", weights: FusionWeights | None = None) -> Path:
    """Publishes a run as a new version under `models/name`.

    Args:
        run: Run.
        models: str or Path. The folder that holds a folder a model, each with numbered versions.
        name: str. The model's name. Defaults to `"seedrank"`.
        weights: FusionWeights or `None`. Served instead of the run's own; load them with the run's
            `parameters_hash`, so that those of other parameters are refused.

    Returns:
        The folder of the version.
    """
    if weights is not None:
        run = dataclasses.replace(run, weights=weights)
    base = Path(models) / name

    def build(folder: Path, _: Path | None) -> Content:
        served = ServedRanker(run)
        tf.saved_model.save(served, str(folder), signatures=served.signatures())
        write_golden(folder, golden_requests(run))
        write_golden_scores(folder, run.weights)
        run.weights.save(folder / FUSION)
        hashes = {
            "parameters": run.info["parameters_hash"],
            "weights": run.weights.hash,
            "tables": _tables_hash(run.state),
        }
        return Content(hashes)

    return base / str(publish(base, build))
