import numpy as np
import pytest

from ranking.batches import batches
from ranking.lookalike_samples import lookalike_samples

TOML = """schema_version = 1
time = "ordinal"
[ids]
user = "int64"
item = "string"
[labels]
seed_event = "{event}"
seed_sample = "{sample}"
[windows]
lookalike = [0, 10]
train = [10, 40]
[features.context]
tab = {{ kind = "categorical" }}
[state]
tick = 10
"""
# timestamp, user, item, click, conversion, click_time, conversion_time, tab
LOG = [
    (1, 1, "a", 1, 1, 3, 20, "home"),
    (2, 2, "a", 0, 0, -1, -1, "home"),
    (9, 3, "b", 1, 0, 12, -1, "home"),
    (20, 1, "b", 1, 0, 20, -1, "new"),
]
BEHAVIORS = [(1, "watch", "a", 5, -2), (1, "long", "a", 5, -2), (1, "watch", "b", 5, -1), (2, "watch", "a", 30, 1)]


def test_batches_gather_rows_and_tables_in_the_given_order():
    arrays = {"x": np.array([10.0, 11.0, 12.0], np.float32), "item": np.array([2, 0, 1])}
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = list(
        batches(
            arrays,
            {"y": np.array([0.0, 1.0, 0.0], np.float32)},
            order=np.array([2, 0, 1]),
            batch_size=2,
            tables={"wide": (table, "item")},
        )
    )
    assert len(found) == 2
    inputs, targets = found[0]
    assert set(inputs) == {"x", "wide"}  # the row numbers themselves are no input
    assert inputs["x"].numpy().tolist() == [12, 10] and targets["y"].numpy().tolist() == [0, 0]
    assert inputs["wide"].numpy().tolist() == [[2, 3], [4, 5]]  # items 1 and 2
    assert found[1][0]["x"].numpy().tolist() == [11]


def test_lookalike_samples_of_impressions(make_timeline):
    timeline = make_timeline(TOML.format(event="click", sample="impressions"), impressions=LOG)
    found = lookalike_samples(timeline)
    assert timeline.user_ids[found.user].tolist() == [1, 2, 3] and found.time.tolist() == [1, 2, 9]
    # user 3's click came at 12, after the window: at its end nobody knew of it
    assert found.label.tolist() == [1, 0, 0]


def test_lookalike_samples_of_behaviors(make_timeline):
    toml = TOML.format(event="behaviors.long", sample="behaviors.watch")
    timeline = make_timeline(toml, impressions=LOG, behaviors=BEHAVIORS)
    found = lookalike_samples(timeline)
    # the watch at 30 is outside; of the others the one of order -2 was long
    assert timeline.item_ids[found.item].tolist() == ["a", "b"]
    assert found.order.tolist() == [-2, -1] and found.label.tolist() == [1, 0]


@pytest.mark.parametrize("text, expected", [("clicks>=-1%", ("clicks", -0.01)), ("value >= 0.02", ("value", 0.02))])
def test_guardrails(text, expected):
    from ranking.cli_replay import parse_guardrail

    assert parse_guardrail(text) == expected


@pytest.mark.parametrize("text", ["clicks", "clicks>-1%", ">=1%", "clicks>=much"])
def test_guardrails_refused(text):
    from ranking.cli_replay import parse_guardrail
    from ranking.errors import UserError

    with pytest.raises(UserError, match="should look like clicks>=-1%"):
        parse_guardrail(text)
