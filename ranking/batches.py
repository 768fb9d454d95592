"""Batches gathered in the graph, and what is told of a training under way."""

import time
from collections.abc import Callable, Mapping
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
    whole = tf.nest.map_structure(tf.constant, (dict(arrays), *others))
    wide = {name: (tf.constant(table), rows) for name, (table, rows) in (tables or {}).items()}

    def pick(index: tf.Tensor) -> Any:
        found = tf.nest.map_structure(lambda values: tf.gather(values, index), whole)
        for name, (table, rows) in wide.items():
            found[0][name] = tf.gather(table, found[0][rows])
        for rows in {rows for _, rows in wide.values()}:
            del found[0][rows]
        return found if others else found[0]

    dataset = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
    return dataset.map(pick, num_parallel_calls=2).prefetch(2)


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
