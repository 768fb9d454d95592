"""A context column in the exported graph makes the arrays that training was given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.schema import Feature
from ranking.export import _ContextColumn
from ranking.features import Encoder, Vocabulary

WEIGHTED = Feature("seen", "context", "multi", separator="|", weights=":", keep=3)
PLAIN = Feature("seen", "context", "multi", separator="|", keep=3)


def both(feature: Feature, texts: list[str]) -> tuple[dict, dict]:
    """Arrays of the encoder, and of the graph; the narrower ones padded."""
    encoder = Encoder({"context_seen": Vocabulary(pd.Index(["a", "b", "a:b"], dtype="str"))}, {}, 0)
    ours = encoder.arrays("context_seen", feature, pd.Series(texts, dtype="str"))
    column = _ContextColumn(feature, SimpleNamespace(encoder=encoder))
    graph = tf.function(column.__call__, input_signature=[tf.TensorSpec([None], tf.string)])
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


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="many"):
        both_graph(["a:many"])


def both_graph(texts: list[str]) -> dict:
    encoder = Encoder({"context_seen": Vocabulary(pd.Index(["a"], dtype="str"))}, {}, 0)
    column = _ContextColumn(WEIGHTED, SimpleNamespace(encoder=encoder))
    return tf.function(column.__call__)(tf.constant(texts))
