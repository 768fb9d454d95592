"""The what-if table of the replay page: any number of settings side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from ranking.replay.evaluation import Estimate, percent
from ranking.replay.study import Entry, Study
from ranking.report.front import LABELS
from ranking.report.page import cell, copy_button, table

__all__ = ["objectives", "ordered", "plain_weights", "what_if"]

_WIDE, _HIGH = 96, 12  # of the small interval in a cell, pixels


def objectives(study: Study) -> list[str]:
    """Those with an estimate of production: the one asked for, the guarded ones, the others."""
    there = study.entry("production").test.estimates
    return [name for name in dict.fromkeys((study.objective, *study.guardrails, *LABELS)) if name in there]


def ordered(study: Study) -> list[Entry]:
    """Production, the pick, the landmarks of the front, the others; then what is no setting but only compared with."""
    rest = sorted(study.shortlist, key=lambda e: (e.name != "production", e.name != study.pick, not e.roles))
    return [*rest, *study.rivals]


def plain_weights(weights: Mapping[str, float]) -> str:
    """Weights as JSON, what the copy buttons put on the clipboard."""
    return json.dumps(dict(weights))


def what_if(study: Study) -> str:
    """Every setting of the shortlist with its changes on the test window, and what to do with a row."""
    names = objectives(study)
    entries = ordered(study)
    scales = {name: _scale([e.test.estimates.get(name) for e in entries if e.name != "production"]) for name in names}
    unit = "request" if study.estimator != "E0" else str(study.settings.get("group", "group"))
    rows = [_row(entry, study, names, scales, unit) for entry in entries]
    text = (
        "Change against production on the test window, with 95% intervals that resample users and hold for the whole "
        "list at once. Filled mark: the interval is on one side of zero. A refused setting has no numbers."
    )
    head = ["", "setting", *(LABELS[name].removesuffix(" items") for name in names), "weights"]
    choose = (
        '<p class="screen"><button type="button" id="compare" aria-pressed="false" disabled>Only the chosen rows'
        '</button> <span class="soft small">Choose rows to compare them; a click on a head sorts.</span></p>'
    )
    return f'<p class="soft">{text}</p>{choose}{table(head, rows, name="what-if-table")}'


def _row(entry: Entry, study: Study, names: Sequence[str], scales: Mapping[str, tuple[float, float]], unit: str) -> str:
    production = entry.name == "production"
    label = f"{escape(entry.name)}<br>{_roles(entry, study.pick)}"
    label += f"<small>a {escape(unit)}, &plusmn; 95%</small>" if production else ""
    choose = f'<input type="checkbox" class="screen" aria-label="compare {escape(entry.name)}">'
    cells = [cell(choose), cell(label, entry.name)]
    if entry.test.refused:
        span = f' colspan="{len(names)}" class="refused"'
        cells.append(cell(f"refused: {escape(entry.test.refused)}", attributes=span))
    elif production:
        cells += [_level(entry.test.estimates.get(name)) for name in names]
    else:
        cells += [_change(entry.test.estimates.get(name), scales[name]) for name in names]
    cells.append(_weights(entry, study))
    style = ' class="chosen"' if entry.name == study.pick else ""
    return f'<tr data-name="{escape(entry.name)}"{style}>{"".join(cells)}</tr>'


def _roles(entry: Entry, pick: str) -> str:
    roles = [role for role in entry.roles if role not in ("pick", "recommended", entry.name)]
    roles = ["pick", *roles] if entry.name == pick else roles
    return "".join(f'<span class="tag">{escape(role.replace("_", " ").replace(":", " "))}</span>' for role in roles)


def _weights(entry: Entry, study: Study) -> str:
    weights = entry.test.weights
    if not weights:
        return cell('<span class="soft">no fusion weights</span>', "")
    shown = ", ".join(f"{escape(name)}&nbsp;{weight:.3g}" for name, weight in weights.items() if weight)
    known = "" if entry.test.refused else f"<small>hash {study.weights(entry.name).hash[:12]}</small>"
    return cell(
        f'<div class="wrap">{shown}</div>{known}{copy_button(plain_weights(weights), "Copy these weights")}', ""
    )


def _scale(estimates: Sequence[Estimate | None]) -> tuple[float, float]:
    """The ends of all intervals of a column, and zero."""
    there = [found for found in estimates if found is not None]
    return min([0.0, *(found.low for found in there)]), max([0.0, *(found.high for found in there)])


def _level(estimate: Estimate | None) -> str:
    """Production itself: not a change, so it sorts as one of 0."""
    if estimate is None:
        return cell("&ndash;")
    return cell(f"{estimate.value:.4g}<small>&plusmn; {1.96 * estimate.value_error:.2g}</small>", 0)


def _told(estimate: Estimate) -> str:
    """A change with its interval, as HTML."""
    style = "up" if estimate.low > 0 else "down" if estimate.high < 0 else ""
    interval = f"{percent(estimate.low)} to {percent(estimate.high)}"
    return f'<span class="{style}">{percent(estimate.delta)}</span><small>{interval}</small>'


def _change(estimate: Estimate | None, scale: tuple[float, float]) -> str:
    if estimate is None:
        return cell("&ndash;")
    return cell(_told(estimate) + _interval(estimate, scale), f"{estimate.delta:.6f}")


def _interval(estimate: Estimate, scale: tuple[float, float]) -> str:
    """The interval as a small picture; every row of a column has the same scale."""
    low, high = scale
    span = (high - low) or 1.0
    zero, left, middle, right = (
        round(4 + (value - low) / span * (_WIDE - 8), 1) for value in (0.0, estimate.low, estimate.delta, estimate.high)
    )
    sure = estimate.low > 0 or estimate.high < 0
    style = "up" if estimate.low > 0 else "down" if estimate.high < 0 else ""
    half = _HIGH / 2
    return (
        f'<svg class="interval {style}" width="{_WIDE}" height="{_HIGH}" aria-hidden="true">'
        f'<line x1="{zero}" x2="{zero}" y1="0" y2="{_HIGH}" class="zero"/>'
        f'<line x1="{left}" x2="{right}" y1="{half}" y2="{half}"/>'
        f'<circle cx="{middle}" cy="{half}" r="3.5"{"" if sure else " class=open"}/></svg>'
    )
