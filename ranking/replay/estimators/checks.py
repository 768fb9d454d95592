"""Whether the log has what an estimator needs: examination, and the propensity of the right kind."""

from __future__ import annotations

import numpy as np

from ranking.errors import UserError
from ranking.replay.log import ReplayLog

__all__ = ["checked_examination", "checked_exposure", "checked_position"]

_ROUNDING = 1e-4  # propensities may have been stored as float32
_SUM = 0.01  # how far the exposures of a request may be from its examination


def checked_examination(log: ReplayLog, name: str) -> np.ndarray:
    """P(the user looks at place k), float64 `[K]`, with a value for each shown place.

    Args:
        log: ReplayLog.
        name: str. The estimator that asks.

    Raises:
        UserError: no examination, a number that is none, or a shown place without one.
    """
    theta = log.examination
    if theta is None:
        raise UserError(f"{name} needs `examination` under [replay] in dataset.toml. Received: nothing.")
    if not np.isfinite(theta).all() or theta.min() < 0:  # an estimate may be above 1: places are against the first
        raise UserError(f"`examination` should be numbers >= 0. Received: {theta.tolist()}.")
    slots = int(max(log.slots.max(), log.position.max() + 1))
    if slots > len(theta):
        raise UserError(f"`examination` should have a value for each shown place, {slots}. Received: {len(theta)}.")
    return theta


def checked_exposure(log: ReplayLog, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The examination and the exposure propensities, after the check that the second was made with the first.

    Args:
        log: ReplayLog.
        name: str. The estimator that asks.

    Raises:
        UserError: no such column, 0, above the examination of any place, not a number, or another propensity.
    """
    propensity = log.exposure_propensity
    if propensity is None:
        other = " (`position_propensity` is another number, for E4)" if log.position_propensity is not None else ""
        raise UserError(
            f"{name} needs the column `exposure_propensity` in candidates{other}. Received: no such column."
        )
    theta, shown = checked_examination(log, name), log.position >= 0
    most = float(theta.max())
    fine = np.where(shown, (propensity > 0) & (propensity <= most * (1 + _ROUNDING)), propensity >= 0)
    if not fine.all():
        odd = propensity[~fine]
        hint = ""
        if np.isnan(odd).all() and np.array_equal(fine, shown):
            hint = "; a column that is empty where an item was not shown is a `position_propensity`"
        raise UserError(
            f"`exposure_propensity` should be in (0, {most:g}] on shown candidates and a number >= 0 on the others. "
            f"Received: {odd[0]}, in {odd.size} of {propensity.size} rows{hint}."
        )
    # Each place is filled by exactly one candidate, so exposures of a request add up to its examination.
    wanted = np.concatenate([[0.0], np.cumsum(theta)])[log.slots]
    found = np.bincount(log.request_of_row, weights=propensity, minlength=log.requests)
    wrong = np.flatnonzero(np.abs(found - wanted) > _SUM * wanted)
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"`exposure_propensity` should add up to the examination of the shown places, {wanted[first]:.4g}, in "
            f"request {log.request_id[first]}. Received: {found[first]:.4g}, in {len(wrong)} of {log.requests} "
            "requests: the propensities are of another kind or were made with another `examination`."
        )
    return theta, propensity


def checked_position(log: ReplayLog, name: str) -> np.ndarray:
    """The position propensity of shown rows, float64 `[n]`, 1 on the others.

    Args:
        log: ReplayLog.
        name: str. The estimator that asks.

    Raises:
        UserError: no such column, 0, above 1, not a number, or another propensity.
    """
    propensity, exposure = log.position_propensity, log.exposure_propensity
    if propensity is None:
        other = " (`exposure_propensity` is another number, for E3)" if exposure is not None else ""
        raise UserError(
            f"{name} needs the column `position_propensity` in candidates{other}. Received: no such column."
        )
    shown = log.position >= 0
    if np.any(propensity[~shown] > 0):
        raise UserError(
            "`position_propensity` should be empty where an item was not shown; a column with numbers there is an "
            f"`exposure_propensity`. Received: {int((propensity[~shown] > 0).sum())} numbers."
        )
    given = propensity[shown]
    fine = (given > 0) & (given <= 1 + _ROUNDING)
    if not fine.all():
        odd = given[~fine]
        raise UserError(
            "`position_propensity` should be in (0, 1] on every shown candidate. Received: "
            f"{odd[0]}, in {odd.size} of {given.size} rows."
        )
    # With one place the two propensities are one number; with more, an item can also be seen at another place.
    if exposure is not None and log.slots.max() > 1 and np.allclose(given, exposure[shown], rtol=_ROUNDING, atol=0):
        raise UserError("`position_propensity` should be P(item at its position). Received: the exposure propensities.")
    return np.where(shown, propensity, 1.0)
