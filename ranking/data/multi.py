"""Several values in one text, with or without weights: `sport,city` and `sport:2.5,city:1`."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ranking.data.schema import Feature
from ranking.errors import UserError

__all__ = ["split_multi"]

_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


def split_multi(column: pd.Series, feature: Feature, where: str = "") -> tuple[np.ndarray, pd.Series, np.ndarray]:
    """The values of a multi feature, one a row.

    Args:
        column: Series of texts `[n]`.
        feature: Feature. Separator, and what stands before a weight.
        where: str. File and column, for the message. Defaults to `""`: the feature's name.

    Returns:
        int64 `[m]`: the place in the column of each value, rising; its text (empty where nothing stands between two
        separators); float32 `[m]`: its weight, 1 where the feature has none.

    Raises:
        UserError: a value without a weight, or a weight that is no finite number of 0 or more.
    """
    texts = pa.chunked_array([pa.array(column.to_numpy(object), pa.large_string(), from_pandas=True)])
    lists = pc.split_pattern(texts.combine_chunks(), feature.separator)
    row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = pc.list_flatten(lists)
    if not feature.weights:
        return row, _series(flat), np.ones(len(row), np.float32)
    entries = flat.dictionary_encode()
    codes = entries.indices.to_numpy(zero_copy_only=False)
    value, weight = _weighted(entries.dictionary, feature.weights)
    wrong = np.isnan(weight)
    if wrong.any():
        first = int(np.flatnonzero(wrong[codes])[0])
        rule = f"each value should look like value{feature.weights}weight, the weight a number of 0 or more"
        received = f"Received: {flat[first].as_py()!r} in row {row[first] + 1}."
        raise UserError(f"{where or f'[features.{feature.side}] {feature.name}'}: {rule}. {received}")
    return row, _series(value.take(entries.indices)), weight[codes]


def _series(texts: pa.Array) -> pd.Series:
    return texts.cast(pa.large_string()).to_pandas(types_mapper=lambda _: pd.StringDtype(na_value=np.nan))


def _weighted(entries: pa.Array, sign: str) -> tuple[pa.Array, np.ndarray]:
    """Value and weight of each distinct `value:weight`, NaN where it is none; an empty one is an empty value, 0."""
    good = pc.match_substring_regex(entries, f"(?s)^.*{re.escape(sign)}{_NUMBER}$")
    parts = pc.split_pattern(pc.if_else(good, entries, f"{sign}0"), sign, max_splits=1, reverse=True)
    weight = pc.list_element(parts, 1).cast(pa.float64()).to_numpy(zero_copy_only=False)
    good = pc.or_(good, pc.equal(entries, "")).to_numpy(zero_copy_only=False) & (weight <= np.finfo(np.float32).max)
    return pc.list_element(parts, 0), np.where(good, weight, np.nan).astype(np.float32)
