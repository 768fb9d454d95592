"""The server as one object: start, poll for new versions, stop."""

import errno
import logging
import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.errors import ServingError
from serving.server.versions import Models, find_models

__all__ = ["Server"]

_log = logging.getLogger("serving")


class Server:
    """Serves a folder of published models over REST and gRPC, as TensorFlow Serving's clients expect it.

    Unlike TensorFlow Serving, which waits for ever, it refuses to start without models. New versions are picked up
    while it runs; new models are not.

    Args:
        models_dir: str or Path. Holds one folder a model, named like the model, with numeric versions in it; or is
            such a folder itself.
        host: str. Address to listen on. Defaults to `"127.0.0.1"`: this machine only.
        rest_port: int. `0` takes a free one. Defaults to `8501`.
        grpc_port: int. `0` takes a free one. Defaults to `8500`.
        poll_seconds: float. Pause between two looks for new versions. Defaults to `1.0`.

    Raises:
        ServingError: at `start`, for a port in use, a folder without models, or a model that does not load.

    Example:
        with Server("models", rest_port=0, grpc_port=0) as server:
            print(server.rest_port, server.grpc_port)
            server.wait()
    """

    def __init__(
        self,
        models_dir: str | Path,
        *,
        host: str = "127.0.0.1",
        rest_port: int = 8501,
        grpc_port: int = 8500,
        poll_seconds: float = 1.0,
    ) -> None:
        if poll_seconds <= 0:
            raise ServingError(f"`poll_seconds` should be positive. Received: poll_seconds={poll_seconds}.")
        self._models_dir = Path(models_dir)
        self._host = host
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._models: Models | None = None
        self._rest: Any = None
        self._grpc: Any = None
        self._poller: threading.Thread | None = None
        self.rest_port = rest_port
        self.grpc_port = grpc_port

    def start(self) -> None:
        """Loads the models, then opens the ports."""
        folders = find_models(self._models_dir)
        with _bind(self._host, self.grpc_port):
            pass  # a port in use is worth knowing before minutes of loading
        bound = _bind(self._host, self.rest_port)
        self._models = Models(folders)
        try:
            self._models.start()
            self._open(self._models, bound)
        except BaseException:
            bound.close()
            self.stop()
            raise
        self._poller = threading.Thread(target=self._poll, name="serving-poll", daemon=True)
        self._poller.start()

    def _open(self, models: Models, bound: socket.socket) -> None:
        from serving.server.rest import RestServer
        from serving.server.rpc import start_grpc

        workers = 2 * (os.cpu_count() or 1) + 2
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._grpc, self.grpc_port = start_grpc(models, f"{host}:{self.grpc_port}", workers)
        try:
            bound.listen(1024)
        except OSError as error:
            raise ServingError(f"port {self.rest_port} is in use: {error.strerror}.") from error
        self.rest_port = bound.getsockname()[1]
        self._rest = RestServer(models, bound, workers)
        self._rest.start()
        _log.info("REST on http://%s:%d, gRPC on %s:%d", host, self.rest_port, host, self.grpc_port)

    def _poll(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                if self._models is not None:
                    self._models.poll()
            except Exception:  # a look that failed must not end the looking
                _log.exception("looking for new versions failed")

    def stop(self) -> None:
        """Lets running requests end, closes the ports and unloads the models. May be called twice."""
        self._stopping.set()
        if self._poller is not None:
            self._poller.join()
        if self._grpc is not None:
            self._grpc.stop(grace=5.0).wait()
        if self._rest is not None:
            self._rest.stop()
        if self._models is not None:
            self._models.close()
        self._poller = self._grpc = self._rest = self._models = None
        self._stopped.set()

    def wait(self) -> None:
        """Blocks until `stop` is called from another thread, or an interrupt."""
        while not self._stopped.wait(1.0):
            pass

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ServingError(
                f"port {port} is in use: {reason} ({host}). Choose another, or 0 for a free one."
            ) from error
        raise ServingError(f"can not listen on {host}:{port}: {reason}.") from error
    return bound
