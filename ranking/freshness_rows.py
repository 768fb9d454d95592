"""Impressions scored again with the tables that would have been served, and how well these rank new items."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ranking.bootstrap import AUC, NDCG, Statistic, user_bootstrap
from ranking.errors import UserError
from ranking.features import Arrays, gather
from ranking.metrics import prepare_auc
from ranking.run import Run
from ranking.state import State, similarity_of
from ranking.statistics import StatisticTable
from ranking.timeline import Timeline

__all__ = ["AGES", "ARMS", "PHASES", "ExpectedAUC", "ReplayedRows", "quality_of"]

ARMS = ("frozen", "daily", "daily seeds", "refreshed")
PHASES = ("before", "between", "after")  # no similarity yet; in refreshed tables only; in those of the daily export too
AGES = (0, 6, 12, 24, 48, 96)  # hours since birth that a row of the results begins at; the last has no end
HOUR_MS = 3_600_000
ROWS = 16_384  # predicted at once


class ReplayedRows:
    """The rows of a log, scored with the states that were served when they happened.

    Args:
        run: Run.
        timeline: Timeline.
        since: int, ms. Items born from then on are new.
        births: int64 `[items]`, ms. Of the timeline's items.
    """

    def __init__(self, run: Run, timeline: Timeline, since: int, births: np.ndarray) -> None:
        self.run, self.timeline, self.since, self.births = run, timeline, since, births
        self._builder = run.builder(timeline)
        self._first: State | None = None
        self._waiting: dict[str, list[Arrays]] = {arm: [] for arm in ARMS}
        self._done: dict[str, list[np.ndarray]] = {}
        self._rows: list[np.ndarray] = []
        self._count = 0

    def state_of_tables(self, tick: int) -> State:
        """What an export at a tick would freeze."""
        state = self._builder.at(tick)
        state = state.only(self.timeline.exists("user", tick), self.timeline.exists("item", tick))
        self._first = self._first or state
        return state

    def ready(self, until: int) -> np.ndarray:
        """When the `min_seeds`-th user clicked each item: ms, -1 where it was not before the end."""
        user, item, time, _ = self.timeline.seed_events()
        frame = pd.DataFrame({"user": user, "item": item, "time": time}).sort_values("time", kind="stable")
        frame = frame[frame["time"] < until].drop_duplicates(["user", "item"])
        enough = frame[frame.groupby("item").cumcount() == self.timeline.schema.min_seeds - 1]
        found = np.full(len(self.births), -1)
        found[enough["item"]] = enough["time"]
        return found

    def score(self, rows: np.ndarray, states: Mapping[str, State]) -> None:
        """Scores rows of the impressions with each arm's state."""
        if not len(rows) or self._first is None:
            return
        frame = self.timeline.impressions.iloc[rows]
        mixed = _with_seeds_of(states["refreshed"], states["daily"])
        for arm, state in {**states, "daily seeds": mixed}.items():
            state = _with_user_statistics_of(state, self._first)
            user, item = state.rows("user", frame["user_id"]), state.rows("item", frame["item_id"])
            arrays = state.features(user, item, gather(self._builder.context, rows))
            arrays |= similarity_of(self.run.lookalike, state, user, item)
            if "position" in frame:
                arrays["position"] = frame["position"].to_numpy(np.int32) + 1
            self._waiting[arm].append(arrays)
        self._rows.append(rows)
        self._count += len(rows)
        if self._count > ROWS:
            self._predict()

    def _predict(self) -> None:
        for arm, parts in self._waiting.items():
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            found = self.run.predict(arrays, position=True)
            self._done.setdefault(f"pctr/{arm}", []).append(found["pctr"].astype(np.float64))
            self._done.setdefault(f"has/{arm}", []).append(arrays["has_similarity"] > 0)
            parts.clear()
        self._count = 0

    def frame(self) -> pd.DataFrame:
        """All rows scored, in the order of time."""
        if self._count:
            self._predict()
        rows, timeline = np.concatenate(self._rows), self.timeline
        born = self.births[timeline.item[rows]]
        age = (timeline.time[rows] - born) / HOUR_MS
        frame = timeline.impressions.iloc[rows]
        chance = true_chances(timeline)
        return pd.DataFrame(
            {
                "user_id": timeline.user[rows],
                "item": timeline.item[rows],
                "request_id": pd.factorize(frame["request_id"])[0],
                "click": frame[timeline.schema.funnel[0]].to_numpy(np.int8),
                "age": np.where(born >= self.since, age, np.nan),
                **({} if chance is None else {"chance": chance[rows]}),
                **{name: np.concatenate(parts) for name, parts in self._done.items()},
            }
        )


def _with_seeds_of(state: State, other: State) -> State:
    """A state with the seeds and centroids that another one knows of its items."""
    place = np.append(other.item_ids.get_indexer(state.item_ids), -1)  # -1 is nobody, the last row
    return dataclasses.replace(
        state,
        centroids=other.centroids[place],
        centroid_counts=other.centroid_counts[place],
        seed_counts=other.seed_counts[place],
    )


