import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ranking.fusion import FusionWeights, fuse
from ranking.replay.calibration import calibration_section
from ranking.replay.details import make_details
from ranking.replay.evaluation import Estimate, Evaluation, Evaluator
from ranking.replay.examples import choose_examples, examples_section
from ranking.replay.log import ReplayLog
from ranking.replay.quadrants import quadrants_section, smoothed
from ranking.replay.segments import segments_section
from ranking.replay.sensitivity import sensitivity_section, sweep
from ranking.replay.slates import diversity_section, looks, movers_section, slates
from ranking.replay.study import Entry


def with_kinds(log: ReplayLog) -> ReplayLog:
    """The log with two segments and categories by item."""
    category = (np.arange(len(log.item_id)) % 5 - 1).astype(np.int32)
    return replace(
        log,
        segment=np.where(np.arange(log.requests) % 3 > 0, "old", "new").astype(object),
        segment_column="age",
        category=category[log.item],
        category_column="kind",
        category_names=list("abcd"),
    )


@pytest.fixture(scope="module")
def study(world, later):
    """Both logs, an evaluator of each, and four entries, the last of which is refused."""
    logs = [with_kinds(found.log) for found in (world, later)]
    on = [Evaluator(log, world.production) for log in logs]
    settings = [
        world.production,
        world.setting(similarity=0.6, pctr=1, pcvr=0.2),
        world.setting(pctr=0.6, pcvr=1),
        world.setting(similarity=-1),
    ]
    tuned, tested = (evaluator.evaluate(settings) for evaluator in on)
    names = ("production", "setting 1", "setting 2", "setting 3")
    entries = [Entry(name, (), *pair) for name, *pair in zip(names, tuned, tested, strict=True)]
    assert entries[3].test.refused and not entries[1].test.refused
    return logs, on, entries, world.production


@pytest.fixture(scope="module")
def details(study):
    logs, on, entries, production = study
    return make_details(*logs, *on, entries, production, "conversions", {"clicks": -0.5}, "setting 1")


def test_all_sections_are_plain_and_small(details):
    text = json.dumps(details, allow_nan=False)
    assert json.loads(text) == details
    assert len(text) < 1_000_000
    sections = "setting sensitivity segments calibration diversity quadrants movers examples trust"
    assert set(details) == set(sections.split())
    assert details["setting"] == "setting 1"


def test_curves_are_what_the_evaluator_finds(study, details):
    _, (on_tune, _), entries, production = study
    names = ["conversions", "clicks"]
    assert [curve["part"] for curve in details["sensitivity"]["curves"]] == list(on_tune.parts)
    for index, curve in enumerate(details["sensitivity"]["curves"]):
        t = np.array(curve["t"])
        assert len(t) <= 400 and (np.diff(t) > 0).all()
        assert (t[0], t[-1]) == production.bounds[curve["part"]]
        assert np.isclose(t, curve["setting"]).any()
        assert curve["production"] == production.weights[curve["part"]]
        own = [entries[1].tune.weights[part] for part in on_tune.parts]
        matrix = np.tile(np.float32(own), (len(t), 1))
        matrix[:, index] = t
        deltas, gates = on_tune.deltas(matrix)
        refused = np.array([bool(gate.reason) for gate in gates])
        supported = np.array(curve["supported"])
        assert not (supported & refused).any()
        assert (supported | refused).mean() > 0.98  # a best point between is not shown where a neighbour is refused
        for name in names:
            shown = np.array([np.nan if value is None else value for value in curve["delta"][name]])
            assert (np.isnan(shown) == ~supported).all()
            np.testing.assert_allclose(shown[supported], deltas[name][supported], atol=1e-5)


def test_curves_keep_their_maximum(study, details):
    _, (on_tune, _), entries, production = study
    own = np.array([entries[1].tune.weights[part] for part in on_tune.parts])
    whole = sweep(on_tune.sums, own, 2, *production.bounds["pcvr"], ["conversions"])
    base = sweep(on_tune.sums, np.array([0.1, 1, 0.1]), 2, 0.0999999, 0.1000001, ["conversions"])
    best = whole.values["conversions"].max() / base.values["conversions"][0] - 1
    drawn = [value for value in details["sensitivity"]["curves"][2]["delta"]["conversions"] if value is not None]
    assert max(drawn) == pytest.approx(best, abs=1e-5)


