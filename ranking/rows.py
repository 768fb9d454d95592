"""Rows for ESMM: impressions with their features as of their own tick, and their labels."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ranking.batches import Progress, silent
from ranking.errors import UserError
from ranking.features import Arrays, gather
from ranking.state import StateBuilder, similarity_of
from ranking.timeline import Timeline

__all__ = ["Rows", "chosen_rows", "labelled", "rows_by_tick", "training_rows"]


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

    @classmethod
    def join(cls, parts: Sequence["Rows"]) -> "Rows":
        """The rows of several parts, in the log's order."""
        place = np.argsort(np.concatenate([part.row for part in parts]), kind="stable")

        def whole(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name) for part in parts])[place]

        features = {name: np.concatenate([part.features[name] for part in parts])[place] for name in parts[0].features}
        value = None if parts[0].value is None else whole("value")
        return cls(whole("row"), features, whole("click"), whole("conversion"), whole("mature"), whole("repeat"), value)


def chosen_rows(timeline: Timeline, *windows: str, since: int | None = None) -> np.ndarray:
    """Rows of the impressions in some windows, in the log's order: those at or after `since` (ms), if it is given.

    Raises:
        UserError: there is none.
    """
    rows = timeline.some_rows_in(*windows)
    if since is not None:
        rows = rows[timeline.time[rows] >= since]
        if not len(rows):
            raise UserError(
                f"{timeline.dataset.path}: no impression of the window {' + '.join(windows)} is newer than what the "
                f"run has learned from, which ends at {since} ms; add newer days, and move [windows]."
            )
    return rows


def rows_by_tick(
    builder: StateBuilder,
    rows: np.ndarray,
    *,
    user_statistics_at: int | None = None,
    size: int = 262_144,
    progress: Progress = silent,
) -> Iterator[Rows]:
    """Features and labels of impressions, each as of its own tick: tick by tick, at most `size` rows at once.

    Args:
        builder: StateBuilder. Gives the state of a tick.
        rows: int64 `[n]`. Rows of the timeline's impressions.
        user_statistics_at: int or `None`, ms. See `StateBuilder.at`; evaluation needs it.
        size: int.
        progress: Progress.
    """
    timeline, done = builder.timeline, 0
    for tick, places in timeline.by_tick(rows):
        state = builder.at(tick, user_statistics_at=user_statistics_at)
        offsets, users, _ = builder.seeds(state.tick)
        base = len(timeline.user_ids)
        pair = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * base + users
        for start in range(0, len(places), size):
            row = rows[places[start : start + size]]
            user, item = timeline.user[row], timeline.item[row]
            found = state.features(user, item, gather(builder.context, row))
            found |= similarity_of(builder.lookalike, state, user, item)
            yield labelled(timeline, row, found, np.isin(item * base + user, pair))
            done += len(row)
            progress("features by tick", done, len(rows))


def training_rows(
    builder: StateBuilder,
    *windows: str,
    user_statistics_at: int | None = None,
    since: int | None = None,
    progress: Progress = silent,
) -> Rows:
    """Features and labels of the impressions in some windows, in the log's order; see `rows_by_tick`."""
    rows = chosen_rows(builder.timeline, *windows, since=since)
    return Rows.join(list(rows_by_tick(builder, rows, user_statistics_at=user_statistics_at, progress=progress)))


def labelled(timeline: Timeline, rows: np.ndarray, features: Arrays, repeat: np.ndarray) -> Rows:
    """Adds labels, and the position where it is logged, to the features of impressions."""
    click, conversion = (timeline.impressions[label].to_numpy(np.float32)[rows] for label in timeline.schema.funnel[:2])
    if "position" in timeline.impressions:
        features = {**features, "position": timeline.impressions["position"].to_numpy(np.int32)[rows] + 1}
    value = None
    if "value" in timeline.impressions:
        value = timeline.impressions["value"].to_numpy(np.float64, na_value=np.nan)[rows]
    return Rows(rows, features, click, conversion, timeline.mature(rows), repeat, value)
