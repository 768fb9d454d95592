"""What ingest, refresh and server tell of themselves, once a second, as the numbers of one screen."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ranking.up_metrics import Reading, quantile, read, total

__all__ = ["Status", "Watch"]

SPAN = 10.0  # seconds that rates and quantiles are over
LATENCY = ":tensorflow:serving:request_latency"
REQUESTS = ":tensorflow:serving:request_count"


@dataclasses.dataclass(frozen=True)
class Status:
    """The numbers; `None` where nobody tells.

    Attributes:
        clicks_per_second: of clicks that are durable in the log, over the last seconds.
        clicks, clicks_refused: since ingest started.
        accepted, late, invalid, duplicate: what the seed store made of the log's events.
        seeds, items: users kept of all items; items with at least one.
        behind: events of the log that the store has not read.
        dirty, waiting: items whose seeds changed, at the last refresh; those of them left for the next one.
        similar: items with a similarity; new_similar: those that gained theirs since the start.
        refreshes, failures: rounds that published; what came to nothing.
        refresh_seconds: of the last refresh.
        version: what is served. watermark: ms, of its tables. table_age: seconds since then.
        requests_per_second, p50_ms, p99_ms: over the last seconds.
        requests, errors: since the server started; errors are answers other than OK. refused: because too many waited.
    """

    clicks_per_second: float | None = None
    clicks: float | None = None
    clicks_refused: float | None = None
    accepted: float | None = None
    late: float | None = None
    invalid: float | None = None
    duplicate: float | None = None
    seeds: float | None = None
    items: float | None = None
    behind: float | None = None
    dirty: float | None = None
    waiting: float | None = None
    similar: float | None = None
    new_similar: float | None = None
    refreshes: float | None = None
    failures: float | None = None
    refresh_seconds: float | None = None
    version: int | None = None
    watermark: float | None = None
    table_age: float | None = None
    requests_per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    requests: float | None = None
    errors: float | None = None
    refused: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Name -> number or `None`, for JSON."""
        return dataclasses.asdict(self)


class Watch:
    """Reads the metrics of the processes and makes numbers of them.

    Args:
        urls: dict. `"ingest"`, `"refresh"`, `"server"` -> where its metrics are.
        now: callable. The moment that ages are counted to, ms. Defaults to the system's.
        reader: callable from a URL to a Reading or `None`. Defaults to one that asks over HTTP.
    """

    def __init__(
        self,
        urls: Mapping[str, str],
        *,
        now: Callable[[], int] = lambda: int(time.time() * 1000),
        reader: Callable[[str], Reading | None] = read,
    ) -> None:
        self._urls, self._now, self._reader = dict(urls), now, reader
        self._pool = ThreadPoolExecutor(len(self._urls))
        self._past: deque[tuple[float, dict[str, Reading | None]]] = deque()

    def read(self) -> Status:
        """The numbers as of now."""
        moment = time.monotonic()
        found = dict(zip(self._urls, self._pool.map(self._reader, self._urls.values()), strict=True))
        while len(self._past) > 1 and moment - self._past[1][0] >= SPAN:
            self._past.popleft()
        before = self._past[0] if self._past else (moment, found)
        self._past.append((moment, found))
        return self._status(found, before[1], moment - before[0])

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _status(self, now: dict[str, Reading | None], before: dict[str, Reading | None], seconds: float) -> Status:
        ingest, refresh, server = (now.get(name) for name in ("ingest", "refresh", "server"))
        served = _served(server)
        accepted = _count(ingest, "seedrank_ingest_accepted_total")
        requests = _count(server, REQUESTS)
        fine = total(server, REQUESTS, status="OK")
        steps = total(refresh, "seedrank_refresh_step_seconds")
        past = before.get("server")
        p50, p99 = (quantile(server, past, LATENCY, share) for share in (0.5, 0.99))
        return Status(
            clicks_per_second=_rate(accepted, total(before.get("ingest"), "seedrank_ingest_accepted_total"), seconds),
            clicks=accepted,
            clicks_refused=_count(ingest, "seedrank_ingest_refused_total"),
            **{
                name: total(refresh, f"seedrank_seeds_{name}_total")
                for name in ("accepted", "late", "invalid", "duplicate")
            },
            seeds=total(refresh, "seedrank_seeds_kept"),
            items=total(refresh, "seedrank_seeds_items"),
            behind=_difference(total(ingest, "seedrank_ingest_log_end"), total(refresh, "seedrank_seeds_offset")),
            dirty=total(refresh, "seedrank_refresh_dirty_items"),
            waiting=total(refresh, "seedrank_refresh_waiting_items"),
            similar=total(refresh, "seedrank_refresh_similar_items"),
            new_similar=total(refresh, "seedrank_refresh_new_similar_items_total"),
            refreshes=total(refresh, "seedrank_refresh_rounds_total"),
            failures=_count(refresh, "seedrank_refresh_failures_total"),
            refresh_seconds=steps,
            version=None if served is None else served[0],
            watermark=None if served is None else served[1],
            table_age=None if served is None or served[1] is None else max(0.0, (self._now() - served[1]) / 1000),
            requests_per_second=_rate(requests, total(past, REQUESTS), seconds),
            p50_ms=None if p50 is None else p50 / 1000,
            p99_ms=None if p99 is None else p99 / 1000,
            requests=requests,
            errors=None if requests is None else requests - (fine or 0.0),
            refused=total(server, "seedrank_requests_refused_total"),
        )


def _served(server: Reading | None) -> tuple[int, float | None] | None:
    """The newest version that answers, and the watermark of its tables."""
    versions = [
        int(dict(key)["version"])
        for key, value in (server or {}).get("seedrank_loaded_version", {}).items()
        if value and dict(key).get("version", "").isdigit()
    ]
    if not versions:
        return None
    return max(versions), total(server, "seedrank_seed_watermark", version=str(max(versions)))


def _count(reading: Reading | None, name: str) -> float | None:
    """A counter with labels, which has no series before the first event."""
    return None if reading is None else total(reading, name) or 0.0


def _rate(now: float | None, before: float | None, seconds: float) -> float | None:
    """Per second; a count that fell is another process's, counted from its start."""
    if now is None or seconds <= 0:
        return None
    before = 0.0 if before is None else before
    return (now - before if now >= before else now) / seconds


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(0.0, one - other)
