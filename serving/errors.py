"""What a caller of the serving package can get wrong."""

__all__ = ["ServingError"]


class ServingError(ValueError):
    """A mistake of the caller: one line that names the argument or path, the rule and the value received."""
