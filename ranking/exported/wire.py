"""What each signature is asked with: names, types, shapes and limits, so that they hold on every server."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import tensorflow as tf

from ranking.data.schema import Schema
from ranking.errors import UserError
from ranking.exported.lookup import id_dtype

__all__ = ["MAX_CANDIDATES", "Specs", "Wire", "require", "user_inputs"]

MAX_CANDIDATES = 5000
_OWN = ("user_id", "item_id", "price", "segment", "top", "user_vector", "embedding_space_id")

Specs = dict[str, tf.TensorSpec]


def require(kept: tf.Tensor, *message: Any) -> tf.Operation:
    """An assertion of one op: TensorFlow's own puts two functions around it, which every load has to compile."""
    return tf.raw_ops.Assert(condition=kept, data=[tf.convert_to_tensor(part) for part in message], summarize=3)


def user_inputs(schema: Schema) -> dict[str, str]:
    """Arrays of a user, features and behaviours -> their names on the wire.

    They are those of the columns; where another input has the name, `user_<feature>` or `behavior_<field>`.
    """
    taken = {*_OWN, *(feature.name for feature in schema.side("context"))}
    found = {}
    for side, columns in (("user", schema.side("user")), ("behavior", schema.behaviors)):
        for column in columns:
            found[f"{side}_{column.name}"] = column.name if column.name not in taken else f"{side}_{column.name}"
        taken |= set(found.values())
    return found


class Wire:
    """Inputs of the signatures of one schema.

    Args:
        schema: Schema.
        item_ids: pandas.Index. For their type on the wire.
        priced: bool. Whether a request tells prices.

    Raises:
        UserError: a context feature and the segment are different columns of one name.
    """

    def __init__(self, schema: Schema, item_ids: pd.Index, *, priced: bool):
        _refuse_ambiguous_segment(schema)
        self.schema, self.priced, self.segmented = schema, priced, bool(schema.segment)
        self._item = id_dtype(item_ids)
        self._lists = {name for array, name in user_inputs(schema).items() if array.startswith("behavior_")}

    def request(self, rows: int | None = 1) -> Specs:
        """What every signature is asked with; what is told once a request has `rows` values."""
        specs = {"item_id": tf.TensorSpec([None], self._item, name="item_id")}
        for feature in self.schema.side("context"):
            dtype = tf.float32 if feature.kind == "numeric" else tf.string
            shape = [rows if feature.per == "request" else None]
            specs[feature.name] = tf.TensorSpec(shape, dtype, name=feature.name)
        if self.priced:
            specs["price"] = tf.TensorSpec([None], tf.float32, name="price")
        if self.segmented:
            specs["segment"] = tf.TensorSpec([rows], tf.string, name="segment")
        return specs

    def user(self, dtypes: Mapping[str, tf.DType]) -> Specs:
        """A user in his own words: a text or a number a feature, a list a behaviour. `dtypes` is by array name."""
        return {
            name: tf.TensorSpec([None if array.startswith("behavior_") else 1], dtypes[array], name=name)
            for array, name in user_inputs(self.schema).items()
        }

    def checked(self, inputs: Mapping[str, tf.Tensor], specs: Specs) -> dict[str, tf.Tensor]:
        """The inputs, once they have kept the limits; what may be told for each candidate has N values."""
        items = tf.size(inputs["item_id"])
        limits = [
            require(items <= MAX_CANDIDATES, f"item_id: at most {MAX_CANDIDATES} candidates; received", items),
            require(items > 0, "item_id: at least one candidate"),
        ]
        # The declared shape is a promise that nobody keeps for the client; and the graph is built on it.
        shaped = {name: tf.ensure_shape(values, specs[name].shape) for name, values in inputs.items()}
        of_rows = [name for name, spec in specs.items() if spec.shape.as_list() == [None] and name not in self._lists]
        for name in of_rows:
            rows = tf.size(shaped[name])
            one_or_all = tf.equal(rows, items) | tf.equal(rows, 1)
            limits.append(require(one_or_all, f"{name}: one value, or one a candidate; received", rows))
        for name, values in shaped.items():
            if values.dtype == tf.float32 and not name.startswith("weight_"):
                finite, rule = tf.math.is_finite(values), "should be finite"
                if name == "price":
                    finite, rule = (
                        finite & (values >= 0) | tf.math.is_nan(values),
                        f"{rule}, 0 or more, or NaN where missing",
                    )
                elif name != "user_vector":
                    finite, rule = finite | tf.math.is_nan(values), f"{rule}, or NaN where missing"
                limits.append(require(tf.reduce_all(finite), f"{name}: {rule}"))
        if "top" in shaped:
            limits.append(require(shaped["top"][0] > 0, "top: should be 1 or more; received", shaped["top"][0]))
        with tf.control_dependencies(limits):
            whole = {name: tf.broadcast_to(shaped[name], [items]) for name in of_rows}
            return {name: tf.identity(values) for name, values in (shaped | whole).items()}


def _refuse_ambiguous_segment(schema: Schema) -> None:
    """A context feature called `segment` and the segment are one input, so they have to be one column."""
    for feature in schema.side("context"):
        one_text = feature.kind != "numeric" and feature.per == "request" and schema.segment == feature.name
        if schema.segment and feature.name == "segment" and not one_text:
            raise UserError(
                "the context feature `segment` has the name that the segment has on the wire: [replay] `segment` "
                f"should be this column, one text a request. Received: {schema.segment!r}."
            )
