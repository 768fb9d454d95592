"""Conditions on attributes: the language, missing values, several values, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.schema import Feature
from ranking.errors import UserError
from ranking.where import Condition, parse_where

FEATURES = {
    "age_range": Feature("age_range", "user", "categorical"),
    "tags": Feature("tags", "user", "multi", separator="|"),
    "followers": Feature("followers", "user", "numeric"),
    "home town": Feature("home town", "user", "categorical"),
    "likes": Feature("likes", "user", "multi", separator="|", weights=":"),
}
USERS = pd.DataFrame(
    {
        "age_range": pd.Series(["18-24", "25-34", None, "18-24"], dtype="str"),
        "tags": pd.Series(["a|b", "b", None, "abc"], dtype="str"),
        "followers": [10.0, 99.5, 100.0, np.nan],
        "home town": pd.Series(["New York", "Paris", "and", ""], dtype="str"),
        "likes": pd.Series(["a:2|b:1", "b:0.5", None, "b:b:1"], dtype="str"),
    }
)


def mask(text):
    where = parse_where(text)
    where.check(FEATURES)
    return where.mask(USERS, FEATURES).astype(int).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("age_range in 18-24,25-34", [1, 1, 0, 1]),
        ("age_range = 18-24", [1, 0, 0, 1]),
        ("age_range=18-24", [1, 0, 0, 1]),
        ("age_range != 18-24", [0, 1, 1, 0]),  # a missing value is not 18-24
        ("age_range not in 18-24, 25-34", [0, 0, 1, 0]),
        ("tags = b", [1, 1, 0, 0]),  # one value of several is enough; abc is another value
        ("tags not in a,b", [0, 0, 1, 1]),
        ("likes = b", [1, 1, 0, 0]),  # the weights are no part of the values; "b:b" is one
        ("followers >= 100", [0, 0, 1, 0]),  # a missing number is neither above nor below
        ("followers < 100", [1, 1, 0, 0]),
        ("followers<=99.5", [1, 1, 0, 0]),
        ("followers > 1e1", [0, 1, 1, 0]),
        ("followers = 10.0", [1, 0, 0, 0]),
        ("followers not in 10,100", [0, 1, 0, 1]),
        ("'home town' in New York, Paris and followers > 50", [0, 1, 0, 0]),
        ('"home town" = "and" and age_range != 18-24', [0, 0, 1, 0]),
        ("'home town' = 'New York'", [1, 0, 0, 0]),
        ("age_range in 18-24,25-34 and tags = b and followers >= 11", [0, 1, 0, 0]),
        ("age_range = nothing", [0, 0, 0, 0]),
    ],
)
def test_known_values(text, expected):
    assert mask(text) == expected


def test_parsed():
    where = parse_where("a in 1, 2 and b != x y")
    assert where.conditions == (Condition("a", "in", ("1", "2")), Condition("b", "not in", ("x y",)))
    assert where.attributes == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "age_range",
        "age_range in",
        "age_range in 18-24,",
        "age_range in ,18-24",
        "age_range = 1,2",
        "age_range == 1",
        "age_range = 18-24 and",
        "and age_range = 18-24",
        "age_range = 18-24 or followers > 1",
        "age_range = 18-24 followers > 1",
        "age_range not 18-24",
        "age_range like 18-24",
        "age_range = 'open",
        "age_range ! 3",
        "= 3",
    ],
)
def test_syntax_is_refused(text):
    with pytest.raises(UserError, match="`where`") as error:
        mask(text)
    assert "\n" not in str(error.value)


def test_what_the_attributes_cannot_answer():
    with pytest.raises(UserError, match="age_range, tags, followers, home town, likes. Received: 'ages'"):
        mask("ages = 3")
    with pytest.raises(UserError, match="followers is a number. Received: 'many'"):
        mask("followers > many")
    with pytest.raises(UserError, match="followers is a number. Received: 'nan'"):
        mask("followers in 1,nan")
    with pytest.raises(UserError, match="age_range is no number.*Received: '<'"):
        mask("age_range < 30")
    with pytest.raises(UserError, match="one of: none"):
        parse_where("a = 1").check({})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda t: '"' not in t), min_size=1, max_size=4), st.data())
def test_quoted_values_are_any_text(values, data):
    quoted = ",".join(f'"{value}"' for value in values)
    (condition,) = parse_where(f"a in {quoted}").conditions
    assert condition.values == tuple(values)
    # a condition and its negation split the users
    column = pd.Series(data.draw(st.lists(st.sampled_from([*values, "other", None]), max_size=8)), dtype="str")
    feature = Feature("a", "user", "categorical")
    inside = condition.mask(column, feature)
    outside = Condition("a", "not in", condition.values).mask(column, feature)
    np.testing.assert_array_equal(inside, ~outside)
    np.testing.assert_array_equal(inside, column.isin(values).to_numpy(bool))
