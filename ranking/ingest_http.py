"""Clicks over HTTP, by aiohttp in a thread of its own."""

import asyncio
import hmac
import ipaddress
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from lookalike.clicklog import ClickLogError
from ranking.ingest_clicks import ClickFormat, WrongClick
from ranking.ingest_log import LogNotWritable, LogWriter
from ranking.ingest_metrics import IngestMetrics
from serving.errors import RequestError
from serving.server.admission import MAX_REQUEST_BYTES
from serving.server.body import Bodies, BodyRefused, unpacked

__all__ = ["IngestHttp"]

_logger = logging.getLogger("ranking.ingest")
_protocol_logger = logging.getLogger("ranking.ingest.protocol")  # it would quote what clients send
_protocol_logger.disabled = True
MOST_CLICKS = 100_000  # of one request
HELD_BYTES = 64 << 20  # of bodies that are whole and not answered
HELD_REQUESTS = 256
APPENDS = 16  # at the same time: they share syncs
IDLE_SECONDS = 60.0  # for a request's headers, and between two requests of a connection
DRAIN_SECONDS = 30.0
RETRY_AFTER = "1"  # seconds


class _Refused(Exception):
    def __init__(self, status: int, words: str, **headers: str) -> None:
        super().__init__(words)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class IngestHttp:
    """Answers on a bound socket.

    The event loop only moves bytes. Bodies are parsed in threads, one at a time (the interpreter runs one anyway, and
    what one of them unpacks to is bounded); appends run side by side and share syncs. A request is answered when its
    clicks are durable. It is refused where there is no room (429), the log can not be written or the service ends
    (503, both with Retry-After); it is never dropped in silence.

    Args:
        bound: socket. Bound, not yet listening.
        log: LogWriter.
        metrics: IngestMetrics.
        state: callable. What `/healthz` shows beside `ready`.
        token: str or None. What admin verbs have to bring; with None they are off. Defaults to `None`.
        admin_anywhere: bool. Whether admin verbs are answered on other addresses than loopback. Defaults to `False`.
    """

    def __init__(
        self,
        bound: socket.socket,
        log: LogWriter,
        metrics: IngestMetrics,
        state: Callable[[], Mapping[str, Any]],
        *,
        token: str | None = None,
        admin_anywhere: bool = False,
    ) -> None:
        self._socket, self._log, self._metrics, self._state = bound, log, metrics, state
        self._token = None if token is None else token.encode()
        self._admin_anywhere = admin_anywhere
        self._format = ClickFormat(log.user_ids, log.item_ids)
        self._bodies = Bodies()
        self._held_bytes = self._held_requests = self._running = 0
        self._draining = False
        self._parsing = threading.Lock()
        self._workers = ThreadPoolExecutor(APPENDS, thread_name_prefix="ingest-append")
        self._questions = ThreadPoolExecutor(1, thread_name_prefix="ingest-state")
        self._admin = ThreadPoolExecutor(1, thread_name_prefix="ingest-admin")
        self._verbs = {"/v1/forget": self._forget, "/v1/erase": self._erase, "/v1/retain": self._retain}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="ingest-http", daemon=True)
        metrics.gauge("held_bytes", "Bytes of requests in hand.", lambda: {"": self._held_bytes})

    def start(self) -> None:
        """Returns when requests are accepted."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Refuses new requests, answers those that have come, closes the connections."""
        self._draining = True
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for pool in (self._workers, self._questions, self._admin):
            pool.shutdown()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=_protocol_logger,
            handle_signals=False,
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
        left = asyncio.all_tasks(self._loop)  # connections that were told to end
        self._loop.run_until_complete(asyncio.wait(left, timeout=1.0) if left else asyncio.sleep(0))
        self._loop.close()

    async def _handle(self, request: web.Request) -> web.Response:
        self._running += 1
        headers: Mapping[str, str] = {}
        try:
            status, reply = await self._answer(request)
        except _Refused as error:
            status, reply, headers = error.status, {"error": str(error)}, error.headers
        except WrongClick as error:
            status, reply = 400, {"error": str(error), "line": error.line, "field": error.field}
        except BodyRefused as error:
            status, reply = error.status, {"error": str(error)}
        except RequestError as error:  # all bodies together are too large
            status, reply, headers = 429, {"error": str(error)}, {"Retry-After": RETRY_AFTER}
        except LogNotWritable as error:
            status, reply, headers = 503, {"error": str(error)}, {"Retry-After": RETRY_AFTER}
        except Exception as error:  # its message may hold an id: the places are enough
            places = "".join(traceback.format_tb(error.__traceback__))
            _logger.error("a request failed: %s\n%s", type(error).__name__, places)
            status, reply = 500, {"error": "internal error: see the service's log"}
        finally:
            self._running -= 1
        self._metrics.count("requests", str(status))
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n"
        kind = "text/plain" if isinstance(reply, bytes) else "application/json"
        response = web.Response(status=status, body=body, content_type=kind, headers=headers)
        if self._draining:
            response.force_close()
        return response

    async def _answer(self, request: web.Request) -> tuple[int, Any]:
        routes: dict[tuple[str, str], Callable[[web.Request], Awaitable[tuple[int, Any]]]] = {
            ("POST", "/v1/clicks"): self._clicks,
            ("GET", "/healthz"): self._health,
            ("GET", "/metrics"): self._text,
            **{("POST", path): self._admin_verb for path in self._verbs},
        }
        path = request.raw_path
        if route := routes.get((request.method, path)):
            return await route(request)
        allowed = [method for method, known in routes if known == path]
        if allowed:
            raise _Refused(405, f"{path} should be asked by {allowed[0]}.", Allow=allowed[0])
        raise _Refused(404, f"There is no such path; there are {', '.join(path for _, path in routes)}.")

    # What is asked.

    async def _health(self, request: web.Request) -> tuple[int, Any]:
        state = await self._in_thread(self._questions, self._state)
        ready = bool(state["writable"]) and not self._draining
        return 200 if ready else 503, {"ready": ready, "draining": self._draining, **state}

    async def _text(self, request: web.Request) -> tuple[int, Any]:
        return 200, (await self._in_thread(self._questions, self._metrics.text)).encode()

    async def _clicks(self, request: web.Request) -> tuple[int, Any]:
        first, count = await self._with_body(request, self._workers, self._append)
        return 200, {"first": first, "next": first + count, "accepted": count}

    async def _admin_verb(self, request: web.Request) -> tuple[int, Any]:
        verb = request.raw_path
        self._let_in(request)
        reply = await self._with_body(request, self._admin, self._verbs[verb])
        self._metrics.count("admin", verb.rpartition("/")[2])
        _logger.info("admin verb %s: %s", verb, reply)
        return 200, reply

    def _let_in(self, request: web.Request) -> None:
        """Admin verbs: with the token, and on loopback unless said otherwise."""
        if self._token is None:
            raise _Refused(403, "Admin verbs are off: start the service with --token-file.")
        # The address that was asked, not who asks: behind a proxy both are the proxy's.
        own = request.transport.get_extra_info("sockname")[0] if request.transport else ""
        if not self._admin_anywhere and not _is_loopback(own):
            raise _Refused(403, "Admin verbs are answered on the loopback address only.")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise _Refused(401, "`Authorization` should be Bearer and the token.", WWW_Authenticate="Bearer")
        if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token):
            raise _Refused(403, "The token is not the right one.")

    async def _with_body(
        self, request: web.Request, pool: ThreadPoolExecutor, work: Callable[[bytes, str, int], Any]
    ) -> Any:
        """Runs `work` on a request's body, within the room there is."""
        if "Origin" in request.headers:  # else any page that is open in a browser on this machine could send clicks
            raise _Refused(403, "Requests of web pages are not taken.")
        declared = request.content_length or 0
        self._find_room(declared if declared <= MAX_REQUEST_BYTES else 0)
        try:
            body = await self._bodies.read(request)
        except ConnectionError:
            raise _Refused(400, "The connection ended before the body did.") from None
        self._find_room(len(body))
        self._held_bytes += len(body)
        self._held_requests += 1
        try:
            now = time.time_ns() // 1_000_000
            return await self._in_thread(pool, work, body, request.headers.get("Content-Encoding", ""), now)
        finally:
            self._held_bytes -= len(body)
            self._held_requests -= 1

    def _find_room(self, size: int) -> None:
        if self._draining:
            raise _Refused(503, "The service is shutting down.", Retry_After=RETRY_AFTER)
        if self._held_requests >= HELD_REQUESTS or self._held_bytes + size > HELD_BYTES:
            raise _Refused(429, "The service has too much in hand.", Retry_After=RETRY_AFTER)

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(pool, work, *arguments)

    # In threads.

    def _append(self, body: bytes, encoding: str, now: int) -> tuple[int, int]:
        with self._parsing:
            body = unpacked(body, encoding)
            self._metrics.count("bytes", "http", len(body))
            lines = body.rstrip().count(b"\n") + 1
            try:
                if lines > MOST_CLICKS:
                    raise _too_many()
                clicks = self._format.from_json(body, now=now)
                if len(clicks) > MOST_CLICKS:
                    raise _too_many()
                if not len(clicks):
                    raise _Refused(400, "The body should have one click a line, and has none.")
            except (_Refused, WrongClick):
                self._metrics.count("received", "http", lines)
                self._metrics.count("refused", "invalid", lines)
                raise
        self._metrics.count("received", "http", len(clicks))
        try:
            return self._log.append(clicks, "http")[0], len(clicks)
        except LogNotWritable:
            self._metrics.count("refused", "log", len(clicks))
            raise

    def _forget(self, body: bytes, encoding: str, now: int) -> Any:
        first, after = self._log.forget(self._user(body, encoding), now)
        return {"first": first, "next": after, "accepted": after - first}

    def _erase(self, body: bytes, encoding: str, now: int) -> Any:
        return self._kept(self._log.erase, self._user(body, encoding))

    def _retain(self, body: bytes, encoding: str, now: int) -> Any:
        before = _field(unpacked(body, encoding), "before")
        if type(before) is not int or not 0 <= before < 1 << 63:
            raise _Refused(400, "`before` should be an offset of the log, a whole number from 0.")
        return {"start": self._kept(self._log.log.retain, before)}

    def _user(self, body: bytes, encoding: str) -> Any:
        return self._format.user(_field(unpacked(body, encoding), "user_id"))

    def _kept(self, work: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return work(argument)
        except (OSError, ClickLogError) as error:
            raise LogNotWritable("The click log can not be rewritten now: some of its files may be done.") from error


def _field(body: bytes, name: str) -> Any:
    """The one field of an admin verb's object."""
    try:
        found = json.loads(body.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or [*found] != [name]:
        raise _Refused(400, f'The body should be one JSON object, {{"{name}": ...}}.')
    return found[name]


def _too_many() -> _Refused:
    return _Refused(413, f"A request should have at most {MOST_CLICKS} clicks.")


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
