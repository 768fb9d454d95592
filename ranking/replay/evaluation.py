"""What some weights would have done on one log, against production, with intervals; refused where the log can't say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.estimators import OBJECTIVES, E0LabelNDCG, E3ExposureIPS, choose_estimator
from ranking.replay.intervals import paired_deltas
from ranking.replay.log import ReplayLog
from ranking.replay.ranks import RankSums
from ranking.replay.settings import score_terms, weight_matrix
from ranking.replay.support import Support, SupportGates, matured_conversions, support

__all__ = ["Estimate", "Evaluation", "Evaluator", "evaluate_weights", "evaluations_frame", "percent"]

GATE_OUTPUTS = ("weight", "unsupported")


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
        weights: dict of str to float. The setting, canonical.
        support: Support or None. Verdict of the gates; None under E0, which has none.
        estimates: dict of str to `Estimate`. Empty where refused: a refused number is not kept.
    """

    weights: dict[str, float]
    support: Support | None
    estimates: dict[str, Estimate]

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
        return cls(dict(data["weights"]), gates, estimates)


class Evaluator:
    """One log, one estimator, the production weights: made once, then asked about many settings.

    Args:
        log: ReplayLog.
        production: FusionWeights. What every change is against.
        estimator: E0LabelNDCG or E3ExposureIPS. Defaults to the best that the log allows.
        gates: SupportGates. Defaults to `SupportGates()`.
        seed: int. Random seed of the resamples. Defaults to `0`.

    Raises:
        UserError: production itself is refused: then no change against it can be told.
    """

    def __init__(
        self,
        log: ReplayLog,
        production: FusionWeights,
        estimator: E0LabelNDCG | E3ExposureIPS | None = None,
        *,
        gates: SupportGates | None = None,
        seed: int = 0,
    ) -> None:
        self.log = log
        self.production = production
        self.estimator = estimator or choose_estimator(log)
        self.gates = gates or SupportGates()
        self.seed = seed
        self.sums: RankSums = self.estimator.sums(log, production)
        self.objectives = tuple(name for name in OBJECTIVES if name in self.sums.coefficients)
        if matured_conversions(log) < self.gates.min_conversions:
            self.objectives = tuple(name for name in self.objectives if name not in ("conversions", "value"))
        self.parts = tuple(score_terms(log, production))
        values = self.sums.values(self._matrix([production]))
        self.production_values = {name: rows[0] for name, rows in values.items()}
        found = self.supports(values)[0]
        if found is not None and found.reason:
            raise UserError(f"The log does not support the production weights themselves: {found.reason}.")

    def supports(self, values: dict[str, np.ndarray]) -> list[Support | None]:
        """The gates on values of some settings; None where the estimator has none."""
        if not self.estimator.causal:
            return [None] * len(next(iter(values.values())))
        return list(support(values["weight"], values["unsupported"], self.gates))

    def deltas(self, settings: np.ndarray) -> tuple[dict[str, np.ndarray], list[Support | None]]:
        """Point estimates of the changes `[S]` of each objective, without intervals, and the gates."""
        values = self.sums.values(settings, self._outputs())
        found = {}
        for name in self.objectives:
            counted = self.sums.counted[name]
            base = self.production_values[name][counted].sum(dtype=np.float64)
            total = values[name][:, counted].sum(axis=1, dtype=np.float64)
            found[name] = total / base - 1 if base > 0 else np.full(len(total), np.nan)
        return found, self.supports(values)

    def evaluate(self, settings: Sequence[FusionWeights], *, together: bool = True) -> list[Evaluation]:
        """Settings with intervals, see `paired_deltas` (there also what `together` means)."""
        values = self.sums.values(self._matrix(settings), self._outputs())
        gates = self.supports(values)
        kept = np.flatnonzero([found is None or not found.reason for found in gates])
        estimates: list[dict[str, Estimate]] = [{} for _ in settings]
        for name in self.objectives if len(kept) else ():
            found = paired_deltas(
                values[name][kept],
                self.production_values[name],
                self.sums.counted[name],
                self.sums.cluster,
                together=together,
                seed=self.seed,
            )
            columns = (found.value, found.value_error, found.delta, found.low, found.high)
            if np.isfinite(found.delta).all():
                for index, row in zip(kept, zip(*columns, strict=True), strict=True):
                    estimates[index][name] = Estimate(*(float(number) for number in row))
        rows = zip(settings, gates, estimates, strict=True)
        return [Evaluation(dict(setting.weights), gate, found) for setting, gate, found in rows]

    def _matrix(self, settings: Sequence[FusionWeights]) -> np.ndarray:
        return weight_matrix(settings, self.production, self.parts, list(self.log.parts))

    def _outputs(self) -> list[str]:
        return [*self.objectives, *(GATE_OUTPUTS if self.estimator.causal else ())]


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
