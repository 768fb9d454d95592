"""The log as a replay sees it: requests, all their candidates, the score parts, and what happened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ranking.errors import UserError
from ranking.replay import reading
from ranking.replay.propensity import log_propensities

if TYPE_CHECKING:
    from ranking.data.tables import Dataset

__all__ = ["METHODS", "Examination", "ReplayLog"]

METHODS = ("stated", "estimated", "harvested")
_PER_REQUEST = ("request_id", "timestamp", "user", "mature", "segment", "temperature", "epsilon")
_ROW_COLUMNS = ("item", "position", "click", "conversion", "value", "new")
_OPTIONAL_ROW_COLUMNS = ("exposure_propensity", "position_propensity", "logged_score", "category", "pool")
# Chosen by the reader, or estimated: readings of one log that differ in these have one hash.
_NOT_LOGGED = ("segment", "segment_column", "category", "category_column", "category_names", "new", "counts", "places")
_OF_EXAMINATION = ("examination", "examination_covariance", "examination_method", "exposure_propensity")


@dataclass(frozen=True)
class Examination:
    """P(the user looks at a place), against the first place.

    Args:
        theta: float64 `[K]`. The first is 1.
        covariance: float64 `[K, K]` or None. Of the estimate; None where theta is taken as stated.
        method: str. `"stated"`, `"estimated"` (from exact propensities) or `"harvested"`.
        clicks: int. Clicks that told about the places. Defaults to `0`.
    """

    theta: np.ndarray
    covariance: np.ndarray | None
    method: str
    clicks: int = 0

    def __post_init__(self) -> None:
        theta = np.asarray(self.theta, np.float64)
        if theta.ndim != 1 or not theta.size or not np.isfinite(theta).all() or theta.min() <= 0 or theta[0] != 1:
            raise UserError(f"`theta` should be positive numbers, the first 1. Received: theta={theta.tolist()}.")
        if self.method not in METHODS:
            raise UserError(f"`method` should be one of {list(METHODS)}. Received: method={self.method!r}.")
        if self.covariance is not None and np.shape(self.covariance) != (theta.size, theta.size):
            shape = np.shape(self.covariance)
            raise ValueError(f"`covariance` should be {theta.size} x {theta.size}. Received: {shape}.")


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
        examination: float64 `[K]` or None. P(the user looks at position k).
        exploration: tuple of str. The kinds of exploration that occur.
        window: tuple of int. Start and end, half-open.
        counts: dict of str to int. What was masked or found odd on the way in.
        segment: object `[R]` or None. The segment of each request.
        segment_column: str. Where it was read from.
        category: int32 `[n]` or None. An index of `category_names`, -1 where the item has none.
        category_column: str. Where it was read from.
        category_names: list of str.
        item_id: Index. The id of each item index.
        user_id: Index. The id of each user index.
        temperature: float64 `[R]` or None. Of a Plackett-Luce policy; NaN where the request had another.
        epsilon: float64 `[R]` or None. Chance of a uniform order (0: sorted by score, 1: uniform); NaN where the
            request had a Plackett-Luce policy, or where nobody knows.
        pool: int64 `[n]` or None. Where a request's places were filled by several draws, as reserved places are: the
            candidates of a pool were drawn for the places that the pool is shown at.
        places: float32 `[shown, K]` or None. P(this row at place k) for the rows of
            `np.flatnonzero(position >= 0)`, where score and policy tell it.
        examination_covariance: float64 `[K, K]` or None. Of an estimated examination.
        examination_method: str. `"stated"`, `"estimated"` or `"harvested"`.
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
    segment: np.ndarray | None = None
    segment_column: str = ""
    category: np.ndarray | None = None
    category_column: str = ""
    category_names: list[str] = field(default_factory=list)
    item_id: pd.Index = field(default_factory=lambda: pd.RangeIndex(0))
    user_id: pd.Index = field(default_factory=lambda: pd.RangeIndex(0))
    temperature: np.ndarray | None = None
    epsilon: np.ndarray | None = None
    pool: np.ndarray | None = None
    places: np.ndarray | None = None
    examination_covariance: np.ndarray | None = None
    examination_method: str = "stated"

    def __post_init__(self) -> None:
        requests, rows = len(self.offsets) - 1, int(self.offsets[-1])
        if requests < 1:
            raise UserError(f"The window {self.window} should hold at least one request. Received: 0.")
        for name in _PER_REQUEST:
            self._check_length(name, getattr(self, name), requests)
        for name in (*_ROW_COLUMNS, *_OPTIONAL_ROW_COLUMNS):
            self._check_length(name, getattr(self, name), rows)
        for name, column in self.parts.items():
            self._check_length(name, column, rows)
        if not self.parts:
            raise UserError("A replay needs at least one of the score parts similarity, pctr, pcvr, price in the log.")
        if np.any(self.conversion > self.click):
            raise UserError("`conversion` should be 1 only where `click` is 1 in a replay log.")
        if self.category is not None and self.category.max(initial=-1) >= len(self.category_names):
            most = len(self.category_names) - 1
            raise ValueError(f"`category` should be in -1 .. {most}. Received: {self.category.max()}.")
        for name in ("item", "user"):
            codes = getattr(self, name)
            if len(getattr(self, f"{name}_id")) == 0 and len(codes):
                object.__setattr__(self, f"{name}_id", pd.RangeIndex(int(codes.max()) + 1))
            elif codes.max(initial=-1) >= len(getattr(self, f"{name}_id")):
                size = len(getattr(self, f"{name}_id"))
                raise ValueError(f"`{name}` should be an index of `{name}_id`, below {size}. Received: {codes.max()}.")
        self._check_examination()

    @staticmethod
    def _check_length(name: str, column: np.ndarray | None, wanted: int) -> None:
        if column is not None and len(column) != wanted:
            raise ValueError(f"`{name}` should have {wanted} rows. Received: {len(column)}.")

    def _check_examination(self) -> None:
        if self.places is not None:
            self._check_length("places", self.places, int((self.position >= 0).sum()))
            if self.places.ndim != 2 or self.places.shape[1] <= self.position.max():
                columns = int(self.position.max()) + 1
                raise ValueError(f"`places` should have at least {columns} columns. Received: {self.places.shape}.")
        if self.examination_method not in METHODS:
            raise ValueError(f"`examination_method` should be one of {METHODS}. Received: {self.examination_method!r}.")
        if self.examination_covariance is not None:
            size = 0 if self.examination is None else len(self.examination)
            if self.examination_covariance.shape != (size, size):
                shape = self.examination_covariance.shape
                raise ValueError(f"`examination_covariance` should be {size} x {size}. Received: {shape}.")

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

    @cached_property
    def hash(self) -> str:
        """sha256 of what was logged, in hexadecimal: not of the examination, segments and categories read into it."""
        digest = hashlib.sha256()
        for name in sorted(column.name for column in fields(self)):
            if name not in (*_NOT_LOGGED, *_OF_EXAMINATION) and not (name == "pool" and self.pool is None):
                digest.update(name.encode())
                _update(digest, getattr(self, name))
        return digest.hexdigest()

    @property
    def draw_of_row(self) -> np.ndarray:
        """Index of the draw that each candidate took part in, int64 `[n]`: of the request, where it had one draw."""
        if self.pool is None:
            return self.request_of_row
        return np.unique(np.stack([self.request_of_row, self.pool]), axis=1, return_inverse=True)[1]

    def take(self, requests: np.ndarray) -> ReplayLog:
        """Some of the requests; the window stays.

        Args:
            requests: int array (in the order wanted) or bool array `[R]`.
        """
        chosen = np.arange(self.requests)[np.asarray(requests)]
        size = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][chosen] - offsets[:-1], size)
        changes: dict[str, Any] = {"offsets": offsets}
        for name in _PER_REQUEST:
            column = getattr(self, name)
            changes[name] = None if column is None else column[chosen]
        for name in (*_ROW_COLUMNS, *_OPTIONAL_ROW_COLUMNS):
            column = getattr(self, name)
            changes[name] = None if column is None else column[rows]
        changes["parts"] = {name: column[rows] for name, column in self.parts.items()}
        if self.places is not None:
            shown = self.position >= 0
            changes["places"] = self.places[(np.cumsum(shown) - 1)[rows[shown[rows]]]]
        changes["counts"] = {"immature_requests": int((~changes["mature"]).sum())}
        return replace(self, **changes)

    def with_theta(self, theta: np.ndarray) -> ReplayLog:
        """The log under another examination, cheaply: for derivatives by finite differences.

        The exposure of shown rows is exact, `places @ theta`. Those of the other rows of a request are scaled by one
        factor so that all of them still add up to the examination of its places.

        Raises:
            UserError: the log has no `places`.
        """
        theta = np.asarray(theta, np.float64)
        if self.places is None or self.exposure_propensity is None:
            raise UserError(
                "Another examination needs the score as served and the policy (exploration, temperature or epsilon) of "
                "each request: without them exposure propensities cannot be made again."
            )
        if len(theta) != self.places.shape[1]:
            raise ValueError(f"`theta` should have {self.places.shape[1]} places. Received: {len(theta)}.")
        shown = self.position >= 0
        exposure = self.exposure_propensity.copy()
        exposure[shown] = self.places @ theta
        request = self.request_of_row
        total = np.concatenate([[0.0], np.cumsum(theta)])[self.slots]
        left = total - np.bincount(request[shown], weights=exposure[shown], minlength=self.requests)
        hidden = np.bincount(request[~shown], weights=exposure[~shown], minlength=self.requests)
        factor = np.divide(np.maximum(left, 0), hidden, out=np.ones(self.requests), where=hidden > 0)
        exposure[~shown] *= factor[request[~shown]]
        return replace(self, examination=theta, exposure_propensity=exposure, examination_covariance=None)

    def with_examination(self, examination: Examination) -> ReplayLog:
        """The log under an examination of its own: theta, its covariance, and exposure propensities made with it.

        A log without exposure propensities gets the theta only.

        Raises:
            UserError: a place of the log has no theta, or exposure propensities cannot be made again.
        """
        needed = int(self.position.max()) + 1
        theta, covariance = np.asarray(examination.theta, np.float64), examination.covariance
        if len(theta) < needed:
            raise UserError(
                f"`examination` should have each of the {needed} places of the log. Received: {len(theta)}."
            )
        found = self
        if self.places is not None:
            size = min(len(theta), self.places.shape[1])  # places that no request filled may be missing in either
            theta, covariance = theta[:size], None if covariance is None else np.asarray(covariance)[:size, :size]
            found = replace(self, places=self.places[:, :size], examination=theta, examination_covariance=None)
        if self.exposure_propensity is not None:
            found = found.with_theta(theta)
            if self.logged_score is not None and self.temperature is not None:
                slots = np.maximum.reduceat(self.position, self.offsets[:-1]) + 1
                log = (self.logged_score, self.offsets, self.position, theta)
                policy: dict[str, Any] = {"temperature": self.temperature, "epsilon": self.epsilon, "pool": self.pool}
                exposure = log_propensities(*log, **policy, slots=slots)[1]
                found = replace(found, exposure_propensity=exposure)
        return replace(
            found, examination=theta, examination_covariance=covariance, examination_method=examination.method
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        window: str | tuple[int, int],
        parts: dict[str, np.ndarray] | None = None,
        *,
        segment: str | None = None,
        category: str | None = None,
    ) -> ReplayLog:
        """Reads one window of a dataset.

        Without a `candidates` table the slates are the shown impressions alone: such a log can only be re-ordered.

        Args:
            dataset: Dataset. With `impressions`, best with `candidates` and `requests`.
            window: str or tuple of int. Name of a window of the dataset, or half-open bounds in ms.
            parts: dict of str to array. Score parts of another model, one row for each candidate (or impression) of
                the window, in the table's order. Defaults to the parts in the `candidates` table.
            segment: str. A categorical column of `requests`, else of `users`. Defaults to none.
            category: str. A categorical column of `items`; of a multi column, the first value. Defaults to none.

        Returns:
            A `ReplayLog`, requests in time order.

        Raises:
            UserError: an unknown window, no request in it, no score parts, or labels that do not join.
        """
        start, end = reading.window_bounds(dataset, window)
        has_candidates = dataset.has("candidates")
        requests, rows, request, order = reading.rows_of(dataset, start, end)
        labels, unmatched = reading.labels_of(dataset, rows)
        timestamp = requests["timestamp"].to_numpy(np.int64)
        mature = reading.mature_requests(dataset, timestamp)
        kinds = requests["exploration"].astype(str).unique() if "exploration" in requests else ["none"]
        user, user_id = pd.factorize(requests["user_id"])
        item, item_id = pd.factorize(rows["item_id"])
        offsets = np.concatenate([[0], np.cumsum(np.bincount(request))]).astype(np.int64)
        position = reading.position_of(rows, request, has_candidates)
        policy = reading.policy_of(requests)
        pool = reading.pool_of(rows) if has_candidates else None
        theta = None if dataset.schema.examination is None else np.asarray(dataset.schema.examination, np.float64)
        types = {"score": np.float32, "position_propensity": np.float64, "exposure_propensity": np.float64}
        served = {name: rows[name].to_numpy(dtype) for name, dtype in types.items() if has_candidates and name in rows}
        return cls(
            offsets=offsets,
            request_id=requests["request_id"].to_numpy(),
            timestamp=timestamp,
            user=user.astype(np.int64),
            parts=reading.score_parts(rows, parts, order),
            item=item.astype(np.int64),
            position=position,
            **labels,
            mature=mature,
            new=reading.new_rows(dataset, rows["item_id"], timestamp[request], start),
            **reading.propensities_of(served, offsets, position, policy, theta, pool),
            logged_score=served.get("score"),
            examination=theta,
            exploration=tuple(sorted(kinds)),
            window=(start, end),
            counts={"immature_requests": int((~mature).sum()), "shown_without_impression": unmatched},
            **reading.segment_of(dataset, requests, segment),
            **reading.category_of_row(dataset, item, item_id, category),
            item_id=pd.Index(item_id),
            user_id=pd.Index(user_id),
            **policy,
            pool=pool,
        )


def _update(digest: Any, value: Any) -> None:
    """Feeds one field to the digest: arrays by their bytes, ids and texts by their characters."""
    if isinstance(value, dict):
        for name in sorted(value):
            digest.update(name.encode())
            _update(digest, value[name])
        return
    if isinstance(value, pd.Index):
        value = value.to_numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    else:
        digest.update("\0".join(map(str, np.asarray(value, object).ravel())).encode())
