"""Nothing that is fitted or looked up has seen the label that it is judged on."""

import numpy as np
import pandas as pd
import pytest

from ranking.data.tables import Dataset
from ranking.evaluation import evaluate_run
from ranking.features import Encoder
from ranking.lookalike_settings import LookalikeSettings
from ranking.lookalike_training import representation_of, train_lookalike, train_next_item
from ranking.metrics import auc
from ranking.rows import training_rows
from ranking.state import StateBuilder
from ranking.timeline import Timeline

pytestmark = pytest.mark.slow

DAY = 86_400_000
SIGMAS = 5.2  # two-sided, a normal passes it with probability 2e-7


def chance(label: np.ndarray, score: np.ndarray) -> float:
    """Standard error of the AUC of a score when the labels are a random permutation: users' repeats do not matter.

    Of the rank sum with ties of t rows each (Lehmann 1975):
    var(AUC) = (n + 1 - sum(t^3 - t) / (n (n - 1))) / (12 P N)
    """
    n, positives = len(label), int(label.sum())
    ties = np.unique(score, return_counts=True)[1].astype(np.float64)
    return float(np.sqrt((n + 1 - (ties**3 - ties).sum() / (n * (n - 1))) / (12 * positives * (n - positives))))


def test_chance_known_value():
    # P = 1 of n = 3, no ties: the positive's AUC is 0, .5 or 1 with equal probability, variance 1/6 = 4 / (12 * 2)
    assert chance(np.array([1, 0, 0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(np.sqrt(1 / 6))
    # two tied scores: AUC is 0.25, 0.25 or 1 (or mirrored), variance 1/8 = (4 - 6/6) / 24
    assert chance(np.array([1, 0, 0]), np.array([1.0, 1.0, 3.0])) == pytest.approx(np.sqrt(1 / 8))


def similarity_z(builder, window: str) -> float:
    """How many standard errors the similarity's AUC is from one half, over the rows that have one."""
    timeline = builder.timeline
    at = None if window == "train" else int(timeline.tick(np.array([timeline.window(window)[0]]))[0])
    rows = training_rows(builder, window, user_statistics_at=at)
    has = rows.features["has_similarity"] > 0
    assert has.sum() > 1000
    label, score = rows.click[has], rows.features["similarity"][has]
    return (auc(label, score) - 0.5) / chance(label, score)


@pytest.mark.parametrize("window", ["train", "test"])
def test_similarity_says_nothing_about_shuffled_labels(shuffled, window):
    assert abs(similarity_z(shuffled.builder, window)) < SIGMAS


@pytest.mark.parametrize("window", ["train", "test"])
def test_a_planted_leak_is_caught(shuffled, monkeypatch, window):
    """Seeds of a day that is not over yet: every clicker of the day is a seed of what was clicked on."""
    seeds = StateBuilder.seeds
    monkeypatch.setattr(StateBuilder, "seeds", lambda self, tick: seeds(self, tick + DAY))
    assert similarity_z(shuffled.builder, window) > SIGMAS


@pytest.mark.parametrize("state", ["frozen", "rolling"])
def test_scores_say_nothing_about_shuffled_labels(shuffled, state):
    found = evaluate_run(shuffled.run, shuffled.dataset, state=state, replicates=20)
    impressions = shuffled.dataset.impressions.iloc[shuffled.timeline.rows_in("test")]
    # without ties the standard error depends on the counts alone
    error = chance(impressions["click"].to_numpy(), np.arange(len(impressions)))
    assert found["rows"] == len(impressions)
    assert abs(found["models"]["seedrank"]["click"]["auc"] - 0.5) < SIGMAS * error


def stages_1_and_2(timeline: Timeline) -> list[np.ndarray]:
    encoder = Encoder.fit(timeline, before=timeline.window("lookalike")[1], rank_by_seeds=True)
    settings = LookalikeSettings(representation_epochs=1)
    representation = representation_of(train_next_item(timeline, encoder, settings)[0])
    lookalike, _ = train_lookalike(timeline, encoder, representation, settings)
    return [np.asarray(weight) for weight in (*representation.get_weights(), *lookalike.get_weights())]


def equal(one: list[np.ndarray], other: list[np.ndarray], atol: float) -> bool:
    """But for the last digits: the kernel that a row of a batch is computed by depends on its place, and on the CPU."""
    pairs = zip(one, other, strict=True)
    return len(one) == len(other) and all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


def late_clicks(end: int):
    """An edit of the tables: the last that were shown before `end` are clicked on after it."""

    def edit(tables: dict[str, pd.DataFrame]) -> None:
        impressions = tables["impressions"]
        last = impressions["timestamp"].where(impressions["timestamp"] < end).nlargest(20).index
        impressions.loc[last, "click"] = 1
        impressions.loc[last, "click_time"] = end + 1

    return edit


def another_future(end: int, generator: np.random.Generator):
    """An edit of the tables: from `end` on other users see other items and other things happen."""

    def edit(tables: dict[str, pd.DataFrame]) -> None:
        for name in ("candidates", "requests"):
            del tables[name]
        impressions, behaviors = tables["impressions"], tables["behaviors"]
        later = impressions["timestamp"] >= end
        order = generator.permutation(int(later.sum()))
        for column in ("user_id", "item_id"):
            impressions.loc[later, column] = impressions.loc[later, column].to_numpy()[order[::-1]]
        label = 1 - impressions["click"]
        for place, column in enumerate(("click", "conversion")):
            known = (impressions["timestamp"] + 1 + place).where(label == 1)
            impressions[column] = impressions[column].where(~later, label)
            impressions[f"{column}_time"] = impressions[f"{column}_time"].where(~later, known)
        late = ~later & (impressions["click_time"] >= end).fillna(False)  # shown before the end, clicked on after it
        for column in ("click", "conversion"):
            impressions[column] = impressions[column].where(~late, 0)
            impressions[f"{column}_time"] = impressions[f"{column}_time"].where(~late)
        new = impressions[later].head(200).copy()
        new["user_id"], new["item_id"] = 1 + np.arange(200), -1 - np.arange(200)  # ids before and among all others
        tables["impressions"] = pd.concat([impressions, new], ignore_index=True)
        behaviors = behaviors[behaviors["timestamp"] < end]
        more = pd.DataFrame(
            {"user_id": new["user_id"], "field": "clicked", "value": new["item_id"], "timestamp": new["timestamp"]}
        )
        tables["behaviors"] = pd.concat([behaviors, more], ignore_index=True)

    return edit


def test_the_first_stages_see_the_lookalike_window_only(tiny, rewritten):
    end = tiny.timeline.window("lookalike")[1]
    generator = np.random.default_rng(0)
    data = rewritten(tiny.data, late_clicks(end), name="now")
    before = stages_1_and_2(Timeline(Dataset(data)))
    changed = Timeline(Dataset(rewritten(data, another_future(end, generator), name="later")))
    assert changed.user_ids[0] == 1 and changed.item_ids[0] == -200
    assert equal(before, stages_1_and_2(changed), atol=1e-5)
    # The same edit from an hour earlier on does change them.
    earlier = Timeline(Dataset(rewritten(data, another_future(end - DAY // 24, generator), name="earlier")))
    assert not equal(before, stages_1_and_2(earlier), atol=1e-3)
