"""Impressions scored again with the tables that would have been served, and how well these rank new items."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ranking.bootstrap import AUC, NDCG, user_bootstrap
from ranking.features import Arrays, gather
from ranking.run import Run
from ranking.state import State, similarity_of
from ranking.statistics import StatisticTable
from ranking.timeline import Timeline

__all__ = ["AGES", "ARMS", "ReplayedRows", "quality_of"]

ARMS = ("frozen", "daily", "daily seeds", "refreshed")
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
        return pd.DataFrame(
            {
                "user_id": timeline.user[rows],
                "request_id": pd.factorize(frame["request_id"])[0],
                "click": frame[timeline.schema.funnel[0]].to_numpy(np.int8),
                "age": np.where(born >= self.since, age, np.nan),
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


def quality_of(frame: pd.DataFrame, replicates: int) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """AUC of the click by age and arm; NDCG of requests that showed an item in its first two days."""
    age = frame["age"].to_numpy()
    columns = {name: frame[name].to_numpy() for name in frame.columns if name != "age"}
    inside_of = {start: (age >= start) & (age < end) for start, end in zip(AGES, (*AGES[1:], np.inf), strict=True)}
    bounds = {str(start): inside for start, inside in inside_of.items() if inside.any()}
    bounds |= {"new": ~np.isnan(age), "all": np.ones(len(age), bool)}
    young = np.unique(columns["request_id"][age < 48])
    columns |= {f"age {name}": inside for name, inside in bounds.items()}
    columns["young"] = np.isin(columns["request_id"], young)
    statistics: dict[str, Any] = {
        f"{name}/{arm}": AUC("click", f"pctr/{arm}", where=f"age {name}") for name in bounds for arm in ARMS
    }
    statistics |= {f"ndcg/{arm}": NDCG("click", f"pctr/{arm}", where="young", group="request_id") for arm in ARMS}
    pairs = {
        f"{name} gain": (f"{name.split('/')[0]}/refreshed", name) for name in statistics if "refreshed" not in name
    }
    found = user_bootstrap(columns["user_id"], columns, statistics, differences=pairs, replicates=replicates, seed=0)

    def figures(name: str) -> dict[str, float]:
        told = {"value": found.estimate[name], "se": found.se[name]}
        if f"{name} gain" in pairs:
            told |= {"gain": found.estimate[f"{name} gain"], "gain_se": found.se[f"{name} gain"]}
        return told

    rows = []
    for name, inside in bounds.items():
        for arm in ARMS:
            told = figures(f"{name}/{arm}")
            rows.append(
                {
                    "from_hours": name,
                    "arm": arm,
                    "impressions": int(inside.sum()),
                    "clicks": int(columns["click"][inside].sum()),
                    "with_similarity": float(columns[f"has/{arm}"][inside].mean()),
                    "auc": told["value"],
                    "auc_se": told["se"],
                    "gain": told.get("gain", np.nan),
                    "gain_se": told.get("gain_se", np.nan),
                }
            )
    return pd.DataFrame(rows), {arm: figures(f"ndcg/{arm}") for arm in ARMS}
