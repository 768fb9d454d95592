"""The embedded server: REST and gRPC as clients of TensorFlow Serving see them."""
