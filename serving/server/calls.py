"""What every gRPC call has in common: which model it asks for, and how an error becomes its status."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from serving.errors import CODES, InvalidArgument, RequestError, Unimplemented

__all__ = ["answer", "model_spec", "unimplemented"]

_log = logging.getLogger("serving")
MAX_MESSAGE = 1024  # characters of an error


def answer(context: Any, work: Callable[[], Any]) -> Any:
    """Runs `work`; an error becomes the status of the call."""
    try:
        return work()
    except RequestError as error:
        code, message = error.code, error.message
    except Exception:
        _log.exception("a gRPC request failed")
        code, message = "INTERNAL", "internal error: see the server's log"
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + "...TRUNCATED"
    return context.abort(_statuses()[CODES.index(code)], message)


@functools.cache
def _statuses() -> dict[int, Any]:
    import grpc

    return {status.value[0]: status for status in grpc.StatusCode}


def model_spec(request: Any) -> tuple[str, int | None, str]:
    """Name, version and label of the model that a request is for."""
    if not request.HasField("model_spec"):
        raise InvalidArgument("Missing ModelSpec")
    spec = request.model_spec
    return spec.name, spec.version.value if spec.HasField("version") else None, spec.version_label


def unimplemented(call: str) -> Any:
    """Refuses a call that TensorFlow Serving has and this server has not."""
    raise Unimplemented(f"{call} is not supported by this server.")
