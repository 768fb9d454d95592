"""A user leaves a run: state, vocabularies, embeddings, weights and the table of users."""

import dataclasses
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from esmm.embedding import Feature, SharedEmbedding, WideLinear
from ranking.atomic import atomic_directory, atomic_file
from ranking.baselines import Popularity, plain_features
from ranking.data.tables import Dataset
from ranking.erasure import Person, columns_of, rows_of, without_rows
from ranking.errors import UserError
from ranking.features import OUT_OF_VOCABULARY, Encoder, Vocabulary
from ranking.forget_data import table_files
from ranking.population import forgotten_users
from ranking.run import Run, parameters_hash, save_state
from ranking.seeds_file import fingerprint
from ranking.state import State
from ranking.timeline import Timeline

__all__ = ["forget_in_run", "is_in_run", "refuse_other", "remember"]

RESERVED = 2  # indices of a vocabulary before its first value


def is_in_run(run: Run, user: Any) -> bool:
    """Whether a run knows a user: in its state or in a vocabulary."""
    vocabularies = (encoder.vocabularies["user_id"].values for encoder in (run.encoder, run.lookalike_encoder))
    return user in run.state.user_ids or any(user in values for values in vocabularies)


def remember(run: Run, path: Path, user: Any) -> None:
    """Notes the user's fingerprint in `forgotten.json`: expansions leave him out whatever population they are given."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(sorted(forgotten_users(run) | {fingerprint(user)}), indent=1) + "\n")


def refuse_other(run: Run, dataset: Dataset) -> None:
    """Raises UserError where a dataset declares other features or another state than the run's."""
    mine, its = run.schema, dataset.schema
    names = ("user_id", "item_id", "time", "features", "behaviors", "statistics", "seed_event", "tick_ms", "k")
    other = [name for name in (*names, "min_seeds") if getattr(mine, name) != getattr(its, name)]
    if other:
        raise UserError(
            f"{dataset.path}/dataset.toml should declare what the run {run.path} was trained on. Received: other "
            f"{', '.join(other)}."
        )


