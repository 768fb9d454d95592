"""Scores in Python: what an exported version must reproduce, and what a replay of a run judges."""

import numpy as np
import pandas as pd

from ranking.batches import Progress, silent
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.features import Arrays
from ranking.fusion import fuse
from ranking.run import Run
from ranking.state import State, similarity_of
from ranking.timeline import Timeline

__all__ = ["context_arrays", "score_candidates", "score_rows"]


def context_arrays(run: Run, frame: pd.DataFrame) -> Arrays:
    """The context features of rows, by the run's encoder."""
    arrays: Arrays = {}
    for feature in run.schema.side("context"):
        if feature.name not in frame:
            raise UserError(f"the context column {feature.name!r} is missing; the run was trained with it.")
        arrays |= run.encoder.arrays(f"context_{feature.name}", feature, frame[feature.name])
    return arrays


def score_rows(
    run: Run,
    state: State,
    user_ids: pd.Index,
    item_ids: pd.Index,
    context: pd.DataFrame,
    price: np.ndarray | None = None,
    *,
    offsets: np.ndarray | None = None,
    variant: str = "seedrank",
) -> Arrays:
    """The five outputs of rows of (user, item, context).

    Args:
        run: Run.
        state: State. What is known at that moment.
        user_ids: pandas.Index `[n]`. Raw ids.
        item_ids: pandas.Index `[n]`. Raw ids.
        context: pandas.DataFrame `[n]`. The context columns, raw.
        price: float32 `[n]` or `None`. NaN where missing: then the item's own.
        offsets: int `[R + 1]` or `None`. Request `r` is rows `offsets[r]:offsets[r + 1]`; weights of the rank form need
            it. Defaults to `None`.
        variant: str. Which of the run's models gives the probabilities. Defaults to `"seedrank"`, the served one: to
            its scale belong the constants of the run's weights.

    Returns:
        similarity, has_similarity, pctr, pcvr, pctcvr, price, score: float32 `[n]`.
    """
    user, item = state.rows("user", user_ids), state.rows("item", item_ids)
    arrays = state.features(user, item, context_arrays(run, context)) | similarity_of(run.lookalike, state, user, item)
    found = run.predict(arrays, variant)
    has = arrays["has_similarity"]
    found |= {
        "similarity": np.where(has > 0, arrays["similarity"], np.float32(run.scales.similarity[0])),
        "has_similarity": has,
        "price": state.prices[item] if price is None else np.where(np.isnan(price), state.prices[item], price),
    }
    parts = {name: found[name] for name in (*run.weights.weights, "has_similarity")}
    found["score"] = np.asarray(fuse(parts, run.weights, offsets=offsets), np.float32)
    return found


def _request_time(dataset: Dataset, rows: pd.DataFrame) -> np.ndarray:
    """When the request of each row came, as `ReplayLog` sees it; -1 where the row belongs to none.

    Without a requests table it came with its first impression: one that goes on past the end of a window stays whole.
    """
    requests = dataset.requests if dataset.has("requests") else rows.drop_duplicates("request_id")
    place = pd.Index(requests["request_id"]).get_indexer(rows["request_id"])
    return np.append(requests["timestamp"].to_numpy(np.int64), -1)[place]


def score_candidates(
    run: Run, dataset: Dataset, window: str, progress: Progress = silent, *, variant: str = "seedrank"
) -> Arrays:
    """The score parts of every candidate row of a window, each request as of its own tick.

    Without a candidates table the impressions themselves are the rows.

    Args:
        run: Run.
        dataset: Dataset.
        window: str. Name of a window of the dataset.
        progress: Progress.
        variant: str. Which of the run's models gives the probabilities. Defaults to `"seedrank"`, the served one.

    Returns:
        Dict of float32 arrays aligned with the rows of `dataset.candidates` (or impressions) in the window.
    """
    timeline = Timeline(dataset)
    builder = run.builder(timeline)
    start, end = timeline.window(window)
    if dataset.has("candidates"):
        rows = dataset.candidates
        requests = dataset.requests
        place = pd.Index(requests["request_id"]).get_indexer(rows["request_id"])
    else:
        rows = requests = dataset.impressions
        place = np.arange(len(rows))
    time = _request_time(dataset, rows)
    inside = np.flatnonzero((time >= start) & (time < end))
    if not len(inside):
        raise UserError(f"{dataset.path}: no request lies in the window {window!r}; check [windows] in dataset.toml.")
    ticks = timeline.tick(time[inside])
    whole = pd.factorize(rows["request_id"].iloc[inside])[0]
    parts: list[Arrays] = []
    places = []
    for tick in np.unique(ticks):
        chosen = np.flatnonzero(ticks == tick)
        chosen = chosen[np.argsort(whole[chosen], kind="stable")]  # a rank is within the rows of one request
        offsets = np.append(0, np.cumsum(np.unique(whole[chosen], return_counts=True)[1]))
        row = inside[chosen]
        of_row = requests.iloc[place[row]].reset_index(drop=True)
        price = rows["price"].to_numpy(np.float32)[row] if "price" in rows else None
        users, items = pd.Index(of_row["user_id"]), pd.Index(rows["item_id"].iloc[row])
        state = builder.at(int(tick))
        parts.append(score_rows(run, state, users, items, of_row, price, offsets=offsets, variant=variant))
        places.append(chosen)
        progress(f"{window} candidates scored", sum(map(len, places)), len(inside))
    back = np.argsort(np.concatenate(places), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
