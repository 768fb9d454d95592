"""Served, logged, clicked, replayed: what `serving.slate` writes is what the replay reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ranking.data.served import import_served
from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.replay.check import check_log
from ranking.replay.estimators import E3ExposureIPS, E4PositionIPS
from ranking.replay.log import ReplayLog
from ranking.replay.propensity import plackett_luce_propensities
from serving.slate import Shown, Slate, make_slate
from serving.slate_log import SlateLog

THETA = (1.0, 0.75, 0.55, 0.4)
DAY = 86_400_000
REQUESTS, CANDIDATES, USERS, ITEMS = 3000, 14, 500, 300
LARGE = 2**53 + 1  # ids that a float would damage
TOML = """schema_version = 1
[ids]
user = "int64"
item = "string"
[labels]
attribution_hours = { conversion = 24 }
observed_until = 1970-01-20
[windows]
train = [1970-01-01, 1970-01-07]
tune = [1970-01-07, 1970-01-12]
[features.context]
tab = { kind = "categorical" }
[replay]
examination = [1.0, 0.75, 0.55, 0.4]
"""


@dataclass
class Served:
    """A log on disk with what it must say: the slates, and each candidate's P(click given a look) by request and id."""

    dataset: Dataset
    shown: dict[str, Shown]
    worth: dict[str, dict[str, float]]
    weights: FusionWeights


def parts_of(generator: np.random.Generator, worth: np.ndarray) -> dict[str, np.ndarray]:
    logit = np.log(worth / (1 - worth)) + generator.normal(0, 0.7, worth.shape)
    similarity = np.tanh(0.5 * (np.log(worth / (1 - worth)) + 1 + generator.normal(0, 1, worth.shape)))
    return {
        "similarity": similarity.astype(np.float32),
        "has_similarity": generator.random(worth.shape) < 0.8,
        "pctr": (1 / (1 + np.exp(-logit))).astype(np.float32),
        "pcvr": generator.uniform(0.1, 0.6, worth.shape).astype(np.float32),
    }


def serve(folder: Path, slate: Slate, seed: int, like: Path) -> Served:
    """Requests of a model that is wrong by some noise, and users who look at places with THETA."""
    generator = np.random.default_rng(seed)
    worth = 1 / (1 + np.exp(-generator.normal(-0.8, 1, (REQUESTS, CANDIDATES))))
    parts = parts_of(generator, worth)
    flat = {name: part.ravel() for name, part in parts.items()}
    weights = FusionWeights.fit(flat, "product", {"similarity": 0.4, "pctr": 1.0, "pcvr": 0.2}, "model")
    score = np.asarray(fuse(flat, weights), np.float32).reshape(worth.shape)
    shown, chances, clicks = {}, {}, []
    with SlateLog(folder / "log", item_id="string", context={"tab": "categorical"}, rows=9000, limit=10**6) as log:
        for r in range(REQUESTS):
            item = generator.choice(ITEMS, CANDIDATES, replace=False)
            ids = [f"0{number}/新" for number in item]
            candidates = {name: part[r] for name, part in parts.items()}
            candidates |= {"item_id": ids, "score": score[r], "category": item % 9, "new": item % 5 == 0}
            found = make_slate(candidates, slate, generator, seen={ids[3]})
            time = int(DAY * (1 + 10 * r / REQUESTS))
            name = f"r/{r}"
            log.add(
                found,
                user_id=LARGE + int(generator.integers(USERS)),
                request_id=name,
                timestamp=time,
                policy_id="7",
                context={"tab": str(r % 3)},
            )
            shown[name], chances[name] = found, dict(zip(ids, worth[r].tolist(), strict=True))
            looked = generator.random(len(found.slate)) < np.array(THETA)[: len(found.slate)]
            for row in found.slate[looked & (generator.random(len(found.slate)) < worth[r, found.slate])]:
                converted = time + 9000 if generator.random() < 0.4 else None
                clicks.append(
                    {"request_id": name, "item_id": ids[row], "click_time": time + 5, "conversion_time": converted}
                )
    table = pd.DataFrame(clicks).astype({"conversion_time": "Int64"})
    table.to_csv(folder / "clicks.csv", index=False)
    report = import_served(folder / "log", folder / "clicks.csv", like, folder / "data")
    assert report.read == report.accepted == sum(len(found.slate) for found in shown.values())
    assert report.clicks == len(clicks) and report.conversions == table["conversion_time"].notna().sum()
    assert not any(report.notes.values())
    weights.save(folder / "data" / "production_weights.json")
    return Served(Dataset(folder / "data"), shown, chances, weights)


