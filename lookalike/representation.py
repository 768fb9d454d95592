"""Users as vectors: a network that predicts the next item from profile and behaviour, and keeps what it learned."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from lookalike.attention import AttentionMerge

__all__ = ["CandidateLogits", "Field", "UserRepresentation", "build_next_item_model", "user_inputs"]

NUMERIC = "numeric"


@dataclass(frozen=True)
class Field:
    """One input of the user representation.

    Args:
        name: str. Key of its tensor in the feature dict.
        kind: str. `"categorical"`: int32 `[batch]`; `"multi"`: int32 `[batch, length]`, padded with 0; `"numeric"`:
            float32 `[batch]`, or `[batch, size]`, NaN where missing. Index 0 means missing.
        vocabulary: str. Fields that name the same vocabulary share one embedding table. Defaults to the field's name.
        size: int. Rows of the table, the rows of padding and unknown values included; of a numeric field its width,
            where 0 stands for a scalar. Defaults to `0`.

    Raises:
        ValueError: if the kind is unknown, the name is empty or taken by the product, or the size is impossible.
    """

    name: str
    kind: str
    vocabulary: str = ""
    size: int = 0

    def __post_init__(self) -> None:
        if not self.name or self.name in (NUMERIC, "candidates"):
            raise ValueError(f"`name` should not be empty, 'numeric' or 'candidates'. Received: name={self.name!r}.")
        if self.kind not in ("categorical", "multi", NUMERIC):
            raise ValueError(f"`kind` should be 'categorical', 'multi' or 'numeric'. Received: kind={self.kind!r}.")
        smallest = 0 if self.kind == NUMERIC else 2
        if self.size < smallest:
            raise ValueError(
                f"`size` of the {self.kind} field {self.name!r} should be at least {smallest}. "
                f"Received: size={self.size}."
            )

    @property
    def table(self) -> str:
        """Name of the embedding table it reads."""
        return self.vocabulary or self.name


@keras.saving.register_keras_serializable(package="lookalike")
class UserRepresentation(keras.layers.Layer):
    """Profile and behaviour fields -> the universal user embedding.

    Every field becomes a vector of `field_dim`: a categorical field by lookup, a multi-valued one by lookup and
    average, all numeric fields together by one dense layer. The fields are merged and pass an MLP; its last layer is
    the embedding. An empty field (index 0, no value but padding, all numbers NaN) has no part in the merge; a number
    missing among others counts as 0, the smallest. A user with nothing at all gets the embedding that the MLP makes of
    zeros: the same for all such users, and fitted to them.

    Args:
        fields: sequence of `Field`. What describes a user.
        dim: int. Width of the embedding. Defaults to `128`.
        field_dim: int. Width of a field. Defaults to `32`.
        hidden: sequence of ints. Hidden layers between merge and embedding, ReLU. Defaults to `(256,)`.
        merge: str. `"attention"`, which lets a weak field speak for a user who has no strong one, or `"concat"`: the
            YouTube DNN. Defaults to `"attention"`.
        dropout: float. Rate behind every hidden layer; without it the tables learn single users by heart. Defaults to
            `0.1`.
        activation: str. Of the hidden layers, `"relu"` as in the paper or `"prelu"`, which no unit dies of. Defaults
            to `"relu"`.

    Returns:
        float32 tensor `[batch, dim]`.

    Raises:
        ValueError: if an argument is out of its range, two fields share a name, or two fields of one vocabulary differ
            in size; when called, if a field is missing from the dict.

    Example:
        >>> layer = UserRepresentation([Field("user_age", "categorical", size=9)], dim=16)
        >>> layer({"user_age": keras.ops.array([3, 0])}).shape
        TensorShape([2, 16])

    Reference: Liu et al., KDD 2019, section 4.1.
    Departs from the paper: empty fields are masked; the last layer is linear, so that the embeddings use all
    directions and not one orthant.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        dim: int = 128,
        field_dim: int = 32,
        hidden: Sequence[int] = (256,),
        merge: Literal["attention", "concat"] = "attention",
        dropout: float = 0.1,
        activation: Literal["relu", "prelu"] = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fields = _checked_fields(fields)
        for name, value in (("dim", dim), ("field_dim", field_dim), *(("hidden", width) for width in hidden)):
            if value < 1:
                raise ValueError(f"`{name}` should be a positive integer. Received: {name}={value}.")
        if merge not in ("attention", "concat"):
            raise ValueError(f"`merge` should be 'attention' or 'concat'. Received: merge={merge!r}.")
        if activation not in ("relu", "prelu"):
            raise ValueError(f"`activation` should be 'relu' or 'prelu'. Received: activation={activation!r}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` should be in [0, 1). Received: dropout={dropout}.")
        self.dim, self.field_dim, self.hidden = dim, field_dim, tuple(hidden)
        self.merge, self.dropout, self.activation = merge, dropout, activation

        sizes = {field.table: field.size for field in self.fields if field.kind != NUMERIC}
        self.tables = {
            # Rows of norm about 1/2: large enough for the attention to see, small enough that a row that was hardly
            # ever trained does not shout.
            table: keras.layers.Embedding(
                size,
                field_dim,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1),
                name=f"{table}_table",
            )
            for table, size in sizes.items()
        }
        self.numeric = [field for field in self.fields if field.kind == NUMERIC]
        self.numeric_projection = keras.layers.Dense(field_dim, name="numeric_projection") if self.numeric else None
        self.attention_merge = AttentionMerge(name="attention_merge") if merge == "attention" else None
        self.dense_layers = [
            keras.layers.Dense(width, kernel_initializer="he_normal", name=f"hidden_{index}")
            for index, width in enumerate((*self.hidden, dim))
        ]
        self.activations = [
            keras.layers.PReLU(alpha_initializer=keras.initializers.Constant(0.25), name=f"activation_{index}")
            if activation == "prelu"
            else keras.layers.ReLU(name=f"activation_{index}")
            for index in range(len(self.hidden))
        ]
        self.dropouts = [keras.layers.Dropout(dropout, name=f"dropout_{index}") for index in range(len(self.hidden))]

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names along the field axis: the fields in their order, all numeric ones as one `"numeric"` at the end."""
        names = tuple(field.name for field in self.fields if field.kind != NUMERIC)
        return names + ((NUMERIC,) if self.numeric else ())

    def build(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> None:
        """Create the tables and layers."""
        for table in self.tables.values():
            table.build(None)
        if self.numeric_projection is not None:
            self.numeric_projection.build((None, sum(_width(field) for field in self.numeric)))
        width = self.field_dim
        if self.attention_merge is not None:
            self.attention_merge.build((None, len(self.field_names), self.field_dim))
        else:
            width *= len(self.field_names)
        for layer in self.dense_layers:
            layer.build((None, width))
            width = layer.units
        for layer, units in zip(self.activations, self.hidden, strict=True):
            layer.build((None, units))

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Embed the users of a feature dict."""
        fields, mask = self._stack(inputs)  # [batch, fields, field_dim], [batch, fields]
        if self.attention_merge is not None:
            outputs = self.attention_merge(fields, mask=mask)  # [batch, field_dim]
        else:
            present = fields * ops.expand_dims(ops.cast(mask, fields.dtype), -1)
            outputs = ops.reshape(present, (-1, len(self.field_names) * self.field_dim))
        for layer, activation, dropout in zip(self.dense_layers, self.activations, self.dropouts, strict=False):
            outputs = dropout(activation(layer(outputs)), training=training)
        return self.dense_layers[-1](outputs)  # [batch, dim]

    def field_attention(self, inputs: Mapping[str, Any]) -> Any:
        """How much each field speaks for each user: `[batch, fields]`, in the order of `field_names`; 0 = empty."""
        if self.attention_merge is None:
            raise ValueError(f"`field_attention` needs merge='attention'. Received: merge={self.merge!r}.")
        fields, mask = self._stack(inputs)
        return self.attention_merge.attention(fields, mask)

    def _stack(self, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        missing = [field.name for field in self.fields if field.name not in inputs]
        if missing:
            raise ValueError(f"`inputs` should hold every field. Missing: {missing}. Received: {sorted(inputs)}.")
        vectors, masks = [], []
        for field in self.fields:
            if field.kind == NUMERIC:
                continue
            index = ops.cast(inputs[field.name], "int32")
            rows = self.tables[field.table](index)
            known = ops.not_equal(index, 0)
            if field.kind == "multi":
                weights = ops.cast(known, rows.dtype)  # [batch, length]
                total = ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), rows), 1)  # [batch, field_dim]
                rows = total / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1)
                known = ops.any(known, axis=-1)
            vectors.append(rows)
            masks.append(known)
        if self.numeric_projection is not None:
            columns = [ops.reshape(ops.cast(inputs[f.name], "float32"), (-1, _width(f))) for f in self.numeric]
            numbers = ops.concatenate(columns, axis=-1)  # [batch, widths]
            given = ops.logical_not(ops.isnan(numbers))
            vectors.append(self.numeric_projection(ops.where(given, numbers, ops.zeros_like(numbers))))
            masks.append(ops.any(given, axis=-1))
        return ops.stack(vectors, axis=1), ops.stack(masks, axis=1)

    def compute_output_shape(self, input_shape: Mapping[str, tuple[int | None, ...]]) -> tuple[int | None, ...]:
        """Shape `[batch, dim]`."""
        return (input_shape[self.fields[0].name][0], self.dim)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "fields": [asdict(field) for field in self.fields],
            "dim": self.dim,
            "field_dim": self.field_dim,
            "hidden": list(self.hidden),
            "merge": self.merge,
            "dropout": self.dropout,
            "activation": self.activation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "UserRepresentation":
        """Rebuild from `get_config`."""
        return cls(**{**config, "fields": [Field(**field) for field in config["fields"]]})


