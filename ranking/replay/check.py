"""`seedrank replay check`: whether a log is fit for a replay, before anything is tuned on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay import findings
from ranking.replay.findings import LEVELS, Finding
from ranking.replay.log import ReplayLog
from ranking.replay.reading import PARTS

__all__ = ["LogCheck", "check_lines", "check_log"]

Progress = Callable[[str, int, int], None]
_STEPS = 6


@dataclass(frozen=True)
class LogCheck:
    """What a check of a log found.

    Args:
        path: str. The dataset.
        window: str. The window that was looked at.
        findings: tuple of `Finding`.
        numbers: dict of str to float. Requests, candidates, shown rows, users, clicks, conversions; and of the gates.
        estimators: dict of str to str. Why each of E0 to E6 can't be used; empty where it can. Without weights: none.
    """

    path: str
    window: str
    findings: tuple[Finding, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    estimators: dict[str, str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The worst level of the findings."""
        return max((found.level for found in self.findings), key=LEVELS.index, default="ok")

    @property
    def ok(self) -> bool:
        """Whether nothing forbids a replay."""
        return self.level != "refuse"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": self.ok, "level": self.level, **asdict(self)}


def check_log(
    source: Dataset | str | Path,
    run: str | Path | None = None,
    *,
    window: str = "tune",
    production: str | Path | None = None,
    progress: Progress | None = None,
) -> LogCheck:
    """Looks at everything a replay relies on: labels, scores, order, propensities, examination, support, maturity.

    Args:
        source: Dataset, or the folder of one.
        run: str or Path. A run whose scores take the place of the log's, as in tuning on a run. Defaults to none.
        window: str. Name of a window of the dataset. Defaults to `"tune"`.
        production: str or Path. The weights that the log was served with; defaults to the run's, else to
            `production_weights.json` beside the log.
        progress: callable or None. Called with (words, steps done, steps in all).

    Returns:
        `LogCheck`. A log that can't be read at all has the reason as its last finding.

    Raises:
        UserError: no such dataset, window, run or weights file.
    """
    dataset = source if isinstance(source, Dataset) else Dataset(source)
    if window not in dataset.schema.windows:
        names = sorted(dataset.schema.windows)
        raise UserError(f"`window` should be one of {names} of dataset.toml. Received: {window!r}.")
    weights = _weights(dataset, run, production)
    tell = progress or (lambda words, done, total: None)
    parts = None if run is None else _rescored(Path(run), dataset, window, tell)
    found: list[Finding] = []
    numbers: dict[str, float] = {}
    estimators: dict[str, str] = {}
    try:
        tell("tables", 0, _STEPS)
        if not dataset.has("candidates"):
            line = (
                "No table `candidates`: what was not shown is unknown, so what was shown can only be re-ordered (E0)."
            )
            found.append(Finding("warn", "candidates", line))
        log = ReplayLog.from_dataset(dataset, window, parts, segment=_segment(dataset, weights))
        tell("labels", 1, _STEPS)
        numbers = _numbers(log)
        found += findings.slate_findings(dataset, log)
        found += findings.label_findings(log)
        found.append(findings.maturity_finding(dataset, log))
        tell("propensities", 2, _STEPS)
        found += _served(dataset, log, window, weights, run)
        stated = {"position_propensity", "exposure_propensity"}
        stated &= set(dataset.candidates) if dataset.has("candidates") else set()
        found += findings.propensity_findings(log, stated)
        tell("examination", 3, _STEPS)
        found.append(findings.examination_finding(dataset, log))
        tell("support", 4, _STEPS)
        if weights is None:
            line = "No weights file: support and estimators were not looked at; pass the weights that served the log."
            found.append(Finding("warn", "support", line))
        else:
            supported, gates = findings.support_finding(log, weights)
            found.append(supported)
            numbers |= gates
            tell("estimators", 5, _STEPS)
            estimators = findings.estimators_of(log, weights)
    except UserError as error:
        found.append(Finding("refuse", "log", str(error)))
    tell("", _STEPS, _STEPS)
    return LogCheck(str(dataset.path), window, tuple(found), numbers, estimators)


def check_lines(check: LogCheck) -> list[str]:
    """The check as text: the verdict, the findings, what a replay of the log may use."""
    worst = {
        "ok": "fit for a replay",
        "warn": "fit for a replay, with warnings",
        "refuse": "not fit for a replay",
    }
    lines = [f"{check.path}, window {check.window}: {worst[check.level]}."]
    if check.numbers:
        counts = ("requests", "candidates", "shown", "users", "clicks", "conversions")
        lines.append(", ".join(f"{check.numbers[name]:,.0f} {name}" for name in counts))
    lines += [f"{found.level:<7} {found.topic}: {found.line}" for found in check.findings]
    for name, reason in check.estimators.items():
        lines.append(f"{name} can be used" if not reason else f"{name} cannot: {reason}")
    return lines


def _weights(dataset: Dataset, run: str | Path | None, production: str | Path | None) -> FusionWeights | None:
    if production is not None:
        return FusionWeights.load(production)
    if run is not None:
        return FusionWeights.load(Path(run) / "fusion.json")
    beside = dataset.path / "production_weights.json"
    return FusionWeights.load(beside) if beside.is_file() else None


def _segment(dataset: Dataset, weights: FusionWeights | None) -> str | None:
    """The column of the segments, where the weights differ by segment."""
    known = dataset.has("requests") and "segment" in dataset.requests
    return "segment" if weights is not None and weights.segments and known else None


def _has_parts(dataset: Dataset) -> bool:
    return dataset.has("candidates") and bool(set(PARTS) & set(dataset.candidates))


def _rescored(run: Path, dataset: Dataset, window: str, tell: Progress) -> dict[str, np.ndarray]:
    """The run's own score parts of the candidates."""
    from ranking.run import load_run
    from ranking.scoring import score_candidates

    scores = score_candidates(load_run(run), dataset, window, progress=tell)
    return {name: scores[name] for name in (*PARTS, "has_similarity") if name in scores}


def _served(
    dataset: Dataset, log: ReplayLog, window: str, weights: FusionWeights | None, run: str | Path | None
) -> list[Finding]:
    """Fidelity: the score and the order as served."""
    if weights is None or not _has_parts(dataset):
        what = "weights file" if weights is None else "score parts in candidates"
        score = Finding("warn", "score", f"No {what}: whether the served score can be made again is not known.")
    else:
        served = log if run is None else ReplayLog.from_dataset(dataset, window, segment=_segment(dataset, weights))
        score = findings.score_finding(served, weights, rescored=run is not None)
    return [score, findings.order_finding(log)]


def _numbers(log: ReplayLog) -> dict[str, float]:
    return {
        "requests": log.requests,
        "candidates": len(log.item),
        "shown": int((log.position >= 0).sum()),
        "users": len(set(log.user.tolist())),
        "clicks": int(log.click.sum()),
        "conversions": int(log.conversion.sum()),
    }
