"""The gRPC client: the same calls as `serving.rest`, with packed tensors. Imports TensorFlow at the first call."""

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from serving.errors import CODES, InvalidArgument, ServingError, Unavailable, Unimplemented, request_error
from serving.signature import Signature, declared_signature, rank_inputs

__all__ = ["LIVE_METADATA", "RankClient"]

LIVE_METADATA = "seedrank-live-bin"  # -bin: bytes, as gRPC has it
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class RankClient:
    """Calls a model over gRPC. Safe to use from many threads.

    Args:
        address: str. `host:port`. Defaults to `"127.0.0.1:8500"`.
        model: str. The model's name. Defaults to `"seedrank"`.
        timeout: float. Seconds that one call may take, retries included; the server stops working when they are
            over. Defaults to `5.0`.
        retries: int. Further attempts when the server can not be reached or answers UNAVAILABLE. Defaults to `2`.
    """

    def __init__(
        self, address: str = "127.0.0.1:8500", model: str = "seedrank", timeout: float = 5.0, retries: int = 2
    ) -> None:
        if "://" in address or ":" not in address:
            raise ServingError(f"`address` should be host:port. Received: address={address!r}.")
        if timeout <= 0:
            raise ServingError(f"`timeout` should be positive. Received: timeout={timeout}.")
        if retries < 0:
            raise ServingError(f"`retries` should not be negative. Received: retries={retries}.")
        import grpc

        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._signatures: dict[tuple[str, int | None], Signature] = {}

    def predict(
        self, inputs: Mapping[str, Any], *, signature: str | None = None, version: int | None = None
    ) -> dict[str, Any]:
        """Runs a signature.

        Args:
            inputs: dict of lists or arrays, by input name; converted to the declared types.
            signature: str. Defaults to `serving_default`.
            version: int. Defaults to the newest.

        Returns:
            Dict of lists, by output name; text as `str`, outputs whose names end in `_bytes` as `bytes`.

        Raises:
            ServingError: a `RequestError` with the server's words and code.
        """
        import tensorflow as tf
        from tensorflow.core.framework.types_pb2 import DataType
        from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

        declared = self._signature(signature or "serving_default", version)
        request = PredictRequest()
        self._fill_spec(request, version)
        request.model_spec.signature_name = signature or ""
        for name, values in inputs.items():
            dtype = None
            if name in declared.inputs:
                dtype = tf.as_dtype(DataType.Value(declared.inputs[name].dtype))
            try:
                request.inputs[name].CopyFrom(tf.make_tensor_proto(_packed(values, dtype), dtype=dtype))
            except (TypeError, ValueError, OverflowError) as error:
                wanted = dtype.name if dtype else "a tensor"
                raise ServingError(f"`{name}` can not be sent as {wanted}: {error}") from error
        try:
            response, _ = self._call("PredictionService/Predict", request, PredictResponse)
        except InvalidArgument:
            self._signatures.clear()  # a new version may have other inputs
            raise
        return {name: _values(name, tf.make_ndarray(proto)) for name, proto in response.outputs.items()}

    def rank(
        self,
        user_id: int | str,
        item_ids: Sequence[Any],
        *,
        context: Mapping[str, Any] | None = None,
        price: Sequence[float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Scores candidate items for a user, as `serving.rest.RankClient.rank`."""
        name = "rank" if weights is None else "rank_with_weights"
        declared = self._signature(name, None)
        inputs = rank_inputs(declared, user_id, item_ids, context=context, price=price, weights=weights)
        return self.predict(inputs, signature=name)

    def status(self) -> list[dict[str, Any]]:
        """The model's versions, newest first: `version`, `state`, `error_code`, `error_message`."""
        from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

        response, _ = self._status()
        return [
            {
                "version": entry.version,
                "state": ModelVersionStatus.State.Name(entry.state),
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

    def _status(self) -> tuple[Any, dict[str, Any]]:
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse

        request = GetModelStatusRequest()
        self._fill_spec(request, None)
        return self._call("ModelService/GetModelStatus", request, GetModelStatusResponse)

    def metadata(self, version: int | None = None) -> dict[str, Any]:
        """The model's signatures, in the form of the REST API."""
        from google.protobuf.json_format import MessageToDict
        from tensorflow_serving.apis.get_model_metadata_pb2 import (
            GetModelMetadataRequest,
            GetModelMetadataResponse,
            SignatureDefMap,
        )

        request = GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_spec(request, version)
        response, _ = self._call("PredictionService/GetModelMetadata", request, GetModelMetadataResponse)
        signatures = SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        options: dict[str, Any] = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
        return {
            "model_spec": MessageToDict(response.model_spec, **options),
            "metadata": {"signature_def": MessageToDict(signatures, **options)},
        }

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> "RankClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signature(self, name: str, version: int | None) -> Signature:
        if (name, version) not in self._signatures:
            self._signatures[name, version] = declared_signature(self.metadata(version), name)
        return self._signatures[name, version]

    def _fill_spec(self, request: Any, version: int | None) -> None:
        request.model_spec.name = self._model
        if version is not None:
            request.model_spec.version.value = version

    def _call(self, method: str, request: Any, response_type: Any) -> tuple[Any, dict[str, Any]]:
        """The reply, and the metadata that came after it."""
        import grpc

        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response_type.FromString,
        )
        deadline = time.monotonic() + self._timeout
        for attempt in range(self._retries + 1):
            try:
                response, done = call.with_call(request, timeout=max(deadline - time.monotonic(), 0.001))
                return response, dict(done.trailing_metadata() or ())
            except grpc.RpcError as error:
                failure = request_error(CODES[error.code().value[0]], error.details() or "no details")
                pause = 0.05 * 2**attempt
                final = attempt == self._retries or time.monotonic() + pause >= deadline
                if final or not isinstance(failure, Unavailable):
                    raise failure from error
                time.sleep(pause)
        raise Unavailable(f"no answer to {method}")


def _packed(values: Any, dtype: Any) -> Any:
    """Numbers as an array of the declared type, by a cast that loses nothing but the precision of floats."""
    import numpy as np

    if dtype is None or not (dtype.is_integer or dtype.is_floating):
        return values
    array = np.asarray(values)
    target = np.dtype(dtype.as_numpy_dtype)
    if array.size and array.dtype.kind not in ("iuf" if dtype.is_floating else "iu"):
        raise TypeError(f"values are {array.dtype.name}")
    cast = array.astype(target)
    if dtype.is_integer and not (cast == array).all():
        raise OverflowError(f"a value does not fit into {target.name}")
    return cast


def _values(name: str, array: Any) -> Any:
    if array.dtype.kind == "O" and not name.endswith("_bytes"):
        return _decoded(array.tolist())
    return array.tolist()


def _decoded(values: Any) -> Any:
    return [_decoded(value) for value in values] if isinstance(values, list) else values.decode("utf-8", "replace")
