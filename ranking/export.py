"""A run to a SavedModel: raw ids in, five outputs and what is known about them out."""

import dataclasses
from pathlib import Path
from typing import Literal

import tensorflow as tf

from ranking.errors import UserError
from ranking.exported.network import SplitNetwork
from ranking.exported.ranker import ServedRanker
from ranking.exported.tables import tables_hash, user_bytes
from ranking.exported.wire import MAX_CANDIDATES
from ranking.facts import parameter_facts, table_facts, weight_facts
from ranking.fusion import FusionWeights
from ranking.golden import FUSION, GOLDEN_TOLERANCE, golden_requests, write_golden_scores, write_warm_up
from ranking.run import Run
from serving.layout import model_folder
from serving.publish import Content, publish, write_golden
from serving.verifier import Verifier, given_or_new

__all__ = ["MAX_CANDIDATES", "USER_TABLE_LIMIT", "ServedRanker", "export_run"]

# A refresh writes, hashes and syncs the users every few minutes, and a swap of versions holds them twice in memory.
USER_TABLE_LIMIT = 1 << 30


def export_run(
    run: Run,
    models: str | Path,
    *,
    name: str = "seedrank",
    weights: FusionWeights | None = None,
    users: bool = True,
    user_table_limit: int = USER_TABLE_LIMIT,
    centroid_dtype: Literal["float32", "bfloat16"] = "float32",
    verifier: Verifier | None = None,
) -> Path:
    """Publishes a run as a new version under `models/name`.

    Args:
        run: Run.
        models: str or Path. The folder that holds a folder a model, each with numbered versions.
        name: str. The model's name, see `serving.layout.model_folder`. Defaults to `"seedrank"`.
        weights: FusionWeights or `None`. Served instead of the run's own; load them with the run's
            `parameters_hash`, so that those of other parameters are refused.
        users: bool. Whether the version holds the users. Without them it answers `rank_embedding` and `rank_features`
            alone. Defaults to `True`.
        user_table_limit: int, bytes. What the users may take up in the version. Defaults to `USER_TABLE_LIMIT`, 1 GiB.
        centroid_dtype: str. Of the items' centroids, `"float32"` or `"bfloat16"`, half the bytes. Defaults to
            `"float32"`.
        verifier: Verifier or `None`. See `serving.publish.publish`.

    Returns:
        The folder of the version.

    Raises:
        UserError: the users are larger than the limit.
    """
    size = user_bytes(run.state)
    if users and size > user_table_limit:
        raise UserError(
            f"the users of the model should take up at most {user_table_limit:,} bytes (--user-table-limit). Received: "
            f"{size:,} bytes of {len(run.state.user_ids):,} users. `seedrank export --without-users` leaves them out: "
            "requests then bring the user's vector (rank_embedding) or features (rank_features)."
        )
    if weights is not None:
        run = dataclasses.replace(run, weights=weights)
    base = model_folder(models, name)

    def build(folder: Path, _: Path | None) -> Content:
        network = SplitNetwork(run, centroid_dtype=centroid_dtype)
        served = ServedRanker(run, users=users, network=network)
        tf.saved_model.save(served, str(folder), signatures=served.signatures())
        facts = parameter_facts(run) | {"centroid_dtype": centroid_dtype, "user_table": users}
        facts |= weight_facts(run.weights) | table_facts(run.state, users=users)
        requests = golden_requests(run, run.state, run.weights, facts, users=users)
        write_golden(folder, requests, tolerance=GOLDEN_TOLERANCE[centroid_dtype])
        write_golden_scores(folder, run.weights, held)
        write_warm_up(folder)
        run.weights.save(folder / FUSION)
        hashes = {
            "parameters": run.info["parameters_hash"],
            "weights": run.weights.hash,
            "tables": tables_hash(run.state)[0],
        }
        return Content(hashes, facts)

    with given_or_new(verifier) as held:
        return base / str(publish(base, build, verifier=held))
