"""The gRPC services: Predict, GetModelMetadata and GetModelStatus with TensorFlow Serving's codes and texts."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from serving.errors import InvalidArgument, ServingError
from serving.server.bundle import DEFAULT_SIGNATURE
from serving.server.calls import answer, model_spec, unimplemented
from serving.server.model_service import ModelService
from serving.server.versions import Models

__all__ = ["start_grpc"]

MAX_ELEMENTS = 1 << 27  # of a tensor whose single value is repeated

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
    add_ModelServiceServicer_to_server(ModelService(models), server)
    port_text = address.rsplit(":", 1)[1]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ServingError(f"port {port_text} is in use: gRPC can not listen on {address}.") from error
    server.start()
    return server, port


class _PredictionService:
    """`tensorflow.serving.PredictionService`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: Any) -> Any:
        return answer(context, lambda: self._predict(request, context.time_remaining()))

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return answer(context, lambda: self._metadata(request))

    def Classify(self, request: Any, context: Any) -> Any:
        return answer(context, lambda: unimplemented("Classify"))

    def Regress(self, request: Any, context: Any) -> Any:
        return answer(context, lambda: unimplemented("Regress"))

    def MultiInference(self, request: Any, context: Any) -> Any:
        return answer(context, lambda: unimplemented("MultiInference"))

    def _predict(self, request: Any, timeout: float | None) -> Any:
        from tensorflow_serving.apis.predict_pb2 import PredictResponse

        name, version, label = model_spec(request)
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

        name, version, label = model_spec(request)
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
