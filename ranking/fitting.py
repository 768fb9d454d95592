"""The stages of one training, and what they hand on to each other."""

import dataclasses
import shutil
from typing import Any

import keras
import numpy as np

from esmm.calibration import Calibration, calibrated
from esmm.embedding import Feature
from esmm.model import PositionBias
from lookalike.representation import UserRepresentation, user_inputs
from lookalike.similarity import LookalikeModel
from ranking.batches import Progress, tf_function
from ranking.board import Board
from ranking.checkpoints import Checkpoint
from ranking.errors import UserError
from ranking.esmm_settings import EsmmSettings
from ranking.features import Encoder
from ranking.fusion import FusionWeights
from ranking.growth import grown, transplant
from ranking.lookalike_training import representation_of, train_lookalike, train_next_item
from ranking.model import esmm_features
from ranking.rows import Rows, chosen_rows, rows_by_tick, training_rows
from ranking.run import Run, Scales, lookalike_as_model, parameters_hash
from ranking.sources import SpooledRows, spool_rows
from ranking.state import StateBuilder
from ranking.timeline import Timeline
from ranking.training import Settings, train_esmm
from ranking.workers import Workers

__all__ = ["DEFAULT_EXPONENTS", "Fitting", "calibration_on"]

# Where a search starts, and what is served until a replay has said better: eCPM's form without the price, and a
# little of the similarity.
DEFAULT_EXPONENTS = {"similarity": 0.5, "pctr": 1.0, "pcvr": 1.0}
SAMPLE = 200_000  # rows that scales and fusion constants are fitted on where not all fit in memory
IN_MEMORY = 4 << 30  # bytes of training rows; more are kept on disk
ID_MIN_COUNT = 3  # ids seen less often share the out-of-vocabulary row


def _as_model(representation: UserRepresentation) -> keras.Model:
    """The user representation as a functional model, which is what a .keras file holds best."""
    inputs = user_inputs(representation.fields)
    return keras.Model(inputs, representation(inputs), name="user_representation")


def _scaled(rows: Rows, scales: Scales) -> Rows:
    return dataclasses.replace(rows, features=scales.apply(rows.features))


