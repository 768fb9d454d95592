"""Arrays -> the JSON text of a reply, byte for byte as TensorFlow Serving lays it out."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.age import WATERMARK, table_age
from serving.errors import InvalidArgument
from serving.server.decimals import decimals
from serving.server.versions import VersionStatus

__all__ = ["columnar_reply", "error_reply", "live_reply", "row_reply"]

LIVE_BYTES = 4000  # gRPC takes 8 KiB for all headers of a reply
_BOOLS = np.array([b"false", b"true"], object)


def error_reply(message: str) -> bytes:
    """`{"error": message}`."""
    quoted = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
    return b'{\n    "error": %s\n}' % quoted


def live_reply(status: VersionStatus) -> bytes:
    """What answers and what it is made of, on one line: not TensorFlow Serving's, it has no such reply.

    `{"version": .., "state": .., "table_age_seconds": .., "pinned": .., "hashes": {..}, "facts": {..}}`; what would
    make it too long for a header of a gRPC reply is left out, and `"left_out"` counts it.
    """
    content: dict[str, Any] = {"version": str(status.version), "state": status.state}
    content["table_age_seconds"] = table_age(status.facts.get(WATERMARK))
    room = LIVE_BYTES
    for name, found in (("pinned", status.pinned), ("hashes", status.hashes), ("facts", status.facts)):
        content[name] = None if found is None else {}
        for key, value in (found or {}).items():
            size = len(json.dumps({key: value}))
            if size <= room:
                content[name][key] = value
                room -= size
            else:
                content["left_out"] = content.get("left_out", 0) + 1
    return json.dumps(content).encode()


def columnar_reply(outputs: Mapping[str, np.ndarray]) -> bytes:
    """`{"outputs": {name: values}}`, or the bare values of a single output."""
    depth = 1 if len(outputs) == 1 else 2
    texts = _texts(outputs, depth)
    values = {name: _nest(texts[name], array.shape, depth) for name, array in outputs.items()}
    if len(values) == 1:
        (text,) = values.values()
    else:
        members = [b"        %s: %s" % (_quote(name), value) for name, value in values.items()]
        text = b"{\n" + b",\n".join(members) + b"\n    }"
    return _whole(b'{\n    "outputs": %s\n}' % text)


def row_reply(outputs: Mapping[str, np.ndarray]) -> bytes:
    """`{"predictions": [...]}`: a value a row, or an object a row where there are several outputs.

    Raises:
        InvalidArgument: an output is a scalar, or the outputs have different numbers of rows.
    """
    rows = -1
    for name, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgument(f"Tensor name: {name} has no shape information ")
        if rows >= 0 and array.shape[0] != rows:
            raise InvalidArgument(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {rows}"
            )
        rows = array.shape[0]
    texts = _texts(outputs, 3)
    columns = {name: _rows(texts[name], array.shape) for name, array in outputs.items()}
    if not rows:
        text = b"[]"
    elif len(columns) == 1:
        text = b"[" + b", ".join(next(iter(columns.values()))) + b"\n    ]"
    else:
        keys = b",\n".join(b"            %s: %%s" % _quote(name).replace(b"%", b"%%") for name in columns)
        objects = [keys % row for row in zip(*columns.values(), strict=True)]
        text = b"[\n        {\n" + b"\n        },\n        {\n".join(objects) + b"\n        }\n    ]"
    return _whole(b'{\n    "predictions": %s\n}' % text)


def _whole(reply: bytes) -> bytes:
    """Without the NUL bytes that `decimals` leaves; texts have none, JSON escapes them."""
    return reply.replace(b"\0", b"")


def _rows(texts: list[bytes], shape: tuple[int, ...]) -> list[bytes]:
    """One text a row, lists on one line."""
    for axis in range(len(shape) - 1, 0, -1):
        texts = [b"[" + b", ".join(group) + b"]" for group in _groups(texts, shape, axis)]
    return texts


def _nest(texts: list[bytes], shape: tuple[int, ...], depth: int) -> bytes:
    """One text for all, a value a line; `depth` is the indentation of the value in steps of four."""
    for axis in range(len(shape) - 1, -1, -1):
        inner, outer = b"\n" + b"    " * (depth + axis + 1), b"\n" + b"    " * (depth + axis)
        separator = b"," + inner
        texts = [
            b"[" + inner + separator.join(group) + outer + b"]" if group else b"[]"
            for group in _groups(texts, shape, axis)
        ]
    return texts[0]


def _groups(texts: list[bytes], shape: tuple[int, ...], axis: int) -> list[list[bytes]]:
    size = shape[axis]
    count = int(np.prod(shape[:axis], dtype=np.int64))
    return [texts[start * size : (start + 1) * size] for start in range(count)]


def _texts(outputs: Mapping[str, np.ndarray], depth: int) -> dict[str, list[bytes]]:
    """The values of every output in order, each as JSON."""
    texts = {}
    floats: dict[str, np.ndarray] = {}
    for name, array in outputs.items():
        flat = array.reshape(-1)
        if flat.dtype.name in ("float16", "bfloat16"):
            flat = flat.astype(np.float32)
        if flat.dtype == np.float32:
            floats[name] = flat
        else:
            texts[name] = _column(name, flat, depth + array.ndim)
    if floats:  # together: the cost of a numpy call is the same for one output as for all
        together = decimals(np.concatenate(list(floats.values())))
        start = 0
        for name, flat in floats.items():
            texts[name] = together[start : start + flat.size]
            start += flat.size
    return texts


def _column(name: str, flat: np.ndarray, depth: int) -> list[bytes]:
    kind = flat.dtype.kind
    if kind in "iu":
        if flat.size and (flat == flat[0]).all():  # table_version and the like
            return [b"%d" % flat[0]] * flat.size
        return [b"%d" % value for value in flat.tolist()]
    if kind == "b":
        return _BOOLS[flat.view(np.uint8)].tolist()
    if kind == "f":
        return decimals(flat)
    if kind in "OSU":
        values = [value if isinstance(value, bytes) else str(value).encode() for value in flat.tolist()]
        if name.endswith("_bytes"):
            indent = b"    " * depth
            return [b'{\n%s    "b64": "%s"\n%s}' % (indent, base64.b64encode(value), indent) for value in values]
        return [_quote(value.decode("utf-8", "surrogateescape")) for value in values]
    raise InvalidArgument(f"Failed to write JSON value for tensor type: {flat.dtype.name}")


def _quote(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")
