"""`tensorflow.serving.ModelService`: which versions there are."""

import contextlib
from typing import Any

from serving.errors import CODES, NotFound
from serving.rpc import LIVE_METADATA
from serving.server.calls import answer, model_spec, unimplemented
from serving.server.encode import live_reply
from serving.server.versions import Models

__all__ = ["ModelService"]

_STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}


class ModelService:
    """The service; its methods are named as on the wire.

    Args:
        models: Models.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        """The state of one version or of all."""
        return answer(context, lambda: self._status(request, context))

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        """Replaces the configuration of the models."""
        return answer(context, lambda: unimplemented("HandleReloadConfigRequest"))

    def _status(self, request: Any, context: Any) -> Any:
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse

        name, version, _ = model_spec(request)  # TensorFlow Serving ignores the label here
        response = GetModelStatusResponse()
        for status in self._models.statuses(name, version):
            added = response.model_version_status.add(version=status.version, state=_STATES[status.state])
            added.status.error_code = CODES.index(status.error_code)
            added.status.error_message = status.error_message
        with contextlib.suppress(NotFound):  # none is loaded: the statuses say so
            # Beside the reply, whose shape is TensorFlow Serving's: its clients do not see it.
            context.set_trailing_metadata(((LIVE_METADATA, live_reply(self._models.live(name))),))
        return response
