"""Why a candidate has its score: each part times its weight."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ranking.fusion import FusionWeights, terms

__all__ = ["explain"]


def explain(
    reply: Mapping[str, Any],
    weights: FusionWeights,
    price: Any = None,
    segment: str | None = None,
    *,
    override: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """The score of each candidate of one reply, taken apart.

        score = sum over j of w_j * z_j

    The model doesn't tell an item's own price. Where the price has a weight and wasn't asked for, its contribution is
    what the score of the reply leaves to it.

    Args:
        reply: dict of arrays or lists `[N]`. What a ranking signature answered: `similarity`, `has_similarity`, `pctr`,
            `pcvr` and `score` of one request.
        weights: FusionWeights. Of the version that answered.
        price: array or list `[N]`, NaN or `None` where the request left it to the item's own. Defaults to `None`:
            everywhere.
        segment: str or `None`. Of the request.
        override: dict of part -> float. The weights that were asked for instead. Defaults to `None`.

    Returns:
        A dict a candidate, in the order of the reply: `score`, and `parts`: part -> dict of `value`, `z`, `weight` and
        `contribution`. A missing similarity has z = 0; a price that isn't known has `value` `None`.
    """
    used = (
        dict(weights.of_segment(segment)) if override is None else {**dict.fromkeys(weights.weights, 0.0), **override}
    )
    score = np.asarray(reply["score"], np.float64)  # [N]
    parts = {name: np.asarray(reply[name], np.float64) for name in weights.weights if name != "price"}
    parts["has_similarity"] = np.asarray(reply["has_similarity"], np.float64)
    given = (
        np.full(len(score), np.nan) if price is None else np.array([np.nan if p is None else p for p in price], float)
    )
    if "price" in weights.weights:
        parts["price"] = given
    z = terms(parts, weights, offsets=[0, len(score)])
    if "price" in z and used["price"]:
        others = sum(used[name] * z[name] for name in z if name != "price")
        unknown = np.isnan(given) | (weights.form == "rank")  # a rank is among all prices, those not told too
        z["price"] = np.where(unknown, (score - others) / used["price"], z["price"])
    rows = []
    for row in range(len(score)):
        found = {}
        for name, values in z.items():
            value = float(parts[name][row])
            found[name] = {
                "value": None if np.isnan(value) else value,
                "z": float(values[row]),
                "weight": float(used[name]),
                "contribution": float(used[name] * values[row]),
            }
        rows.append({"score": float(score[row]), "parts": found})
    return rows
