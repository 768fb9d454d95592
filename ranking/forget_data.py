"""A user leaves a dataset: his rows go from every table, and from what stands row by row beside one."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ranking.atomic import atomic_directory
from ranking.data.tables import Dataset
from ranking.erasure import TABLE_SUFFIXES, Person, columns_of, rows_of, without_rows
from ranking.errors import UserError

__all__ = ["forget_in_data", "rows_in_data", "table_files"]


def table_files(folder: Path) -> dict[str, Path]:
    """Every table under a folder: its name (`impressions`, `truth/candidates`) -> the file."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for suffix in TABLE_SUFFIXES:
            if path.name.lower().endswith(suffix):
                found[path.relative_to(folder).as_posix()[: -len(suffix)]] = path
    return found


def rows_in_data(dataset: Dataset, person: Person) -> dict[Path, NDArray[np.bool_]]:
    """Which rows of which files are a user's; files without any are left out.

    A table with `user_id` says it itself. One with `request_id` alone (candidates) follows the requests of the user.
    One with neither, in a folder of its own (a simulator's `truth/impressions`), stands row by row beside the table of
    that name.

    Raises:
        UserError: the id is none of the declared kind; or a table that stands beside another has other rows.
    """
    kind = dataset.schema.user_id
    person.id(kind, f"{dataset.path}/dataset.toml")
    files = table_files(dataset.path)
    columns = {name: columns_of(path, named=True) for name, path in files.items()}
    mine = {
        name: rows_of(path, "user_id", person.is_in(kind), named=True)
        for name, path in files.items()
        if "user_id" in columns[name]
    }
    requests = _requests(files, columns, mine)
    for name, path in files.items():
        if name not in mine and "request_id" in columns[name]:
            mine[name] = rows_of(path, "request_id", lambda values: _among(values, requests), named=True)
    for name, path in files.items():
        beside = name.rpartition("/")[2]
        if name not in mine and beside in mine:
            rows = rows_of(path, columns[name][0], lambda values: np.zeros(len(values), bool), named=True)
            if len(rows) != len(mine[beside]):
                raise UserError(
                    f"{path}: should have a row for each of the {len(mine[beside]):,} of {files[beside].name}, so that "
                    f"those of the user are known. Received: {len(rows):,}."
                )
            mine[name] = mine[beside]
    left = mine.get("impressions")
    if left is not None and left.any() and left.all():
        raise UserError(f"{dataset.path}: all impressions are of this user; delete the folder instead.")
    return {files[name]: rows for name, rows in mine.items() if rows.any()}


def _requests(
    files: Mapping[str, Path], columns: Mapping[str, list[str]], mine: Mapping[str, NDArray[np.bool_]]
) -> set[str]:
    """The ids of the user's requests, as text."""
    found: set[str] = set()
    for name, rows in mine.items():
        if "request_id" in columns[name] and rows.any():
            every: list[str] = []
            rows_of(files[name], "request_id", partial(_keep_text, every=every), named=True)
            found.update(every[row] for row in np.flatnonzero(rows))
    return found


def _text(values: Any) -> list[str | None]:
    return values if isinstance(values, list) else values.cast(pa.string()).to_pylist()


def _keep_text(values: Any, every: list[Any]) -> NDArray[np.bool_]:
    every += _text(values)
    return np.zeros(len(values), bool)


def _among(values: Any, wanted: set[str]) -> NDArray[np.bool_]:
    return np.array([value in wanted for value in _text(values)], bool)


def forget_in_data(folder: Path, mine: Mapping[Path, NDArray[np.bool_]]) -> dict[str, int]:
    """Writes a dataset without some rows, whole or not at all.

    Args:
        folder: Path. The dataset.
        mine: file -> bool `[rows]`, what `rows_in_data` gave.

    Returns:
        Table -> how many rows are gone.
    """
    if mine:
        with atomic_directory(folder, overwrite=True) as new:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                target = new / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path in mine:
                    without_rows(path, target, mine[path], named=True)
                else:
                    shutil.copy2(path, target)
    names = {path: name for name, path in table_files(folder).items()}
    return {names[path]: int(rows.sum()) for path, rows in mine.items()}
