"""Other fusion weights for a live version, and nothing else of it: no training, no export, no graph rebuilt."""

from pathlib import Path
from typing import Any

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.golden import FUSION, write_golden_scores, write_warm_up
from ranking.rewrite import rewrite_version, variable_keys
from serving.layout import model_folder
from serving.publish import Content, publish, version_content, versions
from serving.verifier import Verifier, given_or_new

__all__ = ["apply_weights", "no_version"]


def apply_weights(
    models: str | Path, weights: FusionWeights, *, name: str = "seedrank", verifier: Verifier | None = None
) -> Path:
    """Publishes the live version of a model again, with other fusion weights.

    Graph, parameters and tables are the live version's, bit for bit; the variables of the fusion are written anew, and
    so are the golden answers and warm-up requests that depend on them. As every version it is verified in a fresh
    process before it appears, and no other publisher acts between the reading of the live version and that moment.

    Args:
        models: str or Path. The folder that holds a folder a model, each with numbered versions.
        weights: FusionWeights. Of the parameters and with the constants of the live version.
        name: str. The model's name, see `serving.layout.model_folder`. Defaults to `"seedrank"`.
        verifier: Verifier or `None`. See `serving.publish.publish`.

    Returns:
        The folder of the version; its manifest and the server report `weights.hash`.

    Raises:
        UserError: there is no live version, or it has another form, other parameters or other constants.
    """
    base = model_folder(models, name)

    def build(folder: Path, live: Path | None) -> Content:
        from ranking.facts import weight_facts

        if live is None:
            raise no_version(base)
        content = version_content(live)
        _refuse_others(weights, live, dict(content.hashes))
        rewrite_version(live, folder, _arrays(live, weights))
        write_golden_scores(folder, weights, held, graph=False)
        write_warm_up(folder)
        weights.save(folder / FUSION)
        return Content({**content.hashes, "weights": weights.hash}, {**content.facts, **weight_facts(weights)})

    if not versions(base):  # before `publish` makes the folder
        raise no_version(base)
    with given_or_new(verifier) as held:
        return base / str(publish(base, build, verifier=held))


def no_version(base: Path) -> UserError:
    """What to say of a model without a version."""
    return UserError(f"{base} should hold a published version: seedrank export --models {base.parent}. Received: none.")


def _arrays(live: Path, weights: FusionWeights) -> dict[str, Any]:
    from ranking.fusion_layer import fusion_arrays

    keys = variable_keys(live)
    if "fusion/arrays/weights" not in keys:
        raise UserError(f"{live} was exported before its weights could be changed alone: export it again.")
    arrays = fusion_arrays(weights, segmented="fusion/arrays/segment_keys" in keys)
    return {f"fusion/arrays/{name}": values for name, values in arrays.items()}


def _refuse_others(weights: FusionWeights, live: Path, hashes: dict[str, str]) -> None:
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
