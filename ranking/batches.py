"""Batches gathered in the graph, and what is told of a training under way."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["Progress", "Steps", "batches", "silent", "tf_function"]

Progress = Callable[[str, int, int], None]  # stage, done, total


def tf_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A graph of the function, traced once for any batch size."""
    return tf.function(function, reduce_retracing=True)


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


def batches(
    arrays: Mapping[str, np.ndarray],
    *others: Any,
    order: np.ndarray,
    batch_size: int,
    tables: Mapping[str, tuple[np.ndarray, str]] | None = None,
) -> tf.data.Dataset:
    """Batches gathered in the graph: no Python per row, no copy of the data per epoch.

    Args:
        arrays: dict of arrays `[n, ...]`.
        *others: targets and sample weights, dicts of arrays `[n]`.
        order: int64 `[n]`. The rows in the order of this epoch.
        batch_size: int.
        tables: name -> (array `[rows, ...]`, name in `arrays` of the row numbers `[n]`): inputs too wide to repeat.
    """
    whole = (dict(arrays), *others)
    take = _taken([np.asarray(array) for array in tf.nest.flatten(whole)])
    wide = {name: (tf.constant(table), rows) for name, (table, rows) in (tables or {}).items()}
    places = tf.constant(order)

    def pick(start: tf.Tensor) -> Any:
        found = tf.nest.pack_sequence_as(whole, take(places[start : start + batch_size]))
        for name, (table, rows) in wide.items():
            found[0][name] = tf.gather(table, found[0][rows])
        for rows in {rows for _, rows in wide.values()}:
            del found[0][rows]
        return found if others else found[0]

    return tf.data.Dataset.range(0, len(order), batch_size).map(pick, num_parallel_calls=2).prefetch(2)


def _taken(arrays: Sequence[np.ndarray]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Rows of all arrays by their index: columns of one type lie side by side, so that one read serves all of them."""
    groups: dict[Any, list[int]] = {}
    for place, array in enumerate(arrays):
        groups.setdefault(array.dtype if array.ndim == 1 else place, []).append(place)
    columns = [[arrays[place] for place in group] for group in groups.values()]
    blocks = [tf.constant(np.stack(block, axis=1) if len(block) > 1 else block[0]) for block in columns]

    def take(index: tf.Tensor) -> list[tf.Tensor]:
        found: dict[int, tf.Tensor] = {}
        for block, group in zip(blocks, groups.values(), strict=True):
            rows = tf.gather(block, index)  # [batch, columns], or [batch, ...] of one array
            found.update(zip(group, tf.unstack(rows, axis=1) if len(group) > 1 else [rows], strict=True))
        return [found[place] for place in range(len(arrays))]

    return take


class Steps(keras.callbacks.Callback):
    """Reports progress and measures examples a second."""

    def __init__(self, progress: Progress, stage: str, batch_size: int, examples: int, epochs: int):
        super().__init__()
        self.progress, self.stage, self.batch_size = progress, stage, batch_size
        self.examples, self.total, self.done = examples, examples * epochs, 0
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Tells how many examples have been seen."""
        self.done = min(self.done + self.batch_size, self.total)
        if batch % 10 == 0 or self.done == self.total:
            self.progress(self.stage, self.done, self.total)

    @property
    def per_second(self) -> float:
        """Examples a second since the start."""
        return self.done / (time.perf_counter() - self.started)
