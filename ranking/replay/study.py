"""The study file: what a tuning tried, found and decided, and how often its test window was looked at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ranking.atomic import atomic_file
from ranking.errors import UserError
from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Evaluation

__all__ = ["Entry", "LogSummary", "Study"]

FORMAT = "seedrank-study"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class LogSummary:
    """One window of a study, in numbers.

    Args:
        window: tuple of int. Start and end, half-open.
        requests: int. Requests.
        users: int. Users.
        candidates: int. Rows, shown or not.
        shown: int. Rows that were shown.
        clicks: int. Clicks.
        conversions: int. Matured conversions.
        immature_requests: int. Requests left out of conversions and value.
        informative: dict of str to int. Informative groups of each objective.
        score_reproduced: float or None. Share of candidates whose logged score the production weights reproduce.
    """

    window: tuple[int, int]
    requests: int
    users: int
    candidates: int
    shown: int
    clicks: int
    conversions: int
    immature_requests: int
    informative: dict[str, int]
    score_reproduced: float | None = None

    @property
    def labels(self) -> tuple[int, ...]:
        """What tells one window from another, whatever model scored it."""
        return (*self.window, self.requests, self.shown, self.clicks)


@dataclass(frozen=True)
class Entry:
    """One setting of the shortlist, on both windows.

    Args:
        name: str. `production`, `setting 1`, ..., or the name of a rival.
        roles: tuple of str. `pick`, `knee`, `best clicks`, ..., `rival`.
        tune: Evaluation. On the window it was found on: flattered.
        test: Evaluation. On the later window.
        reordering: dict of str to float. E0 changes on the test window, beside E3; empty where refused.
        description: str. Of a rival: how its scores are made. Defaults to `""`.
    """

    name: str
    roles: tuple[str, ...]
    tune: Evaluation
    test: Evaluation
    reordering: dict[str, float] = field(default_factory=dict)
    description: str = ""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Entry:
        """From plain values."""
        found = {name: Evaluation.from_json(data[name]) for name in ("tune", "test")}
        return cls(**{**data, **found, "roles": tuple(data["roles"])})

    def optimism(self, objective: str) -> float | None:
        """Tune estimate of the change minus test estimate; None where either is refused."""
        if objective not in self.tune.estimates or objective not in self.test.estimates:
            return None
        return self.tune.estimates[objective].delta - self.test.estimates[objective].delta


@dataclass(frozen=True)
class Study:
    """The result of `tune`. The file form is JSON, see `save`.

    Args:
        objective: str. What was maximised.
        guardrails: dict of str to float. Least change of other objectives.
        production: FusionWeights. What every change is against.
        verdict: str. The outcome in a sentence.
        pick: str. Name of the recommended entry; empty where the verdict is to keep production.
        estimator: str. `"E0"` to `"E6"`.
        assumptions: str. What the estimator assumes.
        banners: tuple of str. What a reader must know before the numbers.
        tune: LogSummary. The window searched on.
        test: LogSummary. The window looked at once.
        shortlist: tuple of Entry. Production first.
        trials: list of dict. Each with `weights`, and `deltas` or the `reason` it is refused for, and `feasible`.
        settings: dict. Arguments and versions that made the study.
        looks: tuple of str. One mark for each time the test window was looked at.
        rivals: tuple of Entry. Scores of other kinds, to compare with: no weights, so that they cannot be applied.
            Defaults to none.
        log_hashes: dict of str to str. sha256 of the `"tune"` and the `"test"` log. Defaults to none.
        examination: dict. `method`, `theta`, and its standard `error` where it is estimated. Defaults to none.
        source: dict. Where the logs came from and how they were read, to read them again. Defaults to nothing.
        details: dict. What the report shows beyond the tables, see `make_details`. Defaults to nothing.
    """

    objective: str
    guardrails: dict[str, float]
    production: FusionWeights
    verdict: str
    pick: str
    estimator: str
    assumptions: str
    banners: tuple[str, ...]
    tune: LogSummary
    test: LogSummary
    shortlist: tuple[Entry, ...]
    trials: list[dict[str, Any]]
    settings: dict[str, Any]
    looks: tuple[str, ...]
    rivals: tuple[Entry, ...] = ()
    log_hashes: dict[str, str] = field(default_factory=dict)
    examination: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def entry(self, name: str) -> Entry:
        """The entry of that name (`production`, `setting 3`) or role (`recommended`, `knee`, `best:value`).

        Raises:
            UserError: there is none.
        """
        role = "pick" if name == "recommended" else name.replace("best:", "best ")
        for entry in (*self.shortlist, *self.rivals):
            if name == entry.name or (role in entry.roles and role != "rival"):
                return entry
        roles = sorted({role for entry in self.shortlist for role in entry.roles})
        names = ("recommended" if role == "pick" else role.replace("best ", "best:") for role in roles)
        known = [*names, *(entry.name for entry in self.shortlist)]
        if role == "pick":
            raise UserError(f"The study's verdict is to keep production: it has no pick. Choose one of {known}.")
        raise UserError(f"`name` should be one of {known}. Received: {name!r}.")

    def weights(self, name: str = "recommended") -> FusionWeights:
        """The weights of an entry, with production's constants.

        Raises:
            UserError: no such entry, a rival (which is no set of weights), or one that the test window refuses.
        """
        entry = self.entry(name)
        if "rival" in entry.roles:
            raise UserError(f"{entry.name!r} is a rival to compare with: it has no fusion weights to apply.")
        if entry.test.refused:
            raise UserError(f"{entry.name} is refused on the test window: {entry.test.refused}.")
        if entry.name == "production":
            return self.production
        return replace(self.production, weights=dict(entry.test.weights), segments={})

    def apply(self, path: str | Path, name: str = "recommended") -> FusionWeights:
        """Writes the chosen weights as a file that the fusion reads.

        Args:
            path: str or Path. The weights file.
            name: str. An entry or a role. Defaults to `"recommended"`.

        Returns:
            The `FusionWeights` written.
        """
        weights = self.weights(name)
        weights.save(path)
        return weights

    def refuse_other(self, window: str, log_hash: str) -> None:
        """Raises UserError where a log is not the one that was tuned on."""
        if self.log_hashes.get(window) != log_hash:
            was = self.log_hashes.get(window, "unknown")
            raise UserError(
                f"The study is of another log: the hash of its {window} window should be {was[:12]}. "
                f"Received: {log_hash[:12]}."
            )

    def looked(self, mark: str) -> Study:
        """The study after one more look at its test window."""
        return replace(self, looks=(*self.looks, mark))

    def save(self, path: str | Path) -> Study:
        """Writes the study as JSON, whole or not at all.

        A study already in the file that was made on the same test window, whoever scored it, passes its looks on:
        tuning again does not make the window fresh.

        Args:
            path: str or Path. The study file.

        Returns:
            The study as written, with the looks of the earlier ones.
        """
        study, path = self, Path(path)
        if path.exists():
            before = Study.load(path)
            if before.test.labels == self.test.labels:
                study = replace(self, looks=tuple(dict.fromkeys((*before.looks, *self.looks))))
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(study.to_json(), allow_nan=False) + "\n", encoding="utf-8")
        return study

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        data = asdict(self)
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **data}

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Reads a study file.

        Raises:
            UserError: not a study file, or of another version.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} should be a study file (JSON). Received: {error}.") from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise UserError(f"{path} should be a study file (`format` = {FORMAT!r}).")
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} was written by another version of seedrank: tune again, into another file. `format_version` "
                f"should be {FORMAT_VERSION}. Received: {version!r}."
            )
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Study:
        """The inverse of `to_json`."""
        production = dict(data["production"])
        production["bounds"] = {name: tuple(bound) for name, bound in production["bounds"].items()}
        summaries = {
            name: LogSummary(**{**data[name], "window": tuple(data[name]["window"])}) for name in ("tune", "test")
        }
        changed = {
            "production": FusionWeights(**production),
            "banners": tuple(data["banners"]),
            "shortlist": tuple(map(Entry.from_json, data["shortlist"])),
            "rivals": tuple(map(Entry.from_json, data["rivals"])),
            "looks": tuple(data["looks"]),
            **summaries,
        }
        plain = {name: value for name, value in data.items() if name not in ("format", "format_version")}
        return cls(**{**plain, **changed})
