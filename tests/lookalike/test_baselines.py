import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lookalike.baselines import AverageEmbedding, Popularity, ProfileMatch
from lookalike.graph import LabelPropagation
from lookalike.hashing import HashedNeighbors
from lookalike.regression import Classifier, LogisticPairs

USERS, ITEMS, GROUPS = 600, 24, 6


def ragged(lists):
    """Seed lists -> offsets, seeds."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return offsets, np.concatenate([np.sort(np.asarray(one, np.int64)) for one in lists])


class World:
    """Six groups of users; item i is for group i % 6, the last item has no seeds. Labels: is it the user's group?"""

    def __init__(self, planted=True, seed=7):
        generator = np.random.default_rng(seed)
        group = generator.integers(0, GROUPS, USERS)
        noise = generator.random(USERS) < 0.05
        self.profile = {
            "group": np.where(noise, 0, group + 1).astype(np.int32),  # 0: one in twenty is not known
            "tags": np.stack([group + 1, generator.integers(7, 10, USERS), np.zeros(USERS)], axis=1).astype(np.int32),
            "number": (group + generator.normal(0, 0.1, USERS)).astype(np.float32),
        }
        centres = generator.normal(size=(GROUPS, 8))
        self.embeddings = (centres[group] + generator.normal(0, 0.3, (USERS, 8))).astype(np.float32)
        acted = generator.integers(0, 10, (USERS, 5)) + 10 * group[:, None]  # ten things of each group
        self.edges = np.repeat(np.arange(USERS), 5), acted.ravel().astype(np.int64)
        lists = []
        for item in range(ITEMS - 1):
            fans = np.flatnonzero(group == item % GROUPS) if planted else np.arange(USERS)
            lists.append(generator.choice(fans, 20, replace=False))
        self.offsets, self.seeds = ragged([*lists, []])
        user, item = np.divmod(np.arange(USERS * (ITEMS - 1)), ITEMS - 1)
        seed = np.zeros((ITEMS, USERS), bool)
        seed[np.repeat(np.arange(ITEMS), np.diff(self.offsets)), self.seeds] = True
        kept = generator.permutation(np.flatnonzero(~seed[item, user]))[:6000]
        self.user, self.item = user[kept], item[kept]
        self.label = (group[self.user] == self.item % GROUPS).astype(int)


LOOKALIKES = {
    "average": lambda w: AverageEmbedding.fit(w.offsets, w.seeds, w.embeddings),
    "profile": lambda w: ProfileMatch.fit(w.offsets, w.seeds, w.profile),
    "classifier": lambda w: Classifier.fit(w.offsets, w.seeds, w.profile, strength=1.0),
    "classifier of embeddings": lambda w: Classifier.fit(w.offsets, w.seeds, w.embeddings),
    "propagation": lambda w: LabelPropagation.fit(w.offsets, w.seeds, w.edges, USERS, block=5),
    "hashing": lambda w: HashedNeighbors.fit(w.offsets, w.seeds, w.profile, rows=3),
    "hashed embeddings": lambda w: HashedNeighbors.fit(w.offsets, w.seeds, w.profile, embeddings=w.embeddings),
}
BASELINES = LOOKALIKES | {
    "popularity": lambda w: Popularity.fit(w.offsets, w.seeds, USERS),
    "pairs": lambda w: LogisticPairs.fit(
        w.user, w.item, w.label, w.profile, {"kind": np.arange(1, ITEMS + 1) % GROUPS + 1}
    ),
}


@pytest.fixture(scope="module")
def planted():
    return World()


@pytest.mark.parametrize("name", LOOKALIKES)
def test_finds_what_is_planted(planted, name):
    assert roc_auc_score(planted.label, LOOKALIKES[name](planted).score(planted.user, planted.item)) > 0.9


