"""Threads of the scorer: one, unless told otherwise; BLAS never starts its own inside."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import threadpoolctl

__all__ = ["one_blas_thread", "share_out"]


def share_out(work: Callable[[range], None], blocks: int, threads: int) -> None:
    """Call `work` with ranges of block numbers that make up all `blocks`, in this thread or in several."""
    if threads < 1:
        raise ValueError(f"`threads` should be a positive integer. Received: threads={threads}.")
    with one_blas_thread():
        if threads == 1 or blocks < 2:
            work(range(blocks))
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [range(first, blocks, threads) for first in range(min(threads, blocks))]))


class _Limit:
    """How many calls hold BLAS at one thread: the first sets it, the last sets it back."""

    lock = Lock()
    calls = 0
    limiter: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS at one thread; calls may overlap."""
    with _Limit.lock:
        if _Limit.calls == 0:
            _Limit.limiter = _pools().limit(limits=1, user_api="blas")
        _Limit.calls += 1
    try:
        yield
    finally:
        with _Limit.lock:
            _Limit.calls -= 1
            if _Limit.calls == 0:
                _Limit.limiter.restore_original_limits()


@cache
def _pools() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()  # looks through all loaded libraries: once
