"""Prometheus text read back: values by name, rates between two readings, quantiles of a histogram."""

import math
import re
import urllib.request
from collections.abc import Mapping
from typing import Any

__all__ = ["Reading", "parse", "quantile", "read", "total"]

Reading = Mapping[str, Mapping[tuple[tuple[str, str], ...], float]]

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def parse(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Name -> labels -> value; lines of another form are passed over."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or line.startswith("#"):
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        found.setdefault(match[1], {})[tuple(_LABEL.findall(match[2] or ""))] = value
    return found


def read(url: str, timeout: float = 1.0) -> Reading | None:
    """What a process tells of itself, `None` where it does not answer."""
    try:
        with _open(url, timeout) as reply:
            return parse(reply.read().decode(errors="replace"))
    except (OSError, ValueError):
        return None


def _open(url: str, timeout: float) -> Any:
    # Not by a proxy of the environment: it is this machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout)


def total(reading: Reading | None, name: str, **labels: str) -> float | None:
    """The sum of a metric over the series that have some labels, `None` where there is no such metric."""
    if reading is None or name not in reading:
        return None
    wanted = set(labels.items())
    return sum(value for key, value in reading[name].items() if wanted <= set(key))


def quantile(now: Reading | None, before: Reading | None, name: str, share: float) -> float | None:
    """A quantile of what a histogram counted between two readings, over all its labels.

    Within a bucket it goes by the logarithm, as the bounds of latencies do; in the last one it is the bucket's lower
    bound.

    Args:
        now: Reading.
        before: Reading, earlier; `None` counts from the start. One of another process (counts that fell) does too.
        name: str. Without `_bucket`.
        share: float, in (0, 1).

    Returns:
        float in the histogram's unit, `None` where it counted nothing.
    """
    counts = _buckets(now, name)
    early = _buckets(before, name)
    if any(count < early.get(bound, 0.0) for bound, count in counts.items()):
        early = {}
    bounds = sorted(counts)
    up_to = [counts[bound] - early.get(bound, 0.0) for bound in bounds]
    if not bounds or up_to[-1] <= 0:
        return None
    wanted = share * up_to[-1]
    place = next(place for place, count in enumerate(up_to) if count >= wanted)
    high = bounds[place]
    low = bounds[place - 1] if place else 0.0
    if math.isinf(high):
        return low
    below = up_to[place - 1] if place else 0.0
    inside = (wanted - below) / (up_to[place] - below)
    return low * (high / low) ** inside if low > 0 else high * inside


def _buckets(reading: Reading | None, name: str) -> dict[float, float]:
    """Upper bound -> how many at or below it, summed over the other labels."""
    found: dict[float, float] = {}
    for key, value in (reading or {}).get(f"{name}_bucket", {}).items():
        bound = float(dict(key).get("le", "nan"))
        found[bound] = found.get(bound, 0.0) + value
    return found
