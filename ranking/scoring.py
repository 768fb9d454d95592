"""Scores in Python: what an exported version must reproduce, and what a replay of a run judges."""

import numpy as np
import pandas as pd

from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.features import Arrays
from ranking.fusion import fuse
from ranking.run import Run
from ranking.state import State
from ranking.timeline import Timeline
from ranking.training import Progress, silent, similarity_of

__all__ = ["context_arrays", "score_candidates", "score_rows"]


def context_arrays(run: Run, frame: pd.DataFrame) -> Arrays:
    """The context features of rows, by the run's encoder."""
    arrays = {}
    for feature in run.schema.side("context"):
        if feature.name not in frame:
            raise UserError(f"the context column {feature.name!r} is missing; the run was trained with it.")
        name = f"context_{feature.name}"
        arrays[name] = run.encoder.encode(name, feature, frame[feature.name])
    return arrays


def score_rows(
    run: Run,
    state: State,
    user_ids: pd.Index,
    item_ids: pd.Index,
    context: pd.DataFrame,
    price: np.ndarray | None = None,
) -> Arrays:
    """The five outputs of rows of (user, item, context).

    Args:
        run: Run.
        state: State. What is known at that moment.
        user_ids: pandas.Index `[n]`. Raw ids.
        item_ids: pandas.Index `[n]`. Raw ids.
        context: pandas.DataFrame `[n]`. The context columns, raw.
        price: float32 `[n]` or `None`. NaN where missing: then the item's own.

    Returns:
        similarity, has_similarity, pctr, pcvr, pctcvr, price, score: float32 `[n]`.
    """
    user, item = state.rows("user", user_ids), state.rows("item", item_ids)
    arrays = state.features(user, item, context_arrays(run, context)) | similarity_of(run.lookalike, state, user, item)
    found = run.predict(arrays)
    has = arrays["has_similarity"]
    found |= {
        "similarity": np.where(has > 0, arrays["similarity"], np.float32(run.scales.similarity[0])),
        "has_similarity": has,
        "price": state.prices[item] if price is None else np.where(np.isnan(price), state.prices[item], price),
    }
    parts = {name: found[name] for name in (*run.weights.weights, "has_similarity")}
    found["score"] = np.asarray(fuse(parts, run.weights), np.float32)
    return found


def score_candidates(run: Run, dataset: Dataset, window: str, progress: Progress = silent) -> Arrays:
    """The score parts of every candidate row of a window, each request as of its own tick.

    Returns:
        Dict of float32 arrays aligned with the rows of `dataset.candidates` whose request lies in the window.
    """
    timeline = Timeline(dataset)
    builder = run.builder(timeline)
    start, end = timeline.window(window)
    requests = dataset.requests.set_index("request_id")
    candidates = dataset.candidates
    of_request = requests.index.get_indexer(pd.Index(candidates["request_id"]))
    time = requests["timestamp"].to_numpy(np.int64)[of_request]
    inside = np.flatnonzero((time >= start) & (time < end))
    if not len(inside):
        raise UserError(f"{dataset.path}: no request lies in the window {window!r}; check [windows] in dataset.toml.")
    ticks = timeline.tick(time[inside])
    parts: list[Arrays] = []
    places = []
    for tick in np.unique(ticks):
        place = np.flatnonzero(ticks == tick)
        rows = inside[place]
        state = builder.at(int(tick))
        of_row = requests.iloc[of_request[rows]]
        price = candidates["price"].to_numpy(np.float32)[rows] if "price" in candidates else None
        users, items = pd.Index(of_row["user_id"]), pd.Index(candidates["item_id"].iloc[rows])
        parts.append(score_rows(run, state, users, items, of_row.reset_index(drop=True), price))
        places.append(place)
        progress("candidates scored", sum(map(len, places)), len(inside))
    back = np.argsort(np.concatenate(places), kind="stable")
    return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