def _with_user_statistics_of(state: State, other: State) -> State:
    """A state with the users' own statistics of another: those that follow the labels judged deflate the AUC."""
    if state is other:
        return state
    place = np.append(other.user_ids.get_indexer(state.user_ids), -1)
    statistics: dict[str, StatisticTable] = {}
    for name, table in state.statistics.items():
        old = other.statistics[name]
        statistics[name] = dataclasses.replace(table, values=old.values[place]) if table.side == "user" else table
    return dataclasses.replace(state, statistics=statistics)


def true_chances(timeline: Timeline) -> np.ndarray | None:
    """P(click) of every impression where a simulator wrote the truth beside the log, else `None`."""
    path = timeline.dataset.path / "truth" / "impressions.parquet"
    if not path.is_file():
        return None
    truth = pd.read_parquet(path)
    if len(truth) != len(timeline.impressions):
        raise UserError(
            f"{path}: should have a row for each of {len(timeline.impressions):,}. Received: {len(truth):,}."
        )
    return np.asarray(truth["pctr"] * truth["examination"], np.float64)


@dataclasses.dataclass(frozen=True)
class ExpectedAUC(Statistic):
    """The AUC that a score has when each row is a positive with a known probability: that of labels without their luck.

        P(score of i > score of j) over pairs weighted by p_i (1 - p_j)

    Args:
        chance: str. Column of P(label = 1).
        score: str. Column of scores.
        where: str. Column whose non-zero rows count.
    """

    chance: str
    score: str
    where: str

    def prepare(self, columns: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], float]:
        """Every row is a positive and a negative at once, by its chances."""
        kept = np.flatnonzero(columns[self.where])
        chance, score = columns[self.chance][kept], columns[self.score][kept]
        value = prepare_auc(np.repeat([1, 0], len(kept)), np.tile(score, 2))
        shares = np.concatenate([chance, 1 - chance])
        return lambda weight: value(np.tile(weight[kept], 2) * shares)


def masks_of(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which rows count: by phase, by age (hours from which on, as text), of new items, and all.

    The phases are of the items that gained a similarity, so that before and after are about the same ones.
    """
    age = frame["age"].to_numpy()
    refreshed, daily = (frame[f"has/{arm}"].to_numpy(bool) for arm in ("refreshed", "daily"))
    new = ~np.isnan(age)
    gained = new & frame["item"].isin(frame["item"][new & refreshed]).to_numpy()
    phases = (gained & ~refreshed, gained & refreshed & ~daily, gained & refreshed & daily)
    found = dict(zip(PHASES, phases, strict=True))
    ends = (*AGES[1:], np.inf)
    found |= {str(start): (age >= start) & (age < end) for start, end in zip(AGES, ends, strict=True)}
    found |= {"new": new, "all": np.ones(len(age), bool)}
    return {name: inside for name, inside in found.items() if inside.any()}


def quality_of(frame: pd.DataFrame, replicates: int) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """AUC of the click by phase, age and arm, and NDCG of requests that showed an item in its first two days.

    Where the chances are known, the AUC expected of them is there too, and `ceiling`, that of the chances themselves.
    """
    masks = masks_of(frame)
    columns = {name: frame[name].to_numpy() for name in frame.columns if name != "age"}
    young = np.unique(columns["request_id"][frame["age"].to_numpy() < 48])
    columns |= {f"in {name}": inside for name, inside in masks.items()}
    columns["young"] = np.isin(columns["request_id"], young)
    statistics: dict[str, Any] = {
        f"{name}/{arm}": AUC("click", f"pctr/{arm}", where=f"in {name}") for name in masks for arm in ARMS
    }
    statistics |= {f"ndcg/{arm}": NDCG("click", f"pctr/{arm}", where="young", group="request_id") for arm in ARMS}
    known = "chance" in columns
    if known:
        statistics |= {
            f"{name}/{arm}/truth": ExpectedAUC("chance", f"pctr/{arm}", f"in {name}") for name in masks for arm in ARMS
        }
    pairs = {}
    for name in statistics:
        where, arm, *rest = name.split("/")
        if arm != "refreshed":
            pairs[f"{name} gain"] = ("/".join([where, "refreshed", *rest]), name)
    found = user_bootstrap(columns["user_id"], columns, statistics, differences=pairs, replicates=replicates, seed=0)

    def figures(name: str, suffix: str = "") -> dict[str, float]:
        gain = f"{name} gain"
        return {
            f"value{suffix}": found.estimate[name],
            f"se{suffix}": found.se[name],
            f"gain{suffix}": found.estimate.get(gain, np.nan),
            f"gain_se{suffix}": found.se.get(gain, np.nan),
        }

    rows = []
    for name, inside in masks.items():
        told = {"where": name, "impressions": int(inside.sum()), "clicks": int(columns["click"][inside].sum())}
        if known:
            told["ceiling"] = ExpectedAUC("chance", "chance", f"in {name}")(columns, np.ones(len(inside)))
        for arm in ARMS:
            has = {"arm": arm, "with_similarity": float(columns[f"has/{arm}"][inside].mean())}
            truth = figures(f"{name}/{arm}/truth", "_truth") if known else {}
            rows.append(told | has | figures(f"{name}/{arm}") | truth)
    return pd.DataFrame(rows), {arm: figures(f"ndcg/{arm}") for arm in ARMS}
