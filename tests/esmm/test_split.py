"""ESMM cut behind its first layers says what the whole model says, however its inputs are dealt out."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from esmm import Architecture, Feature, build_esmm
from esmm.split import SplitTowers

FEATURES = (
    Feature("price", "numeric", size=1),
    Feature("user", "categorical", size=9),
    Feature("seen", "multi", "item", size=7),
    Feature("item", "categorical", "item", size=7),
    Feature("tags", "multi", size=5, weights="tags_weight"),
    Feature("rates", "numeric", size=2),
)
NAMES = [feature.name for feature in FEATURES]


def towers_of(seed: int = 0, features=FEATURES, **architecture):
    """Untrained towers with random weights everywhere, biases and the wide part too."""
    shape = Architecture(**{"embedding_dim": 3, "towers": (8, 6, 4), **architecture})
    towers = build_esmm(features, shape).get_layer("shared_towers")
    generator = np.random.default_rng(seed)
    for variable in towers.trainable_variables:
        variable.assign(generator.normal(0, 0.5, variable.shape))
    return towers


def rows(n: int = 40, seed: int = 1) -> dict[str, np.ndarray]:
    """Rows with missing, unknown and padded values, and indices past the vocabulary."""
    generator = np.random.default_rng(seed)
    return {
        "price": generator.normal(size=n).astype(np.float32),
        "user": generator.integers(0, 11, n),
        "seen": generator.integers(0, 7, (n, 4)) * generator.integers(0, 2, (n, 4)),
        "item": generator.integers(0, 7, n),
        "tags": generator.integers(0, 5, (n, 3)),
        "tags_weight": (generator.random((n, 3)) * generator.integers(0, 2, (n, 3))).astype(np.float32),
        "rates": generator.normal(size=(n, 2)).astype(np.float32),
    }


def logits(split: SplitTowers, blocks, inputs) -> np.ndarray:
    first = split.bias + sum(split.share(names)(inputs) for names in blocks)
    return split.logits(tf.split(first, split.sizes, axis=1)).numpy()


def test_shares_by_hand():
    # One id with rows of width 1, and one number; a tower a task of one hidden unit; the wide part beside it.
    towers = towers_of(
        features=(Feature("a", "categorical", size=3), Feature("x", "numeric")), embedding_dim=1, towers=(1,)
    )
    towers.embedding.table.assign([[0.0], [0.0], [2.0]])
    towers.wide.table.assign([[0, 0], [0, 0], [0.5, -0.5]])
    towers.wide.kernel.assign([[10.0, 20.0]])
    for tower, kernel, bias in zip(towers.towers, ([[3.0], [4.0]], [[5.0], [-6.0]]), (1.0, 2.0), strict=True):
        hidden, last = (layer for layer in tower.layers if layer.weights)
        hidden.kernel.assign(kernel), hidden.bias.assign([bias])
        last.kernel.assign([[7.0]]), last.bias.assign([0.25])
    split = SplitTowers(towers)
    assert split.sizes == (1, 1, 2)
    assert split.bias.numpy().tolist() == [1, 2, 0, 0]
    ids, number = split.share(["a"])({"a": np.array([2])}), split.share(["x"])({"x": np.array([[1.5]], np.float32)})
    assert ids.numpy().tolist() == [[6, 10, 0.5, -0.5]]  # 2 * 3, 2 * 5, and the wide weights of row 2
    assert number.numpy().tolist() == [[6, -9, 15, 30]]  # 1.5 * 4, 1.5 * -6, 1.5 * 10, 1.5 * 20
    # relu(6 + 6 + 1) * 7 + .25 + .5 + 15, and relu(10 - 9 + 2) * 7 + .25 - .5 + 30
    found = split.logits(tf.split(ids + number + split.bias, split.sizes, axis=1))
    assert found.numpy().tolist() == [[106.75, 50.75]]


@pytest.mark.parametrize("wide", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "shape",
    [
        {"sharing": "embedding"},
        {"sharing": "embedding", "towers": ()},
        {"sharing": "hard"},
        {"sharing": "hard", "towers": (5,)},
        {"sharing": "mmoe", "experts": 3},
        {"sharing": "shared_private", "experts": 2},
        {"sharing": "hierarchical"},
        {"sharing": "hierarchical", "towers": (5,)},
    ],
    ids=str,
)
def test_the_halves_say_what_the_whole_says(shape, wide):
    towers, inputs = towers_of(wide=wide, **shape), rows()
    blocks = [["user", "seen"], ["item", "tags", "price"], ["rates"]]
    np.testing.assert_allclose(logits(SplitTowers(towers), blocks, inputs), towers(inputs), rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=len(NAMES), max_size=len(NAMES)), st.integers(0, 2**31))
def test_any_blocks_add_up_to_the_same(block, seed):
    dealt = [[name for name, b in zip(NAMES, block, strict=True) if b == number] for number in range(3)]
    inputs = rows(7, seed)
    expected = TOWERS(inputs)
    np.testing.assert_allclose(
        logits(SPLIT, [names for names in dealt if names], inputs), expected, rtol=1e-5, atol=1e-5
    )


def test_one_row_is_shared_by_many():
    split, inputs = SplitTowers(towers_of()), rows()
    one = {name: values[:1] for name, values in inputs.items()}
    same = {**inputs, **{name: np.repeat(one[name], 40, axis=0) for name in ("user", "seen")}}
    many = split.share(["item", "tags", "price", "rates"])(inputs)
    first = split.share(["user", "seen"])(one) + many + split.bias
    found = split.logits(tf.split(first, split.sizes, axis=1))
    np.testing.assert_allclose(found, logits(split, [NAMES], same), rtol=1e-5, atol=1e-5)


def test_a_share_holds_its_own_vocabularies_only():
    split = SplitTowers(towers_of())
    assert split.share(["user", "price"]).table.shape == (9, 3 + 2)  # 9 users; embedding and two wide weights
    assert split.share(["seen", "item"]).table.shape == (7, 3 + 2)  # one vocabulary, once
    assert split.share(["rates"]).variables[0].shape == (2, 16 + 2)  # no table; two towers of 8, and the wide part
    # What is kept beside shares: bias 18, and a tower a task of 8 x 6 + 6, 6 x 4 + 4 and 4 + 1 weights.
    assert sum(np.prod(variable.shape) for variable in split.variables) == 18 + 2 * (54 + 28 + 5)


@pytest.mark.parametrize("names", [[], ["item", "nothing"]])
def test_names_that_are_no_features_are_refused(names):
    with pytest.raises(ValueError, match="`names` should be features of the towers"):
        SplitTowers(towers_of()).share(names)


TOWERS = towers_of(seed=5, sharing="mmoe", experts=2)
SPLIT = SplitTowers(TOWERS)
