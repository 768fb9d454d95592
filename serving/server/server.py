"""The server as one object: start, poll for new versions, stop."""

import errno
import functools
import logging
import math
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.age import FIRST_TIME, WATERMARK, check_age, table_age
from serving.errors import ServingError
from serving.server.admission import Admission
from serving.server.health import Health, too_old
from serving.server.metrics import Metrics
from serving.server.model_service import ModelService
from serving.server.models_config import ModelConfig, read_models_config
from serving.server.versions import Models, VersionStatus, find_models

__all__ = ["Server"]

_log = logging.getLogger("serving")
DRAIN_SECONDS = 30.0  # for the requests that are there at a stop
HEALTH_SECONDS = 1.0  # between two looks at the age of the tables
GRACE_SECONDS = 5.0  # for the last bytes of their answers


class Server:
    """Serves published models over REST and gRPC, as TensorFlow Serving's clients expect it.

    Unlike TensorFlow Serving, which waits for ever, it refuses to start without models. New versions are picked up
    while it runs; new models by another configuration only: a change of `models_config`, or HandleReloadConfigRequest.

    Args:
        models_dir: str or Path. Holds one folder a model, named like the model, with numeric versions in it; or is
            such a folder itself. The newest version of each is served.
        models_config: str or Path. Instead of `models_dir`: a models.config, TensorFlow Serving's list of models with
            their version policies and labels. Defaults to none.
        config_poll_seconds: float. Pause between two looks at `models_config`; 0 reads it once. Defaults to `0.0`.
        host: str. Address to listen on. Defaults to `"127.0.0.1"`: this machine only.
        rest_port: int. `0` takes a free one. Defaults to `8501`.
        grpc_port: int. `0` takes a free one. Defaults to `8500`.
        poll_seconds: float. Pause between two looks for new versions. Defaults to `1.0`.
        hard_table_age: float or `None`. Seconds. While the newest version of a model has older tables, health says
            NOT_SERVING and `/healthz` 503, so that a balancer asks others; requests are answered all the same. Defaults
            to no limit.

    Raises:
        ServingError: at `start`, for a port in use, a folder without models, or a model that does not load.

    Example:
        with Server("models", rest_port=0, grpc_port=0) as server:
            print(server.rest_port, server.grpc_port)
            server.wait()
    """

    def __init__(
        self,
        models_dir: str | Path | None = None,
        *,
        models_config: str | Path | None = None,
        config_poll_seconds: float = 0.0,
        host: str = "127.0.0.1",
        rest_port: int = 8501,
        grpc_port: int = 8500,
        poll_seconds: float = 1.0,
        hard_table_age: float | None = None,
    ) -> None:
        if (models_dir is None) == (models_config is None):
            raise ServingError(
                "one of `models_dir` and `models_config` should be given. Received: "
                f"models_dir={models_dir}, models_config={models_config}."
            )
        if not poll_seconds > 0:
            raise ServingError(f"`poll_seconds` should be positive. Received: poll_seconds={poll_seconds}.")
        if not config_poll_seconds >= 0:
            raise ServingError(
                f"`config_poll_seconds` should not be negative. Received: config_poll_seconds={config_poll_seconds}."
            )
        check_age("hard_table_age", hard_table_age)
        self._hard_table_age = hard_table_age
        self._models_dir = models_dir
        self._models_config = models_config
        self._config_poll_seconds = config_poll_seconds
        self._host = host
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._models: Models | None = None
        self._health: Health | None = None
        self._admission: Admission | None = None
        self._rest: Any = None
        self._grpc: Any = None
        self._guard: Any = None
        self._config_poller: threading.Thread | None = None
        self.metrics = Metrics()
        self.rest_port = rest_port
        self.grpc_port = grpc_port

    def start(self) -> None:
        """Loads the models, then opens the ports."""
        configs = self._configs()
        with _bind(self._host, self.grpc_port):
            pass  # a port in use is worth knowing before minutes of loading
        bound = _bind(self._host, self.rest_port)
        self._models = Models(configs, metrics=self.metrics)
        _add_gauges(self.metrics, self._models)
        try:
            self._models.start()
            self._open(self._models, bound)
        except BaseException:
            bound.close()
            self.stop()
            raise
        self._models.watch(self._poll_seconds)
        if self._models_config is not None and self._config_poll_seconds:
            self._config_poller = threading.Thread(target=self._poll_config, args=(configs,), daemon=True)
            self._config_poller.start()

    def _configs(self) -> list[ModelConfig]:
        return (
            find_models(self._models_dir or "")
            if self._models_config is None
            else read_models_config(self._models_config)
        )

    def _open(self, models: Models, bound: socket.socket) -> None:
        from serving.server.rest import RestServer
        from serving.server.rpc import start_grpc

        limit = self._hard_table_age
        self._health = Health((lambda: "") if limit is None else functools.partial(too_old, models, limit))
        self._admission = Admission()
        _add_counts(self.metrics, self._admission)
        host = f"[{self._host}]" if ":" in self._host else self._host
        services = (ModelService(models, self.metrics).add_to, self._health.add_to)
        self._grpc, self.grpc_port, self._guard = start_grpc(
            models, f"{host}:{self.grpc_port}", self._admission, metrics=self.metrics, services=services
        )
        try:
            bound.listen(1024)
        except OSError as error:
            raise ServingError(f"port {self.rest_port} is in use: {error.strerror}.") from error
        self.rest_port = bound.getsockname()[1]
        self._rest = RestServer(models, bound, self._admission, metrics=self.metrics, problem=self._health.problem)
        self._rest.start()
        if limit is not None:
            watching = functools.partial(self._health.watch, HEALTH_SECONDS)
            threading.Thread(target=watching, name="serving-health", daemon=True).start()
        _log.info("REST on http://%s:%d, gRPC on %s:%d", host, self.rest_port, host, self.grpc_port)

    def _poll_config(self, configs: list[ModelConfig]) -> None:
        """Takes what has changed in the file, and no more: a reload over gRPC stays until then."""
        complaint = ""
        while not self._stopping.wait(self._config_poll_seconds):
            try:
                found = self._configs()
                if found != configs and self._models is not None:
                    configs = found
                    self._models.update(found)
                complaint = ""
            except Exception as error:  # a file that is wrong must not end the looking
                if str(error) != complaint:
                    _log.error("the configuration stays as it was: %s", error)
                complaint = str(error)

    def stop(self) -> None:
        """Says that it no longer serves, lets running requests end, closes the ports and unloads the models.

        May be called twice.
        """
        self._stopping.set()
        if self._health is not None:
            self._health.stop()
        if self._admission is not None:
            self._admission.drain(DRAIN_SECONDS)
        if self._config_poller is not None:
            self._config_poller.join()
        if self._grpc is not None:
            self._grpc.stop(grace=GRACE_SECONDS).wait()
            self._guard.stop()
        if self._rest is not None:
            self._rest.stop()
        if self._admission is not None:
            self._admission.close()
        if self._models is not None:
            self._models.close()
        self._models = self._health = self._admission = self._config_poller = self._grpc = self._rest = None
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


