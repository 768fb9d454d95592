"""Clicks over HTTP, from files that grow or from a stream, into the click log."""

import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from lookalike.clicklog import ClickLogError
from ranking.errors import UserError
from ranking.ingest_http import IngestHttp
from ranking.ingest_log import LogWriter
from ranking.ingest_metrics import IngestMetrics
from ranking.ingest_streams import Stream
from ranking.ingest_tail import Tail

__all__ = ["Ingest", "read_token"]

SHORTEST_TOKEN = 16  # characters


class Ingest:
    """The one writer of a click log: an HTTP service, followed files, and a followed stream.

    A click is acknowledged, by the reply, the saved place in a file or the stream's own way, only when it is durable in
    the log. What is sent or read twice is in the log twice; the seed store takes it once, for it is the same user, item
    and time.

    Args:
        folder: str or Path. The log; made where it is absent.
        user_ids: str, optional. `"int64"` or `"string"`. Defaults to what the log was made with.
        item_ids: str, optional. Likewise.
        host: str. Address to listen on. Defaults to `"127.0.0.1"`.
        port: int. 0 takes a free one. Defaults to `8600`.
        tails: paths of files to follow, JSON lines, or CSV by the name. Defaults to none.
        stream: str, optional. A Redis stream or a Kafka topic to follow, as `open_source` takes it. Defaults to none.
        token: str, optional. For admin verbs, which are off without it.
        admin_anywhere: bool. Whether admin verbs are answered on other addresses than loopback. Defaults to `False`.

    Raises:
        UserError: an address that can not be listened on, a log that another process writes or with other ids, a file
            or stream that can not be followed.

    Example:
        with Ingest("clicks", port=0) as ingest:
            print(ingest.port)
            ingest.wait()
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        user_ids: str | None = None,
        item_ids: str | None = None,
        host: str = "127.0.0.1",
        port: int = 8600,
        tails: Sequence[str | Path] = (),
        stream: str | None = None,
        token: str | None = None,
        admin_anywhere: bool = False,
    ) -> None:
        if len({Path(path).absolute() for path in tails}) < len(tails):
            raise UserError("`tails` should name each file once.")
        self.metrics = IngestMetrics()
        bound = _bound(host, port)
        self.port: int = bound.getsockname()[1]
        try:
            self.log = LogWriter(folder, self.metrics, user_ids=user_ids, item_ids=item_ids)
        except ClickLogError as error:
            bound.close()
            raise UserError(str(error)) from error
        try:
            self._tails = [Tail(path, self.log, self.metrics) for path in tails]
            self._stream = None if stream is None else Stream(stream, self.log, self.metrics)
        except BaseException:
            self.log.close()
            bound.close()
            raise
        self._http = IngestHttp(bound, self.log, self.metrics, self.state, token=token, admin_anywhere=admin_anywhere)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=tail.run, args=[self._stop], name=f"ingest-tail-{number}", daemon=True)
            for number, tail in enumerate(self._tails, 1)
        ]
        if self._stream is not None:
            run = self._stream.run
            self._threads.append(threading.Thread(target=run, args=[self._stop], name="ingest-stream", daemon=True))
        gauges = {
            "log_end": ("The offset behind the last click of the log.", lambda: self.log.log.end),
            "log_start": ("The first offset that the log keeps.", lambda: self.log.log.start),
            "log_damage": ("Places of the log that are damaged and set aside.", lambda: len(self.log.log.damage)),
            "log_writable": ("1 where the last write worked.", lambda: int(self.log.writable())),
        }
        for name, (words, read) in gauges.items():
            self.metrics.gauge(name, words, lambda read=read: {"": read()})  # type: ignore[misc]
        self.metrics.gauge("tail_behind_bytes", "Bytes of a followed file not read yet.", self._behind, label="tail")
        self.metrics.gauge("tail_failing", "1 where a followed file waits for a repair.", self._failing, label="tail")
        if self._stream is not None:
            words = "1 where the followed stream can not be read, or its clicks not be written."
            self.metrics.gauge("stream_failing", words, lambda: {"": int(bool(self._stream_failing()))})

    def start(self) -> None:
        """Returns when requests are accepted and files are followed."""
        self._http.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answers what has come, ends the blocks that are being read, closes the log. May be called twice."""
        if not self._stop.is_set():
            self._http.stop()
            self._stop.set()
            for thread in self._threads:
                thread.join()
            self.log.close()

    def wait(self) -> None:
        """Blocks until `stop`."""
        self._stop.wait()

    def state(self) -> Mapping[str, Any]:
        """Whether the log can be written, its offsets, and how the followed files and stream do."""
        tails = [{"tail": n, "behind": tail.behind, "failing": tail.failing} for n, tail in enumerate(self._tails, 1)]
        log = self.log.log
        found = {"writable": self.log.writable(), "start": log.start, "end": log.end, "tails": tails}
        return found if self._stream is None else {**found, "stream": {"failing": self._stream_failing()}}

    def __enter__(self) -> "Ingest":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _stream_failing(self) -> str:
        return "" if self._stream is None else self._stream.failing

    def _behind(self) -> Mapping[str, float]:
        return {str(number): tail.behind for number, tail in enumerate(self._tails, 1)}

    def _failing(self) -> Mapping[str, float]:
        return {str(number): int(bool(tail.failing)) for number, tail in enumerate(self._tails, 1)}


def read_token(path: str | Path) -> str:
    """The token of a file, without the white space around it.

    Raises:
        UserError: it can not be read, or holds no token of 16 ASCII characters or more.
    """
    try:
        token = Path(path).read_text("ascii").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise UserError(f"--token-file {path}: should be a file with a token ({why}).") from error
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise UserError(f"--token-file {path}: should hold one token of {SHORTEST_TOKEN} characters or more.")
    return token


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: can not be listened on ({error}).") from error
    return bound
