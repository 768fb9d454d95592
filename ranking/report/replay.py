"""The replay page: one HTML file that opens with the verdict and needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ranking.replay.evaluation import percent
from ranking.replay.study import Study
from ranking.report import page as pages
from ranking.report.front import LABELS, front_figure
from ranking.report.page import copy_button, plot, section
from ranking.report.replay_details import calibration, segments, sensitivity
from ranking.report.replay_examples import example_data, examples
from ranking.report.replay_items import diversity, movers, quadrants
from ranking.report.replay_table import plain_weights, what_if
from ranking.report.replay_trust import trust

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
    return pages.write_page(render(study, title=title, commands=commands), path)


def render(study: Study, *, title: str = "", commands: Sequence[str] = ()) -> str:
    """The page as text, see `write_report`. A section whose details the study lacks is left out."""
    details, figures = study.details, {"front": front_figure(study)}
    parts = [
        section("What each setting trades", _caption(study), plot("front", _spoken(study), 560), name="trade"),
        section("What if", what_if(study), name="what-if"),
        examples(study, details),
        sensitivity(details, figures),
        segments(details, figures, study.objective),
        section("Can it be trusted?", trust(study, details.get("trust", {}), figures), name="trust"),
        calibration(details, figures),
        diversity(details),
        quadrants(details, figures),
        movers(details),
        section("The weights", _weights(study, commands), name="weights"),
    ]
    banners = "".join(f'<div class="banner">{escape(banner)}</div>' for banner in study.banners)
    return pages.page(
        f"Offline replay: fusion weights for {title or LABELS[study.objective]}",
        _subtitle(study),
        pages.verdict(study.verdict, bool(study.pick)) + banners + pages.contents(parts) + "".join(parts),
        _footer(study),
        figures,
        data={"replay": example_data(study, details)},
        scripts=("replay.js",),
    )


def _moment(time: int) -> str:
    return f"{datetime.fromtimestamp(time / 1000, UTC):%Y-%m-%d %H:%M}" if time > _EPOCH else str(time)


def _subtitle(study: Study) -> str:
    tune, test = ("{} to {}".format(*map(_moment, log.window)) for log in (study.tune, study.test))
    limits = [f"{LABELS[name]} {percent(least)}" for name, least in study.guardrails.items()]
    goal = f"Most {LABELS[study.objective]}" + (f" with guardrail {' and '.join(limits)}" if limits else "")
    zone = " (UTC)" if study.test.window[1] > _EPOCH else ""
    return f"{goal}. Tuned on {tune}, judged on {test}{zone}, estimator {study.estimator}."


def _caption(study: Study) -> str:
    refused = sum("reason" in trial for trial in study.trials)
    text = (
        f"{len(study.trials):,} settings tried on the tune window (grey); the shortlist is judged on the test window, "
        "with intervals of both changes; arrows lead from the tune estimate to the test estimate."
    )
    if refused:
        text += f" Refused for lack of support and not drawn: {refused:,}."
    return f'<p class="soft">{text} Drag to zoom in; double click to see all of it.</p>'


def _spoken(study: Study) -> str:
    return (
        f"Change of {LABELS[study.objective]} against the change of a rival; the table under What if has the numbers."
    )


def _weights(study: Study, commands: Sequence[str]) -> str:
    chosen = study.entry(study.pick or "production").test.weights
    text = f"{'The pick' if study.pick else 'Production, to keep'}: weights of the {study.production.form} form"
    found = plain_weights(chosen)
    parts = [
        f'<p class="soft">{escape(text)}, largest 1.</p><pre id="chosen-weights">{escape(found)}</pre>',
        f'<p class="soft small wrap">Hash, as the server reports it once they are served: '
        f'<code id="weights-hash">{study.weights(study.pick or "production").hash}</code></p>',
        copy_button(found, "Copy these weights"),
    ]
    if commands:
        lines = "\n".join(commands)
        head = '<p class="soft" style="margin-top:16px">Commands:</p>'
        parts.append(f"{head}<pre>{escape(lines)}</pre>{copy_button(lines, 'Copy the commands')}")
    return "".join(parts)


def _footer(study: Study) -> str:
    shown: Mapping[str, Any] = {**study.settings, **study.settings.get("versions", {})}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items() if isinstance(value, int | str))
    return f"{study.estimator}: assumes that {study.assumptions}. {settings}."
