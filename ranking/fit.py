"""One training: a dataset in, a run out."""

import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from lookalike.representation import UserRepresentation, user_inputs
from ranking.baselines import Logistic, Popularity
from ranking.batches import Progress, silent, tf_function
from ranking.board import Board
from ranking.data.tables import Dataset
from ranking.features import Encoder
from ranking.fusion import FusionWeights
from ranking.lookalike_training import representation_of, train_lookalike, train_next_item
from ranking.model import esmm_features
from ranking.rows import Rows, training_rows
from ranking.run import Run, Scales, parameters_hash, save_run
from ranking.state import StateBuilder
from ranking.timeline import Timeline
from ranking.training import Settings, train_esmm

__all__ = ["DEFAULT_EXPONENTS", "fit_run"]

# Where a search starts, and what is served until a replay has said better: eCPM's form without the price, and a
# little of the similarity.
DEFAULT_EXPONENTS = {"similarity": 0.5, "pctr": 1.0, "pcvr": 1.0}
ID_MIN_COUNT = 3  # ids seen less often share the out-of-vocabulary row


def _encoded(
    timeline: Timeline, before: int, lookalike_encoder: Encoder, representation: keras.Model, lookalike: Any
) -> StateBuilder:
    return StateBuilder(
        timeline,
        Encoder.fit(timeline, before=before, id_min_count=ID_MIN_COUNT),
        lookalike_encoder=lookalike_encoder,
        representation=tf_function(representation),
        lookalike=lookalike,
    )


def _as_model(representation: UserRepresentation) -> keras.Model:
    """The user representation as a functional model, which is what a .keras file holds best."""
    inputs = user_inputs(representation.fields)
    return keras.Model(inputs, representation(inputs), name="user_representation")


def _scaled(rows: Rows, scales: Scales) -> Rows:
    return dataclasses.replace(rows, features=scales.apply(rows.features))


