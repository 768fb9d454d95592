"""Brings the clicks of a log into a seed store on Redis or Valkey that several machines share."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from lookalike.clicklog import ClickLog, ClickLogError
from lookalike.redis_link import StoreUnavailable
from lookalike.redis_partition import open_partition
from lookalike.seeds_redis import RedisSeedStore
from lookalike.snapshots import catch_up
from ranking.errors import UserError

__all__ = ["follow", "open_shared"]

_logger = logging.getLogger("ranking.ingest")
LOOK_SECONDS = 0.2  # between two looks at a log that has not grown
RETRY_SECONDS = 1.0  # after a failure


def open_shared(
    url: str,
    log: ClickLog,
    *,
    partition: str = "0",
    byte_budget: int | None = None,
    accept_loss: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RedisSeedStore:
    """The store, with all that the log holds. It answers for itself: no copies are given while the server is away.

    Args:
        url: str. Of the server.
        log: ClickLog.
        partition: str. The log's name in the store. Defaults to `"0"`.
        byte_budget: int, optional. As of `RedisSeedStore`, the same for all who use the store. Defaults to no limit.
        accept_loss: bool. Whether to go on without events that neither the server nor the log holds. Defaults to
            `False`.
        progress: callable, optional. Called with the events applied so far and all to apply.

    Raises:
        UserError: the server is not there, the store or the partition is not for this, or an argument is wrong.
    """
    try:
        store = RedisSeedStore(url, partition=partition, byte_budget=byte_budget, copy_bytes=0)
        open_partition(store, log, accept_loss=accept_loss, progress=progress)
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"--redis: {error}") from None
    return store


def follow(store: RedisSeedStore, log: ClickLog, stop: threading.Event) -> None:
    """Brings what the log gains into the store until `stop` is set; what fails is tried again.

    Args:
        store: RedisSeedStore.
        log: ClickLog. Its writer may be another process.
        stop: Event.

    Raises:
        UserError: the log or the server lost events that the other one does not have.
    """
    shared: Any = store  # the contract of the engine in memory, for which catch_up is typed
    failing = ""
    while not stop.is_set():
        pause = LOOK_SECONDS
        try:
            catch_up(shared, log)
            failing = ""
        except (StoreUnavailable, OSError) as error:
            pause = RETRY_SECONDS
            if str(error) != failing:
                _logger.error("clicks wait in their log: %s", error)
            failing = str(error)
        except (ClickLogError, RuntimeError, ValueError) as error:
            raise UserError(str(error)) from None
        stop.wait(pause)
