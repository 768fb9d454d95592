"""What a refresher tells of itself, as numbers and as Prometheus text."""

import threading
import time
from collections import Counter
from typing import Any

__all__ = ["RefreshMetrics"]

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
    "dominated_items": ("gauge", "Items that kept their centroids because too few cohorts of users clicked them."),
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

    def failed(self, reason: str) -> None:
        """Adds to the failures of a reason."""
        with self._lock:
            self._failures[reason] += 1

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