def fit_run(
    dataset: Dataset,
    out: Path,
    *,
    settings: Settings | None = None,
    baselines: bool = False,
    seeds: int = 3,
    refit: bool = False,
    overwrite: bool = False,
    tensorboard: Path | None = None,
    progress: Progress = silent,
) -> Run:
    """Trains the stages and saves the run: representation, look-alike, ESMM on their similarity, fusion constants.

    Time travels one way: the first two stages see the look-alike window, ESMM the train window with each row as of
    its own tick, the calibrate window chooses the number of epochs.

    Args:
        dataset: Dataset.
        out: Path. The run folder to write.
        settings: Settings or `None` for the defaults.
        baselines: bool. Whether ESMM without the similarity, BASE, popularity and logistic regression are trained
            beside it. Defaults to `False`.
        seeds: int. Random seeds of each ESMM variant with `baselines`; one without. Defaults to 3.
        refit: bool. Whether ESMM is fitted again on train + calibrate + tune with the chosen number of epochs: the
            freshest model, but its scores in the tune window are then in-sample, so a replay there is refused.
        overwrite: bool. Whether an existing `out` is replaced.
        tensorboard: Path or `None`. A folder for the curves of losses and AUC, and the field attention.
        progress: Progress.
    """
    settings = settings or Settings()
    began = time.perf_counter()
    timeline = Timeline(dataset)
    for name in ("lookalike", "train", "calibrate", "tune"):
        timeline.window(name)
    for name in ("train", "calibrate"):
        timeline.some_rows_in(name)
    progress("user representation", 0, 1)
    lookalike_encoder = Encoder.fit(timeline, before=timeline.window("lookalike")[1], rank_by_seeds=True)
    board = Board(tensorboard) if tensorboard else None
    next_item, representation_info = train_next_item(
        timeline, lookalike_encoder, settings.lookalike, progress=progress, board=board
    )
    layer = representation_of(next_item)
    lookalike, lookalike_info = train_lookalike(
        timeline, lookalike_encoder, layer, settings.lookalike, progress=progress, board=board
    )
    representation = _as_model(layer)

    builder = _encoded(timeline, timeline.window("train")[1], lookalike_encoder, representation, lookalike)
    rows = training_rows(builder, "train", progress=progress)
    calibrate = training_rows(builder, "calibrate", progress=progress)
    scales = Scales.fit(rows.features)
    rows, calibrate = _scaled(rows, scales), _scaled(calibrate, scales)
    features = esmm_features(dataset.schema, builder.encoder)
    plain = esmm_features(dataset.schema, builder.encoder, similarity=False)
    model, esmm_info = train_esmm(rows, features, settings, validation=calibrate, progress=progress, board=board)
    settings = dataclasses.replace(settings, epochs=esmm_info["epochs"])
    if refit:
        builder = _encoded(timeline, timeline.window("tune")[1], lookalike_encoder, representation, lookalike)
        rows = training_rows(builder, "train", "calibrate", "tune", progress=progress)
        scales = Scales.fit(rows.features)
        rows = _scaled(rows, scales)
        features = esmm_features(dataset.schema, builder.encoder)
        plain = esmm_features(dataset.schema, builder.encoder, similarity=False)
        model, refit_info = train_esmm(rows, features, settings, progress=progress, stage="ESMM, final refit")
        esmm_info |= {"examples": refit_info["examples"], "examples_per_second": refit_info["examples_per_second"]}
    models = {"seedrank": [model]}
    popularity = logistic = None
    if baselines:
        for seed in range(1, seeds):
            models["seedrank"].append(
                train_esmm(rows, features, settings, seed=seed, progress=progress, stage=f"ESMM, random seed {seed}")[0]
            )
        for variant, inputs, strategy in (("no_similarity", plain, "esmm"), ("base", features, "base")):
            models[variant] = [
                train_esmm(
                    rows,
                    inputs,
                    settings,
                    strategy=strategy,
                    seed=seed,
                    progress=progress,
                    stage=f"{variant}, random seed {seed}",
                )[0]
                for seed in range(seeds)
            ]
        progress("logistic regression", 0, 1)
        popularity = Popularity.fit(timeline.item[rows.row], rows, len(timeline.item_ids))
        logistic = Logistic.fit(rows, plain)
        progress("logistic regression", 1, 1)
    progress("state at the watermark", 0, 1)
    watermark = int(timeline.tick(np.array([timeline.window("tune")[1]]))[0])
    users, items = timeline.exists("user", watermark), timeline.exists("item", watermark)
    state = builder.at(watermark).only(users, items)
    shown = np.bincount(timeline.item[timeline.time < watermark], minlength=len(timeline.item_ids))[items]
    if popularity is not None:
        popularity = popularity.only(items)
    progress("state at the watermark", 1, 1)
    hashed = parameters_hash(representation, lookalike, model)
    run = Run(
        path=out,
        schema=dataset.schema,
        info={},
        lookalike_encoder=lookalike_encoder,
        encoder=builder.encoder,
        representation=representation,
        lookalike=lookalike,
        models=models,
        scales=scales,
        state=state,
        weights=_first_weights(models["seedrank"][0], scales, rows, builder.prices[timeline.item[rows.row]], hashed),
        impressions=shown,
        popularity=popularity,
        logistic=logistic,
    )
    run.info.update(
        {
            "dataset": str(dataset.path),
            "parameters_hash": hashed,
            "embedding_space": parameters_hash(representation, lookalike),  # what user vectors and centroids belong to
            "watermark": watermark,
            "refit": refit,
            "settings": dataclasses.asdict(settings),
            "stages": {"representation": representation_info, "lookalike": lookalike_info, "esmm": esmm_info},
            "rows": {
                "trained": len(rows.row),
                "repeats_dropped": int(rows.repeat.sum()),
                "immature": int((~rows.mature).sum()),
                "with_similarity": float(rows.features["has_similarity"].mean()),
            },
            "versions": {"keras": keras.__version__, "numpy": np.__version__, "python": platform.python_version()},
            "seconds": round(time.perf_counter() - began, 1),
        }
    )
    save_run(run, out, dataset.path / "dataset.toml", _attributes(timeline, users), overwrite=overwrite)
    return run


def _attributes(timeline: Timeline, kept: np.ndarray) -> pd.DataFrame:
    """The user table of a run: ids and declared features, raw, of the kept users."""
    names = [feature.name for feature in timeline.schema.side("user")]
    table = timeline.static("user").reindex(columns=names)[kept]
    table.insert(0, "user_id", timeline.user_ids[kept])
    return table.reset_index(drop=True)


def _first_weights(model: keras.Model, scales: Scales, rows: Rows, price: np.ndarray, hashed: str) -> FusionWeights:
    """The default weights, with constants frozen on the training rows."""
    mean, sd = scales.similarity
    parts = {
        "similarity": rows.features["similarity"] * sd + mean,
        "has_similarity": rows.features["has_similarity"],
    }
    inputs = {tensor.name: rows.features.get(tensor.name) for tensor in model.inputs}
    if "position" in inputs:
        inputs["position"] = np.zeros(len(rows.row), np.int32)
    found = model.predict(inputs, batch_size=8192, verbose=0)
    parts |= {"pctr": found["pctr"], "pcvr": found["pcvr"], "price": price}
    if not np.isfinite(parts["price"]).any():
        del parts["price"]
    reference = FusionWeights.fit(parts, "product", DEFAULT_EXPONENTS, hashed)
    return FusionWeights.from_exponents(**DEFAULT_EXPONENTS, reference=reference)
