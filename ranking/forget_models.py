"""Which exported versions hold a user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ranking.fingerprints import fingerprints
from ranking.rewrite import variable_key
from serving.retention import version_folders

__all__ = ["versions_with"]

_KEYS = variable_key("tables/user/keys") + "/.ATTRIBUTES/VARIABLE_VALUE"


def versions_with(models: Path, users: Sequence[Any]) -> list[str]:
    """Folders of versions whose table of users has one of some ids; golden and warm-up requests are of such users.

    Args:
        models: Path. A folder of models.
        users: int or str each: under which ids the user may be known.
    """
    import tensorflow as tf

    wanted = [
        int(fingerprints(tf.constant([user], tf.int64 if isinstance(user, int) else tf.string))[0]) for user in users
    ]
    found = []
    for base in sorted(path for path in models.iterdir() if path.is_dir()):
        for _, folder in sorted(version_folders(base).items()):
            try:
                stored = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
            except (tf.errors.OpError, ValueError):
                continue  # nothing of ours
            if not stored.has_tensor(_KEYS):
                continue
            keys = stored.get_tensor(_KEYS)[:-1]  # the last one is nobody's
            if np.isin(keys, wanted).any():
                found.append(str(folder))
    return found
