"""The audience page: what it says, what it must not, and that a browser draws it."""

import json
import math
import re
from copy import deepcopy
from html.parser import HTMLParser

import pytest

from ranking.report.audience import render, write_page

EVIL = "</script><script>document.title='run by data'</script>"
PERCENTS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
POPULATION, HIDDEN = 98_000, 82


def method(power: float, auc: float) -> dict:
    """Recall of the form share ** power: 1 is chance, the smaller the better."""
    recall = [(percent / 100) ** power for percent in PERCENTS]
    return {
        "percent": PERCENTS,
        "recall": recall,
        "lift": [100 * found / percent for found, percent in zip(recall, PERCENTS, strict=True)],
        "se": [math.sqrt(found * (1 - found) / HIDDEN) for found in recall],
        "auc": auc,
    }


def trait(feature: str, value: str, seeds: int, audience: int | None, shares: tuple[float, float, float]) -> dict:
    names = ("seed_share", "population_share", "audience_share")
    row = {"feature": feature, "value": value, "seeds": seeds, "audience": audience, "lift": shares[0] / shares[1]}
    return row | dict(zip(names, shares, strict=True))


def one_list(name: str, size: int = 3000) -> dict:
    similarity = [0.95 - 0.006 * step for step in range(200)]
    return {
        "name": name,
        "match": {
            "rows": 436,
            "blank": 2,
            "malformed": 3,
            "duplicates": 1,
            "matched": 412,
            "unmatched": 18,
            "contradicting": 4,
            "match_rate": 0.958,
            "by": {"raw": 390, "normalised": 22, "sha256": 0},
        },
        "size": size,
        "percent_of_eligible": 100 * size / POPULATION,
        "similarity": {"lowest": 0.612, "median": 0.688, "highest": 0.934},
        "reach": {
            "similarity": similarity,
            "size": [int(POPULATION / (1 + math.exp(-14 * (0.37 - at)))) for at in similarity],
        },
        "holdout": {
            "hidden": HIDDEN,
            "methods": {
                "look-alike": method(0.6, 0.81),
                "average embedding": method(0.7, 0.77),
                "classifier": method(0.66, 0.79),
                "random": method(1.0, 0.5),
            },
        },
        "over_indexing": [
            trait("city", "shenzhen", 140, 930, (0.34, 0.08, 0.31)),
            trait("age_range", "25-34", 221, 1402, (0.536, 0.22, 0.467)),
            trait("tag", "photography of birds, in a value that is long", 60, 377, (0.146, 0.031, 0.126)),
            trait("active", "1", 300, 2100, (0.728, 0.5, 0.7)),
            trait("device", "tablet", 25, None, (0.061, 0.05, 0.003)),
        ],
        "centroids": [
            {
                "centroid": 0,
                "seeds": 61,
                "members": 700,
                "share": 0.2333,
                "traits": [{"feature": "city", "value": "shenzhen", "lift": 4.2}],
            },
            {"centroid": 1, "seeds": 44, "members": 411, "share": 0.137, "traits": []},
            {"centroid": 2, "seeds": None, "members": None, "share": None, "traits": []},
        ],
    }


@pytest.fixture
def found() -> dict:
    return {
        "run": "runs/week-10",
        "population": 100_000,
        "eligible": POPULATION,
        "where": "age_range in 18-24,25-34 and active = 1",
        "cut": {"kind": "size", "value": 3000},
        "min_seeds": 100,
        "excluded": {"seeds": 412, "lists": 1200, "where": 388},
        "lists": [one_list("buyers")],
        "overlaps": [],
        "seconds": 1.9,
    }


@pytest.fixture
def several(found) -> dict:
    found["lists"] += [one_list("readers", 900), one_list(EVIL, 0)]
    found["lists"][1]["holdout"] = {"refused": "only 31 seeds would be hidden & that is too few"}
    found["lists"][2]["similarity"] = {"lowest": None, "median": None, "highest": None}
    found["overlaps"] = [
        {"a": "buyers", "b": "readers", "both": 321, "of_a": 0.107, "of_b": 0.3567, "jaccard": 0.0897},
        {"a": "buyers", "b": EVIL, "both": None, "of_a": 0.0061234, "of_b": 0.5, "jaccard": 0.01},
    ]
    return found


def body(page: str) -> str:
    """The page without the inlined library."""
    scripts = [match.span() for match in re.finditer(r"<script>.*?</script>", page, flags=re.S)]
    library = max(scripts, key=lambda span: span[1] - span[0])
    return page[: library[0]] + page[library[1] :]


def drawn(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))["figures"]


