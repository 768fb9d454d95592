"""ESMM: click, conversion and their product, learned over all impressions."""

from esmm.architecture import SHARINGS, Architecture
from esmm.embedding import Feature, SharedEmbedding, WideLinear
from esmm.losses import LogBinaryCrossentropy, LogitBinaryCrossentropy
from esmm.model import STEPS, PositionBias, SharedTowers, build_esmm, feature_inputs, funnel_outputs, losses, targets
from esmm.optimizers import RowAdam
from esmm.strategies import base_losses, base_targets, base_weights, build_base

__all__ = [
    "SHARINGS",
    "STEPS",
    "Architecture",
    "Feature",
    "LogBinaryCrossentropy",
    "LogitBinaryCrossentropy",
    "PositionBias",
    "RowAdam",
    "SharedEmbedding",
    "SharedTowers",
    "WideLinear",
    "base_losses",
    "base_targets",
    "base_weights",
    "build_base",
    "build_esmm",
    "feature_inputs",
    "funnel_outputs",
    "losses",
    "targets",
]