@keras.saving.register_keras_serializable(package="lookalike")
class CandidateLogits(keras.layers.Layer):
    """Logit of each candidate item for each user: the dot product of user embedding and item embedding.

    The item embeddings exist to train the users' and are dropped afterwards.

    Args:
        num_items: int. Rows of the item table: the vocabulary's size, padding and unknown included. Row `r + 2` is the
            item of frequency rank `r`.
        correct_sampling: bool. Whether the logarithm of a candidate's chance to be drawn (`log_uniform_probabilities`)
            is subtracted: the softmax over the sample then estimates that over all items, where it would otherwise
            learn popular items down, because they are drawn so often. Defaults to `False`, as in the paper.
        remove_hits: bool. Whether a drawn candidate that is the positive itself is left out, where it would otherwise
            be learned up and down in one step. Defaults to `False`, as in the paper.

    Returns:
        float32 tensor `[batch, candidates]`.

    Raises:
        ValueError: if `num_items` leaves no item beside the two reserved rows.

    Reference: Liu et al., KDD 2019, equation 4; Jean et al., ACL 2015, section 3.2, for the correction.
    """

    def __init__(
        self, num_items: int, correct_sampling: bool = False, remove_hits: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_items < 3:
            raise ValueError(f"`num_items` should be at least 3. Received: num_items={num_items}.")
        self.num_items, self.correct_sampling, self.remove_hits = num_items, bool(correct_sampling), bool(remove_hits)

    def build(self, user_shape: tuple[int | None, ...], candidates_shape: tuple[int | None, ...]) -> None:
        """Create the item table."""
        self.item_table = keras.layers.Embedding(
            self.num_items,
            user_shape[-1],
            embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1),
            name="item_table",
        )
        self.item_table.build(None)

    def call(self, user: Any, candidates: Any) -> Any:
        """Score `candidates` `[batch, candidates]`, the positive in column 0, for `user` `[batch, dim]`."""
        items = self.item_table(candidates)  # [batch, candidates, dim]
        logits = ops.squeeze(ops.matmul(items, ops.expand_dims(user, -1)), -1)  # [batch, candidates]
        if self.correct_sampling:
            rank = ops.cast(ops.maximum(candidates - 2, 0), logits.dtype)
            chance = ops.log1p(1 / (rank + 1)) / float(np.log(self.num_items - 1.0))  # log(r + 2) - log(r + 1)
            logits = logits - ops.log(chance)
        if self.remove_hits:
            hit = ops.equal(candidates[:, 1:], candidates[:, :1])  # [batch, candidates - 1]
            others = ops.where(hit, ops.cast(-3e4, logits.dtype), logits[:, 1:])
            logits = ops.concatenate([logits[:, :1], others], axis=1)
        return logits

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            **super().get_config(),
            "num_items": self.num_items,
            "correct_sampling": self.correct_sampling,
            "remove_hits": self.remove_hits,
        }


