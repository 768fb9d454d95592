"""Weight settings as the replay takes them: standardised score parts and a matrix of weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ranking.errors import UserError
from ranking.fusion import FusionWeights, terms, weighted_sum, weights_of_rows
from ranking.replay.log import ReplayLog

__all__ = ["score_rows", "score_terms", "weight_matrix"]


def score_terms(log: ReplayLog, production: FusionWeights) -> dict[str, np.ndarray]:
    """`z_j` of the parts that can order the candidates of this log, in the order of the fusion.

    A part that the log lacks, or that is the same everywhere, is left out: no weight of it changes an order.

    Returns:
        Dict of part to float32 `[n]`.

    Raises:
        UserError: production weighs a part that the log lacks, or a part has a missing probability.
    """
    found = terms(log.parts, production, offsets=log.offsets)
    columns = {name: np.asarray(column, np.float32) for name, column in found.items()}
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise UserError(f"The score part {name!r} of the log should be finite. Received: a missing value.")
    found = {name: column for name, column in columns.items() if np.ptp(column) > 0}
    if not found:
        raise UserError("The score parts of the log should differ between candidates. Received: constants only.")
    return found


def weight_matrix(
    settings: Sequence[FusionWeights], production: FusionWeights, parts: Sequence[str], known: Sequence[str]
) -> np.ndarray:
    """Weights of each setting in the order of the parts, float32 `[S, J]`.

    Args:
        settings: sequence of FusionWeights.
        production: FusionWeights.
        parts: sequence of str. The keys of `score_terms`.
        known: sequence of str. All parts that the log has, those that order nothing included.

    Raises:
        UserError: a setting of another form, of other constants or parameters than production, or of a part that the
            log lacks.
    """
    for setting in settings:
        for name in ("form", "parameters_hash"):
            if getattr(setting, name) != getattr(production, name):
                raise UserError(
                    f"`{name}` of all weights of one replay should be production's {getattr(production, name)!r}. "
                    f"Received: {getattr(setting, name)!r}."
                )
        lacking = [name for name, weight in setting.weights.items() if weight and name not in known]
        if lacking:
            raise UserError(f"Weights should be of the parts of the log, {list(known)}. Received: {lacking}.")
        for name in parts:
            constants = (setting.mu.get(name), setting.sd.get(name))
            if setting.weights.get(name) and constants != (production.mu.get(name), production.sd.get(name)):
                raise UserError(
                    f"All weights of one replay should have production's `mu` and `sd` of {name}, "
                    f"{(production.mu.get(name), production.sd.get(name))}. Received: {constants}."
                )
    return np.asarray([[setting.weights.get(part, 0.0) for part in parts] for setting in settings], np.float32)


def score_rows(log: ReplayLog, settings: Sequence[FusionWeights], production: FusionWeights) -> np.ndarray:
    """Scores of every candidate under each setting, with the differences of the request's segment, float32 `[S, n]`.

    For settings that are not one row of weights; of the others the replay never holds all scores.
    """
    z = score_terms(log, production)
    segment = None if log.segment is None else log.segment[log.request_of_row]
    rows = [weighted_sum(z, weights_of_rows(setting, z, segment)) for setting in settings]
    return np.stack([np.asarray(row, np.float32) for row in rows])
