"""One score out of similarity, pCTR, pCVR and price: the formula.

It stands here once. It runs on numpy arrays (replay, reports) and, with `xp=keras.ops`, in the served graph
(`ranking.fusion_layer`); this module itself needs no TensorFlow. The file of the weights is `ranking.fusion_weights`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ranking.errors import UserError
from ranking.fusion_parts import FORMS, PARTS, refuse_unknown, standardise, standing
from ranking.fusion_weights import FusionWeights, parse_weights

__all__ = ["FORMS", "PARTS", "FusionWeights", "fuse", "parse_weights", "terms", "weighted_sum", "weights_of_rows"]


def terms(parts: Mapping[str, Any], weights: FusionWeights, *, offsets: Any = None, xp: Any = np) -> dict[str, Any]:
    """The standardised parts `z_j = (x_j - mu_j) / sd_j`.

    | form | x |
    |---|---|
    | product | the logarithm of (1 + similarity) / 2 + 1e-6; of pctr, pcvr, price as they are |
    | sum | the part itself |
    | rank | 1 / (60 + rank), the rank among the candidates of the request, 1 the highest; of equal ones the first row |

    A similarity where `has_similarity` is 0 or that is NaN, and a price that is NaN, have z = 0 exactly, and no rank:
    the others are ranked as if they were not there.

    Args:
        parts: dict of arrays or tensors `[B]`: any of `PARTS`, and `has_similarity`.
        weights: FusionWeights.
        offsets: int `[R + 1]`. Request `r` is rows `offsets[r]:offsets[r + 1]`. Only the rank form needs it, on numpy;
            in a graph the batch is one request. Defaults to `None`.
        xp: module. `numpy`, or `keras.ops` in a graph. Defaults to `numpy`.

    Returns:
        dict of part -> `[B]`, of the parts that are there and have constants.

    Raises:
        UserError: `parts` holds a label or an unknown name, or lacks a part with a weight.

    Reference: Cormack, Clarke and Buettcher, SIGIR 2009 (reciprocal rank fusion).
    Departs from the paper: standardised, so that a missing part is neutral.
    """
    refuse_unknown("parts", {name: None for name in parts if name != "has_similarity"})
    lacking = [name for name in weights.weighted if name not in parts]
    if lacking:
        raise UserError(f"`parts` should hold every part with a weight. Received: {sorted(parts)}, without {lacking}.")
    z = {}
    for name in weights.weights:
        if name in parts:
            x, missing = standing(parts, name, weights.form, offsets, xp)
            scaled = standardise(x, weights.form, weights.mu[name], weights.sd[name])
            z[name] = xp.where(missing, xp.zeros_like(scaled), scaled)
    return z


def weights_of_rows(weights: FusionWeights, z: Mapping[str, Any], segment: Any = None, xp: Any = np) -> dict[str, Any]:
    """The weight of each part, with the differences of the rows' segment, clipped to the bounds.

    Args:
        weights: FusionWeights.
        z: dict of part -> `[B]`, see `terms`.
        segment: str, or array or tensor of str `[1]` or `[B]`. An unknown one has no differences. Defaults to `None`.
        xp: module. `numpy`, or `keras.ops` in a graph. Defaults to `numpy`.

    Returns:
        dict of part -> float, or `[B]` of the type of `z` where segments differ.
    """
    if segment is None or isinstance(segment, str):
        found = weights.of_segment(segment)
        return {name: found[name] for name in z}
    segment = np.asarray(segment, object) if xp is np else segment
    used: dict[str, Any] = {}
    for name, values in z.items():
        differing = [known for known, row in weights.segments.items() if name in row]
        used[name] = xp.full_like(values, weights.weights[name]) if differing else weights.weights[name]
        for known in differing:
            there = xp.full_like(values, weights.of_segment(known)[name])
            used[name] = xp.where(segment == known, there, used[name])
    return used


def weighted_sum(z: Mapping[str, Any], weights: Mapping[str, Any]) -> Any:
    """`sum over j of w_j z_j`, in the order of `z`, so that rounding is the same everywhere.

    Args:
        z: dict of part -> `[B]`.
        weights: dict of part -> number, array or tensor `[]`, `[1]` or `[B]`. A part without one, or with the number 0,
            does not enter.

    Returns:
        `[B]`.
    """
    score = None
    for name, values in z.items():
        weight = weights.get(name, 0.0)
        if not isinstance(weight, int | float) or weight:
            score = weight * values if score is None else score + weight * values
    return next(iter(z.values())) * 0 if score is None else score


def fuse(
    parts: Mapping[str, Any],
    weights: FusionWeights,
    override: Mapping[str, Any] | None = None,
    *,
    segment: Any = None,
    offsets: Any = None,
    xp: Any = np,
) -> Any:
    """The score, `sum over j of w_j z_j`: its order counts, not its size.

    Args:
        parts: dict of arrays or tensors `[B]`; see `terms`.
        weights: FusionWeights.
        override: dict of part -> number, array or tensor `[]`, `[1]` or `[B]`, clipped to the bounds of `weights`, in
            place of its weight and of the differences of the segment. Defaults to none.
        segment: str, or array or tensor of str `[1]` or `[B]`, see `weights_of_rows`. Defaults to `None`.
        offsets: int `[R + 1]`. What the requests are, see `terms`. Defaults to `None`.
        xp: module. `numpy`, or `keras.ops` in a graph. Defaults to `numpy`.

    Returns:
        `[B]`, of the type of the parts.
    """
    override = override or {}
    refuse_unknown("override", override)
    z = terms(parts, weights, offsets=offsets, xp=xp)
    absent = [name for name in override if name not in z]
    if absent:
        raise UserError(f"`override` should be of parts that are there, {sorted(z)}. Received: {absent}.")
    used = weights_of_rows(weights, z, segment, xp)
    used |= {name: _clip(value, *weights.bounds[name], xp) for name, value in override.items()}
    return weighted_sum(z, used)


def _clip(value: Any, low: float, high: float, xp: Any) -> Any:
    """A plain number stays one: numpy's own would make float64 of float32 parts."""
    return min(max(float(value), low), high) if isinstance(value, int | float) else xp.clip(value, low, high)
