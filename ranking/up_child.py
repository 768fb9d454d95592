"""A child of `seedrank up`: runs a command, and ends in good order when its parent is gone, however that ended."""

import os
import signal
import threading
import time

__all__ = ["end_with_parent", "main"]

GRACE = 150.0  # seconds to end by itself, without a parent that would see to it


def end_with_parent() -> None:
    """Sends this process SIGTERM when standard input ends, which the parent holds open as long as it lives."""
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    """`python -m ranking.up_child COMMAND ARGUMENT ...` is `seedrank COMMAND ARGUMENT ...`."""
    end_with_parent()
    from ranking.cli import main as command

    command()


if __name__ == "__main__":
    main()
