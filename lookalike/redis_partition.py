"""A shared store after a start: its partition belongs to one click log, and is brought up to the end of that."""

import logging
from collections.abc import Callable
from typing import Any

from lookalike.clicklog import ClickLog
from lookalike.clicklog_files import Format
from lookalike.seeds_redis import RedisSeedStore
from lookalike.snapshots import SnapshotError, catch_up

__all__ = ["open_partition"]

_logger = logging.getLogger("lookalike.snapshots")


def open_partition(
    store: RedisSeedStore,
    log: ClickLog,
    *,
    accept_loss: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Applies what a log holds beyond the partition's offset. Afterwards `catch_up` does.

    Args:
        store: RedisSeedStore. Its partition is the log's from now on, and no other's.
        log: ClickLog.
        accept_loss: bool. Whether to go on without events that neither the server nor the log holds. Defaults to
            `False`.
        progress: callable, optional. Called with the events applied so far and all to apply.

    Raises:
        SnapshotError: the partition is another log's, or ahead of this one; or events in between were removed.
        StoreUnavailable: the server is not there. Nothing has to be undone.
    """
    shared: Any = store  # catch_up names the engine in memory; the contract is one
    told = Format.read(log.folder)
    advice = "Bring the right log back, or name a new partition: what the store holds of the old one stays."
    if told is not None and store.belong(told.log) != told.log:
        raise SnapshotError(f"{store}: its offset is of another log than {log.folder}. {advice}")
    offset = store.offset
    if offset > log.end:
        raise SnapshotError(
            f"{store}: its offset is {offset}, ahead of {log.folder}, which ends at {log.end}: events that were "
            f"acknowledged are missing from the log. {advice}"
        )
    if offset < log.start:
        if not accept_loss:
            raise SnapshotError(
                f"{log.folder} begins at offset {log.start}, and {store} is at {offset}: the events between are gone. "
                "Bring a backup of the server back, or accept the loss (--accept-loss; in Python accept_loss=True)."
            )
        _logger.warning("%s: events %d to %d are gone, and passed over", log.folder, offset, log.start)
        store.skip(log.start)
    catch_up(shared, log, progress=progress)
