"""The trust panel of the replay page: whether the log can say what the page says."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ranking.replay.evaluation import percent
from ranking.replay.study import LogSummary, Study
from ranking.report.front import LABELS
from ranking.report.page import cell, plot, table
from ranking.report.plots import BLUE, FLAT, GREEN, GREY, INK, ORANGE, PURPLE, SKY, axis, bars, layout, plain, upright
from ranking.report.replay_table import ordered

__all__ = ["trust"]

_ESTIMATORS = {  # name -> what it is, its colour and shape
    "E0": ("re-ordering of what was shown, biased to the logged order", GREY, "x"),
    "E1": ("replay match", INK, "star"),
    "E2": ("position-based re-ordering", ORANGE, "triangle-up"),
    "E3": ("exposure IPS", BLUE, "circle"),
    "E4": ("item-position IPS", SKY, "triangle-down"),
    "E5": ("self-normalised exposure IPS", GREEN, "square"),
    "E6": ("doubly robust", PURPLE, "diamond"),
}


def trust(study: Study, details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    """Support, the logs, optimism; and weights, examination and other estimators where the details have them."""
    parts = [_support(study), '<div class="columns">', _optimism(study, figures), _logs(study), "</div>"]
    panels = [_histogram(details, figures), _examination(details, figures)]
    parts += ['<div class="columns">', *panels, "</div>"] if any(panels) else []
    return "".join([*parts, _estimators(study, details, figures)])


def _support(study: Study) -> str:
    if all(entry.test.support is None for entry in study.shortlist):
        text = "A re-ordering estimate has no support gates: it cannot tell what the log never showed."
        return f'<p class="soft">{text}</p>'
    rows = []
    for entry in ordered(study):
        found = entry.test.support
        if found is None:
            continue
        name = cell(escape(entry.name), entry.name)
        if found.reason:
            reason = cell(f"refused: {escape(found.reason)}", attributes=' colspan="5" class="refused"')
            rows.append([name, reason])
            continue
        rows.append(
            [
                name,
                "supported",
                cell(f"{found.weight_mean:.3f} &plusmn; {found.standard_error:.3f}", found.weight_mean),
                cell(f"{found.effective:.0%}", found.effective),
                cell(f"{found.unsupported:.1%}", found.unsupported),
                cell(f"{found.largest:.2%}", found.largest),
            ]
        )
    text = (
        "Support on the test window. The weight mean is 1 where the log can speak for the setting; the effective "
        "sample is the share of the requests that the weights leave; unsupported are looks at candidates that the log "
        "almost never shows."
    )
    head = ["setting", "state", "weight mean", "effective sample", "unsupported", "largest request"]
    return f'<p class="soft">{text}</p>{table(head, rows, name="support")}'


def _optimism(study: Study, figures: dict[str, Any]) -> str:
    """The winner's curse: what was chosen on a window looks better there than it is."""
    rows, points = [], []
    for entry in ordered(study):
        gap = entry.optimism(study.objective)
        if entry.name == "production":
            continue
        name = cell(escape(entry.name), entry.name)
        if gap is None:
            rows.append([name, "&ndash;", "&ndash;", cell('<span class="refused">refused</span>', "")])
            continue
        pair = [found.estimates[study.objective] for found in (entry.tune, entry.test)]
        points.append((entry.name, *pair))
        shown = f"{round(100 * gap, 1) + 0.0:+.1f} points"  # + 0.0: no -0.0
        deltas = (cell(percent(found.delta), f"{found.delta:.6f}") for found in pair)
        rows.append([name, *deltas, cell(shown, f"{gap:.6f}")])
    looks = f"{len(study.looks)} time{'s' if len(study.looks) != 1 else ''}"
    label = LABELS[study.objective]
    drawn = ""
    if points:
        figures["optimism"] = _optimism_figure(points, label)
        drawn = plot("optimism", f"Change of {label} on the tune window against that on the test window.")
    text = (
        f"The tune window flatters what was chosen on it: change of {escape(label)} on tune, on test, and the "
        f"difference (optimism). Under the line: worse than promised. Test window looked at: <b>{looks}</b>."
    )
    found = table(["setting", "tune", "test", "optimism"], rows, name="optimism-table", style="number")
    return f'<div><h3>Winner\'s curse</h3><p class="soft">{text}</p>{drawn}{found}</div>'


