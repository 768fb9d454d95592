"""What is right and what is wrong with a log, one line a finding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.replay.estimators import ESTIMATORS, choose_estimator
from ranking.replay.estimators.checks import checked_exposure, checked_position
from ranking.replay.evaluation import Evaluator
from ranking.replay.examination import read_examination
from ranking.replay.log import ReplayLog
from ranking.replay.reading import requests_of
from ranking.replay.support import SupportGates, matured_conversions

__all__ = [
    "LEVELS",
    "Finding",
    "estimators_of",
    "examination_finding",
    "label_findings",
    "maturity_finding",
    "order_finding",
    "propensity_findings",
    "score_finding",
    "slate_findings",
    "support_finding",
]

LEVELS = ("ok", "warn", "refuse")
_SAME_SCORE = 1e-4
_EXAMINATION_ERRORS = 4.0  # of ten places one is 3 standard errors away in every 40th right log, 4 in every 1600th
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: str. `"ok"`, `"warn"` (usable, look at it) or `"refuse"` (a replay of this log would mislead).
        topic: str. What was looked at.
        line: str. What was found.
    """

    level: str
    topic: str
    line: str


def _few(count: int, of: int, what: str) -> str:
    return f"{count:,} of {of:,} {what} ({count / max(of, 1):.2%})"


def slate_findings(dataset: Dataset, log: ReplayLog) -> list[Finding]:
    """Requests without candidates or slots, slots without impressions, impressions that were no candidates, places."""
    found = []
    asked = len(requests_of(dataset, *log.window))
    if asked > log.requests:
        line = f"{_few(asked - log.requests, asked, 'requests')} have no candidates: they are left out."
        found.append(Finding("warn", "candidates", line))
    empty = int((log.slots == 0).sum())
    if empty:
        found.append(Finding("warn", "slots", f"{_few(empty, log.requests, 'requests')} showed nothing."))
    shown = np.flatnonzero(log.position >= 0)
    lost = log.counts.get("shown_without_impression", 0)
    if lost:
        line = f"{_few(lost, len(shown), 'shown rows')} have no impression: they count as not clicked."
        found.append(Finding("warn", "impressions", line))
    if dataset.has("candidates"):
        inside = int(dataset.impressions["request_id"].isin(log.request_id).sum())
        stray = inside - (len(shown) - lost)
        if stray > 0:
            line = (
                f"{_few(stray, inside, 'impressions')} are not among the shown candidates: their labels are not used."
            )
            found.append(Finding("warn", "impressions", line))
    request, places = log.request_of_row[shown], int(log.position.max()) + 1
    twice = len(shown) - len(np.unique(request * places + log.position[shown]))
    if twice:
        line = (
            f"candidates: `position` should be unique in a request. Received: {twice:,} rows at a place taken before."
        )
        found.append(Finding("refuse", "places", line))
    last = np.full(log.requests, -1)
    np.maximum.at(last, request, log.position[shown])
    gaps = int((last + 1 > log.slots).sum())
    if gaps and not twice:
        line = f"{_few(gaps, log.requests, 'requests')} have a place without an item between two that have one."
        found.append(Finding("warn", "places", line))
    if not found:
        line = (
            f"{log.requests:,} requests, each with candidates and slots; {len(shown):,} shown rows, each with labels."
        )
        found.append(Finding("ok", "candidates", line))
    return found


def label_findings(log: ReplayLog) -> list[Finding]:
    """Labels that are all equal, a single user, too few conversions."""
    shown, found = log.position >= 0, []
    clicks, conversions = int(log.click[shown].sum()), matured_conversions(log)
    if clicks in (0, int(shown.sum())):
        line = (
            f"`click` should be 1 on some shown rows and 0 on others. Received: {clicks:,} clicks of {shown.sum():,}."
        )
        found.append(Finding("refuse", "labels", line))
    if len(np.unique(log.user)) < 2:
        found.append(Finding("refuse", "users", "Intervals need at least two users. Received: 1."))
    least = SupportGates().min_conversions
    if conversions < least:
        line = f"{conversions:,} matured conversions, {least} are needed: conversions and value can't be objectives."
        found.append(Finding("warn", "labels", line))
    if not found:
        line = f"{clicks:,} clicks, {conversions:,} matured conversions, {len(np.unique(log.user)):,} users."
        found.append(Finding("ok", "labels", line))
    return found


