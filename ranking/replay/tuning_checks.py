"""What `tune` refuses before it searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ranking.errors import UserError
from ranking.replay.estimators import ESTIMATORS, GROUPS, OBJECTIVES, Estimator, choose_estimator, informative_groups
from ranking.replay.evaluation import Evaluator
from ranking.replay.log import ReplayLog

__all__ = ["check_arguments", "check_labels", "check_objectives", "estimator_of"]

_WITHOUT_LABEL = ("new_items", "diversity")  # exact, from the order alone


def check_arguments(
    *,
    objective: str = "conversions",
    guardrails: dict[str, float] | None = None,
    trials: int = 2000,
    minimum_groups: int = 2000,
    group: str = "request",
    estimator: str = "auto",
    **others: Any,
) -> None:
    """Refuses arguments of `tune` that no log could make right.

    Args:
        objective: str. Defaults to `"conversions"`.
        guardrails: dict of str to float. Defaults to `None`.
        trials: int. Defaults to `2000`.
        minimum_groups: int. Defaults to `2000`.
        group: str. Defaults to `"request"`.
        estimator: str. Defaults to `"auto"`.
        **others: arguments that only a log can judge.

    Raises:
        UserError: one breaks its rule.
    """
    for name in (objective, *(guardrails or {})):
        if name not in OBJECTIVES:
            raise UserError(f"`objective` and `guardrails` should be among {list(OBJECTIVES)}. Received: {name!r}.")
    for name, least in (guardrails or {}).items():
        if not -1 <= least <= 0:
            raise UserError(
                f"`guardrails[{name!r}]` should be the least relative change, in [-1, 0]. Received: {least}."
            )
    if trials < 16:
        raise UserError(f"`trials` should be at least 16. Received: trials={trials}.")
    if minimum_groups < 1:
        raise UserError(f"`minimum_groups` should be a positive integer. Received: minimum_groups={minimum_groups}.")
    if group not in GROUPS:
        raise UserError(f"`group` should be one of {list(GROUPS)}. Received: {group!r}.")
    if estimator not in ("auto", *ESTIMATORS):
        raise UserError(f"`estimator` should be one of {['auto', *ESTIMATORS]}. Received: {estimator!r}.")


def estimator_of(logs: dict[str, ReplayLog], group: str, name: str, allow_biased: bool) -> Estimator:
    """The estimator of both windows.

    Raises:
        UserError: windows out of order or of two kinds, or an estimate that is not causal without `allow_biased`.
    """
    if logs["test"].window[0] < logs["tune"].window[1]:
        raise UserError(
            f"The test window should begin where the tune window ends or later. Received: tune {logs['tune'].window}, "
            f"test {logs['test'].window}."
        )
    chosen = choose_estimator(logs["tune"], group, name)
    if choose_estimator(logs["test"], group, name) != chosen:
        raise UserError("The tune and the test window should both have exposure propensities, or both have none.")
    if not chosen.causal and not allow_biased:
        raise UserError(
            f"{chosen.name} can only re-order what was shown, which favours the order of the logging policy: a replay "
            "that can do more needs a log of a policy that explored, with exposure propensities. Pass `allow_biased` "
            "(--allow-biased) to tune on that estimate all the same."
        )
    return chosen


def check_labels(log: ReplayLog, where: str, wanted: Sequence[str], group: str, minimum: int) -> None:
    """Refuses a window of one user, or with too few groups that could tell two settings apart."""
    if len(np.unique(log.user)) < 2:
        raise UserError(f"The {where} window should have at least two users: intervals resample users. Received: 1.")
    groups = informative_groups(log, group)
    for name in wanted:
        if name not in _WITHOUT_LABEL and groups.get(name, 0) < minimum:
            raise UserError(
                f"The {where} window has {groups.get(name, 0)} informative groups ({group}s with a positive and a "
                f"negative) for {name!r}; `minimum_groups` should be reached. Received: minimum_groups={minimum}."
            )


def check_objectives(evaluators: dict[str, Evaluator], wanted: Sequence[str]) -> None:
    """Refuses an objective or a guardrail that a window has nothing of."""
    for name in wanted:
        for where, evaluator in evaluators.items():
            if name not in evaluator.objectives or not evaluator.production_values[name].any():
                hint = ": name a column of items for it, --diversity COLUMN" if name == "diversity" else ""
                raise UserError(f"The {where} window has too little of the objective {name!r} to tune on it{hint}.")
