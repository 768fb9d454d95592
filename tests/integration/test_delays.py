"""Conversions that come days later: nobody knows of one before it comes, and nobody takes a wait for a no.

Each guard is tried twice: on the code, where it holds, and on a timeline with the mistake it is for, where it breaks.
"""

import numpy as np
import pandas as pd
import pytest

from esmm import Feature
from ranking.data.simulator import load_world, simulate
from ranking.data.tables import Dataset, write_dataset
from ranking.esmm_settings import EsmmSettings
from ranking.features import Encoder
from ranking.rows import Rows, labelled
from ranking.state import StateBuilder
from ranking.statistics import StatisticCounter
from ranking.timeline import Timeline
from ranking.training import train_esmm

pytestmark = pytest.mark.slow

DAY = 86_400_000
WORLD = """
name = "slow buyers"
seed = 11
start = 2025-03-03

[users]
count = 400
history_clicks = 2
history_days = 10

[items]
count = 60
born_per_day = 1
categories = 6
drift = 0.05

[traffic]
requests = 4000
daily = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
candidates = 12
examination = [1.0, 0.8, 0.7, 0.6]
tabs = ["home", "search"]

[feedback]
click_rate = 0.25
conversion_rate = 0.4
interaction_share = 0.5
spread = [1.0, 1.0]
kinship = 0.4
delay_hours = 36
attribution_hours = 72

[policy]
name = "production"
weights = { similarity = 1.0, pctr = 1.0 }
exploration = "plackett_luce"
temperature = 1.2
epsilon = 0
noise = 0.6
blind_days = 1

[windows]
lookalike = [-10, 2]
train = [2, 7]
calibrate = [7, 8]
tune = [8, 9]
test = [9, 10]

[state]
seed_event = "click"
k = 4
min_seeds = 2
"""


class ImpressionTime(Timeline):
    """The mistake: a label counts from the moment its impression was shown."""

    def _label_time(self, label: str) -> np.ndarray:
        return self.time


class WaitIsNo(Timeline):
    """The mistake: what has not converted yet never will."""

    def mature(self, rows: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), bool)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Dataset:
    """The log when everything has come; conversions make seeds."""
    folder = tmp_path_factory.mktemp("delays")
    (folder / "world.toml").write_text(WORLD)
    data = simulate(load_world(folder / "world.toml"), folder / "data")
    toml = data / "dataset.toml"
    toml.write_text(toml.read_text().replace('seed_event = "click"', 'seed_event = "conversion"'))
    return Dataset(data)


@pytest.fixture(scope="module")
def as_of(whole, tmp_path_factory):
    """`moment -> Dataset`: the log as it was then: what was shown before it, and what had come by then."""

    def made(moment: int) -> Dataset:
        tables = {"users": whole.users, "items": whole.items, "behaviors": whole.behaviors}
        tables["behaviors"] = tables["behaviors"][tables["behaviors"]["timestamp"] < moment]
        shown = whole.impressions[whole.impressions["timestamp"] < moment].copy()
        for label in ("click", "conversion"):
            came = (shown[label] == 1) & (shown[f"{label}_time"] < moment)
            shown[label] = came.astype(np.int8)
            shown[f"{label}_time"] = shown[f"{label}_time"].astype("Int64").where(came)
        tables["impressions"] = shown.drop(columns="value")
        toml = (whole.path / "dataset.toml").read_text()
        closed = next(line for line in toml.splitlines() if line.startswith("observed_until"))
        now = f"observed_until = {pd.Timestamp(moment, unit='ms').isoformat()}Z"
        folder = tmp_path_factory.mktemp("as_of") / "data"
        write_dataset(folder, toml.replace(closed, now), tables)
        return Dataset(folder)

    return made


def end_of_train(dataset: Dataset) -> int:
    return dataset.schema.window("train")[1]


def counts(timeline: Timeline, tick: int, ids: pd.Index) -> np.ndarray:
    """The statistic item_cvr of some items as of a tick."""
    encoder = Encoder.fit(timeline, before=tick)
    static = {side: encoder.static(timeline, side) for side in ("user", "item")}
    context = encoder.context(timeline, timeline.impressions)
    statistic = next(one for one in timeline.schema.statistics if one.name == "item_cvr")
    table = StatisticCounter(statistic, timeline, encoder, static, context).table(tick)
    return table.values[timeline.item_ids.get_indexer(ids)]


def seeds(timeline: Timeline, tick: int) -> set[tuple[int, int]]:
    """The (item, seed user) pairs as of a tick."""
    offsets, users = timeline.seeds(tick)
    item = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return set(zip(timeline.item_ids[item], timeline.user_ids[users], strict=True))


