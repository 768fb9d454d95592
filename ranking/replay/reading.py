"""From the tables of a dataset to the columns of a replay log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ranking.data.multi import split_multi
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.replay.propensity import check_policy, log_propensities, place_propensities

__all__ = [
    "LONG_TAIL_SHARE",
    "NEW_DAYS",
    "PARTS",
    "category_of_row",
    "labels_of",
    "mature_requests",
    "new_rows",
    "pool_of",
    "policy_of",
    "position_of",
    "propensities_of",
    "requests_of",
    "rows_of",
    "score_parts",
    "segment_of",
    "window_bounds",
]

PARTS = ("similarity", "pctr", "pcvr", "price")
NEW_DAYS = 7  # an item is new for so long after its birth
LONG_TAIL_SHARE = 0.8  # the most shown items that hold this share of the impressions are the head; others the long tail
_DAY_MS = 86_400_000
_MAX_UNMATCHED = 0.1
_UNKNOWN = "(unknown)"  # the segment of a request that has none


def window_bounds(dataset: Dataset, window: str | tuple[int, int]) -> tuple[int, int]:
    """Start and end of a window, half-open."""
    if isinstance(window, str):
        if window not in dataset.schema.windows:
            raise UserError(
                f"`window` should be one of {sorted(dataset.schema.windows)} of dataset.toml. Received: {window!r}."
            )
        window = dataset.schema.windows[window]
    return int(window[0]), int(window[1])


def requests_of(dataset: Dataset, start: int, end: int) -> pd.DataFrame:
    """One row a request of the window, in time order: request_id, timestamp, user_id, and what else is known of it."""
    if dataset.has("requests"):
        requests = dataset.requests
    else:
        requests = dataset.impressions[["request_id", "timestamp", "user_id"]].drop_duplicates("request_id")
    requests = requests[(requests["timestamp"] >= start) & (requests["timestamp"] < end)]
    if requests["request_id"].duplicated().any():
        raise UserError("requests: `request_id` should be unique.")
    return requests.sort_values("timestamp", kind="stable")


def rows_of(dataset: Dataset, start: int, end: int) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray, np.ndarray]:
    """The requests of a window that have rows, their candidates (else impressions) request after request.

    Returns:
        The requests; the rows; int64 `[n]`, the request of each row; int64 `[n]`, the place of each row among those of
        the window in the table's order.
    """
    requests = requests_of(dataset, start, end)
    table = "candidates" if dataset.has("candidates") else "impressions"
    rows = dataset.table(table)
    request = pd.Index(requests["request_id"]).get_indexer(rows["request_id"])
    inside = np.flatnonzero(request >= 0)
    if len(inside) == 0:
        raise UserError(f"{table}: no row falls in the window ({start} to {end}).")
    order = np.argsort(request[inside], kind="stable")
    kept, dense = np.unique(request[inside[order]], return_inverse=True)
    return requests.iloc[kept], rows.iloc[inside[order]], dense, order


def position_of(rows: pd.DataFrame, request: np.ndarray, has_candidates: bool) -> np.ndarray:
    """The place of each row, -1 where not shown; of impressions without one, their order in the table."""
    if has_candidates:
        if "position" not in rows:
            raise UserError("candidates: the column `position` is missing, a replay needs it.")
        place = rows["position"].fillna(-1).to_numpy(np.int32)
        shown = place >= 0
        taken, first = np.unique(request[shown] * (place.max(initial=0) + 1) + place[shown], return_index=True)
        if len(taken) < shown.sum():
            row = np.flatnonzero(shown)[np.setdiff1d(np.arange(shown.sum()), first)[0]]
            name = rows["request_id"].iloc[row]
            raise UserError(
                f"candidates: `position` should be unique in a request. Received: {place[row]} twice in request "
                f"{name}, and {shown.sum() - len(taken)} such rows in all."
            )
        return place
    if "position" in rows and rows["position"].notna().all() and (rows["position"] >= 0).all():
        return rows["position"].to_numpy(np.int32)
    first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
    return (np.arange(len(request)) - np.repeat(first, np.diff(np.r_[first, len(request)]))).astype(np.int32)


def pool_of(rows: pd.DataFrame) -> np.ndarray | None:
    """Which draw each candidate took part in, int64 `[n]`; None where all of the table took part in one."""
    pool = rows["pool"].to_numpy(np.int64) if "pool" in rows else np.zeros(1, np.int64)
    return pool if (pool != pool[0]).any() else None


def labels_of(dataset: Dataset, rows: pd.DataFrame) -> tuple[dict[str, Any], int]:
    """Labels aligned with `rows`, and the number of shown rows that have no impression."""
    impressions, unmatched = rows, 0
    if dataset.has("candidates"):
        keys = ["request_id", "item_id"]
        if dataset.impressions.duplicated(keys).any():
            raise UserError("impressions: (request_id, item_id) should be unique to join with candidates.")
        wanted = [*keys, *(name for name in ("click", "conversion", "value") if name in dataset.impressions)]
        impressions = rows[keys].merge(dataset.impressions[wanted], on=keys, how="left", validate="many_to_one")
        shown = rows["position"].to_numpy() >= 0
        unmatched = int((shown & impressions["click"].isna().to_numpy()).sum())
        if unmatched > _MAX_UNMATCHED * shown.sum():
            raise UserError(
                f"candidates: {unmatched} of {shown.sum()} shown rows have no impression with the same (request_id, "
                "item_id); at most one in ten may be without."
            )
    click = impressions["click"].fillna(0).to_numpy(np.int8)
    conversion = np.zeros_like(click)
    if "conversion" in impressions:
        conversion = impressions["conversion"].fillna(0).to_numpy(np.int8)
    value = np.zeros(len(click), np.float32)
    if "value" in impressions:
        value = np.where(conversion == 1, impressions["value"].fillna(0).to_numpy(np.float32), 0).astype(np.float32)
    return {"click": click, "conversion": conversion, "value": value}, unmatched


def mature_requests(dataset: Dataset, timestamp: np.ndarray) -> np.ndarray:
    """Whether the attribution window of conversions was over when the log was last observed."""
    attribution = max(dataset.schema.attribution_ms.values(), default=0)
    if dataset.schema.time == "ordinal" or not attribution:
        return np.ones(len(timestamp), bool)
    return timestamp + attribution <= dataset.observed_until


def score_parts(rows: pd.DataFrame, parts: dict[str, np.ndarray] | None, order: np.ndarray) -> dict[str, np.ndarray]:
    """The score parts of the rows: those given, brought into their order, or those of the table."""
    if parts is None:
        given = {name: rows[name].to_numpy(np.float32) for name in (*PARTS, "has_similarity") if name in rows}
        if not given:
            raise UserError(
                "The dataset has no candidates table with similarity, pctr, pcvr or price: pass `parts`, the score "
                "parts of a trained model for the rows of this window."
            )
    else:
        unknown = set(parts) - {*PARTS, "has_similarity"}
        if unknown:
            raise UserError(f"`parts` should be among {[*PARTS, 'has_similarity']}. Received: {sorted(unknown)}.")
        for name, column in parts.items():
            if len(column) != len(order):
                raise UserError(f"`parts[{name!r}]` should have {len(order)} rows. Received: {len(column)}.")
        given = {name: np.asarray(column, np.float32)[order] for name, column in parts.items()}
    if "similarity" in given:
        known = given.pop("has_similarity", np.ones(len(order), np.float32)) > 0
        known &= np.isfinite(given["similarity"])
        given["similarity"] = np.where(known, given["similarity"], 0).astype(np.float32)
        given["has_similarity"] = known.astype(np.float32)
    if "price" in given and np.isnan(given["price"]).all():
        del given["price"]
    return given


def new_rows(dataset: Dataset, item: pd.Series, timestamp: np.ndarray, start: int) -> np.ndarray:
    """Born in the last `NEW_DAYS` days, or not among the items that hold most of the impressions so far."""
    past = dataset.impressions
    earlier = past["timestamp"] < start
    counts = (past[earlier] if earlier.any() else past)["item_id"].value_counts(sort=True, ascending=False)
    before = (counts.cumsum() - counts) / max(counts.sum(), 1)  # share held by the items shown more
    new = ~item.isin(counts.index[before < LONG_TAIL_SHARE]).to_numpy()
    if dataset.schema.time != "ordinal" and dataset.has("items") and "born" in dataset.items:
        born = item.map(dataset.items.set_index("item_id")["born"]).to_numpy(np.float64)
        age = timestamp - born
        new |= (born >= 0) & (age >= 0) & (age < NEW_DAYS * _DAY_MS)
    return new


def segment_of(dataset: Dataset, requests: pd.DataFrame, column: str | None) -> dict[str, Any]:
    """The fields `segment` and `segment_column` of a log, from a column of requests, else of users."""
    if column is None:
        return {}
    if column in requests:
        found = requests[column]
    elif dataset.has("users") and column in dataset.users:
        found = requests["user_id"].map(dataset.users.set_index("user_id")[column])
    else:
        raise UserError(f"`segment` should be a column of requests or users. Received: segment={column!r}.")
    declared = {feature.name: feature.kind for feature in dataset.schema.features if feature.side != "item"}
    if declared.get(column, "categorical") != "categorical" or pd.api.types.is_float_dtype(found):
        raise UserError(f"`segment` should be a column of categories. Received: segment={column!r}.")
    return {"segment": found.astype(object).where(found.notna(), _UNKNOWN).to_numpy(), "segment_column": column}


def category_of_row(dataset: Dataset, item: np.ndarray, item_id: pd.Index, column: str | None) -> dict[str, Any]:
    """The fields `category`, `category_column`, `category_names` of a log: the first value of a column of items."""
    if column is None:
        return {}
    declared = {feature.name: feature for feature in dataset.schema.side("item") if feature.kind != "numeric"}
    if column not in declared or not dataset.has("items"):
        raise UserError(
            f"`category` should be one of the categories of items, {sorted(declared)}. Received: {column!r}."
        )
    feature = declared[column]
    text = dataset.items[column].astype(object)
    if feature.kind == "multi":
        row, value, _ = split_multi(text, feature)
        first = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])[: len(row)]
        text = pd.Series(value.to_numpy(object)[first], index=row[first]).reindex(range(len(text)))
        text = text.where(text != "", None)
    codes, names = pd.factorize(pd.Series(text.to_numpy(), index=dataset.items["item_id"]).reindex(item_id), sort=True)
    return {
        "category": codes.astype(np.int32)[item],
        "category_column": column,
        "category_names": [str(name) for name in names],
    }


def policy_of(requests: pd.DataFrame) -> dict[str, Any]:
    """The fields `temperature` and `epsilon` of a log: one of them a request, or NaN twice where none is told."""
    if "exploration" not in requests:
        return {}
    kind = requests["exploration"].astype(object).to_numpy()
    given = {
        name: requests[name].to_numpy(np.float64) if name in requests else np.full(len(requests), np.nan)
        for name in ("temperature", "epsilon")
    }
    temperature = np.where(kind == "plackett_luce", given["temperature"], np.nan)
    epsilon = np.select([kind == "epsilon", kind == "none", kind == "uniform"], [given["epsilon"], 0.0, 1.0], np.nan)
    for name, column, broken in (
        ("temperature", temperature, (temperature <= 0) | np.isinf(temperature)),
        ("epsilon", epsilon, (epsilon < 0) | (epsilon > 1)),
    ):
        if broken.any():
            rule = "positive" if name == "temperature" else "in [0, 1]"
            raise UserError(f"requests: `{name}` should be {rule}. Received: {column[broken][0]}.")
    return {"temperature": temperature, "epsilon": epsilon}


def propensities_of(
    columns: dict[str, np.ndarray],
    offsets: np.ndarray,
    position: np.ndarray,
    policy: dict[str, Any],
    theta: np.ndarray | None,
    pool: np.ndarray | None = None,
) -> dict[str, Any]:
    """The fields `places`, `position_propensity` and `exposure_propensity` of a log.

    Propensities that the table has are checked where scores and policies are known, those that it lacks are made.
    Requests that did not explore are not checked: what a filter took from a sorted order is no error of a propensity.

    Args:
        columns: dict. Of `position_propensity`, `exposure_propensity` and `score` those that the table has, `[n]`.
        offsets: int64 `[R + 1]`.
        position: int32 `[n]`.
        policy: dict. From `policy_of`.
        theta: float64 `[K]` or None. The examination.
        pool: int64 `[n]` or None. See `log_propensities`.
    """
    found: dict[str, Any] = {name: column for name, column in columns.items() if name != "score"}
    shown = position >= 0
    known = policy and not (np.isnan(policy["temperature"]) & np.isnan(policy["epsilon"])).any()
    if not known or not shown.any() or "score" not in columns or not np.isfinite(columns["score"]).all():
        return found
    log = (columns["score"], offsets, position)
    count = max(int(position.max()) + 1, 0 if theta is None else len(theta))
    places = place_propensities(*log, count, **policy, pool=pool)
    explored = np.repeat(policy["epsilon"] != 0, np.diff(offsets))[shown]
    stated = {name: column[shown][explored] for name, column in found.items()}
    check_policy(places[explored], position[shown][explored], theta, stated)
    if "exposure_propensity" not in found and theta is not None and len(theta) == count:
        slots = np.maximum.reduceat(position, offsets[:-1]) + 1
        found["exposure_propensity"] = log_propensities(*log, theta, **policy, slots=slots, pool=pool)[1]
    if "position_propensity" not in found:
        own = np.full(len(position), np.nan)
        own[shown] = places[np.arange(len(places)), position[shown]]
        found["position_propensity"] = own
    return {**found, "places": places}
