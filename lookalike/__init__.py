"""RALM look-alike models: how much does a target user resemble the seeds of an item?"""

from lookalike.attention import AttentionMerge, GlobalAttention, LocalAttention
from lookalike.clustering import Clusters, cluster
from lookalike.representation import CandidateLogits, Field, UserRepresentation, build_next_item_model, user_inputs
from lookalike.sampling import limit_positives, log_uniform_probabilities, sample_negatives
from lookalike.similarity import LookalikeModel, SimilarityLogit, build_similarity_trainer, cosine, leave_one_out

__all__ = [
    "AttentionMerge",
    "CandidateLogits",
    "Clusters",
    "Field",
    "GlobalAttention",
    "LocalAttention",
    "LookalikeModel",
    "SimilarityLogit",
    "UserRepresentation",
    "build_next_item_model",
    "build_similarity_trainer",
    "cluster",
    "cosine",
    "leave_one_out",
    "limit_positives",
    "log_uniform_probabilities",
    "sample_negatives",
    "user_inputs",
]
