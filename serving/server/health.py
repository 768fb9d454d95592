"""Whether the server answers, in the words of grpc.health.v1: what a load balancer and a probe ask."""

from typing import Any

__all__ = ["Health"]

SERVICES = ("ModelService", "PredictionService")  # TensorFlow Serving's names; "" is the server as a whole


class Health:
    """The service `grpc.health.v1.Health`: SERVING from the start, NOT_SERVING from `stop` on.

    The ports open when every model answers, so a start that is not over looks like no server at all.
    """

    def __init__(self) -> None:
        from grpc_health.v1 import health, health_pb2

        self._servicer = health.HealthServicer()
        for name in SERVICES:
            self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    def add_to(self, server: Any) -> None:
        """Registers the service with a `grpc.Server` that has not started."""
        from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

        add_HealthServicer_to_server(self._servicer, server)

    def stop(self) -> None:
        """Says NOT_SERVING from now on, to those who watch too. May be called twice."""
        self._servicer.enter_graceful_shutdown()
