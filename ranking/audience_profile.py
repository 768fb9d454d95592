"""Who seeds and audiences are: attribute values that are more frequent among them than in the population.

A segment is the users with one value of one attribute, or those near one centroid. A count of a segment below `FLOOR`
is never told, nor is its share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ranking.data.multi import split_multi
from ranking.data.schema import Feature

__all__ = ["FLOOR", "Segments", "centroid_profile", "floored", "list_profile", "over_indexing"]

FLOOR = 20  # users of a segment, at least
BINS = 5  # of a numeric attribute, by quantiles of the population
MOST = 50  # over-indexing values that are told of a list
TRAITS = 3  # and of a centroid
NORMAL_95 = 1.96


def floored(count: int) -> int | None:
    """A count, or `None` where it is below the floor."""
    return int(count) if count >= FLOOR else None


@dataclass(frozen=True)
class _Codes:
    """The values of one attribute in a frame: user `user[i]` has value number `code[i]`."""

    user: NDArray[np.int64]
    code: NDArray[np.int64]
    known: NDArray[np.bool_]  # [n], who has a value at all


class Segments:
    """The segments of a population that reach the floor, and how large a share of it they are.

    Shares are of the users whose attribute is known: where seeds are better documented than others, every value would
    seem to over-index.

    Args:
        sample: pandas.DataFrame `[s]`. Raw attributes of the population, or of a uniform sample of it.
        features: name -> `Feature`.
    """

    def __init__(self, sample: pd.DataFrame, features: Mapping[str, Feature]):
        self._features = list(features.values())
        self._values: list[pd.Index] = []  # of each feature; a numeric one has the edges between its bins
        self.names: list[tuple[str, str]] = []  # (feature, value) of each segment
        self._starts: list[int] = []
        for feature in self._features:
            column = sample[feature.name]
            values = _edges(column) if feature.kind == "numeric" else pd.Index(_exploded(column, feature)[1].unique())
            self._values.append(values)
            self._starts.append(len(self.names))
            names = _bins(values) if feature.kind == "numeric" else [str(value) for value in values]
            self.names += [(feature.name, name) for name in names]
        self._feature_of = np.repeat(np.arange(len(self._features)), np.diff([*self._starts, len(self.names)]))
        self.population = self.counts(sample)[0]  # int64 [segments]
        self.shares = self.shares_of(sample)  # float64 [segments]

    def counts(
        self, frame: pd.DataFrame, group: NDArray[np.int64] | None = None, groups: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Users of each segment, and of those how many are known.

        Args:
            frame: pandas.DataFrame `[n]`. Raw attributes.
            group: int64 `[n]` or `None`. Counts are of each group by itself.
            groups: int. How many there are. Defaults to 1.

        Returns:
            `(counts, known)`, int64 `[segments]` both, or `[groups, segments]` with groups: `known` is the number of
            users with a value of the segment's attribute.
        """
        of = np.zeros(len(frame), np.int64) if group is None else group
        counts = np.zeros((groups, len(self.names)), np.int64)
        known = np.zeros((groups, len(self._features)), np.int64)
        for number, (feature, values, start) in enumerate(zip(self._features, self._values, self._starts, strict=True)):
            found = _codes(frame[feature.name], feature, values)
            width = len(values) + (feature.kind == "numeric")
            flat = np.bincount(of[found.user] * width + found.code, minlength=groups * width)
            counts[:, start : start + width] = flat.reshape(groups, width)
            known[:, number] = np.bincount(of[found.known], minlength=groups)
        wide = known[:, self._feature_of]
        return (counts[0], wide[0]) if group is None else (counts, wide)

    def shares_of(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """Share of each segment among those whose attribute is known, float64 `[segments]`."""
        counts, known = self.counts(frame)
        return counts / np.maximum(known, 1)


def over_indexing(
    segments: Segments, counts: NDArray[np.int64], known: NDArray[np.int64], most: int
) -> list[tuple[int, float]]:
    """Segments that are surely more frequent in a group than in the population.

        lift = share in the group / share in the population

    A segment is listed if it reaches the floor in both and the lower end of the share's 95 % interval still is above
    the share in the population.

    Args:
        segments: `Segments`.
        counts: int64 `[segments]`. Of the group.
        known: int64 `[segments]`. Of the group: users with a value of the segment's attribute.
        most: int. How many at most.

    Returns:
        `(segment, lift)`, the highest lift first.
    """
    share = counts / np.maximum(known, 1)
    error = np.sqrt(share * (1 - share) / np.maximum(known, 1))
    sure = (counts >= FLOOR) & (segments.population >= FLOOR) & (share - NORMAL_95 * error > segments.shares)
    at = np.flatnonzero(sure)
    lift = share[at] / segments.shares[at]
    order = np.lexsort((at, -lift))[:most]
    return [(int(at[place]), float(lift[place])) for place in order]


def list_profile(segments: Segments, seeds: pd.DataFrame, audience: pd.DataFrame) -> list[dict[str, Any]]:
    """What over-indexes among the seeds, and how frequent it is in the audience that they led to."""
    counts, known = segments.counts(seeds)
    reached, base = segments.counts(audience)
    rows = []
    for segment, lift in over_indexing(segments, counts, known, MOST):
        feature, value = segments.names[segment]
        audience_count = floored(reached[segment])
        rows.append(
            {
                "feature": feature,
                "value": value,
                "seeds": int(counts[segment]),
                "audience": audience_count,
                "seed_share": float(counts[segment] / known[segment]),
                "population_share": float(segments.shares[segment]),
                "audience_share": None if audience_count is None else float(audience_count / base[segment]),
                "lift": lift,
            }
        )
    return rows


def centroid_profile(
    segments: Segments, seed_counts: NDArray[np.int64], centroid: NDArray[np.int32], audience: pd.DataFrame
) -> list[dict[str, Any]]:
    """The members of an audience by their nearest centroid: how many, and what over-indexes among them.

    Args:
        segments: `Segments`.
        seed_counts: int64 `[k]`. Seeds of each centroid, 0 where there is none.
        centroid: int32 `[n]`. Nearest centroid of each member.
        audience: pandas.DataFrame `[n]`. Raw attributes of the members.
    """
    k = len(seed_counts)
    of = centroid.astype(np.int64)
    members = np.bincount(of, minlength=k)
    counts, known = segments.counts(audience, of, k)
    rows = []
    for number in np.flatnonzero(seed_counts > 0):
        size = floored(members[number])
        found = over_indexing(segments, counts[number], known[number], TRAITS) if size else []
        traits = [dict(zip(("feature", "value", "lift"), (*segments.names[s], lift), strict=True)) for s, lift in found]
        rows.append(
            {
                "centroid": int(number),
                "seeds": floored(seed_counts[number]),
                "members": size,
                "share": None if size is None else size / len(of),
                "traits": traits,
            }
        )
    return rows


def _exploded(column: pd.Series, feature: Feature) -> tuple[NDArray[np.int64], pd.Series]:
    """(place in the column, value) of every value, each once a user; missing ones left out."""
    values = column.reset_index(drop=True)
    if feature.kind == "multi":
        row, found, _ = split_multi(column, feature)
        values = found.set_axis(row)
    values = values[values.notna() & (values.astype("str") != "")]
    if feature.kind == "multi" and len(values):
        pairs = pd.DataFrame({"user": values.index, "value": values.to_numpy()}).drop_duplicates()
        return pairs["user"].to_numpy(np.int64), pairs["value"]
    return values.index.to_numpy(np.int64), values


def _codes(column: pd.Series, feature: Feature, values: pd.Index) -> _Codes:
    known = np.zeros(len(column), bool)
    if feature.kind == "numeric":
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        user = np.flatnonzero(~np.isnan(numbers))
        known[user] = True
        return _Codes(user, np.searchsorted(values.to_numpy(np.float64), numbers[user], side="right"), known)
    user, found = _exploded(column, feature)
    known[user] = True
    code = values.get_indexer(pd.Index(found))
    return _Codes(user[code >= 0], code[code >= 0], known)


def _edges(column: pd.Series) -> pd.Index:
    """Edges between the bins: quantiles of the population, each once."""
    numbers = column.to_numpy(np.float64, na_value=np.nan)
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return pd.Index([], dtype=np.float64)
    return pd.Index(np.unique(np.quantile(numbers, np.arange(1, BINS) / BINS, method="higher")))


def _bins(edges: Sequence[float] | pd.Index) -> list[str]:
    if not len(edges):
        return ["any"]
    text = [f"{edge:,.10g}" for edge in edges]
    middle = [f"{low} to below {high}" for low, high in zip(text, text[1:], strict=False)]
    return [f"below {text[0]}", *middle, f"{text[-1]} or more"]
