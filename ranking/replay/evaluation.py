"""What some weights would have done on one log, against production, with intervals; refused where the log can't say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators import OBJECTIVES, E0LabelNDCG, Estimator, choose_estimator
from ranking.replay.estimators.labels import group_of_row
from ranking.replay.intervals import USERS, resample
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import DIVERSITY, MATCH, RankSums, Totals
from ranking.replay.settings import score_rows, score_terms, weight_matrix
from ranking.replay.support import Support, SupportGates, matured_conversions, support, support_of_sums

__all__ = ["Estimate", "Evaluation", "Evaluator", "evaluate_weights", "evaluations_frame", "percent"]

GATE_OUTPUTS = ("weight", "unsupported", "clipped")
_HELD = 1_000_000  # sums by user held at once, so that an evaluation needs less memory than the scores of its log
_STEP = 0.01  # of theta, in the derivatives
_MOVED = 5  # places whose derivatives share a pass: their coefficients are held at once


@dataclass(frozen=True)
class Estimate:
    """One objective of one setting.

    Args:
        value: float. Mean a request (E3) or a group (E0).
        value_error: float. Its standard error.
        delta: float. Relative change against production.
        low: float. Lower end of the interval of the change; the intervals of one call hold together.
        high: float. Upper end.
    """

    value: float
    value_error: float
    delta: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """One setting on one log.

    Args:
        weights: dict of str to float. The setting, canonical; empty where scores are no weighted sum.
        support: Support or None. Verdict of the gates; None under an estimator that has none.
        estimates: dict of str to `Estimate`. Empty where refused: a refused number is not kept.
        clipped: float. Share of the weight that clipping took away. Defaults to `0`.
    """

    weights: dict[str, float]
    support: Support | None
    estimates: dict[str, Estimate]
    clipped: float = 0.0

    @property
    def refused(self) -> str:
        """Why the setting is refused; empty where it is not."""
        return "" if self.support is None else self.support.reason

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        gates = None if data["support"] is None else Support(**data["support"])
        estimates = {name: Estimate(**row) for name, row in data["estimates"].items()}
        return cls(dict(data["weights"]), gates, estimates, float(data.get("clipped", 0.0)))


class Evaluator:
    """One log, one estimator, the production weights: made once, then asked about many settings.

    Args:
        log: ReplayLog.
        production: FusionWeights. What every change is against.
        estimator: one of `ranking.replay.estimators`. Defaults to the best that the log allows.
        gates: SupportGates. Defaults to `SupportGates()`.
        replicates: int. Resamples of the intervals. Defaults to `1000`.
        seed: int. Random seed of the resamples. Defaults to `0`.

    Raises:
        UserError: production itself is refused: then no change against it can be told.
    """

    def __init__(
        self,
        log: ReplayLog,
        production: FusionWeights,
        estimator: Estimator | None = None,
        *,
        gates: SupportGates | None = None,
        replicates: int = 1000,
        seed: int = 0,
    ) -> None:
        self.log = log
        self.production = production
        self.estimator = estimator or choose_estimator(log)
        self.gates = gates or SupportGates()
        self.replicates = replicates
        self.seed = seed
        self.sums: RankSums = self.estimator.sums(log, production)
        self.objectives = tuple(name for name in OBJECTIVES if name in self.sums.outputs)
        if matured_conversions(log) < self.gates.min_conversions:
            self.objectives = tuple(name for name in self.objectives if name not in ("conversions", "value"))
        self.parts = tuple(score_terms(log, production))
        sums, row = self._scored([production])
        self.production_values = {name: rows[0] for name, rows in sums.values(row).items()}
        totals = sums.totals(row, self._outputs())
        self._production_means = {name: mean[0] for name, mean in self._means(sums, totals.sum).items()}
        found = self._supports(totals)[0]
        if found is not None and found.reason:
            raise UserError(f"The log does not support the production weights themselves: {found.reason}.")

    def supports(self, values: dict[str, np.ndarray]) -> list[Support | None]:
        """The gates on values of some settings; None where the estimator has none."""
        if "weight" not in self.sums.outputs:
            return [None] * len(next(iter(values.values())))
        return list(support(values["weight"], values["unsupported"], self.gates))

    def deltas(self, settings: np.ndarray) -> tuple[dict[str, np.ndarray], list[Support | None]]:
        """Point estimates of the changes `[S]` of each objective, without intervals, and the gates."""
        totals = self.sums.totals(settings, self._outputs())
        found = {}
        for name, mean in self._means(self.sums, totals.sum).items():
            base = self._production_means[name]
            found[name] = mean / base - 1 if base > 0 else np.full(len(mean), np.nan)
        return found, self._supports(totals)

    def evaluate(self, settings: Sequence[FusionWeights], *, together: bool = True) -> list[Evaluation]:
        """Settings with intervals, see `Resamples.deltas` (there also what `together` means)."""
        sums, matrix = self._scored([*settings, self.production])
        return self._evaluate(sums, matrix, [dict(setting.weights) for setting in settings], together)

    def evaluate_scores(self, scores: Mapping[str, np.ndarray], *, together: bool = True) -> list[Evaluation]:
        """The same of scores that are not a weighted sum of the parts: another model, a learned fusion.

        Args:
            scores: dict of str to float32 `[n]`. The score of every candidate of the log; the more, the better.
            together: bool. As in `evaluate`. Defaults to `True`.

        Returns:
            List of `Evaluation`, in the order of `scores`, with no weights.

        Raises:
            UserError: not a finite number for each candidate.
        """
        rows = [np.asarray(row, np.float32) for row in scores.values()]
        for name, row in zip(scores, rows, strict=True):
            if row.shape != self.log.item.shape or not np.isfinite(row).all():
                raise UserError(
                    f"The scores of {name!r} should be a finite number for each of the {len(self.log.item)} candidates."
                )
        production = score_rows(self.log, [self.production], self.production)
        sums, matrix = self._of_rows(np.concatenate([np.stack(rows), production]))
        return self._evaluate(sums, matrix, [{} for _ in rows], together)

    def _scored(self, settings: Sequence[FusionWeights]) -> tuple[RankSums, np.ndarray]:
        """Sums and the settings to ask them about; those that differ by segment bring their own scores."""
        matrix = weight_matrix(settings, self.production, self.parts, list(self.log.parts))
        if self.log.segment is None or not any(setting.segments for setting in settings):
            return self.sums, matrix
        return self._of_rows(score_rows(self.log, settings, self.production))

    def _of_rows(self, scores: np.ndarray) -> tuple[RankSums, np.ndarray]:
        """Sums over given scores `[S, n]`: each is a part, and a setting is one part with the weight 1."""
        if isinstance(self.estimator, E0LabelNDCG):  # it has the shown rows only, ordered by their group
            shown = np.flatnonzero(self.log.position >= 0)
            order = np.argsort(group_of_row(self.log, self.estimator.group)[shown], kind="stable")
            scores = scores[:, shown[order]]
        return replace(self.sums, terms=np.ascontiguousarray(scores)), np.eye(len(scores), dtype=np.float32)

    def _evaluate(
        self, sums: RankSums, matrix: np.ndarray, weights: list[dict[str, float]], together: bool
    ) -> list[Evaluation]:
        """Evaluations of the rows of `matrix` but the last, which is production."""
        totals = sums.totals(matrix[:-1], self._outputs())
        gates = self._supports(totals)
        lost = np.zeros(len(weights))
        if "clipped" in totals.sum:
            lost = totals.sum["clipped"] / np.maximum(totals.sum["weight"], 1e-12)
        kept = np.flatnonzero([found is None or not found.reason for found in gates])
        estimates: list[dict[str, Estimate]] = [{} for _ in weights]
        if len(kept):
            chosen = matrix[[*kept, -1]]
            names = self._needed()
            size = max(1, _HELD // max(len(names) * len(chosen), self.replicates) // USERS) * USERS
            found = resample(sums.cluster_blocks(chosen, names, size), self.replicates, self.seed)
            shifts = self._examination_shifts(sums, chosen)
            for name in self.objectives:
                below = sums.ratios.get(name, "")
                row = found.deltas(name, below=below, shift=shifts.get(name), together=together)
                columns = (row.value, row.value_error, row.delta, row.low, row.high)
                if np.isfinite(row.delta).all():
                    for index, numbers in zip(kept, zip(*columns, strict=True), strict=True):
                        estimates[index][name] = Estimate(*(float(number) for number in numbers))
        rows = zip(weights, gates, estimates, lost, strict=True)
        return [Evaluation(setting, gate, found, float(clipped)) for setting, gate, found, clipped in rows]

    def _examination_shifts(self, sums: RankSums, matrix: np.ndarray) -> dict[str, np.ndarray]:
        """What an examination within its error would change, `[B, S]` of each objective; nothing where it is stated.

        Draws of theta go through the derivative of the means, by differences of a hundredth: exact to first order. Of
        diversity, which is counted and not estimated, there is none.
        """
        covariance = self.log.examination_covariance
        if covariance is None or self.log.examination is None or isinstance(self.estimator, E0LabelNDCG):
            return {}
        theta = np.asarray(self.log.examination, np.float64)
        names = [name for name in self._needed() if name != DIVERSITY]
        uncertain = np.flatnonzero(np.diag(covariance) > 0)
        here = self._means(sums, sums.totals(matrix, names).sum)
        slopes = {name: np.zeros((len(theta), len(matrix))) for name in here}
        for first in range(0, len(uncertain), _MOVED):
            places = uncertain[first : first + _MOVED]
            found = self._joined(sums, theta, places, names).totals(matrix).sum
            for place in places:
                there = self._means(sums, {name: found[f"{name} {place}"] for name in names})
                for name, mean in there.items():
                    slopes[name][place] = (mean - here[name]) / (_STEP * theta[place])
        generator = np.random.default_rng([self.seed, len(theta)])
        drawn = generator.multivariate_normal(np.zeros(len(theta)), covariance, self.replicates, method="eigh")
        return {name: drawn @ slope for name, slope in slopes.items()}

    def _joined(self, sums: RankSums, theta: np.ndarray, places: np.ndarray, names: Sequence[str]) -> RankSums:
        """Outputs "name place" with theta moved at each of the places: one pass over the orders serves them all."""
        coefficients, gain_of, counted = {}, {}, {}
        gains: list[np.ndarray] = []
        for place in places:
            moved = theta.copy()
            moved[place] *= 1 + _STEP
            there = self.estimator.sums(self._with_theta(moved), self.production)
            tables = sum(len(table) for table in gains)
            for name in names:
                coefficients[f"{name} {place}"] = there.coefficients[name]
                gain = there.gain_of.get(name, 0)
                gain_of[f"{name} {place}"] = gain if gain == MATCH else gain + tables
                counted[f"{name} {place}"] = sums.requests_counted(name)
            gains.append(there.gains)
        return replace(
            sums,
            gains=np.concatenate(gains),
            coefficients=coefficients,
            gain_of=gain_of,
            counted=counted,
            ratios={},
            category=None,
        )

    def _with_theta(self, theta: np.ndarray) -> ReplayLog:
        if self.log.exposure_propensity is not None:
            return self.log.with_theta(theta)
        return replace(self.log, examination=theta, examination_covariance=None)

    def _means(self, sums: RankSums, total: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Means `[S]` of the objectives that are there over the requests that count, ratios divided."""
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = {name: row / sums.requests_counted(name).sum() for name, row in total.items()}
            kept = [name for name in self.objectives if name in mean]
            return {n: mean[n] / mean[sums.ratios[n]] if n in sums.ratios else mean[n] for n in kept}

    def _supports(self, totals: Totals) -> list[Support | None]:
        if "weight" not in totals.sum:
            return [None] * len(next(iter(totals.sum.values())))
        total, squares, largest = totals.sum["weight"], totals.squares["weight"], totals.largest["weight"]
        unsupported = totals.sum["unsupported"]
        return list(support_of_sums(total, squares, largest, unsupported, len(self.sums.slots), self.gates))

    def _needed(self) -> list[str]:
        """The objectives, and what divides them."""
        below = [self.sums.ratios[name] for name in self.objectives if name in self.sums.ratios]
        return list(dict.fromkeys([*self.objectives, *below]))

    def _outputs(self) -> list[str]:
        gates = [name for name in GATE_OUTPUTS if name in self.sums.outputs]
        return list(dict.fromkeys([*self._needed(), *gates]))


