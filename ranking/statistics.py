"""Point-in-time statistics: how often an event happened for a key, strictly before a tick."""

import dataclasses
from typing import Any

import numpy as np

from ranking.data.schema import Statistic
from ranking.errors import UserError
from ranking.features import MISSING, Arrays, Encoder
from ranking.timeline import Timeline

__all__ = ["StatisticCounter", "StatisticTable", "combine", "smoothed"]

RATE_FLOOR = 1e-6


def smoothed(events: np.ndarray, opportunities: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts to features: `[n / (n + prior), logit((e + prior * g) / (n + prior))]` with the global rate `g`.

    The first says how far the second is to be believed. It is the count in a bounded form: a logarithm of it grows
    with the age of the log, so that a model meets values it has never seen (measured on the simulator's reference
    world, state frozen four days after training: the conversion head gained 7 % less).

    `g = (sum of e + 1) / (sum of n + 2)`, so that a log without history says one half and no logit is infinite.

    Args:
        events: float64 array `[keys]`. How often the event happened.
        opportunities: float64 array `[keys]`. How often it could have.
        prior: float. How many opportunities at the global rate each key starts with.

    Returns:
        float32 array `[keys, 2]`, and the `[2]` of a key that never occurred.
    """
    rate = (events.sum() + 1) / (opportunities.sum() + 2)
    n = np.append(opportunities, 0.0)
    probability = (np.append(events, 0.0) + prior * rate) / (n + prior)
    probability = np.clip(probability, RATE_FLOOR, 1 - RATE_FLOOR)
    both = np.stack([n / (n + prior), np.log(probability) - np.log1p(-probability)], axis=1).astype(np.float32)
    return both[:-1], both[-1]


@dataclasses.dataclass(frozen=True)
class StatisticTable:
    """One statistic as of one tick.

    Attributes:
        side: "user" or "item": `values` has a row for each of them, the last one nobody's; or "cross": `values` has a
            row for each of the sorted `codes`, the last one for a code that is not among them.
        values: float32 array `[rows, 2]`: shrinkage `n / (n + prior)` and smoothed-rate logit.
        columns: what a cross code is made of, as (array name, number of values).
        codes: int64 array `[rows - 1]`, sorted; empty where `side` is not "cross".
    """

    side: str
    values: np.ndarray
    columns: tuple[tuple[str, int], ...] = ()
    codes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def look_up(self, user: np.ndarray, item: np.ndarray, arrays: Arrays) -> np.ndarray:
        """float32 `[n, 2]` for rows of users, items and the feature arrays of both and the context."""
        if self.side != "cross":
            return self.values[user if self.side == "user" else item]
        code = combine([(arrays[name], size) for name, size in self.columns])
        place = np.searchsorted(self.codes, code)
        found = np.append(self.codes, -1)[place] == code
        return self.values[np.where(found, place, len(self.codes))]

    def only(self, user: np.ndarray, item: np.ndarray, place: dict[str, np.ndarray]) -> "StatisticTable":
        """The table of fewer users and items: the rows kept, and the new place of each old row (-1: gone)."""
        if self.side != "cross":
            return dataclasses.replace(self, values=self.values[user if self.side == "user" else item])
        rest = self.codes
        indices: list[np.ndarray] = []
        for name, size in reversed(self.columns):
            rest, index = np.divmod(rest, size)
            indices.insert(0, place[name][index] if name in place else index)
        sizes = {"user_row": len(user), "item_row": len(item)}
        columns = tuple((name, sizes.get(name, size)) for name, size in self.columns)
        kept = np.all([index >= 0 for index in indices], axis=0)
        # Places keep their order, so the codes stay sorted.
        codes = combine([(index[kept], size) for index, (_, size) in zip(indices, columns, strict=True)])
        return StatisticTable("cross", self.values[np.append(kept, True)], columns, codes)


def combine(parts: list[tuple[Any, int]]) -> Any:
    """Mixed-radix int64 code of several index columns, numpy arrays or int64 tensors."""
    code: Any = np.int64(0)
    for index, size in parts:
        code = index + code * size
    return code


class StatisticCounter:
    """Counts one statistic of a dataset at any tick.

    Args:
        statistic: Statistic. Key, event, opportunities and prior.
        timeline: Timeline. The events.
        encoder: Encoder. Gives the key columns their indices.
        static: dict of the encoder's `static` arrays by side.
        context: dict of arrays `[impressions]`, the encoder's `context` of the whole log.
    """

    def __init__(
        self, statistic: Statistic, timeline: Timeline, encoder: Encoder, static: dict[str, Arrays], context: Arrays
    ):
        self.statistic = statistic
        self._static = static
        self._context = context
        sizes = {"user": len(timeline.user_ids) + 1, "item": len(timeline.item_ids) + 1}
        features = {feature.name: feature for feature in timeline.schema.features}
        self.columns, sides, self._multi = [], set(), ""
        for column in statistic.key:
            if column in ("user_id", "item_id"):
                side = column.removesuffix("_id")
                self.columns.append((f"{side}_row", sizes[side]))
            else:
                feature = features[column]
                side = feature.side
                name = f"{side}_{column}"
                self._multi = name if feature.kind == "multi" else self._multi
                self.columns.append((name, encoder.vocabularies[name].size))
            sides.add(side)
        self.side = sides.pop() if len(sides) == 1 and "context" not in sides else "cross"
        if self._multi and self.side == "cross":
            raise UserError(
                f"[features.statistic] {statistic.name}: a multi-valued key should be a feature of users or items. "
                f"Received: {statistic.key[0]!r}, a context feature."
            )
        self._events = self._coded(timeline, statistic.event)
        self._opportunities = self._coded(timeline, statistic.per)
        self.codes = np.unique(np.concatenate([self._events[0], self._opportunities[0]]))
        self._events = (np.searchsorted(self.codes, self._events[0]), self._events[1])
        self._opportunities = (np.searchsorted(self.codes, self._opportunities[0]), self._opportunities[1])

    def _coded(self, timeline: Timeline, event: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes and times of the events; a multi-valued key gives one code a value."""
        rows, time = timeline.events(event)
        if event.startswith("behaviors."):
            found = timeline.behaviors[event.removeprefix("behaviors.")]
            user, item, context = found.user, found.value, {}
            if event.removeprefix("behaviors.") in timeline.behavior_values:
                raise UserError(f"[features.statistic] {self.statistic.name}: {event} is not a behaviour over items.")
        else:
            user, item = timeline.user[rows], timeline.item[rows]
            context = {name: values[rows] for name, values in self._context.items()}
        parts = [(self._index(name, user, item, context), size) for name, size in self.columns]
        if self._multi:
            values = parts[0][0]  # [n, width]
            kept = values != MISSING
            return values[kept].astype(np.int64), np.repeat(time, values.shape[1]).reshape(values.shape)[kept]
        return combine(parts), time

    def _index(self, name: str, user: np.ndarray, item: np.ndarray, context: Arrays) -> np.ndarray:
        if name == "user_row":
            return user
        if name == "item_row":
            return item
        if name in context:
            return context[name]
        side = name.split("_")[0]
        return self._static[side][name][user if side == "user" else item]

    def table(self, tick: int) -> StatisticTable:
        """The statistic by events strictly before the tick."""
        counts = [
            np.bincount(code[time < tick], minlength=len(self.codes)).astype(np.float64)
            for code, time in (self._events, self._opportunities)
        ]
        values, nothing = smoothed(counts[0], counts[1], self.statistic.prior)
        if self.side == "cross":
            seen = (counts[0] + counts[1]) > 0
            return StatisticTable("cross", np.vstack([values[seen], nothing]), tuple(self.columns), self.codes[seen])
        static = self._static[self.side]
        entities = len(next(iter(static.values())))
        rows = np.arange(entities)
        wanted = [(self._index(name, rows, rows, {}), size) for name, size in self.columns]
        code = wanted[0][0].astype(np.int64) if self._multi else combine(wanted)
        place = np.searchsorted(self.codes, code)
        found = np.append(self.codes, -1)[place] == code
        both = np.vstack([values, nothing])[np.where(found, place, len(self.codes))]
        if self._multi:
            kept = (code != MISSING)[..., None]
            mean = (both * kept).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
            both = np.where(kept.any(axis=1), mean, nothing)
        both[-1] = nothing
        return StatisticTable(self.side, both.astype(np.float32))
