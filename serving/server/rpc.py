"""The gRPC server: Predict and GetModelMetadata with TensorFlow Serving's codes and texts, and the services beside."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving.errors import InvalidArgument, RequestError, ServingError
from serving.protos import messages
from serving.server.admission import MAX_REQUEST_BYTES, Admission
from serving.server.bundle import DEFAULT_SIGNATURE
from serving.server.calls import answer, model_spec, unimplemented
from serving.server.metrics import Metrics
from serving.server.predict_wire import check_fields, read_inputs, write_response
from serving.server.versions import Models

__all__ = ["start_grpc"]

SERVICE = "tensorflow.serving.PredictionService"
BESIDE = 32  # calls beyond those that work or wait: messages on their way, questions after the state
FOREVER = 1e6  # seconds; gRPC says a number like this where the client gave no deadline


def start_grpc(
    models: Models,
    address: str,
    admission: Admission,
    metrics: Metrics | None = None,
    services: Iterable[Callable[[Any], None]] = (),
) -> tuple[Any, int, Any]:
    """Starts the gRPC server.

    A call has a thread from its first byte on, waiting included, and there are as many threads as `admission` lets in
    and a few more: gRPC refuses further calls by itself, at a fraction of what a call costs.

    Args:
        models: Models.
        address: str. `host:port`; port 0 takes a free one.
        admission: Admission.
        metrics: Metrics. Told of every Predict. Defaults to none.
        services: iterable of callable. Services beside, each added by a call with the `grpc.Server`. Defaults to none.

    Returns:
        The `grpc.Server`, its port, and the `Guard` of its calls, to be stopped after it.

    Raises:
        ServingError: the port is in use.
    """
    import grpc

    from serving.server.guard import Guard

    options = [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.so_reuseport", 0),
    ]
    calls = admission.limit + admission.queue + BESIDE
    guard = Guard(admission, [f"/{SERVICE}/Predict"])
    server = grpc.server(
        ThreadPoolExecutor(calls, thread_name_prefix="serving-grpc"),
        options=options,
        interceptors=[guard],
        maximum_concurrent_rpcs=calls,
    )
    prediction = _PredictionService(models, admission, metrics)
    handlers = {name: grpc.unary_unary_rpc_method_handler(call) for name, call in prediction.calls.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    for add in services:
        add(server)
    port_text = address.rsplit(":", 1)[1]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        guard.stop()
        raise ServingError(f"port {port_text} is in use: gRPC can not listen on {address}.") from error
    server.start()
    return server, port, guard


class _PredictionService:
    """`tensorflow.serving.PredictionService`: bytes in, bytes out, so that reading them waits its turn too."""

    def __init__(self, models: Models, admission: Admission, metrics: Metrics | None) -> None:
        self._models = models
        self._admission = admission
        self._metrics = metrics
        self.calls: dict[str, Callable[[bytes, Any], bytes]] = {
            "Predict": lambda message, context: answer(context, lambda: self._predict(message, context)),
            "GetModelMetadata": lambda message, context: answer(context, lambda: self._metadata(message)),
            **{name: _refusal(name) for name in ("Classify", "Regress", "MultiInference")},
        }

    def _predict(self, message: bytes, context: Any) -> bytes:
        started = time.monotonic()
        seconds = context.time_remaining()
        deadline = None if seconds is None or seconds > FOREVER else started + seconds
        model, code = "", "OK"
        try:
            place = self._admission.enter(deadline)
            if not context.add_callback(place.leave):  # called when the client goes away
                place.leave()
            with place:
                check_fields(message)
                request = _parsed(message, "predict", "PredictRequest")
                model = request.model_spec.name
                return self._run(request, deadline)
        except RequestError as error:
            code = error.code
            raise
        except Exception:
            code = "INTERNAL"
            raise
        finally:
            if self._metrics is not None:
                self._metrics.observe(model, "Predict", "GRPC", code, time.monotonic() - started)

    def _run(self, request: Any, deadline: float | None) -> bytes:
        name, version, label = model_spec(request)
        signature = request.model_spec.signature_name
        with self._models.use(name, version, label) as (number, bundle):
            inputs = read_inputs(request)
            timeout = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            started = time.monotonic()
            outputs = bundle.predict(inputs, signature=signature, output_filter=request.output_filter, timeout=timeout)
            if self._metrics is not None:
                self._metrics.observe_runtime(name, "Predict", time.monotonic() - started)
        return write_response(name, number, signature or DEFAULT_SIGNATURE, outputs)

    def _metadata(self, message: bytes) -> bytes:
        kinds = messages("tensorflow_serving/apis/get_model_metadata.proto")
        request = _parsed(message, "get_model_metadata", "GetModelMetadataRequest")
        name, version, label = model_spec(request)
        if not request.metadata_field:
            raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise InvalidArgument(f"Metadata field {field} is not supported")
        response, signatures = kinds.GetModelMetadataResponse(), kinds.SignatureDefMap()
        with self._models.use(name, version, label) as (number, bundle):
            for signature, definition in bundle.signatures.items():
                signatures.signature_def[signature].MergeFromString(definition.SerializeToString())
        response.metadata["signature_def"].type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        response.metadata["signature_def"].value = signatures.SerializeToString()
        response.model_spec.name = name
        response.model_spec.version.value = number
        return response.SerializeToString()


def _parsed(message: bytes, file: str, kind: str) -> Any:
    from serving.server.guard import parsed

    return parsed(message, getattr(messages(f"tensorflow_serving/apis/{file}.proto"), kind).FromString)


def _refusal(name: str) -> Callable[[bytes, Any], Any]:
    return lambda message, context: answer(context, lambda: unimplemented(name))
