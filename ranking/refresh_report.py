"""What a refresh did: as an object, as JSON, as a table for people."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

__all__ = ["Refreshed", "refreshed_line", "refreshed_table"]


@dataclasses.dataclass
class Refreshed:
    """What a refresh did.

    Args:
        tick: int, ms. Its watermark: events strictly before it are in the tables. Defaults to 0.
        version: int or `None`. What was published. Defaults to `None`.
        skipped: str. Why nothing was: `"pinned"`, `"stopped"`; empty where something was. Defaults to `""`.
        events: int. Events of the log that it took in; the first one also those since the store's snapshot. Defaults to
            0.
        dirty: int. Items whose seeds changed. Defaults to 0.
        warm, cold: int. Items that were clustered from their old centroids, and from none. Default to 0.
        waiting: int. Items left over for the next refresh. Defaults to 0.
        dominated: int. Items that kept what they had because too few cohorts of users clicked them. Defaults to 0.
        unknown_seeds: int. Seeds without an embedding, of the items that were clustered. Defaults to 0.
        unknown_items: int. Items of the log that the tables lack. Defaults to 0.
        new_items, new_users, embedded: int. Ids that the tables gained; users whose vectors were made. Default to 0.
        failures: dict. Reason -> how often a call of the worker failed. Defaults to none.
        seconds: dict. Step -> seconds. Defaults to none.
    """

    tick: int = 0
    version: int | None = None
    skipped: str = ""
    events: int = 0
    dirty: int = 0
    warm: int = 0
    cold: int = 0
    waiting: int = 0
    dominated: int = 0
    unknown_seeds: int = 0
    unknown_items: int = 0
    new_items: int = 0
    new_users: int = 0
    embedded: int = 0
    failures: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Takes the time of a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - started, 3)

    def to_dict(self) -> dict[str, Any]:
        """As `seedrank refresh --json` prints it; the version as text, for readers whose numbers are floats."""
        return dataclasses.asdict(self) | {"version": None if self.version is None else str(self.version)}


_ROWS = {
    "events": "events of the log taken in",
    "dirty": "items whose seeds changed",
    "warm": "items clustered from their old centroids",
    "cold": "items clustered for the first time",
    "waiting": "items left over for the next refresh",
    "dominated": "items kept as they were: too few cohorts",
    "unknown_seeds": "seeds that the tables do not know",
    "unknown_items": "items that the tables do not know",
    "new_items": "new items",
    "new_users": "new users",
    "embedded": "user vectors made",
}


def refreshed_table(done: Refreshed) -> Table:
    """One refresh in full."""
    title = f"version {done.version}" if done.version is not None else f"nothing was published: {done.skipped}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if done.tick:
        table.add_row("watermark", moment(done.tick))
    for name, words in _ROWS.items():
        table.add_row(words, f"{getattr(done, name):,}")
    for reason, count in done.failures.items():
        table.add_row(f"clustering failed ({reason})", f"{count:,}")
    for name, seconds in done.seconds.items():
        table.add_row(f"seconds: {name}", f"{seconds:.2f}")
    return table


def refreshed_line(done: Refreshed) -> str:
    """One refresh in a line."""
    seconds = sum(done.seconds.values())
    if done.version is None:
        return f"{done.events:,} events; nothing was published: {done.skipped} ({seconds:.1f} s)"
    failed = f", {sum(done.failures.values())} failed" if done.failures else ""
    return (
        f"version {done.version}, up to {moment(done.tick)}: {done.events:,} events, {done.warm + done.cold:,} items "
        f"clustered ({done.cold:,} first), {done.waiting:,} waiting{failed}; {seconds:.1f} s"
    )


def moment(tick: int) -> str:
    """A time in ms, UTC."""
    return datetime.fromtimestamp(tick / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
