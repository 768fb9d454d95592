"""A run goes on: vocabularies that grow, and weights that move into the larger tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd

from esmm.embedding import SharedEmbedding, WideLinear
from esmm.model import PositionBias
from ranking.data.schema import Schema
from ranking.errors import UserError
from ranking.features import OUT_OF_VOCABULARY, Encoder, Vocabulary

__all__ = ["grown", "refuse_other_schema", "transplant"]


def refuse_other_schema(before: Schema, now: Schema, run: object) -> None:
    """Raises UserError where a dataset declares other inputs than the one a run was trained on."""
    parts = ("user_id", "item_id", "time", "funnel", "seed_event", "features", "behaviors", "statistics", "k")
    other = [name for name in parts if getattr(before, name) != getattr(now, name)]
    if other:
        old, new = getattr(before, other[0]), getattr(now, other[0])
        if isinstance(old, tuple):
            named = [str(getattr(part, "name", part)) for part in {*old, *new} if (part in old) != (part in new)]
            old, new = "the run's", f"other {other[0]}: {', '.join(sorted(set(named))) or 'another order'}"
        raise UserError(
            f"dataset.toml should declare what {run} was trained with; differs in {', '.join(other)}. "
            f"Received: {new}, not {old}."
        )


def grown(before: Encoder, now: Encoder) -> Encoder:
    """The earlier encoder with the later one's new values behind its own: an index, once given, stays.

    The ranges of numbers stay too: the network has learned with them, and a value beyond is clipped.

    Args:
        before: Encoder. Of the run.
        now: Encoder. Fitted on the longer log; gives the values that are new.
    """
    vocabularies = {}
    for name, vocabulary in now.vocabularies.items():
        old = before.vocabularies[name].values
        new = vocabulary.values[~vocabulary.values.isin(old)]
        joined = pd.Index([*old, *new], dtype=vocabulary.values.dtype if len(new) else old.dtype)
        vocabularies[name] = Vocabulary(joined)
    return dataclasses.replace(before, vocabularies=vocabularies, before=now.before)


def transplant(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of a model into one whose vocabularies have grown.

    A new value starts at the row of unknown values, which is where it was until now.

    Args:
        source: keras.Model. Of the run.
        target: keras.Model. Built for the grown vocabularies; of the same architecture otherwise.

    Raises:
        UserError: their architectures differ.
    """
    old, new = _layers(source), _layers(target)
    if [type(layer) for layer in old] != [type(layer) for layer in new]:
        raise UserError("the model should have the architecture of the run that it goes on from (`--esmm`).")
    for before, after in zip(old, new, strict=True):
        if isinstance(after, SharedEmbedding | WideLinear):
            after.table.assign(_table(before, after))
        if isinstance(after, WideLinear) and after.numeric:
            after.kernel.assign(before.kernel)
        if isinstance(after, PositionBias):
            values = np.asarray(before.tenths)
            more = max(after.positions - before.positions, 0)
            after.tenths.assign(np.pad(values, (0, more), mode="edge")[: after.positions - 1])
    for variable, other in zip(_others(target), _others(source), strict=True):
        if variable.shape != other.shape:
            raise UserError(
                "the model should have the architecture of the run that it goes on from (`--esmm`). "
                f"Received: {variable.path} of shape {variable.shape}, not {other.shape}."
            )
        variable.assign(other)


def _layers(model: keras.Model) -> list[Any]:
    found = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in found if isinstance(layer, SharedEmbedding | WideLinear | PositionBias)]


def _others(model: keras.Model) -> Sequence[Any]:
    """The weights that do not grow."""
    special = {id(weight) for layer in _layers(model) for weight in layer.weights}
    return [weight for weight in model.weights if id(weight) not in special]


def _table(before: Any, after: Any) -> np.ndarray:
    source, values = np.asarray(before.table), np.array(after.table)
    sizes = {feature.table: feature.size for feature in before.categorical + before.multi}
    ends = {feature.table: feature.size for feature in after.categorical + after.multi}
    for vocabulary, start in after.offsets.items():
        old, size = before.offsets[vocabulary], sizes[vocabulary]
        values[start : start + size] = source[old : old + size]
        values[start + size : start + ends[vocabulary]] = source[old + OUT_OF_VOCABULARY]
    return values
