"""A run: everything one training leaves behind, in one folder."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

import ranking
from esmm.calibration import Calibration, calibrated
from esmm.embedding import Feature
from lookalike.similarity import LookalikeModel
from ranking.atomic import atomic_directory
from ranking.baselines import Logistic, Popularity
from ranking.batches import tf_function
from ranking.data.schema import Schema, load_schema
from ranking.errors import UserError
from ranking.features import Arrays, Encoder
from ranking.fusion import FusionWeights
from ranking.model import SimilarityScale, build_ranker, esmm_features
from ranking.state import State, StateBuilder, in_batches
from ranking.statistics import StatisticTable
from ranking.timeline import Timeline

__all__ = [
    "Run",
    "Scales",
    "load_run",
    "load_state",
    "lookalike_as_model",
    "parameters_hash",
    "save_run",
    "save_state",
    "state_arrays",
]

FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Scales:
    """Constants frozen on the training rows.

    An unknown item has no seeds and no history: its zeros must stay near what training has seen, so a column that
    hardly varies is not blown up.

    Attributes:
        statistics: `statistic_<name>` -> (means [2], standard deviations [2]); the shrinkage, in [0, 1], becomes
            [-1, 1].
        similarity: (mean, sd) over the rows that have one.
        log_seed_count: (mean, sd), sd at least 1.
    """

    statistics: dict[str, tuple[list[float], list[float]]]
    similarity: tuple[float, float]
    log_seed_count: tuple[float, float]

    @classmethod
    def fit(cls, arrays: Arrays) -> "Scales":
        """Means and standard deviations (1 where a column is constant)."""

        def both(values: np.ndarray) -> tuple[float, float]:
            sd = float(values.std(dtype=np.float64))
            return float(values.mean(dtype=np.float64)), sd if sd > 1e-6 else 1.0

        has = arrays["has_similarity"] > 0
        statistics = {}
        for name, values in arrays.items():
            if name.startswith("statistic_"):
                mean, sd = both(values[:, 1])
                statistics[name] = ([0.5, mean], [0.5, sd])
        mean, sd = both(arrays["log_seed_count"])
        similarity = both(arrays["similarity"][has]) if has.any() else (0.0, 1.0)
        return cls(statistics, similarity, (mean, max(sd, 1.0)))

    def apply(self, arrays: Arrays) -> Arrays:
        """ESMM's view of raw features; a missing similarity is exactly the mean."""
        scaled = dict(arrays)
        for name, (means, sds) in self.statistics.items():
            scaled[name] = ((arrays[name] - means) / sds).astype(np.float32)
        mean, sd = self.similarity
        scaled["similarity"] = (arrays["has_similarity"] * (arrays["similarity"] - mean) / sd).astype(np.float32)
        mean, sd = self.log_seed_count
        scaled["log_seed_count"] = ((arrays["log_seed_count"] - mean) / sd).astype(np.float32)
        return scaled


