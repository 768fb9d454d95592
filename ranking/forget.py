"""The right to erasure: a user leaves datasets, runs, click logs, seed stores, seed lists and audiences."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
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
from ranking.forget_log import LogPlace
from ranking.forget_models import versions_with
from ranking.forget_redis import RedisPlace
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
_VERSIONS = (
    "versions that hold the user, or cannot be read and may, are named below: export again, or refresh where no run "
    "changed; then seedrank prune"
)
_FOLLOWED = (
    "files that `seedrank ingest --tail` follows are their writers': the user has to leave them, and old copies, too"
)
_UNFINISHED = "an unfinished training beside this run was removed, for it had seen the user"
_WEIGHTS = "the model's parameters changed: fusion weights that a replay chose for this run are refused, tune again"
_REST = "what was averaged over many users in training (networks, the popularity baseline) stays"


def forget(
    user: int | str,
    *,
    data: str | Path | None = None,
    runs: Sequence[str | Path] = (),
    files: Sequence[str | Path] = (),
    logs: Sequence[str | Path] = (),
    redis: Sequence[str] = (),
    models: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Removes a user from a dataset, runs, lists, click logs and servers; each of them changes whole or not at all.

    Everything is looked through before anything is written, and again afterwards. A process that is stopped in between
    has dealt with some of the places and not with others; the same call again does the rest.

    Args:
        user: int or str. The id.
        data: str or Path. The dataset folder. With it the runs' centroids, seed counts and statistics are rebuilt
            without him. Optional.
        runs: sequence of str or Path. Run folders. Their parameters' hash changes where a model knew him. An
            unfinished training beside one (`OUT.checkpoint`) is removed. Defaults to none.
        files: sequence of str or Path. Seed lists and audiences: CSV, CSV.gz, text with an id a line, or Parquet, with
            the id as written, trimmed and without case, or as SHA-256. Defaults to none.
        logs: sequence of str or Path. Click logs, with what was set aside beside them and the snapshots of their seed
            store; no other process may write them meanwhile. Defaults to none.
        redis: sequence of str. URLs of servers with users' vectors or a shared seed store. Defaults to none.
        models: sequence of str or Path. Folders of models, which are looked through and not changed. Defaults to none.
        progress: Progress.

    Returns:
        Dict as `seedrank forget --json` prints it: `user`, `data`, `runs`, `files`, `logs` and `redis` (what was
        removed from each), `models` (its `versions` that hold him or may, and those of them that are `unreadable`),
        `remaining` (files where he was found again) and `notes`: what this call could not do.

    Raises:
        UserError: a place is missing, cannot be read or is in use, or the user is in none of them.
    """
    person = Person(str(user))
    changed = [*([] if data is None else [data]), *runs, *files, *logs, *redis]
    if not changed:
        raise UserError(
            "Nowhere to look: name a dataset (--data), runs (--run), lists (--file), click logs (--log) or servers "
            "(--redis)."
        )
    for path in models:
        if not Path(path).is_dir():
            raise UserError(f"--models {path}: should be a folder of models. Received: no such folder.")
    progress("looking for the user", 0, 1)
    places = _Places(person, data, runs, files, logs, redis)
    in_redis = None
    if not places.known and redis:  # a server tells only by what it erases
        in_redis = places.from_redis()
    if not (places.known or any(place["removed"] for place in in_redis or [])):
        where = ", ".join([*map(str, changed[: len(changed) - len(redis)]), *(place.name for place in places.redis)])
        raise UserError(f"user {person.text!r} is in none of these: {where}. Nothing was changed.")
    progress("looking for the user", 1, 1)
    with places.held():
        report: dict[str, Any] = {"user": person.text, **places.erase(progress), "redis": in_redis}
        if in_redis is None:
            report["redis"] = places.from_redis()
    report["remaining"] = places.remaining()
    report["models"] = []
    for path in models:
        found, unreadable = versions_with(Path(path), places.ids)
        report["models"].append({"path": str(path), "versions": found, "unreadable": unreadable})
    if any(model["versions"] for model in report["models"]):
        places.notes.append(_VERSIONS)
    report["notes"] = [*places.notes, *(note for place in places.redis for note in place.notes)]
    return report


