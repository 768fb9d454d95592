"""The replay report: one HTML file that opens with the verdict and needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ranking.atomic import atomic_file
from ranking.replay.evaluation import Estimate, Evaluation, percent
from ranking.replay.study import Entry, LogSummary, Study
from ranking.report.front import LABELS, front_figure
from ranking.report.page import fill, in_script, row

__all__ = ["render", "write_report"]

_EPOCH = 10**11  # larger times are milliseconds since 1970, smaller ones an order


def write_report(study: Study, path: str | Path, *, title: str = "", commands: Sequence[str] = ()) -> Path:
    """Writes the page.

    Args:
        study: Study.
        path: str or Path. The HTML file.
        title: str. What was replayed, for the heading. Defaults to the objective.
        commands: sequence of str. Command lines to show, as those that apply and publish the choice. Defaults to none.

    Returns:
        Path. The file.
    """
    text = render(study, title=title, commands=commands)
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def render(study: Study, *, title: str = "", commands: Sequence[str] = ()) -> str:
    """The page as text, see `write_report`."""
    chosen = study.entry(study.pick or "production")
    objectives = _objectives(study)
    return fill(
        "replay.html",
        title=escape(title or LABELS[study.objective]),
        subtitle=_subtitle(study),
        verdict=escape(study.verdict),
        verdict_class="pick" if study.pick else "keep",
        banners="".join(f'<div class="banner">{escape(banner)}</div>' for banner in study.banners),
        plot_caption=_plot_caption(study),
        table_caption=(
            "Change against production on the test window, with 95% intervals that resample users and hold for the "
            "whole list at once. A refused setting has no numbers."
        ),
        what_if=_what_if(study, objectives),
        trust_caption=_trust_caption(study),
        gates=_gates(study, objectives),
        objective=escape(LABELS[study.objective]),
        optimism=_optimism(study),
        looks=f"{len(study.looks)} time{'s' if len(study.looks) != 1 else ''}",
        logs=_logs(study),
        weights_caption=f"{'The pick' if study.pick else 'Production, to keep'}: weights of the "
        f"{escape(study.production.form)} form, largest 1.",
        weights=escape(json.dumps({name: round(w, 6) for name, w in chosen.test.weights.items()}, indent=1)),
        commands=_commands(commands),
        footer=escape(
            f"{study.estimator}: assumes that {study.assumptions}. "
            + ", ".join(f"{name} {value}" for name, value in study.settings.items() if isinstance(value, int | str))
            + "."
        ),
        figure=in_script(front_figure(study)),
    )


def _commands(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    lines = escape("\n".join(commands))
    head = '<p class="soft" style="margin-top:16px">Commands:</p>'
    button = '<button type="button" data-copy="commands">Copy the commands</button>'
    return f'{head}<pre id="commands">{lines}</pre>{button}'


def _objectives(study: Study) -> list[str]:
    return [name for name in LABELS if name in study.entry("production").test.estimates]


def _moment(time: int) -> str:
    return f"{datetime.fromtimestamp(time / 1000, UTC):%Y-%m-%d %H:%M}" if time > _EPOCH else str(time)


def _subtitle(study: Study) -> str:
    tune, test = ("{} to {}".format(*map(_moment, log.window)) for log in (study.tune, study.test))
    limits = [f"{LABELS[name]} {percent(least)}" for name, least in study.guardrails.items()]
    goal = f"Most {LABELS[study.objective]}" + (f" with guardrail {' and '.join(limits)}" if limits else "")
    zone = " (UTC)" if study.test.window[1] > _EPOCH else ""
    return escape(f"{goal}. Tuned on {tune}, judged on {test}{zone}, estimator {study.estimator}.")


def _plot_caption(study: Study) -> str:
    refused = sum("reason" in trial for trial in study.trials)
    text = (
        f"{len(study.trials):,} settings tried on the tune window (grey); the shortlist is judged on the test window."
    )
    if refused:
        text += f" {refused:,} are refused for lack of support and not drawn."
    return escape(text + " Double click the plot to see all of it.")


def _trust_caption(study: Study) -> str:
    if study.estimator == "E0":
        return "A re-ordering estimate has no support gates: it cannot tell what the log never showed."
    return (
        "Support of each setting on the test window. The weight mean is 1 where the log can speak for the setting. "
        "E0 re-orders what was shown: biased to the logging order, here beside E3 for comparison."
    )


def _name(entry: Entry) -> str:
    roles = "".join(f'<span class="tag">{escape(role.replace("_", " "))}</span>' for role in entry.roles)
    return f"{escape(entry.name)}<br>{roles}" if entry.name != "production" else "production"


def _change(estimate: Estimate | None, production: bool) -> str:
    if estimate is None:
        return "&ndash;"
    if production:
        return f"{estimate.value:.4g}<small>&plusmn; {1.96 * estimate.value_error:.2g}</small>"
    style = "up" if estimate.low > 0 else "down" if estimate.high < 0 else ""
    interval = f"{percent(estimate.low)} to {percent(estimate.high)}"
    return f'<span class="{style}">{percent(estimate.delta)}</span><small>{interval}</small>'


def _weights(found: Evaluation) -> str:
    shown = ", ".join(f"{escape(name)}&nbsp;{weight:.3g}" for name, weight in found.weights.items() if weight)
    return f'<div class="wrap">{shown}</div>'


def _order(study: Study) -> list[Entry]:
    """Production, the pick, the landmarks of the front, then the others."""
    return sorted(study.shortlist, key=lambda e: (e.name != "production", "pick" not in e.roles, not e.roles))


def _what_if(study: Study, objectives: Sequence[str]) -> str:
    unit = "request" if study.estimator == "E3" else study.settings.get("group", "group")
    head = ["setting", "weights", *(escape(LABELS[name].removesuffix(" items")) for name in objectives)]
    rows = [row(head, "th")]
    for entry in _order(study):
        attributes = ' class="chosen"' if "pick" in entry.roles else ""
        label = _name(entry) + (f"<small>a {escape(unit)}, &plusmn; 95%</small>" if entry.name == "production" else "")
        if entry.test.refused:
            reason = f'<td colspan="{len(objectives)}" class="refused">refused: {escape(entry.test.refused)}</td>'
            rows.append(f"<tr><td>{label}</td><td>{_weights(entry.test)}</td>{reason}</tr>")
            continue
        cells = [_change(entry.test.estimates.get(name), entry.name == "production") for name in objectives]
        rows.append(row([label, _weights(entry.test), *cells], attributes=attributes))
    return "".join(rows)


def _gates(study: Study, objectives: Sequence[str]) -> str:
    labelled = [name for name in objectives if name == study.objective or name in study.guardrails]
    if study.estimator == "E0":
        return ""
    head = ["setting", "state", "weight mean", "effective sample", "unsupported", "largest request"]
    rows = [row([*head, *(f"{escape(LABELS[name])}: E3 | E0" for name in labelled)], "th")]
    for entry in _order(study):
        found = entry.test.support
        if found is None:
            continue
        if found.reason:
            reason = (
                f'<td colspan="{len(head) - 1 + len(labelled)}" class="refused">refused: {escape(found.reason)}</td>'
            )
            rows.append(f"<tr><td>{escape(entry.name)}</td>{reason}</tr>")
            continue
        cells = [
            escape(entry.name),
            "supported",
            f"{found.weight_mean:.3f} &plusmn; {found.standard_error:.3f}",
            f"{found.effective:.0%}",
            f"{found.unsupported:.1%}",
            f"{found.largest:.2%}",
        ]
        for name in labelled:
            pair = (entry.test.estimates.get(name), entry.reordering.get(name))
            e3 = percent(pair[0].delta) if pair[0] else "&ndash;"
            cells.append(f"{e3} | {percent(pair[1]) if pair[1] is not None else '&ndash;'}")
        rows.append(row(cells))
    return "".join(rows)


def _optimism(study: Study) -> str:
    rows = [row(["setting", "tune", "test", "optimism"], "th")]
    for entry in _order(study)[1:]:
        gap = entry.optimism(study.objective)
        if gap is None:
            rows.append(row([escape(entry.name), "&ndash;", "&ndash;", "refused"]))
            continue
        pair = [found.estimates[study.objective].delta for found in (entry.tune, entry.test)]
        points = f"{round(100 * gap, 1) + 0.0:+.1f} points"  # + 0.0: no -0.0
        rows.append(row([escape(entry.name), *(percent(delta) for delta in pair), points]))
    return "".join(rows)


def _logs(study: Study) -> str:
    def informative(log: LogSummary) -> str:
        return "<br>".join(f"{escape(LABELS[name])} {count:,}" for name, count in log.informative.items())

    group = escape(str(study.settings.get("group", "request")))
    lines: list[tuple[str, Any]] = [
        ("requests", lambda log: f"{log.requests:,}"),
        ("users", lambda log: f"{log.users:,}"),
        ("candidates", lambda log: f"{log.candidates:,}"),
        ("shown", lambda log: f"{log.shown:,}"),
        ("clicks", lambda log: f"{log.clicks:,}"),
        ("matured conversions", lambda log: f"{log.conversions:,}"),
        ("immature requests", lambda log: f"{log.immature_requests:,}"),
        (f"informative {group}s", informative),
        (
            "logged score reproduced",
            lambda log: "&ndash;" if log.score_reproduced is None else f"{log.score_reproduced:.1%}",
        ),
    ]
    rows = [row([name, show(study.tune), show(study.test)]) for name, show in lines]
    return row(["", "tune", "test"], "th") + "".join(rows)
