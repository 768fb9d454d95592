"""Golden requests of a ranker: the answers that a version must give before it is published."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranking.exported.lookup import raw_ids
from ranking.exported.wire import MAX_CANDIDATES, user_inputs
from ranking.fusion import FusionWeights, fuse
from ranking.run import Run
from ranking.scoring import score_rows
from ranking.state import State
from ranking.strangers import with_features, with_vector
from serving.publish import GOLDEN, write_golden
from serving.verifier import Verifier
from serving.warmup import write_warmup

__all__ = ["FUSION", "GOLDEN_TOLERANCE", "golden_requests", "write_golden_scores", "write_warm_up"]

FUSION = "assets.extra/fusion.json"  # the weights of a version
GOLDEN_CANDIDATES = 50
GOLDEN_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # by the type of the centroids; bfloat16 has 8 bits
CONSTANTS = ("table_version", "seed_watermark", "embedding_space_id")  # the same for every candidate
WARM_UP_CANDIDATES = (1, 100, 1000, MAX_CANDIDATES)
WARM_UP_OTHERS = 1000


def golden_requests(
    run: Run, state: State, weights: FusionWeights, facts: Mapping[str, Any], *, users: bool = True
) -> list[dict[str, Any]]:
    """Requests of every signature, with the answers that the Python path gives.

    The network is one model there, of whole rows: a version whose parts are computed apart and ahead answers the same
    or is not published. Without the score, which `write_golden_scores` adds.

    Args:
        run: Run.
        state: State. Of the tables.
        weights: FusionWeights. That the version serves.
        facts: mapping. Of the version: what its answers must say of its tables and its embedding space.
        users: bool. Whether the version holds users. Defaults to `True`.
    """
    golden = _Golden(run, state, weights, {name: facts[name] for name in CONSTANTS})
    found = []
    if users and len(state.user_ids):
        some = state.user_ids[[0, len(state.user_ids) // 2]]
        ranks = [golden.request("rank", {"user_id": some[[place]]}, place) for place in (0, 1)]
        ranks.append(golden.request("rank", {"user_id": _unknown(state.user_ids)}, 1))
        everything = np.array([len(golden.items[0])], np.int32)  # a rank is among all candidates
        top = {**ranks[0], "signature": "rank_top", "inputs": {**ranks[0]["inputs"], "top": everything}}
        asked = {f"weight_{name}": np.ones(1, np.float32) for name in weights.weights}
        found = [*ranks, top, {**ranks[0], "signature": "rank_with_weights"}]
        found[-1]["inputs"] = {**ranks[0]["inputs"], **asked}
        if weights.form != "rank":
            each = some[np.arange(len(golden.items[0])) % 2]
            found.append(golden.request("serving_default", {"user_id": each}, 0))
    return [*found, *golden.strangers()]


class _Golden:
    """Requests over one choice of candidates; those of number 1 have one that nobody knows among them."""

    def __init__(self, run: Run, state: State, weights: FusionWeights, constants: Mapping[str, int]):
        self.run, self.constants = run, constants
        self.segments = ["", *weights.segments]
        chosen = np.zeros(len(state.item_ids), bool)
        order = np.random.default_rng(0).permutation(len(chosen))[:GOLDEN_CANDIDATES]
        chosen[order] = True
        self.state = state
        self.alone = state.only(np.zeros(len(state.user_ids), bool), chosen)  # small, for users that it lacks
        known = state.item_ids[order]
        self.items = (known, known.append(_unknown(state.item_ids)))
        self.priced = bool(np.isfinite(run.state.prices).any())

    def request(self, signature: str, user: dict[str, Any], number: int, state: State | None = None) -> dict[str, Any]:
        run, items = self.run, self.items[number]
        n, state = len(items), self.state if state is None else state
        ids = user.get("user_id", _unknown(state.user_ids))
        rows = n if len(ids) > 1 else 1
        inputs = {**user, "user_id": raw_ids(ids)} if "user_id" in user else dict(user)
        inputs["item_id"] = raw_ids(items)
        frame = {}
        for feature in run.schema.side("context"):
            value = _typical(run, f"context_{feature.name}", feature.kind, number)
            frame[feature.name] = [value] * n
            kind = np.float32 if feature.kind == "numeric" else object
            inputs[feature.name] = np.array([value] * (rows if feature.per == "request" else n), kind)
        if self.priced:
            inputs["price"] = np.full(n, np.nan, np.float32)
        if run.schema.segment and "segment" not in inputs:
            segment = self.segments[min(number, len(self.segments) - 1)]
            inputs["segment"] = np.array([segment] * rows, object)
        ids = ids if len(ids) == n else ids.repeat(n)
        context = pd.DataFrame(frame, index=range(n))
        expected = score_rows(run, state, ids, items, context, offsets=np.array([0, n]))
        outputs = {name: expected[name] for name in ("similarity", "pctr", "pcvr", "pctcvr")}
        outputs |= {
            "has_similarity": expected["has_similarity"] > 0,
            "known_user": state.rows("user", ids) < len(state.user_ids),
            "known_item": state.rows("item", items) < len(state.item_ids),
            **{name: np.full(n, value) for name, value in self.constants.items()},
        }
        return {
            "signature": signature,
            "inputs": inputs,
            "outputs": outputs,
            "parts": {"price": expected["price"]},
        }

    def strangers(self) -> list[dict[str, Any]]:
        """Of a user that no table holds, by his features and by his vector."""
        run = self.run
        features = {
            feature.name: _typical(run, f"user_{feature.name}", feature.kind, 1) for feature in run.schema.side("user")
        }
        behaviors = {}
        for behavior in run.schema.behaviors:
            name = "item" if behavior.vocabulary == "item" else f"behavior_{behavior.name}"
            behaviors[behavior.name] = run.encoder.vocabularies[name].values[:3][::-1]
        names, own = user_inputs(run.schema), {}
        for feature in run.schema.side("user"):
            kind = np.float32 if feature.kind == "numeric" else object
            own[names[f"user_{feature.name}"]] = np.array([features[feature.name]], kind)
        for field, values in behaviors.items():
            own[names[f"behavior_{field}"]] = raw_ids(values)
        state = with_features(run, self.alone, features, {field: list(values) for field, values in behaviors.items()})
        vector = state.user_vectors[0]
        space = np.array([self.constants["embedding_space_id"]])
        of_vector = {"user_vector": vector[np.newaxis], "embedding_space_id": space}
        return [
            self.request("rank_features", own, 0, state),
            self.request("rank_embedding", of_vector, 1, with_vector(self.alone, vector)),
        ]


def write_golden_scores(folder: Path, weights: FusionWeights, verifier: Verifier, *, graph: bool = True) -> None:
    """Sets the scores that a version's golden requests expect: `fuse` of the parts that it answers.

    Of its own parts, not of those of the Python path: a last digit that differs there is many in the score where a
    part hardly varies, and another order in the rank form.

    Args:
        folder: Path. The SavedModel's folder, with its golden requests.
        weights: FusionWeights. That it serves.
        verifier: Verifier. Asked for the parts: the process that it loads the version in then verifies it.
        graph: bool. Whether the graph is new. Of a graph that has been verified before, `rank` alone says whether the
            weights are the right ones, as all signatures read the same; each other one costs half a second to compile.
            Defaults to `True`.
    """
    content: dict[str, Any] = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    requests: list[dict[str, Any]] = content["requests"]
    of_id = any(request["signature"] == "rank" for request in requests)
    asked = []
    for request in requests:
        signature, outputs = request["signature"], request["outputs"]
        outputs.pop("score", None)
        if signature == "rank_with_weights":
            request["inputs"] |= {f"weight_{name}": [value] for name, value in _other_weights(weights).items()}
        if graph or signature == "rank" or not of_id:
            asked.append(request)
        elif signature == "rank_top":
            request["outputs"] = {name: outputs[name] for name in CONSTANTS}  # the order is another one now
    wanted = [{name: request[name] for name in ("signature", "inputs")} for request in asked]
    for request, found in zip(asked, verifier.predict(folder, wanted, known_graph=not graph), strict=True):
        _set_score(request, found, weights)
    write_golden(folder, requests, tolerance=content["tolerance"])


def _set_score(request: dict[str, Any], found: Mapping[str, list[Any]], weights: FusionWeights) -> None:
    signature, inputs, outputs = request["signature"], request["inputs"], request["outputs"]
    if signature == "rank_top":
        # In the order that it has: near ones may change places with a last digit of the parts.
        place = [inputs["item_id"].index(item) for item in found["item_id"]]
        request["parts"] = {name: [values[row] for row in place] for name, values in request["parts"].items()}
        outputs |= {name: [outputs[name][row] for row in place] for name in outputs if name not in CONSTANTS}
        outputs["item_id"] = [inputs["item_id"][row] for row in place]
    known = {**found, **request["parts"]}
    parts = {name: np.asarray(known[name], np.float64) for name in (*weights.weights, "has_similarity")}
    override = _other_weights(weights) if signature == "rank_with_weights" else None
    segment = inputs.get("segment")
    segment = np.array(segment, object) if segment and len(segment) > 1 else segment and segment[0]
    score = fuse(parts, weights, override, segment=segment, offsets=[0, len(parts["has_similarity"])])
    outputs["score"] = score.astype(np.float32).tolist()


def _other_weights(weights: FusionWeights) -> dict[str, float]:
    """Weights within the bounds, each changed by another factor."""
    found = {}
    for place, (name, weight) in enumerate(weights.weights.items()):
        low, high = weights.bounds[name]
        found[name] = float(np.float32(min(max(weight * (place + 1) / len(weights.weights), low), high)))
    return found


def write_warm_up(folder: Path) -> None:
    """Warm-up requests out of the golden ones: `rank` at each of WARM_UP_CANDIDATES, the other signatures once.

    And the usual calls for no more than is used, which the runtime compiles by themselves.
    """
    content = json.loads((folder / GOLDEN).read_text(encoding="utf-8"))
    first = {request["signature"]: request["inputs"] for request in reversed(content["requests"])}
    many = "rank" if "rank" in first else "rank_embedding"
    requests = [
        {"signature": signature, "inputs": _with_candidates(inputs, count)}
        for signature, inputs in sorted(first.items())
        for count in (WARM_UP_CANDIDATES if signature == many else (WARM_UP_OTHERS,))
    ]
    requests += [
        {"signature": signature, "inputs": _with_candidates(first[signature], WARM_UP_OTHERS), "outputs": outputs}
        for signature, outputs in ((many, ["score"]), ("rank_top", ["item_id", "score"]))
        if signature in first
    ]
    write_warmup(folder, requests)


def _with_candidates(inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    n = len(inputs["item_id"])
    return {
        name: [values[row % n] for row in range(count)] if len(values) == n and (n > 1 or name == "item_id") else values
        for name, values in inputs.items()
    }


def _unknown(ids: pd.Index) -> pd.Index:
    """One id that is not among them."""
    if ids.dtype.kind == "i":
        taken = np.zeros(len(ids) + 1, bool)
        taken[ids[(ids >= 0) & (ids < len(taken))]] = True
        return pd.Index([int(taken.argmin())], dtype=ids.dtype)
    return pd.Index([next(text for n in itertools.count() if (text := f"unknown {n}") not in ids)], dtype=ids.dtype)


def _typical(run: Run, name: str, kind: str, number: int) -> Any:
    """A raw value that the encoder knows."""
    if kind == "numeric":
        return run.encoder.ranges[name][0]
    values = run.encoder.vocabularies[name].values
    return str(values[number % len(values)]) if len(values) else ""
