"""What a re-ordering would have earned: estimators, each with its formula, what it assumes and where it is from."""

from ranking.replay.estimators.candidates import BIASED_BANNER, EXAMINATION_BANNER
from ranking.replay.estimators.choice import ESTIMATORS, Estimator, choose_estimator
from ranking.replay.estimators.doubly_robust import E6DoublyRobust
from ranking.replay.estimators.exposure import E3ExposureIPS, E5SelfNormalised
from ranking.replay.estimators.label_ndcg import E0LabelNDCG
from ranking.replay.estimators.labels import GROUPS, OBJECTIVES, informative_groups
from ranking.replay.estimators.position import E1ReplayMatch, E2PositionRatio, E4PositionIPS

__all__ = [
    "BIASED_BANNER",
    "ESTIMATORS",
    "EXAMINATION_BANNER",
    "GROUPS",
    "OBJECTIVES",
    "E0LabelNDCG",
    "E1ReplayMatch",
    "E2PositionRatio",
    "E3ExposureIPS",
    "E4PositionIPS",
    "E5SelfNormalised",
    "E6DoublyRobust",
    "Estimator",
    "choose_estimator",
    "informative_groups",
]
