"""The replay page: what it says, what it must not, and that its sliders rank as `fuse` does."""

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from ranking.fusion import FusionWeights, fuse
from ranking.report.replay import render, write_report

EVIL = "</script><script>document.title='run by data'</script>"
SECTIONS = [
    "What each setting trades",
    "What if",
    "20 example requests, ranked live",
    "How sharp is the choice?",
    "Does it hold for everybody?",
    "Can it be trusted?",
    "Are the predictions calibrated?",
    "Diversity",
    "Four quadrants of items",
    "Items gaining and losing impressions",
    "The weights",
]


def body(page: str) -> str:
    """The page without the inlined library."""
    scripts = [match.span() for match in re.finditer(r"<script>.*?</script>", page, flags=re.S)]
    library = max(scripts, key=lambda span: span[1] - span[0])
    return page[: library[0]] + page[library[1] :]


def data(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))


def without_data(page: str) -> str:
    """What is written, not drawn."""
    return re.sub(r'id="data">.*?</script>', "", page)


def test_the_page_opens_with_the_verdict_and_needs_no_network(study, tmp_path):
    path = write_report(study, tmp_path / "report.html", title="week 10", commands=["seedrank replay apply s.json"])
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 10_000_000 and "Plotly" in page
    text = body(page)
    assert "src=" not in text and "@import" not in text and "url(" not in text and "<link" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text.index("Recommend") < text.index("<section id")
    assert "week 10" in text and "Examination as stated by the log" in text
    assert "seedrank replay apply s.json" in text
    assert "+25.6%" in text and "+22.5% to +28.7%" in text
    assert "<b>2 times</b>" in text and "+4.4 points" in text  # optimism: 30.0 - 25.6
    assert [unescape(head) for head in re.findall(r"<h2>(.*?)</h2>", text)] == SECTIONS


def test_every_plot_has_its_place_and_its_numbers(study):
    page = body(render(study))
    figures = data(page)["figures"]
    assert set(figures) == set(re.findall(r'class="plot" id="([^"]+)"', page))
    weights = ["front", "optimism", "weights-histogram", "examination", "estimators", "segments", "quadrants-plot"]
    assert set(weights) < set(figures) and {f"sensitivity-{n}" for n in range(4)} < set(figures)
    pick = next(trace for trace in figures["front"]["data"] if trace["name"].startswith("pick"))
    # clicks are a fifth of value: 25.6 / 5
    assert (pick["x"], pick["y"]) == ([5.12], [25.6]) and pick["marker"]["color"] == [45.0]
    assert pick["error_y"]["array"] == [pytest.approx(3.1)] and pick["error_x"]["arrayminus"] == [pytest.approx(3.1)]
    arrows = next(trace for trace in figures["front"]["data"] if trace["name"] == "from tune to test")
    assert arrows["y"][:3] == [20.0, 13.1, None] and len(arrows["x"]) == 9  # settings 1, 3 and 4
    curve = figures["sensitivity-0"]
    assert curve["layout"]["shapes"][0]["x0"] == 0.1 and curve["layout"]["shapes"][0]["x1"] == 0.5
    value = curve["data"][0]
    # t = -1 + n / 40, supported above -.6: from n = 17 on
    assert value["name"] == "value" and value["y"][:17] == [None] * 17 and value["y"][17] is not None
    (note,) = figures["segments"]["layout"]["annotations"]
    assert "sign flip" in note["text"] and note["x"] == -2.0  # the upper end of -6 +- 4
    assert figures["examination"]["data"][0]["error_y"]["array"][1] == pytest.approx(1.96 * 0.02)


