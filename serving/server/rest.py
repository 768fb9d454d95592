"""The REST API: TensorFlow Serving's paths, status codes and bodies, by aiohttp in a thread of its own."""

import asyncio
import contextlib
import functools
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from serving.errors import HTTP_STATUS, InvalidArgument, RequestError, Unimplemented
from serving.protos import messages
from serving.server.admission import Admission, Place
from serving.server.body import Bodies, BodyRefused, unpacked
from serving.server.bundle import DEFAULT_SIGNATURE
from serving.server.decode import parse_predict
from serving.server.encode import columnar_reply, error_reply, live_reply, row_reply
from serving.server.metrics import Metrics
from serving.server.versions import Models

__all__ = ["RestServer"]

_log = logging.getLogger("serving")
TIMEOUT = 30.0  # seconds for a request, waiting included
IDLE_SECONDS = 60.0  # for a request's headers, and between two requests of a connection
METRICS_PATH = "/monitoring/prometheus/metrics"
HEALTH_PATH = "/healthz"  # ours alone, as _LIVE
_Answer = tuple[int, bytes, str]  # HTTP status, body, code

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

    The event loop only moves bytes; reading JSON, running the model and writing JSON happen in threads, in as many at
    a time as `admission` lets. Questions after the state wait for nothing and are never refused for want of room.

    Args:
        models: Models.
        bound: socket. Bound, not yet listening.
        admission: Admission.
        metrics: Metrics. Told of every predict, and answered with. Defaults to one of its own.
        problem: callable. Why the server should not be asked, in words, or nothing. Defaults to nothing.
    """

    def __init__(
        self,
        models: Models,
        bound: socket.socket,
        admission: Admission,
        metrics: Metrics | None = None,
        problem: Callable[[], str] = lambda: "",
    ) -> None:
        self._models = models
        self._socket = bound
        self._admission = admission
        self._metrics = metrics or Metrics()
        self._problem = problem
        self._bodies = Bodies()
        self._pool = ThreadPoolExecutor(admission.limit + admission.queue, thread_name_prefix="serving-rest")
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="serving-state")
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="serving-rest", daemon=True)

    def start(self) -> None:
        """Returns when requests are accepted."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Lets running requests end, then closes the connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._pool.shutdown()
        self._questions.shutdown()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        # Catch-all instead of routes: the paths are matched as they were sent, escapes and case included.
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=5.0,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=1.0,
            auto_decompress=False,
        )

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
        if path == METRICS_PATH and request.method == "GET":
            text = await self._loop.run_in_executor(self._questions, self._metrics.text)
            return web.Response(body=text.encode(), content_type="text/plain")
        if path == HEALTH_PATH and request.method in ("GET", "HEAD"):
            problem = await self._loop.run_in_executor(self._questions, self._problem)
            content = {"ready": False, "error": problem} if problem else {"ready": True}
            return _json_response(503 if problem else 200, json.dumps(content).encode() + b"\n")
        if not re.match(r"/v1/", path, re.IGNORECASE):
            response = web.Response(status=404, body=_NOT_FOUND, content_type="text/html")
            response.force_close()
            return response
        started = time.monotonic()
        predict = _PREDICT.fullmatch(path) if request.method == "POST" else None
        if predict is None or predict["verb"] != "predict":
            work = functools.partial(self._ask, request.method, path)
            return _json_response(*(await self._loop.run_in_executor(self._questions, _answered, work))[:2])
        status, reply, code = await self._predicted(request, predict)
        name = unquote(predict["name"])
        self._metrics.observe(name, "predict", "REST", code, time.monotonic() - started)
        return _json_response(status, reply)

    async def _predicted(self, request: web.Request, found: re.Match[str]) -> _Answer:
        try:
            self._admission.check()
            body = await self._bodies.read(request)
            deadline = time.monotonic() + TIMEOUT
            place = self._admission.enter(deadline)
        except BodyRefused as error:
            return error.status, error_reply(str(error)), "INVALID_ARGUMENT"
        except RequestError as error:
            return _failed(error)
        encoding = request.headers.get("Content-Encoding", "")
        try:
            work = functools.partial(self._predict, found, body, encoding, place, deadline)
            return await self._loop.run_in_executor(self._pool, _answered, work)
        finally:
            place.leave()  # when the client has gone; nothing once the work has begun

    def _ask(self, method: str, path: str) -> bytes:
        if method == "POST" and (found := _PREDICT.fullmatch(path)):
            _spec(found)
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

    def _predict(self, found: re.Match[str], body: bytes, encoding: str, place: Place, deadline: float) -> bytes:
        with place, contextlib.ExitStack() as stack:
            name, version, label = _spec(found)
            held = []

            def signature_inputs(signature: str) -> Mapping[str, Any]:
                held.append(stack.enter_context(self._models.use(name, version, label))[1])
                signature = signature or DEFAULT_SIGNATURE
                if signature not in held[0].signatures:
                    raise InvalidArgument(f'Serving signature name: "{signature}" not found in signature def')
                return held[0].signatures[signature].inputs

            asked = parse_predict(unpacked(body, encoding), signature_inputs)
            started = time.monotonic()
            outputs = held[0].predict(asked.inputs, signature=asked.signature, timeout=max(deadline - started, 0.001))
            self._metrics.observe_runtime(name, "predict", time.monotonic() - started)
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

        found = messages("tensorflow_serving/apis/get_model_metadata.proto").SignatureDefMap()
        with self._models.use(name, version, label) as (number, bundle):
            for signature, definition in bundle.signatures.items():
                found.signature_def[signature].MergeFromString(definition.SerializeToString())
        signatures = MessageToJson(
            found,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=1,
            ensure_ascii=False,
        )
        spec = json.dumps({"name": name, "signature_name": "", "version": str(number)}, indent=1, ensure_ascii=False)
        return f'{{\n"model_spec":{spec}\n,\n"metadata": {{"signature_def": {signatures}\n}}\n}}\n'.encode()


def _answered(work: Callable[[], bytes]) -> _Answer:
    try:
        return 200, work(), "OK"
    except RequestError as error:
        return _failed(error)
    except BodyRefused as error:
        return error.status, error_reply(str(error)), "INVALID_ARGUMENT"
    except Exception:
        _log.exception("a REST request failed")
        return 500, error_reply("internal error: see the server's log"), "INTERNAL"


def _failed(error: RequestError) -> _Answer:
    return HTTP_STATUS[error.code], error_reply(error.message) if error.message else b"", error.code


def _spec(found: re.Match[str]) -> tuple[str, int | None, str]:
    """Model name ("" when there is none), version and label of a path."""
    digits = (found["version"] or "").lstrip("0")
    version = int(digits[:20] or 0) if found["version"] else None  # not thousands of them
    if version is not None and version >= 1 << 63:
        raise InvalidArgument("")  # TensorFlow Serving answers with an empty body
    return unquote(found["name"] or ""), version, unquote(found["label"] or "")


def _json_response(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
