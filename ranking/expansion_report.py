"""What is told of an expansion, beside the audience itself."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lookalike.audience import Audience, holdout, overlap
from lookalike.scorer import Scorer
from ranking.audience_profile import FLOOR, Segments, centroid_profile, floored, list_profile
from ranking.seed_lists import SeedUsers
from ranking.survey import Survey

__all__ = ["list_report", "overlaps", "tested"]

HELD_OUT = 0.2  # share of the seeds that the hold-out hides
LEAST_HIDDEN = 10
REACH_POINTS = 200


def tested(scorer: Scorer, users: SeedUsers, surveyed: Survey, *, k: int, seed: int) -> dict[str, Any]:
    """Whether hidden seeds are found again among the sample of the population; or why that was not tried.

    The filter and the lists to leave out play no part in it: it is the model that is tested, not the choice of whom
    to reach.
    """
    rows = users.seeds.rows
    if round(len(rows) * HELD_OUT) < LEAST_HIDDEN:
        return {"refused": f"a hold-out needs {LEAST_HIDDEN / HELD_OUT:.0f} seeds; there are {len(rows)}"}
    others = surveyed.sample_vectors[~np.isin(surveyed.sample_rows, rows)]
    if len(others) < len(rows):
        return {"refused": f"a hold-out needs as many other users as seeds; there are {len(others)}"}
    vectors, _ = surveyed.of(rows)
    seed_rows = np.arange(len(others), len(others) + len(rows))
    return holdout(scorer, [others, vectors], vectors, seed_rows, share=HELD_OUT, k=k, seed=seed).as_dict()


def list_report(
    users: SeedUsers,
    audience: Audience,
    seed_counts: NDArray[np.int64],
    attributes: pd.DataFrame,
    segments: Segments,
    surveyed: Survey,
) -> dict[str, Any]:
    """What is told of one list, but for the hold-out.

    Args:
        users: `SeedUsers`.
        audience: `Audience`.
        seed_counts: int64 `[k]`. Seeds of each centroid.
        attributes: pandas.DataFrame `[n]`. Of the members, in their order.
        segments: `Segments`.
        surveyed: `Survey`.
    """
    similarity, size = audience.reach.curve(REACH_POINTS)
    told = [place for place, count in enumerate(size) if count >= FLOOR]
    ends: list[float | None] = [None, None, None]
    if len(audience.similarity):
        ends = [float(end(audience.similarity)) for end in (np.min, np.median, np.max)]
    return {
        "name": users.name,
        "match": users.seeds.match.as_dict(),
        "size": len(audience.rows),
        "percent_of_eligible": 100 * len(audience.rows) / audience.eligible,
        "similarity": dict(zip(("lowest", "median", "highest"), ends, strict=True)),
        "reach": {"similarity": [similarity[place] for place in told], "size": [size[place] for place in told]},
        "over_indexing": list_profile(segments, surveyed.of(users.seeds.rows)[1], attributes),
        "centroids": centroid_profile(segments, seed_counts, audience.centroid, attributes),
    }


def overlaps(names: Sequence[str], audiences: Sequence[Audience]) -> list[dict[str, Any]]:
    """How many users each two audiences share; nothing where that is fewer than the floor."""
    rows = []
    for first, second in itertools.combinations(range(len(names)), 2):
        found: dict[str, Any] = overlap(audiences[first], audiences[second])
        told = floored(found["both"]) is not None
        shares = {key: found[key] if told else None for key in ("both", "of_a", "of_b", "jaccard")}
        rows.append({"a": names[first], "b": names[second], **shares})
    return rows
