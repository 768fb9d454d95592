"""TensorFlow's and TensorFlow Serving's protocol messages, without importing TensorFlow.

`tensorflow_serving.apis.predict_pb2` imports `tensorflow`, whose start takes seconds. The messages themselves are
plain descriptors, written into those files as one literal each: it is read here from the installed packages and put
into a descriptor pool of our own. So these are the official messages, at the cost of a few milliseconds; they and
those of an imported TensorFlow are different classes, and pass from one to the other as bytes.
"""

import ast
import importlib
import threading
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["messages"]

_lock = threading.RLock()


@cache
def _pool() -> Any:
    from google.protobuf import descriptor_pool

    return descriptor_pool.DescriptorPool()


@cache
def _added(name: str) -> Any:
    """The descriptor of a file, added with all that it imports."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    content = _serialized(name)
    for needed in FileDescriptorProto.FromString(content).dependency:
        _added(needed)
    _pool().AddSerializedFile(content)
    return _pool().FindFileByName(name)


def _serialized(name: str) -> bytes:
    inside = f"tensorflow/compiler/{name}" if name.startswith("xla/") else name
    module = inside.removesuffix(".proto").replace("/", ".") + "_pb2"
    package, _, rest = inside.partition("/")
    spec = find_spec(package) if package != "google" else None  # finds the folder, runs nothing in it
    for folder in (spec.submodule_search_locations if spec else None) or ():
        text = (Path(folder) / f"{rest.removesuffix('.proto')}_pb2.py").read_text(encoding="utf-8")
        for line in text.splitlines():
            if "AddSerializedFile(b" in line:
                return bytes(ast.literal_eval(line[line.index("AddSerializedFile(") + 18 : line.rindex(")")]))
    # google's own, which are light; or a generator that writes its files in another way.
    return bytes(importlib.import_module(module).DESCRIPTOR.serialized_pb)


@cache
def _namespace(name: str) -> SimpleNamespace:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
    from google.protobuf.message_factory import GetMessageClass

    file = _added(name)
    found: dict[str, Any] = {key: GetMessageClass(kind) for key, kind in file.message_types_by_name.items()}
    return SimpleNamespace(**found, **{key: EnumTypeWrapper(kind) for key, kind in file.enum_types_by_name.items()})


def messages(name: str) -> Any:
    """The messages and enumerations of a .proto file, as its `_pb2` module has them.

    Args:
        name: str. The file as its importers write it, like `"tensorflow_serving/apis/predict.proto"`.

    Returns:
        A namespace: message name -> class, enumeration name -> wrapper.

    Example:
        request = messages("tensorflow_serving/apis/predict.proto").PredictRequest()
    """
    with _lock:
        return _namespace(name)
