"""The gRPC client: the same calls as `serving.rest`, with packed tensors. Needs grpcio and numpy, no TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serving.age import WATERMARK, watermark_of
from serving.client import Client, Which
from serving.errors import CODES, ServingError, Unimplemented, request_error
from serving.protos import messages
from serving.signature import Signature
from serving.tensors import pack, unpack

__all__ = ["LIVE_METADATA", "RankClient"]

LIVE_METADATA = "seedrank-live-bin"  # -bin: bytes, as gRPC has it
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),  # ours are the only ones: they know the deadline of all attempts
]
_VERSIONS = 100  # whose watermarks are remembered
_APIS = "tensorflow_serving/apis"
_CALLS = {  # method -> the file of its messages, and their name
    "PredictionService/Predict": ("predict", "Predict"),
    "PredictionService/GetModelMetadata": ("get_model_metadata", "GetModelMetadata"),
    "ModelService/GetModelStatus": ("get_model_status", "GetModelStatus"),
}


class RankClient(Client):
    """Calls a model over gRPC; `serving.rest.RankClient` is its twin. Safe to use from many threads.

    Args:
        address: str. `host:port`. Defaults to `"127.0.0.1:8500"`.
        model: str. The model's name. Defaults to `"seedrank"`.
        timeout: float. Seconds that one call may take, all attempts together; the server is told what is left and
            stops working when it is over. Defaults to `5.0`.
        retries: int. Further attempts when the server can not be reached or answers UNAVAILABLE. Defaults to `2`.
        max_table_age: float or `None`. Seconds beyond which an answer's tables are `stale`. Defaults to no limit.
        hard_table_age: float or `None`. Seconds beyond which there is `StaleTables` in place of an answer. Defaults to
            no limit.

    Example:
        client = RankClient("127.0.0.1:8500", model="seedrank")
        scores = client.rank(42, numpy.arange(5000), context={"tab": 1}, outputs=["score"])["score"]
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8500",
        model: str = "seedrank",
        timeout: float = 5.0,
        retries: int = 2,
        *,
        max_table_age: float | None = None,
        hard_table_age: float | None = None,
    ) -> None:
        if "://" in address or ":" not in address:
            raise ServingError(f"`address` should be host:port. Received: address={address!r}.")
        super().__init__(model, timeout, retries, max_table_age, hard_table_age)
        self._watermarks: dict[int, Any] = {}  # by version: it is the same for every answer of one
        import grpc

        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stubs = {method: self._stub(method, *where) for method, where in _CALLS.items()}

    def status(self) -> list[dict[str, Any]]:
        """The model's versions, newest first: `version`, `state`, `error_code`, `error_message`."""
        states = messages(f"{_APIS}/get_model_status.proto").ModelVersionStatus.State
        response, _ = self._status()
        return [
            {
                "version": entry.version,
                "state": states.Name(entry.state),
                "error_code": CODES[entry.status.error_code],
                "error_message": entry.status.error_message,
            }
            for entry in response.model_version_status
        ]

    def live(self) -> dict[str, Any]:
        """The version that answers, as `serving.rest.RankClient.live`.

        Raises:
            Unimplemented: the server does not tell it: TensorFlow Serving does not.
        """
        _, beside = self._status()
        if LIVE_METADATA not in beside:
            raise Unimplemented("this server does not tell what its versions are made of.")
        found = json.loads(beside[LIVE_METADATA])
        return {**found, "version": int(found["version"])}

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _predict(
        self,
        signature: str,
        declared: Signature,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        which: Which,
        deadline: float,
    ) -> tuple[dict[str, Any], Any]:
        types = messages("tensorflow/core/framework/types.proto").DataType
        request = messages(f"{_APIS}/predict.proto").PredictRequest(output_filter=outputs)
        self._fill_spec(request, which)
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            dtype = types.Value(declared.inputs[name].dtype) if name in declared.inputs else None
            request.inputs[name].CopyFrom(pack(name, values, dtype))
        version, found = self._answer(request, deadline)
        if self._needs_age and WATERMARK not in found:
            if version in self._watermarks:
                return found, self._watermarks[version]
            # Once a version: the watermark with these outputs would be a choice of its own, which the server compiles.
            request.ClearField("output_filter")
            version, found = self._answer(request, deadline)
        watermark = watermark_of(found)
        if self._needs_age and version and watermark is not None:
            if len(self._watermarks) >= _VERSIONS:
                self._watermarks.clear()
            self._watermarks[version] = watermark
        return {name: found[name] for name in outputs or found}, watermark

    def _answer(self, request: Any, deadline: float) -> tuple[int, dict[str, Any]]:
        """The version, 0 where that is not told, and all outputs of the reply."""
        response, _ = self._call("PredictionService/Predict", request, deadline)
        found = {name: _values(name, unpack(tensor)) for name, tensor in response.outputs.items()}
        return response.model_spec.version.value, found

    def _metadata(self, which: Which, deadline: float) -> dict[str, Any]:
        from google.protobuf.json_format import MessageToDict

        apis = messages(f"{_APIS}/get_model_metadata.proto")
        request = apis.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_spec(request, which)
        response, _ = self._call("PredictionService/GetModelMetadata", request, deadline)
        signatures = apis.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        options: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
        return {
            "model_spec": MessageToDict(response.model_spec, **options),
            "metadata": {"signature_def": MessageToDict(signatures, **options)},
        }

    def _status(self) -> tuple[Any, dict[str, Any]]:
        request = messages(f"{_APIS}/get_model_status.proto").GetModelStatusRequest()
        self._fill_spec(request, (None, None))
        return self._call("ModelService/GetModelStatus", request, self._deadline())

    def _fill_spec(self, request: Any, which: Which) -> None:
        version, label = which
        request.model_spec.name = self._model
        if version is not None:
            request.model_spec.version.value = version
        if label is not None:
            request.model_spec.version_label = label

    def _stub(self, method: str, file: str, name: str) -> Any:
        apis = messages(f"{_APIS}/{file}.proto")
        return self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=getattr(apis, f"{name}Request").SerializeToString,
            response_deserializer=getattr(apis, f"{name}Response").FromString,
        )

    def _call(self, method: str, request: Any, deadline: float) -> tuple[Any, dict[str, Any]]:
        """The reply, and the metadata that came after it."""
        import grpc

        def attempt(seconds: float) -> tuple[Any, dict[str, Any]]:
            try:
                response, done = self._stubs[method].with_call(request, timeout=seconds)
            except grpc.RpcError as error:
                raise request_error(CODES[error.code().value[0]], error.details() or "no details") from error
            return response, dict(done.trailing_metadata() or ())

        return self._again(attempt, deadline)


def _values(name: str, array: Any) -> Any:
    if array.dtype.kind == "O" and not name.endswith("_bytes"):
        return _decoded(array.tolist())
    return array.tolist()


def _decoded(values: Any) -> Any:
    return [_decoded(value) for value in values] if isinstance(values, list) else values.decode("utf-8", "replace")