def user_inputs(fields: Sequence[Field]) -> dict[str, Any]:
    """Symbolic inputs of a functional model over `fields`, by name."""
    shapes: dict[str, tuple[int | None, ...]] = {"categorical": (), "multi": (None,)}
    return {
        field.name: keras.Input(
            shape=shapes.get(field.kind, (field.size,) if field.size else ()),
            dtype="float32" if field.kind == NUMERIC else "int32",
            name=field.name,
        )
        for field in fields
    }


def build_next_item_model(
    representation: UserRepresentation,
    num_items: int,
    candidates: int = 11,
    correct_sampling: bool = False,
    remove_hits: bool = False,
    name: str = "next_item",
) -> keras.Model:
    """The task that teaches the representation: which of the candidates did the user click next?

    Compile it with `SparseCategoricalCrossentropy(from_logits=True)` and labels 0: the positive stands in column 0, the
    others are drawn by `sample_negatives`. The loss of a model that knows nothing is `log(candidates)`.

    Args:
        representation: `UserRepresentation`. Shared, not copied: it is trained in place.
        num_items: int. Rows of the item table, as in `CandidateLogits`.
        candidates: int. One positive and the negatives beside it. Defaults to `11`, 1:10.
        correct_sampling: bool. As in `CandidateLogits`. Defaults to `False`.
        remove_hits: bool. As in `CandidateLogits`. Defaults to `False`.
        name: str. Name of the model. Defaults to `"next_item"`.

    Returns:
        Functional model: the fields by name and `candidates` int32 `[batch, candidates]` -> logits float32
        `[batch, candidates]`.

    Raises:
        ValueError: if there are fewer than two candidates.

    Reference: Liu et al., KDD 2019, equations 4 and 5.
    """
    if candidates < 2:
        raise ValueError(f"`candidates` should be at least 2. Received: candidates={candidates}.")
    inputs = user_inputs(representation.fields)
    items = keras.Input(shape=(candidates,), dtype="int32", name="candidates")
    layer = CandidateLogits(num_items, correct_sampling, remove_hits, name="candidate_logits")
    return keras.Model({**inputs, "candidates": items}, layer(representation(inputs), items), name=name)


def _width(field: Field) -> int:
    return max(field.size, 1)


def _checked_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    if not fields:
        raise ValueError("`fields` should name at least one field. Received: fields=[].")
    names = [field.name for field in fields]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`fields` should have distinct names. Received twice: {twice}.")
    sizes: dict[str, int] = {}
    for field in fields:
        if field.kind != NUMERIC and sizes.setdefault(field.table, field.size) != field.size:
            raise ValueError(
                f"Fields of one vocabulary should have one size. Received: {field.table!r} with sizes "
                f"{sizes[field.table]} and {field.size}."
            )
    return tuple(fields)