def _add_gauges(metrics: Metrics, models: Models) -> None:
    """What is loaded, how old its tables are by its own word, and what the process takes."""

    def of_versions(value: Callable[[VersionStatus], Any]) -> Callable[[], dict[tuple[tuple[str, str], ...], float]]:
        def read() -> dict[tuple[tuple[str, str], ...], float]:
            return {
                (("model_name", name), ("version", str(version))): float(found)
                for name, versions in models.available().items()
                for version, status in versions.items()
                if isinstance(found := value(status), int | float)
            }

        return read

    metrics.gauge("seedrank_loaded_version", "1 for every version that answers.", of_versions(lambda status: 1))
    metrics.gauge(
        "seedrank_seed_watermark",
        "The last tick of clicks that the version's tables know.",
        of_versions(lambda status: status.facts.get(WATERMARK)),
    )
    metrics.gauge(
        "seedrank_table_age_seconds",
        "Since the last tick of clicks that the version's tables know, where that is a time.",
        of_versions(lambda status: table_age(status.facts.get(WATERMARK))),
    )
    metrics.gauge(
        "seedrank_table_version",
        "The version of its tables.",
        of_versions(lambda status: status.facts.get("table_version")),
    )
    metrics.gauge(
        "seedrank_published_timestamp_seconds",
        "When the version was published, by its number where that is a time.",
        of_versions(lambda status: status.version / 1000 if status.version > FIRST_TIME else None),
    )
    metrics.gauge("process_resident_memory_bytes", "Memory that the process holds.", _resident_bytes)


def _add_counts(metrics: Metrics, admission: Admission) -> None:
    for name, words, kind in (
        ("running", "Requests that are worked on.", "gauge"),
        ("waiting", "Requests that wait for their turn.", "gauge"),
        ("refused", "Requests refused because too many waited.", "counter"),
    ):
        full = f"seedrank_requests_{name}" + ("_total" if kind == "counter" else "")
        metrics.gauge(full, words, functools.partial(lambda name: admission.counts[name], name), kind=kind)


def _resident_bytes() -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return math.nan


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
