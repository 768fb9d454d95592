"""Ten thousand broken requests of each kind: none crashes, none hangs, none is called the server's own mistake."""

import functools
import json
import re
import resource
import socket
import time

import pytest
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.protos import messages
from serving.server import Server
from serving.server.admission import MAX_REQUEST_BYTES, Admission
from serving.server.metrics import Metrics
from serving.server.rest import _PREDICT, RestServer, _answered
from serving.server.rpc import _PredictionService
from serving.server.versions import Models, find_models

MODELS = ("half", "id_int64", "id_string", "id_bool", "two_in", "multi", "intdiv")
KINDS = messages("tensorflow_serving/apis/predict.proto")
# Most of it is what hypothesis remembers of 10,000 examples; one request that is not bounded takes more.
ROOM = 24 * MAX_REQUEST_BYTES
FEW = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=10_000)


@pytest.fixture(scope="module")
def models(conformance_models):
    wanted = [config for config in find_models(conformance_models) if config.name in MODELS]
    models = Models(wanted, metrics=Metrics())
    models.start()
    yield models
    models.close()


def resident():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * resource.getpagesize()


numbers = st.integers(-(2**65), 2**65) | st.floats() | st.booleans() | st.none()
texts = st.text(max_size=8) | st.sampled_from(["x", "a", "b", "b64", "y", "\ud800", "\0", "NaN"])
values = st.recursive(
    numbers | texts | st.fixed_dictionaries({"b64": texts | numbers}),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
alike = st.integers(0, 40).flatmap(lambda size: st.lists(numbers | texts, min_size=size, max_size=size))
documents = st.fixed_dictionaries(
    {},
    optional={
        "inputs": values
        | alike
        | st.fixed_dictionaries({"a": values, "b": values})
        | st.fixed_dictionaries({"x": alike}),
        "instances": values | alike | st.lists(st.fixed_dictionaries({"a": values, "b": values}), max_size=4),
        "signature_name": st.sampled_from(["", "serving_default", "regress_x_to_y"]) | values,
    },
).map(lambda document: json.dumps(document).encode())
whole = [
    b'{"instances": [1.0, 2.0, 5.0]}', b'{"signature_name": "serving_default", "inputs": {"x": [[1], [2]]}}',
    b'{"instances": [{"a": [1, 2], "b": 3.5}, {"a": [1, -2e5], "b": NaN}]}',
    b'{"inputs": [{"b64": "aGk="}, "\\u00e9"]}', b'{"inputs": {"a": [[1, 2]], "b": [Infinity]}}',
]  # fmt: skip
pieces = st.sampled_from(
    [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\\", b"\0", b"\xff", b"-", b"1e999", b"Inf", b"9" * 30]
)


@st.composite
def broken(draw, contents, inserted):
    """A whole request with parts cut out, doubled, or something put in."""
    content = draw(contents)
    for _ in range(draw(st.integers(1, 4))):
        first, last = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        middle = draw(st.sampled_from([b"", content[first:last] * 2]) | inserted)
        content = content[:first] + middle + content[last:]
    return content


bodies = documents | broken(st.sampled_from(whole), pieces | st.binary(max_size=4)) | st.binary(max_size=80)


def fuzz_rest(models, chosen):
    admission = Admission(1, 0)
    bound = socket.socket()
    server = RestServer(models, bound, admission)  # not started: the work without the socket
    before = resident()

    @chosen
    @given(st.sampled_from(MODELS), bodies, st.sampled_from(["", "", "", "gzip", "deflate"]))
    def run(name, body, encoding):
        found = _PREDICT.fullmatch(f"/v1/models/{name}:predict")
        deadline = time.monotonic() + 20
        work = functools.partial(server._predict, found, body, encoding, admission.enter(deadline), deadline)
        status, reply, code = _answered(work)
        assert status in (200, 400, 404, 413, 415, 501), (status, reply, body)
        assert code not in ("INTERNAL", "UNKNOWN")
        assert admission.counts["running"] == 0
        json.loads(reply.decode("utf-8", "replace"))

    run()
    bound.close()
    server._loop.close()
    assert resident() - before < ROOM


def test_rest_bodies(models):
    fuzz_rest(models, FEW)


@pytest.mark.slow
def test_ten_thousand_rest_bodies(models):
    fuzz_rest(models, MANY)


sizes = st.integers(-2, 6) | st.sampled_from([1 << 20, 1 << 31, 1 << 32, (1 << 63) - 1, -(1 << 63)])
fields = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 10, 14, 19, 20, 22, 23, 101]),
        "shape": st.lists(sizes, max_size=4),
    },
    optional={
        "float_val": st.lists(st.floats(width=32), max_size=6),
        "int64_val": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
        "int_val": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6),
        "string_val": st.lists(st.binary(max_size=4), max_size=6),
        "bool_val": st.lists(st.booleans(), max_size=6),
        "half_val": st.lists(st.integers(-5, 70_000), max_size=6),
        "tensor_content": st.binary(max_size=32),
    },
)


