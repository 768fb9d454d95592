"""A KuaiRand history file (sequences without times) as rows of the behaviors table."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ranking.errors import UserError

__all__ = ["align", "history_behaviors"]

_FIELDS = {"watch": "watch_seq", "long_watch": "long_watch_seq", "like": "like_seq"}
_COLUMNS = ["user_id", "last_time_ms", *_FIELDS.values()]
_CHUNK_USERS = 100_000


def align(watched: list[str], chosen: list[str]) -> tuple[list[int], int]:
    """Orders of a sequence on the scale of the watches it is a part of, both oldest first.

    The newest watch has order -1, the one before it -2. Greedy from the newest end: each entry is the newest watch of
    the same video that is older than the entry after it. An entry that no watch is left for is older than all of them
    (both sequences are the latest part of the whole), and so are those before it: they go on below the oldest watch.

    Args:
        watched: list of str. The latest watches.
        chosen: list of str. The latest watches of some kind.

    Returns:
        The order of each entry of `chosen`, strictly increasing, and how many have no watch.

    Example:
        ```python
        align(["a", "b", "a", "c"], ["z", "b", "a"])  # ([-5, -3, -2], 1)
        ```
    """
    newest_first = watched[::-1]
    orders: list[int] = []
    place = 0
    for value in reversed(chosen):
        try:
            place = newest_first.index(value, place) + 1
        except ValueError:
            break
        orders.append(-place)
    unmatched = len(chosen) - len(orders)
    older = range(-len(watched) - 1, -len(watched) - 1 - unmatched, -1)
    return [*orders, *older][::-1], unmatched


def history_behaviors(path: Path) -> Iterator[tuple[pd.DataFrame, dict[str, int]]]:
    """Rows of the behaviour fields, in chunks of users, and the number of entries without a watch, by field.

    The fields are watch, long_watch, like, and counted_long_watch, counted_like: the entries that have a watch, which
    is what a rate per watch may count.

    An entry's own time is not in the file: its timestamp is that of the user's last event, the upper bound, and
    `order` tells the entries apart. A long_watch row has the user, value and order of its watch row.
    """
    try:
        chunks = pd.read_csv(
            path, usecols=_COLUMNS, chunksize=_CHUNK_USERS, dtype=dict.fromkeys(_FIELDS.values(), "str")
        )
        for chunk in chunks:
            yield _behaviors(chunk)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{path}: cannot be read as a history: {str(error).strip().splitlines()[0]}") from None


def _behaviors(chunk: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    watches = [text.split() for text in chunk["watch_seq"].fillna("")]
    frames = []
    unmatched = {}
    for field, column in _FIELDS.items():
        values = watches if field == "watch" else [text.split() for text in chunk[column].fillna("")]
        aligned = [align(watched, chosen) for watched, chosen in zip(watches, values, strict=True)]
        unmatched[field] = sum(count for _, count in aligned)
        repeats = [len(chosen) for chosen in values]
        rows = pd.DataFrame(
            {
                "user_id": np.repeat(chunk["user_id"].to_numpy(np.int64), repeats),
                "field": field,
                "value": np.array([int(value) for chosen in values for value in chosen], np.int64),
                "timestamp": np.repeat(chunk["last_time_ms"].to_numpy(np.int64), repeats),
                "order": np.array([order for orders, _ in aligned for order in orders], np.int64),
            }
        )
        frames.append(rows)
        if field != "watch":
            oldest = np.repeat([-len(watched) for watched in watches], repeats)
            frames.append(rows[rows["order"] >= oldest].assign(field=f"counted_{field}"))
    del unmatched["watch"]
    return pd.concat(frames), unmatched
