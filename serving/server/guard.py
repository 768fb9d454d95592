"""What every gRPC call passes: a bound on the wait for its message, and an honest code for one that is broken."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving.errors import InvalidArgument
from serving.server.admission import Admission
from serving.server.calls import answer

__all__ = ["Guard", "parsed"]

MESSAGE_SECONDS = 10.0  # from a call's first bytes to the end of its message


class Guard(grpc.ServerInterceptor):
    """Stands before the unary calls of all services of a server.

    gRPC's own server has a thread wait for each message without a limit, so that callers who send half of one could
    take all threads; and it answers INTERNAL to a message that can not be read, which is the client's mistake.

    Args:
        admission: Admission.
        bounded: collection of str. The methods that are refused unread while the server has too much to do.
    """

    def __init__(self, admission: Admission, bounded: Collection[str]) -> None:
        self._admission = admission
        self._bounded = frozenset(bounded)
        self._handlers: dict[str, Any] = {}
        self._expected: deque[tuple[float, Any, list[bool]]] = deque()  # in the order of time
        self._stopped = threading.Event()
        threading.Thread(target=self._end_late, name="serving-guard", daemon=True).start()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The handler of a call; gRPC asks for it at every call."""
        found = self._handlers.get(details.method)
        if found is None:
            found = continuation(details)
            if found is None or not found.unary_unary:
                return found
            # On the wire a call with one message is a stream of one; here it is the way to read it when we like.
            found = grpc.stream_unary_rpc_method_handler(
                self._checked(found, details.method in self._bounded), response_serializer=found.response_serializer
            )
            self._handlers[details.method] = found
        return found

    def _checked(self, handler: Any, bounded: bool) -> Callable[[Iterator[bytes], Any], Any]:
        def call(stream: Iterator[bytes], context: Any) -> Any:
            if bounded:
                answer(context, self._admission.check)
            arrived = [False]
            self._expected.append((time.monotonic() + MESSAGE_SECONDS, context, arrived))
            try:
                message = next(stream, None)
            finally:
                arrived[0] = True
            request = answer(context, lambda: _read(message, handler.request_deserializer))
            return handler.unary_unary(request, context)

        return call

    def _end_late(self) -> None:
        while not self._stopped.wait(MESSAGE_SECONDS / 20):
            now = time.monotonic()
            while self._expected and (self._expected[0][2][0] or self._expected[0][0] < now):
                _, context, arrived = self._expected.popleft()
                if not arrived[0]:
                    context.cancel()

    def stop(self) -> None:
        """Ends the thread that looks for late messages."""
        self._stopped.set()


def _read(message: bytes | None, deserializer: Callable[[bytes], Any] | None) -> Any:
    if message is None:
        raise InvalidArgument("The call has no message.")
    return parsed(message, deserializer) if deserializer else message


def parsed(message: bytes, deserializer: Callable[[bytes], Any]) -> Any:
    """The message read.

    Raises:
        InvalidArgument: it is none of that kind.
    """
    try:
        return deserializer(message)
    except (DecodeError, ValueError, RecursionError) as error:
        raise InvalidArgument("The message can not be parsed: it is truncated or of another kind.") from error
