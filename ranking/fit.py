"""One training: a dataset in, a run out."""

import dataclasses
import hashlib
import platform
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from ranking.baselines import Logistic, Popularity
from ranking.batches import Progress, silent
from ranking.board import Board
from ranking.checkpoints import Checkpoint
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.esmm_settings import EsmmSettings
from ranking.fitting import Fitting
from ranking.growth import refuse_other_schema
from ranking.lookalike_settings import LookalikeSettings
from ranking.run import Run, parameters_hash, save_run
from ranking.timeline import Timeline
from ranking.training import Settings
from ranking.workers import Workers

__all__ = ["fit_run", "settings_of"]


def fit_run(
    dataset: Dataset,
    out: Path,
    *,
    settings: Settings | None = None,
    baselines: bool = False,
    seeds: int = 3,
    refit: bool = False,
    previous: Run | None = None,
    resume: bool = False,
    on_disk: bool = False,
    workers: Workers | None = None,
    overwrite: bool = False,
    tensorboard: Path | None = None,
    progress: Progress = silent,
) -> Run:
    """Trains the stages and saves the run: representation, look-alike, ESMM on their similarity, fusion constants.

    Time travels one way: the first two stages see the look-alike window, ESMM the train window with each row as of
    its own tick, the calibrate window chooses the number of passes and calibrates. What a training has reached is kept
    in `OUT.checkpoint` until it is done.

    Args:
        dataset: Dataset.
        out: Path. The run folder to write.
        settings: Settings or `None` for the defaults; with `previous`, for its own.
        baselines: bool. Whether ESMM without the similarity, BASE, popularity and logistic regression are trained
            beside it. Defaults to `False`.
        seeds: int. Random seeds of each ESMM variant with `baselines`; one without. Defaults to 3.
        refit: bool. Whether ESMM is fitted again on train + calibrate + tune with the chosen number of passes: the
            freshest model, but its scores in the tune window are then in-sample, so a replay there is refused. Its
            calibration is that of the model before, which had not seen the calibrate window.
        previous: Run or `None`. A run to go on from: its user space stays, its ESMM learns from the rows since.
        resume: bool. Whether a stopped training of the same settings is gone on with.
        on_disk: bool. Whether ESMM's rows are kept on disk, though they would fit in memory (4 GiB).
        workers: Workers or `None`. Several processes that train ESMM, on rows on disk.
        overwrite: bool. Whether an existing `out` is replaced, and a stopped training thrown away.
        tensorboard: Path or `None`. A folder for the curves of losses and AUC, and the field attention.
        progress: Progress.
    """
    settings = settings or (settings_of(previous) if previous else Settings())
    began = time.perf_counter()
    if previous is not None:
        if baselines:
            raise UserError("`--with-baselines` should not be given with `--from`: a baseline learns from all rows.")
        refuse_other_schema(previous.schema, dataset.schema, previous.path)
    timeline = Timeline(dataset)
    for name in ("lookalike", "train", "calibrate", "tune"):
        timeline.window(name)
    for name in ("train", "calibrate"):
        timeline.some_rows_in(name)
    if baselines and (on_disk or workers is not None):
        raise UserError("`--with-baselines` should not be given with `--on-disk` or `--workers`: they need memory.")
    fitting = Fitting(
        timeline=timeline,
        settings=settings,
        previous=previous,
        checkpoint=Checkpoint(
            out.with_name(f"{out.name}.checkpoint"),
            _fingerprint(dataset, settings, baselines, seeds, refit, previous),
            resume=resume,
            overwrite=overwrite,
        ),
        board=Board(tensorboard) if tensorboard else None,
        progress=progress,
        on_disk=on_disk or workers is not None,
        workers=workers,
    )
    stages = fitting.first_stages()
    fitting.prepare("train")
    fitting.main_model()
    stages["esmm"] = dict(fitting.esmm_info)
    if refit:
        fitting.prepare("train", "calibrate", "tune")
        stages["esmm"] |= fitting.again()
    popularity = logistic = None
    if baselines:
        fitting.baselines(seeds)
        progress("logistic regression", 0, 1)
        popularity = Popularity.fit(timeline.item[fitting.rows.row], fitting.rows, len(timeline.item_ids))
        logistic = Logistic.fit(fitting.rows, fitting.features(similarity=False))
        progress("logistic regression", 1, 1)
    progress("state at the watermark", 0, 1)
    watermark = int(timeline.tick(np.array([timeline.window("tune")[1]]))[0])
    users, items = timeline.exists("user", watermark), timeline.exists("item", watermark)
    state = fitting.builder.at(watermark).only(users, items)
    shown = np.bincount(timeline.item[timeline.time < watermark], minlength=len(timeline.item_ids))[items]
    if popularity is not None:
        popularity = popularity.only(items)
    progress("state at the watermark", 1, 1)
    rows = fitting.rows
    run = Run(
        path=out,
        schema=dataset.schema,
        info={
            "dataset": str(dataset.path),
            "watermark": watermark,
            "trained_until": timeline.window("tune" if refit else "train")[1],
            "from": None if previous is None else str(previous.path),
            "refit": refit,
            "settings": dataclasses.asdict(settings),
            "stages": stages,
            "rows": {**fitting.counts, "with_similarity": float(rows.features["has_similarity"].mean())},
            "versions": {"keras": keras.__version__, "numpy": np.__version__, "python": platform.python_version()},
        },
        lookalike_encoder=fitting.lookalike_encoder,
        encoder=fitting.builder.encoder,
        representation=fitting.representation,
        lookalike=fitting.lookalike,
        models=fitting.models,
        calibrations=fitting.calibrations,
        scales=fitting.scales,
        state=state,
        weights=fitting.first_weights(),
        impressions=shown,
        popularity=popularity,
        logistic=logistic,
    )
    # What fusion constants belong to, and what user vectors and centroids belong to.
    run.info["parameters_hash"] = run.weights.parameters_hash
    run.info["embedding_space"] = parameters_hash(run.representation, run.lookalike)
    run.info["seconds"] = round(time.perf_counter() - began, 1)
    save_run(run, out, dataset.path / "dataset.toml", _attributes(timeline, users), overwrite=overwrite)
    fitting.checkpoint.remove()
    return run


def settings_of(run: Run) -> Settings:
    """The settings that a run was trained with."""
    found = run.info["settings"]
    esmm = {**found["esmm"], "towers": tuple(found["esmm"]["towers"])}
    return Settings(LookalikeSettings(**found["lookalike"]), EsmmSettings(**esmm))


def _fingerprint(
    dataset: Dataset, settings: Settings, baselines: bool, seeds: int, refit: bool, previous: Run | None
) -> dict[str, Any]:
    return {
        "dataset": str(dataset.path.resolve()),
        "dataset.toml": hashlib.sha256((dataset.path / "dataset.toml").read_bytes()).hexdigest(),
        "impressions": len(dataset.impressions),
        "settings": dataclasses.asdict(settings),
        "baselines": [baselines, seeds],
        "refit": refit,
        "from": None if previous is None else previous.info["parameters_hash"],
    }


def _attributes(timeline: Timeline, kept: np.ndarray) -> pd.DataFrame:
    """The user table of a run: ids and declared features, raw, of the kept users."""
    names = [feature.name for feature in timeline.schema.side("user")]
    table = timeline.static("user").reindex(columns=names)[kept]
    table.insert(0, "user_id", timeline.user_ids[kept])
    return table.reset_index(drop=True)
