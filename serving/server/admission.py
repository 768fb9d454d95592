"""Which requests are worked on now, which wait and which are refused: one bound for both transports."""

import os
import threading
import time
from collections import deque
from types import TracebackType

from serving.errors import DeadlineExceeded, RequestError, ServingError, Unavailable

__all__ = ["MAX_REQUEST_BYTES", "Admission", "Place"]

QUEUE_PER_CORE = 16
MAX_REQUEST_BYTES = 16 << 20  # unpacked; 5,000 candidates with 100 features each as JSON are about 8 MB


class Admission:
    """A fixed number of requests that are worked on, and a short queue before them.

    Under more load than the machine carries, a request that waits long is of no use to who sent it, and the work on it
    is lost to the others. So the queue is short, what does not fit into it is refused at once (RESOURCE_EXHAUSTED),
    and what waited beyond its deadline, or was cancelled, is never started.

    Both transports share one: it belongs to the machine. A transport calls `check` when a request's headers are there,
    which costs nothing, and `enter` when the whole request is, so that a slow sender holds no place. To end well:
    `drain`, then stop the transports, then `close`.

    Args:
        limit: int. Requests worked on at the same time. Defaults to the number of cores.
        queue: int. Requests that may wait. Defaults to 16 a core.

    Example:
        place = admission.enter(deadline=time.monotonic() + 0.1)
        with place:  # waits its turn
            answer = work()
    """

    def __init__(self, limit: int | None = None, queue: int | None = None) -> None:
        self.limit = (os.cpu_count() or 1) if limit is None else limit
        self.queue = QUEUE_PER_CORE * self.limit if queue is None else queue
        if self.limit < 1:
            raise ServingError(f"`limit` should be a positive integer. Received: limit={limit}.")
        if self.queue < 0:
            raise ServingError(f"`queue` should not be negative. Received: queue={queue}.")
        self._waiting: deque[Place] = deque()
        self._running = self._refused = 0
        self._draining = self._closed = False
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)

    @property
    def counts(self) -> dict[str, int]:
        """Requests `running` and `waiting` now, and `refused` so far for want of room."""
        return {"running": self._running, "waiting": len(self._waiting), "refused": self._refused}

    def check(self) -> None:
        """Refuses where `enter` would, before anything is read of the request.

        Raises:
            RequestError: RESOURCE_EXHAUSTED with a full queue, UNAVAILABLE while draining.
        """
        if self._draining:
            raise Unavailable("The server is shutting down.")
        if self._running >= self.limit and len(self._waiting) >= self.queue:
            raise self._exhausted()

    def enter(self, deadline: float | None = None) -> "Place":
        """Takes a place, without waiting for its turn.

        While draining this still accepts: such a request passed `check` before.

        Args:
            deadline: float. In the seconds of `time.monotonic`; waiting beyond it ends with DEADLINE_EXCEEDED.
                Defaults to none.

        Raises:
            RequestError: RESOURCE_EXHAUSTED with a full queue, UNAVAILABLE once closed.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("The server is shutting down.")
            place = Place(self, deadline)
            if self._running < self.limit:
                self._running += 1
                place._turn.release()
            elif len(self._waiting) < self.queue:
                self._waiting.append(place)
            else:
                raise self._exhausted()
        return place

    def drain(self, seconds: float) -> bool:
        """Makes `check` refuse everything new and waits for what there is; whether all of it ended in time."""
        with self._ended:
            self._draining = True
            return self._ended.wait_for(lambda: not self._waiting and not self._running, timeout=seconds)

    def close(self) -> None:
        """Refuses everything, what waits included. May be called twice."""
        with self._lock:
            self._draining = self._closed = True
            for place in self._waiting:
                place._left = True
                place._turn.release()
            self._waiting.clear()

    def _exhausted(self) -> RequestError:
        self._refused += 1
        words = f"The server has too much to do: {self.queue} requests wait already."
        return RequestError(words, "RESOURCE_EXHAUSTED")

    def _give_back(self) -> None:
        """One that was worked on is done: the next may start. The lock is held."""
        if self._waiting:
            self._waiting.popleft()._turn.release()
        else:
            self._running -= 1
            self._ended.notify_all()


class Place:
    """One request's place; a context manager whose body is the work.

    Entering it waits for the turn, and raises RequestError: DEADLINE_EXCEEDED when that came too late, CANCELLED after
    `leave`. Made by `Admission.enter`.
    """

    def __init__(self, admission: Admission, deadline: float | None) -> None:
        self._admission = admission
        self._deadline = deadline
        self._turn = threading.Lock()  # held until it is this one's turn
        self._turn.acquire()
        self._begun = self._left = False

    def leave(self) -> None:
        """Gives the place up, from any thread; does nothing once the work has begun."""
        admission = self._admission
        with admission._lock:
            if self._begun or self._left:
                return
            self._left = True
            if self in admission._waiting:
                admission._waiting.remove(self)
                self._turn.release()
            else:
                admission._give_back()

    def __enter__(self) -> "Place":
        if self._deadline is None:
            self._turn.acquire()
        elif not self._turn.acquire(timeout=min(max(self._deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)):
            self.leave()
            raise DeadlineExceeded("The deadline passed while the request waited.")
        with self._admission._lock:
            if self._left and self._admission._closed:
                raise Unavailable("The server is shutting down.")
            if self._left:
                raise RequestError("The request was given up while it waited.", "CANCELLED")
            self._begun = True
            if self._deadline is None or time.monotonic() < self._deadline:
                return self
            self._admission._give_back()
        raise DeadlineExceeded("The deadline passed while the request waited.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._admission._lock:
            self._admission._give_back()
