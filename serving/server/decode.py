"""A :predict body -> signature name, layout and arrays, with TensorFlow Serving's rules and error texts."""

import base64
import binascii
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidArgument, RequestError, Unimplemented
from serving.server.json_text import describe, parse, type_name

__all__ = ["PredictBody", "columns_to_arrays", "parse_predict"]

MAX_RANK = 64  # of a numpy array
_EXPLAINED = 50_000  # values that are read one by one to say which is the first that is wrong

# DataType number -> (name, numpy dtype, smallest and largest integer that may be written).
# The 8- and 16-bit types take any 32-bit integer and wrap, as TensorFlow Serving's do.
_INT32 = (-(1 << 31), (1 << 31) - 1)
_FLOATS: dict[int, tuple[str, np.dtype[Any]]] = {
    1: ("float", np.dtype(np.float32)),
    2: ("double", np.dtype(np.float64)),
}
_INTEGERS: dict[int, tuple[str, np.dtype[Any], tuple[int, int]]] = {
    3: ("int32", np.dtype(np.int32), _INT32),
    4: ("uint8", np.dtype(np.uint8), _INT32),
    5: ("int16", np.dtype(np.int16), _INT32),
    6: ("int8", np.dtype(np.int8), _INT32),
    9: ("int64", np.dtype(np.int64), (-(1 << 63), (1 << 63) - 1)),
    22: ("uint32", np.dtype(np.uint32), (0, (1 << 32) - 1)),
    23: ("uint64", np.dtype(np.uint64), (0, (1 << 64) - 1)),
}
_STRING, _BOOL = 7, 10
_OTHERS = {8: "complex64", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "half"}


class PredictBody(NamedTuple):
    """What a :predict request asks for; `row` is whether it came as `instances`."""

    signature: str
    inputs: dict[str, np.ndarray]
    row: bool


