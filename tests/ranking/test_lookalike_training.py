import numpy as np
import pandas as pd
import pytest

from ranking.board import Board
from ranking.errors import UserError
from ranking.features import Encoder
from ranking.lookalike_samples import Seeds
from ranking.lookalike_settings import LookalikeSettings
from ranking.lookalike_training import representation_of, train_lookalike, train_next_item

pytestmark = pytest.mark.slow

TOML = """schema_version = 1
time = "ordinal"
[ids]
user = "int64"
item = "int64"
[labels]
seed_event = "behaviors.liked"
[windows]
lookalike = [0, 1000]
train = [1000, 1010]
calibrate = [1010, 1020]
tune = [1020, 1030]
test = [1030, 1040]
[features.user]
group = { kind = "categorical" }
days = { kind = "numeric" }
[features.behavior]
liked = { keep = 5 }
read = { keep = 5 }
watched = { keep = 5 }
[state]
tick = 10
k = 3
min_seeds = 5
"""
USERS, ITEMS = 400, 30


@pytest.fixture(scope="module")
def timeline(make_timeline):
    """Users of three groups like the items of theirs; impressions in the window are clicked on accordingly."""
    generator = np.random.default_rng(0)
    events = []
    for user in range(USERS):
        own = np.arange(user % 3, ITEMS, 3)
        for field in ("liked", "read", "watched"):
            events += [(user, field, int(item), int(generator.integers(900)), 0) for item in generator.choice(own, 4)]
    behaviors = pd.DataFrame(events, columns=["user_id", "field", "value", "timestamp", "order"])
    log = []
    for number in range(6000):
        user, item = int(generator.integers(USERS)), int(generator.integers(ITEMS))
        time = 500 + number % 500 if number < 5500 else 1000 + number % 40
        log.append((time, user, item, int((user % 3 == item % 3) & (generator.random() < 0.7)), 0))
    days = np.where(np.arange(USERS) % 10 == 0, np.nan, generator.random(USERS))
    users = {"user_id": np.arange(USERS), "group": ["a", "b", "", "c"] * (USERS // 4), "days": days}
    return make_timeline(TOML, impressions=log, behaviors=behaviors, users=users)


@pytest.fixture(scope="module")
def encoder(timeline):
    return Encoder.fit(timeline, before=1000, rank_by_seeds=True)


@pytest.fixture(scope="module")
def representation(timeline, encoder):
    model, info = train_next_item(timeline, encoder, LookalikeSettings(representation_epochs=3, holdout=0.2))
    return representation_of(model), info


def test_a_user_of_whom_no_number_is_known_is_masked(timeline, encoder):
    profile, plain = encoder.profile(timeline), encoder.static(timeline, "user")
    np.testing.assert_array_equal(np.isnan(profile["user_days"]), [*(np.arange(USERS) % 10 == 0), True])
    assert np.isfinite(plain["user_days"]).all()  # ESMM's own view: the mean


def test_representation_says_what_it_learned(representation):
    layer, info = representation
    # Two thirds of the negatives are of another group: an AUC of about 2/3 + 1/3 * 1/2 = .83 for perfect knowledge.
    assert len(info["auc"]) == 3 and 0.7 < info["auc"][-1] < 0.87 and info["loss"][-1] < info["loss"][0]
    table = {row["field"]: row for row in info["field_attention"]}
    assert list(table) == ["user_group", "behavior_liked", "behavior_read", "behavior_watched", "numeric"]
    assert 0.6 < table["user_group"]["present"] < 0.9 and 0.8 < table["numeric"]["present"] < 0.97
    for row in table.values():
        assert 0 <= row["low"] <= row["median"] <= row["high"] <= 1 and row["low"] <= row["mean"] <= row["high"]


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"loss": "multiclass"},
        {"attention": "average", "size_bias": True},
        {"attention": "tempered", "alpha": "learned", "activation": "relu", "k": 2},
    ],
    ids=["paper", "multiclass", "average", "learned"],
)
def test_every_kind_learns(timeline, encoder, representation, switches):
    settings = LookalikeSettings(epochs=2, holdout=0.2, dropout=0.0, **switches)
    layer, info = train_lookalike(timeline, encoder, representation[0], settings)
    # P(same group | click) = 1, P(same | none) = .3 / 2.3 / ... : the groups alone reach .935
    assert info["auc"][-1] > 0.75 and len(info["auc"]) == len(info["loss"]) == 2
    assert info["loss"][-1] < info["base_rate_loss"]
    assert layer.get_config()["attention"] == settings.attention


