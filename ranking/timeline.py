"""A dataset as arrays in time: what was known strictly before a moment, and nothing else."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from ranking.data.schema import Schema
from ranking.data.tables import Dataset
from ranking.errors import UserError

__all__ = ["Events", "Timeline"]

BEFORE_ALL = np.iinfo(np.int64).min


class Events:
    """One kind of event, sorted by user, time and order.

    Args:
        user: int64 array `[n]`. Rows of `Timeline.user_ids`.
        value: int64 array `[n]`. Rows of `Timeline.item_ids`, or of the field's own values.
        time: int64 array `[n]`, ms since the epoch: when the event was known at the latest.
        order: int64 array `[n]`. Sorts events of one time.
    """

    def __init__(self, user: np.ndarray, value: np.ndarray, time: np.ndarray, order: np.ndarray):
        by = np.lexsort((order, time, user))
        self.user, self.value, self.time, self.order = user[by], value[by], time[by], order[by]

    def latest(self, user: np.ndarray, time: np.ndarray, order: np.ndarray | None, keep: int) -> np.ndarray:
        """The last `keep` values of each user strictly before (time, order), the newest first.

        Args:
            user: int64 array `[n]`. Whose events.
            time: int64 array `[n]`, ms.
            order: int64 array `[n]` or `None`: nothing of that very time counts.
            keep: int. How many.

        Returns:
            int64 array `[n, keep]`, padded with -1.
        """
        order = np.full(len(user), BEFORE_ALL) if order is None else order
        start = np.searchsorted(self.user, user)
        low, high = start, np.searchsorted(self.user, user, side="right")
        while (low < high).any():  # one binary search for all: how far each user's events are strictly earlier
            middle = np.minimum((low + high) // 2, len(self.user) - 1)
            same = (self.time[middle] == time) & (self.order[middle] < order)
            earlier = (self.time[middle] < time) | same
            is_open = low < high
            low, high = np.where(is_open & earlier, middle + 1, low), np.where(is_open & ~earlier, middle, high)
        at = low[:, None] - 1 - np.arange(keep)  # [n, keep]
        padded = np.append(self.value, -1)
        return padded[np.where(at >= start[:, None], at, -1)]


class Timeline:
    """The events of a dataset over one universe of users and items.

    Args:
        dataset: Dataset. Where the tables come from.

    Attributes:
        user_ids, item_ids: pandas.Index. Every id of any table, sorted; a row number is an id's place in it. Sorted,
            so that a later row of the log changes no order among the earlier ids.
        impressions: pandas.DataFrame, as in the dataset, in its order.
        time, user, item: int64 arrays `[rows]` of the impressions.
        label_time: funnel label -> int64 array, when a label that is 1 became known (click_time where it is given,
            else the impression's time plus the label's attribution window).
        behaviors: field -> Events.
        behavior_values: field with a vocabulary of its own -> pandas.Index of its values.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.schema: Schema = dataset.schema
        impressions = self.impressions = dataset.impressions
        behaviors = dataset.behaviors if dataset.has("behaviors") else None
        users, items = [impressions["user_id"]], [impressions["item_id"]]
        for name, ids, column in (("users", users, "user_id"), ("items", items, "item_id")):
            if dataset.has(name):
                ids.insert(0, dataset.table(name)[column])
        if dataset.has("candidates"):
            items.append(dataset.candidates["item_id"].drop_duplicates())
            users.append(dataset.requests["user_id"].drop_duplicates())
        fields = self.schema.behavior_fields()
        if behaviors is not None:
            users.append(behaviors["user_id"].drop_duplicates())
            of_items = [name for name, vocabulary in fields.items() if vocabulary == "item"]
            items += [dataset.behavior(name)["value"] for name in of_items]
        self.user_ids = pd.Index(pd.concat(users, ignore_index=True).unique()).sort_values()
        self.item_ids = pd.Index(pd.concat(items, ignore_index=True).unique()).sort_values()
        self.time = impressions["timestamp"].to_numpy(np.int64)
        self.user = self.user_ids.get_indexer(impressions["user_id"])
        self.item = self.item_ids.get_indexer(impressions["item_id"])
        self.label_time = {label: self._label_time(label) for label in self.schema.funnel}
        self.behaviors: dict[str, Events] = {}
        self.behavior_values: dict[str, pd.Index] = {}
        for name, vocabulary in fields.items():
            rows = dataset.behavior(name) if behaviors is not None else None
            if rows is None or rows.empty:
                raise UserError(
                    f"{dataset.path}: field {name!r} has no rows in the behaviors table; add them, or remove it from "
                    "dataset.toml."
                )
            if vocabulary == "item":
                value = self.item_ids.get_indexer(rows["value"])
            else:
                self.behavior_values[name] = pd.Index(rows["value"].unique())
                value = self.behavior_values[name].get_indexer(pd.Index(rows["value"]))
            order = rows["order"].to_numpy(np.int64) if "order" in rows else np.zeros(len(rows), np.int64)
            user = self.user_ids.get_indexer(rows["user_id"])
            self.behaviors[name] = Events(user, value, rows["timestamp"].to_numpy(np.int64), order)
        self._seed_pairs = self._first_seed_events()
        self._static: dict[str, pd.DataFrame] = {}

    def _label_time(self, label: str) -> np.ndarray:
        """When each label became known; a label without a time counts at the end of its attribution window."""
        known = self.time + self.schema.attribution_ms.get(label, 0)
        column = f"{label}_time"
        if column in self.impressions:
            given = self.impressions[column].to_numpy(np.int64)
            known = np.where(given >= 0, given, known)
        return known

    def events(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows and times of one event: "impression", a funnel label (rows of the impressions), or "behaviors.F"."""
        if name == "impression":
            return np.arange(len(self.time)), self.time
        if name.startswith("behaviors."):
            found = self.behaviors[name.removeprefix("behaviors.")]
            return np.arange(len(found.time)), found.time
        rows = np.flatnonzero(self.impressions[name].to_numpy() == 1)
        return rows, self.label_time[name][rows]

    def seed_events(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """User, item, time and order of every seed event."""
        name = self.schema.seed_event
        rows, time = self.events(name)
        if name.startswith("behaviors."):
            found = self.behaviors[name.removeprefix("behaviors.")]
            return found.user, found.value, found.time, found.order
        return self.user[rows], self.item[rows], time, np.full(len(rows), BEFORE_ALL)

    def _first_seed_events(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        user, item, time, _ = self.seed_events()
        by = np.lexsort((time, user, item))
        user, item, time = user[by], item[by], time[by]
        first = np.append(True, (np.diff(item) != 0) | (np.diff(user) != 0))[: len(user)]
        return user[first], item[first], time[first]

    def seeds(self, before: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct seed users of every item, by seed events strictly before a moment.

        Returns:
            offsets int64 `[items + 1]` and users int64 `[n]`, sorted by item and user.
        """
        user, item, time = self._seed_pairs
        kept = time < before
        counts = np.bincount(item[kept], minlength=len(self.item_ids))
        return np.append(0, np.cumsum(counts)), user[kept]

    def tick(self, time: np.ndarray) -> np.ndarray:
        """The last tick at or before each time; ticks are counted from the start of the train window."""
        anchor = self.window("train")[0]
        return anchor + (np.asarray(time) - anchor) // self.schema.tick_ms * self.schema.tick_ms

    def rows_in(self, *windows: str) -> np.ndarray:
        """Rows of the impressions inside any of the named windows, in the log's order."""
        inside = np.zeros(len(self.time), bool)
        for name in windows:
            start, end = self.window(name)
            inside |= (self.time >= start) & (self.time < end)
        return np.flatnonzero(inside)

    def some_rows_in(self, *windows: str) -> np.ndarray:
        """As `rows_in`, and a UserError where there is none."""
        rows = self.rows_in(*windows)
        if not len(rows):
            raise UserError(
                f"{self.dataset.path}: no impression lies in the window {' + '.join(windows)}; check [windows] in "
                "dataset.toml against the timestamps (seedrank data check)."
            )
        return rows

    def window(self, name: str) -> tuple[int, int]:
        """Start and end (ms, half-open) of a window, by name."""
        try:
            return self.schema.window(name)
        except UserError as error:
            raise UserError(f"{self.dataset.path}/dataset.toml: {error}") from None

    def by_tick(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Groups rows of the impressions by their tick, in time order: (tick, places in `rows`)."""
        ticks = self.tick(self.time[rows])
        by = np.argsort(ticks, kind="stable")
        for places in np.split(by, np.flatnonzero(np.diff(ticks[by])) + 1) if len(by) else ():
            yield int(ticks[places[0]]), places

    def mature(self, rows: np.ndarray) -> np.ndarray:
        """Which rows' conversion is final: their attribution window ended before the log was last observed."""
        span = self.schema.attribution_ms.get(self.schema.funnel[-1], 0)
        return self.time[rows] + span <= self.dataset.observed_until

    def known(self, side: str, before: int) -> np.ndarray:
        """Which users or items ("user", "item") have any event strictly before a moment."""
        ids, rows = (self.user_ids, self.user) if side == "user" else (self.item_ids, self.item)
        seen = np.zeros(len(ids), bool)
        seen[rows[self.time < before]] = True
        for name, found in self.behaviors.items():
            early = found.time < before
            if side == "user":
                seen[found.user[early]] = True
            elif name not in self.behavior_values:
                seen[found.value[early]] = True
        return seen

    def exists(self, side: str, before: int) -> np.ndarray:
        """Which users or items a table frozen at a moment knows: with an event, or listed and born, before it."""
        table, name = self.static(side), f"{side}s"
        ids = self.user_ids if side == "user" else self.item_ids
        listed = np.zeros(len(ids), bool)
        if self.dataset.has(name):
            listed = ids.isin(self.dataset.table(name)[f"{side}_id"])
            if "born" in table:
                born = table["born"].fillna(-1).to_numpy(np.int64)
                listed &= born < before
        return listed | self.known(side, before)

    def static(self, side: str) -> pd.DataFrame:
        """The users or items table aligned with `user_ids` or `item_ids`; missing rows are all missing."""
        if side not in self._static:
            ids, name = (self.user_ids, "users") if side == "user" else (self.item_ids, "items")
            table = self.dataset.table(name) if self.dataset.has(name) else pd.DataFrame({f"{side}_id": ids})
            self._static[side] = table.set_index(f"{side}_id").reindex(ids)
        return self._static[side]
