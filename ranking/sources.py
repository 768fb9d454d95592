"""Where ESMM's training takes its batches from: rows in memory, or rows on disk."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from esmm.strategies import value_weights
from ranking.batches import Progress, batches, silent
from ranking.errors import UserError
from ranking.esmm_settings import EsmmSettings
from ranking.rows import Rows, rows_by_tick
from ranking.run import Scales
from ranking.spool import TARGET, WEIGHT, Spool, SpoolWriter, supervised
from ranking.state import StateBuilder

__all__ = ["MemoryRows", "Source", "SpooledRows", "spool_rows"]


class Source(Protocol):
    """Rows to train on, without repeats."""

    @property
    def examples(self) -> int:
        """How many."""

    @property
    def base_rates(self) -> tuple[float, float]:
        """P(click), and P(conversion given click) where that label is final."""

    @property
    def positions(self) -> int:
        """The last logged position, counted from 1; 0 where none is logged."""

    def batches(self, inputs: Sequence[str], settings: EsmmSettings, *, seed: int, number: int, step: int) -> Any:
        """Inputs, targets and weights of pass `number` from a step on, in an order that seed and number fix."""


class MemoryRows:
    """Rows in memory: any order, and a strategy may draw its examples anew for each pass.

    Args:
        rows: Rows. Scaled features; repeats are dropped.
        stage: str. For messages.

    Raises:
        UserError: a task has one class only, or a number is not finite.
    """

    def __init__(self, rows: Rows, stage: str):
        rows = rows.take(~rows.repeat)
        self.rows, self.examples = rows, len(rows.row)
        final = rows.mature & (rows.click > 0)
        labels = {"click": rows.click, "conversion": rows.conversion[final]}
        self.base_rates = _rates({task: (int(label.sum()), len(label)) for task, label in labels.items()}, stage)
        self.positions = int(rows.features["position"].max()) if "position" in rows.features else 0
        for name, values in rows.features.items():
            _refuse_infinite(name, values)

    def batches(
        self, inputs: Sequence[str], settings: EsmmSettings, *, seed: int, number: int, step: int
    ) -> tf.data.Dataset:
        """See `Source`."""
        generator = np.random.default_rng([seed, number])
        order = generator.permutation(self.examples)[step * settings.batch_size :]
        arrays = {name: self.rows.features[name] for name in inputs}
        targets, weights = _supervision(self.rows, settings, generator)
        return batches(arrays, targets, weights, order=order, batch_size=settings.batch_size)


@dataclasses.dataclass(frozen=True)
class SpooledRows:
    """Rows on disk: a random order within a buffer, and the same examples in every pass; see `spool_rows`."""

    spool: Spool
    base_rates: tuple[float, float]
    positions: int

    @property
    def examples(self) -> int:
        """How many."""
        return self.spool.rows

    def batches(
        self, inputs: Sequence[str], settings: EsmmSettings, *, seed: int, number: int, step: int
    ) -> tf.data.Dataset:
        """See `Source`."""
        wanted = [*inputs, *(name for name in self.spool.names if name.startswith((TARGET, WEIGHT)))]
        size = settings.batch_size
        found = self.spool.batches(wanted, batch_size=size, seed=seed, epoch=number, start=step)
        return found.map(supervised)


def spool_rows(
    builder: StateBuilder,
    rows: np.ndarray,
    scales: Scales,
    settings: EsmmSettings,
    folder: Path,
    progress: Progress = silent,
) -> tuple[SpooledRows, dict[str, int]]:
    """Writes the scaled features and the targets of impressions to disk, in the memory of a few hundred thousand rows.

    Args:
        builder: StateBuilder. Gives the state of a tick.
        rows: int64 `[n]`. Rows of the timeline's impressions; repeats are dropped.
        scales: Scales. Fitted on a sample.
        settings: EsmmSettings. Its strategy gives the targets.
        folder: Path. Should not exist.
        progress: Progress.

    Returns:
        The rows, and how many repeats were dropped and how many labels are not final.

    Raises:
        UserError: the strategy draws its examples anew for each pass, or as for `MemoryRows`.
    """
    if settings.strategy == "aman":
        raise UserError("strategy `aman` draws its examples anew in each pass: it needs its rows in memory.")
    counts = {"repeats_dropped": 0, "immature": 0}
    seen = np.zeros((2, 2), int)  # clicks and final conversions: with the label, of all
    positions = 0
    with SpoolWriter(folder) as writer:
        for part in rows_by_tick(builder, rows, progress=progress):
            counts["repeats_dropped"] += int(part.repeat.sum())
            counts["immature"] += int((~part.mature).sum())
            part = part.take(~part.repeat)
            features = scales.apply(part.features)
            for name, values in features.items():
                _refuse_infinite(name, values)
            targets, weights = _supervision(part, settings, np.random.default_rng(0))
            named = {TARGET + name: values for name, values in targets.items()}
            named |= {WEIGHT + name: values for name, values in weights.items()}
            writer.append({name: _plain(values) for name, values in {**features, **named}.items()})
            final = part.mature & (part.click > 0)
            seen += [[int(part.click.sum()), len(part.row)], [int(part.conversion[final].sum()), int(final.sum())]]
            positions = max(positions, int(features["position"].max(initial=0)) if "position" in features else 0)
    labels = dict(zip(("click", "conversion"), seen.tolist(), strict=True))
    return SpooledRows(Spool(folder), _rates(labels, "ESMM"), positions), counts


def _plain(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32, copy=False)


def _supervision(rows: Rows, settings: EsmmSettings, generator: np.random.Generator) -> tuple[Any, Any]:
    weight = None
    if settings.value_power:
        if rows.value is None:
            raise UserError("`value_power` needs the impressions' column `value`: what a conversion was worth.")
        final = rows.conversion * rows.mature  # what a label may still become is not in the mean
        weight = value_weights(rows.value, final, power=settings.value_power)
    return settings.training_strategy().supervise(
        rows.click, rows.conversion, final=rows.mature, conversion_weight=weight, generator=generator
    )


def _rates(labels: Mapping[str, Sequence[int]], stage: str) -> tuple[float, float]:
    """Base rates of both tasks, from how many rows have the label, and of how many."""
    for task, (found, count) in labels.items():
        if not 0 < found < count:
            of = "impressions" if task == "click" else "clicks with a final label"
            raise UserError(
                f"{stage}: the {task} task should have both classes to learn from. Received: {found} of {count} {of} "
                f"with a {task}."
            )
    click, conversion = ((found + 0.5) / (count + 1) for found, count in labels.values())
    return click, conversion


def _refuse_infinite(name: str, values: np.ndarray) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(
            f"input `{name}` should be finite numbers. Received: {int((~np.isfinite(values)).sum())} that are not."
        )