def parse_predict(body: bytes, signature_inputs: Callable[[str], Mapping[str, Any]]) -> PredictBody:
    """Reads a :predict body.

    Args:
        body: bytes. The JSON text.
        signature_inputs: callable. Signature name ("" for the default) -> input name -> `TensorInfo`.

    Raises:
        RequestError: with TensorFlow Serving's code and text.
    """
    document = parse(body)
    if not isinstance(document, dict):
        raise InvalidArgument(f"JSON Value: {describe(document)} Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidArgument(
            f"JSON Value: {describe(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    infos = dict(signature_inputs(name))
    if not infos:
        raise InvalidArgument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if "instances" in document:
        if "inputs" in document:
            raise InvalidArgument(
                f"JSON Value: {describe(document)} Not formatted correctly expecting only one of 'inputs' or "
                "'instances' keys to exist "
            )
        instances = document["instances"]
        if not isinstance(instances, list):
            raise InvalidArgument(f"JSON Value: {describe(document)} Excepting 'instances' to be an list/array")
        if not instances:
            raise InvalidArgument(f"JSON Value: {describe(document)} No values in 'instances' array")
        return PredictBody(name, _rows_to_arrays(instances, infos), True)
    if "inputs" in document:
        return PredictBody(name, columns_to_arrays(document["inputs"], infos), False)
    raise InvalidArgument("Missing 'inputs' or 'instances' key")


def columns_to_arrays(value: Any, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The value of `inputs`: a dict by input name, or the bare value of the only input."""
    if not isinstance(value, dict) or _is_base64(value):
        if len(infos) > 1:
            raise InvalidArgument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        name = next(iter(infos))
        return {name: _to_array(value, infos[name].dtype)}
    arrays = {}
    for name in sorted(infos):
        if name not in value:
            raise InvalidArgument(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _to_array(value[name], infos[name].dtype)
    return arrays


def _rows_to_arrays(instances: list[Any], infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
    first = instances[0]
    if not isinstance(first, dict) and len(infos) > 1:
        raise InvalidArgument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = isinstance(first, dict) and not _is_base64(first)
    columns: dict[str, list[Any]] = {}
    if named:
        names = infos.keys()
        if all(isinstance(row, dict) and row.keys() == names for row in instances):
            columns = {name: [row[name] for row in instances] for name in infos}
    elif not any(isinstance(row, dict) and not _is_base64(row) for row in instances):
        columns = {next(iter(infos)): instances}
    try:
        if columns:
            return {name: _to_array(column, infos[name].dtype) for name, column in columns.items()}
    except RequestError as error:
        _explain_rows(instances, infos, named)
        raise error
    _explain_rows(instances, infos, named)
    raise InvalidArgument("Failed to process 'instances' list: its rows are not alike.")


def _explain_rows(instances: list[Any], infos: Mapping[str, Any], named: bool) -> None:
    """Reads row by row and raises for the first that is wrong: the fast way says only that one is.

    Not where there are so many that this takes seconds.
    """
    if len(instances) * len(infos) > _EXPLAINED:
        return
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, value: Any) -> None:
        if name not in infos:
            raise InvalidArgument(f"JSON object: does not have named input: {name}")
        array = _to_array(value, infos[name].dtype)
        shape = shapes.setdefault(name, array.shape)
        if array.size != np.prod(shape, dtype=np.int64):
            raise InvalidArgument(f"Expecting tensor size: {np.prod(shape, dtype=np.int64)} but got: {array.size}")
        if array.shape != shape:
            listed = [",".join(map(str, dims)) for dims in (shape, array.shape)]
            raise InvalidArgument(f"Expecting shape [{listed[0]}] but got: [{listed[1]}]")

    for number, row in enumerate(instances):
        is_object = isinstance(row, dict) and not _is_base64(row)
        if named != is_object:
            words = ("object", "list") if named else ("value/list", "object")
            raise InvalidArgument(f"Expecting {words[0]} but got {words[1]} at item {number} of input list")
        where = f"Failed to process element: {number}"
        for name, value in row.items() if named else [(next(iter(infos)), row)]:
            try:
                add(name, value)
            except RequestError as error:
                key = f" key: {name}" if named else ""
                raise InvalidArgument(
                    f"{where}{key} of 'instances' list. Error: {error.code}: {error.message}"
                ) from error
        if named and row.keys() != infos.keys():
            raise InvalidArgument(
                f"{where} of 'instances' list. JSON object: {describe(row)} keys must be equal to: "
                + ",".join(sorted(infos))
            )


def _to_array(value: Any, dtype: int) -> np.ndarray:
    """A JSON value -> an array. Level by level and type by type, so that thousands of candidates cost little."""
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    if len(shape) > MAX_RANK:
        raise InvalidArgument(f"JSON Value: {describe(value)} has more than {MAX_RANK} dimensions.")
    leaves = [value]
    for level, size in enumerate(shape):
        wrong = next((item for item in leaves if type(item) is not list or len(item) != size), leaves)
        if wrong is not leaves:
            if len(leaves) <= _EXPLAINED:
                _explain_leaves(value, shape, dtype)
            _explain_item(wrong, level, shape)
        leaves = list(chain.from_iterable(leaves))
    array = _fill(leaves, dtype)
    if array is None:
        if len(leaves) <= _EXPLAINED:
            _explain_leaves(value, shape, dtype)
        for leaf in leaves:
            if isinstance(leaf, list):
                _explain_item(leaf, len(shape), shape)
            _leaf(leaf, dtype)
        raise InvalidArgument(f"JSON Value: {describe(value)} can not be read.")
    return array.reshape(shape)


def _fill(leaves: list[Any], dtype: int) -> np.ndarray | None:
    """The leaves as one flat array, or `None` where one of them does not fit."""
    kinds = set(map(type, leaves))
    try:
        if dtype in _FLOATS and kinds <= {int, float}:
            with np.errstate(over="ignore"):
                return np.array(leaves, dtype=np.float64).astype(_FLOATS[dtype][1])
        if dtype in _INTEGERS and kinds <= {int}:
            _, kind, (low, high) = _INTEGERS[dtype]
            if not leaves or (min(leaves) >= low and max(leaves) <= high):
                return np.array(leaves, dtype=np.uint64 if high >= 1 << 63 else np.int64).astype(kind)
        if dtype == _STRING and kinds <= {str, dict}:
            array = np.empty(len(leaves), dtype=object)
            array[:] = [_leaf(leaf, dtype) for leaf in leaves]
            return array
        if dtype == _BOOL and kinds <= {bool}:
            return np.array(leaves, dtype=bool)
    except (OverflowError, RequestError):
        return None
    return None


def _explain_leaves(value: Any, shape: list[int], dtype: int) -> None:
    """Raises for the first value, in reading order, that does not fit."""
    rank = len(shape)
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        item, level = todo.pop()
        if not isinstance(item, list) and level == rank:
            _leaf(item, dtype)
        else:
            _explain_item(item, level, shape)
            todo.extend((child, level + 1) for child in reversed(item))


def _explain_item(item: Any, level: int, shape: list[int]) -> None:
    """Raises unless it is a list of the size that this level has."""
    rank = len(shape)
    if not isinstance(item, list):
        raise InvalidArgument(
            f"JSON Value: {describe(item)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {rank}"
        )
    if level >= rank:
        raise InvalidArgument(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(item) != shape[level]:
        raise InvalidArgument(
            f"Encountered list at unexpected size: {len(item)} at level: {level} expected size: {shape[level]}"
        )


def _leaf(value: Any, dtype: int) -> Any:
    """One value of a tensor, or the error that says why it is none."""
    if dtype in _FLOATS:
        name, fits = _FLOATS[dtype][0], isinstance(value, (int, float)) and not isinstance(value, bool)
    elif dtype in _INTEGERS:
        name, _, (low, high) = _INTEGERS[dtype]
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    elif dtype == _BOOL:
        name, fits = "bool", isinstance(value, bool)
    elif dtype == _STRING:
        if isinstance(value, dict):
            return _from_base64(value)
        name, fits = "string", isinstance(value, str)
        if fits:
            try:
                return value.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise InvalidArgument("JSON Parse error: The surrogate pair in string is invalid.") from error
    else:
        name, fits = _OTHERS.get(dtype, f"DataType {dtype}"), False
        if not isinstance(value, dict):
            raise Unimplemented(f"Conversion of JSON Value: {describe(value)} to type: {name}")
    if not fits:
        raise InvalidArgument(f"JSON Value: {describe(value)} Type: {type_name(value)} is not of expected type: {name}")
    return value


def _is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def _from_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise InvalidArgument(f"JSON Value: {describe(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("Unable to base64 decode") from error
