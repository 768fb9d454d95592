"""A study as an Optuna study, so that optuna-dashboard and Optuna's plots open it."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.pool import StaticPool

from ranking.atomic import atomic_file, refuse_file
from ranking.errors import UserError
from ranking.replay.study import Study

__all__ = ["STUDY_NAME", "export_study"]

STUDY_NAME = "seedrank"
_SQLITE = "sqlite:///"


def export_study(study: Study, storage: str, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Writes every trial: its weights as parameters, its changes as values, why it is refused as attributes.

    A trial that the log does not support has failed: it has its `reason` and no values. Constraints are the guardrails
    on the tune window (at most 0 where kept), as point estimates. The trials of the shortlist have a `name`.

    Args:
        study: Study.
        storage: str. `sqlite:///FILE`, or a file of Optuna's journal. It should not exist.
        progress: callable of (done, total). Defaults to `None`.

    Returns:
        Path. The file; the study in it is named `STUDY_NAME`.

    Raises:
        UserError: the file exists, or another kind of storage.
    """
    if "://" in storage and not storage.startswith(_SQLITE):
        raise UserError(f"`storage` should be sqlite:///FILE or a journal file. Received: {storage!r}.")
    path = Path(storage.removeprefix(_SQLITE))
    refuse_file(path, overwrite=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = study.settings["axes"]
    trials = [_trial(study, row) for row in study.trials]
    with atomic_file(path) as temporary:
        if storage.startswith(_SQLITE):
            # One connection that syncs nothing: the file is synced once, when it is whole.
            connection = sqlite3.connect(temporary, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")
            engine = {"creator": lambda: connection, "poolclass": StaticPool}
            backend: Any = optuna.storages.RDBStorage(f"{_SQLITE}{temporary}", engine_kwargs=engine)
        else:
            connection = None
            backend = optuna.storages.JournalStorage(JournalFileBackend(str(temporary)))
        made = optuna.create_study(storage=backend, study_name=STUDY_NAME, directions=["maximize"] * len(axes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            made.set_metric_names(list(axes))
        for name, value in {"verdict": study.verdict, "pick": study.pick, "estimator": study.estimator}.items():
            made.set_user_attr(name, value)
        for number, trial in enumerate(trials):
            made.add_trial(trial)
            if progress:
                progress(number + 1, len(trials))
        if connection is not None:
            connection.close()
    return path


def _trial(study: Study, row: dict[str, Any]) -> optuna.trial.FrozenTrial:
    bounds = study.production.bounds
    weights = row["weights"]
    attributes: dict[str, Any] = {"feasible": row["feasible"]}
    for entry in study.shortlist:
        if all(abs(entry.test.weights[part] - weight) < 1e-6 for part, weight in weights.items()):
            attributes["name"] = entry.name
    given: dict[str, Any] = {  # rounded in the file, perhaps to just beyond a bound
        "params": {part: min(max(weight, bounds[part][0]), bounds[part][1]) for part, weight in weights.items()},
        "distributions": {part: optuna.distributions.FloatDistribution(*bounds[part]) for part in weights},
    }
    if "reason" in row:
        attributes["reason"] = row["reason"]
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attributes, **given)
    deltas = row["deltas"]
    axes = study.settings["axes"]
    attributes |= {name: delta for name, delta in deltas.items() if name not in axes}
    kept = [least - deltas[name] for name, least in study.guardrails.items() if name in deltas]
    return optuna.trial.create_trial(
        values=[deltas[name] for name in axes], user_attrs=attributes, system_attrs={"constraints": kept}, **given
    )
