"""The parts of a score: their names, and what a part is worth before it is weighed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ranking.errors import UserError

__all__ = ["FORMS", "PARTS", "RANK_CONSTANT", "refuse_unknown", "standardise", "standing"]

PARTS = ("similarity", "pctr", "pcvr", "price")
FORMS = ("product", "sum", "rank")
LABELS = ("click", "conversion", "value", "click_time", "conversion_time", "label")
RANK_CONSTANT = 60  # of reciprocal rank fusion: how little the first place stands out (Cormack et al. 2009)
SIMILARITY_EPSILON = 1e-6  # keeps the logarithm of (1 + similarity) / 2 finite at similarity -1
FLOOR = 1e-12  # below it a probability or price is taken for it, before the logarithm


def refuse_unknown(argument: str, names: Mapping[str, Any]) -> None:
    """Refuses what is no part, and above all labels.

    Raises:
        UserError: a name that is not one of `PARTS`.
    """
    for name in names:
        if name in LABELS:
            raise UserError(
                f"`{argument}` should hold no label: what happened cannot enter a score. Received: {name!r}."
            )
        if name not in PARTS:
            raise UserError(f"`{argument}` should be of {', '.join(PARTS)}. Received: {name!r}.")


def standing(parts: Mapping[str, Any], name: str, form: str, offsets: Any = None, xp: Any = np) -> tuple[Any, Any]:
    """A part before standardising, and where it is missing (there it is some finite number).

    Args:
        parts: dict of arrays or tensors `[B]`: any of `PARTS`, and `has_similarity`.
        name: str. The part.
        form: str. `"product"`: its logarithm; `"sum"`: itself; `"rank"`: its rank within the request, 1 the highest, of
            equal ones the first; missing ones are left out.
        offsets: int `[R + 1]`. Request `r` is rows `offsets[r]:offsets[r + 1]`; the rank form of numpy needs it. In a
            graph the batch is one request.
        xp: module. `numpy`, or `keras.ops` in a graph. Defaults to `numpy`.

    Returns:
        `[B]` of the type of the part, and bool `[B]`.
    """
    x = parts[name]
    missing = xp.isnan(x) if name in ("similarity", "price") else xp.zeros_like(x, dtype="bool")
    if name == "similarity" and "has_similarity" in parts:
        missing = xp.logical_or(missing, xp.equal(parts["has_similarity"], 0))
    x = xp.where(missing, xp.ones_like(x), x)
    if form == "product":
        x = (1 + x) / 2 + SIMILARITY_EPSILON if name == "similarity" else x
        x = xp.log(xp.maximum(x, FLOOR))
    elif form == "rank":
        unknown = xp.isnan(x)
        last = xp.full_like(x, np.inf)
        key = xp.where(xp.logical_or(missing, unknown), last, -x)
        x = xp.where(unknown, x, _ranks(key, offsets) if xp is np else _ranks_of_batch(key, xp))
    return x, missing


def standardise(x: Any, form: str, mu: float, sd: float) -> Any:
    """`(x - mu) / sd` of what `standing` gives; of a rank, `(1 / (60 + rank) - mu) / sd`.

    The second is written with one fraction: the difference of two numbers near 1 / 60 would cost float32 a digit.
    """
    if form == "rank":
        return ((1 - RANK_CONSTANT * mu) - mu * x) / (sd * (RANK_CONSTANT + x))
    return (x - mu) / sd


def _ranks(key: np.ndarray, offsets: Any) -> np.ndarray:
    """Rank of each row within its request, the smallest key first: of the type of `key`."""
    if offsets is None:
        raise UserError("`offsets` should tell the requests apart in the rank form. Received: offsets=None.")
    offsets = np.asarray(offsets)
    if (
        offsets.ndim != 1
        or len(offsets) < 2
        or offsets[0] != 0
        or offsets[-1] != len(key)
        or (np.diff(offsets) < 0).any()
    ):
        raise UserError(f"`offsets` should rise from 0 to the number of rows, {len(key)}. Received: {offsets}.")
    request = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((key, request))  # stable
    ranks = np.empty_like(key)
    ranks[order] = np.arange(len(key)) - offsets[request] + 1
    return ranks


def _ranks_of_batch(key: Any, xp: Any) -> Any:
    """The same in a graph: sorted twice, since each is compared with each would take [B, B]."""
    # TensorFlow sorts by top_k, which promises that of equal elements the lower index comes first.
    return xp.cast(xp.argsort(xp.argsort(key)), key.dtype) + 1