@pytest.fixture(scope="module")
def like(tmp_path_factory):
    row = {"request_id": "0", "timestamp": 0, "user_id": 1, "item_id": "a", "click": 0, "conversion": 0, "tab": "0"}
    return write_dataset(tmp_path_factory.mktemp("like") / "data", TOML, {"impressions": pd.DataFrame([row])})


@pytest.fixture(scope="module")
def explored(tmp_path_factory, like):
    slate = Slate(4, "plackett_luce", temperature=0.8, cap=2, min_similarity=-0.9, examination=THETA)
    return serve(tmp_path_factory.mktemp("explored"), slate, 1, like)


@pytest.fixture(scope="module")
def reserved(tmp_path_factory, like):
    slate = Slate(4, "plackett_luce", temperature=0.8, cap=2, reserved=(2,), examination=THETA)
    return serve(tmp_path_factory.mktemp("reserved"), slate, 2, like)


def whole(served: Served) -> ReplayLog:
    return ReplayLog.from_dataset(served.dataset, (0, 20 * DAY))


@pytest.mark.parametrize("world", ["explored", "reserved"])
def test_what_was_served_is_what_is_read(world, request):
    served = request.getfixturevalue(world)
    log = whole(served)
    assert log.requests == REQUESTS and log.request_id.tolist() == [f"r/{r}" for r in range(REQUESTS)]
    assert log.user_id.min() >= LARGE
    shown = [served.shown[name] for name in log.request_id]
    np.testing.assert_array_equal(np.diff(log.offsets), [len(found.item_id) for found in shown])

    def logged(of):
        return np.concatenate([of(found) for found in shown])

    assert log.item_id[log.item].tolist() == logged(lambda found: found.item_id).tolist()
    score = logged(lambda found: found.score)
    np.testing.assert_array_equal(log.logged_score.view(np.int32), score.view(np.int32))
    np.testing.assert_array_equal(log.position, logged(lambda found: found.position))
    np.testing.assert_array_equal(log.parts["pctr"], logged(lambda found: found.parts["pctr"]))
    known, similarity = log.parts["has_similarity"] > 0, logged(lambda found: found.parts["similarity"])
    np.testing.assert_array_equal(known, ~np.isnan(similarity))
    np.testing.assert_array_equal(log.parts["similarity"][known], similarity[known])
    np.testing.assert_array_equal(log.position_propensity, logged(lambda found: found.position_propensity))
    np.testing.assert_array_equal(log.exposure_propensity, logged(lambda found: found.exposure_propensity))
    # and the replay's own way to the propensities, by another kernel
    at = log.position >= 0
    np.testing.assert_allclose(
        log.places[np.arange(at.sum()), log.position[at]], log.position_propensity[at], rtol=1e-5
    )
    np.testing.assert_allclose(log.places @ np.array(THETA), log.exposure_propensity[at], rtol=1e-5)


def test_reading_the_propensities_from_the_policy_gives_those_that_were_logged(explored, reserved):
    for served in (explored, reserved):
        bare = Dataset(served.dataset.path)
        bare.candidates.drop(columns=["position_propensity", "exposure_propensity"], inplace=True)
        made, stated = whole(Served(bare, {}, {}, served.weights)), whole(served)
        np.testing.assert_allclose(made.exposure_propensity, stated.exposure_propensity, atol=1e-10)


def test_propensities_of_another_policy_are_refused(explored, reserved):
    for served, change in ((explored, {"temperature": 0.9}), (reserved, {"temperature": 0.9}), (reserved, {"pool": 0})):
        other = Dataset(served.dataset.path)
        for name, value in change.items():
            (other.candidates if name == "pool" else other.requests)[name] = value
        with pytest.raises(UserError, match="of another policy"):
            whole(Served(other, {}, {}, served.weights))


