"""Which versions stay: the newest ones, the live one, and those that a server's configuration names."""

import os
import re
import shutil
import uuid
from pathlib import Path

from serving.errors import ServingError
from serving.lease import lease
from serving.manifest import complete

__all__ = ["live_version", "named_versions", "prune", "retain", "version_folders", "versions"]

MODELS_CONFIG = "models.config"


def versions(base_path: str | Path) -> list[int]:
    """The published versions under `base_path`, oldest first.

    A version is a folder whose name is a number, as TensorFlow Serving reads it; everything else is ignored.
    """
    return sorted(version_folders(Path(base_path)))


def version_folders(base_path: Path) -> dict[int, Path]:
    """Version -> folder ("00000123" is version 123)."""
    try:
        with os.scandir(base_path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return {}
    return {int(name): base_path / name for name in names if re.fullmatch(r"[0-9]+", name) and int(name) < 1 << 63}


def live_version(base_path: str | Path) -> int | None:
    """The newest version whose files are all there: the one that a server without other orders serves."""
    folders = version_folders(Path(base_path))
    return next((version for version in sorted(folders, reverse=True) if complete(folders[version])), None)


def named_versions(base_path: str | Path) -> dict[int, list[str]]:
    """The versions of a model that `models.config` beside it names: version -> labels, none where only its policy does.

    Raises:
        ServingError: the file is no configuration that can be served.
    """
    base = Path(base_path)
    path = base.parent / MODELS_CONFIG
    if not path.is_file():
        return {}
    from serving.server.models_config import read_models_config

    found: dict[int, list[str]] = {}
    for model in read_models_config(path):
        if base.name in (model.name, model.base_path.name):
            for version in model.policy.versions:
                found.setdefault(version, [])
            for label, version in sorted(model.labels.items()):
                found.setdefault(version, []).append(label)
    return found


def prune(base_path: str | Path, keep: int) -> list[int]:
    """Removes the older versions of a model.

    Args:
        base_path: str or Path. The model's folder.
        keep: int. Newest versions that stay. Beside them stay the live version and those that `models.config` names.

    Returns:
        The versions removed, oldest first.

    Raises:
        ServingError: `keep` is not positive, there is no such folder, or `models.config` can not be read.
    """
    base = Path(base_path)
    check_keep(keep)
    if not base.is_dir():
        raise ServingError(f"{base} should be the folder of a model. Received: no such folder.")
    with lease(base):
        return retain(base, keep)


def check_keep(keep: int) -> None:
    """Refuses a number of versions that would leave none."""
    if keep < 1:
        raise ServingError(f"`keep` should be a positive integer. Received: keep={keep}.")


def retain(base: Path, keep: int) -> list[int]:
    """`prune` for who holds the lease."""
    folders = version_folders(base)
    staying = {*sorted(folders)[-keep:], live_version(base), *named_versions(base)}
    removed = sorted(set(folders) - staying)
    for old in removed:
        doomed = base / f".tmp-{uuid.uuid4().hex}"  # renamed first: a server never sees half a version
        os.rename(folders[old], doomed)
        remove(doomed)
    return removed


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, or a file; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
