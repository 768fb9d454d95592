"""The quadrants page: what it says, and that a browser draws it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from esmm.quadrants import QUADRANTS, place
from ranking.quadrants import ItemQuadrants
from ranking.report.quadrants import render, write_page
from ranking.report.quadrants_figure import _CORNERS, COLORS, MEANING, PLURALS

EVIL = "</script><script>document.title='run by data'</script>"
ABOUT = {
    "source": "log",
    "run": None,
    "dataset": "data/shop",
    "windows": ["train", "tune"],
    "start": 0,
    "end": 86_400_000,
    "ordinal": False,
    "min_impressions": 5,
    "left_out": 2,
    "immature_clicks": 17,
    "priors": {"click": {"mean": 0.09, "strength": 24.0}, "conversion": {"mean": 0.2, "strength": 12.5}},
}
# item, impressions, clicks, conversions, click rate, conversion rate, certainty; high from 0.1 and 0.2 on
ITEMS = [
    ("dull", 900, 40, 2, 0.045, 0.06, 0.97),
    ("flashy-1", 800, 300, 20, 0.37, 0.07, 1.0),
    ("flashy-2", 700, 400, 30, 0.55, 0.08, 0.999),
    ("gem-1", 600, 30, 12, 0.05, 0.37, 0.93),
    ("gem-2", 500, 20, 11, 0.04, 0.48, 0.81),
    ("winner", 400, 100, 50, 0.24, 0.47, 0.996),
    ("new <b>&", 5, 1, 0, 0.11, 0.19, 0.27),
]


def made(rows=ITEMS, **about) -> ItemQuadrants:
    names = ["item_id", "impressions", "clicks", "conversions", "click_rate", "conversion_rate", "certainty"]
    items = pd.DataFrame(rows, columns=names)
    items["final_clicks"] = items["clicks"]
    items["quadrant"] = place(items["click_rate"], items["conversion_rate"], 0.1, 0.2)
    items["decided"] = ~(items["certainty"] < 0.8)
    return ItemQuadrants(items, 0.1, 0.2, ABOUT | about)


def of_a_run() -> ItemQuadrants:
    return made([(*row[:-1], np.nan) for row in ITEMS], source="run", run="runs/<1>", priors=None, immature_clicks=0)


def body(page: str) -> str:
    """The page without plotly.js, which is the longest script."""
    scripts = [match.span() for match in re.finditer(r"<script>.*?</script>", page, flags=re.S)]
    library = max(scripts, key=lambda span: span[1] - span[0])
    return page[: library[0]] + page[library[1] :]


def drawn(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))["figures"]["items"]


def part(page: str, head: str) -> str:
    start = page.index(f"<h2>{head}</h2>")
    return page[start : page.index("</section>", start)]


def test_the_page_opens_with_a_sentence_and_needs_no_network(tmp_path):
    path = write_page(made(), tmp_path / "quadrants.html")
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 10_000_000 and "Plotly" in page
    text = body(page)
    assert "http" not in text and "src=" not in text and "@import" not in text and "url(" not in text
    sentence = (
        "2 of 7 items are hidden gems: few click, but many of those convert; 2 are flashy: many click, but few of "
        "those convert. Of 1 it cannot be told yet."
    )
    assert sentence in text and text.index(sentence) < text.index("<table") and 'class="verdict pick"' in text
    assert "The log: train + tune, 1970-01-01 00:00 to 1970-01-02 00:00 (UTC)." in text
    assert "click rate 10.0%, conversions per click 20.0%" in text
    assert "starts with 24 impressions at 9.00%, a conversion rate with 12.5 clicks at 20.0%" in text
    assert "17 clicks may still convert" in text and "2 items shown less than 5 times are left out" in text


def test_tables_known_values():
    page = body(render(made()))
    gems, flashy = part(page, "Hidden gems"), part(page, "Flashy")
    # gems by conversion rate, the flashy by the clicks they take
    assert gems.index("gem-2") < gems.index("gem-1") and flashy.index("flashy-2") < flashy.index("flashy-1")
    assert '<td>4.00%</td><td>48.0%</td><td>500</td><td>20</td><td>11</td><td data-value="0.81">81%</td>' in gems
    assert "&gt;99%" in flashy and "100%" not in flashy
    counts = part(page, "Where the items are")
    # both flashy ones: 1,500 impressions, 700 clicks, 50 conversions
    assert "flashy</td><td>2</td><td>1,500</td><td>700</td><td>50</td>" in counts
    assert "undecided</td><td>1</td><td>5</td><td>1</td><td>0</td>" in counts


def test_plot_known_values():
    figure = drawn(body(render(made())))
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert set(traces) == {"undecided", "to retire", "flashy", "winners", "hidden gems"}
    assert traces["hidden gems"]["x"] == [0.05, 0.04] and traces["hidden gems"]["y"] == [0.37, 0.48]
    assert traces["undecided"]["marker"]["symbol"] == "circle-open"
    assert "seems flashy, certainty 27%" in traces["undecided"]["text"][0]
    # 5 + 21 sqrt(n / 900): the most shown item has 26, one of 400 impressions 19
    assert traces["to retire"]["marker"]["size"] == [26.0] and traces["winners"]["marker"]["size"] == [19.0]
    lines = [(shape.get("x0"), shape.get("y0")) for shape in figure["layout"]["shapes"]]
    assert lines == [(0.1, 0), (0, 0.2)]
    assert figure["layout"]["xaxis"]["type"] == figure["layout"]["yaxis"]["type"] == "log"


def test_a_run_has_no_certainty():
    page = body(render(of_a_run()))
    assert "Predictions of the run runs/&lt;1&gt;" in page and "A prediction is not an observation" in page
    assert "certainty" not in page.lower() and "undecided" not in drawn(page)["data"][0]["name"]
    assert "Of 0" not in page and "Hollow" not in page


def test_nothing_to_tell_is_said():
    nothing = made([(*row[:-1], 0.4) for row in ITEMS])
    page = body(render(nothing))
    assert "None of 7 items can be placed yet" in page and 'class="verdict keep"' in page
    assert page.count("None that is certain enough.") == 2
    assert [trace["name"] for trace in drawn(page)["data"]] == ["undecided"]


def test_a_large_catalogue_is_capped(tmp_path):
    generator = np.random.default_rng(0)
    count = 60_000
    items = pd.DataFrame(
        {
            "item_id": [f"item number {n}" for n in range(count)],
            "impressions": np.arange(count, 0, -1),
            "clicks": 0,
            "conversions": 0,
            "click_rate": generator.random(count),
            "conversion_rate": generator.random(count),
            "certainty": generator.random(count),
        }
    )
    found = made(items.itertuples(index=False, name=None))
    path = write_page(found, tmp_path / "quadrants.html")
    assert path.stat().st_size < 10_000_000
    page = body(path.read_text())
    assert sum(len(trace["x"]) for trace in drawn(page)["data"]) == 5000
    assert "undecided" not in [trace["name"] for trace in drawn(page)["data"]]  # 12,000 are decided: those first
    assert "5,000 of 60,000 items are drawn" in page and "more; these are the first 50 by clicks" in page
    assert part(page, "Flashy").count("<tr>") == 51


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def evil() -> ItemQuadrants:
    rows = [(f"{EVIL}<img src=x onerror=alert(1)> {row[0]} <!-- $title", *row[1:]) for row in ITEMS]
    return made(rows, dataset=f"data/{EVIL.replace('/', '')}", run=EVIL)


def test_text_of_the_data_stays_text():
    plain, parsed = Tags(), Tags()
    plain.feed(body(render(made())))
    page = body(render(evil()))
    parsed.feed(page)
    assert parsed.tags == plain.tags and "<!--" not in page
    assert any(EVIL in text for text in parsed.text)
    texts = [text for trace in drawn(page)["data"] for text in trace["text"]]
    assert all("<img" not in text and "<script" not in text for text in texts)


@pytest.mark.parametrize("kind", [evil, of_a_run])
def test_a_browser_draws_it_without_an_error(kind, tmp_path, look):
    page = look(write_page(kind(), tmp_path / "quadrants.html"), 390)
    assert page.locator("#items .point").count() == len(ITEMS)
    assert page.title().startswith("Items by clicks and conversions")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_corners_are_those_of_esmm():
    assert _CORNERS == QUADRANTS and set(PLURALS) == set(COLORS) == set(MEANING) == set(QUADRANTS)
