"""Cases recorded from TensorFlow Serving, replayed against the embedded server."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import urllib3

from serving.server import Server

CASES = Path(__file__).resolve().parents[3] / "shared" / "conformance" / "tfserving_cases.json"

# Not covered yet, each with its reason.
SKIPPED = {
    "rest-predict-label": "labels come from a models.config, which the server does not read yet",
    "grpc-label": "labels come from a models.config, which the server does not read yet",
    "grpc-reload-platform": "HandleReloadConfigRequest is not built yet",
}
# Compared by what the case expects only, because the recorded text is this one recording's.
INEXACT = {
    "json-float-format": "the recording flushed the denormal 1e-45 to zero",
    "run-op-error": "names a node of the recorded graph",
}


@pytest.fixture(scope="module")
def cases():
    if not CASES.is_file():
        pytest.skip("the recorded cases are not beside the project (../shared/conformance/tfserving_cases.json)")
    return {case["id"]: case for case in json.loads(CASES.read_text())["cases"]}


@pytest.fixture(scope="module")
def server(conformance_models):
    with Server(conformance_models, rest_port=0, grpc_port=0, poll_seconds=3600) as server:
        yield server


def send_rest(server, request):
    body = request.get("body", "").encode()
    headers = dict(request.get("headers", {}))
    if request.get("gzip_body"):
        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
    with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port) as pool:
        return pool.urlopen(request["method"], request["path"], body=body, headers=headers)


def test_skipped_cases_exist(cases):
    assert SKIPPED.keys() | INEXACT.keys() <= cases.keys()


def test_rest(cases, server):
    ran = 0
    for name, case in cases.items():
        if case["transport"] != "rest" or name in SKIPPED:
            continue
        response = send_rest(server, case["request"])
        expected, observed = case["expect"], case["observed"]
        assert response.status == expected["status"] == observed["status"], name
        if "json" in expected:
            assert json.loads(response.data) == expected["json"], name
        if "error_contains" in expected:
            assert expected["error_contains"] in json.loads(response.data)["error"], name
        if name not in INEXACT:
            assert response.data.decode() == observed["body"], name
            for header, value in observed["headers"].items():
                assert response.headers[header] == value, (name, header)
        ran += 1
    assert ran == sum(case["transport"] == "rest" for case in cases.values()) - 1


def call_grpc(channel, request):
    import grpc
    from google.protobuf.json_format import MessageToDict, ParseDict
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

    kinds = {
        "Predict": (predict_pb2.PredictRequest, predict_pb2.PredictResponse),
        "GetModelMetadata": (
            get_model_metadata_pb2.GetModelMetadataRequest,
            get_model_metadata_pb2.GetModelMetadataResponse,
        ),
        "GetModelStatus": (get_model_status_pb2.GetModelStatusRequest, get_model_status_pb2.GetModelStatusResponse),
    }
    kind, reply = kinds[request["rpc"].rsplit("/", 1)[1]]
    call = channel.unary_unary(request["rpc"], kind.SerializeToString, reply.FromString)
    try:
        response = call(ParseDict(request["message"], kind()), timeout=20)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", MessageToDict(response, preserving_proto_field_name=True)


def test_grpc(cases, server, conformance_models, tmp_path):
    import grpc

    two = tmp_path / "two"
    shutil.copytree(conformance_models / "two" / "123", two / "123")
    shutil.copytree(conformance_models / "two" / "123", two / "124")
    ran = 0
    with Server(two, rest_port=0, grpc_port=0) as newest:
        for name, case in cases.items():
            if case["transport"] != "grpc" or name in SKIPPED:
                continue
            port = newest.grpc_port if name == "grpc-latest-of-two" else server.grpc_port
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                code, answer = call_grpc(channel, case["request"])
            expected, observed = case["expect"], case["observed"]
            assert code == expected["code"] == observed["code"], name
            if "response" in expected:
                assert answer == expected["response"], name
            if "message_contains" in expected:
                assert expected["message_contains"] in answer, name
            assert answer == observed.get("response", observed.get("message")), name
            ran += 1
    assert ran == sum(case["transport"] == "grpc" for case in cases.values()) - 2
