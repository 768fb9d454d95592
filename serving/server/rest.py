"""The REST API: TensorFlow Serving's paths, status codes and bodies, by aiohttp in a thread of its own."""

import asyncio
import contextlib
import json
import logging
import re
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from serving.errors import HTTP_STATUS, InvalidArgument, RequestError, Unimplemented
from serving.server.bundle import DEFAULT_SIGNATURE
from serving.server.decode import parse_predict
from serving.server.encode import columnar_reply, error_reply, live_reply, row_reply
from serving.server.versions import Models

__all__ = ["RestServer"]

_log = logging.getLogger("serving")
TIMEOUT = 30.0
MAX_REQUEST_BYTES = 64 << 20

_PREDICT = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
    r":(?P<verb>classify|regress|predict)",
    re.IGNORECASE,
)
_STATUS = re.compile(
    r"/v1/models(?:/(?P<name>[^/:]+))?(?:/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?(?P<metadata>/metadata)?",
    re.IGNORECASE,
)
# Ours alone: TensorFlow Serving has no such path, and its own replies keep its shape.
_LIVE = re.compile(r"/v1/seedrank/models/(?P<name>[^/:]+)", re.IGNORECASE)
_NOT_FOUND = b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"


class RestServer:
    """Answers REST requests on a bound socket.

    The event loop only moves bytes; reading JSON, running the model and writing JSON happen in a pool of threads.

    Args:
        models: Models.
        bound: socket. Bound, not yet listening.
        workers: int. Requests answered at the same time; more wait.
    """

    def __init__(self, models: Models, bound: socket.socket, workers: int) -> None:
        self._models = models
        self._socket = bound
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="serving-rest")
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="serving-rest", daemon=True)

    def start(self) -> None:
        """Returns when requests are accepted."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Lets running requests end, then closes."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._pool.shutdown()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        # Catch-all instead of routes: the paths are matched as they were sent, escapes and case included.
        application = web.Application(client_max_size=MAX_REQUEST_BYTES)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=5.0)

        async def listen() -> None:
            await runner.setup()
            await web.SockSite(runner, self._socket, backlog=1024).start()

        try:
            self._loop.run_until_complete(listen())
        finally:
            self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _handle(self, request: web.Request) -> web.Response:
        path = request.raw_path
        if request.method == "OPTIONS":
            allowed = re.match(r"https?://", request.headers.get("Origin", "")) is not None
            return web.Response(
                status=200 if allowed else 400, headers={"Content-Type": "text/html; charset=ISO-8859-1"}
            )
        if not re.match(r"/v1/", path, re.IGNORECASE):
            response = web.Response(status=404, body=_NOT_FOUND, content_type="text/html")
            response.force_close()
            return response
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            message = f"The request body is larger than {MAX_REQUEST_BYTES} bytes."
            return _json_response(413, error_reply(message))
        except (web.RequestPayloadError, web.HTTPBadRequest) as error:
            return _json_response(400, error_reply(f"The request body can not be read: {error}"))
        status, reply = await self._loop.run_in_executor(self._pool, self._answer, request.method, path, body)
        return _json_response(status, reply)

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            return 200, self._dispatch(method, path, body)
        except RequestError as error:
            return HTTP_STATUS[error.code], error_reply(error.message) if error.message else b""
        except Exception:
            _log.exception("%s %s", method, path)
            return 500, error_reply("internal error: see the server's log")

    def _dispatch(self, method: str, path: str, body: bytes) -> bytes:
        if method == "POST" and (found := _PREDICT.fullmatch(path)):
            name, version, label = _spec(found)
            if found["verb"] == "predict":
                return self._predict(name, version, label, body)
            if found["verb"] in ("classify", "regress"):
                raise Unimplemented(f"{found['verb']} is not supported by this server: use predict.")
        elif method == "GET" and (found := _STATUS.fullmatch(path)):
            name, version, label = _spec(found)
            if not name:
                raise InvalidArgument("Missing model name in request.")
            if found["metadata"]:
                return self._metadata(name, version, label)
            return self._status(name, version)
        elif method == "GET" and (found := _LIVE.fullmatch(path)):
            return live_reply(self._models.live(unquote(found["name"])))
        raise InvalidArgument(f"Malformed request: {method} {path}")

    def _predict(self, name: str, version: int | None, label: str, body: bytes) -> bytes:
        with contextlib.ExitStack() as stack:
            held = []

            def signature_inputs(signature: str) -> Mapping[str, Any]:
                held.append(stack.enter_context(self._models.use(name, version, label))[1])
                signature = signature or DEFAULT_SIGNATURE
                if signature not in held[0].signatures:
                    raise InvalidArgument(f'Serving signature name: "{signature}" not found in signature def')
                return held[0].signatures[signature].inputs

            asked = parse_predict(body, signature_inputs)
            outputs = held[0].predict(asked.inputs, signature=asked.signature, timeout=TIMEOUT)
        return row_reply(outputs) if asked.row else columnar_reply(outputs)

    def _status(self, name: str, version: int | None) -> bytes:
        statuses = [
            {
                "version": str(status.version),
                "state": status.state,
                "status": {"error_code": status.error_code, "error_message": status.error_message},
            }
            for status in self._models.statuses(name, version)
        ]
        text = json.dumps({"model_version_status": statuses}, indent=1, ensure_ascii=False)
        return (text + "\n").encode("utf-8", "replace")

    def _metadata(self, name: str, version: int | None, label: str) -> bytes:
        from google.protobuf.json_format import MessageToJson
        from tensorflow_serving.apis.get_model_metadata_pb2 import SignatureDefMap

        with self._models.use(name, version, label) as (number, bundle):
            signatures = MessageToJson(
                SignatureDefMap(signature_def=bundle.signatures),
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
                indent=1,
                ensure_ascii=False,
            )
        spec = json.dumps({"name": name, "signature_name": "", "version": str(number)}, indent=1, ensure_ascii=False)
        return f'{{\n"model_spec":{spec}\n,\n"metadata": {{"signature_def": {signatures}\n}}\n}}\n'.encode()


def _spec(found: re.Match[str]) -> tuple[str, int | None, str]:
    """Model name ("" when there is none), version and label of a path."""
    version = int(found["version"]) if found["version"] else None
    if version is not None and version >= 1 << 63:
        raise InvalidArgument("")  # TensorFlow Serving answers with an empty body
    return unquote(found["name"] or ""), version, unquote(found["label"] or "")


def _json_response(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