def test_the_page_opens_with_a_sentence_for_everybody_and_needs_no_network(found, tmp_path):
    path = write_page(found, tmp_path / "audience.html")
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 10_000_000 and "Plotly" in page
    text = body(page)
    assert "http" not in text and "src=" not in text and "@import" not in text and "url(" not in text
    # 3,000 of 98,000 are 3.061 %. Recall is a line between 2 % (.02 ** .6 = .0956) and 5 % (.05 ** .6 = .1657):
    # .0956 + 1.061 / 3 * .0701 = .1204; .1204 / .03061 = 3.93
    sentence = "3,000 users look most like your 412 seeds; at this size a hidden seed is found 3.9 times as often"
    assert sentence in text and text.index(sentence) < text.index("<table")
    assert "<select" not in text and "How far the audiences overlap" not in text
    assert "98,000 of 100,000 users can be reached, where age_range in 18-24,25-34 and active = 1" in text
    assert "412 seeds themselves, 1,200 on a list of exclusions, 388 outside the filter" in text
    assert "12.0%" in text and "3.93<small>&plusmn; " in text and "0.810" in text
    assert "Similarity is not uplift" in text and "Sensitive attributes" in text
    assert "390 as they stand, 22 after trimming" in text and "95.8% of the ids" in text
    assert "<td>also among the negatives</td><td>4</td>" in text


def test_every_plot_is_there_with_its_numbers(found):
    figures = drawn(body(render(found)))
    assert set(figures) == {"reach-0", "recall-0", "lift-0", "who-0"}
    assert [trace["name"] for trace in figures["lift-0"]["data"]] == list(found["lists"][0]["holdout"]["methods"])
    learned, *_, random = figures["lift-0"]["data"]
    # .01 ** .6 = .0631, a lift of 6.31, its half interval 1.96 * sqrt(.0631 * .9369 / 82) * 100 = 5.26
    assert learned["y"][3] == pytest.approx(6.3096, abs=1e-4)
    assert learned["error_y"]["array"][3] == pytest.approx(5.263, abs=1e-3)
    assert random["y"] == [1.0] * 9 and "error_y" not in random
    seeds, audience, population = figures["who-0"]["data"]
    assert [seeds["name"], audience["name"], population["name"]] == ["seeds", "audience", "population"]
    assert figures["who-0"]["layout"]["yaxis"]["ticktext"][0].startswith("tag = photography of")  # .146 / .031 = 4.7
    assert seeds["x"][:2] == [0.146, 0.34] and population["x"][1] == 0.08
    cut = figures["reach-0"]["layout"]["shapes"]
    assert [(shape["x0"], shape["x1"]) for shape in cut] == [(0.612, 0.934), (0.612, 0.612)]


def test_nothing_under_twenty_people_is_shown(found):
    one = found["lists"][0]
    one["over_indexing"].append(trait("city", "hamlet", 7, 9, (0.017, 0.0001, 0.003)))
    one["centroids"].append({"centroid": 7, "seeds": 13, "members": 17, "share": 0.0057, "traits": []})
    one["reach"] = {"similarity": [0.95, 0.9, 0.8], "size": [0, 19, 20]}
    page = body(render(found))
    figures = drawn(page)
    assert "hamlet" not in page and "<td>13<" not in page and "<td>17<" not in page and "0.6%" not in page
    assert page.count("&lt; 20</td>") == 5  # the audience with tablets, two groups of seeds, two of members
    assert figures["reach-0"]["data"][0]["y"] == [20]
    assert figures["who-0"]["data"][1]["x"][-1] is None  # nor as a bar: .003 of 3,000 would give it away


def test_a_refused_holdout_has_its_reason_and_no_number(found):
    found["lists"][0]["holdout"] = {"refused": "31 seeds are too few & so on"}
    page = body(render(found))
    assert page.count("31 seeds are too few &amp; so on") == 2 and "times as often" not in page
    assert set(drawn(page)) == {"reach-0", "who-0"} and 'id="lift-0"' not in page


def test_no_better_than_chance_is_said(found):
    found["lists"][0]["holdout"]["methods"]["look-alike"] = method(0.98, 0.51)
    page = body(render(found))
    assert "cannot tell this from chance" in page and 'class="verdict keep"' in page


