"""The running server: swaps without a lost request, refusals at start, limits."""

import json
import shutil
import socket
import threading

import pytest
import urllib3

from serving.errors import InvalidArgument, NotFound, ServingError
from serving.rest import RankClient as RestClient
from serving.server import Server


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory, save_half):
    """n -> n by counting up: as slow as asked for."""
    import tensorflow as tf

    path = tmp_path_factory.mktemp("slow") / "slow"

    class Count(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="n")])
        def run(self, n):
            zero = tf.zeros([], tf.int64)
            return {"y": tf.while_loop(lambda i: i < n, lambda i: i + 1, [zero], parallel_iterations=1)[0]}

    module = Count()
    tf.saved_model.save(module, str(path / "1"), signatures=module.run)
    return path


@pytest.fixture(scope="module")
def server(conformance_models):
    with Server(conformance_models, rest_port=0, grpc_port=0) as server:
        yield server


def post(server, path, body, headers=None):
    with urllib3.HTTPConnectionPool("127.0.0.1", server.rest_port, timeout=20) as pool:
        response = pool.urlopen("POST", path, body=body, headers=headers or {})
    return response.status, response.data


def test_hot_swap_loses_no_request(tmp_path, save_half):
    for version, constant in (("1", 1.0), ("2", 2.0), ("3", 3.0)):
        save_half(tmp_path / "staged" / version, constant)
    models = tmp_path / "models" / "half"
    models.mkdir(parents=True)
    (tmp_path / "staged" / "1").rename(models / "1")
    answers, failures, enough = [], [], threading.Event()
    with Server(tmp_path / "models", rest_port=0, grpc_port=0, poll_seconds=0.05) as server:

        def ask():
            with RestClient(f"http://127.0.0.1:{server.rest_port}", "half", retries=0, timeout=20) as client:
                while not enough.is_set():
                    try:
                        answers.append(client.predict({"x": [[0.0]]})["y"][0][0])
                    except ServingError as error:
                        failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        with RestClient(f"http://127.0.0.1:{server.rest_port}", "half", timeout=60) as client:
            for version in ("2", "3"):
                while float(version) - 1 not in answers:
                    threading.Event().wait(0.02)
                (tmp_path / "staged" / version).rename(models / version)
                while client.status()[0] != {
                    "version": int(version),
                    "state": "AVAILABLE",
                    "error_code": "OK",
                    "error_message": "",
                }:
                    threading.Event().wait(0.02)
            while 3.0 not in answers:
                threading.Event().wait(0.02)
            (models / "4").mkdir()
            while len(client.status()) < 4 or client.status()[0]["state"] != "END":
                threading.Event().wait(0.02)
            newest = client.status()[0]
        enough.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sorted(set(answers)) == [1.0, 2.0, 3.0]
    assert answers[-1] == 3.0
    assert newest["error_code"] == "NOT_FOUND"
    assert newest["error_message"].startswith("Specified file path does not appear to contain a SavedModel bundle")


def test_port_in_use(conformance_models):
    half = conformance_models / "half"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} is in use: "):
            Server(half, rest_port=port, grpc_port=0).start()
        with pytest.raises(ServingError, match=f"port {port} is in use: "):
            Server(half, rest_port=0, grpc_port=port).start()


