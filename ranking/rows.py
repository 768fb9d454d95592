"""Rows for ESMM: impressions with their features as of their own tick, and their labels."""

import dataclasses

import numpy as np

from ranking.batches import Progress, silent
from ranking.errors import UserError
from ranking.features import Arrays, gather
from ranking.state import StateBuilder, similarity_of
from ranking.timeline import Timeline

__all__ = ["Rows", "labelled", "training_rows"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Impressions with their features and labels, ready for ESMM.

    Attributes:
        row: int64 `[n]`. Rows of the timeline's impressions.
        features: dict of arrays `[n, ...]`, statistics unscaled; `similarity` is raw, 0 where `has_similarity` is 0.
        click, conversion: float32 `[n]`.
        mature: bool `[n]`. Whether the conversion label is final.
        repeat: bool `[n]`. Whether the user is among the item's seeds already: never trained on.
        value: float64 `[n]` or `None`. What the conversion was worth, NaN where nothing is said; `None` without such a
            column.
    """

    row: np.ndarray
    features: Arrays
    click: np.ndarray
    conversion: np.ndarray
    mature: np.ndarray
    repeat: np.ndarray
    value: np.ndarray | None = None

    def take(self, chosen: np.ndarray) -> "Rows":
        """The chosen rows (bool mask or indices)."""
        return Rows(
            self.row[chosen],
            gather(self.features, chosen),
            self.click[chosen],
            self.conversion[chosen],
            self.mature[chosen],
            self.repeat[chosen],
            None if self.value is None else self.value[chosen],
        )


def training_rows(
    builder: StateBuilder,
    *windows: str,
    user_statistics_at: int | None = None,
    since: int | None = None,
    progress: Progress = silent,
) -> Rows:
    """Features and labels of the impressions in some windows, each row as of its own tick.

    Args:
        builder: StateBuilder. Gives the state of a tick.
        *windows: names of windows.
        user_statistics_at: int or `None`, ms. See `StateBuilder.at`; evaluation needs it.
        since: int or `None`, ms. Rows before it are left out.
        progress: Progress.

    Raises:
        UserError: there is no row.
    """
    timeline = builder.timeline
    rows = timeline.some_rows_in(*windows)
    if since is not None:
        rows = rows[timeline.time[rows] >= since]
        if not len(rows):
            raise UserError(
                f"{timeline.dataset.path}: no impression of the window {' + '.join(windows)} is newer than what the "
                f"run has learned from, which ends at {since} ms; add newer days, and move [windows]."
            )
    parts: list[Arrays] = []
    places, repeat = [], np.zeros(len(rows), bool)
    for tick, place in timeline.by_tick(rows):
        state = builder.at(tick, user_statistics_at=user_statistics_at)
        user, item = timeline.user[rows[place]], timeline.item[rows[place]]
        found = state.features(user, item, gather(builder.context, rows[place]))
        parts.append(found | similarity_of(builder.lookalike, state, user, item))
        offsets, users, _ = builder.seeds(state.tick)
        base = len(timeline.user_ids)
        pair = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * base + users
        repeat[place] = np.isin(item * base + user, pair)
        places.append(place)
        progress("features by tick", sum(map(len, places)), len(rows))
    back = np.argsort(np.concatenate(places), kind="stable")
    features = {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
    return labelled(timeline, rows, features, repeat)


def labelled(timeline: Timeline, rows: np.ndarray, features: Arrays, repeat: np.ndarray) -> Rows:
    """Adds labels, and the position where it is logged, to the features of impressions."""
    click, conversion = (timeline.impressions[label].to_numpy(np.float32)[rows] for label in timeline.schema.funnel[:2])
    if "position" in timeline.impressions:
        features = {**features, "position": timeline.impressions["position"].to_numpy(np.int32)[rows] + 1}
    value = None
    if "value" in timeline.impressions:
        value = timeline.impressions["value"].to_numpy(np.float64, na_value=np.nan)[rows]
    return Rows(rows, features, click, conversion, timeline.mature(rows), repeat, value)
