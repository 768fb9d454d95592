"""Follows a Redis stream or a Kafka topic of clicks into the log."""

import logging
import os
import socket
import threading
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray

from lookalike.click_kafka import KafkaSource
from lookalike.click_redis import RedisStreamSource
from lookalike.click_streams import Pump, Source
from lookalike.clicklog_files import Format
from lookalike.redis_link import StoreUnavailable
from ranking.errors import UserError
from ranking.ingest_clicks import ClickFormat
from ranking.ingest_log import LogNotWritable, LogWriter
from ranking.ingest_metrics import IngestMetrics

__all__ = ["Stream", "open_source"]

_logger = logging.getLogger("ranking.ingest")
RETRY_SECONDS = 1.0  # after a failure
WAIT_SECONDS = 1.0  # for something to come
_REDIS = ("redis", "rediss", "unix")
_FORM = (
    "`--stream` should be redis://HOST:PORT/0?stream=NAME (rediss:// for TLS, or unix://) or kafka://HOST:PORT/TOPIC, "
    "and may have group=NAME."
)


class Stream:
    """One followed stream: an entry is acknowledged when its clicks are durable in the log.

    An entry that is no click, or one that breaks a rule of ids or times, goes to `set-aside.jsonl` in the log's folder
    and is acknowledged too. Whoever may write to the stream may also forget users: it has no token.

    Args:
        url: str. As `open_source` takes it.
        log: LogWriter.
        metrics: IngestMetrics.

    Raises:
        UserError: the URL is none, or the package for it is not installed.
    """

    def __init__(self, url: str, log: LogWriter, metrics: IngestMetrics) -> None:
        told = Format.read(log.folder)
        consumer = f"{socket.gethostname()}-{told.log:016x}" if told else socket.gethostname()
        self._source = open_source(url, consumer)
        self._metrics = metrics
        self._pump = Pump(self._source, _Checked(log, metrics), lock=log.aside)
        self.failing = ""  # why it does not go on; empty while it does

    def run(self, stop: threading.Event) -> None:
        """Follows the stream until `stop` is set."""
        while not stop.is_set():
            try:
                self.step(WAIT_SECONDS)
                self.failing = ""
            except Exception as error:  # a thread that ended would stop taking clicks in silence
                failing = _reason(error)
                if failing != self.failing:
                    _logger.error("a followed stream waits: %s", failing)
                self.failing = failing
                stop.wait(RETRY_SECONDS)
        self._source.close()

    def step(self, wait: float) -> int:
        """Takes what is there, after at most `wait` seconds; how many clicks.

        Raises:
            StoreUnavailable: the stream can not be read.
            OSError: the log can not be written, or entries not set aside. They come again.
        """
        counters = self._pump.counters
        before = counters["malformed"]
        try:
            return self._pump.once(wait)
        finally:
            self._metrics.count("received", "stream", counters["malformed"] - before)
            self._metrics.count("refused", "stream", counters["malformed"] - before)


def open_source(url: str, consumer: str) -> Source:
    """The stream that a URL names.

    Args:
        url: str. `redis://HOST:PORT/0?stream=NAME`, `rediss://` or `unix://`, whose other options are redis-py's
            (`ssl_ca_certs=FILE`); or `kafka://HOST:PORT,HOST:PORT/TOPIC`, whose other options are librdkafka's
            (`security.protocol=SSL`). `group=NAME` names the consumer group, `seedrank` without it.
        consumer: str. Of the group, for Redis.

    Raises:
        UserError: it is no such URL, or the package for it is not installed.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True))
    except ValueError:
        raise UserError(_FORM) from None
    group = options.pop("group", "seedrank")
    try:
        if parts.scheme == "kafka" and parts.netloc and "@" not in parts.netloc and parts.path.strip("/"):
            return KafkaSource(parts.netloc, topic=parts.path.strip("/"), group=group, settings=options)
        if parts.scheme in _REDIS and options.get("stream"):
            stream = options.pop("stream")
            server = url.partition("?")[0] + (f"?{urlencode(options)}" if options else "")
            return RedisStreamSource(server, stream=stream, group=group, consumer=consumer)
    except (ImportError, ValueError) as error:
        raise UserError(f"--stream: {error}") from None
    raise UserError(_FORM)


class _Checked:
    """A log as `Pump` writes it, with the rules of the other ways in, and failures that are tried again."""

    def __init__(self, log: LogWriter, metrics: IngestMetrics) -> None:
        self._log, self._metrics = log, metrics
        self.folder, self.user_ids, self.item_ids = log.folder, log.user_ids, log.item_ids
        self._format = ClickFormat(log.user_ids, log.item_ids)

    def append(self, user: Any, item: Any, time: NDArray[np.int64], kind: NDArray[np.uint8]) -> None:
        """Raises ValueError: a click breaks a rule. OSError: nothing was written."""
        clicks = self._format.checked(user, item, time, kind)
        try:
            self._log.append(clicks, "stream")
        except LogNotWritable as error:
            raise OSError(str(error)) from error
        self._metrics.count("received", "stream", len(clicks))


def _reason(error: Exception) -> str:
    """Words for the log and for /healthz: without ids and passwords."""
    if isinstance(error, StoreUnavailable):
        return str(error)
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else "the log can not be written"
    return type(error).__name__
