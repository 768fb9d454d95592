"""ESMM: click, conversion and their product, learned over all impressions."""

from esmm.architecture import SHARINGS, Architecture
from esmm.calibration import Calibration, MonotoneCalibration, calibrated
from esmm.counterfactual import DoublyRobust, InversePropensity
from esmm.embedding import Feature, SharedEmbedding, WideLinear
from esmm.losses import LogBinaryCrossentropy, LogitBinaryCrossentropy
from esmm.model import STEPS, PositionBias, SharedTowers, build_esmm, feature_inputs, funnel_outputs, losses, targets
from esmm.optimizers import PassDecay, RowAdagrad, RowAdam
from esmm.split import SplitTowers
from esmm.strategies import STRATEGIES, Strategy, value_weights

__all__ = [
    "SHARINGS",
    "STEPS",
    "STRATEGIES",
    "Architecture",
    "Calibration",
    "DoublyRobust",
    "Feature",
    "InversePropensity",
    "LogBinaryCrossentropy",
    "LogitBinaryCrossentropy",
    "MonotoneCalibration",
    "PassDecay",
    "PositionBias",
    "RowAdagrad",
    "RowAdam",
    "SharedEmbedding",
    "SharedTowers",
    "SplitTowers",
    "Strategy",
    "WideLinear",
    "build_esmm",
    "calibrated",
    "feature_inputs",
    "funnel_outputs",
    "losses",
    "targets",
    "value_weights",
]
