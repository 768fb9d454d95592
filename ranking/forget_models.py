"""Which exported versions hold a user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranking.fingerprints import fingerprints
from ranking.rewrite import variable_key
from serving.publish import GOLDEN, version_hashes
from serving.retention import version_folders

__all__ = ["versions_with"]

_KEYS = variable_key("tables/user/keys") + "/.ATTRIBUTES/VARIABLE_VALUE"


def versions_with(models: Path, users: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Folders of versions whose table of users has one of some ids; golden and warm-up requests are of such users.

    A version of ours whose table cannot be read may have them, and is named too. Folders of other models are not.

    Args:
        models: Path. A folder of models, or one model's own folder.
        users: int or str each: under which ids the user may be known.

    Returns:
        Versions that have one or may, and those among them that cannot be read.
    """
    import tensorflow as tf

    wanted = [
        int(fingerprints(tf.constant([user], tf.int64 if isinstance(user, int) else tf.string))[0]) for user in users
    ]
    found, unreadable = [], []
    for base in [models] if version_folders(models) else sorted(path for path in models.iterdir() if path.is_dir()):
        for _, folder in sorted(version_folders(base).items()):
            try:
                stored = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
                keys = stored.get_tensor(_KEYS)[:-1] if stored.has_tensor(_KEYS) else ()  # the last one is nobody's
            except Exception:  # of many types
                if _is_ours(folder):
                    unreadable.append(str(folder))
                    found.append(str(folder))
                continue
            if np.isin(keys, wanted).any():
                found.append(str(folder))
    return found, unreadable


def _is_ours(folder: Path) -> bool:
    """Whether a version was exported from a run; where not even that can be told, it may be."""
    try:
        return (folder / GOLDEN).exists() or "tables" in version_hashes(folder)
    except OSError:
        return True
