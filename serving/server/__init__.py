"""The embedded server: TensorFlow Serving's REST and gRPC calls from one Python process. Imports no TensorFlow."""

from serving.server.server import Server

__all__ = ["Server"]