def maturity_finding(dataset: Dataset, log: ReplayLog) -> Finding:
    """How many requests may still convert, how late conversions come, and how long to wait."""
    attribution = max(dataset.schema.attribution_ms.values(), default=0)
    if dataset.schema.time == "ordinal" or not attribution:
        return Finding("ok", "maturity", "No attribution window: conversions are taken as final.")
    until, delays = dataset.observed_until, ""
    rows = dataset.impressions
    if "conversion_time" in rows:
        final = rows[(rows["conversion_time"] >= 0) & (rows["timestamp"] + attribution <= until)]
        if len(final):
            delay = (final["conversion_time"] - final["timestamp"]) / _HOUR_MS
            told = [f"{share:.0%} within {delay.quantile(share):.3g} h" for share in _QUANTILES]
            delays = f" Conversions come {', '.join(told)} (attribution {attribution / _HOUR_MS:g} h)."
    late = int((~log.mature).sum())
    if not late:
        return Finding("ok", "maturity", f"All conversions of the window are final.{delays}")
    wait = (int(log.timestamp.max()) + attribution - until) / _DAY_MS
    line = f"{_few(late, log.requests, 'requests')} may still convert and are left out of conversions and value"
    return Finding("warn", "maturity", f"{line}; all are final {wait:.1f} days after the log was closed.{delays}")


def score_finding(log: ReplayLog, weights: FusionWeights, *, rescored: bool) -> Finding:
    """Whether the score as served comes out of the logged parts.

    Args:
        log: ReplayLog. With the parts of the log, not of a run.
        weights: FusionWeights.
        rescored: bool. Whether a run's own scores take the place of the log's: then a foreign score does no harm.
    """
    if log.logged_score is None:
        return Finding(
            "warn", "score", "candidates have no `score`: whether the weights file served them can't be told."
        )
    lacking = [name for name, weight in weights.weights.items() if weight and name not in log.parts]
    if lacking:
        level = "warn" if rescored else "refuse"
        return Finding(level, "score", f"The weights file weighs {', '.join(lacking)}, which the log lacks.")
    rows = None if log.segment is None else log.segment[log.request_of_row]
    score = np.asarray(fuse(log.parts, weights, segment=rows, offsets=log.offsets), np.float64)
    away = np.abs(score - log.logged_score)
    other = ~(away <= _SAME_SCORE * np.maximum(1, np.abs(score)))
    if not other.any():
        line = f"The score as served comes out of the logged parts (largest difference {away.max():.1e})."
        return Finding("ok", "score", line)
    many = _few(int(other.sum()), len(other), "candidates")
    if rescored:
        line = f"A foreign log, re-scored by the run: the served score of {many} is not that of the run's weights."
        return Finding("warn", "score", line)
    line = f"The served score of {many} does not come out of the logged parts: the weights file is not what served."
    return Finding("refuse", "score", line)


def order_finding(log: ReplayLog) -> Finding:
    """Whether places follow the score as served where nothing explored."""
    if log.logged_score is None:
        return Finding("warn", "order", "candidates have no `score`: the order of the places can't be checked.")
    plain = np.full(log.requests, log.exploration == ("none",)) if log.epsilon is None else log.epsilon == 0
    if not plain.any():
        return Finding("ok", "order", f"Every request explored ({', '.join(log.exploration)}): no order is certain.")
    request, shown, draw = log.request_of_row, log.position >= 0, log.draw_of_row
    rows = np.flatnonzero(shown & plain[request])
    rows = rows[np.lexsort((log.position[rows], draw[rows]))]
    score = log.logged_score.astype(np.float64)
    rises = (np.diff(score[rows]) > 0) & (np.diff(draw[rows]) == 0)
    wrong = len(np.unique(request[rows[1:]][rises]))
    if wrong:
        line = f"{_few(wrong, int(plain.sum()), 'requests without exploration')} show items against their scores."
        return Finding("refuse", "order", line)
    draws = int(draw.max()) + 1
    least, most = np.full(draws, np.inf), np.full(draws, -np.inf)
    np.minimum.at(least, draw[shown], score[shown])
    np.maximum.at(most, draw[~shown], score[~shown])
    skipped = len(np.unique(request[plain[request] & (most > least)[draw]]))
    if skipped:
        many = _few(skipped, int(plain.sum()), "requests without exploration")
        return Finding(
            "warn", "order", f"{many} left out a candidate with a better score: a filter that was not logged?"
        )
    return Finding("ok", "order", f"Places follow the scores in {int(plain.sum()):,} requests without exploration.")


