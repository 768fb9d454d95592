"""Curves and histograms of a training, for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

__all__ = ["Board"]

BUCKETS = 40


class Board:
    """Event files, a run a stage; `tensorboard --logdir FOLDER` draws them (`pip install tensorboard`).

    TensorBoard itself is not needed to write them, where `tf.summary.scalar` asks for it.

    Args:
        folder: Path. Where the event files go; made if it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._writers: dict[str, tf.compat.v1.summary.FileWriter] = {}

    def _write(self, stage: str, epoch: int, values: list[tf.compat.v1.Summary.Value]) -> None:
        if stage not in self._writers:
            with tf.Graph().as_default():  # it refuses to be made eagerly, though it needs no graph
                path = str(self.folder / stage.replace(" ", "_"))
                self._writers[stage] = tf.compat.v1.summary.FileWriter(path)
        self._writers[stage].add_summary(tf.compat.v1.Summary(value=values), epoch)
        self._writers[stage].flush()

    def scalars(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        """One point of each curve; what is not finite has none."""
        points = [
            tf.compat.v1.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if np.isfinite(value)
        ]
        self._write(stage, epoch, points)

    def histogram(self, stage: str, epoch: int, name: str, values: np.ndarray) -> None:
        """The distribution of some values `[n]` at an epoch; nothing where there are none."""
        if not len(values):
            return
        counts, edges = np.histogram(values, BUCKETS)
        proto = tf.compat.v1.HistogramProto(
            min=values.min(),
            max=values.max(),
            num=len(values),
            sum=values.sum(),
            sum_squares=np.square(values).sum(),
            bucket_limit=edges[1:],
            bucket=counts,
        )
        self._write(stage, epoch, [tf.compat.v1.Summary.Value(tag=name, histo=proto)])
