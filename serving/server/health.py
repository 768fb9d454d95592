"""Whether the server should be asked: what a load balancer and a probe want to know."""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from serving.age import WATERMARK, table_age
from serving.server.versions import Models

__all__ = ["Health", "too_old"]

_log = logging.getLogger("serving")
SERVICES = ("", "ModelService", "PredictionService")  # TensorFlow Serving's names; "" is the server as a whole


class Health:
    """The service `grpc.health.v1.Health`, and what `/healthz` says.

    SERVING from the start; NOT_SERVING from `stop` on, and while there is a problem, when requests are answered all the
    same. The ports open when every model answers, so a start that is not over looks like no server at all.

    Args:
        problem: callable. Why others should be asked instead, in words; empty where there is no reason.
    """

    def __init__(self, problem: Callable[[], str]) -> None:
        from grpc_health.v1 import health

        self._found = problem
        self._ready = True
        self._stopped = threading.Event()
        self._servicer = health.HealthServicer()
        self._tell("SERVING")
        self.look()

    def add_to(self, server: Any) -> None:
        """Registers the service with a `grpc.Server` that has not started."""
        from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

        add_HealthServicer_to_server(self._servicer, server)

    def problem(self) -> str:
        """Why others should be asked instead; empty where there is no reason."""
        return "The server is shutting down." if self._stopped.is_set() else self._found()

    def look(self) -> None:
        """Tells those who ask over gRPC, and those who watch, when a problem has come or gone."""
        problem = self._found()
        if self._ready == (not problem):
            return
        self._ready = not problem
        self._tell("SERVING" if self._ready else "NOT_SERVING")
        if self._ready:
            _log.info("ready again")
        else:
            _log.error("not ready: %s; requests are answered all the same", problem)

    def watch(self, seconds: float) -> None:
        """Looks again and again, until `stop`: the body of a thread."""
        while not self._stopped.wait(seconds):
            self.look()

    def stop(self) -> None:
        """Says NOT_SERVING from now on, to those who watch too. May be called twice."""
        self._stopped.set()
        self._servicer.enter_graceful_shutdown()

    def _tell(self, status: str) -> None:
        from grpc_health.v1.health_pb2 import HealthCheckResponse

        for name in SERVICES:
            self._servicer.set(name, HealthCheckResponse.ServingStatus.Value(status))


def too_old(models: Models, limit: float) -> str:
    """Which models answer from tables of more than `limit` seconds, in words; empty where none does."""
    found = []
    for name, versions in models.available().items():
        for newest in list(versions.values())[:1]:  # what a request gets that names neither version nor label
            age = table_age(newest.facts.get(WATERMARK))
            if age is not None and age > limit:
                found.append(f"The tables of model {name} are {timedelta(seconds=int(age))} old.")
    return " ".join(found)
