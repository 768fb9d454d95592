"""What a hostile or broken client sends over gRPC: a code that says it is the client's mistake; the server goes on."""

import resource
import threading

import numpy as np
import pytest

from serving.protos import messages
from serving.server import Server, guard
from serving.server.admission import MAX_REQUEST_BYTES

PREDICT = "/tensorflow.serving.PredictionService/Predict"
KINDS = messages("tensorflow_serving/apis/predict.proto")
SLACK = 200 << 20
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@pytest.fixture(scope="module")
def server(conformance_models):
    with Server(conformance_models, rest_port=0, grpc_port=0, poll_seconds=3600) as server:
        yield server


@pytest.fixture
def channel(server):
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=OPTIONS) as channel:
        yield channel
        assert call(channel, good().SerializeToString()) == "OK"


def good(name="half", values=(2.0,)):
    request = KINDS.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=len(values))
    request.inputs["x"].float_val.extend(values)
    return request


def call(channel, content, method=PREDICT, timeout=20, **options):
    """The name of the code."""
    import grpc

    try:
        channel.unary_unary(method)(content, timeout=timeout, **options)
    except grpc.RpcError as error:
        assert len(error.details()) < 1200
        return error.code().name
    return "OK"


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


METHODS = [
    PREDICT,
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    "/tensorflow.serving.ModelService/GetModelStatus",
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    "/grpc.health.v1.Health/Check",
]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message(channel, method):
    whole = good().SerializeToString()
    for content in (b"\xff" * 30, b"\0", whole[:-1], whole[1:], b"\x0a\xff\xff\xff\xff\x7f", b"\x0b" * 1000):
        assert call(channel, content, method) in ("INVALID_ARGUMENT", "NOT_FOUND"), content


def test_every_truncation(channel):
    whole = good().SerializeToString()
    codes = {call(channel, whole[:size]) for size in range(len(whole))}
    assert codes <= {"INVALID_ARGUMENT", "NOT_FOUND", "OK"}


def test_over_the_size_limit(channel):
    before = peak()
    assert call(channel, bytes(MAX_REQUEST_BYTES + 1)) == "RESOURCE_EXHAUSTED"
    assert peak() - before < 4 * MAX_REQUEST_BYTES + SLACK


@pytest.mark.slow
def test_bomb(server):
    import grpc

    before = peak()
    with grpc.insecure_channel(
        f"127.0.0.1:{server.grpc_port}", options=OPTIONS, compression=grpc.Compression.Gzip
    ) as channel:
        assert call(channel, bytes(256 << 20)) == "RESOURCE_EXHAUSTED"
        assert call(channel, good().SerializeToString()) == "OK"
    assert peak() - before < 256 * (2 << 20) + 4 * MAX_REQUEST_BYTES + SLACK  # the client's own message, twice


def test_claims_without_content(channel):
    before = peak()
    for sizes in ([1 << 29], [-1], [1 << 32, 1 << 32], [(1 << 63) - 1], [1 << 20, 1 << 20, 0]):
        request = good()
        request.inputs["x"].tensor_shape.Clear()
        for size in sizes:
            request.inputs["x"].tensor_shape.dim.add(size=size)
        wanted = {"INVALID_ARGUMENT", "OK"} if 0 in sizes else {"INVALID_ARGUMENT"}
        assert call(channel, request.SerializeToString()) in wanted, sizes
    assert peak() - before < SLACK


def test_floods(channel):
    """Up to the limit of a message in the smallest pieces that it can have."""
    before = peak()
    count = MAX_REQUEST_BYTES // 4
    whole = good().SerializeToString()
    unknown = b"\xf8\x3f\x01" * count  # field 1023, number 1
    one_input = b"\x12\x02\x0a\x00" * (count - 10_000)  # an input without a name, a million times
    assert call(channel, unknown + whole) == "INVALID_ARGUMENT"
    assert call(channel, unknown[:3000] + whole) == "OK"
    assert call(channel, one_input + whole) == "INVALID_ARGUMENT"
    filters = b"\x1a\x00" * count  # outputs without a name
    assert call(channel, whole + filters) == "INVALID_ARGUMENT"
    shape = b"\x12\x00" * count  # dimensions of size 0
    tensor = b"\x08\x01" + b"\x12" + _varint(len(shape)) + shape
    entry = b"\x0a\x01x\x12" + _varint(len(tensor)) + tensor
    assert call(channel, whole + b"\x12" + _varint(len(entry)) + entry) == "INVALID_ARGUMENT"
    texts = b"\x42\x00" * count  # empty texts, of a tensor that claims one
    tensor = b"\x08\x07" + texts
    entry = b"\x0a\x01x\x12" + _varint(len(tensor)) + tensor
    assert call(channel, whole + b"\x12" + _varint(len(entry)) + entry) == "INVALID_ARGUMENT"
    assert peak() - before < 30 * MAX_REQUEST_BYTES + SLACK


def _varint(value):
    pieces = bytearray()
    while value > 127:
        pieces.append(value & 127 | 128)
        value >>= 7
    return bytes([*pieces, value])


@pytest.mark.parametrize(
    "name", ["../half", "..", "/etc/passwd", "half\0", "%2e%2e", "half/123", "a\r\nb", "é", "x" * 100_000]
)
def test_names(channel, name):
    assert call(channel, good(name).SerializeToString()) == "NOT_FOUND"


def test_versions(channel):
    for version in (-1, 0, 1000, (1 << 63) - 1, -(1 << 63)):
        request = good()
        request.model_spec.version.value = version
        assert call(channel, request.SerializeToString()) == "NOT_FOUND"


def test_values(channel):
    for values in ([np.nan], [np.inf, -np.inf], [1e-45], [3.4e38] * 2):
        assert call(channel, good(values=values).SerializeToString()) == "OK"
    for count in (0, 1, 5_000, 5_001):
        assert call(channel, good(values=[1.0] * count).SerializeToString()) == "OK"


def test_calls_without_their_message_end(server, monkeypatch):
    """More of them than there are threads; each has a thread until it is ended."""
    monkeypatch.setattr(guard, "MESSAGE_SECONDS", 0.5)
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        never = threading.Event()

        def stalled():
            never.wait()
            yield b""

        calls = [channel.stream_unary(PREDICT).future(stalled()) for _ in range(100)]
        codes = {started.exception(timeout=60).code().name for started in calls}
        assert codes <= {"CANCELLED", "RESOURCE_EXHAUSTED"}
        assert call(channel, good().SerializeToString()) == "OK"
        never.set()


def test_no_message_and_two_messages(channel):
    import grpc

    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(PREDICT)(iter(()), timeout=20)
    assert caught.value.code().name == "INVALID_ARGUMENT"
    assert channel.stream_unary(PREDICT)(iter([good().SerializeToString()] * 2), timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.serving.PredictionService/Nonsense")(b"", timeout=20)
    assert caught.value.code().name == "UNIMPLEMENTED"