@st.composite
def requests(draw):
    request = KINDS.PredictRequest()
    if draw(st.integers(0, 9)):
        request.model_spec.name = draw(st.sampled_from([*MODELS, *MODELS, "", "../half"]))
        request.model_spec.signature_name = draw(
            st.sampled_from(["", "", "", "serving_default", "regress_x_to_y", "?"])
        )
        if not draw(st.integers(0, 9)):
            request.model_spec.version.value = draw(st.sampled_from([123, -1, 0, (1 << 63) - 1]))
    for alias in draw(st.sampled_from([["x"], ["x"], ["a", "b"], [], ["x", "y"], [*"xyz"]])):
        tensor = request.inputs[alias]
        for name, value in draw(fields).items():
            if name == "shape":
                for size in value:
                    tensor.tensor_shape.dim.add(size=size)
            elif isinstance(value, list):
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)
    request.output_filter.extend(draw(st.lists(st.sampled_from(["y", "s", "z", ""]), max_size=2)))
    return request.SerializeToString()


protobufs = requests() | broken(requests(), st.binary(max_size=6)) | st.binary(max_size=80)


class Context:
    """As much of a gRPC call as the service uses."""

    def time_remaining(self):
        return 20.0

    def add_callback(self, callback):
        return True

    def abort(self, code, details):
        raise Aborted(code.name, details)


class Aborted(Exception):
    pass


def fuzz_protobufs(models, chosen):
    admission = Admission(1, 0)
    predict = _PredictionService(models, admission, None).calls["Predict"]
    before = resident()

    @chosen
    @given(protobufs)
    def run(message):
        try:
            KINDS.PredictResponse.FromString(predict(message, Context()))
        except Aborted as error:
            code, details = error.args
            assert code in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"), (code, details)
            assert len(details) < 1200
        assert admission.counts["running"] == 0

    run()
    assert resident() - before < ROOM


def test_protobufs(models):
    fuzz_protobufs(models, FEW)


@pytest.mark.slow
def test_ten_thousand_protobufs(models):
    fuzz_protobufs(models, MANY)


@pytest.mark.slow
def test_both_over_a_socket(conformance_models):
    import grpc

    with (
        Server(conformance_models / "half", rest_port=0, grpc_port=0, poll_seconds=3600) as server,
        urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=20) as pool,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        @settings(FEW, max_examples=200)
        @given(bodies, protobufs)
        def run(body, message):
            path = "/v1/models/half:predict"
            assert pool.urlopen("POST", path, body=body).status in (200, 400), body
            try:
                call(message, timeout=20)
            except grpc.RpcError as error:
                assert re.fullmatch("INVALID_ARGUMENT|NOT_FOUND|FAILED_PRECONDITION", error.code().name), (
                    error.details()
                )

        run()
