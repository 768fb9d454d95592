"""`seedrank quadrants`, from the log and from a run."""

import json

import numpy as np
import pytest

from ranking.quadrants import WINDOWS, quadrants_of_run
from ranking.rows import training_rows

pytestmark = pytest.mark.slow


def test_of_the_log(tiny, cli, tmp_path):
    page = tmp_path / "quadrants.html"
    said = cli("quadrants", "--data", tiny.data, "--out", page, "--json")
    found = json.loads(said.out)
    rows = tiny.timeline.rows_in(*WINDOWS)
    assert said.code == 0 and found["source"] == "log" and page.is_file()
    assert sum(one["impressions"] for one in found["items"]) == len(rows)
    assert sum(one["clicks"] for one in found["items"]) == tiny.dataset.impressions["click"].to_numpy()[rows].sum()
    assert {one["item_id"] for one in found["items"]} > set(tiny.item_ids)  # the awkward ones as they are
    # a page that is there is not replaced unless that is said
    cli("quadrants", "--data", tiny.data, "--out", page).mistake("quadrants.html exists already", "--overwrite")
    said = cli("quadrants", "--data", tiny.data, "--out", page, "--overwrite", "--window", "train")
    assert said.code == 0 and "hidden gems" in said.out and "train, 2025-03-05 00:00 to 2025-03-07 00:00" in said.out


def test_mistakes(tiny, cli, tmp_path):
    page = tmp_path / "quadrants.html"
    for extra, words in (
        (("--window", "later"), ("[windows] should declare `later`",)),
        (("--min-impressions", 10**6), ("`min_impressions` should leave an item",)),
        (("--run", tmp_path), ("is not a run folder",)),
    ):
        cli("quadrants", "--data", tiny.data, "--out", page, *extra).mistake(*words)
        assert not page.exists()


def test_of_a_run(tiny, cli, tmp_path):
    page = tmp_path / "quadrants.html"
    said = cli("quadrants", "--data", tiny.data, "--run", tiny.path, "--out", page, "--json")
    found = json.loads(said.out)
    assert said.code == 0 and "A prediction is not an observation" in page.read_text()
    assert found["counts"]["undecided"] == 0 and {one["certainty"] for one in found["items"]} == {None}
    # by hand, all rows at once: as examined at the top, whatever the position was
    rows = training_rows(tiny.builder, *WINDOWS)
    predicted = tiny.run.predict(rows.features)
    assert found["click_threshold"] == pytest.approx(predicted["pctr"].mean(), rel=1e-5)
    assert found["conversion_threshold"] == pytest.approx(predicted["pcvr"].mean(), rel=1e-5)
    for one in found["items"][:20]:
        of = tiny.timeline.item[rows.row] == tiny.timeline.item_ids.get_loc(one["item_id"])
        assert one["impressions"] == of.sum() and one["clicks"] == rows.click[of].sum()
        assert one["click_rate"] == pytest.approx(predicted["pctr"][of].mean(), rel=1e-5)
        assert one["conversion_rate"] == pytest.approx(predicted["pcvr"][of].mean(), rel=1e-5)
    high = np.array([one["click_rate"] >= found["click_threshold"] for one in found["items"]])
    assert high.any() and not high.all()
    assert all(
        (one["quadrant"] in ("winner", "flashy")) == side for one, side in zip(found["items"], high, strict=True)
    )
    # the positions do not enter
    for name in rows.features:
        if name == "position":
            rows.features[name][:] = 1
    assert np.array_equal(tiny.run.predict(rows.features)["pctr"], predicted["pctr"])
    assert quadrants_of_run(tiny.run, tiny.dataset, ("tune",)).items["impressions"].sum() == len(
        tiny.timeline.rows_in("tune")
    )
