"""Verification in a process of its own; a spare one, started ahead, saves its start."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from serving.errors import ServingError

__all__ = ["KNOWN_GRAPH", "Verifier"]

VERIFY_SECONDS = 600
KNOWN_GRAPH = "known graph\n"  # to the process, behind the folder


class Verifier:
    """Runs `serving.verify`, each folder in a process that has loaded nothing before.

    So nothing of the training process (custom objects, variables, lookup tables) can stand in for what is missing from
    the folder. As a context manager it keeps one process ahead, which has started Python and TensorFlow's runtime and
    waits: who publishes again and again does not wait for that each time. Safe to use from many threads.

    Example:
        with Verifier() as verifier:
            while refreshing:
                publish(base, build, verifier=verifier)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: subprocess.Popen[str] | None = None
        self._ahead = False

    def __enter__(self) -> "Verifier":
        self._ahead = True
        self._spare = _start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead = False
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.communicate()  # the end of its input ends it

    def verify(self, folder: str | Path, *, known_graph: bool = False) -> None:
        """Verifies one folder.

        Args:
            folder: str or Path. A SavedModel's.
            known_graph: bool. See `serving.verify.verify`. Defaults to `False`.

        Raises:
            ServingError: it was refused, or the process ended or gave no answer.
        """
        with self._lock:
            process, self._spare = self._spare, None
        if process is None or process.poll() is not None:  # something ended the spare one meanwhile
            process = _start()
        try:
            said, complained = process.communicate(
                f"{Path(folder).resolve()}\n{KNOWN_GRAPH if known_graph else ''}", timeout=VERIFY_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise ServingError(f"not published: the verification gave no answer in {VERIFY_SECONDS} s.") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode:
            lines = (said.strip() or complained.strip() or f"exit code {process.returncode}").splitlines()
            raise ServingError(f"not published: {lines[-1]}")
        with self._lock:
            if self._ahead and self._spare is None:
                self._spare = _start()


def _start() -> "subprocess.Popen[str]":
    root = str(Path(__file__).resolve().parent.parent)
    environment = dict(os.environ)
    # One order of additions for every publisher, however it was started: scores of ranks turn on the last digit.
    environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "serving.verify", "-"]
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
