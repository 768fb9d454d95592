"""What some weights would have done, on the log of a study or on any other."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranking.errors import UserError
from ranking.replay_source import Progress, ReplaySource

if TYPE_CHECKING:  # so that --help needs none of it
    from ranking.fusion import FusionWeights
    from ranking.replay.evaluation import Evaluation
    from ranking.replay.study import Study

__all__ = ["WhatIf", "refuse_other_data", "what_if"]


@dataclass(frozen=True)
class WhatIf:
    """Settings against production.

    Args:
        window: str. `"tune"` or `"test"`.
        estimator: str. `"E0"` to `"E6"`.
        objectives: tuple of str. Those that the log knows.
        evaluations: tuple of Evaluation. One a setting.
        notes: tuple of str. What a reader must know beside the numbers.
    """

    window: str
    estimator: str
    objectives: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def what_if(
    source: Path,
    weights: Sequence[str],
    *,
    data: Path | None = None,
    window: str = "tune",
    production: Path | None = None,
    diversity: str | None = None,
    estimator: str = "auto",
    progress: Progress | None = None,
) -> WhatIf:
    """Judges weights on one window.

    Args:
        source: Path. A study file, whose log is read again as it was; or a run, or a dataset with candidates.
        weights: sequence of str. As `similarity=.2,pctr=1`; the others are production's.
        data: Path. Beside a run: its dataset. Of a study: another place of its dataset. Defaults to `None`.
        window: str. `"tune"`, or `"test"`: a look, which a study counts before its numbers are seen. Defaults to
            `"tune"`.
        production: Path. Weights that changes are against; a study has its own. Defaults to `None`.
        diversity: str. A column of items; a study has its own. Defaults to `None`.
        estimator: str. A study has its own. Defaults to `"auto"`.
        progress: callable of (stage, done, total). Defaults to `None`.

    Returns:
        `WhatIf`.

    Raises:
        UserError: weights out of production's bounds, or a log that is not the study's.
    """
    from ranking.fusion import parse_weights
    from ranking.replay.estimators import choose_estimator
    from ranking.replay.evaluation import Evaluator
    from ranking.replay.study import Study

    if window not in ("tune", "test"):
        raise UserError(f"`window` should be tune or test. Received: {window!r}.")
    given = list(map(parse_weights, weights))
    study = Study.load(source) if source.is_file() else None
    if study is None:
        texts = {"data": str(data or ""), "production": str(production or ""), "diversity": diversity or ""}
        where, group, seed = ReplaySource(str(source), **texts), "request", 0
    else:
        where = _source_of(study).moved(data)
        group, estimator, seed = (study.settings[name] for name in ("group", "estimator", "seed"))
        _settings(given, study.production)  # what is out of bounds is said before the log is read
    loaded = where.load([window], progress=progress)
    log, base = loaded.logs[window], loaded.production
    if study is not None:
        study.refuse_other(window, log.hash)
        base = study.production
    settings = _settings(given, base)
    # The resamples of the study, so that a setting of its list has the interval that it has there.
    judge = Evaluator(log, base, choose_estimator(log, group, estimator), seed=seed + (window == "test"))
    notes = [*judge.estimator.banners(log), *([loaded.note] if loaded.note else [])]
    if window == "test":
        looks = "no study counts it"
        if study is not None:
            looks = f"number {len(study.looked(uuid.uuid4().hex).save(source).looks)} of this study"
        notes.append(f"This was a look at the test window: {looks}.")
    found = judge.evaluate(settings)
    return WhatIf(window, judge.estimator.name, judge.objectives, tuple(found), tuple(notes))


def _settings(given: Sequence[dict[str, float]], production: FusionWeights) -> list[FusionWeights]:
    """Production with some other weights, within its bounds."""
    for weights in given:
        for name, weight in weights.items():
            low, high = production.bounds.get(name, (0.0, 0.0))
            if not low <= weight <= high:
                raise UserError(
                    f"`weights` should be within production's bounds, {low:g} to {high:g} for {name}. "
                    f"Received: {name}={weight:g}."
                )
    changed = ({**production.weights, **weights} for weights in given)
    return [dataclasses.replace(production, weights=weights, segments={}) for weights in changed]


def _source_of(study: Study) -> ReplaySource:
    if not study.source:
        raise UserError("The study does not say where its log is: give the run or the dataset in its place.")
    return ReplaySource(**study.source)


def refuse_other_data(study: Study, data: Path, progress: Progress | None = None) -> None:
    """Reads, or scores, the tune window again from a dataset.

    Raises:
        UserError: it is not the one that the study was made on.
    """
    log = _source_of(study).moved(data).load(["tune"], progress=progress).logs["tune"]
    study.refuse_other("tune", log.hash)
