"""What a refresher tells of itself, as numbers and as Prometheus text."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["RefreshMetrics", "seed_metrics", "serve_metrics"]

_HELP = {
    "rounds_total": ("counter", "Refreshes that published a version."),
    "skipped_ticks_total": ("counter", "Refreshes that were due while one ran, and were left out."),
    "paused_total": ("counter", "Refreshes that waited because the model is pinned after a rollback."),
    "failures_total": ("counter", "Refreshes, or parts of them, that came to nothing, by reason."),
    "last_success_timestamp_seconds": ("gauge", "When a version was last published."),
    "table_age_seconds": ("gauge", "Seconds since a version was last published, or since the start."),
    "watermark_seconds": ("gauge", "Events strictly before this moment are in the tables."),
    "dirty_items": ("gauge", "Items whose seeds changed, at the last refresh."),
    "waiting_items": ("gauge", "Of them, those left over for the next one."),
    "similar_items": ("gauge", "Items that have a similarity."),
    "new_similar_items_total": ("counter", "Items that had none at the refresh before, since the start."),
    "dominated_items": ("gauge", "Items that kept their centroids: too few cohorts of users, or strangers, clicked."),
    "oldest_waiting_rounds": ("gauge", "Refreshes that the longest waiting item has waited."),
    "unknown_seeds": ("gauge", "Seeds without an embedding among those read at the last refresh."),
    "unknown_items": ("gauge", "Items of the click log that the items table lacks."),
    "step_seconds": ("gauge", "Seconds of each step of the last refresh."),
}


class RefreshMetrics:
    """Counters and gauges; safe to read from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.time()
        self._success: float | None = None
        self._failures: Counter[str] = Counter()
        self._counters: Counter[str] = Counter()
        self._gauges: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Adds to one of the counters without a label."""
        with self._lock:
            self._counters[name] += by

    def failed(self, reason: str, count: int = 1) -> None:
        """Adds to the failures of a reason."""
        with self._lock:
            self._failures[reason] += count

    def succeeded(self) -> None:
        """A version was published."""
        with self._lock:
            self._success = time.time()
            self._counters["rounds_total"] += 1

    def set(self, gauges: dict[str, float], seconds: dict[str, float]) -> None:
        """The numbers of a refresh that ended."""
        with self._lock:
            self._gauges |= gauges
            self._seconds = dict(seconds)

    def as_dict(self) -> dict[str, Any]:
        """All of them by name; failures by reason and seconds by step are dicts."""
        with self._lock:
            since = self._started if self._success is None else self._success
            found: dict[str, Any] = dict.fromkeys(name for name, (kind, _) in _HELP.items() if kind == "counter")
            found |= {name: self._counters[name] for name in found if name != "failures_total"}
            found |= self._gauges
            if self._success is not None:
                found["last_success_timestamp_seconds"] = self._success
            found["table_age_seconds"] = max(0.0, time.time() - since)
            return {**found, "failures_total": dict(self._failures), "step_seconds": dict(self._seconds)}

    def text(self) -> str:
        """Prometheus' text format."""
        found, lines = self.as_dict(), []
        for name, (kind, what) in _HELP.items():
            if name not in found:
                continue
            full = f"seedrank_refresh_{name}"
            lines += [f"# HELP {full} {what}", f"# TYPE {full} {kind}"]
            if isinstance(found[name], dict):
                label = "reason" if kind == "counter" else "step"
                lines += [f'{full}{{{label}="{key}"}} {value:.10g}' for key, value in sorted(found[name].items())]
            else:
                lines.append(f"{full} {found[name]:.13g}")
        return "\n".join(lines) + "\n"


_SEEDS = {
    "kept": "Seeds in the store.",
    "items": "Items with a seed.",
    "bytes": "Bytes of the store.",
    "offset": "Offset of the log that is applied next.",
    "effective_latest": "Most seeds kept of an item, as the byte budget leaves it.",
}


def seed_metrics(store: Any) -> str:
    """A seed store's numbers in Prometheus' text format: `accepted = applied + late + invalid + duplicate`."""
    lines = []
    for name in ("accepted", "applied", "late", "invalid", "duplicate"):
        full = f"seedrank_seeds_{name}_total"
        lines += [f"# TYPE {full} counter", f"{full} {getattr(store.counts, name)}"]
    items = store.items()
    kept = int(store.seed_counts(items).sum())
    values = (kept, len(items), store.nbytes, store.offset, store.effective_latest)
    for (name, what), value in zip(_SEEDS.items(), values, strict=True):
        full = f"seedrank_seeds_{name}"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} gauge", f"{full} {value}"]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def serve_metrics(text: Callable[[], str], host: str, port: int) -> Iterator[int]:
    """Answers `GET /metrics` and `GET /healthz` while the block runs.

    Args:
        text: callable. The metrics.
        host: str. Address to listen on.
        port: int. 0 takes a free one.

    Yields:
        The port.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds that a connection may say nothing

        def do_GET(self) -> None:  # noqa: N802  (the library's name)
            found = {"/metrics": text, "/healthz": lambda: "ok\n"}.get(self.path.partition("?")[0])
            body = (found() if found else "not found\n").encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing of requests."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
