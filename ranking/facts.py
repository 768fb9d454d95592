"""What a version says of itself beside its hashes: facts that a reader should know without loading it."""

from typing import Any

from ranking.exported.ranker import space_id
from ranking.exported.tables import tables_hash
from ranking.fusion import FusionWeights
from ranking.run import Run
from ranking.state import State

__all__ = ["parameter_facts", "table_facts", "weight_facts"]


def parameter_facts(run: Run) -> dict[str, Any]:
    """Of the parameters: the embedding space, the sizes of the vocabularies, centroids an item."""
    return {
        "embedding_space_id": space_id(run),
        "vocabularies": {name: vocabulary.size for name, vocabulary in run.encoder.vocabularies.items()},
        "k": int(run.state.centroids.shape[1]),
    }


def weight_facts(weights: FusionWeights) -> dict[str, Any]:
    """Of the weights; `fusion` is all of them, for `FusionWeights(**fusion)`."""
    fusion = weights.to_dict()
    return {"form": weights.form, "weights": fusion["weights"], "bounds": fusion["bounds"], "fusion": fusion}


def table_facts(state: State, *, users: bool) -> dict[str, Any]:
    """Of the tables: their watermark and identity, how many users and items they hold."""
    return {
        "seed_watermark": state.tick,
        "table_version": tables_hash(state)[1],
        "users": len(state.user_ids) if users else 0,
        "items": len(state.item_ids),
    }
