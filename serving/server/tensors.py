"""Arrays as `TF_Tensor`s and back: one copy each way, all of a tensor's strings at once."""

import ctypes as c
import functools
import math
import struct
from typing import Any

import numpy as np

from serving.errors import InvalidArgument, Unimplemented

__all__ = ["from_tensor", "to_tensor"]

STRING = 7  # DT_STRING
MAX_TEXT = 1 << 30  # bytes of one string in the form used here, whose size field has 30 bits
FEW = 8  # strings, for which numpy's calls cost more than they save
SMALL, OFFSET = 0, 2  # kinds of a TF_TString: up to 22 bytes in the header itself; bytes at a distance from the header
_HEADER = struct.Struct("<III12x")  # size and kind, distance, count

_copy = c.PyDLL(None).memmove  # the one of ctypes gives up the interpreter lock
_copy.restype, _copy.argtypes = None, [c.c_void_p, c.c_char_p, c.c_size_t]


@functools.cache
def _dtypes() -> dict[int, np.dtype[Any]]:
    """DataType number -> numpy dtype."""
    import ml_dtypes

    plain = {
        1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 8: "c8", 9: "i8", 10: "?", 17: "u2", 18: "c16",
        19: "f2", 22: "u4", 23: "u8",
    }  # fmt: skip
    return {**{code: np.dtype(name) for code, name in plain.items()}, 14: np.dtype(ml_dtypes.bfloat16)}


@functools.cache
def _codes() -> dict[np.dtype[Any], int]:
    return {dtype: code for code, dtype in _dtypes().items()}


@functools.lru_cache(4096)
def _dims(shape: tuple[int, ...]) -> Any:
    return (c.c_int64 * len(shape))(*shape)


def to_tensor(library: Any, array: np.ndarray) -> int:
    """A new `TF_Tensor` with a copy of the values; the caller deletes it.

    Raises:
        InvalidArgument: values that no tensor can hold.
    """
    code = _codes().get(array.dtype)
    if code is not None:
        values = array.tobytes()
    elif array.dtype.kind in "OSU":
        code, values = STRING, _from_texts(array.reshape(-1).tolist())
    else:
        raise InvalidArgument(f"values of type {array.dtype} can not be fed.")
    tensor = library.TF_AllocateTensor(code, _dims(array.shape), array.ndim, len(values))
    _copy(library.TF_TensorData(tensor), values, len(values))
    return tensor


def _from_texts(texts: list[Any]) -> bytes:
    """A header a string that says how far behind it the bytes are, then the bytes of all.

    The runtime's own functions take a call or two a string, milliseconds for 5,000 ids, and strings with memory of
    their own would have to be freed one by one, after the last reader.
    """
    if set(map(type, texts)) - {bytes}:
        texts = list(map(_encoded, texts))
    begin = _HEADER.size * len(texts)
    if begin + sum(map(len, texts)) >= 1 << 32 or max(map(len, texts), default=0) >= MAX_TEXT:
        raise InvalidArgument("a tensor of strings should have less than 4 GiB in all and less than 1 in each.")
    if len(texts) <= FEW:
        headers = b""
        for text in texts:
            headers += _HEADER.pack(len(text) << 2 | OFFSET, begin - len(headers), 1)
            begin += len(text)
    else:
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        table = np.zeros((len(texts), _HEADER.size // 4), np.uint32)
        table[:, 0] = sizes << 2 | OFFSET
        table[:, 1] = begin + np.cumsum(sizes) - sizes - _HEADER.size * np.arange(len(texts))
        table[:, 2] = 1
        headers = table.tobytes()
    return headers + b"".join(texts)


def _encoded(text: Any) -> bytes:
    if isinstance(text, bytes):
        return bytes(text)
    if not isinstance(text, str):
        raise InvalidArgument(f"a tensor of strings can not hold {text!r}.")
    return text.encode("utf-8", "surrogateescape")


def from_tensor(library: Any, tensor: int) -> np.ndarray:
    """The values of a `TF_Tensor`, read-only.

    Copied, since a finalizer on each array would cost more than to copy thousands of scores.

    Raises:
        Unimplemented: values that numpy does not have, as resources.
    """
    code = library.TF_TensorType(tensor)
    shape = tuple([library.TF_Dim(tensor, axis) for axis in range(library.TF_NumDims(tensor))])
    if code == STRING:
        return _to_texts(library, tensor, shape)
    dtype = _dtypes().get(code)
    if dtype is None:
        raise Unimplemented(f"outputs of DataType {code} can not be answered.")
    size = math.prod(shape) * dtype.itemsize
    return np.ndarray(shape, dtype, c.string_at(library.TF_TensorData(tensor), size) if size else b"")


def _to_texts(library: Any, tensor: int, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(math.prod(shape), object)
    if array.size:
        start = library.TF_TensorData(tensor)
        headers = c.string_at(start, _HEADER.size * array.size)
        for place, first in enumerate(headers[:: _HEADER.size]):
            begin = _HEADER.size * place
            if first & 3 == SMALL:
                array[place] = headers[begin + 1 : begin + 1 + (first >> 2)]
            else:
                text = start + begin
                array[place] = c.string_at(library.TF_StringGetDataPointer(text), library.TF_StringGetSize(text))
    return array.reshape(shape)
