"""Clustering in a process of its own, which may die, hang or run out of memory: a refresh goes on without it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib.format import read_array, write_array

from ranking.errors import UserError

__all__ = ["ClusterWorker", "WorkerFailed", "main"]

CLUSTER_SECONDS = 60.0  # of one call: a quarter of a million seeds take one
START_SECONDS = 180.0
ANSWERS = {b".": 0, b"+": 3, b"-": 1}  # arrays that follow: it has started; centroids, counts, inertia; what is wrong


class WorkerFailed(RuntimeError):
    """A call came to nothing.

    Args:
        reason: str. `"hung"`, `"died"` or `"error"`.
        message: str. What is known of it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ClusterWorker:
    """Clusters seeds in another process, with a deadline a call; a context manager, for one thread.

    The users' embeddings lie in a file in memory that both processes map; a call sends row numbers only. The process is
    started ahead, and again after a call that failed.

    Args:
        deadline: float, seconds. What a call may take; then the process is killed. Defaults to `60.0`.
        threads: int. Of the clustering. Defaults to `1`: the other cores serve.
    """

    def __init__(self, *, deadline: float = CLUSTER_SECONDS, threads: int = 1) -> None:
        if not deadline > 0 or threads < 1:
            raise UserError(f"`deadline` and `threads` should be positive. Received: {deadline}, {threads}.")
        self.deadline, self.threads = deadline, threads
        self._file: IO[bytes] | None = None
        self._shape = (0, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def __enter__(self) -> "ClusterWorker":
        self._file = _memory_file()
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def embeddings(self, users: int, width: int) -> np.ndarray:
        """The file as float32 `[users, width]`, to be filled: what the process reads. Rows that were there stay."""
        if self._file is None:
            raise UserError("`ClusterWorker` should be entered (`with`) before it is used.")
        if min(users, width) < 1:
            raise UserError(f"`users` and `width` should be positive. Received: {users}, {width}.")
        os.ftruncate(self._file.fileno(), users * width * 4)
        self._shape = (users, width)
        return np.memmap(self._file, np.float32, "r+", shape=self._shape)

    def cluster(
        self,
        rows: np.ndarray,
        offsets: np.ndarray,
        k: int,
        *,
        iterations: int,
        initial: np.ndarray | None = None,
        cohort: np.ndarray | None = None,
        max_share: float = 1.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `cluster` of the users in `rows`, or with cohorts as `cluster_capped`.

        Args:
            rows: int64 `[seeds]`. Rows of `embeddings`.
            offsets: int64 `[items + 1]`.
            k: int.
            iterations: int.
            initial: float32 `[items, k, width]` or `None`. Warm start.
            cohort: int64 `[seeds]` or `None`.
            max_share: float. Of a cohort. Defaults to `1.0`.

        Returns:
            centroids float32 `[items, k, width]`, counts int64 `[items, k]`, inertia float64 `[items]`.

        Raises:
            WorkerFailed: it died, gave no answer in time, or said why it cannot.
        """
        nothing = np.zeros(0, np.float32)
        settings = np.array([*self._shape, k, iterations, self.threads, initial is not None, cohort is not None])
        arrays = [settings, np.array(max_share), rows, offsets]
        arrays += [nothing if array is None else np.ascontiguousarray(array) for array in (initial, cohort)]
        if not self._ready:  # what it takes to start is no part of a call
            self._exchange([], START_SECONDS)
            self._ready = True
        found = self._exchange(arrays, self.deadline)
        return found[0], found[1], found[2]

    def _exchange(self, arrays: list[np.ndarray], seconds: float) -> list[np.ndarray]:
        """Sends arrays and returns those of the answer; after a failure there is a new process."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise UserError("`ClusterWorker` should be entered (`with`) before it is used.")
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            _send(process.stdin, arrays)
            status = process.stdout.read(1)
            found = _receive(process.stdout, ANSWERS.get(status, 0))
        except (OSError, ValueError, EOFError):  # it ended on the way
            status = b""
        finally:
            timer.cancel()
        if status == b"-":  # it goes on
            raise WorkerFailed("error", bytes(found[0]).decode(errors="replace"))
        if status in ANSWERS:
            return found
        with contextlib.suppress(subprocess.TimeoutExpired):  # its own end says more than ours
            process.wait(1)
        self._stop()
        self._start()
        if late.is_set():
            raise WorkerFailed("hung", f"no answer in {seconds:g} s")
        raise WorkerFailed("died", f"the process ended with {process.returncode}")

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        if self._file is None:
            raise UserError("`ClusterWorker` should be entered (`with`) before it is used.")
        number = self._file.fileno()
        command = [sys.executable, "-m", "ranking.refresh_worker", str(number)]
        pipe = subprocess.PIPE
        self._ready = False
        self._process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, pass_fds=(number,)
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()


def _memory_file() -> IO[bytes]:
    """A file without a name, in memory where the system has such files: /dev/shm has 64 MB in many containers."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("seedrank"), "w+b")
    return tempfile.TemporaryFile()  # noqa: SIM115  (it is the caller's)


class _Pipe:
    """A stream's methods and no more: numpy takes a stream with a number for a file on a disk, and seeks in it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.read, self.write = stream.read, stream.write


def _send(stream: IO[bytes], arrays: Sequence[np.ndarray]) -> None:
    for array in arrays:
        write_array(_Pipe(stream), array, allow_pickle=False)
    stream.flush()


def _receive(stream: IO[bytes], count: int) -> list[np.ndarray]:
    return [read_array(_Pipe(stream), allow_pickle=False) for _ in range(count)]


def main() -> None:
    """The process: reads calls from its standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it lets the step in hand end
    with contextlib.suppress(OSError):  # if memory runs out, this is what the system should end, not the server
        Path("/proc/self/oom_score_adj").write_text("800")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    file = os.fdopen(int(sys.argv[1]), "r+b")
    import lookalike.cohorts  # noqa: F401  (imported ahead: the first call has a deadline)

    answers.write(b".")
    _send(answers, [])
    while True:
        try:
            call = _receive(sys.stdin.buffer, 6)
        except (ValueError, EOFError):
            return
        found: tuple[np.ndarray, ...]
        try:
            found = _clustered(file, *call)
            answers.write(b"+")
        except (ValueError, MemoryError) as error:
            text = f"{type(error).__name__}: {error}".encode()[:1000]
            found = (np.frombuffer(text, np.uint8),)
            answers.write(b"-")
        _send(answers, found)


def _clustered(
    file: IO[bytes], settings: Any, max_share: Any, rows: Any, offsets: Any, initial: Any, cohort: Any
) -> tuple[np.ndarray, ...]:
    from lookalike.clustering import cluster
    from lookalike.cohorts import cluster_capped

    users, width, k, iterations, threads, warm, capped = settings.tolist()
    points = np.memmap(file, np.float32, "r", shape=(users, width))[rows]
    start = initial if warm else None
    if capped:
        share = float(max_share)
        found = cluster_capped(points, offsets, k, cohort, share, iterations=iterations, initial=start, threads=threads)
    else:
        found = cluster(points, offsets, k, iterations=iterations, initial=start, threads=threads)
    return found.centroids, found.counts, found.inertia


if __name__ == "__main__":
    main()
