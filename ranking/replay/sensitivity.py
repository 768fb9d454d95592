"""How much each objective depends on each weight, exactly, and over which range of it nothing changes for sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Evaluator
from ranking.replay.ranks import RankSums, Totals
from ranking.replay.settings import weight_matrix
from ranking.replay.support import support_of_sums
from ranking.replay.sweep import Curve, Line

__all__ = ["page_points", "sensitivity_section", "sweep"]

_POINTS = 400  # of a curve on the page
_STRETCHES = 12  # of the range: the best weight of each is among the points
_DIGITS = 6
_ERRORS = 1.96  # a difference of fewer standard errors may be nothing


def sweep(sums: RankSums, setting: np.ndarray, part: int, low: float, high: float, names: Sequence[str]) -> Curve:
    """The average of each output as one weight of a setting moves and the others are held, exact at every weight.

    The weight that moves is raw: beyond the largest of the others it is the largest itself, so that the canonical
    form of the same setting has smaller others. The order, and with it the curve, is the same.

    Args:
        sums: RankSums.
        setting: float32 `[J]`. The weights that are held.
        part: int. Which weight moves.
        low: float. Where it begins.
        high: float. Where it ends.
        names: sequence of str. Outputs.

    Returns:
        `Curve`. Averages over the requests that count; ratios of averages where the sums say so.
    """
    return Line(sums, setting, part, low, high, names).trace()[0]


def page_points(curve: Curve, names: Sequence[str], grid: np.ndarray) -> np.ndarray:
    """Weights at which to draw a curve, ascending: a grid, and the best of what lies between.

    Of each output in each twelfth of the range the middle of the best stretch is added: with the curve's value at each
    the drawing lacks neither the maximum nor what is best near any weight.

    Args:
        curve: Curve.
        names: sequence of str. Outputs whose best stretches are wanted.
        grid: float64 `[P]`. Weights to keep, ascending.
    """
    middles = curve.middles
    edges = np.searchsorted(middles, np.linspace(curve.low, curve.high, _STRETCHES + 1)[1:-1])
    best = [
        middles[begin + np.argmax(curve.values[name][begin:end])]
        for name in names
        for begin, end in zip(np.r_[0, edges], np.r_[edges, len(middles)], strict=True)
        if end > begin
    ]
    return np.unique(np.concatenate([grid, best]))


def sensitivity_section(
    evaluator: Evaluator, setting: FusionWeights, objective: str, names: Sequence[str], guardrails: Mapping[str, float]
) -> dict[str, Any]:
    """The curves of a setting: one a part, over the bounds of production's file.

    `delta` is the relative change of an objective against production, None where the gates refuse the weight, or the
    one of the grid on either side of it.
    `flat` is the interval around the setting's own weight of supported weights that keep the guardrails (as point
    estimates) and are not surely worse, for the objective, than the best of these: the difference is within 1.96 of
    its standard errors, at each weight of a grid of at least 300. The difference is paired: the same requests, its
    error clustered by user (linearised: what the bootstrap over users tends to). Without `flat` the setting's own
    weight is surely below that best: the lower bound of a guardrail holds it there.

    Args:
        evaluator: Evaluator. Of the tune window: a curve on the test window would be another look.
        setting: FusionWeights. Its differences by segment are left out.
        objective: str. What was maximised.
        names: sequence of str. Objectives to draw.
        guardrails: dict of str to float. Least change of other objectives.

    Returns:
        `{"window": "tune", "objective": ..., "curves": [...]}`; empty where no part can move.
    """
    sums, production = evaluator.sums, evaluator.production
    weight_matrix([setting], production, evaluator.parts, list(evaluator.log.parts))  # refuses other constants
    own, base = (np.array([row.weights.get(part, 0.0) for part in evaluator.parts]) for row in (setting, production))
    here = float(base[0])
    before = sweep(sums, base, 0, here, here + 1e-9, names)  # as good as at one weight
    scale = {name: float(values[0]) for name, values in before.values.items() if values[0] > 0}
    names = [name for name in names if name in scale]
    gates = ["weight", "unsupported"] if "weight" in sums.outputs else []
    curves = []
    for index, part in enumerate(evaluator.parts):
        low, high = production.bounds[part]
        if not low < high or objective not in scale:
            continue
        line = Line(sums, own, index, low, high, [*names, *gates])
        at = float(np.clip(own[index], low, high))
        grid = np.linspace(low, high, _POINTS - 1 - _STRETCHES * len(names))
        grid = np.sort(np.append(grid[np.abs(grid - at) > 1e-6 * (high - low)], at))
        divisors = [sums.ratios[objective]] if objective in sums.ratios else []
        curve, totals, by_user = line.trace(grid, [objective, *divisors])
        points = page_points(curve, names, grid)
        values = curve.at(points)
        good = _supported(evaluator, totals)
        after = np.searchsorted(grid, points)  # a point of the grid is its own neighbour on both sides
        supported = good[after] & good[np.where(grid[after] == points, after, after - 1)]
        row: dict[str, Any] = {
            "part": part,
            "production": float(base[index]),
            "setting": float(own[index]),
            "low_bound": low,
            "high_bound": high,
            "t": points.tolist(),
            "delta": {
                name: [
                    round(float(value / scale[name] - 1), _DIGITS) if good else None
                    for value, good in zip(values[name], supported, strict=True)
                ]
                for name in names
            },
            "supported": supported.tolist(),
        }
        at_grid = curve.at(grid)
        kept = good.copy()
        for name, least in guardrails.items():
            if name in scale:
                kept &= at_grid[name] / scale[name] - 1 >= least
        flat = _flat(line, totals, by_user, objective, grid, kept, at)
        if flat is not None:
            row["flat"] = flat
        curves.append(row)
    return {"window": "tune", "objective": objective, "curves": curves} if curves else {}


def _supported(evaluator: Evaluator, totals: Totals) -> np.ndarray:
    """Whether the gates support each weight, bool `[P]`; all of them where the estimator has no gates."""
    if "weight" not in totals.sum:
        return np.ones(len(next(iter(totals.sum.values()))), bool)
    numbers = (totals.sum["weight"], totals.squares["weight"], totals.largest["weight"], totals.sum["unsupported"])
    found = support_of_sums(*numbers, len(evaluator.sums.slots), evaluator.gates)
    return np.array([not gate.reason for gate in found])


def _flat(
    line: Line,
    totals: Totals,
    by_user: Mapping[str, np.ndarray],
    name: str,
    grid: np.ndarray,
    kept: np.ndarray,
    own: float,
) -> list[float] | None:
    """See `sensitivity_section`: among the weights `kept`; None where the setting's own is not within."""
    mean, ratios = line.means(totals.sum)[name], line.sums.ratios
    # What each user adds to the mean: linear in sums, and for a ratio a / b its derivative (a_u - mean b_u) / b.
    of_user = by_user[name] / line.requests(name)  # [U, P]
    if name in ratios:
        below = ratios[name]
        other = by_user[below] / line.requests(below)
        of_user = (of_user - mean * other) / other.sum(axis=0)
    at = int(np.searchsorted(grid, own))
    if not kept[at]:
        return None
    best = int(np.argmax(np.where(kept, mean, -np.inf)))
    difference = of_user - of_user[:, best : best + 1]
    error = difference.std(axis=0) * np.sqrt(len(difference))
    within = kept & (mean[best] - mean <= _ERRORS * error + 1e-12 * abs(mean[best]))
    if not within[at]:
        return None
    outside = np.flatnonzero(~within)
    first = outside[outside < at].max(initial=-1) + 1
    last = outside[outside > at].min(initial=len(grid)) - 1
    return [float(grid[first]), float(grid[last])]