def test_statistics_and_seeds_of_a_tick_are_those_of_the_log_of_that_day(whole, as_of):
    tick = end_of_train(whole)
    then, now = Timeline(as_of(tick)), Timeline(whole)
    assert np.array_equal(counts(now, tick, then.item_ids), counts(then, tick, then.item_ids))
    assert seeds(now, tick) == seeds(then, tick) and len(seeds(then, tick)) > 100


def test_the_time_of_the_impression_would_be_caught(whole, as_of):
    """With a median delay of a day and a half, a fifth more conversions would be known than had come."""
    tick = end_of_train(whole)
    then, wrong = Timeline(as_of(tick)), ImpressionTime(whole)
    moved = counts(wrong, tick, then.item_ids) != counts(then, tick, then.item_ids)
    assert moved.any(axis=1).mean() > 0.5
    early = seeds(wrong, tick) - seeds(then, tick)
    assert seeds(wrong, tick) > seeds(then, tick) and len(early) > 0.1 * len(seeds(then, tick))


def test_the_seeds_of_a_state_are_those_conversions(whole, as_of, monkeypatch):
    """What clusters the seeds (StateBuilder.seeds) asks the timeline, and so keeps its guard."""
    tick = end_of_train(whole)

    def counted(timeline: Timeline) -> dict:
        builder = object.__new__(StateBuilder)
        builder.timeline = timeline
        return dict(zip(timeline.item_ids, builder.seeds(tick)[2], strict=True))

    then = counted(Timeline(as_of(tick)))
    now, wrong = counted(Timeline(whole)), counted(ImpressionTime(whole))
    assert {item: now[item] for item in then} == then
    assert sum(wrong[item] for item in then) > 1.1 * sum(then.values())


def train_rows(timeline: Timeline) -> Rows:
    rows = timeline.rows_in("train")
    features = {"item_id": timeline.item[rows].astype(np.int32)}
    return labelled(timeline, rows, features, np.zeros(len(rows), bool))


def flips(timeline: Timeline, whole: Dataset) -> tuple[int, int]:
    """Training rows whose conversion label counts but is not the one it ends with; and rows that count."""
    rows = train_rows(timeline)
    final = whole.impressions["conversion"].to_numpy()[rows.row]  # both logs start with the same rows
    return int((rows.conversion != final)[rows.mature].sum()), int(rows.mature.sum())


def test_a_label_that_counts_is_final(whole, as_of):
    now = as_of(end_of_train(whole))
    wrong, counted = flips(Timeline(now), whole)
    assert wrong == 0 and counted > 100


def test_a_wait_taken_for_a_no_would_be_caught(whole, as_of):
    now = as_of(end_of_train(whole))
    wrong, counted = flips(WaitIsNo(now), whole)
    assert wrong > 0.02 * counted
    # what it would teach: too low a conversion rate, by far more than chance; the mature rows have the right one
    click, final = (whole.impressions[name].to_numpy() == 1 for name in ("click", "conversion"))
    rate = final[click].mean()

    def z(timeline: Timeline) -> float:
        rows = train_rows(timeline)
        clicked = (rows.click > 0) & rows.mature
        return (rows.conversion[clicked].mean() - rate) / np.sqrt(rate * (1 - rate) / clicked.sum())

    assert abs(z(Timeline(now))) < 5.2 and z(WaitIsNo(now)) < -5.2


def weights_of(rows: Rows, timeline: Timeline) -> list[np.ndarray]:
    features = [Feature("item_id", "categorical", "item", len(timeline.item_ids))]
    settings = EsmmSettings(towers=(8,), embedding_dim=4, epochs=1, batch_size=512)
    return train_esmm(rows, features, settings)[0].get_weights()


def test_training_never_reads_a_label_that_is_not_final(whole, as_of):
    """Whatever the immature rows say of conversion, the trained weights are the same bit by bit."""
    now = as_of(end_of_train(whole))

    def differs(timeline: Timeline) -> bool:
        rows = train_rows(timeline)
        open_ = ~Timeline(now).mature(rows.row) & (rows.click > 0)
        assert open_.sum() > 100
        other = Rows(rows.row, rows.features, rows.click, rows.conversion.copy(), rows.mature, rows.repeat)
        other.conversion[open_] = 1 - other.conversion[open_]
        pair = [weights_of(one, timeline) for one in (rows, other)]
        return not all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))

    assert not differs(Timeline(now))
    assert differs(WaitIsNo(now))
