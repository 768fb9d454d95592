"""E1, E2 and E4: estimates from the place an item was shown at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators.candidates import BIASED_BANNER, candidate_sums, examination_banner, looks_taken
from ranking.replay.estimators.checks import checked_examination, checked_position
from ranking.replay.estimators.labels import labels_of
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import RankSums

__all__ = ["E1ReplayMatch", "E2PositionRatio", "E4PositionIPS"]

_UNIFORM = 1e-3  # how far a propensity may be from that of a random order


@dataclass(frozen=True)
class E1ReplayMatch:
    """Replay match: of a log in random order, the places where the new order shows what was shown there.

        sum_r n_r sum_{i shown} y_i [sigma(i) = pos(i)] / (sum_r n_r sum_{i shown} [sigma(i) = pos(i)] / K_r)

    with `n_r` candidates and `K_r` places. Assumes that every order of the candidates was equally likely and that a
    click depends on the item and its place, not on the items around it. Needs no examination.

    Reference: Li et al., WSDM 2011.
    Departs from the paper: places are matched one by one; requests weigh with their number of candidates, because a
    match is the rarer the more there are (with one number for all, as in the paper, nothing changes).
    """

    name: ClassVar[str] = "E1"
    causal: ClassVar[bool] = True
    assumptions: ClassVar[str] = (
        "the log is in uniformly random order; a click depends on the item and its place, not on the others"
    )
    formula: ClassVar[str] = "sum_r n_r sum_i y_i [sigma(i) = pos(i)] / (sum_r n_r sum_i [sigma(i) = pos(i)] / K_r)"
    source: ClassVar[str] = "Li et al., WSDM 2011"

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return ()

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """Numerators and denominator as sums over the matches of each request, see `RankSums`.

        Raises:
            UserError: no position propensities, any that is not that of a random order, clicks that are the same
                everywhere, or one user only.
        """
        propensity, shown = checked_position(log, self.name), log.position >= 0
        candidates = np.diff(log.offsets)[log.request_of_row]
        away = np.abs(propensity * candidates - 1)[shown]
        if away.max(initial=0) > _UNIFORM:
            row = np.flatnonzero(shown)[away.argmax()]
            raise UserError(
                "E1 needs a log in uniformly random order, with `position_propensity` = 1 / candidates, "
                f"{1 / candidates[row]:.4g} in request {log.request_id[log.request_of_row[row]]}. Received: "
                f"{propensity[row]:.4g}, and others in {(away > _UNIFORM).mean():.0%} of the shown rows."
            )
        return _matched(log, production, candidates.astype(np.float64), ratio=True)


@dataclass(frozen=True)
class E2PositionRatio:
    """Position ratio: what was shown, moved to its new place among all candidates.

        1/R sum_r sum_{i shown} y_i theta_{sigma(i)} / theta_{pos(i)}

    Assumes the position-based model and that what was not shown is worth nothing: an item counts only if it was
    shown, so the expectation is `sum_i theta_{sigma(i)} ctr_i P(i shown)`, **low** by the share of what was never
    shown, and the more so the further the weights are from those of the logging policy. Where each request logged
    the shown items only, it is the estimate of their re-ordering.

    Reference: Joachims et al., WSDM 2017, with the place in the place of the propensity.
    """

    name: ClassVar[str] = "E2"
    causal: ClassVar[bool] = False
    assumptions: ClassVar[str] = (
        "a click needs a look; looks depend on the place only; what was not shown is worth nothing (biased low)"
    )
    formula: ClassVar[str] = "1/R sum_r sum_{i shown} y_i theta_sigma(i) / theta_pos(i)"
    source: ClassVar[str] = "Joachims et al., WSDM 2017"

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return (BIASED_BANNER, *examination_banner(log))

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each request as a sum over what it showed, see `RankSums`.

        Raises:
            UserError: no examination, a shown place that nobody looks at, clicks that are the same everywhere, or one
                user only.
        """
        theta, shown = checked_examination(log, self.name), log.position >= 0
        looked = looks_taken(log, theta)
        if not looked[shown].all():
            raise UserError(f"`examination` should be positive at each shown place. Received: {theta.tolist()}.")
        inverse = np.where(shown, 1 / np.where(shown, looked, 1), 0)
        return candidate_sums(log, production, theta, {name: label * inverse for name, label in labels_of(log).items()})


@dataclass(frozen=True)
class E4PositionIPS:
    """Item-position inverse propensity: what was shown where the new order would show it, over its chance.

        1/R sum_r sum_{i shown} y_i [sigma(i) = pos(i)] / P(i at pos(i))

    Assumes that a click depends on the item and its place, not on the items around it, and that every place the new
    order gives was possible. Needs no examination; matches are few, so its intervals are wide.

    Reference: Li et al., KDD 2018 (item-position model).
    """

    name: ClassVar[str] = "E4"
    causal: ClassVar[bool] = True
    assumptions: ClassVar[str] = (
        "a click depends on the item and its place, not on the others; every new place was possible"
    )
    formula: ClassVar[str] = "1/R sum_r sum_{i shown} y_i [sigma(i) = pos(i)] / P(i at pos(i))"
    source: ClassVar[str] = "Li et al., KDD 2018"

    def banners(self, log: ReplayLog) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        return ()

    def sums(self, log: ReplayLog, production: FusionWeights) -> RankSums:
        """The estimate of each request as a sum over its matches, and what the gates need, see `RankSums`.

        Raises:
            UserError: no position propensities, any that is not in (0, 1] or of another kind, reserved places, clicks
                that are the same everywhere, or one user only.
        """
        if log.pool is not None:
            raise UserError(
                "E4 needs a log where every candidate could stand at every place. Received: reserved places, drawn "
                "from a `pool` of their own; E3 needs no more than that each candidate could be shown somewhere."
            )
        return _matched(log, production, 1 / checked_position(log, self.name), ratio=False)


def _matched(log: ReplayLog, production: FusionWeights, inverse: np.ndarray, *, ratio: bool) -> RankSums:
    """Sums over matches, each worth its inverse propensity; `weight` has mean 1 where every new place was possible."""
    shown, labels = log.position >= 0, labels_of(log)
    slots = np.maximum(log.slots, 1)[log.request_of_row]
    coefficients = {name: label * inverse for name, label in labels.items()}
    coefficients["weight"] = np.where(shown, inverse / slots, 0)
    coefficients["unsupported"] = np.zeros(len(shown))  # nobody logs the chance of a place that was not given
    # Without an examination all places of a request count alike in `new_items`.
    theta = np.ones(int(log.slots.max())) if log.examination is None else checked_examination(log, "replay")
    ratios = dict.fromkeys(labels, "weight") if ratio else {}
    return candidate_sums(log, production, theta, coefficients, matched=True, ratios=ratios)
