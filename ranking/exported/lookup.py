"""Raw ids to row numbers, inside the graph."""

import numpy as np
import pandas as pd
import tensorflow as tf

from ranking.errors import UserError
from ranking.fingerprints import fingerprints

__all__ = ["id_dtype", "lookup_arrays", "raw_ids", "rows_of", "search"]


def raw_ids(ids: pd.Index) -> np.ndarray:
    """Ids as they travel: int64, or text."""
    return ids.to_numpy(np.int64) if ids.dtype.kind == "i" else ids.to_numpy(object)


def id_dtype(ids: pd.Index) -> tf.DType:
    """Of the tensor that such ids travel in."""
    return tf.int64 if ids.dtype.kind == "i" else tf.string


def lookup_arrays(ids: pd.Index, what: str) -> dict[str, np.ndarray]:
    """What `rows_of` searches: sorted fingerprints and the row that each belongs to.

    The tables themselves keep the order of their ids, so that a table that grows is not moved about.

    Args:
        ids: pandas.Index. The id of each row.
        what: str. What they are, for the message.

    Returns:
        `keys`, int64 `[ids + 1]`, sorted, the last one there to be looked at and never found; `rows`, int32
        `[ids + 1]`, the last one the row of every other id.

    Raises:
        UserError: two ids have one fingerprint.
    """
    keys = fingerprints(tf.constant(raw_ids(ids), id_dtype(ids))).numpy()
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if len(keys) > 1 and (np.diff(keys) == 0).any():
        raise UserError(f"{what}: two ids have one 64-bit fingerprint; rename one of them.")
    return {"keys": np.append(keys, keys[-1:].max(initial=0)), "rows": np.append(order, len(order)).astype(np.int32)}


def rows_of(ids: tf.Tensor, keys: tf.Variable, rows: tf.Variable) -> tuple[tf.Tensor, tf.Tensor]:
    """int32 rows `[n]` of raw ids `[n]`, the last row for an unknown one; and bool `[n]`, whether it is known."""
    place, found = search(keys.read_value(), fingerprints(ids))
    return rows.sparse_read(place), found


def search(keys: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Places `[n]` in sorted keys `[size + 1]` whose last one is none, `size` for an unknown one; whether it is known.

    The keys are read where they lie: a copy would cost a request as much as the table is large.
    """
    size = tf.size(keys) - 1
    place = tf.minimum(tf.searchsorted(keys, wanted), size)
    found = (place < size) & tf.equal(tf.gather(keys, place), wanted)
    return tf.where(found, place, size), found
