"""The log as a replay sees it: requests, all their candidates, the score parts, and what happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ranking.errors import UserError

if TYPE_CHECKING:
    from ranking.data.tables import Dataset

__all__ = ["LONG_TAIL_SHARE", "NEW_DAYS", "ReplayLog"]

PARTS = ("similarity", "pctr", "pcvr", "price")
NEW_DAYS = 7  # an item is new for so long after its birth
LONG_TAIL_SHARE = 0.8  # the most shown items that hold this share of the impressions are the head; others the long tail
_DAY_MS = 86_400_000
_MAX_UNMATCHED = 0.1


@dataclass(frozen=True)
class ReplayLog:
    """Requests of one window and their candidates: those of request `r` are rows `offsets[r]:offsets[r + 1]`.

    Args:
        offsets: int64 `[R + 1]`.
        request_id: object or int64 `[R]`.
        timestamp: int64 `[R]`, ms since epoch (or an order, where the dataset is ordinal).
        user: int64 `[R]`, an index of the user: intervals resample users.
        parts: dict of str to float32 `[n]`. `similarity` (with `has_similarity`), `pctr`, `pcvr`, `price`.
        item: int64 `[n]`, an index of the item.
        position: int32 `[n]`, 0-based place shown at, -1 where not shown.
        click: int8 `[n]`, 0 where not shown.
        conversion: int8 `[n]`, 0 where not shown.
        value: float32 `[n]`, 0 where not converted.
        mature: bool `[R]`. Whether the attribution window of conversions was over when the log was read.
        new: bool `[n]`. Whether the item is new or of the long tail, at the time of the request.
        exposure_propensity: float64 `[n]` or None. Expected examination under the logging policy.
        position_propensity: float64 `[n]` or None. P(this item at this position), NaN where not shown.
        logged_score: float32 `[n]` or None. The score as served.
        examination: float64 `[slots]` or None. P(the user looks at position k), as stated by the log.
        exploration: tuple of str. The kinds of exploration that occur.
        window: tuple of int. Start and end, half-open.
        counts: dict of str to int. What was masked or found odd on the way in.
    """

    offsets: np.ndarray
    request_id: np.ndarray
    timestamp: np.ndarray
    user: np.ndarray
    parts: dict[str, np.ndarray]
    item: np.ndarray
    position: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    value: np.ndarray
    mature: np.ndarray
    new: np.ndarray
    exposure_propensity: np.ndarray | None = None
    position_propensity: np.ndarray | None = None
    logged_score: np.ndarray | None = None
    examination: np.ndarray | None = None
    exploration: tuple[str, ...] = ("none",)
    window: tuple[int, int] = (0, 0)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        requests, rows = len(self.offsets) - 1, int(self.offsets[-1])
        if requests < 1:
            raise UserError(f"The window {self.window} should hold at least one request. Received: 0.")
        for name in ("request_id", "timestamp", "user", "mature"):
            if len(getattr(self, name)) != requests:
                raise ValueError(f"`{name}` should have {requests} rows. Received: {len(getattr(self, name))}.")
        per_row = {name: getattr(self, name) for name in ("item", "position", "click", "conversion", "value", "new")}
        for name, column in {**per_row, **self.parts}.items():
            if len(column) != rows:
                raise ValueError(f"`{name}` should have {rows} rows. Received: {len(column)}.")
        if not self.parts:
            raise UserError("A replay needs at least one of the score parts similarity, pctr, pcvr, price in the log.")
        if np.any(self.conversion > self.click):
            raise UserError("`conversion` should be 1 only where `click` is 1 in a replay log.")

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.offsets) - 1

    @property
    def request_of_row(self) -> np.ndarray:
        """Index of its request for each candidate, int64 `[n]`."""
        return np.repeat(np.arange(self.requests), np.diff(self.offsets))

    @property
    def slots(self) -> np.ndarray:
        """How many candidates each request showed, int64 `[R]`."""
        return np.bincount(self.request_of_row[self.position >= 0], minlength=self.requests)

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, window: str | tuple[int, int], parts: dict[str, np.ndarray] | None = None
    ) -> ReplayLog:
        """Reads one window of a dataset.

        Without a `candidates` table the slates are the shown impressions alone: such a log can only be re-ordered.

        Args:
            dataset: Dataset. With `impressions`, best with `candidates` and `requests`.
            window: str or tuple of int. Name of a window of the dataset, or half-open bounds in ms.
            parts: dict of str to array. Score parts of another model, one row for each candidate (or impression) of
                the window, in the table's order. Defaults to the parts in the `candidates` table.

        Returns:
            A `ReplayLog`, requests in time order.

        Raises:
            UserError: an unknown window, no request in it, no score parts, or labels that do not join.
        """
        start, end = _bounds(dataset, window)
        requests = _requests(dataset, start, end)
        has_candidates = dataset.has("candidates")
        rows = dataset.candidates if has_candidates else dataset.impressions
        request = pd.Index(requests["request_id"]).get_indexer(rows["request_id"])
        inside = np.flatnonzero(request >= 0)
        if len(inside) == 0:
            table = "candidates" if has_candidates else "impressions"
            raise UserError(f"{table}: no row falls in the window {window!r} ({start} to {end}).")
        order = np.argsort(request[inside], kind="stable")
        rows, request = rows.iloc[inside[order]], request[inside[order]]
        kept, request = np.unique(request, return_inverse=True)
        requests = requests.iloc[kept]
        labels, unmatched = _labels(dataset, rows)
        position = _column(rows, "position", -1).astype(np.int32) if has_candidates else _order_in_slate(rows, request)
        timestamp = requests["timestamp"].to_numpy(np.int64)
        mature = _mature(dataset, timestamp)
        kinds = requests["exploration"].astype(str).unique() if "exploration" in requests else ["none"]
        examination = dataset.schema.examination

        def optional(name: str, dtype: type) -> np.ndarray | None:
            return rows[name].to_numpy(dtype) if has_candidates and name in rows else None

        return cls(
            offsets=np.concatenate([[0], np.cumsum(np.bincount(request, minlength=len(kept)))]).astype(np.int64),
            request_id=requests["request_id"].to_numpy(),
            timestamp=timestamp,
            user=pd.factorize(requests["user_id"])[0].astype(np.int64),
            parts=_parts(rows, parts, order),
            item=pd.factorize(rows["item_id"])[0].astype(np.int64),
            position=position,
            **labels,
            mature=mature,
            new=_new(dataset, rows["item_id"], timestamp[request], start),
            exposure_propensity=optional("exposure_propensity", np.float64),
            position_propensity=optional("position_propensity", np.float64),
            logged_score=optional("score", np.float32),
            examination=None if examination is None else np.asarray(examination, np.float64),
            exploration=tuple(sorted(kinds)),
            window=(start, end),
            counts={"immature_requests": int((~mature).sum()), "shown_without_impression": unmatched},
        )


def _bounds(dataset: Dataset, window: str | tuple[int, int]) -> tuple[int, int]:
    if isinstance(window, str):
        if window not in dataset.schema.windows:
            raise UserError(
                f"`window` should be one of {sorted(dataset.schema.windows)} of dataset.toml. Received: {window!r}."
            )
        window = dataset.schema.windows[window]
    return int(window[0]), int(window[1])


def _requests(dataset: Dataset, start: int, end: int) -> pd.DataFrame:
    """One row a request of the window, in time order: request_id, timestamp, user_id, exploration."""
    if dataset.has("requests"):
        requests = dataset.requests
    else:
        requests = dataset.impressions[["request_id", "timestamp", "user_id"]].drop_duplicates("request_id")
    requests = requests[(requests["timestamp"] >= start) & (requests["timestamp"] < end)]
    if requests["request_id"].duplicated().any():
        raise UserError("requests: `request_id` should be unique.")
    return requests.sort_values("timestamp", kind="stable")


def _column(rows: pd.DataFrame, name: str, missing: float) -> np.ndarray:
    if name not in rows:
        raise UserError(f"candidates: the column `{name}` is missing, a replay needs it.")
    return rows[name].fillna(missing).to_numpy()


def _order_in_slate(rows: pd.DataFrame, request: np.ndarray) -> np.ndarray:
    """Positions of shown impressions: as logged where logged, else the order of the table."""
    if "position" in rows and rows["position"].notna().all() and (rows["position"] >= 0).all():
        return rows["position"].to_numpy(np.int32)
    first = np.flatnonzero(np.r_[True, request[1:] != request[:-1]])
    return (np.arange(len(request)) - np.repeat(first, np.diff(np.r_[first, len(request)]))).astype(np.int32)


def _labels(dataset: Dataset, rows: pd.DataFrame) -> tuple[dict[str, np.ndarray], int]:
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


def _mature(dataset: Dataset, timestamp: np.ndarray) -> np.ndarray:
    """Whether the attribution window of conversions was over when the log was last observed."""
    attribution = max(dataset.schema.attribution_ms.values(), default=0)
    if dataset.schema.time == "ordinal" or not attribution:
        return np.ones(len(timestamp), bool)
    return timestamp + attribution <= dataset.observed_until


def _parts(rows: pd.DataFrame, parts: dict[str, np.ndarray] | None, order: np.ndarray) -> dict[str, np.ndarray]:
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


def _new(dataset: Dataset, item: pd.Series, timestamp: np.ndarray, start: int) -> np.ndarray:
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
