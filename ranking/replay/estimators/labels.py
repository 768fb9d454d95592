"""What can be earned: the labels of the objectives, and the groups in which they can order two settings."""

from __future__ import annotations

import numpy as np

from ranking.errors import UserError
from ranking.replay.log import ReplayLog

__all__ = ["GROUPS", "LATE", "OBJECTIVES", "counted_requests", "group_of_row", "informative_groups", "labels_of"]

OBJECTIVES = ("clicks", "conversions", "value", "new_items", "diversity")
GROUPS = ("request", "user", "item")
LATE = ("conversions", "value")  # labels that come days after the look


def labels_of(log: ReplayLog) -> dict[str, np.ndarray]:
    """The label of each objective that has one, float32 `[n]`; labels that are not final yet are masked (0).

    Raises:
        UserError: clicks are the same everywhere, or there is one user only: nothing can be estimated, or no interval.
    """
    clicks = log.click[log.position >= 0]
    if not clicks.size or not np.ptp(clicks):
        found = f"{clicks[0]} on each of them" if clicks.size else "no shown row"
        raise UserError(f"`click` should differ between the shown rows of a replay log. Received: {found}.")
    if not np.ptp(log.user):
        raise UserError("`user_id` should have two values at least in a replay: intervals resample users. Received: 1.")
    mature = log.mature[log.request_of_row]
    labels = {
        "clicks": log.click.astype(np.float32),
        "conversions": np.where(mature, log.conversion, 0).astype(np.float32),
        "value": np.where(mature, log.value, 0).astype(np.float32),
    }
    if not labels["value"].any():
        del labels["value"]
    return labels


def counted_requests(log: ReplayLog, names: list[str]) -> dict[str, np.ndarray]:
    """Which requests each output is averaged over, bool `[R]`: those whose labels are final."""
    everything = np.ones(log.requests, bool)
    return {name: log.mature if name in LATE else everything for name in names}


def group_of_row(log: ReplayLog, group: str) -> np.ndarray:
    """The request, user or item of each row, int64 `[n]`."""
    if group not in GROUPS:
        raise UserError(f"`group` should be one of {list(GROUPS)}. Received: {group!r}.")
    if group == "item":
        return log.item
    return log.request_of_row if group == "request" else log.user[log.request_of_row]


def informative_groups(log: ReplayLog, group: str = "request") -> dict[str, int]:
    """Groups of shown rows that have both a positive and a negative label: only those can order two settings.

    Args:
        log: ReplayLog.
        group: str. `"request"`, `"user"` or `"item"`. Defaults to `"request"`.

    Returns:
        Dict of objective to count.
    """
    shown = log.position >= 0
    key = group_of_row(log, group)[shown]
    counts = {}
    size = np.bincount(key)
    for name, label in labels_of(log).items():
        positive = np.bincount(key, weights=label[shown] > 0, minlength=len(size))
        counts[name] = int(((positive > 0) & (positive < size)).sum())
    return counts
