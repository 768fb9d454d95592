"""RALM look-alike models: how much does a target user resemble the seeds of an item?"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lookalike.audience import Audience, Curve, Holdout, Reach, SeedList, expand, overlap
from lookalike.clustering import Clusters, cluster
from lookalike.holdout import holdout
from lookalike.retrieval import BestItems, best_items, best_users, gate
from lookalike.sampling import limit_positives, log_uniform_probabilities, sample_negatives
from lookalike.scorer import Scorer, Seeds, seed_centroids
from lookalike.selection import Cut

if TYPE_CHECKING:
    from lookalike.attention import AttentionMerge, GlobalAttention, LocalAttention
    from lookalike.baselines import AverageEmbedding, Popularity, ProfileMatch
    from lookalike.graph import LabelPropagation
    from lookalike.hashing import HashedNeighbors
    from lookalike.regression import Classifier, LogisticPairs
    from lookalike.representation import CandidateLogits, Field, UserRepresentation, build_next_item_model, user_inputs
    from lookalike.similarity import LookalikeModel, SimilarityLogit, build_similarity_trainer, cosine, leave_one_out

__all__ = [
    "AttentionMerge",
    "Audience",
    "AverageEmbedding",
    "BestItems",
    "CandidateLogits",
    "Classifier",
    "Clusters",
    "Curve",
    "Cut",
    "Field",
    "GlobalAttention",
    "HashedNeighbors",
    "Holdout",
    "LabelPropagation",
    "LocalAttention",
    "LogisticPairs",
    "LookalikeModel",
    "Popularity",
    "ProfileMatch",
    "Reach",
    "Scorer",
    "SeedList",
    "Seeds",
    "SimilarityLogit",
    "UserRepresentation",
    "best_items",
    "best_users",
    "build_next_item_model",
    "build_similarity_trainer",
    "cluster",
    "cosine",
    "expand",
    "gate",
    "holdout",
    "leave_one_out",
    "limit_positives",
    "log_uniform_probabilities",
    "overlap",
    "sample_negatives",
    "seed_centroids",
    "user_inputs",
]

# Imported at first use, since the click log and the seed store need neither SciPy nor Keras; Keras' layers at once
# where Keras is there already: it loads a saved model only after they have been imported.
_SCIPY = ("baselines", "graph", "hashing", "regression")
_KERAS = ("attention", "representation", "similarity")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in (*_SCIPY, *_KERAS):
            found = vars(_load(module))
            globals().update({key: found[key] for key in found.get("__all__", ()) if key in __all__})
            if name in globals():
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load(module: str) -> ModuleType:
    return import_module(f"lookalike.{module}")


if "keras" in sys.modules:
    for _module in _KERAS:
        _load(_module)