def test_concat_and_sampling_switches(timeline, encoder):
    settings = LookalikeSettings(merge="concat", correct_sampling=True, remove_hits=True, representation_epochs=1)
    model, info = train_next_item(timeline, encoder, settings)
    assert (
        representation_of(model).merge == "concat" and info["field_attention"] == [] and np.isfinite(info["loss"]).all()
    )


def test_held_out_users_are_the_same_whoever_comes_later(timeline, encoder):
    from ranking.lookalike_training import _held_out

    held = _held_out(timeline, 0.3)
    assert 0.2 < held.mean() < 0.4 and not _held_out(timeline, 0.0).any()

    class Others:
        user_ids = timeline.user_ids.append(pd.Index([-5, 10**12])).sort_values()

    found = _held_out(Others, 0.3)[Others.user_ids.isin(timeline.user_ids)]
    np.testing.assert_array_equal(found, held)


def test_negatives_are_items_that_the_user_does_not_like(timeline):
    seeds, generator = Seeds(timeline), np.random.default_rng(1)
    item = np.flatnonzero(seeds.enough)[generator.integers(seeds.enough.sum(), size=500)]
    user = generator.integers(USERS, size=500)
    drawn = seeds.negatives(item, user, 5, generator)
    liked = {(i, u) for i, part in enumerate(np.split(seeds.users, seeds.offsets[1:-1])) for u in part}
    assert drawn.shape == (500, 5) and seeds.enough[drawn].all()
    assert not any((int(i), int(u)) in liked for row, u in zip(drawn, user, strict=True) for i in row)
    assert (drawn != item[:, None]).all()


def test_curves_are_written(timeline, encoder, tmp_path):
    from tensorflow.compat.v1.train import summary_iterator

    train_next_item(
        timeline, encoder, LookalikeSettings(representation_epochs=2, holdout=0.2), board=Board(tmp_path / "board")
    )
    tags = {}
    for path in (tmp_path / "board" / "representation").iterdir():
        for event in summary_iterator(str(path)):
            for value in event.summary.value:
                tags.setdefault(value.tag, []).append(event.step)
                if value.HasField("histo"):
                    weights = value.histo
                    assert sum(weights.bucket) == weights.num > 0 and 0 <= weights.min <= weights.max <= 1
    assert tags["loss"] == tags["auc"] == [0, 1]
    fields = {"user_group", "behavior_liked", "behavior_read", "behavior_watched", "numeric"}
    assert {tag for tag in tags if tag.startswith("field attention/")} == {f"field attention/{f}" for f in fields}


def test_settings_are_parsed():
    text = "merge=concat, attention=tempered,alpha=learned,size_bias=true,k=10,dropout=0.2"
    expected = LookalikeSettings(
        merge="concat", attention="tempered", alpha="learned", size_bias=True, k=10, dropout=0.2
    )
    assert LookalikeSettings.parse(text) == expected and LookalikeSettings.parse("") == LookalikeSettings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pooling=max", "a name of: merge, correct_sampling"),
        ("merge", "Received: 'merge'"),
        ("merge=sum", "`merge` should be attention or concat. Received: merge='sum'"),
        ("loss=hinge", "`loss` should be binary or multiclass"),
        ("attention=max", "`attention` should be"),
        ("size_bias=yes", "size_bias should be true or false. Received: 'yes'"),
        ("epochs=many", "epochs should be a number. Received: 'many'"),
        ("epochs=0", "`epochs` should be positive. Received: epochs=0"),
        ("holdout=1", "`holdout` should be in"),
        ("k=-1", "`k` should be 0 or positive"),
        ("alpha=2", "`alpha` should be 'learned' or a share"),
    ],
)
def test_settings_refused(text, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace("[", r"\[")):
        LookalikeSettings.parse(text)
