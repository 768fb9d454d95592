"""What fresh tables are worth: a log's days once more, in simulated time, scored with tables of different ages."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lookalike.clicklog import ClickLog
from lookalike.seeds import SeedStore
from ranking.batches import Progress, silent
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.export import export_run
from ranking.exported.lookup import raw_ids
from ranking.freshness_rows import ReplayedRows, quality_of
from ranking.refresh import Refreshed, Refresher
from ranking.refresh_seeds import backfill
from ranking.run import Run
from ranking.state import State
from ranking.timeline import Timeline

__all__ = ["Freshness", "measure_freshness"]

HOUR_MS = 3_600_000


@dataclasses.dataclass(frozen=True)
class Freshness:
    """What was found.

    Attributes:
        items: DataFrame, one row an item born meanwhile: `item_id`, `born`, and, ms or missing where it was not until
            the end: `ready` (its min_seeds-th user clicked), `refreshed` and `daily` (its first similarity).
        rows: DataFrame, one row an impression: `user_id`, `item`, `request_id`, `click`, `age` (hours since birth, of
            an item born meanwhile), and of each arm its `pctr/ARM` and `has/ARM`; `chance`, P(click), where a simulator
            told it.
        quality: DataFrame, one row a place and arm: `where` (a phase, an age, `"new"`, `"all"`: see `masks_of`), `arm`,
            `impressions`, `clicks`, `with_similarity`, the AUC of the click as `value` and `se`, and the difference
            `refreshed - arm` as `gain` and `gain_se`. Where the chances are known, the same of the AUC expected of them
            (`value_truth` and so on), and `ceiling`, which no score can pass.
        about: dict. Dataset, run, what was set, and the refreshes' own figures.
    """

    items: pd.DataFrame
    rows: pd.DataFrame
    quality: pd.DataFrame
    about: dict[str, Any]

    def waits(self) -> dict[str, dict[str, float]]:
        """Hours by item, median, 90th percentile and longest: of those that had a similarity in both before the end."""
        items, found = self.items, {}
        spans = {
            "birth to enough seeds": ("born", "ready"),
            "birth to similarity, refreshed": ("born", "refreshed"),
            "birth to similarity, daily": ("born", "daily"),
            "enough seeds to similarity, refreshed": ("ready", "refreshed"),
            "enough seeds to similarity, daily": ("ready", "daily"),
        }
        both = items["refreshed"].notna() & items["daily"].notna()  # the same items, or the later ones would flatter
        every = items["refreshed"].notna()
        chosen = [(name, span, both) for name, span in spans.items()]
        chosen.append(("enough seeds to similarity, refreshed, all items", ("ready", "refreshed"), every))
        for name, (start, end), inside in chosen:
            hours = ((items[end] - items[start])[inside] / HOUR_MS).to_numpy(np.float64)
            quantiles = np.quantile(hours, [0.5, 0.9, 1.0]) if len(hours) else np.full(3, np.nan)
            found[name] = dict(zip(("median", "p90", "max"), quantiles.tolist(), strict=True)) | {"items": len(hours)}
        return found

    def refreshes(self) -> np.ndarray:
        """How many refreshes each item took from its min_seeds-th user to its similarity: 1 where the next one did."""
        told = self.items[self.items["refreshed"].notna()]
        every, since = 1000 * self.about["every"], self.about["since"]
        done = ((told[name].to_numpy(np.int64) - since) // every for name in ("refreshed", "ready"))
        return np.subtract(*done)

    def as_dict(self) -> dict[str, Any]:
        """As `seedrank freshness --json` prints it."""
        quality = self.quality.astype(object).where(self.quality.notna(), None)
        taken, times = np.unique(self.refreshes(), return_counts=True)
        refreshes = {str(count): int(items) for count, items in zip(taken, times, strict=True)}
        return {
            **self.about,
            "waits": self.waits(),
            "refreshes_to_similarity": refreshes,
            "quality": quality.to_dict("records"),
        }


class _Replayed(Refresher):
    """A refresher whose states are looked at, in place of being published."""

    made: State

    def _publish(self, done: Refreshed, state: State) -> None:
        self.made = self._table.served(state, self.min_seeds)


def measure_freshness(
    run: Run,
    dataset: Dataset,
    work: str | Path,
    *,
    every: int = 300,
    since: int | None = None,
    until: int | None = None,
    replicates: int = 200,
    progress: Progress = silent,
) -> Freshness:
    """Replays a log from a moment on, with the tables that would have been served, and judges them on its impressions.

    The clicks before `since` are in a click log and an exported version when it begins. From there simulated time goes
    in steps of `every`: the clicks of a step are appended to the log, the refresher takes them in as of that moment,
    and the impressions of the next step are scored with its tables. Beside them, on the same rows and with the same
    models: `daily`, tables exported once a tick of the dataset (a day); `frozen`, those of the beginning; and
    `daily seeds`, which is `refreshed` with seeds and centroids of the daily export, so that what the seeds alone are
    worth can be told from statistics and features. No clock has a part in it but a refresh's budget of time.

    The logged policy chose what was shown: what fresher tables would have shown, and earned, is not in the log. Users'
    own statistics are those of the beginning, as in `evaluate_run`.

    Args:
        run: Run.
        dataset: Dataset. With impressions after `since`; its items should have `born`.
        work: str or Path. A new folder for the click log and the version.
        every: int, seconds. Defaults to `300`.
        since: int, ms, or `None`. Defaults to `None`: where the training of the run ended.
        until: int, ms, or `None`. Defaults to `None`: the last impression.
        replicates: int. Bootstrap replicates over users. Defaults to `200`.
        progress: Progress.

    Raises:
        UserError: nothing happens in that time, or no item is born in it.
    """
    timeline = Timeline(dataset)
    trained = int(run.info["trained_until"])
    since = trained if since is None else since
    until = int(timeline.time.max()) + 1 if until is None else until
    if since < trained:
        raise UserError(f"`since` should not be before the end of the run's training, {trained}. Received: {since}.")
    if every < 1:
        raise UserError(f"`every` should be a positive number of seconds. Received: every={every}.")
    born = timeline.static("item").get("born")
    if born is None:
        raise UserError(f"{dataset.path}: the items table should have the column `born`.")
    births = born.fillna(-1).to_numpy(np.int64)
    ticks = np.arange(since, until, every * 1000)
    rows = np.flatnonzero((timeline.time >= since) & (timeline.time < until))
    if not len(rows) or not ((births >= since) & (births < until)).any():
        raise UserError(f"{dataset.path}: no impression, or no birth of an item, lies between {since} and {until}.")
    replay = ReplayedRows(run, timeline, since, births)
    daily = replay.state_of_tables(since)
    run = dataclasses.replace(run, state=daily)
    export_run(run, Path(work) / "models")
    seen = {arm: _Seen(replay, births) for arm in ("refreshed", "daily")}
    spent: list[float] = []
    order = rows[np.argsort(timeline.time[rows], kind="stable")]
    places = np.append(np.searchsorted(timeline.time[order], ticks), len(order))
    schema = dataset.schema
    with ClickLog(Path(work) / "clicks", user_ids=schema.user_id, item_ids=schema.item_id) as log:
        backfill(log, timeline, before=since)
        refresher = _Replayed(
            run, Path(work) / "models", SeedStore(), log, data=dataset.path, min_seeds=schema.min_seeds
        )
        with refresher:
            clicks = _Clicks(timeline, since)
            for step, tick in enumerate(ticks.tolist()):
                clicks.append(log, tick)
                spent.append(sum(refresher.once(tick).seconds.values()))
                if int(timeline.tick(np.array([tick]))[0]) > daily.tick:
                    daily = replay.state_of_tables(int(timeline.tick(np.array([tick]))[0]))
                states = {"frozen": run.state, "daily": daily, "refreshed": refresher.made}
                for arm, watch in seen.items():
                    watch.look(states[arm], tick)
                replay.score(order[places[step] : places[step + 1]], states)
                progress("replayed refreshes", step + 1, len(ticks))
    frame = replay.frame()
    items = pd.DataFrame({"item_id": timeline.item_ids, "born": births, "ready": replay.ready(until)})
    for arm, watch in seen.items():
        items[arm] = watch.first
    items = (
        items[(births >= since) & (births < until)]
        .replace(-1, pd.NA)
        .astype({name: "Int64" for name in ("born", "ready", "refreshed", "daily")})
    )
    about = {
        "dataset": str(dataset.path),
        "run": str(run.path),
        "since": since,
        "until": until,
        "every": every,
        "min_seeds": schema.min_seeds,
        "tick": schema.tick_ms // 1000,
        "refreshes": len(ticks),
        "seconds_a_refresh": {"median": float(np.median(spent)), "max": float(np.max(spent))},
        "items_born": len(items),
        **{f"items_{name}": int(items[name].notna().sum()) for name in ("ready", "refreshed", "daily")},
    }
    quality, ndcg = quality_of(frame, replicates)
    return Freshness(items.reset_index(drop=True), frame, quality, about | {"ndcg": ndcg})


class _Clicks:
    """The seed events of a log in the order of time, appended as it goes on."""

    def __init__(self, timeline: Timeline, since: int) -> None:
        user, item, time, order = timeline.seed_events()
        by = np.lexsort((order, time))
        by = by[time[by] >= since]
        self._user, self._item = (
            raw_ids(ids)[rows[by]] for ids, rows in ((timeline.user_ids, user), (timeline.item_ids, item))
        )
        self._time = time[by]
        self._done = 0

    def append(self, log: ClickLog, tick: int) -> None:
        """Appends what came strictly before a tick."""
        start, self._done = self._done, int(np.searchsorted(self._time, tick))
        some = slice(start, self._done)
        log.append(self._user[some], self._item[some], self._time[some])


class _Seen:
    """When each item first has a similarity in what is served: ms, -1 as long as it has none."""

    def __init__(self, replay: "ReplayedRows", births: np.ndarray) -> None:
        self._items = replay.timeline.item_ids
        self.first = np.full(len(births), -1)

    def look(self, state: State, tick: int) -> None:
        has = state.item_ids[state.centroid_counts[:-1].sum(axis=1) > 0]
        place = self._items.get_indexer(has)
        self.first[place[self.first[place] < 0]] = tick
