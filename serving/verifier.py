"""Verification in a process of its own; a spare one, started ahead, saves its start."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.errors import ServingError

__all__ = ["Verifier", "given_or_new"]

VERIFY_SECONDS = 600


class Verifier:
    """Runs `serving.verify`, each folder in a process that has loaded nothing else before.

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
        self._spare: _Process | None = None
        self._loaded: tuple[Path, _Process] | None = None
        self._ahead = False

    def __enter__(self) -> "Verifier":
        self._ahead = True
        self._spare = _Process()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes that wait."""
        self._ahead = False
        with self._lock:
            spare, self._spare = self._spare, None
        self._keep(None)
        if spare is not None:
            spare.end()

    def predict(
        self, folder: str | Path, requests: Sequence[Mapping[str, Any]], *, known_graph: bool = False
    ) -> list[dict[str, list[Any]]]:
        """What a SavedModel answers, before it is verified; `verify` of the folder goes on in the same process.

        Args:
            folder: str or Path. A SavedModel's, whose graph and variables do not change any more.
            requests: sequence of mappings with `signature` (str) and `inputs` (lists by name).
            known_graph: bool. As it will be verified: it then need not load again. Defaults to `False`.

        Returns:
            Of each request the outputs by name, as lists; text where they are bytes.

        Raises:
            ServingError: it does not load or answer, or the process ended or gave no answer.
        """
        folder = Path(folder).resolve()
        self._keep(None)
        process = self._take()
        answers: list[dict[str, list[Any]]] = process.ask(
            directory=str(folder), known_graph=known_graph, requests=list(requests)
        )
        self._keep((folder, process))
        return answers

    def _keep(self, loaded: "tuple[Path, _Process] | None") -> None:
        """For the verification to come; one alone, for there may come none."""
        with self._lock:
            former, self._loaded = self._loaded, loaded
        if former is not None:
            former[1].end()

    def verify(self, folder: str | Path, *, known_graph: bool = False) -> None:
        """Verifies one folder.

        Args:
            folder: str or Path. A SavedModel's.
            known_graph: bool. See `serving.verify.verify`. Defaults to `False`.

        Raises:
            ServingError: it was refused, or the process ended or gave no answer.
        """
        folder = Path(folder).resolve()
        process = None
        with self._lock:
            if self._loaded is not None and self._loaded[0] == folder:
                process, self._loaded = self._loaded[1], None
        process = process or self._take()
        process.ask(directory=str(folder), known_graph=known_graph)
        process.end()
        with self._lock:
            if self._ahead and self._spare is None:
                self._spare = _Process()

    def _take(self) -> "_Process":
        with self._lock:
            process, self._spare = self._spare, None
        return process if process is not None and process.waits() else _Process()


@contextlib.contextmanager
def given_or_new(verifier: Verifier | None) -> Iterator[Verifier]:
    """The verifier, or one of no more than this context, which keeps no process ahead."""
    if verifier is not None:
        yield verifier
        return
    with contextlib.closing(Verifier()) as own:
        yield own


class _Process:
    """`python -m serving.verify -`: a line of JSON to it, a line of JSON from it."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        environment = dict(os.environ)
        # One order of additions for every publisher, however it was started: scores of ranks turn on the last digit.
        environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        self._complaints = tempfile.TemporaryFile("w+", errors="replace")  # a pipe that nobody reads fills up
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.verify", "-"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
        )
        self.pid = self._process.pid

    def waits(self) -> bool:
        return self._process.poll() is None

    def ask(self, **asked: Any) -> Any:
        """What is answered.

        Raises:
            ServingError: it refused, or there is no answer in VERIFY_SECONDS. The process is no more.
        """
        try:
            return self._answer(json.dumps(asked))
        except BaseException:
            self._process.kill()
            self.end()
            raise

    def _answer(self, line: str) -> Any:
        stdin: Any = self._process.stdin
        stdout: Any = self._process.stdout
        late: list[bool] = []

        def too_late() -> None:
            late.append(True)
            self._process.kill()

        timer = threading.Timer(VERIFY_SECONDS, too_late)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended: there will be nothing to read
                stdin.write(f"{line}\n")
                stdin.flush()
            said = ""
            for said in stdout:
                if said.startswith("{"):  # a library may say something too
                    break
        finally:
            timer.cancel()
        if said.startswith("{"):
            answer = json.loads(said)
            if "refused" not in answer:
                return answer["answer"]
            raise ServingError(f"not published: {answer['refused']}")
        code = self._process.wait()
        if late:
            raise ServingError(f"not published: the verification gave no answer in {VERIFY_SECONDS} s.")
        self._complaints.seek(0)
        complained = said.strip() or self._complaints.read().strip() or f"exit code {code}"
        raise ServingError(f"not published: {complained.splitlines()[-1]}")

    def end(self) -> None:
        """The end of its input ends it."""
        self._process.communicate()
        self._complaints.close()
