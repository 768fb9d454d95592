import json
import re
from dataclasses import replace

import pytest

from ranking.fusion import FusionWeights
from ranking.replay.evaluation import Estimate, Evaluation
from ranking.replay.study import Entry, LogSummary, Study
from ranking.replay.support import Support
from ranking.report.replay import render, write_report


def evaluation(delta: float, reason: str = "", weight: float = 1.0) -> Evaluation:
    gates = Support(reason, 1.003, 0.004, 0.81, 0.011, 0.002)
    names = () if reason else ("clicks", "conversions", "new_items")
    estimates = {name: Estimate(0.5, 0.01, delta, delta - 0.031, delta + 0.031) for name in names}
    return Evaluation({"pctr": weight, "pcvr": 0.25}, gates, estimates)


@pytest.fixture
def study() -> Study:
    ones = {"pctr": 1.0, "pcvr": 1.0}
    log = LogSummary((1_741_478_400_000, 1_741_651_200_000), 100, 50, 1000, 400, 80, 20, 3, {"clicks": 70}, 0.99)
    return Study(
        objective="conversions",
        guardrails={"clicks": -0.01},
        production=FusionWeights("product", {"pctr": 1.0, "pcvr": 0.25}, dict.fromkeys(ones, 0.0), ones),
        verdict="Recommend pctr=1 & </script><b>pcvr</b>=0.25: conversions +4.4%.",
        pick="setting 1",
        estimator="E3",
        assumptions="a click needs a look",
        banners=("Examination as stated by the log, not estimated.",),
        tune=log,
        test=log,
        shortlist=(
            Entry("production", (), evaluation(0.0), evaluation(0.0), {"clicks": 0.0}),
            Entry("setting 1", ("knee", "pick"), evaluation(0.077), evaluation(0.044), {"clicks": 0.0123}),
            Entry("setting 2", (), evaluation(0.6789), evaluation(0.0, "too few requests", weight=0.8642), {}),
        ),
        trials=[
            {"weights": {"pctr": 1.0}, "feasible": True, "deltas": {"clicks": 0.01, "conversions": 0.02}},
            {"weights": {"pctr": 0.9753}, "feasible": False, "reason": "too few requests"},
        ],
        settings={"group": "request", "seed": 0, "axes": ["conversions", "clicks"]},
        looks=("one", "two"),
    )


def body(page: str) -> str:
    """The page without the inlined library."""
    scripts = [match.span() for match in re.finditer(r"<script>.*?</script>", page, flags=re.S)]
    library = max(scripts, key=lambda span: span[1] - span[0])
    return page[: library[0]] + page[library[1] :]


def test_the_page_opens_with_the_verdict_and_needs_no_network(study, tmp_path):
    path = write_report(study, tmp_path / "report.html", title="week 10", commands=["seedrank replay apply s.json"])
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 10_000_000 and "Plotly" in page
    text = body(page)
    assert "http" not in text and "src=" not in text and "@import" not in text and "url(" not in text
    assert text.index("Recommend") < text.index("<section>")
    assert "Recommend pctr=1 &amp; &lt;/script&gt;&lt;b&gt;" in text and "<b>pcvr" not in text
    assert "week 10" in text and "Examination as stated by the log" in text
    assert "seedrank replay apply s.json" in text and "Copy these weights" in text
    assert "+4.4%" in text and "+1.3% to +7.5%" in text
    assert "<b>2 times</b>" in text and "+3.3 points" in text  # optimism: 7.7 - 4.4
    assert "+4.4% | +1.2%" in text  # E3 | E0


def test_a_refused_setting_has_its_reason_and_no_number(study):
    text = body(render(study))
    assert text.count("refused: too few requests") == 2  # what-if and trust
    row = re.search(r"<tr><td>setting 2<.*?</tr>", text).group()
    assert "%" not in row
    assert "67.9" not in text and "67.89" not in text  # nor its tune estimate, nor in the plot
    figure = json.loads(re.search(r"const figure = (\{.*?\});\n", text).group(1))
    assert figure["data"][0]["x"] == [1.0] and "0.975" not in json.dumps(figure)
    assert [len(trace["x"]) for trace in figure["data"][2:]] == [1, 1]  # production and pick
    assert "0.864" not in json.dumps(figure)


def test_keep_production_offers_production(study):

    kept = replace(study, pick="", verdict="Keep production: nothing gains.", shortlist=study.shortlist[:1])
    text = body(render(kept))
    assert "Keep production" in text and "Production, to keep" in text
    biased = replace(kept, estimator="E0", banners=("Re-ordering estimate, not causal",))
    assert "no support gates" in body(render(biased))
