"""A version again, with other values in some of its variables: no graph is built, none traced."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ranking.errors import UserError
from serving.publish import MANIFEST

__all__ = ["rewrite_version", "variable_key", "variable_keys"]

_VARIABLES = "variables/variables"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def variable_key(name: str) -> str:
    """The name that a variable `group/sub/name` has in a checkpoint: what stands in the last part is escaped."""
    *groups, last = name.split("/", 2)
    return "/".join([*groups, last.replace(".", "..").replace("/", ".S")])


def variable_keys(live: Path) -> set[str]:
    """The keys of all variables of a version."""
    import tensorflow as tf

    keys = (key for key, _ in tf.train.list_variables(str(live / _VARIABLES)))
    return {key.removesuffix(_SUFFIX) for key in keys if key.endswith(_SUFFIX)}


def rewrite_version(live: Path, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies a version, but for its manifest, with other values in some variables.

    Args:
        live: Path. The version.
        folder: Path. An empty folder, which becomes the copy.
        arrays: dict. Name of a variable, as `group/sub/name` -> its value. Only the variables that were exported with a
            free number of rows take another one.

    Raises:
        UserError: the version lacks one of the variables, or holds it as another type.
    """
    import tensorflow as tf
    from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

    shutil.copytree(live, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "variables"))
    stored = tf.train.load_checkpoint(str(live / _VARIABLES))
    types = stored.get_variable_to_dtype_map()
    new = {variable_key(name) + _SUFFIX: values for name, values in arrays.items()}
    for key, values in new.items():
        if key not in types or types[key].as_numpy_dtype != values.dtype:
            found = types[key].name if key in types else "none"
            raise UserError(
                f"{live} should hold a variable {key.removesuffix(_SUFFIX)!r} of {values.dtype}: export it again. "
                f"Received: {found}."
            )
    names = sorted(types)
    tensors = [tf.constant(new[name] if name in new else stored.get_tensor(name)) for name in names]
    (folder / _VARIABLES).parent.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(folder / _VARIABLES), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    write_fingerprint(str(folder))  # it holds a hash of the checkpoint
