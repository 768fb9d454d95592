"""Which requests are worked on now, which wait and which are refused: one bound for both transports."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from serving.errors import DeadlineExceeded, RequestError, ServingError, Unavailable

__all__ = ["Admission"]

QUEUE_PER_THREAD = 16


class _Waiting(NamedTuple):
    future: "Future[Any]"
    work: Callable[[], Any]
    deadline: float | None


class Admission:
    """A fixed number of threads that work, and a short queue before them.

    Under more load than the machine carries, a request that waits long is of no use to who sent it, and the work on it
    is lost to the others. So the queue is short, what does not fit into it is refused at once (RESOURCE_EXHAUSTED),
    and what waited beyond its deadline, or was cancelled, is never started.

    Both transports share one: it belongs to the machine. A transport calls `check` when a request's headers are there,
    which costs nothing, and `submit` when the whole request is. To end well: `drain`, then stop the transports, then
    `close`.

    Args:
        limit: int. Requests worked on at the same time, each in a thread. Defaults to the number of cores.
        queue: int. Requests that may wait. Defaults to 16 a thread.

    Example:
        admission = Admission()
        answer = admission.submit(work, deadline=time.monotonic() + 0.1).result()
    """

    def __init__(self, limit: int | None = None, queue: int | None = None) -> None:
        self.limit = (os.cpu_count() or 1) if limit is None else limit
        self.queue = QUEUE_PER_THREAD * self.limit if queue is None else queue
        if self.limit < 1:
            raise ServingError(f"`limit` should be a positive integer. Received: limit={limit}.")
        if self.queue < 0:
            raise ServingError(f"`queue` should not be negative. Received: queue={queue}.")
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._draining = self._closed = False
        lock = threading.Lock()
        self._arrived, self._ended = threading.Condition(lock), threading.Condition(lock)
        self._threads = [
            threading.Thread(target=self._serve, name=f"serving-work-{number}", daemon=True)
            for number in range(self.limit)
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Refuses where `submit` would, before anything is read of the request.

        Raises:
            RequestError: RESOURCE_EXHAUSTED with a full queue, UNAVAILABLE while draining.
        """
        if self._draining:
            raise Unavailable("The server is shutting down.")
        if len(self._waiting) >= self.queue and self._running >= self.limit:
            raise _exhausted(self.queue)

    def submit(self, work: Callable[[], Any], deadline: float | None = None) -> "Future[Any]":
        """Has `work` done in one of the threads; cancelling the future while it waits frees its place.

        While draining this still accepts: such a request passed `check` before.

        Args:
            work: callable. Called without arguments.
            deadline: float. In the seconds of `time.monotonic`; waiting beyond it ends with DEADLINE_EXCEEDED.
                Defaults to none.

        Raises:
            RequestError: RESOURCE_EXHAUSTED with a full queue, UNAVAILABLE once closed.
        """
        entry = _Waiting(Future(), work, deadline)
        late: list[_Waiting] = []
        with self._arrived:
            if self._closed:
                raise Unavailable("The server is shutting down.")
            if len(self._waiting) >= self.queue + self.limit - self._running:
                late = self._take_late()
                if len(self._waiting) >= self.queue + self.limit - self._running:
                    raise _exhausted(self.queue)
            self._waiting.append(entry)
            self._arrived.notify()
        for missed in late:
            _expire(missed)
        entry.future.add_done_callback(lambda future: self._forget(entry) if future.cancelled() else None)
        return entry.future

    def drain(self, seconds: float) -> bool:
        """Makes `check` refuse everything new and waits for what there is; whether all of it ended in time."""
        with self._ended:
            self._draining = True
            return self._ended.wait_for(lambda: not self._waiting and not self._running, timeout=seconds)

    def close(self) -> None:
        """Refuses everything, cancels what waits and ends the threads once they are done. May be called twice."""
        with self._arrived:
            self._draining = self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._arrived.notify_all()
        for entry in left:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(Unavailable("The server is shutting down."))
        for thread in self._threads:
            thread.join()

    def _take_late(self) -> list[_Waiting]:
        now = time.monotonic()
        late = [entry for entry in self._waiting if entry.deadline is not None and entry.deadline <= now]
        for entry in late:
            self._waiting.remove(entry)
        return late

    def _forget(self, entry: _Waiting) -> None:
        with self._ended:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._ended.notify_all()

    def _serve(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                entry = self._waiting.popleft()
                self._running += 1
            try:
                _run(entry)
            finally:
                del entry  # and the request it holds, while the thread waits for the next
                with self._ended:
                    self._running -= 1
                    self._ended.notify_all()


def _run(entry: _Waiting) -> None:
    if entry.deadline is not None and entry.deadline <= time.monotonic():
        _expire(entry)
    elif entry.future.set_running_or_notify_cancel():
        try:
            result = entry.work()
        except BaseException as error:  # whatever it is belongs to who waits for the result
            entry.future.set_exception(error)
        else:
            entry.future.set_result(result)


def _expire(entry: _Waiting) -> None:
    if entry.future.set_running_or_notify_cancel():
        entry.future.set_exception(DeadlineExceeded("The deadline passed while the request waited."))


def _exhausted(queue: int) -> RequestError:
    return RequestError(f"The server has too much to do: {queue} requests wait already.", "RESOURCE_EXHAUSTED")