@pytest.mark.parametrize("name", LOOKALIKES)
def test_finds_nothing_in_random_seeds(name):
    values = []
    for seed in range(12):
        world = World(planted=False, seed=seed)
        values.append(roc_auc_score(world.label, LOOKALIKES[name](world).score(world.user, world.item)))
    # one world of 23 random lists of 20 has a standard error of about .06, twelve .02
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("name", BASELINES)
def test_contract(planted, name):
    baseline = BASELINES[name](planted)
    score = baseline.score(planted.user, planted.item)
    assert score.dtype == np.float32 and score.shape == planted.user.shape and np.isfinite(score).all()
    assert np.array_equal(score, BASELINES[name](planted).score(planted.user, planted.item))  # the same again
    shuffle = np.random.default_rng(0).permutation(len(score))
    moved = baseline.score(planted.user[shuffle], planted.item[shuffle])
    assert np.allclose(moved, score[shuffle], rtol=1e-5, atol=1e-6)
    few = baseline.score(planted.user[:3].astype(np.int32), planted.item[:3].astype(np.int32))
    assert np.allclose(few, score[:3], rtol=1e-5, atol=1e-6)
    none = np.empty(0, np.int64)
    assert baseline.score(none, none).shape == (0,)
    if name != "pairs":  # it knows no seeds
        everybody = np.arange(USERS)
        assert not baseline.score(everybody, np.full(USERS, ITEMS - 1)).any()
    with pytest.raises(ValueError, match=f"`user` should be int .n., rows of {USERS}"):
        baseline.score(np.array([USERS]), np.array([0]))
    with pytest.raises(ValueError, match=f"`item` should be int .n., rows of {ITEMS}"):
        baseline.score(np.array([0]), np.array([-1]))
    with pytest.raises(ValueError, match="`item` should have the 2 rows"):
        baseline.score(np.array([0, 1]), np.array([0]))


@pytest.mark.parametrize("name", ["average", "profile", "propagation", "popularity"])
def test_numbers_of_users_do_not_matter(planted, name):
    # the same world with its users in another order: nobody's score changes
    order = np.random.default_rng(1).permutation(USERS)
    place = np.argsort(order)  # old row -> new row
    world = World()
    world.profile = {key: values[order] for key, values in world.profile.items()}
    world.embeddings = world.embeddings[order]
    world.edges = place[world.edges[0]], world.edges[1]
    parts = np.split(place[world.seeds], world.offsets[1:-1])
    world.offsets, world.seeds = ragged(parts)
    moved = BASELINES[name](world).score(place[planted.user], planted.item)
    assert np.allclose(moved, BASELINES[name](planted).score(planted.user, planted.item), rtol=1e-4, atol=1e-5)


def test_popularity_known_values():
    offsets, seeds = ragged([[0, 2], [], [1]])
    score = Popularity.fit(offsets, seeds, 3).score(np.array([0, 1, 2]), np.array([0, 1, 2]))
    assert score == pytest.approx([math.log(3), 0, math.log(2)], abs=1e-6)


def test_average_embedding_known_values():
    # item 0: mean of (1, 0) and (0, 3) is (.5, 1.5); cos with (1, 0) is .5 / sqrt(2.5), with (0, 3) 1.5 / sqrt(2.5)
    embeddings = np.array([[1, 0], [0, 3], [0, 0], [-2, 0]], np.float32)
    offsets, seeds = ragged([[0, 1], [0, 3]])
    baseline = AverageEmbedding.fit(offsets, seeds, embeddings)
    score = baseline.score(np.array([0, 1, 2, 3, 1]), np.array([0, 0, 0, 0, 1]))
    root = math.sqrt(2.5)
    assert score == pytest.approx([0.5 / root, 1.5 / root, 0, -0.5 / root, 0], abs=1e-6)


def test_profile_match_known_values():
    # colour 1 1 2 -, of four: q = 1/2, 1/4. Both seeds of the item have colour 1; prior 2:
    # lift of 1: (2 + 2/2) / ((2 + 2) / 2) = 1.5; of 2: (0 + 2/4) / ((2 + 2) / 4) = .5
    # tags {1, 2}, {1}, {}, {2}: q = 1/2, 1/2, seeds' counts 2 and 1: lifts (2 + 1) / 2 = 1.5, (1 + 1) / 2 = 1
    profile = {
        "colour": np.array([1, 1, 2, 0], np.int32),
        "tags": np.array([[1, 2], [1, 1], [0, 0], [0, 2]], np.int32),
    }
    offsets, seeds = ragged([[0, 1]])
    baseline = ProfileMatch.fit(offsets, seeds, profile, prior=2.0)
    assert baseline.log_lift(0) == pytest.approx(np.log([1.5, 0.5, 1.5, 1.0]), abs=1e-6)
    score = baseline.score(np.arange(4), np.zeros(4, np.int64))
    expected = [math.log(1.5) + math.log(1.5) / 2, 2 * math.log(1.5), math.log(0.5), 0]
    assert score == pytest.approx(expected, abs=1e-6)


def test_rejects():
    offsets, seeds = ragged([[0, 1]])
    with pytest.raises(ValueError, match="`embeddings` should be finite float32"):
        AverageEmbedding.fit(offsets, seeds, np.full((2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="prior=0"):
        ProfileMatch.fit(offsets, seeds, {"a": np.ones(2, np.int32)}, prior=0)
    with pytest.raises(ValueError, match="`seeds` should be int .n., rows of 1"):
        Popularity.fit(offsets, seeds, 1)