def evaluate_weights(
    log: ReplayLog,
    settings: Sequence[FusionWeights],
    production: FusionWeights,
    *,
    group: str = "request",
    gates: SupportGates | None = None,
    seed: int = 0,
) -> list[Evaluation]:
    """What each setting would have done on a log, against production.

    Args:
        log: ReplayLog.
        settings: sequence of FusionWeights, normalised as production is.
        production: FusionWeights. What every change is against.
        group: str. `"request"`, `"user"` or `"item"`: what E0 orders. Defaults to `"request"`.
        gates: SupportGates. Defaults to `SupportGates()`.
        seed: int. Random seed of the resamples. Defaults to `0`.

    Returns:
        List of `Evaluation`, one a setting; `evaluations_frame` makes a table of it.
    """
    if not settings:
        raise UserError("`settings` should hold at least one set of weights. Received: none.")
    return Evaluator(log, production, choose_estimator(log, group), gates=gates, seed=seed).evaluate(settings)


def evaluations_frame(evaluations: Sequence[Evaluation], names: Sequence[str]) -> pd.DataFrame:
    """A table: one row a setting and objective; a refused setting has one row with the reason and no number."""
    rows: list[dict[str, Any]] = []
    for name, found in zip(names, evaluations, strict=True):
        head = {"setting": name, **{f"w_{part}": weight for part, weight in found.weights.items()}}
        if found.refused:
            rows.append({**head, "state": "refused", "reason": found.refused})
        for objective, estimate in found.estimates.items():
            state = "biased" if found.support is None else "supported"
            rows.append({**head, "state": state, "objective": objective, **asdict(estimate)})
    return pd.DataFrame(rows)


def percent(change: float) -> str:
    """A change for people: `+1.2%`; no sign on what rounds to nothing."""
    text = f"{change:+.1%}"
    return "0.0%" if text in ("+0.0%", "-0.0%") else text
