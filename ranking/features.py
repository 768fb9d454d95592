"""Tables to dicts of arrays: vocabularies and constants, fitted on the past of one moment."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ranking.atomic import atomic_file
from ranking.data.multi import split_multi
from ranking.data.schema import Feature
from ranking.errors import UserError
from ranking.timeline import Timeline

__all__ = ["MISSING", "OUT_OF_VOCABULARY", "Encoder", "Vocabulary"]

MISSING = 0
OUT_OF_VOCABULARY = 1
Arrays = dict[str, np.ndarray]


class Vocabulary:
    """Values by falling frequency: index 0 is missing, 1 is unknown, 2 is the most frequent value.

    Args:
        values: pandas.Index. The known values, without the two reserved ones.
    """

    def __init__(self, values: pd.Index):
        self.values = values

    @classmethod
    def fit(cls, values: pd.Series, min_count: int = 1) -> "Vocabulary":
        """Counts values; those rarer than `min_count` are left to the out-of-vocabulary row."""
        counts = values.dropna().value_counts(sort=False).sort_index()
        counts = counts[counts >= min_count].sort_values(ascending=False, kind="stable")
        return cls(counts.index)

    @property
    def size(self) -> int:
        """Rows an embedding table needs."""
        return len(self.values) + 2

    def encode(self, values: pd.Series | pd.Index) -> np.ndarray:
        """int32 array of indices."""
        found = self.values.get_indexer(pd.Index(values)).astype(np.int32)
        index = np.where(found >= 0, found + 2, OUT_OF_VOCABULARY).astype(np.int32)
        index[pd.isna(values)] = MISSING
        return index


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes users, items, context and behaviours of a dataset as arrays.

    Attributes:
        vocabularies: name -> Vocabulary: `user_id`, `item` (shared by `item_id` and behaviours over items),
            `<side>_<feature>` and `behavior_<field>`.
        ranges: numeric name -> (low, high, mean after scaling); values are clipped to [low, high] of the fitted past,
            a missing value becomes the mean.
        before: int, ms. Nothing at or after this moment was looked at.
    """

    vocabularies: dict[str, Vocabulary]
    ranges: dict[str, tuple[float, float, float]]
    before: int

    @classmethod
    def fit(cls, timeline: Timeline, *, before: int, id_min_count: int = 1, rank_by_seeds: bool = False) -> "Encoder":
        """Fits vocabularies and ranges on what had happened strictly before a moment.

        Args:
            timeline: Timeline. The dataset.
            before: int, ms since the epoch.
            id_min_count: int. User and item ids seen less often share the out-of-vocabulary row. Defaults to 1.
            rank_by_seeds: bool. Whether items are ranked by their seed events (what the log-uniform negatives of
                the look-alike stage need) instead of by all events. Defaults to `False`.
        """
        vocabularies = {"user_id": Vocabulary.fit(_impression_ids(timeline, "user", before), id_min_count)}
        vocabularies["item"] = _item_vocabulary(timeline, before, id_min_count, rank_by_seeds)
        ranges = {}
        seen = {"user": timeline.known("user", before), "item": timeline.known("item", before)}
        early = timeline.impressions[timeline.time < before]
        for feature in timeline.schema.features:
            name = f"{feature.side}_{feature.name}"
            column = early[feature.name] if feature.side == "context" else None
            if column is None:
                column = _column(timeline, feature)[seen[feature.side]]
            if feature.kind == "numeric":
                ranges[name] = _fit_range(column, feature)
            else:
                values = split_multi(column, feature)[1] if feature.kind == "multi" else column
                vocabularies[name] = Vocabulary.fit(values.replace("", pd.NA), feature.min_count)
        for field, own in timeline.behavior_values.items():
            found = timeline.behaviors[field]
            vocabularies[f"behavior_{field}"] = Vocabulary.fit(pd.Series(own[found.value[found.time < before]]))
        return cls(vocabularies, ranges, before)

    def static(self, timeline: Timeline, side: str) -> Arrays:
        """Features of every user or item, aligned with `timeline.user_ids` / `item_ids`; the last row is nobody's.

        Returns:
            Dict of arrays with `len(ids) + 1` rows: `<side>_id` and `<side>_<feature>`; beside a feature with weights
            `<side>_<feature>_weight`.
        """
        ids = timeline.user_ids if side == "user" else timeline.item_ids
        of_ids = self.vocabularies["user_id" if side == "user" else "item"]
        arrays = {f"{side}_id": np.append(of_ids.encode(ids), np.int32(OUT_OF_VOCABULARY))}
        for feature in timeline.schema.features:
            if feature.side == side:
                name = f"{side}_{feature.name}"
                for array, values in self.arrays(name, feature, _column(timeline, feature)).items():
                    nobody = np.full((1, *values.shape[1:]), MISSING, values.dtype)
                    if feature.kind == "numeric":
                        nobody[:] = self.ranges[name][2]
                    arrays[array] = np.concatenate([values, nobody])
        return arrays

    def profile(self, timeline: Timeline) -> Arrays:
        """What the user representation sees of every user beside behaviours; the last row is nobody's.

        A user of whom no number is known has NaN in all of them, so that the field is masked: a mean would be a claim.
        Weights of values are left out: it takes the plain mean.
        """
        arrays = self.static(timeline, "user")
        arrays.pop("user_id")
        for feature in timeline.schema.side("user"):
            if feature.weights:
                arrays.pop(f"user_{feature.name}_weight")
        numeric = [f for f in timeline.schema.features if f.side == "user" and f.kind == "numeric"]
        if numeric:
            known = np.any([_column(timeline, feature).notna().to_numpy() for feature in numeric], axis=0)
            for feature in numeric:
                arrays[f"user_{feature.name}"][~np.append(known, False)] = np.nan
        return arrays

    def encode(self, name: str, feature: Feature, column: pd.Series) -> np.ndarray:
        """One column: int32 `[n]` (categorical), int32 `[n, at most keep]` (multi) or float32 `[n]` (numeric)."""
        return self.arrays(name, feature, column)[name]

    def arrays(self, name: str, feature: Feature, column: pd.Series) -> Arrays:
        """As `encode`, by name; beside a feature with weights, `<name>_weight` float32 of the same shape."""
        if feature.kind == "numeric":
            low, high, mean = self.ranges[name]
            return {name: _scaled(column, feature, low, high).fillna(mean).to_numpy(np.float32)}
        vocabulary = self.vocabularies[name]
        if feature.kind == "categorical":
            return {name: vocabulary.encode(column.replace("", pd.NA))}
        row, flat, weight = split_multi(column, feature)
        if feature.weights:  # the heaviest first, so that the width cuts the lightest
            by = np.lexsort((-weight, row))
            row, flat, weight = row[by], flat.iloc[by], weight[by]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        width = min(feature.keep, int(place.max()) + 1 if len(place) else 1)
        kept = place < width
        row, place, codes, texts = row[kept], place[kept], *pd.factorize(flat[kept])
        values = np.zeros((len(column), width), np.int32)
        # A text is looked up once, however often it stands there.
        index = vocabulary.encode(pd.Series(texts).replace("", pd.NA))[codes] if len(texts) else codes
        values[row, place] = index
        if not feature.weights:
            return {name: values}
        weights = np.zeros(values.shape, np.float32)
        weights[row, place] = np.where(index != MISSING, weight[kept], 0.0)
        return {name: values, f"{name}_weight": weights}

    def context(self, timeline: Timeline, frame: pd.DataFrame) -> Arrays:
        """The context features of any frame that has their columns."""
        arrays: Arrays = {}
        for feature in timeline.schema.features:
            if feature.side == "context":
                if feature.name not in frame:
                    raise UserError(f"{timeline.dataset.path}: column {feature.name!r} (a context feature) is missing.")
                arrays |= self.arrays(f"context_{feature.name}", feature, frame[feature.name])
        return arrays

    def behavior(self, timeline: Timeline, user: np.ndarray, time: np.ndarray, order: np.ndarray | None) -> Arrays:
        """Every behaviour field of some users, strictly before (time, order): int32 `[n, keep]`, newest first."""
        arrays = {}
        for field in timeline.schema.behaviors:
            events = timeline.behaviors[field.name]
            values = timeline.behavior_values.get(field.name, timeline.item_ids)
            key = "item" if field.vocabulary == "item" else f"behavior_{field.name}"
            lookup = np.append(self.vocabularies[key].encode(values), np.int32(MISSING))
            arrays[f"behavior_{field.name}"] = lookup[events.latest(user, time, order, field.keep)]
        return arrays

    def save(self, path: Path) -> None:
        """Writes a JSON file."""
        content = {
            "before": self.before,
            "ranges": self.ranges,
            "vocabularies": {name: list(v.values) for name, v in self.vocabularies.items()},
        }
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, default=_plain, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """Reads what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            {name: Vocabulary(_index(values)) for name, values in content["vocabularies"].items()},
            {name: tuple(values) for name, values in content["ranges"].items()},
            content["before"],
        )


def _index(values: list) -> pd.Index:
    return pd.Index(values, dtype="str" if not values or isinstance(values[0], str) else None)


def _plain(value: np.generic) -> object:
    return value.item()


def _impression_ids(timeline: Timeline, side: str, before: int) -> pd.Series:
    return timeline.impressions.loc[timeline.time < before, f"{side}_id"]


def _item_vocabulary(timeline: Timeline, before: int, min_count: int, rank_by_seeds: bool) -> Vocabulary:
    """Items by falling count of events; by seed events first where the negatives need those ranks."""
    counts = np.bincount(timeline.item[timeline.time < before], minlength=len(timeline.item_ids))
    for name, found in timeline.behaviors.items():
        if name not in timeline.behavior_values:
            counts += np.bincount(found.value[found.time < before], minlength=len(counts))
    first = np.zeros_like(counts)
    if rank_by_seeds:
        _, item, time, _ = timeline.seed_events()
        first = np.bincount(item[time < before], minlength=len(counts))
    order = np.lexsort((np.arange(len(counts)), -counts, -first))
    return Vocabulary(timeline.item_ids[order[counts[order] >= min_count]])


def _column(timeline: Timeline, feature: Feature) -> pd.Series:
    table = timeline.static(feature.side)
    if feature.name not in table:
        raise UserError(
            f"{timeline.dataset.path}: [features.{feature.side}] {feature.name} needs a column of that name in the "
            f"{feature.side}s table, which has {', '.join(map(str, table.columns)) or 'none'}."
        )
    return table[feature.name]


def _transformed(column: pd.Series, feature: Feature) -> pd.Series:
    values = column.astype("float64")
    return values.clip(lower=0).transform(np.log1p) if feature.transform == "log1p" else values


def _scaled(column: pd.Series, feature: Feature, low: float, high: float) -> pd.Series:
    return (_transformed(column, feature).clip(low, high) - low) / (high - low if high > low else 1.0)


def _fit_range(column: pd.Series, feature: Feature) -> tuple[float, float, float]:
    values = _transformed(column, feature)
    low, high = (float(values.min()), float(values.max())) if values.notna().any() else (0.0, 1.0)
    mean = float(_scaled(column, feature, low, high).mean())
    return low, high, 0.0 if np.isnan(mean) else mean


def gather(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> Arrays:
    """The same rows of every array."""
    return {name: values[rows] for name, values in arrays.items()}
