"""TensorProto and numpy: a request's inputs packed, a reply's outputs unpacked, without TensorFlow."""

from typing import Any

import numpy as np

from serving.errors import ServingError
from serving.protos import messages

__all__ = ["pack", "type_name", "unpack"]

_STRING = 7
# DataType number -> numpy's name, and the field that carries single values.
_NUMBERS = {
    1: ("float32", "float_val"),
    2: ("float64", "double_val"),
    3: ("int32", "int_val"),
    4: ("uint8", "int_val"),
    5: ("int16", "int_val"),
    6: ("int8", "int_val"),
    9: ("int64", "int64_val"),
    10: ("bool", "bool_val"),
    17: ("uint16", "int_val"),
    19: ("float16", "half_val"),
    22: ("uint32", "uint32_val"),
    23: ("uint64", "uint64_val"),
}
_NUMBER_OF = {name: number for number, (name, _) in _NUMBERS.items()}


def type_name(dtype: int) -> str:
    """`"int64"` for 9, as users know it."""
    types = messages("tensorflow/core/framework/types.proto").DataType
    return str(types.Name(dtype)).removeprefix("DT_").lower()


def pack(name: str, values: Any, dtype: int | None = None) -> Any:
    """One input as a TensorProto: numbers as one block of bytes, texts one by one.

    Args:
        name: str. The input's, for errors.
        values: array, or number, text, or nested lists of them.
        dtype: int. The declared DataType; values become it where nothing but the precision of floats is lost.
            Defaults to what the values are.

    Raises:
        ServingError: values that the type can not hold.
    """
    tensor = messages("tensorflow/core/framework/tensor.proto").TensorProto()
    try:
        array = _array(values, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "a tensor" if dtype is None else type_name(dtype)
        raise ServingError(f"`{name}` can not be sent as {wanted}: {error}") from error
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype.kind == "O":
        tensor.dtype = _STRING
        tensor.string_val.extend(array.reshape(-1).tolist())
    else:
        tensor.dtype = _NUMBER_OF[array.dtype.name]
        tensor.tensor_content = array.tobytes()
    return tensor


def _array(values: Any, dtype: int | None) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "OSU" or dtype == _STRING:
        if dtype not in (_STRING, None) and array.size:
            raise TypeError(f"values are {array.dtype.name if array.dtype.kind != 'O' else 'of several kinds'}")
        if dtype in (_STRING, None):
            return _texts(values, array.shape)
    if dtype is None:
        if array.dtype.name not in _NUMBER_OF:
            raise TypeError(f"values are {array.dtype.name}")
        return array
    if dtype not in _NUMBERS:
        raise TypeError("this client does not have the type")
    target = np.dtype(_NUMBERS[dtype][0])
    fitting = {"f": "iuf", "i": "iu", "u": "iu", "b": "b"}[target.kind]
    if array.size and array.dtype.kind not in fitting:
        raise TypeError(f"values are {array.dtype.name}")
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    lost = np.isfinite(array) & ~np.isfinite(cast) if target.kind == "f" else cast != array
    if lost.any():
        raise OverflowError(f"a value does not fit into {target.name}")
    return cast


def _texts(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    # Not through a numpy array of bytes: it would cut trailing zero bytes.
    flat = np.empty(shape, dtype=object)
    flat[...] = values
    leaves = flat.reshape(-1)
    for row, value in enumerate(leaves):
        if not isinstance(value, (str, bytes)):
            raise TypeError(f"{value!r} is no text")
        leaves[row] = value.encode() if isinstance(value, str) else value
    return leaves.reshape(shape)


def unpack(tensor: Any) -> np.ndarray:
    """A TensorProto as an array; texts as an object array of bytes.

    Raises:
        ServingError: a type that numpy does not have, or content that does not fill the shape.
    """
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if tensor.dtype == _STRING:
        flat = np.empty(len(tensor.string_val), dtype=object)
        flat[:] = list(tensor.string_val)
    elif tensor.dtype not in _NUMBERS:
        raise ServingError(f"a reply should be of types that numpy has. Received: {type_name(tensor.dtype)}.")
    else:
        name, field = _NUMBERS[tensor.dtype]
        if tensor.tensor_content:
            flat = np.frombuffer(tensor.tensor_content, name)
        elif field == "half_val":  # bits
            flat = np.array(tensor.half_val, np.uint16).view(np.float16)
        else:
            flat = np.fromiter(getattr(tensor, field), name)
    size = int(np.prod(shape, dtype=np.int64))
    if 0 < len(flat) < size:  # the last value stands for the rest
        flat = np.concatenate([flat, np.repeat(flat[-1:], size - len(flat))])
    if len(flat) != size:
        raise ServingError(f"a tensor of shape {list(shape)} should have {size} values. Received: {len(flat)}.")
    return flat.reshape(shape)