def forget_in_run(run: Run, user: Any, dataset: Dataset | None) -> dict[str, Any]:
    """Writes a run's folder without a user, whole or not at all.

    He leaves the state, the vocabularies and the table of users; in ESMM his rows become the unknown user's. What was
    counted or averaged over many users keeps its share of him until it is rebuilt from a dataset without him.

    Args:
        run: Run, as loaded from its folder.
        user: int or str. The id, as the run's ids are.
        dataset: Dataset or `None`. The run's dataset without him: centroids, seed counts and statistics at the
            watermark are rebuilt from it.

    Returns:
        Dict: what was removed, whether the state was rebuilt, and the hash of the parameters.

    Raises:
        UserError: the dataset is another log.
    """
    path = run.path
    if path is None:
        raise UserError("`run` should have been loaded from a folder.")
    timeline = None if dataset is None else Timeline(dataset)
    state = _without(run, user) if timeline is None else _rebuilt(run, user, timeline)
    removed = {"state": int(user in run.state.user_ids)}
    changed = run.info["parameters_hash"]
    with atomic_directory(path, overwrite=True) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        save_state(state, folder / "state.npz")
        _realign(run, state, timeline, folder)
        removed["vocabularies"] = _leave_vocabularies(run, user, folder)
        if user in (found := run.encoder.vocabularies["user_id"].values):
            place = int(np.flatnonzero(found == user)[0]) + RESERVED
            removed["model rows"] = _leave_models(run, place, folder)
            changed = parameters_hash(
                run.representation,
                run.lookalike,
                run.models["seedrank"][0],
                calibration=run.calibrations["seedrank"][0],
            )
            dataclasses.replace(run.weights, parameters_hash=changed).save(folder / "fusion.json")
            content = json.loads((folder / "run.json").read_text())
            content["info"]["parameters_hash"] = changed
            (folder / "run.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        removed |= _leave_tables(path, folder, state, user)
        remember(run, folder / "forgotten.json", user)
    return {
        "removed": {name: count for name, count in removed.items() if count},
        "rebuilt": dataset is not None,
        "parameters_hash": changed,
    }


def _without(run: Run, user: Any) -> State:
    """The state without the user's own rows."""
    state = run.state
    others = np.asarray(state.user_ids != user)
    found = state.only(others, np.ones(len(state.item_ids), bool))
    if others.all():
        return found
    # A centroid of one seed is that seed: where it is he, it goes too.
    vector = state.user_vectors[np.flatnonzero(~others)]
    his = np.asarray(run.lookalike.transform(vector))[0]  # [h]
    near = np.abs(found.centroids - his).max(axis=2) <= 1e-4 * max(float(np.abs(his).max()), 1e-6)  # [items, k]
    alone = near & (found.centroid_counts == 1)
    centroids, counts = found.centroids.copy(), found.centroid_counts.copy()
    centroids[alone], counts[alone] = 0, 0
    return dataclasses.replace(found, centroids=centroids, centroid_counts=counts)


def _rebuilt(run: Run, user: Any, timeline: Timeline) -> State:
    """The state at the watermark from a dataset without the user, over the users and items the run had."""
    users, items = timeline.user_ids.isin(run.state.user_ids), timeline.item_ids.isin(run.state.item_ids)
    users &= np.asarray(timeline.user_ids != user)
    if not users.any() or not items.any():
        raise UserError(f"{timeline.dataset.path} has no user, or no item, of the run {run.path}; it is another log.")
    return run.builder(timeline).at(run.state.tick).only(users, items)


def _realign(run: Run, state: State, timeline: Timeline | None, folder: Path) -> None:
    """Counts by item follow the items of the state; from a dataset they are made again."""
    rows = run.state.item_ids.get_indexer(state.item_ids)
    shown = run.impressions[rows]
    if timeline is not None:
        past = timeline.impressions["item_id"][timeline.time < state.tick]
        place = state.item_ids.get_indexer(pd.Index(past))
        shown = np.bincount(place[place >= 0], minlength=len(rows))
    np.savez(folder / "impressions.npz", impressions=shown)
    if run.popularity is not None:
        rows = np.append(rows, len(run.state.item_ids))
        kept = {name: values[rows] for name, values in dataclasses.asdict(run.popularity).items()}
        np.savez(folder / "popularity.npz", **dataclasses.asdict(Popularity(**kept)))


def _leave_vocabularies(run: Run, user: Any, folder: Path) -> int:
    """His id becomes one that nobody can have, so that the indices of the others stay."""
    left = 0
    for name, encoder in (("encoder", run.encoder), ("lookalike_encoder", run.lookalike_encoder)):
        values = encoder.vocabularies["user_id"].values
        if user in values:
            left += 1
            _renamed(encoder, user).save(folder / f"{name}.json")
    return left


def _renamed(encoder: Encoder, user: Any) -> Encoder:
    values = encoder.vocabularies["user_id"].values
    if values.dtype.kind == "i":  # the lowest quarter of 64 bits: no counter and no hash gets there by chance
        nobody: Any = secrets.randbelow(2**62) - 2**63
    else:
        nobody = f"forgotten-{secrets.token_hex(16)}"
    renamed = pd.Index([nobody if value == user else value for value in values], dtype=values.dtype)
    return dataclasses.replace(encoder, vocabularies={**encoder.vocabularies, "user_id": Vocabulary(renamed)})


def _leave_models(run: Run, place: int, folder: Path) -> int:
    """His row of every embedding and every wide part becomes the unknown user's, in all models and their optimizers."""
    rows = 0
    for variant, models in run.models.items():
        for number, model in enumerate(models):
            rows += sum(_overwrite(model, layer, place) for layer in _tables(model))
            model.save(folder / f"{variant}_{number}.keras")
    if run.logistic is not None:
        at = _offset(run.features(similarity=False))
        coefficients = {}
        for head, values in run.logistic.coefficients.items():
            coefficients[head] = values.copy()
            coefficients[head][at + place] = values[at + OUT_OF_VOCABULARY]
        np.savez(folder / "logistic.npz", allow_pickle=False, **coefficients)
        rows += len(coefficients)
    return rows


def _tables(model: keras.Model) -> list[Any]:
    found = model._flatten_layers(include_self=False, recursive=True)
    return [layer for layer in found if isinstance(layer, SharedEmbedding | WideLinear) and "user_id" in layer.offsets]


def _overwrite(model: keras.Model, layer: Any, place: int) -> int:
    start = layer.offsets["user_id"]
    slots = [] if model.optimizer is None else model.optimizer.variables
    # Moments of his row tell of him too. They are of the table's shape, and every such table has its users there.
    for variable in (layer.table, *(slot for slot in slots if slot.shape == layer.table.shape)):
        values = np.array(variable)
        values[start + place] = values[start + OUT_OF_VOCABULARY]
        variable.assign(values)
    return 1


def _offset(features: tuple[Feature, ...]) -> int:
    """Where the users' columns start in the matrix of the logistic baseline."""
    at = 0
    for feature in plain_features(features):
        if feature.name == "user_id":
            break
        at += max(feature.size, 1)
    return at


def _leave_tables(path: Path, folder: Path, state: State, user: Any) -> Mapping[str, int]:
    """The table of users keeps those of the state; any other table loses just his rows."""
    removed = {}
    his = Person(str(user)).is_in("string" if isinstance(user, str) else "int64")
    for name, file in table_files(path).items():
        if "user_id" not in columns_of(file, named=True):
            continue
        gone = rows_of(file, "user_id", his, named=True)
        if name == "users":
            gone = ~pd.Index(pd.read_parquet(file, columns=["user_id"])["user_id"]).isin(state.user_ids)
        if gone.any():
            without_rows(file, folder / file.relative_to(path), gone, named=True)
            removed[f"{name} rows"] = int(gone.sum())
    return removed
