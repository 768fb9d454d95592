"""Golden requests of a ranker: the answers that a version must give before it is published."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranking.fusion import FusionWeights, fuse
from ranking.run import Run
from ranking.scoring import score_rows
from serving.publish import GOLDEN, write_golden
from serving.server.bundle import Bundle
from serving.server.decode import columns_to_arrays

__all__ = ["FUSION", "golden_requests", "raw_ids", "write_golden_scores"]

FUSION = "assets.extra/fusion.json"  # the weights of a version
GOLDEN_CANDIDATES = 50


def golden_requests(run: Run) -> list[dict[str, Any]]:
    """Requests with the answers that the Python path gives: a version that answers otherwise is not published.

    Without the score, which `write_golden_scores` adds.
    """
    state, schema = run.state, run.schema
    generator = np.random.default_rng(0)
    known = generator.choice(len(state.item_ids), min(GOLDEN_CANDIDATES, len(state.item_ids)), replace=False)
    item_ids = state.item_ids[known]
    segments = ["", *run.weights.segments]
    requests: list[dict[str, Any]] = []
    for number, user in enumerate((0, len(state.user_ids) // 2)):
        context = _golden_context(run, number)
        user_ids = state.user_ids[[user]]
        frame = pd.DataFrame(
            {name: [value] * len(item_ids) for name, value in context.items()}, index=range(len(item_ids))
        )
        one_request = np.array([0, len(item_ids)])
        expected = score_rows(run, state, user_ids.repeat(len(item_ids)), item_ids, frame, offsets=one_request)
        inputs: dict[str, Any] = {"user_id": raw_ids(user_ids), "item_id": raw_ids(item_ids)}
        for feature in schema.side("context"):
            values = np.array([context[feature.name]] * (1 if feature.per == "request" else len(item_ids)))
            inputs[feature.name] = values.astype(np.float32 if feature.kind == "numeric" else object)
        if np.isfinite(state.prices).any():
            inputs["price"] = np.full(len(item_ids), np.nan, np.float32)
        if schema.segment and "segment" not in inputs:
            inputs["segment"] = np.array([segments[min(number, len(segments) - 1)]], object)
        requests.append(
            {
                "signature": "rank",
                "inputs": inputs,
                "outputs": {name: expected[name] for name in ("similarity", "pctr", "pcvr", "pctcvr")},
                "parts": {"price": expected["price"]},
            }
        )
    return requests


def write_golden_scores(folder: Path, weights: FusionWeights) -> None:
    """Sets the scores that a version's golden requests expect: `fuse` of the parts that it answers.

    Of its own parts, not of those of the Python path: a last digit that differs there is many in the score where a
    part hardly varies, and another order in the rank form.

    Args:
        folder: Path. The SavedModel's folder, with its golden requests.
        weights: FusionWeights. That it serves.
    """
    bundle = Bundle(folder)
    content: dict[str, Any] = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    for request in content["requests"]:
        arrays = columns_to_arrays(request["inputs"], bundle.signatures[request["signature"]].inputs)
        found = {**bundle.predict(arrays, signature=request["signature"]), **request["parts"]}
        parts = {name: np.asarray(found[name], np.float64) for name in (*weights.weights, "has_similarity")}
        segment = request["inputs"].get("segment", [None])[0]
        score = fuse(parts, weights, segment=segment, offsets=[0, len(parts["has_similarity"])])
        request["outputs"]["score"] = score.astype(np.float32)
    bundle.close()
    write_golden(folder, content["requests"], tolerance=content["tolerance"])


def raw_ids(ids: pd.Index) -> np.ndarray:
    """Ids as they travel: int64, or text."""
    return ids.to_numpy(np.int64) if ids.dtype.kind == "i" else ids.to_numpy(object)


def _golden_context(run: Run, number: int) -> dict[str, Any]:
    context: dict[str, Any] = {}
    for feature in run.schema.side("context"):
        name = f"context_{feature.name}"
        if feature.kind == "numeric":
            context[feature.name] = run.encoder.ranges[name][0]
        else:
            values = run.encoder.vocabularies[name].values
            context[feature.name] = str(values[number % len(values)]) if len(values) else ""
    return context