def test_a_better_baseline_is_said(found):
    assert "finds more than the look-alike" not in body(render(found))
    # recall .0306 ** .3, about .35 against .12, with errors of about .053 and .036
    found["lists"][0]["holdout"]["methods"]["classifier"] = method(0.3, 0.93)
    assert "For these seeds, at this size, the classifier finds more than the look-alike." in body(render(found))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        ({"kind": "percent", "value": 1}, "3,000 users look most like"),
        ({"kind": "threshold", "value": 0.6}, "3,000 users have a similarity of 0.6 or more to your 412 seeds"),
        # recall between 1 % (.0631) and 2 % (.0956) over 1 % of the users: 3.25 times
        ({"kind": "band", "value": [1, 2]}, "within the best 2% but not the best 1%; at this size a hidden seed is "),
        ({"kind": "band", "value": "1-2"}, "found 3.3 times as often"),
    ],
)
def test_every_cut_has_its_sentence(found, cut, words):
    one = found["lists"][0]
    one["holdout"]["hidden"] = 5000
    assert words in body(render(found | {"cut": cut}))


def test_several_lists(several):
    page = body(render(several))
    assert page.count("<article") == 3 and page.count("<option") == 3
    assert set(drawn(page)) >= {"reach-0", "reach-1", "reach-2", "lift-0", "lift-2"} and "lift-1" not in drawn(page)
    sentence = (
        "3 audiences of 0 to 3,000 users, each of those who look most like the seeds of its list; a hidden seed is "
    )
    assert sentence + "found 3.9 times as often as by chance." in page and page.index(sentence) < page.index("<table")
    assert "No user qualifies" in page and "only 31 seeds would be hidden &amp; that" in page
    overlaps = page[page.index("How far the audiences overlap") : page.index("What this does not say")]
    assert "35.7%" in overlaps and "50.0%" not in overlaps and "0.010" not in overlaps  # the small one stays untold


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_text_of_the_data_stays_text(several):
    plain = Tags()
    plain.feed(body(render(several)))
    evil = deepcopy(several)
    evil["run"] = evil["where"] = EVIL
    for one in evil["lists"]:
        one["name"] = EVIL
        for row in (*one["over_indexing"], *(t for group in one["centroids"] for t in group["traits"])):
            row["feature"], row["value"] = EVIL, f'<img src=x onerror=alert(1)> " & {EVIL} <!-- $title ${{x}}'
        if "methods" in one["holdout"]:
            methods = one["holdout"]["methods"]
            one["holdout"]["methods"] = {EVIL if m == "classifier" else m: curve for m, curve in methods.items()}
        else:
            one["holdout"]["refused"] = EVIL
    for pair in evil["overlaps"]:
        pair["a"] = pair["b"] = EVIL
    parsed = Tags()
    page = body(render(evil))
    parsed.feed(page)
    assert parsed.tags == plain.tags and "<!--" not in page
    assert any(EVIL in text for text in parsed.text)
    labels = drawn(page)["who-0"]["layout"]["yaxis"]["ticktext"]
    assert all("<" not in label for label in labels) and "&lt;/script" in labels[0]


def test_a_browser_draws_it_without_an_error(several, tmp_path, look):
    for row in several["lists"][0]["over_indexing"]:
        row["value"] = EVIL
    page = look(write_page(several, tmp_path / "audience.html"), 390)
    assert page.title() == "Audience: buyers, readers, " + EVIL + " - Seedrank"
    assert page.locator("article:visible").count() == 1
    assert page.locator("article:visible .main-svg:visible").count() >= 4  # reach, recall, lift and who
    assert page.locator("#who-0 .point").count() == 3 * 5  # bars
    page.get_by_label("Show").select_option(label="readers")
    assert page.locator("article:visible").get_attribute("id") == "list-1"
    assert page.locator("#reach-1 .main-svg").count() > 0  # drawn when it is shown
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_table_sorts(found, tmp_path, look):
    page = look(write_page(found, tmp_path / "audience.html"))
    table = page.locator("table", has=page.get_by_role("button", name="times chance"))
    head = table.get_by_role("button", name="times chance")
    names = table.locator("tbody tr td:first-child")
    head.click()
    # recall is share ** power and chance is power 1: the smaller the power, the better
    assert names.all_inner_texts() == ["look-alike", "classifier", "average embedding", "random"]
    head.press("Enter")
    assert names.all_inner_texts() == ["random", "average embedding", "classifier", "look-alike"]


def test_complaints_of_the_browser_are_heard(tmp_path, look):
    """What the tests above rely on."""
    path = tmp_path / "broken.html"
    path.write_text('<script>missing();</script><img src="http://127.0.0.1:9/x.png">')
    look(path).wait_for_timeout(200)
    heard = " ".join(look.complaints)
    assert "missing" in heard and "network: http" in heard and "failed: http" in heard
    look.complaints.clear()
