"""What an ingest did, counted, in the text format of Prometheus."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate

__all__ = ["IngestMetrics"]

BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds
_APPEND = "seedrank_ingest_append_seconds"
_COUNTERS = {  # name -> its label, what it counts
    "requests": ("code", "Requests, by status."),
    "received": ("source", "Clicks read over http or from a followed file or stream: accepted or refused."),
    "accepted": ("source", "Clicks that are durable in the log."),
    "refused": (
        "reason",
        "Clicks refused: invalid (a rule), log (it could not be written), tail (a line set aside), stream (an entry).",
    ),
    "bytes": ("source", "Bytes of clicks read, unpacked."),
    "tail_lost": ("event", "Times that a followed file was gone, or cut, before its end was read."),
    "admin": ("verb", "Admin verbs that were done."),
}
_Labels = tuple[str, str]


class IngestMetrics:
    """Counters, one histogram and gauges. Each counter has one label, of a few values. Safe from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {name: {} for name in _COUNTERS}
        self._appends = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._gauges: dict[str, tuple[str, str, Callable[[], Mapping[str, float]]]] = {}

    def count(self, name: str, label: str, amount: int = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            series = self._counts[name]
            series[label] = series.get(label, 0) + amount

    def value(self, name: str, label: str | None = None) -> int:
        """A counter, or its sum over its labels."""
        with self._lock:
            series = self._counts[name]
            return sum(series.values()) if label is None else series.get(label, 0)

    def observe_append(self, seconds: float) -> None:
        """Counts an append: the write, the sync and the wait for them."""
        with self._lock:
            self._appends[bisect_left(BOUNDS, seconds)] += 1
            self._seconds += seconds

    def gauge(self, name: str, words: str, read: Callable[[], Mapping[str, float]], *, label: str = "") -> None:
        """Adds values that are read whenever the text is asked for.

        Args:
            name: str. Without `seedrank_ingest_`.
            words: str. What it is.
            read: callable. The values, by the label's value (any key where there is no label).
            label: str. Its name. Defaults to `""`, none.
        """
        self._gauges[name] = (label, words, read)

    def text(self) -> str:
        """All of it."""
        lines = []
        for name, (label, words, read) in self._gauges.items():  # not under the lock: they may take others
            found = {f'{{{label}="{key}"}}' if label else "": value for key, value in read().items()}
            lines += _block(f"seedrank_ingest_{name}", "gauge", words, found)
        with self._lock:
            for name, (label, words) in _COUNTERS.items():
                counts = {f'{{{label}="{key}"}}': count for key, count in sorted(self._counts[name].items())}
                lines += _block(f"seedrank_ingest_{name}_total", "counter", words, counts)
            totals = list(accumulate(self._appends))
            limits = zip([*map(str, BOUNDS), "+Inf"], totals, strict=True)
            buckets: dict[str, float] = {f'_bucket{{le="{limit}"}}': total for limit, total in limits}
            buckets |= {"_sum": self._seconds, "_count": totals[-1]}
            lines += _block(_APPEND, "histogram", "Seconds of appends: write, sync, and the wait for both.", buckets)
        return "\n".join(lines) + "\n"


def _block(name: str, kind: str, words: str, series: Mapping[str, float]) -> list[str]:
    return [
        f"# HELP {name} {words}",
        f"# TYPE {name} {kind}",
        *(f"{name}{key} {value}" for key, value in series.items()),
    ]