class _Places:
    """Where a user is to leave, opened and looked through."""

    def __init__(
        self,
        person: Person,
        data: str | Path | None,
        runs: Sequence[str | Path],
        files: Sequence[str | Path],
        logs: Sequence[str | Path],
        redis: Sequence[str],
    ) -> None:
        self.person = person
        self.notes: list[str] = []
        self.dataset = None if data is None else Dataset(data)
        self.lists = [_list(Path(path)) for path in files]
        self.unfinished = [path for path in map(Path, runs) if _checkpoint(path).is_dir()]
        self.runs = [load_run(path) for path in runs if (Path(path) / "run.json").is_file() or not self._stopped(path)]
        self.run_ids = [person.id(run.schema.user_id, f"{run.path}/dataset.toml") for run in self.runs]
        if self.dataset is not None:
            for run in self.runs:
                refuse_other(run, self.dataset)
        self.in_data = {} if self.dataset is None else rows_in_data(self.dataset, person)
        self.in_lists = {path: rows_of(path, "user_id", person.is_listed()) for path in self.lists}
        self.is_known = [is_in_run(run, one) for run, one in zip(self.runs, self.run_ids, strict=True)]
        self.was_known = [
            fingerprint(one) in forgotten_users(run) for run, one in zip(self.runs, self.run_ids, strict=True)
        ]
        self.logs = [LogPlace(path, person) for path in logs]
        self.redis = [RedisPlace(url) for url in redis]

    def _stopped(self, path: str | Path) -> bool:
        """Whether there is no run, but a training that was to become one."""
        return Path(path) in self.unfinished

    @property
    def known(self) -> bool:
        found = [*self.is_known, *self.was_known, *(rows.any() for rows in self.in_lists.values())]
        return bool(self.in_data or self.unfinished or any(found) or any(place.known for place in self.logs))

    @property
    def ids(self) -> list[Any]:
        """The user's id, as the places declare ids; without any, as text and as a number."""
        declared: list[Any] = [*self.run_ids, *(place.user for place in self.logs)]
        if self.dataset is not None:
            declared.append(self.person.id(self.dataset.schema.user_id, f"{self.dataset.path}/dataset.toml"))
        guessed = [self.person.text, *([] if self.person.number is None else [self.person.number])]
        return list(dict.fromkeys(declared or guessed))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While the block runs, nobody else writes the logs."""
        with contextlib.ExitStack() as stack:
            for place in self.logs:
                stack.enter_context(place.held())
            yield

    def erase(self, progress: Progress) -> dict[str, Any]:
        """Does it, but for servers: what was removed, by place."""
        report: dict[str, Any] = {"data": None, "runs": [], "files": [], "logs": []}
        for place in self.logs:
            report["logs"].append({"path": str(place.folder), "removed": place.erase()})
            self.notes += [_FOLLOWED] if (place.folder / "tails").is_dir() else []
        if self.dataset is not None:
            report["data"] = {
                "path": str(self.dataset.path),
                "removed": forget_in_data(self.dataset.path, self.in_data),
            }
            self.notes += _leftovers(self.dataset.path)
            self.dataset = Dataset(self.dataset.path)
        for number, (run, one) in enumerate(zip(self.runs, self.run_ids, strict=True)):
            progress("runs", number, len(self.runs))
            report["runs"].append(_from_run(run, one, self.is_known[number], self.was_known[number], self.dataset))
            self.notes += _leftovers(run.path or Path())
            progress("runs", number + 1, len(self.runs))
        for path in self.unfinished:
            shutil.rmtree(_checkpoint(path))
            self.notes.append(f"{_checkpoint(path)}: {_UNFINISHED}")
        report["files"] = [{"path": str(path), "removed": _from_list(path, his)} for path, his in self.in_lists.items()]
        for path in self.lists:
            self.notes += _leftovers(path)
        return report

    def from_redis(self) -> list[dict[str, Any]]:
        """Removes him from the servers."""
        return [{"path": place.name, "removed": place.erase(self.ids)} for place in self.redis]

    def remaining(self) -> list[str]:
        """Looks again, at what lies on the disk: where he still is."""
        found = [name for place in self.logs for name in place.remaining()]
        if self.dataset is not None:
            found += map(str, rows_in_data(self.dataset, self.person))
        for run, one in zip(self.runs, self.run_ids, strict=True):
            if run.path is not None and is_in_run(load_run(run.path), one):
                found.append(str(run.path))
        return found + [str(path) for path in self.lists if rows_of(path, "user_id", self.person.is_listed()).any()]


def _checkpoint(path: Path) -> Path:
    """Where a training that was stopped is kept."""
    return path.with_name(f"{path.name}.checkpoint")


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
