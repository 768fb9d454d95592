"""A request built from a model's metadata: the declared inputs, in the declared types."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.errors import ServingError

__all__ = ["HasToList", "Signature", "Tensor", "Values", "as_list", "declared_signature", "rank_inputs"]


class HasToList(Protocol):
    """An array or a column of numpy, pandas or the like."""

    def tolist(self) -> Any:
        """The values as a list."""


Values = Sequence[Any] | HasToList


@dataclass(frozen=True)
class Tensor:
    """A declared input or output: `dtype` as in `DT_INT64`; -1 in `shape` is any size, `None` any shape."""

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of one signature, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def declared_signature(metadata: Mapping[str, Any], name: str) -> Signature:
    """One signature of a metadata reply in the form of the REST API.

    Raises:
        ServingError: the model has no such signature.
    """
    declared = metadata["metadata"]["signature_def"]["signature_def"]
    if name not in declared:
        public = ", ".join(sorted(known for known in declared if not known.startswith("__")))
        raise ServingError(f"the model has no signature {name!r}. It has: {public}.")
    inputs, outputs = (
        {alias: _tensor(info) for alias, info in declared[name].get(side, {}).items()} for side in ("inputs", "outputs")
    )
    return Signature(inputs, outputs)


def _tensor(info: Mapping[str, Any]) -> Tensor:
    shape = info.get("tensor_shape", {})
    sizes = tuple(int(dimension["size"]) for dimension in shape.get("dim", []))
    return Tensor(info["dtype"], None if shape.get("unknown_rank") else sizes)


def as_list(values: Any) -> Any:
    """Arrays, tuples and single numbers of numpy as plain lists and values."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)):
        return values
    if {*map(type, values)} <= {int, float, str, bytes, bool}:  # thousands of candidates, at once
        return list(values)
    return [as_list(value) for value in values]


def rank_inputs(
    signature: Signature,
    user: Mapping[str, Any],
    item_ids: Values,
    *,
    context: Mapping[str, Any] | None = None,
    price: Values | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The inputs of a signature that ranks candidates for one user.

    Args:
        signature: Signature. As the server declares it; values are converted to its types and shapes.
        user: dict. What says whom for, by input name: `user_id`, features, or a vector.
        item_ids: sequence of int or str, or an array. The N candidates.
        context: dict. Column -> value, or N values where the column is declared by candidate.
        price: sequence of float. By candidate; NaN where there is none. Not given: NaN for all.
        weights: dict. Part -> weight, for the signature's `weight_<part>` inputs; a part left out weighs 0.

    Returns:
        Dict of lists and arrays, by input name.

    Raises:
        ServingError: an input that the signature does not have, one that is missing, or an id of the wrong type.
    """
    items: Any = item_ids if _is_numpy(item_ids) else as_list(item_ids)
    if not isinstance(items, list) and not getattr(items, "ndim", 0):
        raise ServingError(f"`item_ids` should be a list. Received: item_ids={item_ids!r}.")
    given: dict[str, Any] = {**user, "item_id": items, **(context or {})}
    if weights is not None:
        if not weights:
            raise ServingError("`weights` should give at least one part. Received: weights={}.")
        given.update({name: [0.0] for name in signature.inputs if name.startswith("weight_")})
        given.update({f"weight_{part}": [weight] for part, weight in weights.items()})
    if price is not None:
        given["price"] = price
    elif "price" in signature.inputs:
        given["price"] = [math.nan] * len(items)
    unknown = sorted(given.keys() - signature.inputs.keys())
    if unknown:
        raise ServingError(
            f"`{unknown[0]}` is not an input of the model. It has: {', '.join(sorted(signature.inputs))}."
        )
    missing = sorted(signature.inputs.keys() - given.keys())
    if missing:
        where = "`context`" if "user_id" in signature.inputs else "`features` or `context`"
        raise ServingError(f"{where} should give {missing[0]!r}: the model asks for it.")
    return {
        name: _column(name, given[name], tensor, 1 if name in user else len(items))
        for name, tensor in sorted(signature.inputs.items())
    }


def _is_numpy(values: Any) -> bool:
    return type(values).__module__ == "numpy" and hasattr(values, "dtype")


def _column(name: str, values: Any, tensor: Tensor, candidates: int) -> Any:
    rank = 1 if tensor.shape is None else len(tensor.shape)
    if _is_numpy(values) and values.ndim and values.dtype.kind in _KINDS.get(tensor.dtype, ""):
        return values.reshape((1,) * (rank - values.ndim) + values.shape)
    values = as_list(values)
    if not isinstance(values, list):
        values = [values] * (1 if rank != 1 or tensor.shape == (1,) else candidates)
    depth, inner = 1, values
    while inner and isinstance(inner[0], list):
        depth, inner = depth + 1, inner[0]
    for _ in range(rank - depth):  # one user's vector or list of values, declared [1, size]
        values = [values]
    return _converted(name, values, tensor.dtype)


# Numpy's kinds and Python's types that travel as they are.
_KINDS = {"DT_FLOAT": "iuf", "DT_DOUBLE": "iuf", "DT_BOOL": "b"} | dict.fromkeys(("DT_INT32", "DT_INT64"), "iu")
_TYPES: dict[str, set[type]] = {
    "DT_STRING": {str, bytes},
    "DT_FLOAT": {int, float},
    "DT_DOUBLE": {int, float},
    "DT_BOOL": {bool},
}


def _converted(name: str, values: list[Any], dtype: str) -> list[Any]:
    if {*map(type, values)} <= _TYPES.get(dtype, {int}):
        return values
    return [_converted(name, value, dtype) if isinstance(value, list) else _one(name, value, dtype) for value in values]


def _one(name: str, value: Any, dtype: str) -> Any:
    if dtype == "DT_STRING":
        return value if isinstance(value, bytes) else str(value)
    kind: type = {"DT_FLOAT": float, "DT_DOUBLE": float, "DT_BOOL": bool}.get(dtype, int)
    try:
        converted = kind(value)
        if kind is int and isinstance(value, float) and converted != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        wanted = dtype.removeprefix("DT_").lower()
        raise ServingError(f"`{name}` should be {wanted} values. Received: {value!r}.") from error
    return converted
