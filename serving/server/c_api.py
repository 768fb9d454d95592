"""TensorFlow's C API by ctypes: its functions with declared types, and its status as our errors.

The installed wheel exports it, so that nothing has to be compiled and `import tensorflow`, which takes seconds, is not
needed; the two do not disturb one another.
"""

import contextlib
import ctypes as c
import functools
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.errors import CODES, ServingError, request_error

__all__ = ["Output", "checked", "library", "raise_for"]


class Output(c.Structure):
    """`TF_Output`: one output of an operation."""

    _fields_ = [("operation", c.c_void_p), ("index", c.c_int)]


class _Buffer(c.Structure):
    _fields_ = [("data", c.c_void_p), ("length", c.c_size_t), ("deallocator", c.c_void_p)]


_any, _text, _int, _size = c.c_void_p, c.c_char_p, c.c_int, c.c_size_t
_buffer, _outputs, _tensors = c.POINTER(_Buffer), c.POINTER(Output), c.POINTER(c.c_void_p)
# Name -> result and arguments. Short calls keep the interpreter lock: to give it up and wait for it again costs more
# than they do.
_SHORT: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus": (_any, []),
    "TF_DeleteStatus": (None, [_any]),
    "TF_GetCode": (_int, [_any]),
    "TF_Message": (_text, [_any]),
    "TF_NewBuffer": (_buffer, []),
    "TF_NewBufferFromString": (_buffer, [_text, _size]),
    "TF_DeleteBuffer": (None, [_buffer]),
    "TF_NewGraph": (_any, []),
    "TF_GraphOperationByName": (_any, [_any, _text]),
    "TF_GraphNextOperation": (_any, [_any, c.POINTER(_size)]),
    "TF_OperationOpType": (_text, [_any]),
    "TF_OperationNumOutputs": (_int, [_any]),
    "TF_NewOperation": (_any, [_any, _text, _text]),
    "TF_AddInput": (None, [_any, Output]),
    "TF_SetAttrBool": (None, [_any, _text, c.c_ubyte]),
    "TF_FinishOperation": (_any, [_any, _any]),
    "TF_NewSessionOptions": (_any, []),
    "TF_SetConfig": (None, [_any, _text, _size, _any]),
    "TF_DeleteSessionOptions": (None, [_any]),
    "TF_AllocateTensor": (_any, [_int, c.POINTER(c.c_int64), _int, _size]),
    "TF_DeleteTensor": (None, [_any]),
    "TF_TensorData": (_any, [_any]),
    "TF_TensorType": (_int, [_any]),
    "TF_NumDims": (_int, [_any]),
    "TF_Dim": (c.c_int64, [_any, _int]),
    "TF_StringGetDataPointer": (_any, [_any]),
    "TF_StringGetSize": (_size, [_any]),
}
_LONG: dict[str, tuple[Any, list[Any]]] = {
    "TF_LoadSessionFromSavedModel": (_any, [_any, _buffer, _text, c.POINTER(_text), _int, _any, _buffer, _any]),
    "TF_SessionRun": (
        None,
        [_any, _buffer, _outputs, _tensors, _int, _outputs, _tensors, _int, c.POINTER(_any), _int, _buffer, _any],
    ),
    "TF_CloseSession": (None, [_any, _any]),
    "TF_DeleteSession": (None, [_any, _any]),
    "TF_DeleteGraph": (None, [_any]),
}


class _Library:
    """The functions of the C API, as attributes."""

    def __init__(self, path: Path) -> None:
        for source, declared in ((c.PyDLL(str(path)), _SHORT), (c.CDLL(str(path)), _LONG)):
            for name, (result, arguments) in declared.items():
                function = getattr(source, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # what is not declared above
        raise AttributeError(name)


_LOADING = threading.Lock()  # of two at once the second would take the first one's silence for the terminal


def library() -> _Library:
    """Loads the C API, once, whichever thread asks first.

    Raises:
        ServingError: TensorFlow is not installed, or its library does not load.
    """
    with _LOADING:
        return _loaded()


@functools.cache
def _loaded() -> _Library:
    found = importlib.util.find_spec("tensorflow")
    folders = found.submodule_search_locations if found is not None else None
    if not folders:
        raise ServingError("the package tensorflow is not installed; its runtime is what runs the models.")
    path = Path(folders[0]) / ("libtensorflow_cc.2.dylib" if sys.platform == "darwin" else "libtensorflow_cc.so.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with _silence():
            return _Library(path)
    except (OSError, AttributeError) as error:
        raise ServingError(f"TensorFlow's runtime can not be loaded: {error}.") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the notes on the processor off the terminal, which the library writes before any log level counts."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextlib.contextmanager
def checked(lib: Any) -> Iterator[int]:
    """A status for a call; raised as an error if it is one afterwards."""
    status = lib.TF_NewStatus()
    try:
        yield status
        raise_for(lib, status)
    finally:
        lib.TF_DeleteStatus(status)


def raise_for(lib: Any, status: int) -> None:
    """Raises what a status says, if it is an error."""
    code = lib.TF_GetCode(status)
    if code:
        raise request_error(CODES[code], lib.TF_Message(status).decode("utf-8", "replace"))
