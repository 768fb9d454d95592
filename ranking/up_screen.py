"""The screen of `seedrank up`: who runs, what comes in, what is served; as a screen, as lines, or as JSON."""

import json
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ranking.up_status import Status
from ranking.up_supervisor import Child

__all__ = ["Screen", "line_of", "screen_of"]

COLORS = {"ready": "green", "starting": "yellow", "waiting": "red", "draining": "yellow", "ended": "dim"}
PLAIN_SECONDS = 10.0  # between two lines where there is no screen
SAID = 3  # last lines of the children that the screen shows


class Screen:
    """Shows the status; a context manager.

    Args:
        console: Console. Where it is no terminal, or with `live=False`, it gets a line every ten seconds.
        live: bool. Whether a terminal is drawn on. Defaults to `True`.
        as_json: bool. Whether each status is a line of JSON on standard output instead. Defaults to `False`.
        where: sequence of (what, address): the screen's last lines, the first ones of others. Defaults to none.
    """

    def __init__(
        self,
        console: Console,
        *,
        live: bool = True,
        as_json: bool = False,
        where: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._console, self._json, self._where = console, as_json, where
        self._started = time.monotonic()
        self._told = -PLAIN_SECONDS
        self._said: list[str] = []
        self._drawn: RenderableType = Text()
        self._echoed = True
        draw = live and console.is_terminal and not as_json
        self._live = Live(console=console, auto_refresh=False, transient=False) if draw else None

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._echoed = _echo_control(False)
            self._live.start()
        else:
            for what, address in self._where:
                self.say(what, address)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is None:
            return
        self._live.update(self._drawn, refresh=True)
        self._live.stop()
        _echo_control(self._echoed)
        for line in self._said:  # what the screen had to cut, in full
            self._console.print(line, highlight=False, markup=False, soft_wrap=True, style="dim")

    def say(self, name: str, line: str) -> None:
        """A line of a child, or about it. May come from any thread."""
        if self._live is None:
            self._console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
        else:
            self._said = [*self._said, f"{name}: {line}"][-SAID:]

    def show(self, children: Mapping[str, Child], status: Status, note: str = "") -> None:
        """Draws it, or prints it where its time has come."""
        if self._json:
            told = {
                name: {"state": child.state, "restarts": child.restarts, "pid": child.pid}
                for name, child in children.items()
            }
            where = dict(self._where)
            print(json.dumps({"processes": told, **status.as_dict(), "note": note, "where": where}), flush=True)
        elif self._live is not None:
            self._drawn = screen_of(children, status, up=time.monotonic() - self._started, where=self._where, note=note)
            self._live.update(
                Group(self._drawn, *(Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in self._said)),
                refresh=True,
            )
        elif time.monotonic() - self._told >= PLAIN_SECONDS:
            self._told = time.monotonic()
            self._console.print(line_of(children, status, note), highlight=False, markup=False, soft_wrap=True)


def _echo_control(shown: bool) -> bool:
    """Says whether the terminal writes ^C where it was pressed, in the middle of a screen; whether it did before."""
    try:
        settings = termios.tcgetattr(sys.stdin)
    except (termios.error, ValueError, OSError):  # no terminal
        return True
    before = bool(settings[3] & termios.ECHOCTL)
    settings[3] = settings[3] | termios.ECHOCTL if shown else settings[3] & ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, settings)
    return before


def screen_of(
    children: Mapping[str, Child],
    status: Status,
    *,
    up: float,
    where: Sequence[tuple[str, str]] = (),
    note: str = "",
) -> RenderableType:
    """One screen of at most 80 columns.

    Args:
        children: name -> Child.
        status: Status.
        up: float, seconds. How long it has run.
        where: sequence of (what, address). Defaults to none.
        note: str. What is going on. Defaults to nothing.
    """
    head = Rule(f"[bold]seedrank up[/] {_span(up)}{'  ' + escape(note) if note else ''}", align="left", style="dim")
    processes = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, child in children.items():
        state = Text(child.state, COLORS.get(child.state, ""))
        ran = _span(time.monotonic() - child.since) if child.pid else ""
        again = f"restarted {child.restarts}x" if child.restarts else ""
        processes.add_row(
            Text(name, "bold"),
            state,
            f"pid {child.pid}" if child.pid else "",
            ran,
            Text(again, "red"),
        )
    figures = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    figures.add_column(style="bold", no_wrap=True, min_width=len("requests"))
    for _ in range(4):
        figures.add_column(no_wrap=True)
    for row in _rows(status):
        figures.add_row(*row)
    at = [Text(f"{what}: {address}", "dim", no_wrap=True, overflow="ellipsis") for what, address in where]
    return Group(head, processes, Text(""), figures, Text(""), *at)


def _rows(s: Status) -> list[list[Text | str]]:
    return [
        [
            "clicks",
            _of(s.clicks_per_second, "/s", 0),
            _of(s.clicks, " durable"),
            _of(s.clicks_refused, " refused", bad=True),
            _of(s.behind, " unread"),
        ],
        ["seeds", _of(s.seeds, ""), _of(s.items, " items"), _of(s.late, " late"), _of(s.invalid, " invalid", bad=True)],
        [
            "refresh",
            _of(s.dirty, " dirty"),
            _of(s.new_similar, " gained a similarity"),
            _of(s.refresh_seconds, " s", 1),
            _of(s.failures, " failed", bad=True),
        ],
        ["tables", f"{_span(s.table_age)} old", f"as of {_moment(s.watermark)}", "version", str(s.version or "-")],
        [
            "requests",
            _of(s.requests_per_second, "/s", 0),
            f"p50 {_ms(s.p50_ms)}  p99 {_ms(s.p99_ms)} ms",
            _of(s.refused, " refused", bad=True),
            _of(s.errors, " errors", bad=True),
        ],
    ]


def line_of(children: Mapping[str, Child], status: Status, note: str = "") -> str:
    """The status in a line."""
    s = status
    states = " ".join(f"{name} {child.state}" for name, child in children.items())
    parts = [
        *([note] if note else []),
        states,
        f"clicks {_number(s.clicks_per_second)}/s, {_number(s.clicks)} durable",
        f"seeds {_number(s.seeds)}, late {_number(s.late)}, invalid {_number(s.invalid)}",
        f"dirty {_number(s.dirty)}, gained a similarity {_number(s.new_similar)}",
        f"tables {_span(s.table_age)} old, version {s.version or '-'}, refreshed in {_number(s.refresh_seconds, 1)} s",
        f"requests {_number(s.requests_per_second)}/s, p50 {_ms(s.p50_ms)} ms, p99 {_ms(s.p99_ms)} ms, "
        f"refused {_number(s.refused)}, errors {_number(s.errors)}",
    ]
    return " | ".join(parts)


def _of(value: float | None, unit: str, places: int = 0, *, bad: bool = False) -> Text:
    return Text("-" if value is None else f"{_number(value, places)}{unit}", "red" if bad and value else "")


def _number(value: float | None, places: int = 0) -> str:
    return "-" if value is None else f"{value:,.{places}f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _span(seconds: float | None) -> str:
    """12 s, 3 min 20 s, 5 h 02 min, 3 d 4 h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def _moment(ms: float | None) -> str:
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
