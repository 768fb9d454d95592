"""Where the logs of a replay come from: a dataset that holds scores, or a run that scores one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranking.errors import UserError
from ranking.progress import quiet

if TYPE_CHECKING:  # so that --help needs none of it
    from ranking.data.tables import Dataset
    from ranking.fusion import FusionWeights
    from ranking.replay.log import ReplayLog
    from ranking.replay.study import Study
    from ranking.rivals import Rival

__all__ = ["EXAMINATIONS", "Loaded", "Progress", "ReplaySource", "tune_source"]

EXAMINATIONS = ("auto", "estimated", "stated")
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a replay reads.

    Args:
        production: FusionWeights. What changes are against.
        logs: dict of window to ReplayLog.
        dataset: Dataset.
        run: Run or None. What scored the candidates; None where the log holds the scores.
        note: str. Why examination is not estimated, though it was to be if it can. Defaults to `""`.
    """

    production: FusionWeights
    logs: dict[str, ReplayLog]
    dataset: Dataset
    run: Any
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ReplaySource:
    """How to read the logs, so that a study can read them again.

    Args:
        source: str. A run folder, or a dataset folder with candidates.
        data: str. Beside a run: the dataset whose candidates it scores. Defaults to `""`.
        production: str. The weights file that changes are against; by default the run's own, or
            `production_weights.json` beside the log. Defaults to `""`.
        segments: str. A column of requests or users. Defaults to `""`.
        diversity: str. A column of items, for the objective `"diversity"`. Defaults to `""`.
        examination: str. `"estimated"` on the requests before the tune window, `"stated"` by the log, or `"auto"`:
            estimated where the log explored and tells enough. Defaults to `"auto"`.

    Raises:
        UserError: an unknown `examination`.
    """

    source: str
    data: str = ""
    production: str = ""
    segments: str = ""
    diversity: str = ""
    examination: str = "auto"

    def __post_init__(self) -> None:
        if self.examination not in EXAMINATIONS:
            raise UserError(f"`examination` should be one of {list(EXAMINATIONS)}. Received: {self.examination!r}.")

    @property
    def is_run(self) -> bool:
        """Whether a run scores the candidates."""
        return (Path(self.source) / "run.json").is_file()

    def moved(self, data: Path | None) -> ReplaySource:
        """The same reading of another dataset."""
        if data is None:
            return self
        return dataclasses.replace(self, **{"data" if self.data else "source": str(data)})

    def load(self, windows: Sequence[str] = ("tune", "test"), progress: Progress | None = None) -> Loaded:
        """Reads, or scores, some windows.

        Raises:
            UserError: no such folder, no scores, a run that has seen the answers, an unknown column.
        """
        from ranking.data.tables import Dataset
        from ranking.fusion import FusionWeights
        from ranking.replay.log import ReplayLog

        report = progress or (lambda *_: None)
        logs, run = {}, None
        if self.is_run:
            if not self.data:
                raise UserError("`--data` is needed beside a run: the dataset whose candidates it scores.")
            report("loading the run", 0, 1)
            quiet()
            from ranking.run import load_run
            from ranking.scoring import score_candidates

            run, dataset = load_run(Path(self.source)), Dataset(Path(self.data))
            report("loading the run", 1, 1)
            if run.info["refit"]:
                raise UserError(
                    f"{self.source} was fitted again on its tune window, so its scores there have seen the answers; "
                    "train without --refit to tune, then carry the weights over."
                )
            own = run.info["parameters_hash"]
            production = FusionWeights.load(self.production, own) if self.production else run.weights
            columns, names = self._columns(production), (*run.weights.weights, "has_similarity")
            for window in windows:
                parts = score_candidates(run, dataset, window, progress=report)
                logs[window] = ReplayLog.from_dataset(dataset, window, {n: parts[n] for n in names}, **columns)
        else:
            if self.data:
                raise UserError(f"`--data` is for a run, and {self.source} is none: it holds no run.json.")
            dataset = Dataset(Path(self.source))
            path = Path(self.production or Path(self.source) / "production_weights.json")
            if not path.is_file():
                raise UserError(f"{path} does not exist: pass --production, the weights that the log was served with.")
            production = FusionWeights.load(path)
            columns = self._columns(production)
            for number, window in enumerate(windows):
                report("reading the log", number, len(windows))
                logs[window] = ReplayLog.from_dataset(dataset, window, **columns)
            report("reading the log", len(windows), len(windows))
        logs, note = self._examined(dataset, logs, report)
        return Loaded(production, logs, dataset, run, note)

    def _columns(self, production: FusionWeights) -> dict[str, Any]:
        """Of segments and categories; weights that differ by segment are by the column `segment` of requests."""
        if production.segments and self.segments not in ("", "segment"):
            raise UserError(
                f"`segments` should be segment, as production's weights differ by it. Received: {self.segments!r}."
            )
        segment = "segment" if production.segments else self.segments or None
        return {"segment": segment, "category": self.diversity or None}

    def _examined(
        self, dataset: Dataset, logs: dict[str, ReplayLog], report: Progress
    ) -> tuple[dict[str, ReplayLog], str]:
        """The logs with examination as it was before the tune window, or why they are without."""
        from ranking.replay.examination import read_examination

        explored = all(set(log.exploration) != {"none"} for log in logs.values())
        if self.examination == "stated" or (self.examination == "auto" and not explored):
            return logs, ""
        try:
            found = read_examination(dataset, progress=report)
            return {window: log.with_examination(found) for window, log in logs.items()}, ""
        except UserError as error:
            if self.examination == "estimated":
                raise
            return logs, f"Examination is not estimated: {error}"