def test_refuses_to_start_without_models(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(ServingError, match="model m has no version"):
        Server(tmp_path, rest_port=0, grpc_port=0).start()
    (tmp_path / "m" / "5").mkdir()
    with pytest.raises(ServingError, match=r"model m has no version that loads; version 5: .*SavedModel bundle"):
        Server(tmp_path, rest_port=0, grpc_port=0).start()
    with pytest.raises(ServingError, match="`poll_seconds` should be positive. Received: poll_seconds=0."):
        Server(tmp_path, poll_seconds=0)


def test_a_model_folder_by_itself(conformance_models):
    server = Server(conformance_models / "half", rest_port=0, grpc_port=0)
    server.start()
    try:
        assert post(server, "/v1/models/half:predict", b'{"instances": [2.0]}')[0] == 200
    finally:
        server.stop()
        server.stop()
    server.wait()


def test_version_too_large_for_a_number(server):
    assert post(server, "/v1/models/half/versions/9223372036854775808:predict", b"{}") == (400, b"")


def test_int64_ids_are_exact(server):
    ids = [9007199254740993, -(2**63), 2**63 - 1]
    with RestClient(f"http://127.0.0.1:{server.rest_port}", "id_int64", timeout=60) as client:
        assert client.predict({"x": ids}) == {"y": ids}


def test_strings_survive(server):
    words = ['"quoted"', "a/b\\c", "喜欢", "", "\u0001"]
    with RestClient(f"http://127.0.0.1:{server.rest_port}", "id_string", timeout=60) as client:
        assert client.predict({"x": words}) == {"y": words}
    with RestClient(f"http://127.0.0.1:{server.rest_port}", "id_bytes", timeout=60) as client:
        assert client.predict({"x": [b"\xff\x00", "text"]}) == {"y_bytes": [b"\xff\x00", b"text"]}


def test_shape_and_dtype_errors_are_the_callers(server):
    with RestClient(f"http://127.0.0.1:{server.rest_port}", "two_in", timeout=60) as client:
        with pytest.raises(InvalidArgument, match="[Ii]ncompatible shapes"):
            client.predict({"a": [[1.0, 2.0]] * 3, "b": [1.0, 2.0]})
        with pytest.raises(InvalidArgument, match="not of expected type: float"):
            client.predict({"a": [["x", "y"]], "b": [1.0]})


def test_unknown_signature(server):
    status, body = post(server, "/v1/models/half:predict", b'{"signature_name": "\\ud800", "inputs": [1.0]}')
    assert (status, json.loads(body)["error"][:22]) == (400, "Serving signature name")


def test_classify_and_regress_are_not_here(server):
    for verb in ("classify", "regress"):
        status, body = post(server, f"/v1/models/half:{verb}", b"{}")
        assert (status, json.loads(body)["error"]) == (501, f"{verb} is not supported by this server: use predict.")


def test_deadline(slow_model):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    with (
        Server(slow_model, rest_port=0, grpc_port=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "slow"
        request.inputs["n"].CopyFrom(tf.make_tensor_proto(10**12, tf.int64))
        with pytest.raises(grpc.RpcError) as caught:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_grpc_refusals(server):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        model_management_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )  # fmt: skip

    def refused(call, request):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=20)
        return caught.value.code().name, caught.value.details()

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        assert refused(stub.Classify, classification_pb2.ClassificationRequest())[0] == "UNIMPLEMENTED"
        assert refused(models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()) == (
            "INVALID_ARGUMENT",
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported",
        )
        request = get_model_metadata_pb2.GetModelMetadataRequest()
        request.model_spec.name = "half"
        assert refused(stub.GetModelMetadata, request)[1] == (
            "GetModelMetadataRequest must specify at least one metadata_field"
        )
        request.metadata_field.append("x")
        assert refused(stub.GetModelMetadata, request) == ("INVALID_ARGUMENT", "Metadata field x is not supported")

        request = predict_pb2.PredictRequest()
        request.model_spec.name = "half"
        request.inputs["key"].CopyFrom(tf.make_tensor_proto([1.0]))
        code, message = refused(stub.Predict, request)
        assert code == "INVALID_ARGUMENT"
        assert message.startswith("Signature input alias: x(feed name: x:0) not found in request and no default value")
        request.inputs["x"].CopyFrom(request.inputs["key"])
        del request.inputs["key"]
        request.model_spec.signature_name = "rank"
        assert refused(stub.Predict, request) == (
            "FAILED_PRECONDITION",
            'Serving signature key "rank" not found.',
        )
        request.model_spec.signature_name = ""
        for broken in ({"dim": [-1]}, {"dim": [2], "content": b"\0" * 7}, {"dim": [1 << 40]}):
            proto = request.inputs["x"]
            proto.Clear()
            proto.dtype = 1
            for size in broken["dim"]:
                proto.tensor_shape.dim.add(size=size)
            proto.tensor_content = broken.get("content", b"")
            assert refused(stub.Predict, request) == ("INVALID_ARGUMENT", "tensor parsing error: x"), broken


def test_metadata_over_both_wires(server):
    from serving.rpc import RankClient as GrpcClient

    with (
        RestClient(f"http://127.0.0.1:{server.rest_port}", "half_tf2", timeout=60) as rest,
        GrpcClient(f"127.0.0.1:{server.grpc_port}", "half_tf2", timeout=60) as rpc,
    ):
        assert rest.metadata() == rpc.metadata()
        assert rest.metadata()["model_spec"] == {"name": "half_tf2", "signature_name": "", "version": "123"}
        signature = rest.metadata()["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["inputs"]["x"]["tensor_shape"] == {
            "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False
        }  # fmt: skip
        assert rest.status() == rpc.status()
        with pytest.raises(NotFound):
            rest.metadata(9)


def test_rolls_back_when_the_newest_is_deleted(tmp_path, save_half):
    save_half(tmp_path / "half" / "1", 1.0)
    save_half(tmp_path / "half" / "2", 2.0)
    with (
        Server(tmp_path, rest_port=0, grpc_port=0, poll_seconds=0.05) as server,
        RestClient(f"http://127.0.0.1:{server.rest_port}", "half", timeout=20) as client,
    ):
        assert client.predict({"x": [[0.0]]}) == {"y": [[2.0]]}
        shutil.rmtree(tmp_path / "half" / "2")
        while client.status()[0]["state"] != "END":
            threading.Event().wait(0.02)
        assert client.predict({"x": [[0.0]]}) == {"y": [[1.0]]}
