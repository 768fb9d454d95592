"""The example requests of the replay page: their data, and the frame in which the page's script ranks them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ranking.fusion import PARTS
from ranking.replay.study import Study
from ranking.report.page import section
from ranking.report.plots import BLUE, GREEN, ORANGE, PURPLE

__all__ = ["example_data", "examples"]

_COLORS = dict(zip(PARTS, (GREEN, BLUE, ORANGE, PURPLE), strict=True))
_KEPT = (
    "request",
    "user",
    "segment",
    "slots",
    "items",
    "categories",
    "terms",
    "raw",
    "position",
    "click",
    "conversion",
)


def example_data(study: Study, details: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the script needs: the requests, and the weights that the buttons set; None without examples."""
    found = details.get("examples")
    if not found or not found["requests"]:
        return None
    production, order = study.production, [name for name in study.production.weights if name in found["parts"]]
    places = [found["parts"].index(name) for name in order]  # the sum goes in the order of the weights
    requests = []
    for one in found["requests"]:
        kept = {key: one[key] for key in _KEPT if key in one}
        requests.append({**kept, "terms": [[row[place] for place in places] for row in one["terms"]]})
    presets = {}
    for label, name in {"Production": "production", "Pick": study.pick, "Knee": "knee"}.items():
        entry = next((e for e in study.shortlist if name and (e.name == name or name in e.roles)), None)
        if entry is not None and not entry.test.refused:
            presets[label] = [entry.test.weights.get(part, 0.0) for part in order]
    return {
        "parts": order,
        "colors": [_COLORS[part] for part in order],
        "bounds": [list(production.bounds[part]) for part in order],
        "segments": {name: [gap.get(part, 0.0) for part in order] for name, gap in production.segments.items()},
        "presets": presets,
        "start": "Pick" if "Pick" in presets else "Production",
        "requests": requests,
    }


def examples(study: Study, details: Mapping[str, Any]) -> str:
    """The section: a choice of request, a slider a weight, and the list that the script fills."""
    found = example_data(study, details)
    if found is None:
        return ""
    options = "".join(
        f'<option value="{number}">{escape(_label(one, number))}</option>'
        for number, one in enumerate(found["requests"])
    )
    buttons = "".join(
        f'<button type="button" data-preset="{label}" aria-pressed="false">{label}</button>'
        for label in found["presets"]
    )
    text = (
        "Move a weight and the list is ranked again, as serving would: score = sum of weight times standardised part. "
        "Bars: what each part adds to the score, to the left where it takes away. Above the line: what is shown. "
        "The arrow: places up or down against production."
    )
    sliders = "".join(_slider(*row) for row in zip(found["parts"], found["colors"], found["bounds"], strict=True))
    head = "".join(f"<th>{name}</th>" for name in ("place", "item", "what adds up to the score", "score", "in the log"))
    return section(
        f"{len(found['requests'])} example requests, ranked live",
        f'<p class="soft">{text}</p><div class="tuner"><div class="controls">'
        f'<p><label>Request <select id="request">{options}</select></label></p>'
        f'<p class="presets" role="group" aria-label="Weights of">{buttons}</p>{sliders}'
        '<p><button type="button" id="copy-live" data-copy="">Copy these weights</button></p></div>'
        '<div><p id="kept" aria-live="polite"></p>'
        '<div class="scroll ranking" tabindex="0" role="region" aria-label="ranked candidates">'
        f'<table id="ranking"><thead><tr>{head}</tr></thead><tbody></tbody></table></div></div></div>',
        name="examples",
    )


def _label(one: Mapping[str, Any], number: int) -> str:
    segment = f", {one['segment']}" if one.get("segment") not in (None, "") else ""
    return f"{number + 1}: request {one['request']}, user {one['user']}{segment}"


def _slider(part: str, color: str, bounds: list[float]) -> str:
    name = f"weight-{part}"
    ends = f'min="{bounds[0]:g}" max="{bounds[1]:g}" step="0.01"'
    return (
        f'<div class="slider"><label for="{name}"><span class="dot" style="background:{color}"></span>{part}</label>'
        f'<output for="{name}"></output><input type="range" id="{name}" {ends}></div>'
    )
