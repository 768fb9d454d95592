"""64-bit fingerprints of ids: what the tables of an exported graph are searched by."""

from typing import Any

import tensorflow as tf

__all__ = ["NO_FINGERPRINT", "fingerprints"]

NO_FINGERPRINT = 2**63 - 1  # of no text


def fingerprints(ids: Any) -> tf.Tensor:
    """int64 `[n]` of ids `[n]`: integers are their own; a text has one in `[0, NO_FINGERPRINT)`."""
    ids = tf.convert_to_tensor(ids)
    return tf.strings.to_hash_bucket_fast(ids, NO_FINGERPRINT) if ids.dtype == tf.string else ids
