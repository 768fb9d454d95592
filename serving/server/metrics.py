"""What happened, counted: TensorFlow Serving's metrics under its own names and ours under `seedrank_`."""

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

__all__ = ["Metrics"]

# Microseconds, the last one without a limit: TensorFlow Serving's.
BOUNDS = tuple(10 * 1.8**power for power in range(33))
REQUEST_COUNT = ":tensorflow:serving:request_count"
REQUEST_LATENCY = ":tensorflow:serving:request_latency"
RUNTIME_LATENCY = ":tensorflow:serving:runtime_latency"
WARMUP_LATENCY = ":tensorflow:serving:model_warmup_latency"
LOAD_ATTEMPTS = ":tensorflow:cc:saved_model:load_attempt_count"
LOAD_LATENCY = ":tensorflow:cc:saved_model:load_latency"
UNKNOWN = "seedrank_unknown_model_requests_total"
MAX_PATHS = 100  # of versions, the last ones

_Labels = tuple[tuple[str, str], ...]


class _Histogram:
    """How many values fell under each bound, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0


class Metrics:
    """Counters and histograms in memory, and their text for Prometheus.

    `prometheus_client` would write `request_count_total`, which is not TensorFlow Serving's name. Labels take values
    of models that exist only, so that a client can not fill the memory with names. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: set[str] = set()
        self._counters: dict[str, dict[_Labels, float]] = {
            name: {} for name in (REQUEST_COUNT, LOAD_ATTEMPTS, LOAD_LATENCY, UNKNOWN)
        }
        self._histograms: dict[str, dict[_Labels, _Histogram]] = {
            name: {} for name in (REQUEST_LATENCY, RUNTIME_LATENCY, WARMUP_LATENCY)
        }
        self._gauges: dict[str, tuple[str, str, Callable[[], float | Mapping[_Labels, float]]]] = {}
        self._paths: dict[str, None] = {}  # in the order of their last load

    def set_models(self, names: set[str]) -> None:
        """The models that exist from now on; what was counted of others is dropped."""
        with self._lock:
            self._models = set(names)
            for series in self._all():
                for labels in [labels for labels in series if dict(labels).get("model_name", "") not in {"", *names}]:
                    del series[labels]

    def observe(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Counts a request.

        Args:
            model: str. As the request named it.
            api: str. TensorFlow Serving says `"Predict"` of gRPC and `"predict"` of REST.
            entrypoint: str. `"GRPC"` or `"REST"`.
            status: str. The code of the answer, one of `serving.errors.CODES`.
            seconds: float. From the first byte of the request to the last of the answer, as well as is known.
        """
        with self._lock:
            if model not in self._models:
                self._add(UNKNOWN, ())
                return
            self._add(REQUEST_COUNT, (("model_name", model), ("status", status)))
            self._put(REQUEST_LATENCY, (("model_name", model), ("API", api), ("entrypoint", entrypoint)), seconds)

    def observe_runtime(self, model: str, api: str, seconds: float) -> None:
        """Counts the run of a graph."""
        with self._lock:
            if model in self._models:
                self._put(RUNTIME_LATENCY, (("model_name", model), ("API", api), ("runtime", "TF1")), seconds)

    def observe_load(self, path: str, loaded: bool, seconds: float) -> None:
        """Counts an attempt to load a version."""
        with self._lock:
            self._keep(path)
            self._add(LOAD_ATTEMPTS, (("model_path", path), ("status", "success" if loaded else "fail")))
            self._add(LOAD_LATENCY, (("model_path", path),), seconds * 1e6)

    def observe_warmup(self, path: str, status: str, seconds: float) -> None:
        """Counts the replay of a version's warm-up requests."""
        with self._lock:
            self._keep(path)
            self._put(WARMUP_LATENCY, (("model_path", path), ("status", status)), seconds)

    def gauge(
        self, name: str, words: str, read: Callable[[], float | Mapping[_Labels, float]], *, kind: str = "gauge"
    ) -> None:
        """Adds a value that is read whenever the text is asked for.

        Args:
            name: str. Begins with `seedrank_`.
            words: str. What it is.
            read: callable. The value, or labels -> value, labels as pairs of name and value.
            kind: str. `"gauge"` or `"counter"`. Defaults to `"gauge"`.
        """
        with self._lock:
            self._gauges[name] = (kind, words, read)

    def total(self, name: str) -> int | None:
        """The sum of a counter over its labels, by TensorFlow Serving's own name of it (`/tensorflow/..`) or ours."""
        with self._lock:
            series = self._counters.get(name.replace("/", ":"))
            return None if series is None else int(sum(series.values()))

    def text(self) -> str:
        """All of it, in the text format of Prometheus."""
        with self._lock:
            gauges = dict(self._gauges)
            lines = []
            for name, counts in self._counters.items():
                if counts:
                    lines.append(f"# TYPE {name} counter")
                    lines += [f"{name}{{{_labels(key)}}} {int(value)}" for key, value in counts.items()]
            for name, histograms in self._histograms.items():
                if histograms:
                    lines.append(f"# TYPE {name} histogram")
                    for key, histogram in histograms.items():
                        lines += _histogram_lines(name, _labels(key), histogram)
        for name, (kind, words, read) in gauges.items():  # not under the lock: they may take others
            found = read()
            series = found if isinstance(found, Mapping) else {(): found}
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{{{_labels(key)}}} {_number(value)}" for key, value in series.items()]
        return "\n".join(lines) + "\n"

    def _all(self) -> list[dict[_Labels, Any]]:
        return [*self._counters.values(), *self._histograms.values()]

    def _add(self, name: str, labels: _Labels, count: float = 1) -> None:
        series = self._counters[name]
        series[labels] = series.get(labels, 0) + count

    def _put(self, name: str, labels: _Labels, seconds: float) -> None:
        histogram = self._histograms[name].setdefault(labels, _Histogram())
        microseconds = seconds * 1e6
        histogram.counts[bisect_left(BOUNDS, microseconds)] += 1
        histogram.total += microseconds

    def _keep(self, path: str) -> None:
        """Forgets the oldest path beyond `MAX_PATHS`."""
        self._paths.pop(path, None)
        self._paths[path] = None
        if len(self._paths) > MAX_PATHS:
            oldest = next(iter(self._paths))
            del self._paths[oldest]
            for series in self._all():
                for labels in [labels for labels in series if ("model_path", oldest) in labels]:
                    del series[labels]


def _histogram_lines(name: str, labels: str, histogram: _Histogram) -> list[str]:
    limits = [*(format(bound, "g") for bound in BOUNDS), "+Inf"]
    separator = "," if labels else ""
    counts = list(accumulate(histogram.counts))
    lines = [
        f'{name}_bucket{{{labels}{separator}le="{limit}"}} {count}' for limit, count in zip(limits, counts, strict=True)
    ]
    return [*lines, f"{name}_sum{{{labels}}} {_number(histogram.total)}", f"{name}_count{{{labels}}} {counts[-1]}"]


def _labels(labels: _Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1 << 53
    return str(int(value)) if whole else repr(float(value)).replace("inf", "Inf").replace("nan", "NaN")
