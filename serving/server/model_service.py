"""`tensorflow.serving.ModelService`: which versions there are, and another configuration while the server runs."""

import contextlib
import logging
from typing import Any

from serving.errors import CODES, InvalidArgument, NotFound
from serving.protos import messages
from serving.rpc import LIVE_METADATA
from serving.server.calls import answer, model_spec
from serving.server.encode import live_reply
from serving.server.metrics import Metrics
from serving.server.models_config import model_configs
from serving.server.versions import Models

__all__ = ["ModelService"]

_log = logging.getLogger("serving")
SERVICE = "tensorflow.serving.ModelService"
_STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}
RELOAD_SECONDS = 300.0  # for the models of a reload whose client waits without a limit
MAX_METRICS = 100  # of a reload's metric_names


class ModelService:
    """The service; its methods are named as on the wire.

    Args:
        models: Models.
        metrics: Metrics. A reload may ask for its counters. Defaults to one of its own.
    """

    def __init__(self, models: Models, metrics: Metrics | None = None) -> None:
        self._models = models
        self._metrics = metrics or Metrics()

    def add_to(self, server: Any) -> None:
        """Registers the service with a `grpc.Server` that has not started."""
        import grpc

        calls = {
            "GetModelStatus": (self.GetModelStatus, _messages("get_model_status").GetModelStatusRequest),
            "HandleReloadConfigRequest": (
                self.HandleReloadConfigRequest,
                _messages("model_management").ReloadConfigRequest,
            ),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(call, request.FromString, lambda reply: reply.SerializeToString())
            for name, (call, request) in calls.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        """The state of one version or of all."""
        return answer(context, lambda: self._status(request, context))

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        """Replaces the configuration of the models; answers when every new model does."""
        return answer(context, lambda: self._reload(request, context.time_remaining()))

    def _status(self, request: Any, context: Any) -> Any:
        name, version, _ = model_spec(request)  # TensorFlow Serving ignores the label here
        response = _messages("get_model_status").GetModelStatusResponse()
        for status in self._models.statuses(name, version):
            added = response.model_version_status.add(version=status.version, state=_STATES[status.state])
            added.status.error_code = CODES.index(status.error_code)
            added.status.error_message = status.error_message
        with contextlib.suppress(NotFound):  # none is loaded: the statuses say so
            # Beside the reply, whose shape is TensorFlow Serving's: its clients do not see it.
            context.set_trailing_metadata(((LIVE_METADATA, live_reply(self._models.live(name))),))
        return response

    def _reload(self, request: Any, seconds: float | None) -> Any:
        if request.config.WhichOneof("config") != "model_config_list":
            raise InvalidArgument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
                "supported"
            )
        wanted = list(request.metric_names)[:MAX_METRICS]
        before = [self._metrics.total(name) for name in wanted]
        configs = model_configs(request.config.model_config_list)
        _log.info("reload asked for: %s", ", ".join(config.name for config in configs) or "no model")
        self._models.reload(configs, RELOAD_SECONDS if seconds is None else min(seconds, RELOAD_SECONDS))
        response = _messages("model_management").ReloadConfigResponse()
        response.status.SetInParent()
        for name, count in zip(wanted, before, strict=True):
            if count is not None:
                increase = max(0, (self._metrics.total(name) or 0) - count)
                response.metric.add(name=name, int64_value_increase=increase)
        return response


def _messages(file: str) -> Any:
    return messages(f"tensorflow_serving/apis/{file}.proto")
