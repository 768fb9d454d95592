"""Other fusion weights for a live version, and nothing else of it: no training, no export, no graph rebuilt."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.golden import FUSION, write_golden_scores
from serving.publish import MANIFEST, Content, publish, version_content, versions

__all__ = ["apply_weights"]

VARIABLES = "variables/variables"


def apply_weights(models: str | Path, weights: FusionWeights, *, name: str = "seedrank") -> Path:
    """Publishes the live version of a model again, with other fusion weights.

    Graph, parameters and tables are the live version's, bit for bit; the variables of the fusion are written anew, and
    so are the golden answers that depend on them. As every version it is verified in a fresh process before it appears,
    and no other publisher acts between the reading of the live version and that moment.

    Args:
        models: str or Path. The folder that holds a folder a model, each with numbered versions.
        weights: FusionWeights. Of the parameters and with the constants of the live version.
        name: str. The model's name. Defaults to `"seedrank"`.

    Returns:
        The folder of the version; its manifest and the server report `weights.hash`.

    Raises:
        UserError: there is no live version, or it has another form, other parameters or other constants.
    """
    base = Path(models) / name

    def build(folder: Path, live: Path | None) -> Content:
        if live is None:
            raise _no_version(base)
        content = version_content(live)
        _refuse_others(weights, live, content.hashes)
        shutil.copytree(live, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "variables"))
        _write_variables(live, folder, weights)
        write_golden_scores(folder, weights)
        weights.save(folder / FUSION)
        return Content({**content.hashes, "weights": weights.hash}, content.facts)

    if not versions(base):  # before `publish` makes the folder
        raise _no_version(base)
    return base / str(publish(base, build))


def _no_version(base: Path) -> UserError:
    return UserError(f"{base} should hold a published version: seedrank export --models {base.parent}. Received: none.")


def _refuse_others(weights: FusionWeights, live: Path, hashes: Mapping[str, str]) -> None:
    old = FusionWeights.load(live / FUSION)
    if "parameters" not in hashes:
        raise UserError(f"{live} does not say what it is made of: publish it again with `seedrank export`.")
    if weights.parameters_hash != hashes["parameters"]:
        raise UserError(
            f"the weights belong to other parameters than {live}: `parameters_hash` should be "
            f"{hashes['parameters']!r}. Received: {weights.parameters_hash!r}."
        )
    if weights.form != old.form:
        raise UserError(
            f"`form` of the weights should be that of {live}, {old.form!r}; another one needs `seedrank export`. "
            f"Received: {weights.form!r}."
        )
    for field in ("mu", "sd"):
        if getattr(weights, field) != getattr(old, field):
            raise UserError(
                f"`{field}` of the weights should be that of {live}, {getattr(old, field)}: constants belong to the "
                f"parameters. Received: {getattr(weights, field)}."
            )


def _write_variables(live: Path, folder: Path, weights: FusionWeights) -> None:
    """The live version's checkpoint with other values in the variables of its fusion."""
    import tensorflow as tf
    from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

    from ranking.fusion_layer import fusion_arrays

    stored = tf.train.load_checkpoint(str(live / VARIABLES))
    names = sorted(stored.get_variable_to_shape_map())
    prefix, suffix = "fusion/arrays/", "/.ATTRIBUTES/VARIABLE_VALUE"
    if f"{prefix}weights{suffix}" not in names:
        raise UserError(f"{live} was exported before its weights could be changed alone: export it again.")
    arrays = fusion_arrays(weights, segmented=f"{prefix}segment_keys{suffix}" in names)
    new = {f"{prefix}{name}{suffix}": values for name, values in arrays.items()}
    tensors = [tf.constant(new[name] if name in new else stored.get_tensor(name)) for name in names]
    (folder / VARIABLES).parent.mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(folder / VARIABLES), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    write_fingerprint(str(folder))  # it holds a hash of the checkpoint
