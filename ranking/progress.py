"""What a terminal shows of long work: one bar a stage, and not TensorFlow's notes."""

import logging
import os
import sys
import time
import warnings
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

__all__ = ["Bars", "quiet"]


def quiet() -> None:
    """Loads TensorFlow without the notes it prints; warnings that matter are ours to print."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    warnings.filterwarnings("ignore", module="keras|tensorflow|google|numba|absl")
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:  # its C++ half writes to the descriptor, before any log level counts
        os.dup2(nothing, 2)
        import tensorflow
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
    tensorflow.get_logger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)


class _Rate(ProgressColumn):
    """How many a second, of what is more than one thing."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed and (task.total or 0) > 1 else "", style="progress.data.speed")


class Bars:
    """A callable `(stage, done, total)` that draws a bar a stage; also a context manager.

    Args:
        console: rich Console to draw on. Where it is no terminal, each finished stage is one line.
    """

    def __init__(self, console: Console):
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Rate(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> "Bars":
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Moves the stage's bar."""
        now = time.perf_counter()
        started = self._started.setdefault(stage, now)
        if not self.console.is_terminal:
            if done >= total and stage not in self._tasks:
                self._tasks[stage] = TaskID(len(self._tasks))
                self.console.print(f"  {stage}: {total:,} in {now - started:.1f} s", highlight=False)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)