def test_flat_region(study):
    _, (on_tune, _), _, production = study
    # A weight that sets the order by noise alone moves nothing for sure; one on the way to a better order does.
    constant = replace(on_tune.sums, coefficients={**on_tune.sums.coefficients})
    for name in ("conversions", "clicks"):
        constant.coefficients[name] = np.ones_like(constant.coefficients[name])
    evaluator = Evaluator(on_tune.log, production)
    evaluator.sums = constant  # each place holds one candidate: every order is worth the same
    for curve in sensitivity_section(evaluator, production, "conversions", ["conversions"], {})["curves"]:
        t, supported = np.array(curve["t"]), np.array(curve["supported"])
        low, high = curve["flat"]
        assert low <= curve["setting"] <= high
        assert supported[(t >= low) & (t <= high)].all()
        # It ends where the log supports no more, or the bounds do.
        assert low == t[0] or not supported[np.searchsorted(t, low) - 1]
        assert high == t[-1] or not supported[np.searchsorted(t, high, side="right")]
    start = replace(production, weights={"similarity": 0.1, "pctr": 1.0, "pcvr": 0.0})
    curve = sensitivity_section(on_tune, start, "conversions", ["conversions"], {})["curves"][2]
    assert "flat" not in curve  # the best is surely better than no pcvr at all
    # Where a guardrail allows no pcvr (its objective falls the more pcvr weighs), none is the best that is allowed.
    against = np.exp(-on_tune.sums.terms[2])
    evaluator.sums = replace(on_tune.sums, coefficients={**on_tune.sums.coefficients, "clicks": against})
    names = ["conversions", "clicks"]
    curve = sensitivity_section(evaluator, start, "conversions", names, {})["curves"][2]
    least = curve["delta"]["clicks"][curve["t"].index(0.0)]
    curve = sensitivity_section(evaluator, start, "conversions", names, {"clicks": least - 1e-5})["curves"][2]
    assert curve["flat"][0] <= 0 <= curve["flat"][1] < 0.5


def test_refused_settings_have_no_numbers(details):
    assert [row["setting"] for row in details["diversity"]["rows"]] == ["production", "setting 1", "setting 2"]
    assert details["trust"]["estimators"][3] == {"setting": "setting 3"}
    told = details["trust"]["estimators"][1]
    assert set(told) == {"setting", "E2", "E3", "E5", "E6"}
    assert told["E6"] == pytest.approx(told["E3"], abs=0.03)


def test_trust(study, details):
    logs, (_, on_test), entries, _ = study
    weights = details["trust"]["weights"]
    assert sum(weights["counts"]) == logs[1].requests
    assert len(weights["edges"]) == len(weights["counts"]) + 1
    assert details["trust"]["examination"] == {"method": "stated", "theta": [1.0, 0.8, 0.6, 0.4], "error": []}
    assert details["trust"]["estimators"][1]["E3"] == entries[1].test.estimates["conversions"].delta


def test_examples_order_as_the_fusion_does(study, details):
    (_, log), _, entries, production = study
    found = details["examples"]
    assert found["parts"] == ["similarity", "pctr", "pcvr"]
    assert len(found["requests"]) == 20
    setting = replace(production, weights=entries[1].test.weights)
    weights = [setting.weights[part] for part in found["parts"]]
    score = np.asarray(fuse(log.parts, setting))
    for request in found["requests"]:
        rows = slice(*log.offsets[int(request["request"]) : int(request["request"]) + 2])
        order = np.argsort(-(np.array(request["terms"]) @ weights), kind="stable")
        assert order.tolist() == np.argsort(-score[rows], kind="stable").tolist()
        assert request["items"] == [str(item) for item in log.item_id[log.item[rows]]]
        assert request["click"] == log.click[rows].tolist()
        assert request["slots"] == 4 and request["candidates"] == 12
    assert sum(max(request["click"]) for request in found["requests"]) == 16
    assert sum(max(request["conversion"]) for request in found["requests"]) == 8


def test_examples_of_many_candidates_keep_what_is_shown():
    n = 150
    log = ReplayLog(
        offsets=np.array([0, n]),
        request_id=np.array([7]),
        timestamp=np.arange(1),
        user=np.arange(1),
        parts={"pctr": np.linspace(0.1, 0.2, n).astype(np.float32)},  # the best is the last row
        item=np.arange(n),
        position=np.where(np.arange(n) == 145, 0, -1).astype(np.int32),
        click=(np.arange(n) == 145).astype(np.int8),
        conversion=np.zeros(n, np.int8),
        value=np.zeros(n, np.float32),
        mature=np.ones(1, bool),
        new=np.zeros(n, bool),
    )
    production = FusionWeights("sum", {"pctr": 1.0}, {"pctr": 0}, {"pctr": 1})
    found = slates(log, production, {"production": production})["production"]
    (request,) = examples_section(log, production, found, found)["requests"]
    assert request["candidates"] == n
    assert request["items"] == [str(item) for item in (*range(98), 145, 149)]
    assert sum(request["click"]) == 1


