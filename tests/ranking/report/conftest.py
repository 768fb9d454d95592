"""A browser that looks at the pages, where there is one, and a study with every detail that its page draws."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Estimate, Evaluation
from ranking.replay.study import Entry, LogSummary, Study
from ranking.replay.support import Support


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser takes more than all the other tests of the pages."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless chromium for the whole session, or a skip that says why."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def look(browser) -> Iterator[Callable[..., Any]]:
    """`(file, width) -> page`; fails at the end where the page asked the network or complained on the console."""
    complaints: list[str] = []
    contexts = []

    def opened(path: Path, width: int = 1280) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda r: None if r.url.startswith("file:") else complaints.append(f"network: {r.url}"))
        page.goto(path.as_uri())
        return page

    opened.complaints = complaints
    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


PARTS = ("similarity", "pctr", "pcvr", "price")
_WEIGHTS = {
    "production": (0.041092531, 1.0, 0.4253039884, 0.0),
    "setting 1": (0.399, 1.0, 0.1913, 0.698),
    "setting 2": (1.0, 0.31, -0.2, 0.77),
    "setting 3": (0.277, 1.0, 0.279, 0.673),
    "setting 4": (-0.5, 0.9, 1.0, 0.1),
}


def _evaluation(name: str, change: float, *, reason: str = "", effective: float = 0.6) -> Evaluation:
    shifts = {"clicks": 0.2, "conversions": -0.4, "value": 1.0, "new_items": 0.1}
    estimates = {
        objective: Estimate(0.5, 0.01, change * by, change * by - 0.031, change * by + 0.031)
        for objective, by in shifts.items()
    }
    weights = dict(zip(PARTS, _WEIGHTS[name], strict=True)) if name in _WEIGHTS else {}
    gates = Support(reason, 1.003, 0.004, effective, 0.011, 0.002)
    return Evaluation(weights, gates, {} if reason else estimates)


def _entries() -> tuple[Entry, ...]:
    few = "the effective sample is 8% of the requests, under 20%"
    return (
        Entry("production", (), _evaluation("production", 0.0), _evaluation("production", 0.0, effective=1.0)),
        Entry("setting 1", ("knee",), _evaluation("setting 1", 0.2), _evaluation("setting 1", 0.131, effective=0.71)),
        Entry(
            "setting 2", ("best value",), _evaluation("setting 2", 0.6789), _evaluation("setting 2", 0.0, reason=few)
        ),
        Entry("setting 3", ("pick",), _evaluation("setting 3", 0.3), _evaluation("setting 3", 0.256, effective=0.45)),
        Entry("setting 4", (), _evaluation("setting 4", -0.05), _evaluation("setting 4", -0.08, effective=0.31)),
    )


@pytest.fixture(scope="session")
def study() -> Study:
    """A study that recommends setting 3 and refuses setting 2, with all details."""
    generator = np.random.default_rng(5)
    log = LogSummary(
        (1_741_478_400_000, 1_741_651_200_000), 8400, 2960, 252000, 67200, 6732, 1345, 3, {"value": 1195}, 0.998
    )
    ones = dict.fromkeys(PARTS, 1.0)
    trials = [
        {
            "weights": dict(zip(PARTS, generator.uniform(-1, 1, 4).round(3).tolist(), strict=True)),
            "feasible": bool(clicks > -0.01),
            "deltas": {"clicks": clicks, "value": value, "conversions": 0.0, "new_items": 0.0},
        }
        for clicks, value in zip(
            generator.normal(0, 0.05, 300).round(4).tolist(),
            generator.normal(0, 0.15, 300).round(4).tolist(),
            strict=True,
        )
    ]
    refused = {"weights": dict.fromkeys(PARTS, 0.9753), "feasible": False, "reason": "too few requests"}
    return Study(
        objective="value",
        guardrails={"clicks": -0.01},
        production=FusionWeights(
            "product",
            dict(zip(PARTS, _WEIGHTS["production"], strict=True)),
            dict.fromkeys(PARTS, 0.0),
            ones,
            segments={"new": {"similarity": 0.3, "pctr": 0.5}},
        ),
        verdict="Recommend similarity=0.277, pctr=1, pcvr=0.279, price=0.673: value +25.6% [+22.5%, +28.7%].",
        pick="setting 3",
        estimator="E3",
        assumptions="a click needs a look",
        banners=("Examination as stated by the log, not estimated.",),
        tune=log,
        test=log,
        shortlist=_entries(),
        trials=[*trials, refused],
        settings={"group": "request", "seed": 0, "axes": ["value", "clicks"]},
        looks=("one", "two"),
        rivals=(Entry("monotone fusion", ("rival",), _evaluation("rival", 0.31), _evaluation("rival", 0.2)),),
        details=_details(generator),
    )


def _details(generator: np.random.Generator) -> dict[str, Any]:
    names = ["production", "setting 1", "setting 3", "setting 4"]
    quadrants = ["winner", "hidden gem", "flashy", "to retire"]
    rates = generator.lognormal(0, 0.5, (200, 2)) * (0.1, 0.2)
    placed = [quadrants[2 * (ctr > 0.1) * (cvr <= 0.2) + (ctr <= 0.1) * (1 if cvr > 0.2 else 3)] for ctr, cvr in rates]
    moves = [
        {"item": f"item {n}", "category": f"c{n % 3}", "before": 40.0 - n, "after": 55.0 - 2 * n} for n in range(15)
    ]
    return {
        "setting": "setting 3",
        "sensitivity": {"window": "tune", "objective": "value", "curves": [_curve(part) for part in PARTS]},
        "segments": {"column": "segment", "rows": _segments()},
        "calibration": {
            "window": "test",
            "heads": {"pctr": _head(generator, 0.05, 1.02), "pctcvr": _head(generator, 0.01, 0.91)},
            "note": "pctr as if examined at the top.",
        },
        "diversity": {
            "category": "category",
            "rows": [
                {
                    "setting": name,
                    "entropy": 2.1 - n / 10,
                    "gini": 0.5 + n / 20,
                    "coverage": 0.8 - n / 9,
                    "overlap": 1 - n / 5,
                }
                for n, name in enumerate(names)
            ],
        },
        "quadrants": {
            "ctr_line": 0.1,
            "cvr_line": 0.2,
            "items": [
                {
                    "item": f"item {n}",
                    "impressions": int(1000 / (n + 1)) + 5,
                    "ctr": ctr,
                    "cvr": cvr,
                    "quadrant": quadrant,
                }
                for n, ((ctr, cvr), quadrant) in enumerate(zip(rates.round(5).tolist(), placed, strict=True))
            ],
        },
        "movers": {
            "unit": "looks per 1,000 requests",
            "gaining": moves,
            "losing": [{**move, "before": move["after"], "after": move["before"]} for move in moves],
        },
        "examples": {"parts": list(PARTS), "requests": [_request(generator, n) for n in range(20)]},
        "trust": {
            "weights": {"edges": np.linspace(0, 5, 26).round(2).tolist(), "counts": [*range(1, 13), *range(13, 0, -1)]},
            "clipped": 0.0123,
            "examination": {"method": "estimated", "theta": [1, 0.7, 0.55, 0.4], "error": [0, 0.02, 0.03, 0.04]},
            "estimators": [
                {
                    "setting": name,
                    "E0": 0.01 * n,
                    "E3": 0.05 * n,
                    "E5": 0.052 * n,
                    **({"E6": 0.048 * n} if n < 3 else {}),
                }
                for n, name in enumerate(names[1:], start=1)
            ],
        },
    }


def _curve(part: str) -> dict[str, Any]:
    t = np.linspace(-1, 1, 81)
    value = 0.2 - (t - 0.3) ** 2 / 4
    return {
        **{"part": part, "production": 0.04, "setting": 0.277, "low_bound": -1.0, "high_bound": 1.0},
        "t": t.round(4).tolist(),
        "delta": {"value": value.round(5).tolist(), "clicks": (0.02 - t / 20).round(5).tolist()},
        "supported": (t > -0.6).tolist(),
        "flat": [0.1, 0.5],
    }


def _segments() -> list[dict[str, Any]]:
    rows = []
    for n, (segment, flip) in enumerate((("new", ["value"]), ("regular", []), ("heavy", []), ("returning", []))):
        delta = -0.06 if flip else 0.1 + 0.05 * n
        interval = {"delta": delta, "low": delta - 0.04, "high": delta + 0.04}
        clicks = {"delta": 0.01, "low": -0.02, "high": 0.04}
        found = {"requests": 812 * n + 400, "users": 100 * n + 90, "refused": "", "flip": flip}
        rows.append({"segment": segment, **found, "estimates": {"value": interval, "clicks": clicks}})
    rows[3] |= {"refused": "fewer than 100 users", "estimates": {}}
    return rows


def _head(generator: np.random.Generator, base: float, pcoc: float) -> dict[str, Any]:
    predicted = (base * np.exp(np.linspace(-1, 1.5, 10))).round(6)
    observed = (predicted / pcoc * generator.normal(1, 0.05, 10)).round(6)
    rows = zip(predicted.tolist(), observed.tolist(), strict=True)
    return {"pcoc": pcoc, "ece": 0.0021, "bins": [{"predicted": p, "observed": o, "rows": 6700} for p, o in rows]}


def _request(generator: np.random.Generator, number: int) -> dict[str, Any]:
    count = 30
    terms = generator.normal(0, 1, (count, 4)).round(6)
    terms[7] = terms[3]  # a tie at any weights
    position = np.full(count, -1)
    position[generator.permutation(count)[:8]] = np.arange(8)
    click = (position >= 0) & (generator.random(count) < 0.3)
    return {
        **{"request": f"r{number}", "user": f"u{number}", "segment": ["new", "regular"][number % 2], "slots": 8},
        "items": [f"item {n}" for n in range(count)],
        "categories": [f"c{n % 4}" for n in range(count)],
        "terms": terms.tolist(),
        "raw": {part: generator.random(count).round(4).tolist() for part in PARTS},
        "position": position.tolist(),
        "click": click.astype(int).tolist(),
        "conversion": (click & (generator.random(count) < 0.4)).astype(int).tolist(),
    }