def test_check_finds_nothing_wrong(explored, reserved):
    found = check_log(explored.dataset)
    assert {finding.level for finding in found.findings} == {"ok"}, [vars(finding) for finding in found.findings]
    assert not found.estimators["E3"] and not found.estimators["E4"]
    found = check_log(reserved.dataset)
    assert {finding.level for finding in found.findings} == {"ok"}, [vars(finding) for finding in found.findings]
    assert any(finding.topic == "reserved" and "reserved places" in finding.line for finding in found.findings)
    assert not found.estimators["E3"] and "reserved places" in found.estimators["E4"]
    with pytest.raises(UserError, match="reserved places"):
        E4PositionIPS().sums(whole(reserved), reserved.weights)


@pytest.mark.parametrize("world", ["explored", "reserved"])
def test_e3_tells_what_other_weights_and_the_policy_itself_would_earn(world, request):
    served = request.getfixturevalue(world)
    log = whole(served)
    worth = np.concatenate(
        [[served.worth[name][item] for item in served.shown[name].item_id] for name in log.request_id.tolist()]
    )
    theta = np.array(THETA)
    # the logging policy itself: expected looks are its exposures, so that its clicks come back
    clicks = np.bincount(log.request_of_row, weights=log.click, minlength=log.requests)
    expected = np.bincount(log.request_of_row, weights=log.exposure_propensity * worth, minlength=log.requests)
    assert abs((clicks - expected).mean()) < 5.5 * (clicks - expected).std() / np.sqrt(log.requests)
    sums = E3ExposureIPS().sums(log, served.weights)
    settings = np.array([[0.4, 1.0, 0.2], [1.0, 0.3, 0.0], [0.0, 0.3, 1.0]], np.float32)
    found = sums.values(settings)
    for row, setting in enumerate(settings):
        score = setting @ sums.terms
        order, request = np.lexsort((-score, log.request_of_row)), log.request_of_row
        place = np.arange(len(order)) - log.offsets[request]
        shown = place < log.slots[request]  # the best of each request, equal ones in their order
        looks = theta[place[shown]] * worth[order[shown]]
        truth = np.bincount(request[shown], weights=looks, minlength=log.requests)
        away = found["clicks"][row] - truth
        assert abs(away.mean()) < 5.5 * away.std() / np.sqrt(log.requests)
        weight = found["weight"][row]  # 1 in expectation where everything could be seen
        assert abs(weight.mean() - 1) < 5.5 * weight.std() / np.sqrt(log.requests)


def test_a_small_log_by_hand(tmp_path, like):
    # Places 0 and 1, the second reserved. Others: odds 3 : 1 for place 0. New: one item, sure of place 1.
    slate = Slate(2, "plackett_luce", temperature=1.0, reserved=(1,))
    candidates = {"item_id": ["a", "b", "n"], "score": [np.log(3), 0, 0], "new": [0, 0, 1], "pctr": [0.3, 0.2, 0.1]}
    np.testing.assert_allclose(plackett_luce_propensities([np.log(3), 0], 1)[:, 0], [0.75, 0.25])
    with SlateLog(tmp_path / "log", item_id="string", context={"tab": "categorical"}) as log:
        for r in range(8):
            log.add(
                make_slate(candidates, slate, np.random.default_rng(r)),
                user_id=r,
                request_id=f"{r}",
                context={"tab": 0},
            )
        log.add(make_slate(candidates, slate, np.random.default_rng(0)), user_id=0, request_id="7", context={"tab": 0})
    pd.DataFrame({"request_id": ["0", "0", "0", "9"], "item_id": ["n", "n", "x", "n"]}).to_parquet(
        tmp_path / "c.parquet"
    )
    report = import_served(tmp_path / "log", tmp_path / "c.parquet", like, tmp_path / "data")
    assert report.read == 18 and report.accepted == 14 and report.rejected == {"request_id logged twice": 4}
    assert report.clicks == 1 and sorted(report.notes.values()) == [1, 2]
    read = ReplayLog.from_dataset(Dataset(tmp_path / "data"), (0, 1 << 50))
    own = np.where(read.position >= 0, np.array([0.75, 0.25, 1.0] * 7), np.nan)
    np.testing.assert_allclose(read.position_propensity, own, rtol=1e-7)
    np.testing.assert_allclose(read.exposure_propensity, np.array([0.75, 0.25, 0.75] * 7), rtol=1e-7)  # THETA[1] = .75
