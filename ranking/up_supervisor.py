"""Processes of one machine that belong together: started, watched, started again when they die, ended in order."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ranking.errors import UserError

__all__ = ["Child", "Supervisor", "Task"]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a dead one is started again; doubled each time
STEADY = 60.0  # seconds after which a process that ran counts as one that runs
REFUSED = 2  # exit status of a mistake of the user's: another try would end alike
LINES = 200  # of what a child said, the last ones


@dataclass(frozen=True)
class Task:
    """What one child runs.

    Args:
        name: str.
        words: sequence of str. Arguments of the Python interpreter.
        ready: callable. Whether it does its work; asked by `look` until it says so.
        grace: float, seconds. What it has to end by itself when it is told to. Defaults to `30.0`.
        lasting: bool. Whether it should run until it is ended: one that is not ends by itself, with status 0. Defaults
            to `True`.
        after: str. The task that has to have worked before this one starts. Defaults to none.
    """

    name: str
    words: Sequence[str]
    ready: Callable[[], bool]
    grace: float = 30.0
    lasting: bool = True
    after: str = ""


@dataclass
class Child:
    """A task and its process.

    Args:
        task: Task.
        state: str. `"waiting"` (for a start), `"starting"`, `"ready"`, `"draining"`, `"ended"`. Defaults to
            `"waiting"`.
        pid: int or `None`. Of the process, while there is one. Defaults to `None`.
        since: float. `time.monotonic()` of the last start. Defaults to `0.0`.
        restarts: int. Defaults to `0`.
        status: int or `None`. With which it ended last. Defaults to `None`.
        lines: deque of str. What it said last. Defaults to none.
    """

    task: Task
    state: str = "waiting"
    pid: int | None = None
    since: float = 0.0
    restarts: int = 0
    status: int | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    _process: "subprocess.Popen[str] | None" = None
    _reader: threading.Thread | None = None
    _due: float = 0.0
    _pause: float = field(default_factory=lambda: FIRST_PAUSE)
    _was_ready: bool = False

    @property
    def last(self) -> str:
        """The last thing it said."""
        return self.lines[-1] if self.lines else ""


class Supervisor:
    """Runs tasks as processes; `look` is called again and again by the one thread that owns it.

    A child that dies is started again after a pause: one second, then two, up to half a minute. One that refuses its
    arguments (status 2) before it ever worked would do so again: that ends everything. Children do not outlive this
    process, however it ends: each has a pipe as standard input, and ends in good order when the pipe does
    (`ranking.up_child`). A terminal's Ctrl-C reaches this process only, which ends them in the order of the tasks.

    Args:
        tasks: sequence of Task. In the order in which they are to end.
        say: callable. Called with (name, line) for each line a child says, from threads. Defaults to nothing.
    """

    def __init__(self, tasks: Sequence[Task], *, say: Callable[[str, str], None] = lambda name, line: None) -> None:
        if len({task.name for task in tasks}) < len(tasks):
            raise UserError("`tasks` should have names of their own.")
        self.children = {task.name: Child(task) for task in tasks}
        self._say = say

    def look(self) -> None:
        """Starts what is due, and sees who is ready and who has died.

        Raises:
            UserError: a child refuses its arguments, or one that was to end well did not.
        """
        for child in self.children.values():
            if child.state == "waiting" and time.monotonic() >= child._due:
                if not child.task.after or self.children[child.task.after]._was_ready:
                    self._start(child)
            elif child._process is not None:
                self._watch(child)

    def all_ready(self) -> bool:
        """Whether every child works, or has done what it was to do."""
        return all(child.state in ("ready", "ended") for child in self.children.values())

    def end(self, *, at_once: Callable[[], bool] = lambda: False, show: Callable[[], None] = lambda: None) -> bool:
        """Ends the children one after the other, each after what it is at.

        Args:
            at_once: callable. Asked meanwhile; once it says so, all are killed. Defaults to never.
            show: callable. Called some times a second. Defaults to nothing.

        Returns:
            bool. Whether all ended by themselves.
        """
        well = True
        for child in self.children.values():
            process = child._process
            if process is None:
                child.state = "ended"
                continue
            child.state = "draining"
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            until = time.monotonic() + child.task.grace
            while process.poll() is None:
                if at_once() or time.monotonic() > until:
                    well = False
                    _kill(process)
                    break
                show()
                time.sleep(0.05)
            self._gone(child)
            child.state = "ended"
        return well

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():  # after an error; `end` leaves none
            if child._process is not None:
                _kill(child._process)
                self._gone(child)

    def _start(self, child: Child) -> None:
        root = str(Path(__file__).resolve().parents[1])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        environment["PYTHONUNBUFFERED"] = "1"
        child._process = subprocess.Popen(
            [sys.executable, *child.task.words],
            env=environment,
            stdin=subprocess.PIPE,  # never written to: its end tells the child that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        child.pid, child.since, child.state, child.status = child._process.pid, time.monotonic(), "starting", None
        child._reader = threading.Thread(target=self._read, args=(child, child._process.stdout), daemon=True)
        child._reader.start()

    def _read(self, child: Child, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed: its process is gone
            for line in stream:
                if line := line.rstrip():
                    child.lines.append(line)
                    self._say(child.task.name, line)

    def _watch(self, child: Child) -> None:
        process = child._process
        if process is None:
            return
        if process.poll() is None:
            if child.state == "starting" and child.task.ready():
                child.state, child._was_ready = "ready", True
            if child.state == "ready" and time.monotonic() - child.since > STEADY:
                child._pause = FIRST_PAUSE
            return
        self._gone(child)
        name, status = child.task.name, child.status
        if not child.task.lasting and status == 0:
            child.state = "ended"
            return
        if not child.task.lasting or (status == REFUSED and not child._was_ready):
            raise UserError(f"{name}: {child.last.removeprefix('seedrank: ') or f'ended with status {status}'}")
        self._say(name, f"{_said(status)}; it is started again in {child._pause:g} s")
        child.state, child._due = "waiting", time.monotonic() + child._pause
        child._pause = min(2 * child._pause, LONGEST_PAUSE)
        child.restarts += 1

    def _gone(self, child: Child) -> None:
        """Takes leave of a process that has ended."""
        process, child._process = child._process, None
        if process is None:
            return
        child.status, child.pid = process.wait(), None
        if child._reader is not None:
            child._reader.join(1.0)  # what it left running may hold the pipe
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # and what it has started
    process.wait()


def _said(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
