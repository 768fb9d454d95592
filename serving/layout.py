"""What a model's folder may be called and what a version's folder may hold."""

import os
import re
import shutil
import stat
from pathlib import Path

from serving.errors import ServingError
from serving.manifest import MANIFEST, Content, check_files, version_content

__all__ = ["check_layout", "copy_version", "model_folder"]

# TensorFlow's files, ours, and those that TensorFlow Serving looks for in a version.
_EXPECTED = re.compile(
    r"saved_model\.pb|fingerprint\.pb|keras_metadata\.pb|manifest\.json|batching_params\.pbtxt"
    r"|variables/variables\.(index|data-\d{5}-of-\d{5})|assets/[^/]+|assets\.extra/[^/]+"
)
_FOLDERS = frozenset({"variables", "assets", "assets.extra"})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def model_folder(models: str | Path, name: str) -> Path:
    """The folder of a model, `models/name`, which is inside `models` wherever links lead.

    Args:
        models: str or Path. The folder of models.
        name: str. Letters, digits, `_`, `-` and `.`; it is part of a URL. Not a number, which would be a version.

    Raises:
        ServingError: another name, or a folder that is a link to outside of `models`.
    """
    if not _NAME.fullmatch(name) or name.isdigit():
        raise ServingError(
            "`name` should be of letters, digits, `_`, `-` and `.`, not begin with `-` or `.`, and not be a number. "
            f"Received: {name!r}."
        )
    folder = Path(models) / name
    if not folder.resolve().is_relative_to(Path(models).resolve()):
        raise ServingError(f"{folder} should be inside {models}. Received: a link to {folder.resolve()}.")
    return folder


def check_layout(folder: str | Path) -> None:
    """Refuses what is not a file of a SavedModel or of a version: other names, links, pipes, devices.

    Raises:
        ServingError: with the first path that does not belong there.
    """
    root = Path(folder)
    if not (root / "saved_model.pb").is_file():
        raise ServingError(f"{root} should be a SavedModel's folder. Received: no saved_model.pb in it.")
    for place, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = Path(place) / name
            mode = path.lstat().st_mode
            relative = path.relative_to(root).as_posix()
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise ServingError(f"{path} should be a plain file. Received: {kind}.")
            if not (relative in _FOLDERS if stat.S_ISDIR(mode) else _EXPECTED.fullmatch(relative)):
                raise ServingError(f"{root} should hold the files of a SavedModel only. Received: {relative}.")


def copy_version(source: Path, folder: Path) -> Content:
    """Copies a SavedModel's folder into an empty one, without its manifest.

    Returns:
        What the manifest says it is made of.

    Raises:
        ServingError: the source holds what it should not, or a copied file is not what the manifest says it is.
    """
    check_layout(source)
    shutil.copytree(source, folder, symlinks=True, dirs_exist_ok=True)
    try:
        check_files(folder)
    except ServingError as error:
        raise ServingError(str(error).replace(str(folder), str(source))) from error
    (folder / MANIFEST).unlink(missing_ok=True)
    return version_content(source)
