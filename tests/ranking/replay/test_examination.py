from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.simulator import load_world, simulate
from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError
from ranking.replay.examination import Examination, estimate_examination, examination_window, read_examination
from ranking.replay.log import ReplayLog
from ranking.replay.propensity import place_propensities

THETA = np.array([1.0, 0.7, 0.5, 0.3])


def make_log(position, click, **changes) -> ReplayLog:
    """A log of requests `[R, n]`; each request has a user of its own."""
    requests, candidates = position.shape
    columns = {
        "offsets": np.arange(requests + 1) * candidates,
        "request_id": np.arange(requests),
        "timestamp": np.arange(requests),
        "user": np.arange(requests),
        "parts": {"pctr": np.zeros(position.size, np.float32)},
        "item": np.tile(np.arange(candidates), requests),
        "position": position.ravel().astype(np.int32),
        "click": click.ravel().astype(np.int8),
        "conversion": np.zeros(position.size, np.int8),
        "value": np.zeros(position.size, np.float32),
        "mature": np.ones(requests, bool),
        "new": np.zeros(position.size, bool),
    }
    return ReplayLog(**{**columns, **changes})


def simulated(seed, *, requests=500, personal=True, theta=THETA) -> ReplayLog:
    """Eight candidates, four places, Plackett-Luce; what has a better score is clicked more often when looked at.

    `personal`: scores differ from request to request; else an item has one score and one chance, whoever asks.
    """
    rng = np.random.default_rng(seed)
    shape = (requests, 8)
    score = rng.normal(size=shape) if personal else np.tile(np.linspace(-1, 1, 8), (requests, 1))
    relevance = 1 / (1 + np.exp(0.5 - 1.2 * score - (0.5 * rng.normal(size=shape) if personal else 0)))
    order = np.argsort(-(score + rng.gumbel(size=shape)), axis=1)[:, : len(theta)]
    position = np.full(shape, -1)
    np.put_along_axis(position, order, np.arange(len(theta))[None], axis=1)
    click = rng.random(shape) < np.where(position >= 0, np.asarray(theta)[position], 0) * relevance
    log = make_log(position, click, user=rng.integers(0, requests // 3, requests))
    places = place_propensities(score.ravel(), log.offsets, log.position, len(theta), temperature=1.0)
    return replace(log, places=places)


def two_places(users) -> ReplayLog:
    """70 requests of one item, at place 0 with chance 3/4 and at place 1 with 1/4; 60 clicks at 0 and 10 at 1."""
    position = np.where(np.arange(70) < 60, 0, 1)[:, None]
    places = np.tile(np.array([0.75, 0.25], np.float32), (70, 1))
    return make_log(position, np.ones((70, 1)), places=places, user=users)


def test_two_places_by_hand():
    # Given a click, the odds of place 1 are theta / 3 and were 10 / 60: theta = .5.
    # log theta is a log odds, of variance 1/10 + 1/60 = 7/60; 70 users: times 70/69.  theta: times theta^2 = 1/4.
    found = estimate_examination(two_places(np.arange(70)), minimum_clicks=5)
    np.testing.assert_allclose(found.theta, [1.0, 0.5], rtol=1e-9)
    np.testing.assert_allclose(found.covariance, [[0, 0], [0, 0.25 * 7 / 60 * 70 / 69]], rtol=1e-6, atol=1e-15)
    assert (found.method, found.clicks) == ("estimated", 70)


def test_clicks_of_one_user_count_as_one_draw():
    # 35 users of two clicks each, both at one place: each score doubles, their squares sum to twice as much.
    found = estimate_examination(two_places(np.arange(70) // 2), minimum_clicks=5)
    np.testing.assert_allclose(found.theta, [1.0, 0.5], rtol=1e-9)
    np.testing.assert_allclose(found.covariance[1, 1], 0.25 * 2 * 7 / 60 * 35 / 34, rtol=1e-6)


def test_harvested_by_hand():
    # Item 0: 4 impressions at place 0, 4 at place 1, all clicked at 0 and two at 1. The odds were 1: theta = 2 / 4.
    # Item 1 stays at place 1 and tells nothing, however often it is clicked.
    position = np.array([[0, 1]] * 4 + [[1, -1]] * 4)
    click = np.array([[1, 1]] * 4 + [[1, 0]] * 2 + [[0, 0]] * 2)
    found = estimate_examination(make_log(position, click), minimum_clicks=1)
    np.testing.assert_allclose(found.theta, [1.0, 0.5], rtol=1e-9)
    assert found.method == "harvested"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(30)))
def test_neither_the_order_of_requests_nor_requests_without_clicks_matter(seed, order):
    log = simulated(seed, requests=200)
    order = np.concatenate([order, np.arange(30, 200)])
    clicked = np.bincount(log.request_of_row, weights=log.click, minlength=200) > 0
    wanted = estimate_examination(log, minimum_clicks=1)
    for other in (log.take(order), log.take(clicked)):
        found = estimate_examination(other, minimum_clicks=1)
        np.testing.assert_allclose(found.theta, wanted.theta, rtol=1e-6)
        np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-5, atol=1e-12)


@pytest.mark.slow
def test_theta_is_found_without_bias_and_its_error_is_as_told():
    found = [estimate_examination(simulated(seed), minimum_clicks=10) for seed in range(250)]
    log_theta = np.log([each.theta[1:] for each in found])  # [logs, 3]: the scale on which it is about normal
    spread = log_theta.std(axis=0, ddof=1) / np.sqrt(len(found))
    # The logarithm has a bias of the order of its variance: one click more or less at a place, not symmetric.
    assert (np.abs(log_theta.mean(axis=0) - np.log(THETA[1:])) < 5 * spread + 0.01).all()
    distance = []
    for each, eta in zip(found, log_theta, strict=True):
        covariance = (each.covariance / np.outer(each.theta, each.theta))[1:, 1:]
        away = eta - np.log(THETA[1:])
        distance.append(away @ np.linalg.solve(covariance, away))
    # chi squared with 3 degrees of freedom: mean 3, variance 6
    assert abs(np.mean(distance) - 3) < 5 * np.sqrt(6 / len(found))


def z_scores(found: Examination, theta) -> np.ndarray:
    return ((found.theta - theta) / np.sqrt(np.maximum(np.diag(found.covariance), 1e-30)))[1:]


def test_better_items_on_top_do_not_fool_it():
    log = simulated(0, requests=20_000)
    found = estimate_examination(log)
    assert np.abs(z_scores(found, THETA)).max() < 5 and np.sqrt(found.covariance[3, 3]) < 0.01
    shown = log.position >= 0
    clicks = np.bincount(log.position[shown], weights=log.click[shown]) / 20_000
    naive = clicks / clicks[0]
    assert (naive[1:] < 0.93 * THETA[1:]).all()  # the click rate by place is: better items stand higher


def test_harvesting_needs_places_that_do_not_depend_on_who_asks():
    alike = replace(simulated(1, requests=20_000, personal=False), places=None)
    assert np.abs(z_scores(estimate_examination(alike), THETA)).max() < 5
    personal = replace(simulated(1, requests=20_000), places=None)
    # Here an item is on top for those who like it: the assumption fails, and so does the estimate.
    assert z_scores(estimate_examination(personal), THETA).max() < -5


def test_one_policy_a_request_and_places_that_some_requests_lack():
    rng = np.random.default_rng(3)
    requests, temperature = 20_000, np.resize([0.5, 2.0, np.nan], 20_000)
    epsilon = np.where(np.isnan(temperature), 0.5, np.nan)
    score = rng.normal(size=(requests, 6))
    noisy = score / np.nan_to_num(temperature, nan=1.0)[:, None] + rng.gumbel(size=score.shape)
    uniform = rng.random(score.shape)
    sorted_key = np.where((rng.random(requests) < 0.5)[:, None], uniform, score)
    key = np.where(np.isnan(temperature)[:, None], sorted_key, noisy)
    position = np.argsort(np.argsort(-key, axis=1), axis=1)
    slots = np.resize([3, 2], requests)[:, None]
    position[position >= slots] = -1
    theta = np.array([1.0, 0.6, 0.4])
    click = rng.random(score.shape) < np.where(position >= 0, theta[position], 0) / (1 + np.exp(-score))
    log = make_log(position, click)
    places = place_propensities(score.ravel(), log.offsets, log.position, 3, temperature=temperature, epsilon=epsilon)
    found = estimate_examination(replace(log, places=places))
    assert np.abs(z_scores(found, theta)).max() < 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda log: replace(log, click=np.zeros_like(log.click)), "at least 30 clicks .* Received: 0 at place 0"),
        (lambda log: log.take(np.arange(60)), "at least 30 clicks .* at place 3"),
        (lambda log: replace(log, position=np.where(log.position == 0, 0, -1), places=None), "one place only"),
        (lambda log: replace(log, places=np.eye(4, dtype=np.float32)[log.position[log.position >= 0]]), "hardly vary"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(UserError, match=words):
        estimate_examination(change(simulated(0)))


def test_no_clicks_needed_is_refused():
    with pytest.raises(UserError, match="minimum_clicks=0"):
        estimate_examination(simulated(0), minimum_clicks=0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    world = load_world("demo")
    world = replace(
        world,
        users=replace(world.users, count=400),
        items=replace(world.items, count=60, born_per_day=4),
        traffic=replace(world.traffic, requests=8000, candidates=12, examination=(1.0, 0.8, 0.6, 0.5)),
    )
    return simulate(world, tmp_path_factory.mktemp("world") / "data")


def test_theta_of_the_simulator_on_a_window_of_its_own(demo):
    data, told = Dataset(demo), []
    start, end = examination_window(data)
    assert end == data.schema.windows["tune"][0] and start == data.requests["timestamp"].min()
    found = read_examination(data, progress=lambda *step: told.append(step))
    assert np.abs(z_scores(found, np.array([1.0, 0.8, 0.6, 0.5]))).max() < 5
    assert found.method == "estimated" and told[-1] == ("examination", 2, 2)
    log = ReplayLog.from_dataset(data, "tune").with_examination(found)
    sums = np.add.reduceat(log.exposure_propensity, log.offsets[:-1])
    np.testing.assert_allclose(sums, found.theta.sum(), rtol=1e-6)


def test_windows_and_logs_without_parts(demo, tmp_path):
    data = Dataset(demo)
    tables = {"impressions": data.impressions, "users": data.users, "items": data.items}
    bare = data.candidates[["request_id", "item_id", "score", "position"]]
    toml = (demo / "dataset.toml").read_text()
    one = write_dataset(tmp_path / "one", toml, {**tables, "requests": data.requests, "candidates": bare})
    wanted = read_examination(data)
    np.testing.assert_allclose(read_examination(Dataset(one)).theta, wanted.theta, rtol=1e-9)
    none = write_dataset(tmp_path / "none", toml, tables)
    assert read_examination(Dataset(none)).method == "harvested"
    late = data.requests[data.requests["timestamp"] >= data.schema.windows["tune"][0]]
    two = write_dataset(tmp_path / "two", toml, {**tables, "requests": late, "candidates": bare})
    with pytest.raises(UserError, match="requests with candidates before the window `tune`. Received: none"):
        examination_window(Dataset(two))
    unnamed = toml.replace("\ntune = ", "\n# ").replace("\ntest = ", "\n# ")
    three = write_dataset(tmp_path / "three", unnamed, tables)
    with pytest.raises(UserError, match="`windows` of dataset.toml should have `tune`"):
        examination_window(Dataset(three))