def test_keep_production_shows_the_best_tested(study):
    logs, on, entries, production = study
    found = make_details(*logs, *on, entries, production, "conversions", {"clicks": -0.01}, "")
    low = {entry.name: entry.test.estimates["conversions"].low for entry in entries[1:3]}
    assert found["setting"] == max(low, key=low.get)


def test_all_refused(study):
    logs, on, entries, production = study
    found = make_details(*logs, *on, [entries[0], entries[3]], production, "conversions", {}, "")
    json.dumps(found, allow_nan=False)
    assert found["setting"] == "production"
    assert "movers" not in found and "segments" not in found
    assert [row["setting"] for row in found["diversity"]["rows"]] == ["production"]


def test_a_log_of_what_was_shown_alone(study, world):
    # Nothing to choose from: no slates to compare, no propensities, no weights.
    rows = np.flatnonzero(world.log.position >= 0)
    log = world.log
    alone = ReplayLog(
        offsets=np.arange(0, len(rows) + 1, 4),
        request_id=log.request_id,
        timestamp=log.timestamp,
        user=log.user,
        parts={name: column[rows] for name, column in log.parts.items()},
        **{name: getattr(log, name)[rows] for name in ("item", "position", "click", "conversion", "value", "new")},
        mature=log.mature,
        window=log.window,
    )
    evaluator = Evaluator(alone, world.production)
    settings = [world.production, world.setting(pctr=0.6, pcvr=1)]
    entries = [
        Entry(name, (), found, found)
        for name, found in zip(("production", "setting 1"), evaluator.evaluate(settings), strict=True)
    ]
    found = make_details(alone, alone, evaluator, evaluator, entries, world.production, "clicks", {}, "setting 1")
    json.dumps(found, allow_nan=False)
    assert set(found) == {"setting", "sensitivity", "calibration", "quadrants", "trust"}
    assert set(found["trust"]) == {"estimators"}
    assert all(all(curve["supported"]) for curve in found["sensitivity"]["curves"])


def test_segments_flag_flips_and_refusals(study):
    _, (_, on_test), entries, production = study
    setting = replace(production, weights=entries[2].test.weights)
    real = segments_section(on_test, setting, entries[2].test)
    assert real["column"] == "age" and real["left_out"] == 0
    assert [(row["segment"], row["requests"]) for row in real["rows"]] == [("old", 2000), ("new", 1000)]
    for row in real["rows"]:
        assert row["estimates"]["clicks"]["high"] < 0 and row["flip"] == []  # clicks fall, as they do overall
    other = Evaluation(entries[2].test.weights, None, {"clicks": Estimate(1.0, 0.1, 0.2, 0.1, 0.3)})
    for row in segments_section(on_test, setting, other)["rows"]:
        assert row["flip"] == ["clicks"]
    refused = segments_section(on_test, replace(production, weights=entries[3].test.weights), entries[3].test)
    for row in refused["rows"]:
        assert row["refused"] and row["estimates"] == {}


def tiny() -> ReplayLog:
    """Two requests of three candidates and two places; items 0 to 3."""
    return ReplayLog(
        offsets=np.array([0, 3, 6]),
        request_id=np.array(["r0", "r1"], object),
        timestamp=np.arange(2),
        user=np.arange(2),
        parts={"pctr": np.float32([0.5, 0.2, 0.1, 0.1, 0.2, 0.5]), "pcvr": np.full(6, 0.5, np.float32)},
        item=np.array([0, 1, 2, 0, 1, 3]),
        position=np.int32([0, 1, -1, -1, 1, 0]),
        click=np.int8([1, 0, 0, 0, 0, 1]),
        conversion=np.int8([0, 0, 0, 0, 0, 1]),
        value=np.zeros(6, np.float32),
        mature=np.array([False, True]),
        new=np.array([False, False, True, False, False, True]),
        examination=np.array([1.0, 0.5]),
        category=np.int32([0, 0, 1, 0, 0, 1]),
        category_column="kind",
        category_names=["x", "y"],
        item_id=pd.Index(["a", "b", "c", "d"]),
    )


