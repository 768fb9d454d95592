"""Rows for ESMM: impressions with their features as of their own tick, and their labels."""

import dataclasses

import numpy as np

from ranking.batches import Progress, silent
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
    """

    row: np.ndarray
    features: Arrays
    click: np.ndarray
    conversion: np.ndarray
    mature: np.ndarray
    repeat: np.ndarray

    def take(self, chosen: np.ndarray) -> "Rows":
        """The chosen rows (bool mask or indices)."""
        return Rows(
            self.row[chosen],
            gather(self.features, chosen),
            self.click[chosen],
            self.conversion[chosen],
            self.mature[chosen],
            self.repeat[chosen],
        )


def training_rows(
    builder: StateBuilder, *windows: str, user_statistics_at: int | None = None, progress: Progress = silent
) -> Rows:
    """Features and labels of the impressions in some windows, each row as of its own tick.

    Args:
        builder: StateBuilder. Gives the state of a tick.
        *windows: names of windows.
        user_statistics_at: int or `None`, ms. See `StateBuilder.at`; evaluation needs it.
        progress: Progress.
    """
    timeline = builder.timeline
    rows = timeline.some_rows_in(*windows)
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
    return Rows(rows, features, click, conversion, timeline.mature(rows), repeat)