def tune_source(
    source: str | Path,
    data: str | Path | None = None,
    *,
    production: Path | None = None,
    segments: str | None = None,
    diversity: str | None = None,
    examination: str = "auto",
    rivals: bool = True,
    progress: Progress | None = None,
    **arguments: Any,
) -> Study:
    """Tunes on a run's own scores of a dataset's candidates, or on the scores that a log holds.

    Args:
        source: str or Path. See `ReplaySource`, as for the arguments up to `examination`.
        data: str or Path. Defaults to `None`.
        production: Path. Defaults to `None`.
        segments: str. Defaults to `None`.
        diversity: str. Defaults to `None`.
        examination: str. Defaults to `"auto"`.
        rivals: bool. Whether a learned fusion and a model an objective (where the run has one) are judged beside the
            settings. Defaults to `True`.
        progress: callable of (stage, done, total). Defaults to `None`.
        **arguments: as `ranking.replay.tuning.tune`.

    Returns:
        Study. It remembers its source.
    """
    from ranking.replay.tuning import tune
    from ranking.replay.tuning_checks import check_arguments

    check_arguments(**arguments)  # before minutes of scoring
    given = {"data": data, "production": production, "segments": segments, "diversity": diversity}
    texts = {name: str(value) if value else "" for name, value in given.items()}
    where = ReplaySource(str(source), examination=examination, **texts)
    loaded = where.load(progress=progress)
    beside = _rivals(loaded, arguments.get("objective", "conversions"), progress) if rivals else []
    study = tune(
        loaded.logs["tune"],
        loaded.logs["test"],
        production=loaded.production,
        rivals=beside,
        source=dataclasses.asdict(where),
        progress=progress,
        **arguments,
    )
    return dataclasses.replace(study, banners=(*study.banners, loaded.note)) if loaded.note else study


def _rivals(loaded: Loaded, objective: str, progress: Progress | None) -> list[Rival]:
    """What other scores would do; none where the log or the run does not allow it."""
    from ranking.rivals import learned_rival, multi_model_rival

    logs = (loaded.logs["tune"], loaded.logs["test"])
    report = progress or (lambda *_: None)
    report("learned fusion", 0, 1)
    found = [learned_rival(*logs, loaded.production, objective)[0]]
    report("learned fusion", 1, 1)
    if loaded.run is not None and "base" in loaded.run.models:
        run, dataset = loaded.run, loaded.dataset
        found.append(multi_model_rival(run, dataset, *logs, loaded.production, objective, progress=report)[0])
    return [rival for rival in found if rival is not None]
