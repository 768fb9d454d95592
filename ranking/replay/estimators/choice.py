"""Which estimator a log allows."""

from __future__ import annotations

from ranking.errors import UserError
from ranking.replay.estimators.doubly_robust import E6DoublyRobust
from ranking.replay.estimators.exposure import E3ExposureIPS, E5SelfNormalised
from ranking.replay.estimators.label_ndcg import E0LabelNDCG
from ranking.replay.estimators.labels import GROUPS
from ranking.replay.estimators.position import E1ReplayMatch, E2PositionRatio, E4PositionIPS
from ranking.replay.log import ReplayLog

__all__ = ["ESTIMATORS", "Estimator", "choose_estimator"]

Estimator = (
    E0LabelNDCG | E1ReplayMatch | E2PositionRatio | E3ExposureIPS | E4PositionIPS | E5SelfNormalised | E6DoublyRobust
)
ESTIMATORS: dict[str, type[Estimator]] = {
    "E0": E0LabelNDCG,
    "E1": E1ReplayMatch,
    "E2": E2PositionRatio,
    "E3": E3ExposureIPS,
    "E4": E4PositionIPS,
    "E5": E5SelfNormalised,
    "E6": E6DoublyRobust,
}


def choose_estimator(log: ReplayLog, group: str = "request", name: str = "auto") -> Estimator:
    """An estimator by its name, or the default of the log.

    Args:
        log: ReplayLog.
        group: str. `"request"`, `"user"` or `"item"`: what E0 orders. Defaults to `"request"`.
        name: str. `"E0"` to `"E6"`, or `"auto"`: E3 where the log has exposure propensities of a policy that explored,
            else E0. Defaults to `"auto"`.

    Raises:
        UserError: an unknown name or group, or an estimator of what would have happened on a log that never explored.
    """
    if group not in GROUPS:
        raise UserError(f"`group` should be one of {list(GROUPS)}. Received: {group!r}.")
    if name not in ("auto", *ESTIMATORS):
        raise UserError(f"`estimator` should be one of {['auto', *ESTIMATORS]}. Received: {name!r}.")
    explored = set(log.exploration) != {"none"}
    if name == "auto":
        name = "E3" if explored and log.exposure_propensity is not None else "E0"
    if name == "E0":
        return E0LabelNDCG(group=group)
    if ESTIMATORS[name].causal and not explored:
        raise UserError(
            f"{name} needs a log of a policy that explored: only E0 and E2 can re-order one that did not. Received: "
            "`exploration` is none in every request."
        )
    return ESTIMATORS[name]()
