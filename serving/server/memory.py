"""Whether a version still fits: a look at the memory that is left, before a load takes it."""

import contextlib
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.errors import RequestError

__all__ = ["Memory", "NoRoom", "available_bytes", "needed_bytes"]

VARIABLES = 1.2  # memory taken at the height of a load, by byte of variables on disk
GRAPH = 4.0  # the same by byte of the graph: it is parsed, copied and optimised
SPARE = 32 << 20


class NoRoom(RequestError):
    """A version that would not fit beside what is loaded."""

    code = "RESOURCE_EXHAUSTED"


class Memory:
    """The memory of the machine, the container and the process, shared out among the loads that run now.

    Without this the kernel would end the whole process, and with it the version that serves.

    Args:
        available: callable. Bytes that are left. Defaults to `available_bytes`.
    """

    def __init__(self, available: Callable[[], int] | None = None) -> None:
        self._available = available or available_bytes
        self._lock = threading.Lock()
        self._promised = 0

    @contextlib.contextmanager
    def room(self, folder: Path) -> Iterator[None]:
        """Holds the memory that loading a version takes, for as long as it loads.

        Raises:
            NoRoom: there is not as much left.
        """
        needed = needed_bytes(folder)
        with self._lock:
            left = self._available() - self._promised
            if needed > left:
                raise NoRoom(
                    f"Loading {folder} would take about {_mebibytes(needed)} of memory and {_mebibytes(left)} are left."
                )
            self._promised += needed
        try:
            yield
        finally:
            with self._lock:
                self._promised -= needed


def needed_bytes(folder: Path) -> int:
    """About the memory that loading a version takes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    graph = sum(path.stat().st_size for path in files if path.name == "saved_model.pb")
    total = sum(path.stat().st_size for path in files)
    return int(VARIABLES * (total - graph) + GRAPH * graph) + SPARE


def available_bytes() -> int:
    """What this process may still take: the least of the machine's, its control groups' and its own limits."""
    left = [_machine(), *_groups()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and Path("/proc/self/statm").exists():
        left.append(soft - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return max(0, min(left))


def _machine() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 1 << 62  # a system that does not tell


def _groups() -> Iterator[int]:
    """What each control group above the process has left; pages of files count as left, the kernel gives them up."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, inside = line.split(":", 2)
            if controllers == "":
                root, limit, usage, cache = "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                root, limit, usage = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                cache = "total_inactive_file"
            else:
                continue
            top = Path(root)
            group = top / inside.lstrip("/")
            for folder in [group, *group.parents]:
                if not folder.is_relative_to(top):
                    break
                with contextlib.suppress(OSError, ValueError):  # "max" is no number; a container sees no parents
                    most = int((folder / limit).read_text())
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield most - int((folder / usage).read_text()) + int(stat.get(cache, 0))


def _mebibytes(count: int) -> str:
    return f"{max(0, count) / (1 << 20):,.0f} MiB"