def test_a_refused_setting_has_its_reason_and_no_number(study):
    page = body(render(study))
    text = without_data(page)
    assert text.count("refused: the effective sample is 8%") == 2  # what-if and trust
    assert "67.9" not in page and "67.89" not in page  # nor its tune estimate, nor in a plot
    found = data(page)
    assert "0.9753" not in page  # nor a trial that is refused
    assert found["replay"]["presets"].keys() == {"Production", "Pick", "Knee"}
    listed = [trace for trace in found["figures"]["front"]["data"] if "test" in trace["name"]]
    assert not any("setting 2" in text for trace in listed for text in trace.get("text", []))
    knee = replace(study.shortlist[2], roles=("knee",))
    refused = replace(study, pick="", shortlist=(study.shortlist[0], knee))
    assert data(body(render(refused)))["replay"]["presets"].keys() == {"Production"}


def test_sections_without_details_are_not_there(study):
    page = body(render(replace(study, details={})))
    assert re.findall(r"<h2>(.*?)</h2>", page) == [SECTIONS[at] for at in (0, 1, 5, 10)]
    assert set(data(page)["figures"]) == {"front", "optimism"} and data(page)["replay"] is None
    alone = {"setting": "setting 3", "movers": study.details["movers"]}
    assert "Items gaining" in body(render(replace(study, details=alone)))


def test_keep_production_offers_production(study):
    kept = replace(study, pick="", verdict="Keep production: nothing gains.", shortlist=study.shortlist[:1], rivals=())
    text = body(render(kept))
    assert "Keep production" in text and "Production, to keep" in text and 'class="verdict keep"' in text


def test_the_hash_of_each_setting_is_that_of_its_file(study, tmp_path):
    page = body(render(study))
    assert study.apply(tmp_path / "weights.json").hash == re.search(r'id="weights-hash">(\w+)<', page).group(1)
    shown = re.findall(r"hash (\w{12})<", page)
    assert sorted(shown) == sorted(study.weights(e.name).hash[:12] for e in study.shortlist if not e.test.refused)
    assert len(set(shown)) == len(shown) > 1


def test_a_re_ordering_estimate_has_no_gates(study):
    entries = tuple(replace(e, test=replace(e.test, support=None)) for e in study.shortlist if not e.test.refused)
    biased = replace(study, estimator="E0", banners=("Re-ordering estimate, not causal",), shortlist=entries, rivals=())
    text = without_data(body(render(biased)))
    assert "no support gates" in text and "effective sample" not in text


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, text):
        self.text.append(text)


def evil(value):
    """Every text of the details that a dataset or a person chose, made hostile."""
    names = ("segment", "item", "category", "user", "request", "note", "unit", "column", "categories", "items")
    if isinstance(value, dict):
        return {
            key: [EVIL for _ in found]
            if key in names and isinstance(found, list) and found and isinstance(found[0], str)
            else EVIL
            if key in names and isinstance(found, str)
            else evil(found)
            for key, found in value.items()
        }
    return [evil(one) for one in value] if isinstance(value, list) else value


def test_text_of_the_data_stays_text(study):
    plain, parsed = Tags(), Tags()
    plain.feed(body(render(study)))
    page = body(render(replace(study, details=evil(study.details), verdict=EVIL, banners=(EVIL,)), title=EVIL))
    parsed.feed(page)
    assert parsed.tags == plain.tags
    assert any(EVIL in text for text in parsed.text)
    assert all("<script" not in label for label in data(page)["figures"]["segments"]["layout"]["yaxis"]["ticktext"])


# In a browser.


def order(page) -> list[int]:
    return [int(row) for row in page.locator("#ranking tbody tr").evaluate_all("rows => rows.map(r => r.dataset.row)")]


def fused(study, number: int, weights) -> list[int]:
    """Row numbers by `fuse`, the best first; of equal scores the first row."""
    request = study.details["examples"]["requests"][number]
    parts = study.details["examples"]["parts"]
    terms = np.array(request["terms"], np.float32)
    ones = dict.fromkeys(parts, 1.0)
    # Terms as they are: the sum form with mean 0 and deviation 1. The largest weight is 1 before a segment differs.
    plain = FusionWeights("sum", dict(zip(parts, weights, strict=True)), dict.fromkeys(parts, 0.0), ones)
    plain = replace(plain, segments=study.production.segments)
    score = fuse({part: terms[:, j] for j, part in enumerate(parts)}, plain, segment=request["segment"])
    assert score.dtype == np.float32
    return np.argsort(-score, kind="stable").tolist()


