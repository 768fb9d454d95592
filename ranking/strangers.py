"""Users whom no table holds: what is known of them is what a request brings along."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ranking.features import MISSING, Arrays, Encoder
from ranking.run import Run
from ranking.state import State

__all__ = ["with_features", "with_vector"]


def with_vector(state: State, vector: np.ndarray) -> State:
    """A state whose only user is nobody, but for his vector `[m]`: what `rank_embedding` knows."""
    found = state.only(np.zeros(len(state.user_ids), bool), np.ones(len(state.item_ids), bool))
    return dataclasses.replace(found, user_vectors=np.asarray(vector, np.float32)[None])


def with_features(run: Run, state: State, features: Mapping[str, Any], behaviors: Mapping[str, Sequence[Any]]) -> State:
    """A state whose only user is nobody, but for his features and the vector that they make: `rank_features`.

    His id and his statistics stay nobody's.

    Args:
        run: Run.
        state: State. Of the items.
        features: dict. Column of the users -> raw value, `None` or NaN where it is missing.
        behaviors: dict. Field -> raw values, the latest last.
    """
    profile = _encoded(run, run.lookalike_encoder, features, behaviors)
    profile = {tensor.name: profile[tensor.name] for tensor in run.representation.inputs}
    numbers = [f"user_{f.name}" for f in run.schema.side("user") if f.kind == "numeric"]
    if all(pd.isna(features[name.removeprefix("user_")]) for name in numbers):
        profile |= {name: np.full(1, np.nan, np.float32) for name in numbers}
    found = with_vector(state, np.asarray(run.representation(profile))[0])
    return dataclasses.replace(found, users=found.users | _encoded(run, run.encoder, features, behaviors))


def _encoded(run: Run, encoder: Encoder, features: Mapping[str, Any], behaviors: Mapping[str, Sequence[Any]]) -> Arrays:
    arrays: Arrays = {}
    for feature in run.schema.side("user"):
        value = features[feature.name]
        column = pd.Series([value], dtype="float64" if feature.kind == "numeric" else "str")
        arrays |= encoder.arrays(f"user_{feature.name}", feature, column)
    for behavior in run.schema.behaviors:
        name = f"behavior_{behavior.name}"
        vocabulary = encoder.vocabularies["item" if behavior.vocabulary == "item" else name]
        latest = list(behaviors[behavior.name])[-behavior.keep :][::-1]
        index = np.full((1, behavior.keep), MISSING, np.int32)
        if latest:
            index[0, : len(latest)] = vocabulary.encode(pd.Index(latest, dtype=vocabulary.values.dtype))
        arrays[name] = index
    return arrays
