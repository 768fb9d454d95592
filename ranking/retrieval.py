"""Who is most like an item's seeds, and which items a user is most like the seeds of: over all that a run knows."""

from typing import Any

import numpy as np
import pandas as pd

from lookalike.retrieval import best_items, best_users
from lookalike.scorer import Scorer
from ranking.batches import Progress, silent
from ranking.erasure import Person
from ranking.errors import UserError
from ranking.run import Run

__all__ = ["items_of_user", "users_of_item"]

SLAB = 65_536  # users handed over at once


def users_of_item(
    run: Run, item: int | str, k: int = 10, *, threshold: float | None = None, progress: Progress = silent
) -> list[dict[str, Any]]:
    """The users most similar to an item's seeds, exactly; seeds are among them.

    Args:
        run: Run.
        item: int or str. The item's id.
        k: int. How many at most. Defaults to `10`.
        threshold: float or `None`. Less similar users are left out.
        progress: Progress.

    Returns:
        List of `user_id` and `similarity`, the best first; of equal ones the lower id first.

    Raises:
        UserError: the run does not know the item, it has too few seeds, or an argument is out of its range.
    """
    state = run.state
    row = _row(run, "item", item)
    if not state.centroid_counts[row].any():
        raise UserError(
            f"item {item!r} has no similarity: {int(state.seed_counts[row]):,} seeds, and {run.schema.min_seeds:,} are "
            "needed ([state] min_seeds)."
        )
    vectors = state.user_vectors[:-1]  # the last row is nobody's

    def chunks() -> Any:
        for start in range(0, len(vectors), SLAB):
            yield vectors[start : start + SLAB]
            progress("users scored", min(start + SLAB, len(vectors)), len(vectors))

    _check(k, threshold)
    found = best_users(
        Scorer.of(run.lookalike),
        chunks(),
        state.centroids[row],
        state.centroid_counts[row],
        min(k, len(vectors)),
        threshold=threshold,
    )
    ids = state.user_ids[found.rows].tolist()
    return _listed("user_id", ids, found.similarity)


def items_of_user(run: Run, user: int | str, k: int = 10, *, threshold: float | None = None) -> list[dict[str, Any]]:
    """The items whose seeds a user resembles most, exactly; items without a similarity are left out.

    Args:
        run: Run.
        user: int or str. The user's id.
        k: int. How many at most. Defaults to `10`.
        threshold: float or `None`. Less similar items are left out: the exposure gate.

    Returns:
        List of `item_id` and `similarity`, the best first; of equal ones the lower id first.

    Raises:
        UserError: the run does not know the user, or an argument is out of its range.
    """
    state = run.state
    vector = state.user_vectors[[_row(run, "user", user)]]
    _check(k, threshold)
    items = len(state.item_ids)
    found = best_items(
        Scorer.of(run.lookalike),
        vector,
        state.centroids[:items],
        state.centroid_counts[:items],
        min(k, items),
        threshold=threshold,
    )
    kept = found.items[0] >= 0
    return _listed("item_id", state.item_ids[found.items[0][kept]].tolist(), found.similarity[0][kept])


def _listed(name: str, ids: list[Any], similarity: np.ndarray) -> list[dict[str, Any]]:
    return [{name: one, "similarity": float(value)} for one, value in zip(ids, similarity, strict=True)]


def _row(run: Run, side: str, given: int | str) -> int:
    ids = run.state.user_ids if side == "user" else run.state.item_ids
    kind = run.schema.user_id if side == "user" else run.schema.item_id
    one = Person(str(given)).id(kind, f"{run.path}: `{side}`")
    row = int(ids.get_indexer(pd.Index([one]))[0])
    if row < 0:
        raise UserError(f"{run.path}: the run does not know the {side} {one!r}.")
    return row


def _check(k: int, threshold: float | None) -> None:
    if k < 1:
        raise UserError(f"`k` should be 1 or more. Received: {k}.")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserError(f"`threshold` should be from -1 to 1. Received: {threshold}.")
