"""Warm-up requests: what a server replays while it loads a version, before the version answers anybody.

The file is TensorFlow Serving's: `assets.extra/tf_serving_warmup_requests`, a TFRecord of PredictionLog messages.
A record that fails keeps the version from being served, so the inputs are checked against the model when written.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from serving.errors import InvalidArgument, RequestError, ServingError
from serving.protos import messages
from serving.tensors import pack

__all__ = ["MAX_RECORDS", "WARMUP", "read_warmup", "write_warmup"]

WARMUP = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS = 1000
_HEADER = struct.Struct("<QI")  # length, masked crc of the length
_FOOTER = struct.Struct("<I")  # masked crc of the content
_SHORT = "' failed with Read less bytes than requested"  # the apostrophe is TensorFlow's


def write_warmup(directory: str | Path, requests: Sequence[Mapping[str, Any]], *, model: str = "seedrank") -> Path:
    """Writes the requests that warm a version up.

    Graphs allocate and specialise by shape: give requests with as many candidates as real ones have.

    Args:
        directory: str or Path. The SavedModel's folder.
        requests: sequence of dicts with `signature` (str), `inputs` (dict of arrays by name) and, where not all are
            asked for, `outputs` (names), at most 1,000. The runtime compiles each choice of outputs by itself.
        model: str. The model's name in the records; servers ignore it. Defaults to `"seedrank"`.

    Returns:
        The path of the file.

    Raises:
        ServingError: an input that the signature does not have, misses, or holds in another type.
    """
    if len(requests) > MAX_RECORDS:
        raise ServingError(f"`requests` should be at most {MAX_RECORDS}. Received: {len(requests)}.")
    directory = Path(directory)
    saved = messages("tensorflow/core/protobuf/saved_model.proto").SavedModel()
    saved.ParseFromString((directory / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    log_type = messages("tensorflow_serving/apis/prediction_log.proto").PredictionLog
    content = b""
    for request in requests:
        name = request["signature"]
        if name not in signatures:
            raise ServingError(f"`signature` should be one of the model's. Received: {name!r}.")
        declared = signatures[name].inputs
        if request["inputs"].keys() != declared.keys():
            raise ServingError(
                f"`inputs` of {name!r} should be {', '.join(sorted(declared))}. "
                f"Received: {', '.join(sorted(request['inputs']))}."
            )
        log = log_type()
        spec = log.predict_log.request.model_spec
        spec.name, spec.signature_name = model, name
        log.predict_log.request.output_filter.extend(request.get("outputs", ()))
        for key, values in request["inputs"].items():
            log.predict_log.request.inputs[key].CopyFrom(pack(key, values, declared[key].dtype))
        content += _framed(log.SerializeToString(deterministic=True))
    path = directory / WARMUP
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def read_warmup(directory: str | Path) -> list[bytes]:
    """The warm-up requests of a version, in order.

    Args:
        directory: str or Path. The version's folder.

    Returns:
        A serialised `PredictRequest` each; none where the version has no such file. Records for Classify, Regress and
        MultiInference are passed over: they warm what only TensorFlow Serving answers.

    Raises:
        RequestError: a file that can not be replayed, with TensorFlow Serving's code and words.
    """
    path = Path(directory) / WARMUP
    if not path.is_file():
        return []
    log_type = messages("tensorflow_serving/apis/prediction_log.proto").PredictionLog
    from google.protobuf.message import DecodeError

    found = []
    for number, record in enumerate(_records(path.read_bytes())):
        if number == MAX_RECORDS:
            raise InvalidArgument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        try:
            log = log_type.FromString(record)
        except DecodeError as error:
            raise InvalidArgument(f"Failed to parse warmup record: {record[:64]!r} from {path}") from error
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            found.append(log.predict_log.request.SerializeToString())
        elif kind not in ("classify_log", "regress_log", "multi_inference_log"):
            raise RequestError(f"Unsupported log_type for warmup: {kind or 'LOG_TYPE_NOT_SET'}", "UNIMPLEMENTED")
    return found


def _records(content: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(content):
        header = content[place : place + _HEADER.size]
        if len(header) < _HEADER.size:  # TensorFlow takes such a rest for the end
            raise _corrupt(f"truncated record at {place}{_SHORT}")
        length, checksum = _HEADER.unpack(header)
        if checksum != _masked_crc(header[:8]):
            raise _corrupt(f"corrupted record at {place}{'' if place else ' (Is this even a TFRecord file?)'}")
        start = place + _HEADER.size
        end = start + length
        if end + _FOOTER.size > len(content):
            raise _corrupt(f"truncated record at {place}{_SHORT}")
        record = content[start:end]
        if _FOOTER.unpack_from(content, end)[0] != _masked_crc(record):
            raise _corrupt(f"corrupted record at {start}")
        yield record
        place = end + _FOOTER.size


def _corrupt(what: str) -> RequestError:
    return RequestError(f"{what}. Please verify your warmup data is in TFRecord format.", "DATA_LOSS")


def _framed(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + _FOOTER.pack(_masked_crc(length)) + record + _FOOTER.pack(_masked_crc(record))


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(value)
    return tuple(table)


def _masked_crc(data: bytes) -> int:
    """crc32c, rotated and shifted: TFRecord's guard against checksums of data that holds checksums."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
