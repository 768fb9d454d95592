"""What a caller of the serving package can get wrong, and what a server can answer."""

__all__ = [
    "CODES",
    "HTTP_STATUS",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "RequestError",
    "ResourceExhausted",
    "ServingError",
    "StaleTables",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "request_error",
]

# The canonical codes in the order of their numbers (gRPC and TensorFlow count alike), and the HTTP status of each
# in TensorFlow Serving's REST API.
HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
CODES = tuple(HTTP_STATUS)


class ServingError(ValueError):
    """A mistake of the caller: one line that names the argument or path, the rule and the value received."""


class RequestError(ServingError):
    """A request that a server refused or could not answer.

    Args:
        message: str. The server's own words.
        code: str. One of `CODES`. Defaults to the code of the class.
    """

    code = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code

    @property
    def message(self) -> str:
        """The server's own words."""
        return str(self.args[0])


class InvalidArgument(RequestError):
    """The request is malformed or does not fit the signature."""

    code = "INVALID_ARGUMENT"


class NotFound(RequestError):
    """No such model, or no such version of it."""

    code = "NOT_FOUND"


class FailedPrecondition(RequestError):
    """The model is not in a state to answer, or has no such signature."""

    code = "FAILED_PRECONDITION"


class DeadlineExceeded(RequestError):
    """No answer within the deadline."""

    code = "DEADLINE_EXCEEDED"


class Unimplemented(RequestError):
    """The server does not have this call."""

    code = "UNIMPLEMENTED"


class ResourceExhausted(RequestError):
    """The server has more work than it takes, or the message is larger than it reads: not tried again at once."""

    code = "RESOURCE_EXHAUSTED"


class Unauthenticated(RequestError):
    """Who asks is not known: a gateway before the server wants a token or certificate."""

    code = "UNAUTHENTICATED"


class PermissionDenied(RequestError):
    """Who asks is known and may not."""

    code = "PERMISSION_DENIED"


class Internal(RequestError):
    """The server failed: its log says why."""

    code = "INTERNAL"


class Unavailable(RequestError):
    """The server cannot be reached, or is not ready: worth trying again."""

    code = "UNAVAILABLE"


class StaleTables(RequestError):
    """The answer was made of tables older than the client's `hard_table_age`: show what needs no ranking."""

    code = "FAILED_PRECONDITION"


_CLASSES = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        FailedPrecondition,
        DeadlineExceeded,
        Unimplemented,
        Unavailable,
        ResourceExhausted,
        Unauthenticated,
        PermissionDenied,
        Internal,
    )  # fmt: skip
}


def request_error(code: str, message: str) -> RequestError:
    """The exception for one of `CODES`."""
    kind = _CLASSES.get(code)
    return kind(message) if kind else RequestError(message, code)
