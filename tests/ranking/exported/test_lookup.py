"""Raw ids to rows."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.errors import UserError
from ranking.exported.lookup import id_dtype, lookup_arrays, rows_of


def found(ids, asked):
    arrays = lookup_arrays(ids, "ids")
    keys, rows = (tf.Variable(arrays[name], shape=[None]) for name in ("keys", "rows"))
    row, known = rows_of(tf.constant(asked, id_dtype(ids)), keys, rows)
    return row.numpy().tolist(), known.numpy().tolist()


def test_rows_by_hand():
    ids = pd.Index([30, -5, 2**53 + 1, 2**63 - 1])
    assert found(ids, [2**53 + 1, 30, 2**53, 0, -5, 2**63 - 1]) == (
        [2, 0, 4, 4, 1, 3],
        [True, True, False, False, True, True],
    )
    assert found(pd.Index(["b", "天", "007"]), ["7", "007", "", "天"]) == ([3, 2, 3, 1], [False, True, False, True])


@pytest.mark.parametrize("ids", [pd.Index([], dtype="int64"), pd.Index([], dtype="str")])
def test_no_ids(ids):
    asked = [0, 7] if ids.dtype.kind == "i" else ["", "a"]
    assert found(ids, asked) == ([0, 0], [False, False])


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(-(2**63), 2**63 - 1), max_size=20), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_rows_are_those_of_pandas(ids, others):
    index = pd.Index(sorted(ids, key=hash), dtype="int64")
    asked = np.array([*others, *ids])
    place = index.get_indexer(asked)
    assert found(index, asked) == (np.where(place < 0, len(index), place).tolist(), (place >= 0).tolist())


def test_ids_of_one_fingerprint_are_refused():
    with pytest.raises(UserError, match="ids: two ids have one 64-bit fingerprint"):
        lookup_arrays(pd.Index(["a", "a"]), "ids")
