"""A small position-based world under a Plackett-Luce policy, with the truth of every setting by expectation."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from ranking.fusion import FusionWeights, terms
from ranking.replay.log import ReplayLog
from ranking.replay.propensity import log_propensities, place_propensities

THETA = np.array([1.0, 0.8, 0.6, 0.4])
NAMES = ("similarity", "pctr", "pcvr")


@dataclass
class World:
    log: ReplayLog
    pctr: np.ndarray
    pcvr: np.ndarray
    production: FusionWeights

    def setting(self, **weights: float) -> FusionWeights:
        return replace(self.production, weights={name: weights.get(name, 0.0) for name in NAMES})

    def truth(self, setting: FusionWeights) -> dict[str, float]:
        """Expected clicks and conversions a request under the deterministic order of a setting, by argsort."""
        z = terms(self.log.parts, setting)
        score = sum(np.float32(weight) * np.asarray(z[name], np.float32) for name, weight in setting.weights.items())
        clicks = conversions = 0.0
        for start, stop in zip(self.log.offsets[:-1], self.log.offsets[1:], strict=True):
            best = start + np.argsort(-score[start:stop], kind="stable")[: len(THETA)]
            clicks += THETA @ self.pctr[best]
            conversions += THETA @ (self.pctr[best] * self.pcvr[best])
        return {"clicks": clicks / self.log.requests, "conversions": conversions / self.log.requests}


def make_world(
    requests: int = 3000, candidates: int = 12, users: int = 1000, seed: int = 0, temperature: float = 1.0
) -> World:
    """Similarity tells of clicks of new items, pctr and pcvr are noisy; production weighs pctr only."""
    rng = np.random.default_rng(seed)
    n = requests * candidates
    click_logit, convert_logit = rng.normal(-1.2, 1, n), rng.normal(-0.5, 1, n)
    new = rng.random(n) < 0.3
    pctr, pcvr = 1 / (1 + np.exp(-click_logit)), 1 / (1 + np.exp(-convert_logit))
    blurred = np.where(new, -1.2, click_logit) + rng.normal(0, 0.3, n)  # the model knows little about new items
    parts = {
        "similarity": np.tanh(0.5 * (click_logit + 1.2) + rng.normal(0, 0.4, n)).astype(np.float32),
        "has_similarity": np.ones(n, np.float32),
        "pctr": (1 / (1 + np.exp(-blurred))).astype(np.float32),
        "pcvr": (1 / (1 + np.exp(-convert_logit - rng.normal(0, 0.3, n)))).astype(np.float32),
    }
    offsets = np.arange(0, n + 1, candidates)
    production = FusionWeights.fit(parts, "product", {"similarity": 0.1, "pctr": 1.0, "pcvr": 0.1}, "p0")
    z = terms(parts, production)
    score = sum(np.float32(weight) * z[name] for name, weight in production.weights.items()).astype(np.float32)
    logits = score.reshape(requests, candidates).astype(np.float64) / temperature
    order = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=1)[:, : len(THETA)]
    position = np.full(logits.shape, -1, np.int32)
    np.put_along_axis(position, order, np.arange(len(THETA), dtype=np.int32)[None], axis=1)
    position = position.ravel()
    place, exposure = log_propensities(score, offsets, position, THETA, temperature=temperature)
    places = place_propensities(score, offsets, position, len(THETA), temperature=temperature)
    looked = (position >= 0) & (rng.random(n) < np.where(position >= 0, THETA[position], 0))
    click = looked & (rng.random(n) < pctr)
    conversion = click & (rng.random(n) < pcvr)
    user = rng.integers(0, users, requests)
    item = rng.integers(0, 200, n)
    log = ReplayLog(
        offsets=offsets,
        request_id=np.arange(requests),
        timestamp=np.arange(requests),
        user=user,
        parts=parts,
        item=item,
        position=position,
        click=click.astype(np.int8),
        conversion=conversion.astype(np.int8),
        value=np.where(conversion, rng.gamma(2, 5, n), 0).astype(np.float32),
        mature=np.ones(requests, bool),
        new=new,
        exposure_propensity=exposure,
        position_propensity=place,
        logged_score=score,
        examination=THETA,
        exploration=("plackett_luce",),
        window=(0, requests),
        segment=np.array(["new", "regular", "loyal"], object)[user % 3],
        segment_column="segment",
        category=(item % 8).astype(np.int32),
        category_column="category",
        category_names=[f"category-{code}" for code in range(8)],
        item_id=pd.Index([f"item-{code:03}" for code in range(200)]),
        user_id=pd.RangeIndex(10_000, 10_000 + users),
        temperature=np.full(requests, temperature),
        epsilon=np.full(requests, np.nan),
        places=places,
    )
    return World(log, pctr, pcvr, production)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def later() -> World:
    """The same world on a later window."""
    found = make_world(seed=1)
    return replace(found, log=replace(found.log, window=(3000, 6000)))
