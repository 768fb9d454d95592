"""Names on the wire, and the limits that every signature keeps, whatever serves it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from ranking.data.schema import Behavior, Feature
from ranking.errors import UserError
from ranking.exported.wire import MAX_CANDIDATES, Wire, user_inputs

FEATURES = (
    Feature("tab", "context", "categorical"),
    Feature("hour", "context", "numeric"),
    Feature("place", "context", "numeric", per="candidate"),
    Feature("age", "user", "numeric"),
    Feature("tab", "user", "categorical"),
    Feature("price", "user", "numeric"),
)
NAN, INF = float("nan"), float("inf")


def schema(features=FEATURES):
    def side(wanted):
        return tuple(feature for feature in features if feature.side == wanted)

    return SimpleNamespace(side=side, behaviors=(Behavior("seen"), Behavior("age")), segment="level")


def test_names_of_a_user_are_the_columns_but_where_they_are_taken():
    # tab is a context column, price an input of its own, and the user's age is taken by the time the field age comes
    assert user_inputs(schema()) == {
        "user_age": "age",
        "user_tab": "user_tab",
        "user_price": "user_price",
        "behavior_seen": "seen",
        "behavior_age": "behavior_age",
    }


WIRE = Wire(schema(), pd.Index([1, 2]), priced=True)


def specs(**more):
    return {**WIRE.request(), "seen": tf.TensorSpec([None], tf.int64), **more}


def asked(n=3, **changed):
    inputs = {
        "item_id": np.arange(n),
        "tab": ["home"],
        "hour": np.float32([1]),
        "place": np.float32([1] * n),
        "price": np.float32([NAN] * n),
        "segment": ["new"],
        "seen": np.arange(5),
    }
    return {**inputs, **changed}


def checked(inputs, wanted):
    """As a server asks: with shapes that the graph was not traced with."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        feeds = {name: tf.compat.v1.placeholder(spec.dtype, name=name) for name, spec in wanted.items()}

        @tf.function(input_signature=[{name: tf.TensorSpec(None, spec.dtype) for name, spec in wanted.items()}])
        def graph(arrays):
            return WIRE.checked(arrays, wanted)

        fetched = graph(feeds)
        return session.run(fetched, {feeds[name]: values for name, values in inputs.items()})


def test_what_keeps_the_limits_comes_through_whole():
    found = checked(asked(place=np.float32([4]), hour=np.float32([NAN])), specs())
    assert found["place"].tolist() == [4, 4, 4] and found["seen"].tolist() == [0, 1, 2, 3, 4]
    assert np.isnan(found["hour"]).all() and found["tab"].shape == (1,)
    assert checked(asked(MAX_CANDIDATES), specs())["item_id"].shape == (MAX_CANDIDATES,)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (asked(0), "item_id: at least one candidate"),
        (asked(MAX_CANDIDATES + 1), r"item_id: at most 5000 candidates; received\] \[5001"),
        (asked(item_id=np.array([[1, 2, 3]])), "item_id"),
        (asked(tab=["home", "home", "home"]), "not compatible with expected shape"),
        (asked(place=np.float32([1, 2])), r"place: one value, or one a candidate; received\] \[2"),
        (asked(place=np.float32([1, INF, 2])), "place: should be finite, or NaN"),
        (asked(hour=np.float32([-INF])), "hour: should be finite, or NaN"),
        (asked(price=np.float32([1, -1, 2])), "price: should be finite, 0 or more, or NaN"),
        (asked(price=np.float32([INF])), "price: should be finite"),
    ],
)
def test_refused(inputs, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        checked(inputs, specs())


def test_refused_vectors_and_counts():
    wanted = specs(user_vector=tf.TensorSpec([1, 2], tf.float32), top=tf.TensorSpec([1], tf.int32))
    good = {"user_vector": np.float32([[0, 1]]), "top": np.int32([1])}
    checked(asked(**good), wanted)
    for bad, message in (
        ({"user_vector": np.float32([[0, NAN]])}, r"user_vector: should be finite\]"),
        ({"user_vector": np.float32([[0, 1, 2]])}, "expected shape"),
        ({"top": np.int32([0])}, r"top: should be 1 or more; received\] \[0"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            checked(asked(**good) | bad, wanted)


def test_a_context_feature_called_segment_has_to_be_the_segment():
    for feature in (Feature("segment", "context", "numeric"), Feature("segment", "context", "categorical")):
        with pytest.raises(UserError, match="context feature `segment` has the name"):
            Wire(schema((feature,)), pd.Index([1]), priced=False)