@pytest.fixture(scope="module")
def path(study, tmp_path_factory):
    return write_report(study, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page(path, look):
    """One page for the tests that only act in it: each sets what it looks at."""
    return look(path)


def test_sliders_rank_as_fuse_does(study, page):
    parts = study.details["examples"]["parts"]
    generator = np.random.default_rng(3)
    settings = [*generator.uniform(-1, 1, (8, 4)).round(2).tolist(), [0, 0, 0, -0.5], [1, 1, 1, 1], [0.01, 0, 0, 0]]
    orders = set()
    for number, weights in enumerate(settings):
        page.locator("#request").select_option(str(number))
        for part, weight in zip(parts, weights, strict=True):
            page.locator(f"#weight-{part}").evaluate(
                "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", weight
            )
        assert order(page) == fused(study, number, weights), weights
        orders.add(tuple(order(page)))
        shown = [float(text) for text in page.locator(".slider output").all_inner_texts()]
        assert shown == weights
    assert len(orders) == len(settings)
    places = order(page)
    assert places.index(7) == places.index(3) + 1  # equal at any weights: the first row is before


def test_a_slider_moves_by_arrow_keys(study, page):
    page.locator("#request").select_option("0")
    page.get_by_role("button", name="Production", exact=True).click()
    slider = page.get_by_label("pcvr", exact=True)
    slider.focus()
    before = order(page)
    for _ in range(60):
        slider.press("ArrowLeft")
    # production has .4253 there, which the slider shows as .43
    weights = [study.production.weights["similarity"], 1, -0.17, 0]
    assert page.locator("#weight-pcvr").input_value() == "-0.17"
    assert order(page) == fused(study, 0, weights) != before
    assert page.get_by_role("button", name="Production", exact=True).get_attribute("aria-pressed") == "false"


def test_presets_set_the_exact_weights(study, page):
    for label, name in {"Knee": "setting 1", "Production": "production", "Pick": "setting 3"}.items():
        button = page.get_by_role("button", name=label, exact=True)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        weights = list(study.entry(name).test.weights.values())
        for number in (0, 1, 19):
            page.locator("#request").select_option(str(number))
            assert order(page) == fused(study, number, weights)
    page.get_by_role("button", name="Production", exact=True).click()
    assert page.locator("#ranking .up, #ranking .down").filter(has_text=re.compile("[▲▼]")).count() == 0
    assert "over all 20 requests 100%" in page.locator("#kept").inner_text()


def test_no_weight_ranks_nothing(page):
    for slider in page.locator(".slider input").all():
        slider.fill("0")
    assert "ranks nothing" in page.locator("#kept").inner_text() and order(page) == []
    assert page.locator("#copy-live").is_disabled()


def test_contributions_add_up_to_the_score(study, page):
    page.locator("#request").select_option("0")
    page.get_by_role("button", name="Pick", exact=True).click()
    row = page.locator("#ranking tbody tr").first
    words = row.locator("svg").get_attribute("aria-label")
    adds = [float(number) for number in re.findall(r"[+-][\d.]+", words)]
    assert len(adds) == 4 and sum(adds) == pytest.approx(float(row.locator("td").nth(3).inner_text()), abs=0.03)
    assert row.locator("rect").count() == 4


def test_the_table_sorts_by_click_and_by_key(page):
    table = page.locator("#what-if-table")
    names = table.locator("tbody tr")

    def listed() -> list[str]:
        return names.evaluate_all("rows => rows.map(row => row.dataset.name)")

    head = table.locator("th", has_text="value")
    button = head.get_by_role("button")
    assert head.get_attribute("aria-sort") == "none" and listed()[:2] == ["production", "setting 3"]
    button.click()
    best = ["setting 3", "monotone fusion", "setting 1", "production", "setting 4", "setting 2"]
    assert listed() == best and head.get_attribute("aria-sort") == "descending"
    button.press("Enter")
    # the refused one has no value and stays at the end
    assert listed() == [*best[4::-1], "setting 2"] and head.get_attribute("aria-sort") == "ascending"
    other = table.locator("th", has_text="setting")
    other.get_by_role("button").press("Space")
    assert listed() == ["monotone fusion", "production", "setting 1", "setting 2", "setting 3", "setting 4"]
    assert (head.get_attribute("aria-sort"), other.get_attribute("aria-sort")) == ("none", "ascending")


def test_rows_are_chosen_to_compare(page):
    rows, button = page.locator("#what-if-table tbody tr"), page.locator("#compare")
    assert rows.count() == 6 and button.is_disabled()
    page.get_by_label("compare setting 1").check()
    page.get_by_label("compare setting 3").check()
    button.click()
    names = rows.filter(visible=True).evaluate_all("rows => rows.map(row => row.dataset.name)")
    assert sorted(names) == ["setting 1", "setting 3"]
    button.click()
    assert rows.filter(visible=True).count() == 6


def test_copy_buttons_copy_weights(study, page):
    copied = "navigator.clipboard.readText()"
    page.evaluate(  # all that is said: each is wiped away after a second
        """const said = document.getElementById('said'); window.heard = [];
        new MutationObserver(() => heard.push(said.textContent)).observe(said, {childList: true});"""
    )
    page.locator("#what-if-table tr", has_text="setting 1").get_by_role("button").click()
    assert json.loads(page.evaluate(copied)) == study.entry("setting 1").test.weights
    page.get_by_role("button", name="Knee", exact=True).click()
    page.locator("#weight-pctr").fill("0.5")
    page.locator("#copy-live").click()
    # .399, .5, .1913 and .698, the largest being 1
    expected = {"similarity": 0.399 / 0.698, "pctr": 0.5 / 0.698, "pcvr": 0.1913 / 0.698, "price": 1.0}
    assert json.loads(page.evaluate(copied)) == pytest.approx(expected, abs=1e-9)
    page.wait_for_function("heard.filter(words => words === 'Copied').length === 2")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen_and_all_is_drawn(width, path, look):
    page = look(path, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("section h2").all_inner_texts() == SECTIONS
    plots = page.locator(".plot")
    assert plots.count() == page.locator(".plot.js-plotly-plot .main-svg:first-child").count() > 10
    # what is out of a box that scrolls would be out of reach
    boxes = page.locator("section :not(.scroll, .scroll *, .plot *, pre, .unseen)")
    wide = boxes.evaluate_all("nodes => nodes.filter(n => n.getBoundingClientRect().right > innerWidth + 1).length")
    assert wide == 0


def test_everything_that_acts_has_a_name_and_takes_the_focus(path, look):
    page = look(path)
    unnamed = page.locator("button, input, select, .scroll").evaluate_all(
        "nodes => nodes.filter(n => !(n.textContent.trim() || n.ariaLabel || n.labels?.length)).length"
    )
    assert unnamed == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    order_ids = []
    for _ in range(60):
        page.keyboard.press("Tab")
        order_ids.append(page.evaluate("document.activeElement.id"))
    assert {"request", "weight-similarity", "weight-price"} <= set(order_ids)


def test_hostile_text_does_nothing(study, tmp_path, look):
    hostile = replace(study, details=evil(study.details), verdict=EVIL)
    page = look(write_report(hostile, tmp_path / "report.html"))
    assert page.title() != "run by data" and page.locator("#ranking tbody tr").count() == 30


def test_it_prints(path, look):
    page = look(path)
    page.pdf(format="A4")  # asks for beforeprint and afterprint
    page.emulate_media(media="print")
    assert page.locator("button:visible", has_text="Copy").count() == 0
