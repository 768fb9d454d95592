import keras
import numpy as np
import pandas as pd
import pytest

from esmm.architecture import Architecture
from esmm.embedding import Feature
from esmm.model import build_esmm
from ranking.data.schema import parse_schema
from ranking.errors import UserError
from ranking.features import Encoder, Vocabulary
from ranking.growth import grown, refuse_other_schema, transplant


def encoder(before: int, **vocabularies: list) -> Encoder:
    return Encoder(
        {name: Vocabulary(pd.Index(v)) for name, v in vocabularies.items()}, {"age": (0.0, 9.0, 0.5)}, before
    )


def features(users: int, items: int) -> list[Feature]:
    return [
        Feature("user_id", "categorical", "user_id", users),
        Feature("item_id", "categorical", "item", items),
        Feature("read", "multi", "item", items),
        Feature("age", "numeric"),
    ]


def model(users: int, items: int, *, seed: int, positions: int = 0, towers=(4, 3)) -> keras.Model:
    keras.utils.set_random_seed(seed)
    made = build_esmm(features(users, items), Architecture(embedding_dim=2, towers=towers), positions=positions)
    for weight in made.trainable_weights:  # the wide part starts at zero, which would hide a mistake
        weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
    return made


def inputs(user: int, item: int, positions: bool = False) -> dict[str, np.ndarray]:
    found = {
        "user_id": np.array([user]),
        "item_id": np.array([item]),
        "read": np.array([[item, 2, 0]]),
        "age": np.array([0.3], np.float32),
    }
    return found | ({"position": np.array([2])} if positions else {})


def test_old_values_keep_their_indices_and_new_ones_follow():
    # index 2 is "b", 3 is "a"; the longer log counts "c" and "a" most: "b" stays 2, "a" 3, and "c" is 4
    before, now = encoder(10, item=["b", "a"]), encoder(20, item=["c", "a", "b"])
    found = grown(before, now)
    assert list(found.vocabularies["item"].values) == ["b", "a", "c"]
    assert found.vocabularies["item"].encode(pd.Index(["a", "c", "z"])).tolist() == [3, 4, 1]
    assert found.before == 20 and found.ranges == before.ranges


def test_a_value_that_has_become_rare_keeps_its_index():
    assert list(grown(encoder(1, item=[5, 7]), encoder(2, item=[7])).vocabularies["item"].values) == [5, 7]


def test_known_ids_score_as_before_and_new_ones_as_unknown():
    old, new = model(4, 5, seed=0, positions=3), model(6, 9, seed=1, positions=3)
    transplant(old, new)
    for user, item in ((2, 2), (3, 4), (0, 3), (1, 1)):
        before, after = (m(inputs(user, item, True)) for m in (old, new))
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    unknown, fresh = new(inputs(1, 1, True)), new(inputs(5, 8, True))  # rows 4.. of users and 5.. of items are new
    np.testing.assert_array_equal(unknown["pctcvr"], fresh["pctcvr"])


def test_further_positions_start_at_the_last_known_one():
    old, new = model(4, 5, seed=0, positions=3), model(4, 5, seed=1, positions=5)
    transplant(old, new)
    known, further = (np.asarray(m.get_layer("position_bias").logits()) for m in (old, new))
    np.testing.assert_array_equal(further, [*known, known[-1], known[-1]])


def test_another_architecture_is_refused():
    with pytest.raises(UserError, match="should have the architecture of the run"):
        transplant(model(4, 5, seed=0), model(4, 5, seed=0, towers=(4, 5)))


SCHEMA = """schema_version = 1
[ids]
user = "int64"
item = "int64"
[windows]
train = ["2022-04-25", "2022-05-02"]
[features.user]
city = { kind = "categorical" }
age = { kind = "numeric" }
"""


@pytest.mark.parametrize(
    "old, new, rule",
    [
        ('item = "int64"', 'item = "string"', "differs in item_id. Received: string, not int64"),
        ('age = { kind = "numeric" }', 'age = { kind = "categorical" }', "other features: age, not the run's"),
        ('age = { kind = "numeric" }\n', "", "other features: age, not"),
    ],
)
def test_another_schema_is_refused_by_name(old, new, rule):
    before, now = parse_schema(SCHEMA), parse_schema(SCHEMA.replace(old, new))
    refuse_other_schema(before, before, "runs/monday")
    with pytest.raises(UserError, match=rule):
        refuse_other_schema(before, now, "runs/monday")


def test_other_windows_are_welcome():
    refuse_other_schema(parse_schema(SCHEMA), parse_schema(SCHEMA.replace("05-02", "05-09")), "runs/monday")
