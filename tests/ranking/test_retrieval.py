from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from lookalike.similarity import LookalikeModel
from ranking.cli_audience import add_to
from ranking.errors import UserError
from ranking.retrieval import items_of_user, users_of_item
from ranking.state import State, similarity_of

USERS, ITEMS, DIM, K = 40, 12, 6, 3


def make(user_ids=None, item_ids=None):
    """A run of 40 users and 12 items, without training: every similarity of it is real all the same."""
    generator = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    lookalike = LookalikeModel(DIM, hidden=5)
    lookalike.build()
    counts = generator.integers(1, 9, (ITEMS + 1, K))
    counts[[4, ITEMS]] = 0  # item 4 has too few seeds; the last row is nobody's
    state = State(
        tick=0,
        user_ids=pd.Index(user_ids or [2**53 + row for row in range(USERS)]),
        item_ids=pd.Index(item_ids or [f"item {row:02d}" for row in range(ITEMS)]),
        users={},
        items={},
        user_vectors=generator.normal(size=(USERS + 1, DIM)).astype(np.float32),
        centroids=generator.normal(size=(ITEMS + 1, K, 5)).astype(np.float32),
        centroid_counts=counts,
        seed_counts=counts.sum(axis=1),
        prices=np.full(ITEMS + 1, np.nan, np.float32),
        statistics={},
    )
    schema = SimpleNamespace(user_id="int64", item_id="string", min_seeds=5)
    return SimpleNamespace(state=state, lookalike=lookalike, schema=schema, path="run")


@pytest.fixture(scope="module")
def run():
    return make()


@pytest.fixture(scope="module")
def every(run):
    """The similarities of all pairs, by the Keras model: float32 [users, items]."""
    user, item = (grid.ravel() for grid in np.meshgrid(np.arange(USERS), np.arange(ITEMS), indexing="ij"))
    return similarity_of(run.lookalike, run.state, user, item)["similarity"].reshape(USERS, ITEMS)


def test_the_best_users_of_an_item(run, every):
    for item in (0, 7):
        found = users_of_item(run, f"item {item:02d}", 5)
        best = np.argsort(-every[:, item], kind="stable")[:5]
        assert [row["user_id"] for row in found] == [2**53 + int(user) for user in best]
        assert [row["similarity"] for row in found] == pytest.approx(every[best, item].tolist(), abs=1e-5)


def test_the_best_items_of_a_user(run, every):
    found = items_of_user(run, 2**53 + 3, 4)
    known = np.delete(np.arange(ITEMS), 4)
    best = known[np.argsort(-every[3, known], kind="stable")][:4]
    assert [row["item_id"] for row in found] == [f"item {item:02d}" for item in best]
    assert [row["similarity"] for row in found] == pytest.approx(every[3, best].tolist(), abs=1e-5)
    assert items_of_user(run, str(2**53 + 3), 4) == found


def test_all_of_them_and_a_threshold(run, every):
    found = items_of_user(run, 2**53, 100)
    assert len(found) == ITEMS - 1 and "item 04" not in {row["item_id"] for row in found}  # it has no similarity
    assert len(users_of_item(run, "item 00", 100)) == USERS
    gate = float(np.sort(every[:, 0])[-7:-5].mean())  # between the sixth and the seventh best
    assert len(users_of_item(run, "item 00", 100, threshold=gate)) == 6
    assert users_of_item(run, "item 00", 3, threshold=1.0) == [] == items_of_user(run, 2**53, 3, threshold=1.0)


def test_mistakes(run):
    for call, words in (
        (lambda: users_of_item(run, "item 04"), "item 'item 04' has no similarity: 0 seeds, and 5 are needed"),
        (lambda: users_of_item(run, "item"), "does not know the item 'item'"),
        (lambda: items_of_user(run, 7), "does not know the user 7"),
        (lambda: items_of_user(run, "ann"), "ids are whole numbers. Received: 'ann'"),
        (lambda: items_of_user(run, 2**53, 0), "`k` should be 1 or more. Received: 0"),
        (lambda: users_of_item(run, "item 00", threshold=1.5), "`threshold` should be from -1 to 1. Received: 1.5"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_the_command_wants_one_side(tmp_path):
    app = typer.Typer()
    add_to(app)
    for more, received in (([], "neither"), (["--item", "1", "--user", "2"], "both")):
        said = CliRunner().invoke(app, ["retrieve", "--run", str(tmp_path), *more]).exception
        assert isinstance(said, UserError) and received in str(said)