@dataclasses.dataclass
class Fitting:
    """One training under way: what its stages hand on to each other."""

    timeline: Timeline
    settings: Settings
    previous: Run | None
    checkpoint: Checkpoint
    board: Board | None
    progress: Progress
    on_disk: bool = False
    workers: Workers | None = None
    lookalike_encoder: Encoder = dataclasses.field(init=False)
    representation: keras.Model = dataclasses.field(init=False)
    lookalike: LookalikeModel = dataclasses.field(init=False)
    builder: StateBuilder = dataclasses.field(init=False)
    scales: Scales = dataclasses.field(init=False)
    rows: Rows = dataclasses.field(init=False)
    source: Rows | SpooledRows = dataclasses.field(init=False)
    counts: dict[str, int] = dataclasses.field(init=False)
    esmm_info: dict[str, Any] = dataclasses.field(init=False)
    calibrate: Rows | None = None
    models: dict[str, list[keras.Model]] = dataclasses.field(default_factory=dict)
    calibrations: dict[str, list[Calibration]] = dataclasses.field(default_factory=dict)

    def first_stages(self) -> dict[str, Any]:
        """Representation and look-alike: those of the previous run, of the checkpoint, or new ones."""
        progress, timeline, settings = self.progress, self.timeline, self.settings.lookalike
        if self.previous is not None:
            self.lookalike_encoder = self.previous.lookalike_encoder
            self.representation, self.lookalike = self.previous.representation, self.previous.lookalike
            return {name: self.previous.info["stages"][name] for name in ("representation", "lookalike")}
        progress("user representation", 0, 1)
        self.lookalike_encoder = Encoder.fit(timeline, before=timeline.window("lookalike")[1], rank_by_seeds=True)
        done = self.checkpoint.finished("representation")
        if done is None:
            next_item, info = train_next_item(
                timeline, self.lookalike_encoder, settings, progress=progress, board=self.board
            )
            done = _as_model(representation_of(next_item)), info
            self.checkpoint.finish("representation", *done)
        self.representation, stages = done[0], {"representation": done[1]}
        layer = representation_of(self.representation)
        done = self.checkpoint.finished("lookalike")
        if done is None:
            self.lookalike, info = train_lookalike(
                timeline, self.lookalike_encoder, layer, settings, progress=progress, board=self.board
            )
            shape = self.representation.output.shape[-1], timeline.schema.k, self.lookalike.hidden
            self.checkpoint.finish("lookalike", lookalike_as_model(self.lookalike, *shape), info)
            return stages | {"lookalike": info}
        self.lookalike = next(layer for layer in done[0].layers if isinstance(layer, LookalikeModel))
        return stages | {"lookalike": done[1]}

    def prepare(self, *windows: str) -> None:
        """Vocabularies, rows and scales of some windows; with the first call the calibrate window's rows as well."""
        last = self.timeline.window(windows[-1])[1]
        encoder = Encoder.fit(self.timeline, before=last, id_min_count=ID_MIN_COUNT)
        since = None
        if self.previous is not None:
            encoder, since = grown(self.previous.encoder, encoder), self.previous.info["trained_until"]
        self.builder = StateBuilder(
            self.timeline,
            encoder,
            lookalike_encoder=self.lookalike_encoder,
            representation=tf_function(self.representation),
            lookalike=self.lookalike,
        )
        chosen = chosen_rows(self.timeline, *windows, since=since)
        if self.on_disk or self._too_many(chosen):
            self._spool(chosen, "+".join(windows))
        else:
            rows = training_rows(self.builder, *windows, since=since, progress=self.progress)
            self.scales = Scales.fit(rows.features) if self.previous is None else self.previous.scales
            self.rows = self.source = _scaled(rows, self.scales)
            self.counts = {"repeats_dropped": int(rows.repeat.sum()), "immature": int((~rows.mature).sum())}
        self.counts["trained"] = len(chosen)
        if self.calibrate is None:
            self.calibrate = _scaled(training_rows(self.builder, "calibrate", progress=self.progress), self.scales)

    def _too_many(self, chosen: np.ndarray) -> bool:
        if len(chosen) < SAMPLE:
            return False
        row = next(rows_by_tick(self.builder, chosen[:1]))
        return len(chosen) * sum(values.nbytes for values in row.features.values()) > IN_MEMORY

    def _spool(self, chosen: np.ndarray, name: str) -> None:
        """Rows on disk; in memory a sample of them, which the scales and the fusion constants are fitted on."""
        sample = chosen
        if len(chosen) > SAMPLE:
            sample = np.sort(np.random.default_rng(0).choice(chosen, SAMPLE, replace=False))
        parts = list(rows_by_tick(self.builder, sample))
        rows = Rows.join(parts)
        self.scales = Scales.fit(rows.features) if self.previous is None else self.previous.scales
        self.rows = _scaled(rows, self.scales)
        folder = self.checkpoint.folder / f"rows {name}"
        shutil.rmtree(folder, ignore_errors=True)
        self.source, self.counts = spool_rows(
            self.builder, chosen, self.scales, self.settings.esmm, folder, progress=self.progress
        )

    def features(self, *, similarity: bool = True) -> tuple[Feature, ...]:
        """The inputs of ESMM."""
        return esmm_features(self.timeline.schema, self.builder.encoder, similarity=similarity)

    def main_model(self) -> None:
        """ESMM, its passes chosen on the calibrate window, and its calibration there."""
        start = None
        if self.previous is not None:
            start = _rebuilt(self.previous.models["seedrank"][0], self.features(), self.settings.esmm)
        model, self.esmm_info = train_esmm(
            self.source,
            self.features(),
            self.settings.esmm,
            validation=self.calibrate,
            start=start,
            progress=self.progress,
            board=self.board,
            checkpoint=self.checkpoint,
            workers=self.workers,
        )
        self.models["seedrank"] = [model]
        self.calibrations["seedrank"] = [self._calibration(model)]

    def _calibration(self, model: keras.Model) -> Calibration:
        method = self.settings.esmm.calibration
        if method == "none" or self.calibrate is None:
            return Calibration.identity()
        return calibration_on(model, self.calibrate, method)

    def again(self) -> dict[str, Any]:
        """The same ESMM on the rows as they are now; the calibration stays."""
        start = None
        if self.previous is not None:
            start = _rebuilt(self.previous.models["seedrank"][0], self.features(), self.settings.esmm)
        model, info = self._train("ESMM, final refit", self.features(), self.settings.esmm, start=start)
        self.models["seedrank"], self.calibrate = [model], None
        return {name: info[name] for name in ("examples", "examples_per_second")}

    def _train(
        self, stage: str, inputs: tuple[Feature, ...], settings: EsmmSettings, **arguments: Any
    ) -> tuple[keras.Model, dict[str, Any]]:
        return train_esmm(
            self.source,
            inputs,
            settings,
            schedule=self.esmm_info["epochs"],
            progress=self.progress,
            stage=stage,
            checkpoint=self.checkpoint,
            workers=self.workers,
            **arguments,
        )

    def baselines(self, seeds: int) -> None:
        """More random seeds of ESMM, and of what it is compared with; calibrated where the window is unseen."""
        if not isinstance(self.source, Rows):
            raise UserError("`--with-baselines` needs its rows in memory, and they are over 4 GiB.")
        plain, esmm = self.features(similarity=False), self.settings.esmm
        variants = {
            "seedrank": (self.features(), esmm, range(1, seeds)),
            "no_similarity": (plain, esmm, range(seeds)),
            "base": (self.features(), dataclasses.replace(esmm, strategy="base"), range(seeds)),
        }
        for variant, (inputs, settings, numbers) in variants.items():
            found = [self._train(f"{variant}, random seed {seed}", inputs, settings, seed=seed)[0] for seed in numbers]
            self.models.setdefault(variant, []).extend(found)
            if self.calibrate is not None:
                maps = [self._calibration(model) for model in found]
            else:  # refitted: BASE has no model that has not seen the window, the others share the one map there is
                first = self.calibrations["seedrank"][0]
                maps = [Calibration.identity() if variant == "base" else first] * len(found)
            self.calibrations.setdefault(variant, []).extend(maps)

    def first_weights(self) -> FusionWeights:
        """The default weights, with constants frozen on the training rows."""
        rows, price = self.rows, self.builder.prices[self.timeline.item[self.rows.row]]
        mean, sd = self.scales.similarity
        model, calibration = self.models["seedrank"][0], self.calibrations["seedrank"][0]
        inputs = {tensor.name: rows.features.get(tensor.name) for tensor in model.inputs}
        if "position" in inputs:
            inputs["position"] = np.zeros(len(rows.row), np.int32)
        found = calibrated(model, calibration).predict(inputs, batch_size=8192, verbose=0)
        parts = {
            "similarity": rows.features["similarity"] * sd + mean,
            "has_similarity": rows.features["has_similarity"],
            "pctr": found["pctr"],
            "pcvr": found["pcvr"],
        }
        if np.isfinite(price).any():
            parts["price"] = price
        hashed = parameters_hash(self.representation, self.lookalike, model, calibration=calibration)
        reference = FusionWeights.fit(parts, "product", DEFAULT_EXPONENTS, hashed)
        return FusionWeights.from_exponents(**DEFAULT_EXPONENTS, reference=reference)


def calibration_on(model: keras.Model, rows: Rows, method: str) -> Calibration:
    """The maps of both heads, fitted on rows that the model has not learned from.

    Args:
        model: keras.Model. Of any strategy.
        rows: Rows. Scaled features; immature conversions do not count.
        method: str. `"auto"`, `"platt"` or `"piecewise"`.
    """
    inputs = {tensor.name: rows.features[tensor.name] for tensor in model.inputs}
    found = model.predict(inputs, batch_size=8192, verbose=0)
    return Calibration.fit(
        found["click_logit"], found["conversion_logit"], rows.click, rows.conversion, rows.mature, method=method
    )


def _rebuilt(before: keras.Model, features: tuple[Feature, ...], settings: EsmmSettings) -> keras.Model:
    """A model of the same weights for vocabularies that have grown."""
    positions = [layer.positions for layer in before.layers if isinstance(layer, PositionBias)]
    model = settings.training_strategy().build(
        features, settings.architecture(), base_rates=(0.5, 0.5), positions=positions[0] if positions else 0
    )
    transplant(before, model)
    return model