def test_slates_and_what_is_in_them_by_hand():
    log = tiny()
    production = FusionWeights("sum", {"pctr": 1.0, "pcvr": 0.0}, {"pctr": 0, "pcvr": 0}, {"pctr": 1, "pcvr": 1})
    upside_down = replace(production, weights={"pctr": -1.0, "pcvr": 0.0})
    shown = slates(log, production, {"production": production, "other": upside_down})
    assert shown["production"].tolist() == [[0, 1], [5, 4]]  # items a b, d b
    assert shown["other"].tolist() == [[2, 1], [3, 4]]  # items c b, a b
    assert looks(log, shown["production"]).tolist() == [1, 1, 0, 1]
    found = diversity_section(log, shown)
    first, second = found["rows"]
    assert (found["category"], found["unit"]) == ("kind", "nats")
    # Categories x x | y x: entropies 0 and log 2.
    assert first["entropy"] == pytest.approx(np.log(2) / 2)
    # Looks 0 1 1 1 over four items: Gini (-3 * 0 - 1 + 1 + 3) / (4 * 3).
    assert first["gini"] == pytest.approx(3 / 12)
    assert (first["coverage"], first["long_tail"], first["overlap"]) == (0.75, 0.25, 1.0)
    assert second["overlap"] == 0.5  # b both times
    movers = movers_section(log, shown["production"], shown["other"])
    # A thousand requests: d had 1 look of 2 requests and gets none, c the other way round; a and b keep theirs.
    assert movers["gaining"] == [{"item": "c", "category": "y", "before": 0.0, "after": 500.0}]
    assert movers["losing"] == [{"item": "d", "category": "y", "before": 500.0, "after": 0.0}]


def test_slates_follow_the_segment_and_break_ties_by_row():
    log = replace(tiny(), segment=np.array(["s", "t"], object))
    flat = FusionWeights("sum", {"pctr": 1.0, "pcvr": 0.0}, {"pctr": 0, "pcvr": 0}, {"pctr": 1, "pcvr": 1})
    turned = replace(flat, segments={"t": {"pctr": -2.0}})
    assert slates(log, flat, {"turned": turned})["turned"].tolist() == [[0, 1], [3, 4]]
    nothing = replace(flat, weights={"pctr": 0.0, "pcvr": 1.0})
    assert slates(log, flat, {"ties": nothing})["ties"].tolist() == [[0, 1], [3, 4]]


def test_calibration_by_hand():
    found = calibration_section(tiny())["heads"]
    # Shown: a .5 * 1, b .2 * .5, b .2 * .5, d .5 * 1: predicted 1.2 clicks of 2 that happened.
    assert found["pctr"]["pcoc"] == pytest.approx(1.2 / 2)
    assert [row["rows"] for row in found["pctr"]["bins"]] == [1, 1, 1, 1]
    assert found["pctr"]["bins"][0] == pytest.approx({"predicted": 0.1, "observed": 0.0, "rows": 1})
    # Final: the second request alone: (.5 + .1) * .5 conversions predicted, 1 happened.
    assert found["pctcvr"]["pcoc"] == pytest.approx(0.3)
    blind = replace(tiny(), examination=np.array([1.0]))  # it says nothing of the second place: every place counts 1
    assert calibration_section(blind)["heads"]["pctr"]["pcoc"] == pytest.approx(1.4 / 2)
    assert looks(blind, np.array([[0, 1], [5, 4]])).tolist() == [1, 2, 0, 1]
    nothing = replace(tiny(), click=np.zeros(6, np.int8), conversion=np.zeros(6, np.int8))
    assert calibration_section(nothing)["heads"] == {}


def test_smoothing():
    # Spread far above chance keeps the raw rates; no spread gives the mean; nothing tried gives the mean.
    spread = smoothed(np.array([0, 500, 1000]), np.array([1000, 1000, 1000]))
    np.testing.assert_allclose(spread, [0, 0.5, 1], atol=0.01)
    np.testing.assert_allclose(smoothed(np.array([10, 10, 0]), np.array([100, 100, 0])), [0.1, 0.1, 0.1])
    assert np.isnan(smoothed(np.zeros(2), np.zeros(2))).all()


def test_smoothing_finds_the_strength_of_a_beta():
    rng = np.random.default_rng(0)
    trials = rng.integers(20, 200, 4000)
    events = rng.binomial(trials, rng.beta(0.1 * 50, 0.9 * 50, 4000))
    rate = smoothed(events, trials)
    # rate = (mean s + e) / (s + n): the strength out of any item.
    strength = np.median((events - rate * trials) / (rate - events.sum() / trials.sum()))
    assert strength == pytest.approx(50, rel=0.2)


def test_quadrants_by_hand():
    found = quadrants_section(tiny())
    assert found["ctr_line"] == 0.5  # two clicks of four impressions
    assert found["cvr_line"] == 1.0  # one final click, converted
    assert {row["item"]: row["impressions"] for row in found["items"]} == {"a": 1, "b": 2, "d": 1}
    assert quadrants_section(replace(tiny(), mature=np.zeros(2, bool))) == {}


def test_examples_prefer_what_differs():
    log = tiny()
    same = np.array([[0, 1], [5, 4]])
    other = np.array([[0, 1], [3, 4]])
    assert choose_examples(log, same, other).tolist() == [0, 1]  # both: there are but two