def _optimism_figure(points: list[Any], label: str) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "text": [plain(name) for name, _, _ in points],
        "hovertemplate": "%{text}<br>tune %{x:+.1f}%, test %{y:+.1f}%<extra></extra>",
        "marker": {"color": BLUE, "size": 9, "line": {"color": "white", "width": 1}},
    }
    for axis_, at in (("x", 1), ("y", 2)):
        found = [point[at] for point in points]
        trace[axis_] = [round(100 * estimate.delta, 3) for estimate in found]
        ends = ([100 * estimate.low for estimate in found], [100 * estimate.high for estimate in found])
        trace[f"error_{axis_}"] = bars(trace[axis_], *ends, "#9fb3c4")
    low, high = min(*trace["x"], *trace["y"], 0), max(*trace["x"], *trace["y"], 0)
    line = {
        **{"type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "hoverinfo": "skip"},
        "line": {"color": GREY, "dash": "dash", "width": 1.5},
    }
    percents = {"ticksuffix": "%"}
    x, y = axis(f"{label} on tune", **percents), axis("on test", **percents)
    return {"data": [line, trace], "layout": layout(xaxis=x, yaxis=y, showlegend=False)}


def _logs(study: Study) -> str:
    group = str(study.settings.get("group", "request"))

    def informative(log: LogSummary) -> str:
        return "<br>".join(f"{escape(LABELS.get(name, name))} {count:,}" for name, count in log.informative.items())

    def fidelity(log: LogSummary) -> str:
        return "&ndash;" if log.score_reproduced is None else f"{log.score_reproduced:.1%}"

    logs = (study.tune, study.test)
    counts = ("requests", "users", "candidates", "shown", "clicks", "conversions", "immature_requests")
    names = {"conversions": "matured conversions", "immature_requests": "immature requests"}
    rows = [["<b>fidelity</b>: logged score reproduced", *map(fidelity, logs)]]
    rows += [[names.get(name, name), *(f"{getattr(log, name):,}" for log in logs)] for name in counts]
    rows.append([f"informative {escape(group)}s", *map(informative, logs)])
    text = (
        "Fidelity: the share of candidates whose logged score the production weights give again. Low where the parts "
        "were scored anew, by another model than the one that served."
    )
    found = table(["log", "tune", "test"], rows, sortable=False, style="number wrapped")
    return f'<div><h3>The logs</h3><p class="soft">{text}</p>{found}</div>'


def _histogram(details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    found = details.get("weights")
    if not found:
        return ""
    edges, counts = found["edges"], found["counts"]
    trace = {
        "type": "bar",
        "x": [round((low + high) / 2, 6) for low, high in zip(edges, edges[1:], strict=False)],
        "width": [round(high - low, 6) for low, high in zip(edges, edges[1:], strict=False)],
        "y": [count or None for count in counts],
        "marker": {"color": BLUE, "line": {"color": "white", "width": 0.5}},
        "hovertemplate": "weight about %{x:.3g}: %{y:,} requests<extra></extra>",
    }
    figures["weights-histogram"] = {
        "data": [trace],
        "layout": layout(
            xaxis=axis("importance weight of a request"),
            yaxis=axis("requests", type="log", dtick=1),
            shapes=[upright(1, INK)],
            bargap=0,
        ),
    }
    clipped = details.get("clipped")
    share = "" if clipped is None else f" Share of all weight lost to clipping: <b>{clipped:.2%}</b>."
    text = f"How much each request counts for the setting; one of weight 1 counts once.{share}"
    drawn = plot("weights-histogram", "Histogram of the importance weights of the requests.")
    return f'<div><h3>Weights</h3><p class="soft">{text}</p>{drawn}</div>'


def _examination(details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    found = details.get("examination")
    if not found:
        return ""
    theta, error = found["theta"], found.get("error")
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(range(1, len(theta) + 1)),
        "y": [round(value, 5) for value in theta],
        "line": {"color": BLUE, "width": 1.5},
        "marker": {"size": 7},
        "hovertemplate": "place %{x}: looked at %{y:.2f} times as often as the first<extra></extra>",
    }
    if error:
        low, high = ([value + sign * 1.96 * se for value, se in zip(theta, error, strict=True)] for sign in (-1, 1))
        trace["error_y"] = bars(theta, low, high, BLUE)
    whole = {"dtick": 1} if len(theta) <= 20 else {}
    figures["examination"] = {
        "data": [trace],
        "layout": layout(xaxis=axis("place", **whole), yaxis=axis("examination", rangemode="tozero")),
    }
    said = {
        "stated": "As the log states it, with no error of its own: the intervals are without it.",
        "estimated": "Estimated from the log's own exploration; its error is in the intervals.",
        "harvested": "Harvested from items that stood at several places; its error is in the intervals.",
    }
    text = f"Chance of a look at each place, the first being 1. {said.get(found['method'], found['method'])}"
    drawn = plot("examination", "Examination of each place, with 95% bars.")
    return f'<div><h3>Examination</h3><p class="soft">{escape(text)}</p>{drawn}</div>'


def _estimators(study: Study, details: Mapping[str, Any], figures: dict[str, Any]) -> str:
    found = details.get("estimators")
    if not found:
        return ""
    names = [name for name in _ESTIMATORS if any(name in one for one in found)]
    data = []
    for number, name in enumerate(names):
        told, color, symbol = _ESTIMATORS[name]
        kept = [(place, one[name]) for place, one in enumerate(found) if one.get(name) is not None]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [round(100 * delta, 3) for _, delta in kept],
                "y": [round(place + 0.15 * (number - (len(names) - 1) / 2), 3) for place, _ in kept],
                "marker": {"symbol": symbol, "size": 9, "color": color, "line": {"color": "white", "width": 1}},
                "hovertemplate": f"{name}, {told}: %{{x:+.1f}}%<extra></extra>",
            }
        )
    labels = [plain(one["setting"]) for one in found]
    label = LABELS[study.objective]
    figures["estimators"] = {
        "data": data,
        "layout": layout(
            xaxis=axis(f"{label}: change against production", ticksuffix="%"),
            yaxis=axis(tickvals=list(range(len(found))), ticktext=labels, range=[len(found) - 0.5, -0.5], **FLAT),
            shapes=[upright(0, INK, dash="solid")],
        ),
    }
    rows = []
    for one in found:
        deltas = [one.get(name) for name in names]
        cells = (cell("&ndash;") if delta is None else cell(percent(delta), f"{delta:.6f}") for delta in deltas)
        rows.append([cell(escape(one["setting"]), one["setting"]), *cells])
    told = "; ".join(f"{name} {_ESTIMATORS[name][0]}" for name in names)
    text = f"Change of {label} by each estimator. They assume different things: trust most what they agree on. {told}."
    height = 110 + 38 * len(found)
    drawn = plot("estimators", f"Change of {label} of each setting by each estimator.", height)
    head = ["setting", *names]
    return (
        f'<h3>Estimators side by side</h3><p class="soft">{escape(text)}</p>{drawn}{table(head, rows, style="number")}'
    )
