"""The right to erasure: a user leaves datasets, runs, seed lists and audiences."""

from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranking.atomic import atomic_file
from ranking.batches import Progress, silent
from ranking.data.tables import Dataset
from ranking.erasure import TABLE_SUFFIXES, Person, columns_of, rows_of, without_rows
from ranking.errors import UserError
from ranking.forget_data import forget_in_data, rows_in_data
from ranking.forget_run import forget_in_run, is_in_run, refuse_other, remember
from ranking.population import forgotten_users
from ranking.run import Run, load_run
from ranking.seeds_file import fingerprint

__all__ = ["forget"]

_STALE = (
    "centroids, seed counts and statistics of this run hold the user's share until they are rebuilt: name the dataset "
    "as well (--data)"
)
_EXPORTED = "versions exported from this run hold the user: export again, and delete the older versions"
_WEIGHTS = "the model's parameters changed: fusion weights that a replay chose for this run are refused, tune again"
_REST = "what was averaged over many users in training (networks, the popularity baseline) stays"


def forget(
    user: int | str,
    *,
    data: str | Path | None = None,
    runs: Sequence[str | Path] = (),
    files: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Removes a user from a dataset, runs and lists; each of them changes whole or not at all.

    Everything is looked through before anything is written. A process that is stopped in between has dealt with some
    of the places and not with others; the same call again does the rest.

    Args:
        user: int or str. The id.
        data: str or Path. The dataset folder. With it the runs' centroids, seed counts and statistics are rebuilt
            without him. Optional.
        runs: sequence of str or Path. Run folders. Their parameters' hash changes where a model knew him. Defaults to
            none.
        files: sequence of str or Path. Seed lists and audiences: CSV, CSV.gz, text with an id a line, or Parquet, with
            the id as written, trimmed and without case, or as SHA-256. Defaults to none.
        progress: Progress.

    Returns:
        Dict as `seedrank forget --json` prints it: `user`, `data`, `runs` and `files` (what was removed from each), and
        `notes`: what this call could not do.

    Raises:
        UserError: a place is missing or cannot be read, or the user is in none of them.
    """
    person = Person(str(user))
    if data is None and not runs and not files:
        raise UserError("Nowhere to look: name a dataset (--data), runs (--run) or lists (--file).")
    dataset = None if data is None else Dataset(data)
    lists = [_list(Path(path)) for path in files]
    loaded = [load_run(path) for path in runs]
    ids = [person.id(run.schema.user_id, f"{run.path}/dataset.toml") for run in loaded]
    if dataset is not None:
        for run in loaded:
            refuse_other(run, dataset)
    progress("looking for the user", 0, 1)
    in_data = {} if dataset is None else rows_in_data(dataset, person)
    in_lists = {path: rows_of(path, "user_id", person.is_listed()) for path in lists}
    known = [is_in_run(run, one) for run, one in zip(loaded, ids, strict=True)]
    before = [fingerprint(one) in forgotten_users(run) for run, one in zip(loaded, ids, strict=True)]
    if not (in_data or any(known) or any(before) or any(rows.any() for rows in in_lists.values())):
        places = ", ".join(str(path) for path in (*([] if data is None else [data]), *runs, *files))
        raise UserError(f"user {person.text!r} is in none of these: {places}. Nothing was changed.")
    progress("looking for the user", 1, 1)
    notes: list[str] = []
    report: dict[str, Any] = {"user": person.text, "data": None, "runs": [], "files": [], "notes": notes}
    if dataset is not None:
        report["data"] = {"path": str(dataset.path), "removed": forget_in_data(dataset.path, in_data)}
        notes += _leftovers(dataset.path)
        dataset = Dataset(dataset.path)
    for number, (run, one) in enumerate(zip(loaded, ids, strict=True)):
        progress("runs", number, len(loaded))
        report["runs"].append(_from_run(run, one, known[number], before[number], dataset))
        notes += _leftovers(Path(runs[number]))
        progress("runs", number + 1, len(loaded))
    report["files"] = [{"path": str(path), "removed": _from_list(path, rows)} for path, rows in in_lists.items()]
    for path in lists:
        notes += _leftovers(path)
    return report


def _from_run(run: Run, user: Any, known: bool, before: bool, dataset: Dataset | None) -> dict[str, Any]:
    path = run.path or Path()
    report: dict[str, Any] = {"path": str(path), "removed": {}, "rebuilt": False, "notes": []}
    if known or (before and dataset is not None):
        old = run.info["parameters_hash"]
        report |= forget_in_run(run, user, dataset)
        stale = [] if dataset is not None else [_STALE]
        changed = [_WEIGHTS] if report["parameters_hash"] != old else []
        report["notes"] = [*stale, _EXPORTED, *changed, _REST]
    else:
        remember(run, path / "forgotten.json", user)
    return report


def _list(path: Path) -> Path:
    """A list of users, checked."""
    if not path.is_file():
        raise UserError(f"{path} should be a file with user ids. Received: no such file.")
    if not path.name.lower().endswith((*TABLE_SUFFIXES, ".txt")):
        raise UserError(f"{path}: a list should be one of {', '.join(TABLE_SUFFIXES)}, .txt. Received: {path.name!r}.")
    names = columns_of(path)
    if "user_id" not in names:
        raise UserError(f"{path}: should have a column `user_id`. Received: {', '.join(names)}.")
    return path


def _from_list(path: Path, rows: NDArray[np.bool_]) -> int:
    if rows.any():
        with atomic_file(path) as temporary:
            without_rows(path, temporary, rows)
    return int(rows.sum())


def _leftovers(path: Path) -> list[str]:
    """Temporary copies beside a place: a command that was killed leaves them."""
    path = path.resolve()
    found = sorted(path.parent.glob(f".tmp-*-{escape(path.name)}*"))
    return [f"{left} was left by a command that was killed and may hold the user: delete it" for left in found]