@dataclasses.dataclass(frozen=True)
class Run:
    """What training made.

    Attributes:
        path: Path or `None`. Where it was loaded from.
        schema: Schema. Of the dataset it was trained on.
        info: dict. What `seedrank train` reports; `refit`, `parameters_hash` and `watermark` among it.
        lookalike_encoder, encoder: Encoder. Of the user representation, and of ESMM.
        representation: keras.Model from user features to `[n, m]`.
        lookalike: LookalikeModel.
        models: variant -> ESMM models, one a random seed. "seedrank" is always there and its first one is served;
            "no_similarity" and "base" with `--with-baselines`. Their probabilities are as trained.
        calibrations: variant -> Calibration, one a model: from what it was trained to say to what is served.
        scales: Scales.
        state: State. As of the watermark: what an export freezes.
        weights: FusionWeights.
        impressions: int64 `[items]`. How often each item of the state had been shown before the watermark.
        popularity: Popularity or `None`; logistic: Logistic or `None`.
    """

    path: Path | None
    schema: Schema
    info: dict[str, Any]
    lookalike_encoder: Encoder
    encoder: Encoder
    representation: keras.Model
    lookalike: LookalikeModel
    models: dict[str, list[keras.Model]]
    calibrations: dict[str, list[Calibration]]
    scales: Scales
    state: State
    weights: FusionWeights
    impressions: np.ndarray
    popularity: Popularity | None = None
    logistic: Logistic | None = None
    _calls: dict[tuple[str, int], Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def features(self, *, similarity: bool = True) -> tuple[Feature, ...]:
        """The inputs of ESMM."""
        return esmm_features(self.schema, self.encoder, similarity=similarity)

    def builder(self, timeline: Timeline) -> StateBuilder:
        """States of any tick of a dataset with this run's models and vocabularies."""
        return StateBuilder(
            timeline,
            self.encoder,
            lookalike_encoder=self.lookalike_encoder,
            representation=tf_function(self.representation),
            lookalike=self.lookalike,
        )

    def attributes(self) -> pd.DataFrame:
        """The users of the state as the dataset described them, row by row: `user_id` and the user features, raw."""
        if self.path is None or not (self.path / "users.parquet").is_file():
            raise UserError(f"{self.path}: the run has no users.parquet; train again.")
        found = pd.read_parquet(self.path / "users.parquet")
        if not self.state.user_ids.equals(pd.Index(found["user_id"], dtype=self.state.user_ids.dtype, name=None)):
            raise UserError(f"{self.path}/users.parquet should list the users of state.npz; train again.")
        return found

    def model(self, variant: str = "seedrank", number: int = 0) -> keras.Model:
        """A calibrated ESMM."""
        return calibrated(self.models[variant][number], self.calibrations[variant][number])

    def _call(self, variant: str, number: int) -> tuple[list[str], Callable[..., Any]]:
        """The inputs of a calibrated ESMM and its graph, traced once."""
        if (variant, number) not in self._calls:
            esmm = self.model(variant, number)
            graph = tf_function(lambda batch: np_stack(esmm(batch)))
            self._calls[variant, number] = [tensor.name for tensor in esmm.inputs], graph
        return self._calls[variant, number]

    def ranker(self) -> keras.Model:
        """The functional model with the five outputs."""
        _, k, h = self.state.centroids.shape
        return build_ranker(
            self.lookalike,
            self.model(),
            self.features(),
            weights=self.weights,
            similarity_scale=SimilarityScale(*self.scales.similarity),
            shape=(self.state.user_vectors.shape[1], k, h),
        )

    def predict(self, arrays: Arrays, variant: str = "seedrank", model: int = 0, *, position: bool = False) -> Arrays:
        """pctr, pcvr and pctcvr, float32 `[n]`, of raw features.

        Args:
            arrays: dict of arrays `[n, ...]`, unscaled.
            variant: str. Which models.
            model: int. Which random seed.
            position: bool. Whether the logged positions are used: to judge against labels, yes; to rank, never.
        """
        inputs, call = self._call(variant, model)
        scaled = self.scales.apply(arrays)
        if "position" in inputs and not (position and "position" in scaled):
            scaled["position"] = np.zeros(len(scaled["user_id"]), np.int32)
        found = in_batches(call, {name: scaled[name] for name in inputs})
        return {"pctr": found[:, 0], "pcvr": found[:, 1], "pctcvr": found[:, 2]}


def np_stack(outputs: dict[str, Any]) -> Any:
    """[n, 3]: pctr, pcvr, pctcvr."""
    return keras.ops.stack([outputs["pctr"], outputs["pcvr"], outputs["pctcvr"]], axis=1)


def parameters_hash(*models: Any, calibration: Calibration | None = None) -> str:
    """SHA-256 of every weight, in order, and of the calibration: what fusion constants belong to."""
    digest = hashlib.sha256()
    for model in models:
        for weight in model.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
    if calibration is not None:
        digest.update(json.dumps(calibration.as_dict(), sort_keys=True).encode())
    return digest.hexdigest()


def save_run(run: Run, path: Path, dataset_toml: Path, users: pd.DataFrame, *, overwrite: bool = False) -> None:
    """Writes a run folder, whole or not at all; `users` is what `Run.attributes` gives back."""
    with atomic_directory(path, overwrite=overwrite) as folder:
        (folder / "dataset.toml").write_bytes(dataset_toml.read_bytes())
        run.lookalike_encoder.save(folder / "lookalike_encoder.json")
        run.encoder.save(folder / "encoder.json")
        run.weights.save(folder / "fusion.json")
        run.representation.save(folder / "representation.keras")
        shape = run.state.user_vectors.shape[1], *run.state.centroids.shape[1:]
        lookalike_as_model(run.lookalike, *shape).save(folder / "lookalike.keras")
        for variant, models in run.models.items():
            for number, model in enumerate(models):
                model.save(folder / f"{variant}_{number}.keras")
        save_state(run.state, folder / "state.npz")
        users.to_parquet(folder / "users.parquet", index=False)
        np.savez(folder / "impressions.npz", impressions=run.impressions)
        if run.popularity is not None:
            np.savez(folder / "popularity.npz", **dataclasses.asdict(run.popularity))
        if run.logistic is not None:
            np.savez(folder / "logistic.npz", allow_pickle=False, **run.logistic.coefficients)
        content = {
            "format": FORMAT,
            "seedrank": ranking.__version__,
            "info": run.info,
            "scales": dataclasses.asdict(run.scales),
            "variants": {v: [found.as_dict() for found in maps] for v, maps in run.calibrations.items()},
        }
        (folder / "run.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_run(path: str | Path) -> Run:
    """Reads a run folder.

    Raises:
        UserError: the folder is not a run, or was written in another format.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        raise UserError(f"{path} is not a run folder: it has no run.json. Make one with `seedrank train --out {path}`.")
    try:
        content = json.loads((path / "run.json").read_text())
    except ValueError as error:
        raise UserError(f"{path}/run.json should be JSON. Received: {error}.") from None
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}/run.json: format should be {FORMAT}. Received: {content.get('format')!r}; train again."
        )
    scales = content["scales"]
    import esmm.strategies  # noqa: F401  (registers the layers that a .keras file names)

    popularity = logistic = None
    if (path / "popularity.npz").is_file():
        with np.load(path / "popularity.npz", allow_pickle=False) as found:
            popularity = Popularity(**found)
    if (path / "logistic.npz").is_file():
        with np.load(path / "logistic.npz", allow_pickle=False) as found:
            logistic = Logistic(dict(found))
    lookalike = _load_model(path / "lookalike.keras")
    layers = [layer for layer in lookalike.layers if isinstance(layer, LookalikeModel)]
    return Run(
        path=path,
        schema=load_schema(path / "dataset.toml"),
        info=content["info"],
        lookalike_encoder=Encoder.load(path / "lookalike_encoder.json"),
        encoder=Encoder.load(path / "encoder.json"),
        representation=_load_model(path / "representation.keras"),
        lookalike=layers[0],
        models={
            variant: [_load_model(path / f"{variant}_{number}.keras") for number in range(len(maps))]
            for variant, maps in content["variants"].items()
        },
        calibrations={v: [Calibration.from_dict(found) for found in maps] for v, maps in content["variants"].items()},
        scales=Scales(scales["statistics"], tuple(scales["similarity"]), tuple(scales["log_seed_count"])),
        state=load_state(path / "state.npz"),
        weights=FusionWeights.load(path / "fusion.json"),
        impressions=np.load(path / "impressions.npz", allow_pickle=False)["impressions"],
        popularity=popularity,
        logistic=logistic,
    )


def _load_model(path: Path) -> keras.Model:
    try:
        return keras.models.load_model(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]} Train again.") from None


def lookalike_as_model(lookalike: LookalikeModel, m: int, k: int, h: int) -> keras.Model:
    """The look-alike layer as a functional model, which is what a .keras file holds best."""
    inputs = {
        "user": keras.Input((m,), name="user"),
        "centroids": keras.Input((k, h), name="centroids"),
        "centroid_counts": keras.Input((k,), name="centroid_counts"),
    }
    return keras.Model(inputs, lookalike(inputs))


def save_state(state: State, path: Path) -> None:
    """Writes a state as one .npz file, without pickles."""
    np.savez(path, **state_arrays(state))


def state_arrays(state: State) -> dict[str, Any]:
    """The content of a state, by name: numbers and arrays."""
    arrays: dict[str, Any] = {
        "tick": state.tick,
        "user_ids": _ids(state.user_ids),
        "item_ids": _ids(state.item_ids),
        "user_vectors": state.user_vectors,
        "centroids": state.centroids,
        "centroid_counts": state.centroid_counts,
        "seed_counts": state.seed_counts,
        "prices": state.prices,
    }
    arrays |= {f"users/{name}": values for name, values in state.users.items()}
    arrays |= {f"items/{name}": values for name, values in state.items.items()}
    for name, table in state.statistics.items():
        arrays |= {f"statistic/{name}/values": table.values, f"statistic/{name}/codes": table.codes}
        arrays[f"statistic/{name}/side"] = np.array([table.side, *(f"{c}:{n}" for c, n in table.columns)])
    return arrays


def _ids(index: pd.Index) -> np.ndarray:
    return index.to_numpy(np.int64) if index.dtype.kind == "i" else index.to_numpy().astype(np.str_)


def load_state(path: Path) -> State:
    """Reads what `save_state` wrote."""
    with np.load(path, allow_pickle=False) as found:
        names = {name.split("/")[1] for name in found.files if name.startswith("statistic/")}
        statistics = {}
        for name in sorted(names):
            side, *columns = found[f"statistic/{name}/side"].tolist()
            statistics[name] = StatisticTable(
                side,
                found[f"statistic/{name}/values"],
                tuple((column.rsplit(":", 1)[0], int(column.rsplit(":", 1)[1])) for column in columns),
                found[f"statistic/{name}/codes"],
            )
        return State(
            tick=int(found["tick"]),
            user_ids=pd.Index(found["user_ids"], dtype=None if found["user_ids"].dtype.kind == "i" else "str"),
            item_ids=pd.Index(found["item_ids"], dtype=None if found["item_ids"].dtype.kind == "i" else "str"),
            users={n.removeprefix("users/"): found[n] for n in found.files if n.startswith("users/")},
            items={n.removeprefix("items/"): found[n] for n in found.files if n.startswith("items/")},
            user_vectors=found["user_vectors"],
            centroids=found["centroids"],
            centroid_counts=found["centroid_counts"],
            seed_counts=found["seed_counts"],
            prices=found["prices"],
            statistics=statistics,
        )
