"""One publisher of a model at a time."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["LEASE", "lease"]

LEASE = ".lease"
_log = logging.getLogger("serving")


@contextlib.contextmanager
def lease(base: Path) -> Iterator[None]:
    """Waits until no other publisher acts on a model, and keeps the others waiting meanwhile.

    The kernel releases it when its holder dies, however it dies: nothing is ever left to remove by hand. The file says
    who holds it, for the message of one that waits.
    """
    descriptor = os.open(base / LEASE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            _log.warning("%s: waiting for another publisher, process %s", base, holder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
