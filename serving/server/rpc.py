"""The gRPC services: Predict, GetModelMetadata and GetModelStatus with TensorFlow Serving's codes and texts."""

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving.errors import CODES, InvalidArgument, NotFound, RequestError, ServingError, Unimplemented
from serving.rpc import LIVE_METADATA
from serving.server.bundle import DEFAULT_SIGNATURE
from serving.server.encode import live_reply
from serving.server.versions import Models

__all__ = ["start_grpc"]

_log = logging.getLogger("serving")
MAX_MESSAGE = 1024  # characters of an error
MAX_ELEMENTS = 1 << 27  # of a tensor whose single value is repeated
_STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}

# numpy dtype -> the field that carries its values
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "int32": "int_val",
    "int16": "int_val",
    "int8": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
}


def start_grpc(models: Models, address: str, workers: int) -> tuple[Any, int]:
    """Starts the gRPC server.

    Args:
        models: Models.
        address: str. `host:port`; port 0 takes a free one.
        workers: int. Requests answered at the same time; more wait.

    Returns:
        The `grpc.Server` and its port.

    Raises:
        ServingError: the port is in use.
    """
    import grpc
    from tensorflow_serving.apis.model_service_pb2_grpc import add_ModelServiceServicer_to_server
    from tensorflow_serving.apis.prediction_service_pb2_grpc import add_PredictionServiceServicer_to_server

    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(ThreadPoolExecutor(workers, thread_name_prefix="serving-grpc"), options=options)
    add_PredictionServiceServicer_to_server(_PredictionService(models), server)
    add_ModelServiceServicer_to_server(_ModelService(models), server)
    port_text = address.rsplit(":", 1)[1]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ServingError(f"port {port_text} is in use: gRPC can not listen on {address}.") from error
    server.start()
    return server, port


def _answer(context: Any, work: Callable[[], Any]) -> Any:
    """Runs `work`; an error becomes the status of the call."""
    import grpc

    try:
        return work()
    except RequestError as error:
        code, message = error.code, error.message
    except Exception:
        _log.exception("gRPC request failed")
        code, message = "INTERNAL", "internal error: see the server's log"
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "...TRUNCATED"
    statuses = {status.value[0]: status for status in grpc.StatusCode}
    return context.abort(statuses[CODES.index(code)], message)


def _spec(request: Any) -> tuple[str, int | None, str]:
    """Name, version and label of the model that a request is for."""
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    spec = request.model_spec
    return spec.name, spec.version.value if spec.HasField("version") else None, spec.version_label


class _PredictionService:
    """`tensorflow.serving.PredictionService`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: self._predict(request, context.time_remaining()))

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: self._metadata(request))

    def Classify(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: _unimplemented("Classify"))

    def Regress(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: _unimplemented("Regress"))

    def MultiInference(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: _unimplemented("MultiInference"))

    def _predict(self, request: Any, timeout: float | None) -> Any:
        from tensorflow_serving.apis.predict_pb2 import PredictResponse

        name, version, label = _spec(request)
        signature = request.model_spec.signature_name
        with self._models.use(name, version, label) as (number, bundle):
            inputs = {alias: _from_proto(alias, proto) for alias, proto in request.inputs.items()}
            outputs = bundle.predict(inputs, signature=signature, output_filter=request.output_filter, timeout=timeout)
        response = PredictResponse()
        response.model_spec.name = name
        response.model_spec.version.value = number
        response.model_spec.signature_name = signature or DEFAULT_SIGNATURE
        for alias, array in outputs.items():
            _to_proto(array, response.outputs[alias])
        return response

    def _metadata(self, request: Any) -> Any:
        from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse, SignatureDefMap

        name, version, label = _spec(request)
        if not request.metadata_field:
            raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise InvalidArgument(f"Metadata field {field} is not supported")
        response = GetModelMetadataResponse()
        with self._models.use(name, version, label) as (number, bundle):
            response.metadata["signature_def"].Pack(SignatureDefMap(signature_def=bundle.signatures))
        response.model_spec.name = name
        response.model_spec.version.value = number
        return response


class _ModelService:
    """`tensorflow.serving.ModelService`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: self._status(request, context))

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        return _answer(context, lambda: _unimplemented("HandleReloadConfigRequest"))

    def _status(self, request: Any, context: Any) -> Any:
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse

        name, version, _ = _spec(request)  # TensorFlow Serving ignores the label here
        response = GetModelStatusResponse()
        for status in self._models.statuses(name, version):
            added = response.model_version_status.add(version=status.version, state=_STATES[status.state])
            added.status.error_code = CODES.index(status.error_code)
            added.status.error_message = status.error_message
        with contextlib.suppress(NotFound):  # none is loaded: the statuses say so
            # Beside the reply, whose shape is TensorFlow Serving's: its clients do not see it.
            context.set_trailing_metadata(((LIVE_METADATA, live_reply(self._models.live(name))),))
        return response


def _unimplemented(call: str) -> Any:
    raise Unimplemented(f"{call} is not supported by this server.")


def _from_proto(alias: str, proto: Any) -> np.ndarray:
    import tensorflow as tf

    sizes = [dimension.size for dimension in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or min(sizes, default=0) < 0 or np.prod(sizes, dtype=float) > MAX_ELEMENTS:
        raise InvalidArgument(f"tensor parsing error: {alias}")
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"tensor parsing error: {alias}") from error


def _to_proto(array: np.ndarray, proto: Any) -> None:
    """Fills typed value fields, which every client can read, rather than packed bytes."""
    import tensorflow as tf

    field = _FIELDS.get(array.dtype.name)
    if field is None:  # strings, half and complex numbers
        proto.CopyFrom(tf.make_tensor_proto(array, dtype=tf.as_dtype(array.dtype)))
        return
    proto.dtype = tf.as_dtype(array.dtype).as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, field).extend(array.reshape(-1).tolist())
