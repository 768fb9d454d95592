import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from ranking.data.population import draw_population
from ranking.data.simulator import OBJECTIVES, load_world, simulate, true_value
from ranking.data.tables import Dataset
from ranking.data.traffic import Logits, draw_requests
from ranking.errors import UserError
from ranking.fusion import FusionWeights, fuse
from ranking.replay.propensity import plackett_luce_propensities

DEMO = load_world("demo")


def tiny(**policy):
    return dataclasses.replace(
        DEMO,
        users=dataclasses.replace(DEMO.users, count=400),
        items=dataclasses.replace(DEMO.items, count=60, born_per_day=4),
        traffic=dataclasses.replace(DEMO.traffic, requests=6000, candidates=12, examination=(1.0, 0.8, 0.6, 0.5)),
        policy=dataclasses.replace(DEMO.policy, **policy),
    )


@dataclasses.dataclass
class Log:
    path: object
    dataset: Dataset
    truth: pd.DataFrame
    candidates: pd.DataFrame
    offsets: np.ndarray


def read(path):
    dataset = Dataset(path)
    counts = dataset.candidates.groupby("request_id", sort=False).size()
    truth = path / "truth" / "impressions.parquet"
    return Log(
        path,
        dataset,
        pd.read_parquet(truth) if truth.exists() else None,
        pd.read_parquet(path / "truth" / "candidates.parquet"),
        np.append(0, counts.cumsum()),
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return read(simulate(tiny(), tmp_path_factory.mktemp("world") / "log"))


def within(found, expected, variance_sum, errors=5):
    """Whether two sums of independent rows agree within so many standard errors."""
    return abs(found - expected) < errors * np.sqrt(variance_sum)


def test_every_table_loads_and_is_valid(log):
    dataset = log.dataset
    for name in ("impressions", "users", "items", "behaviors", "candidates", "requests"):
        assert len(dataset.table(name))
    assert len(dataset.requests) == 6000 and len(dataset.impressions) == 6000 * 4 and len(log.candidates) == 6000 * 12
    assert len(dataset.users) == 400 and len(dataset.items) == 60 + 10 * 4
    assert dataset.schema.examination == (1.0, 0.8, 0.6, 0.5)
    assert not dataset.candidates.duplicated(["request_id", "item_id"]).any()
    assert set(dataset.impressions["item_id"]) <= set(dataset.items["item_id"])
    assert (dataset.impressions["item_id"] > 2**24).all() and (dataset.impressions["user_id"] > 2**32).all()


def test_clicks_and_conversions_follow_the_truth(log):
    impressions = log.dataset.impressions
    chance = log.truth["pctr"] * log.truth["examination"]
    assert within(impressions["click"].sum(), chance.sum(), (chance * (1 - chance)).sum())
    clicked = impressions["click"] == 1
    rate = log.truth["pcvr"][clicked]
    assert within(impressions["conversion"].sum(), rate.sum(), (rate * (1 - rate)).sum())
    assert not impressions["conversion"][~clicked].any()
    for bins, label, expected in (
        (pd.qcut(chance, 10, labels=False), impressions["click"], chance),
        (impressions["position"], impressions["click"], chance),
        (pd.qcut(rate, 4, labels=False), impressions["conversion"][clicked], rate),
    ):
        for place in np.unique(bins):
            inside = bins == place
            p = expected[inside]
            assert within(label[inside].sum(), p.sum(), (p * (1 - p)).sum())


def test_rates_are_met(log):
    chance = log.truth["pctr"] * log.truth["examination"]
    assert chance.mean() == pytest.approx(0.10, rel=2e-3)
    assert (chance * log.truth["pcvr"]).sum() / chance.sum() == pytest.approx(0.20, rel=2e-3)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_share_of_interactions_in_the_logit(share):
    # The logit is a + b with Var a / (Var a + Var b) = share. A linear fit of the logit on one column a user, an item
    # and day, and a category and tab takes b out, and of a only what so many columns take by chance.
    world = tiny()
    world = dataclasses.replace(world, feedback=dataclasses.replace(world.feedback, interaction_share=share))
    generator = np.random.default_rng(0)
    population = draw_population(world, generator)
    requests = draw_requests(world, population, generator)
    logit = Logits.of(world, population, requests).click
    assert logit.mean() == pytest.approx(0, abs=1e-9)
    tabs = len(world.traffic.tabs)
    keys = [
        np.broadcast_to(requests.user[:, None], logit.shape),
        requests.day[:, None] * len(population.items) + requests.item,
        population.category[requests.item] * tabs + requests.tab[:, None],
    ]
    left = logit.copy()
    for _ in range(30):
        for key in keys:
            key = key.ravel()
            mean = np.bincount(key, left.ravel()) / np.maximum(np.bincount(key), 1)
            left -= mean[key].reshape(logit.shape)
    assert left.var() / logit.var() == pytest.approx(share, abs=0.05)


def test_served_parts_are_noisy_views_of_the_truth(log):
    served = log.dataset.candidates
    assert served["similarity"].dropna().abs().max() <= 1
    for part in ("pctr", "pcvr"):
        assert served[part].mean() == pytest.approx(log.candidates[part].mean(), rel=0.05)  # about calibrated
        correlation = np.corrcoef(np.log(served[part]), np.log(log.candidates[part]))[0, 1]
        assert 0.7 < correlation < 0.95
    born = log.dataset.items.set_index("item_id")["born"]
    time = log.dataset.requests.set_index("request_id")["timestamp"]
    age = time.loc[served["request_id"]].to_numpy() - born.loc[served["item_id"]].to_numpy()
    assert (age >= 0).all()  # nothing is a candidate before it is born
    np.testing.assert_array_equal(served["similarity"].isna(), age < 86_400_000)
    assert (age < 86_400_000).any()


def test_features_know_part_of_the_truth(log):
    impressions = log.dataset.impressions.merge(log.dataset.items, on="item_id").merge(log.dataset.users, on="user_id")
    impressions["logit"] = np.log(log.truth["pctr"] / (1 - log.truth["pctr"]))
    liked = impressions.dropna(subset=["interests"])
    match = np.array([c in i.split(",") for c, i in zip(liked["category"], liked["interests"], strict=True)])
    assert liked["logit"][match].mean() > liked["logit"][~match].mean() + 0.2
    by_tab = impressions.groupby("tab")["logit"].mean()
    assert len(by_tab) == 3 and by_tab.max() - by_tab.min() > 0.05


def test_propensities_are_the_policys(log):
    served, world = log.dataset.candidates, tiny()
    first = served[:12]
    exact = plackett_luce_propensities(first["score"].to_numpy(np.float64) / world.policy.temperature, 4)
    np.testing.assert_allclose(first["exposure_propensity"], exact @ world.traffic.examination, atol=1e-9)
    shown = first[first["position"] >= 0]
    np.testing.assert_allclose(
        shown["position_propensity"], exact[np.flatnonzero(first["position"] >= 0), shown["position"]], atol=1e-9
    )
    assert served["position_propensity"].isna().equals(served["position"] < 0)
    # over all requests: exposure summed over a request's candidates is the sum of theta, and items with exposure
    # about e are examined e of the time
    np.testing.assert_allclose(served.groupby("request_id")["exposure_propensity"].sum(), 2.9, atol=1e-8)
    theta = np.append(world.traffic.examination, 0.0)[served["position"]]
    bins = pd.qcut(served["exposure_propensity"], 20, labels=False)
    for place in range(20):
        gap = (theta - served["exposure_propensity"])[bins == place]
        assert abs(gap.mean()) < 5 * gap.std() / np.sqrt(len(gap)) + 1e-4


def test_impressions_are_the_shown_candidates(log):
    impressions, served = log.dataset.impressions, log.dataset.candidates
    shown = served[served["position"] >= 0].sort_values(["request_id", "position"])
    np.testing.assert_array_equal(shown["item_id"], impressions["item_id"])
    np.testing.assert_array_equal(shown["position"], impressions["position"])
    np.testing.assert_allclose(log.candidates["pctr"][shown.index], log.truth["pctr"])


def test_times_delays_and_value(log):
    impressions = log.dataset.impressions
    clicked, converted = impressions[impressions["click"] == 1], impressions[impressions["conversion"] == 1]
    assert (clicked["click_time"] > clicked["timestamp"]).all()
    assert (converted["conversion_time"] > converted["click_time"]).all()
    hours = (converted["conversion_time"] - converted["click_time"]) / 3_600_000
    assert hours.median() == pytest.approx(6, rel=0.15)  # standard error of a median of 480 log-normals: 6 %
    assert (converted["conversion_time"] - converted["timestamp"]).max() <= 48 * 3_600_000
    price = converted["item_id"].map(log.dataset.items.set_index("item_id")["price"])
    ratio = converted["value"] / price
    assert ratio.mean() == pytest.approx(1, abs=5 * 0.25 / np.sqrt(len(ratio)))
    assert not impressions["value"][impressions["conversion"] == 0].any()
    assert impressions["timestamp"].is_monotonic_increasing
    start = tiny().start_ms
    assert impressions["timestamp"].min() >= start and impressions["timestamp"].max() < start + 10 * 86_400_000


def test_behaviors_are_the_history_and_the_clicks_of_the_log(log):
    clicks = log.dataset.behavior("clicked")
    start = tiny().start_ms
    logged = clicks[clicks["timestamp"] >= start].sort_values(["timestamp", "user_id", "value"])
    impressions = log.dataset.impressions
    expected = impressions[impressions["click"] == 1].sort_values(["click_time", "user_id", "item_id"])
    np.testing.assert_array_equal(logged["timestamp"], expected["click_time"])
    np.testing.assert_array_equal(logged["user_id"], expected["user_id"])
    np.testing.assert_array_equal(logged["value"], expected["item_id"])
    history = clicks[clicks["timestamp"] < start]
    assert 1500 < len(history) <= 4400  # 10 a user on average, less repeated pairs
    assert not history.duplicated(["user_id", "value"]).any()
    born = log.dataset.items.set_index("item_id")["born"]
    assert (history["timestamp"].to_numpy() >= born.loc[history["value"]].to_numpy()).all()
    # what was clicked in the history is what the user is more likely to click in the log
    pairs = pd.MultiIndex.from_frame(history[["user_id", "value"]])
    again = pd.MultiIndex.from_frame(impressions[["user_id", "item_id"]]).isin(pairs)
    assert log.truth["pctr"][again].mean() > 1.15 * log.truth["pctr"][~again].mean()


def test_true_value_by_hand():
    # two requests of two candidates, theta (1, .5).
    # request 1 sorts b (.4) before a (.2): .4 + .5 .2 = .5; request 2 sorts c (.6), d (.1): .6 + .05 = .65
    truth = {"pctr": [0.2, 0.4, 0.6, 0.1], "pcvr": [0.5, 0.5, 0.1, 1.0], "price": [10.0, 1.0, 5.0, 2.0]}
    score = [0.0, 1.0, 3.0, 2.0]
    assert true_value(truth, [0, 2, 4], score, [1.0, 0.5], "clicks") == pytest.approx((0.5 + 0.65) / 2)
    # conversions: .2 + .5 .1 = .25 and .06 + .05 = .11; value: .2 + .5 1 = .7 and .3 + .5 .2 = .4
    assert true_value(truth, [0, 2, 4], score, [1.0, 0.5], "conversions") == pytest.approx(0.18)
    assert true_value(truth, [0, 2, 4], score, [1.0, 0.5], "value") == pytest.approx(0.55)
    assert true_value(truth, [0, 1, 4], [0.0] * 4, [1.0], "clicks") == pytest.approx((0.2 + 0.4) / 2)  # ties: as given
    with pytest.raises(UserError, match="`objective`"):
        true_value(truth, [0, 2, 4], score, [1.0], "profit")
    with pytest.raises(UserError, match="`score`"):
        true_value(truth, [0, 2, 4], score[:3], [1.0], "clicks")


def test_exposure_weighted_labels_are_right_about_another_policy(log):
    """E3 on the log agrees with the truth of three policies, for all objectives: the whole chain fits together."""
    served, impressions = log.dataset.candidates, log.dataset.impressions
    theta = np.array([1.0, 0.8, 0.6, 0.5])
    rows = served[served["position"] >= 0].sort_values(["request_id", "position"]).index.to_numpy()
    for part in ("score", "pctr", "pcvr"):
        score = served[part].to_numpy()
        rank = np.empty(score.size, int)
        rank[np.lexsort((-score, served["request_id"]))] = np.arange(score.size) % 12
        weight = np.append(theta, np.zeros(8))[rank] / served["exposure_propensity"].to_numpy()
        for objective, label in zip(OBJECTIVES, ("click", "conversion", "value"), strict=True):
            each = (weight[rows] * impressions[label].to_numpy()).reshape(-1, 4).sum(1)
            truth = true_value(log.candidates, log.offsets, score, theta, objective)
            assert abs(each.mean() - truth) < 4.5 * each.std() / np.sqrt(each.size)


def test_same_seed_same_bytes_other_seed_other_log(log, tmp_path):
    again = simulate(tiny(), tmp_path / "again")
    for file in sorted(path.relative_to(log.path) for path in log.path.rglob("*") if path.is_file()):
        assert (again / file).read_bytes() == (log.path / file).read_bytes(), file
    other = read(simulate(dataclasses.replace(tiny(), seed=1), tmp_path / "other"))
    assert not np.array_equal(other.dataset.impressions["item_id"], log.dataset.impressions["item_id"])


def test_shuffled_labels_know_nothing(log, tmp_path):
    shuffled = read(simulate(tiny(), tmp_path / "shuffled", shuffle_labels=True))
    impressions = shuffled.dataset.impressions
    assert shuffled.truth is None
    np.testing.assert_array_equal(impressions["item_id"], log.dataset.impressions["item_id"])
    for label in ("click", "conversion"):
        assert impressions[label].sum() == log.dataset.impressions[label].sum()
    assert abs(np.corrcoef(impressions["click"], log.truth["pctr"])[0, 1]) < 5 / np.sqrt(len(impressions))
    assert np.corrcoef(log.dataset.impressions["click"], log.truth["pctr"])[0, 1] > 0.2


@pytest.mark.parametrize(
    ("exploration", "epsilon", "first"),
    [("epsilon", 0.3, 0.7 + 0.3 / 12), ("uniform", 0.0, 1 / 12), ("none", 0.0, 1.0)],
)
def test_other_policies(tmp_path, exploration, epsilon, first):
    log = read(simulate(tiny(exploration=exploration, epsilon=epsilon), tmp_path / exploration))
    served = log.dataset.candidates
    best = served.loc[served.groupby("request_id")["score"].idxmax()]
    np.testing.assert_allclose(best["position_propensity"][best["position"] == 0], first)
    hit = (best["position"] == 0).mean()
    assert abs(hit - first) <= 5 * np.sqrt(first * (1 - first) / 6000)
    requests = log.dataset.requests
    assert (requests["epsilon"] == {"epsilon": 0.3, "uniform": 1.0, "none": 0.0}[exploration]).all()
    assert requests["temperature"].isna().all()


def test_production_weights_give_the_logged_score(log):
    weights = FusionWeights.load(log.path / "production_weights.json")
    assert weights.weights == {"similarity": 1.0, "pctr": 1.0, "pcvr": 0.1, "price": 0.3}
    served = log.dataset.candidates
    parts = {name: served[name].to_numpy(np.float32) for name in ("similarity", "pctr", "pcvr", "price")}
    np.testing.assert_array_equal(fuse(parts, weights), served["score"])
    settings = json.loads((log.path / "truth" / "world.json").read_text())
    assert settings["traffic"]["requests"] == 6000 and set(settings["intercepts"]) == {"click", "conversion"}


def test_an_existing_folder_is_kept(log):
    with pytest.raises(UserError, match="exists already"):
        simulate(tiny(), log.path)


def test_reference_world_is_the_specified_one():
    world = load_world("reference")
    assert (world.users.count, world.items.count, world.items.born_per_day, world.days) == (20_000, 2_000, 40, 14)
    assert (world.traffic.requests, world.traffic.candidates, world.slots) == (60_000, 50, 10)
    feedback = world.feedback
    assert (feedback.click_rate, feedback.conversion_rate, feedback.interaction_share) == (0.08, 0.15, 0.5)
    assert feedback.delay_hours == 6


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("drift = 0.05", "drift = 0.05\ndrfit = 1", "unknown key `items.drfit`"),
        ("drift = 0.05", "", "missing key `items.drift`"),
        ("drift = 0.05", "drift = 1.0", r"`items.drift` should be in \[0, 1\). Received: 1.0"),
        ("drift = 0.05", "drift = true", "`items.drift` should be a number"),
        ("seed = 20250303", "seed = 1.5", "`seed` should be an integer. Received: 1.5"),
        ("start = 2025-03-03", 'start = "today"', "`start` should be a date"),
        ("similarity = 1.0,", "similarty = 1.0,", "`policy.weights`"),
        ("similarity = 1.0,", 'similarity = "1",', "`policy.weights.similarity` should be a number"),
        ('exploration = "plackett_luce"', 'exploration = "thompson"', "`policy.exploration`"),
        ("candidates = 30", "candidates = 3", "`traffic.candidates` should be at least 8"),
        ("examination = [1.0,", "examination = [0.9,", "`traffic.examination`"),
        ("tune = [6, 8]", "tune = [6]", "`windows.tune` should be a list of 2"),
        ("train = [2, 5]", "", "`windows` should be the tables"),
        ("count = 500", "count = 20", "`items.count` should be at least the 30 candidates"),
        ("k = 20", "k = 0", "`state.k` should be a positive integer"),
        ("spread = [1.4, 1.2]", "spread = [1.4]", "`feedback.spread`"),
        ("spread = [1.4, 1.2]", "spread = 1.4", "`feedback.spread` should be a list"),
        ("[users]", "[users", "demo.toml"),
    ],
)
def test_rejects(tmp_path, old, new, words):
    import ranking.data.world as module

    text = (module.resources.files("ranking.data.worlds") / "demo.toml").read_text()
    assert old in text
    (tmp_path / "demo.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words) as error:
        load_world(tmp_path / "demo.toml")
    assert "\n" not in str(error.value)


def test_rejects_an_unknown_world():
    with pytest.raises(UserError, match="demo, reference or a TOML file. Received: 'earth'"):
        load_world("earth")
