"""Seeds of items as rows of users, strictly before a tick; whom the model does not know is counted and left out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from lookalike.clicklog import keys_of
from lookalike.cohorts import capped_weights, largest_share
from ranking.data.columns import Column, convert
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.exported.lookup import raw_ids
from ranking.timeline import Timeline

__all__ = ["SeedReader", "SeedRows", "Seen", "backfill", "cohorts_of", "id_keys", "look"]

NEWEST = 64  # seeds of each item that tell how many are new
BACKFILL_BATCH = 1 << 18


def id_keys(ids: pd.Index) -> np.ndarray:
    """The keys that ids have in the click log: int64 `[n]`."""
    return ids.to_numpy(np.int64) if ids.dtype.kind == "i" else keys_of(raw_ids(ids))


@dataclass(frozen=True)
class Seen:
    """What the store knows of items at a tick.

    Args:
        seeds: int64 `[items]`. Distinct clickers strictly before the tick.
        fresh: int64 `[items]`. Of the newest ones, those not before the item's own moment.
        early: bool `[items]`. Which have clicks from the tick on, as clocks that are ahead make them: they count later,
            and until then so do earlier clicks of the same users, of which the store keeps the latest.
    """

    seeds: np.ndarray
    fresh: np.ndarray
    early: np.ndarray


def look(store: Any, keys: np.ndarray, since: np.ndarray, changed: np.ndarray, tick: int) -> Seen:
    """Counts seeds, without reading them all.

    Args:
        store: SeedStore.
        keys: int64 `[items]`.
        since: int64 `[items]`, ms. The moment of each item that its new seeds are counted from.
        changed: bool `[items]`. Items that may have new seeds; the others have none.
        tick: int, ms.
    """
    seeds = store.seed_counts(keys)
    fresh, early = np.zeros_like(seeds), np.zeros_like(seeds)
    places, newest = np.flatnonzero(changed & (seeds > 0)), NEWEST
    while len(places):
        offsets, _, times = store.seeds(keys[places], newest=newest)
        item = np.repeat(places, np.diff(offsets))
        early[places] = np.bincount(item[times >= tick], minlength=len(keys))[places]
        fresh[places] = np.bincount(item[(times >= since[item]) & (times < tick)], minlength=len(keys))[places]
        places = places[(early[places] == np.diff(offsets)) & (early[places] < seeds[places])]
        newest *= 64  # a flood of clicks dated ahead: rare, and bounded by the store's own limit
    return Seen(seeds - early, fresh, early > 0)


@dataclass(frozen=True)
class SeedRows:
    """Seeds that can be clustered.

    Args:
        offsets: int64 `[items + 1]`; rows: int64 `[seeds]`, ascending within an item.
        unknown: int64 `[items]`. Seeds without an embedding.
        cohort: int64 `[seeds]` or `None`.
        dominated: bool `[items]`. Which have too few cohorts for any weights to keep the largest one's share.
    """

    offsets: np.ndarray
    rows: np.ndarray
    unknown: np.ndarray
    cohort: np.ndarray | None
    dominated: np.ndarray


class SeedReader:
    """Reads the newest seeds of items.

    Args:
        store: SeedStore.
        user_ids: pandas.Index. Whose rows.
        usable: bool `[users]`. Which users have a finite embedding.
        newest: int. Seeds of an item, the newest by time.
        cohorts: int64 `[users]` or `None`. Each user's cohort.
        max_share: float. What a cohort may weigh of an item's seeds.
    """

    def __init__(
        self,
        store: Any,
        user_ids: pd.Index,
        usable: np.ndarray,
        *,
        newest: int,
        cohorts: np.ndarray | None,
        max_share: float,
    ) -> None:
        self._store, self.newest, self._cohorts, self.max_share = store, newest, cohorts, max_share
        self._keys = pd.Index(id_keys(user_ids))
        self._usable = np.append(usable, False)

    def read(self, keys: np.ndarray, tick: int) -> SeedRows:
        """The seeds of some items by events strictly before a tick."""
        offsets, users, times = self._store.seeds(keys, newest=self.newest)
        item = np.repeat(np.arange(len(keys)), np.diff(offsets))
        row = self._keys.get_indexer(pd.Index(users))
        past = times < tick
        kept = past & self._usable[row]  # -1 is the last, which is not
        unknown = np.bincount(item[past & ~kept], minlength=len(keys))
        # In the order of the users' rows, as a state from the tables has them; and memory is read in that order.
        code = np.sort(item[kept] * np.int64(len(self._usable)) + row[kept])
        item, rows = np.divmod(code, len(self._usable))
        offsets = np.append(0, np.cumsum(np.bincount(item, minlength=len(keys))))
        if self._cohorts is None:
            return SeedRows(offsets, rows, unknown, None, np.zeros(len(keys), bool))
        cohort = self._cohorts[rows]
        weights = capped_weights(offsets, cohort, self.max_share)
        dominated = largest_share(offsets, cohort, weights) > self.max_share * (1 + 1e-6)
        return SeedRows(offsets, rows, unknown, cohort, dominated)


def cohorts_of(dataset: Dataset, column: str, user_ids: pd.Index) -> np.ndarray:
    """Each user's cohort by a column of the users table: int64 `[users]`; those of whom it is not known share one.

    The column need not be declared: a day of registration is nothing that a model should see.

    Raises:
        UserError: there is no such column.
    """
    path = dataset.file("users")
    if path is None:
        raise UserError(f"{dataset.path} should hold a table `users` with the column {column!r}.")
    names = ["user_id", column]
    if path.suffix == ".parquet":
        known = pa.parquet.read_schema(path).names
        table = pa.parquet.read_table(path, columns=[name for name in names if name in known])
    else:
        options = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True)
        table = pa.csv.read_csv(path, convert_options=options)
        known = table.column_names
    if column not in known:
        raise UserError(f"{path} should have the column {column!r} (`cohort`). Received: {', '.join(known)}.")
    ids = convert(table.column("user_id"), Column(dataset.schema.user_id), f"{path}: column `user_id`")
    code = pd.factorize(table.column(column).to_pandas())[0]  # -1 where it is missing
    place = pd.Index(ids, dtype=user_ids.dtype).get_indexer(user_ids)
    return np.append(code, -1)[place].astype(np.int64)


def backfill(log: Any, timeline: Timeline, *, before: int | None = None) -> int:
    """Appends the seed events of a dataset's tables to a click log, in the order of time; how many.

    So the log knows what the run was trained on, and the seeds come from one place. Done twice, or for clicks that the
    log has already, it changes nothing: of a user's clicks on an item the latest counts.

    Args:
        log: ClickLog, open for writing.
        timeline: Timeline. Of the dataset.
        before: int, ms, or `None`. Only events strictly before it. Defaults to `None`: all.

    Raises:
        UserError: the log has ids of another kind.
    """
    schema = timeline.schema
    if (log.user_ids, log.item_ids) != (schema.user_id, schema.item_id):
        raise UserError(
            f"{log.folder} should have the ids of the dataset, user {schema.user_id} and item {schema.item_id}. "
            f"Received: {log.user_ids} and {log.item_ids}."
        )
    user, item, time, order = timeline.seed_events()
    by = np.lexsort((order, time))
    by = by if before is None else by[time[by] < before]
    users, items = (raw_ids(ids) for ids in (timeline.user_ids, timeline.item_ids))
    for start in range(0, len(by), BACKFILL_BATCH):
        some = by[start : start + BACKFILL_BATCH]
        log.append(users[user[some]], items[item[some]], time[some])
    return len(by)
