"""Arrays -> the JSON text of a reply, byte for byte as TensorFlow Serving lays it out."""

import base64
import json
from collections.abc import Mapping

import numpy as np

from serving.errors import InvalidArgument
from serving.server.versions import VersionStatus

__all__ = ["columnar_reply", "error_reply", "live_reply", "row_reply"]


def error_reply(message: str) -> bytes:
    """`{"error": message}`."""
    return f'{{\n    "error": {_quote(message)}\n}}'.encode("utf-8", "replace")


def live_reply(status: VersionStatus) -> bytes:
    """`{"version": .., "state": .., "hashes": {..}}` on one line: not TensorFlow Serving's, it has no such reply."""
    content = {"version": str(status.version), "state": status.state, "hashes": dict(status.hashes)}
    return json.dumps(content).encode()


def columnar_reply(outputs: Mapping[str, np.ndarray]) -> bytes:
    """`{"outputs": {name: values}}`, or the bare values of a single output."""
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        text = _nest(_texts(name, array, 1), array.shape, 1)
    else:
        members = [
            f"        {_quote(name)}: {_nest(_texts(name, array, 2), array.shape, 2)}"
            for name, array in outputs.items()
        ]
        text = "{\n" + ",\n".join(members) + "\n    }"
    return f'{{\n    "outputs": {text}\n}}'.encode("utf-8", "surrogateescape")


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
    columns = {name: _rows(_texts(name, array, 3), array.shape) for name, array in outputs.items()}
    if not rows:
        text = "[]"
    elif len(columns) == 1:
        text = "[" + ", ".join(next(iter(columns.values()))) + "\n    ]"
    else:
        keys = [f"            {_quote(name)}: " for name in columns]
        objects = [
            ",\n".join(key + value for key, value in zip(keys, row, strict=True))
            for row in zip(*columns.values(), strict=True)
        ]
        text = "[\n        {\n" + "\n        },\n        {\n".join(objects) + "\n        }\n    ]"
    return f'{{\n    "predictions": {text}\n}}'.encode("utf-8", "surrogateescape")


def _rows(texts: list[str], shape: tuple[int, ...]) -> list[str]:
    """One text a row, lists on one line."""
    for axis in range(len(shape) - 1, 0, -1):
        texts = [f"[{', '.join(group)}]" for group in _groups(texts, shape, axis)]
    return texts


def _nest(texts: list[str], shape: tuple[int, ...], depth: int) -> str:
    """One text for all, a value a line; `depth` is the indentation of the value in steps of four."""
    for axis in range(len(shape) - 1, -1, -1):
        inner, outer = "\n" + "    " * (depth + axis + 1), "\n" + "    " * (depth + axis)
        separator = "," + inner
        texts = [f"[{inner}{separator.join(group)}{outer}]" if group else "[]" for group in _groups(texts, shape, axis)]
    return texts[0]


def _groups(texts: list[str], shape: tuple[int, ...], axis: int) -> list[list[str]]:
    size = shape[axis]
    count = int(np.prod(shape[:axis], dtype=np.int64))
    return [texts[start * size : (start + 1) * size] for start in range(count)]


def _texts(name: str, array: np.ndarray, depth: int) -> list[str]:
    """The values of an array in order, each as JSON."""
    flat = array.reshape(-1)
    kind = flat.dtype.kind
    if kind == "f" or flat.dtype.name == "bfloat16":
        return _decimals(flat if flat.dtype.itemsize >= 4 else flat.astype(np.float32))
    if kind in "iu":
        return list(map(str, flat.tolist()))
    if kind == "b":
        return ["true" if value else "false" for value in flat.tolist()]
    if kind in "OSU":
        values = [value if isinstance(value, bytes) else str(value).encode() for value in flat.tolist()]
        if name.endswith("_bytes"):
            indent = "    " * (depth + array.ndim)
            return [f'{{\n{indent}    "b64": "{base64.b64encode(value).decode()}"\n{indent}}}' for value in values]
        return [_quote(value.decode("utf-8", "surrogateescape")) for value in values]
    raise InvalidArgument(f"Failed to write JSON value for tensor type: {flat.dtype.name}")


def _decimals(values: np.ndarray) -> list[str]:
    """Six digits where they read back as the same number, else all (9 for float32, 17 for float64)."""
    digits = 9 if values.dtype.itemsize == 4 else 17
    wide = values.astype(np.float64)
    plain = wide.tolist()
    texts = [format(value, f".{digits}g") for value in plain]
    # Rounded to six digits by arithmetic: a filter, not the verdict; few values pass it and they are tried exactly.
    with np.errstate(all="ignore"):
        step = 10.0 ** (np.floor(np.log10(np.abs(wide))) - 5)
        near = np.abs(np.rint(wide / step) * step - wide) <= 4 * np.abs(np.spacing(values).astype(np.float64))
    near |= (wide == 0) | (np.abs(wide) < 1e-290)
    for index in np.flatnonzero(near).tolist():
        short = format(plain[index], "g")
        if values.dtype.type(float(short)) == values[index]:
            texts[index] = short
    for index in np.flatnonzero(~np.isfinite(wide)).tolist():
        texts[index] = "NaN" if np.isnan(wide[index]) else "Infinity" if wide[index] > 0 else "-Infinity"
    return [text if "." in text or "e" in text or text[-1] in "Ny" else text + ".0" for text in texts]


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
