"""PredictRequest -> arrays, checked before anything is allocated; arrays -> PredictResponse, as bytes at once."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.errors import InvalidArgument
from serving.server.admission import MAX_REQUEST_BYTES

__all__ = ["check_fields", "read_inputs", "write_response"]

MAX_RANK = 64  # of a numpy array
MAX_FIELDS = 4096
_STRING = 7
# DataType number -> numpy's name, the field that carries single values, and the field's number.
_FIELDS = {
    1: ("float32", "float_val", 5),
    2: ("float64", "double_val", 6),
    3: ("int32", "int_val", 7),
    4: ("uint8", "int_val", 7),
    5: ("int16", "int_val", 7),
    6: ("int8", "int_val", 7),
    8: ("complex64", "scomplex_val", 9),
    9: ("int64", "int64_val", 10),
    10: ("bool", "bool_val", 11),
    14: ("bfloat16", "half_val", 13),
    17: ("uint16", "int_val", 7),
    18: ("complex128", "dcomplex_val", 12),
    19: ("float16", "half_val", 13),
    22: ("uint32", "uint32_val", 16),
    23: ("uint64", "uint64_val", 17),
}
_NUMBER_OF = {name: number for number, (name, _, _) in _FIELDS.items()}


def check_fields(message: bytes) -> None:
    """Refuses a message of more than `MAX_FIELDS` parts, which in memory is dozens of times its size.

    Looks at the outermost parts only: inputs and wanted outputs. A message that is broken is left to its parser.

    Raises:
        InvalidArgument: there are more.
    """
    position, end = 0, len(message)
    for _ in range(MAX_FIELDS):
        if position >= end:
            return
        tag, position = _number(message, position)
        kind = tag & 7
        if kind == 2:
            size, position = _number(message, position)
            position += size
        elif kind == 0:
            _, position = _number(message, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            return
    if position < end:
        raise InvalidArgument(f"The message has more than {MAX_FIELDS} inputs and outputs.")


def _number(message: bytes, position: int) -> tuple[int, int]:
    """A varint and where it ends."""
    value = shift = 0
    for byte in message[position : position + 10]:
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
    else:
        return 0, len(message)
    return value, position


def read_inputs(request: Any) -> dict[str, np.ndarray]:
    """The inputs of a PredictRequest.

    A tensor may give fewer values than its shape has: the last one, or zero, stands for the rest. A message of a few
    bytes can claim terabytes so; what all tensors of a request claim is bounded like the message itself.

    Raises:
        InvalidArgument: `tensor parsing error: <input>`, TensorFlow Serving's words.
    """
    arrays = {}
    room = MAX_REQUEST_BYTES
    for alias, tensor in request.inputs.items():
        array = _array(tensor, room)
        if array is None:
            raise InvalidArgument(f"tensor parsing error: {alias}")
        room -= array.nbytes
        arrays[alias] = array
    return arrays


def _array(tensor: Any, room: int) -> np.ndarray | None:
    """The tensor, or `None` where what it says does not fit together, or into `room` bytes."""
    dimensions = tensor.tensor_shape.dim
    if tensor.tensor_shape.unknown_rank or len(dimensions) > MAX_RANK:
        return None
    shape = [dimension.size for dimension in dimensions]
    size = math.prod(shape)
    # Without the zeros: numpy and TensorFlow count so too, and a shape of no values must not overflow them.
    if min(shape, default=0) < 0 or math.prod(max(side, 1) for side in shape) > room:
        return None
    if tensor.dtype == _STRING:
        texts = tensor.string_val
        if len(texts) > size or size * 8 > room or tensor.tensor_content:
            return None
        flat = np.full(size, texts[-1] if texts else b"", object)
        flat[: len(texts)] = list(texts)
        return flat.reshape(shape)
    if tensor.dtype not in _FIELDS:
        return None
    name, field, _ = _FIELDS[tensor.dtype]
    dtype = _dtype(name)
    if size * dtype.itemsize > room:
        return None
    if tensor.tensor_content:
        if len(tensor.tensor_content) != size * dtype.itemsize:
            return None
        if name == "bool":  # a byte that is neither 0 nor 1 is no bool
            return (np.frombuffer(tensor.tensor_content, np.uint8) != 0).reshape(shape)
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    given = _given(getattr(tensor, field), dtype)
    if given is None or len(given) > size:
        return None
    if len(given) < size:
        filled = np.full(size, given[-1] if len(given) else 0, dtype)
        filled[: len(given)] = given
        given = filled
    return given.reshape(shape)


def _given(values: Any, dtype: np.dtype[Any]) -> np.ndarray | None:
    """The single values of a tensor as they are in the message."""
    if dtype.kind == "c":  # real and imaginary parts in turn
        parts = np.fromiter(values, np.float32 if dtype.itemsize == 8 else np.float64, len(values))
        return parts.view(dtype) if len(parts) % 2 == 0 else None
    if dtype.itemsize == 2 and dtype.kind not in "iu":  # halves: their bits
        return np.fromiter(values, np.int64, len(values)).astype(np.uint16).view(dtype)
    if dtype.itemsize < 4 and dtype.kind in "iu":  # written as int32, and wrapped as TensorFlow does
        return np.fromiter(values, np.int64, len(values)).astype(dtype)
    return np.fromiter(values, dtype, len(values))


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def write_response(name: str, version: int, signature: str, outputs: Mapping[str, np.ndarray]) -> bytes:
    """A serialized PredictResponse: typed value fields, which every client can read, as TensorFlow Serving replies.

    Bytes rather than messages: a field of 5,000 scores is the array's memory, not 5,000 Python numbers.
    """
    parts = [_block(1, _block(1, alias.encode()) + _block(2, _tensor(array))) for alias, array in outputs.items()]
    spec = _block(1, name.encode()) + _block(2, b"\x08" + _varint(version)) + _block(3, signature.encode())
    return b"".join([*parts, _block(2, spec)])


def _tensor(array: np.ndarray) -> bytes:
    """A serialized TensorProto."""
    shape = b"".join(_block(2, b"\x08" + _varint(size)) for size in array.shape)
    number = _NUMBER_OF.get(array.dtype.name, _STRING)
    flat = np.ascontiguousarray(array).reshape(-1)
    if number == _STRING:
        texts = [value if isinstance(value, bytes) else str(value).encode() for value in flat.tolist()]
        values = b"".join(_block(8, text) for text in texts)
    else:
        values = _block(_FIELDS[number][2], _packed(flat)) if flat.size else b""
    return b"\x08" + _varint(number) + _block(2, shape) + values


def _packed(flat: np.ndarray) -> bytes:
    kind, width = flat.dtype.kind, flat.dtype.itemsize
    if kind == "b" or kind == "c" or (kind == "f" and width >= 4):
        return flat.tobytes()
    if kind not in "iu":  # halves: their bits
        flat = flat.view(np.uint16)
    elif kind == "i":
        flat = flat.astype(np.int64)
    return _varints(flat.astype(np.uint64))


def _varints(values: np.ndarray) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set where more follow."""
    if (values == values[0]).all():  # table_version and the like
        return _varint(int(values[0])) * len(values)
    left = values[:, None] >> np.arange(0, 70, 7, dtype=np.uint64)
    more = np.zeros(left.shape, np.uint8)
    more[:, :-1] = (left[:, 1:] != 0) << 7
    kept = left != 0
    kept[:, 0] = True
    return ((left & 127).astype(np.uint8) | more)[kept].tobytes()


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    pieces = bytearray()
    while value > 127:
        pieces.append(value & 127 | 128)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


def _block(field: int, content: bytes) -> bytes:
    """A field that carries bytes: text, a message or packed numbers."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content
