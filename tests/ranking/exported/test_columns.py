"""A column in the exported graph makes the arrays that training was given."""

import functools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.schema import Behavior, Feature
from ranking.exported.columns import BehaviorColumn, FeatureColumn
from ranking.features import Encoder, Vocabulary

WEIGHTED = Feature("seen", "context", "multi", separator="|", weights=":", keep=3)
PLAIN = Feature("seen", "context", "multi", separator="|", keep=3)


@functools.cache
def traced(feature: Feature) -> tuple[Encoder, Callable[..., dict]]:
    """The encoder and its graph, traced once."""
    encoder = Encoder({"context_seen": Vocabulary(pd.Index(["a", "b", "a:b"], dtype="str"))}, {}, 0)
    column = FeatureColumn(feature, encoder)
    return encoder, tf.function(column.__call__, input_signature=[tf.TensorSpec([None], tf.string)])


def both(feature: Feature, texts: list[str]) -> tuple[dict, dict]:
    """Arrays of the encoder, and of the graph; the narrower ones padded."""
    encoder, graph = traced(feature)
    ours = encoder.arrays("context_seen", feature, pd.Series(texts, dtype="str"))
    found = {name: values.numpy() for name, values in graph(tf.constant(texts)).items()}
    wide = max(values.shape[1] for values in [*ours.values(), *found.values()])

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, 0), (0, wide - values.shape[1])])

    return {n: padded(v) for n, v in ours.items()}, {n: padded(v) for n, v in found.items()}


def test_weighted_values_by_hand():
    # a is 2, b is 3, a:b is 4, others 1; the three heaviest, ties in the order of the text; nothing is 0 and weighs 0
    ours, graph = both(WEIGHTED, ["b:1|a:2.5|x:0.5|a:0.1", "a:b:3", ""])
    assert graph["context_seen"].tolist() == [[2, 3, 1], [4, 0, 0], [0, 0, 0]]
    assert graph["context_seen_weight"].tolist() == [[2.5, 1, 0.5], [3, 0, 0], [0, 0, 0]]
    for name, values in ours.items():
        np.testing.assert_array_equal(graph[name], values)


values = st.tuples(st.sampled_from(["a", "b", "a:b", "x", ""]), st.sampled_from(["0", "1", "2.5", "1e-3"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(values, max_size=6), min_size=1, max_size=4))
def test_weighted_values_are_those_of_the_encoder(rows):
    ours, graph = both(WEIGHTED, ["|".join(f"{value}:{weight}" for value, weight in row) for row in rows])
    assert ours.keys() == graph.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(graph[name], array)


@pytest.mark.parametrize("texts", [["a|b|x|a", "", "b||a"], ["x"]])
def test_plain_values_are_those_of_the_encoder(texts):
    ours, graph = both(PLAIN, texts)
    np.testing.assert_array_equal(graph["context_seen"], ours["context_seen"])


@pytest.mark.parametrize(
    ("text", "message"), [("a:many", "many"), ("a:-1", "finite number of 0 or more"), ("a:inf", "finite")]
)
def test_a_weight_that_is_no_number_is_refused(text, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        both_graph([text])


def test_one_text_of_very_many_values_does_not_make_all_as_wide():
    with pytest.raises(tf.errors.InvalidArgumentError, match="fewer values in a text"):
        both_graph(["|" * 5000] + ["a:1"] * 999)


def both_graph(texts: list[str]) -> dict:
    encoder = Encoder({"context_seen": Vocabulary(pd.Index(["a"], dtype="str"))}, {}, 0)
    column = FeatureColumn(WEIGHTED, encoder)
    return tf.function(column.__call__)(tf.constant(texts))


NUMBERS = [0.0, 1.0, 2.5, 7.0, -3.0, 1e30, float("nan")]


@pytest.mark.parametrize("transform", ["minmax", "log1p"])
@pytest.mark.parametrize("range_", [(0.0, 5.0, 0.25), (2.0, 2.0, 0.0)])
def test_numbers_are_those_of_the_encoder(transform, range_):
    feature = Feature("age", "user", "numeric", transform=transform)
    encoder = Encoder({}, {"user_age": range_}, 0)
    ours = encoder.arrays("user_age", feature, pd.Series(NUMBERS))["user_age"]
    found = FeatureColumn(feature, encoder)(tf.constant(NUMBERS))["user_age"].numpy()
    np.testing.assert_allclose(found, ours, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # the vocabulary is 30, 10, 20 -> 2, 3, 4; others 1; the newest first, at most three
        ([], [0, 0, 0]),
        ([10], [3, 0, 0]),
        ([10, 99, 20], [4, 1, 3]),
        ([30, 30, 10, 20, 20], [4, 4, 3]),
    ],
)
def test_behaviours_by_hand(values, expected):
    encoder = Encoder({"item": Vocabulary(pd.Index([30, 10, 20]))}, {}, 0)
    column = BehaviorColumn(Behavior("seen", keep=3), encoder)
    graph = tf.function(column.__call__, input_signature=[tf.TensorSpec([None], tf.int64)])
    assert graph(tf.constant(values, tf.int64))["behavior_seen"].numpy().tolist() == [expected]


def test_behaviours_of_their_own_words():
    encoder = Encoder({"behavior_seen": Vocabulary(pd.Index(["a", "天"], dtype="str"))}, {}, 0)
    column = BehaviorColumn(Behavior("seen", "own", keep=4), encoder)
    assert column.dtype == tf.string
    assert column(tf.constant(["a", "", "天", "b"]))["behavior_seen"].numpy().tolist() == [[1, 3, 0, 2]]