def propensity_findings(log: ReplayLog, stated: set[str]) -> list[Finding]:
    """Whether there are propensities, of which policy, and whether they add up.

    Args:
        log: ReplayLog.
        stated: set of str. The propensity columns that the table has.
    """
    found = []
    if set(log.exploration) == {"none"}:
        line = "`exploration` is none in every request: only re-ordering estimates (E0, E2), which are biased."
        return [Finding("warn", "propensities", line)]
    if log.places is not None:
        word = "agree with" if stated else "were made from"
        line = f"Propensities {word} the scores as served and each request's policy ({', '.join(log.exploration)})."
        found.append(Finding("ok", "propensities", line))
    elif stated:
        line = (
            "Propensities can't be checked: they need `score` and each request's exploration, temperature or epsilon."
        )
        found.append(Finding("warn", "propensities", line))
    if log.pool is not None:
        several = len(np.unique(log.request_of_row[log.pool != log.pool[log.offsets[:-1]][log.request_of_row]]))
        line = (
            f"{_few(several, log.requests, 'requests')} filled reserved places from a pool of their own: a replay "
            "compares orders of all candidates, without reserved places."
        )
        found.append(Finding("ok", "reserved", line))
    for name, checked in (("exposure_propensity", checked_exposure), ("position_propensity", checked_position)):
        if getattr(log, name) is None:
            found.append(Finding("warn", "propensities", f"No `{name}`, and nothing that it could be made from."))
            continue
        try:
            checked(log, "A replay")
        except UserError as error:
            found.append(Finding("refuse", "propensities", str(error)))
        else:
            if name == "exposure_propensity":
                line = "Exposure propensities add up to the examination of the places in each request."
                found.append(Finding("ok", "exposure", line))
    return found


def examination_finding(dataset: Dataset, log: ReplayLog) -> Finding:
    """The examination that the log tells before the tune window, beside the one it states."""
    stated = log.examination
    try:
        found = read_examination(dataset)
    except UserError as error:
        word = "taken as stated" if stated is not None else "neither stated nor estimated"
        return Finding("warn", "examination", f"Examination is {word}: {error}")
    told = ", ".join(f"{value:.2f}" for value in found.theta)
    line = f"Examination, {found.method} from {found.clicks:,} clicks before the tune window: {told}"
    if found.covariance is None or stated is None or len(stated) < len(found.theta) or stated[0] <= 0:
        return Finding("ok", "examination", f"{line}.")
    errors = np.sqrt(np.diag(found.covariance))[1:]
    away = float(np.max(np.abs(found.theta - stated[: len(found.theta)] / stated[0])[1:] / errors))
    if away > _EXAMINATION_ERRORS:
        line = f"{line}; what dataset.toml states is {away:.0f} standard errors away from it"
        return Finding("warn", "examination", f"{line}: replay with the estimate.")
    return Finding("ok", "examination", f"{line}; what dataset.toml states agrees.")


def support_finding(log: ReplayLog, weights: FusionWeights) -> tuple[Finding, dict[str, float]]:
    """Whether the log supports the production weights themselves, and the numbers of the gates."""
    try:
        gates = Evaluator(log, weights).evaluate([weights])[0].support
    except UserError as error:
        return Finding("refuse", "support", str(error)), {}
    if gates is None:
        return Finding("warn", "support", "No support gates: the log allows a re-ordering estimate only (E0)."), {}
    numbers = {"weight_mean": gates.weight_mean, "effective": gates.effective, "unsupported": gates.unsupported}
    line = (
        f"Production is supported: weight mean {gates.weight_mean:.3f} (standard error {gates.standard_error:.3f}), "
        f"effective sample size {gates.effective:.0%} of the requests."
    )
    return Finding("ok", "support", line), numbers


def estimators_of(log: ReplayLog, weights: FusionWeights) -> dict[str, str]:
    """Why each estimator can't be used on the log; empty for those that can."""
    found = {}
    for name in ESTIMATORS:
        try:
            choose_estimator(log, name=name).sums(log, weights)
            found[name] = ""
        except UserError as error:
            found[name] = str(error)
    return found
