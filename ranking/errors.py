"""What a user can get wrong."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake of the user: its message is one line that names the file, column or argument, the rule and the value.

    The command line prints the message and exits with code 2; programs may catch it as a `ValueError`.
    """
