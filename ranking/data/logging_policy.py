"""The policy that writes a simulated log: noisy score parts, fused, sorted with exploration, exact propensities."""

from dataclasses import dataclass

import numpy as np

from ranking.data.population import Population
from ranking.data.traffic import Logits, Requests
from ranking.data.world import DAY_MS, World
from ranking.fusion import FusionWeights, fuse
from ranking.replay.propensity import log_propensities

__all__ = ["Served", "epsilon_of", "propensities", "serve", "shown_rows"]

_ROUNDS = 3  # of fitting the intercepts to the slates and the slates to the intercepts; 1e-5 after three


@dataclass(frozen=True)
class Served:
    """What the logging policy knew and showed.

    Args:
        parts: dict. `similarity` (NaN where an item is too young), `pctr`, `pcvr`, `price`: float32 `[n]`, as served.
        truth: dict. `pctr`, `pcvr`, `price` `[n]`.
        score: float32 `[requests, candidates]`.
        slate: int64 `[requests, slots]`. Places among the request's candidates.
        weights: FusionWeights. Of the score.
        intercepts: dict. Of the true click and conversion logits.
    """

    parts: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    score: np.ndarray
    slate: np.ndarray
    weights: FusionWeights
    intercepts: dict[str, float]


def serve(
    world: World, population: Population, requests: Requests, logits: Logits, generator: np.random.Generator
) -> Served:
    """Scores and slates, with intercepts such that the rates of the world are met in expectation."""
    policy, feedback = world.policy, world.feedback
    shape = requests.item.shape
    seen = {name: generator.normal(size=shape) for name in ("interest", "click", "conversion")}
    age = requests.timestamp[:, None] - population.items["born"].to_numpy()[requests.item]
    similarity = np.tanh(0.6 * (logits.interest + policy.noise * seen["interest"])).astype(np.float32)
    similarity[age < policy.blind_days * DAY_MS] = np.nan
    price = population.items["price"].to_numpy()[requests.item].astype(np.float32)
    randomness = _slate_noise(world, shape, generator)
    theta = np.asarray(world.traffic.examination)
    intercepts = {"click": _logit(feedback.click_rate), "conversion": _logit(feedback.conversion_rate)}
    for done in range(_ROUNDS + 1):
        parts = {"similarity": similarity, "price": price}
        for label, part, spread in zip(("click", "conversion"), ("pctr", "pcvr"), feedback.spread, strict=True):
            logit = _estimate(getattr(logits, label), seen[label], spread, policy.noise, intercepts[label])
            parts[part] = np.clip(_sigmoid(logit), 1e-6, 1 - 1e-6).astype(np.float32)
        flat = {name: part.ravel() for name, part in parts.items()}
        weights = FusionWeights.fit(flat, "product", policy.weights, f"world:{world.name}:{world.seed}")
        score = np.asarray(fuse(flat, weights), np.float32).reshape(shape)
        slate = _slates(world, score, randomness)
        if done == _ROUNDS:
            break
        shown = {label: np.take_along_axis(getattr(logits, label), slate, 1) for label in intercepts}
        intercepts["click"] = _intercept(shown["click"], theta / theta.sum(), feedback.click_rate / theta.mean())
        clicked = theta * _sigmoid(shown["click"] + intercepts["click"])
        intercepts["conversion"] = _intercept(
            shown["conversion"], clicked / clicked.mean() / theta.size, feedback.conversion_rate
        )
    truth = {
        "pctr": _sigmoid(logits.click + intercepts["click"]).ravel(),
        "pcvr": _sigmoid(logits.conversion + intercepts["conversion"]).ravel(),
        "price": flat["price"],
    }
    return Served(flat, truth, score, slate, weights, intercepts)


def _estimate(logit: np.ndarray, error: np.ndarray, spread: float, noise: float, intercept: float) -> np.ndarray:
    """A served model's logit: the truth seen through noise, shrunk so that its sigmoid is about calibrated.

    With logit x ~ N(0, s^2) seen as x + e, e ~ N(0, (noise s)^2): x given what is seen has mean r (x + e) and variance
    s^2 (1 - r), r = 1 / (1 + noise^2); the mean of its sigmoid is about sigmoid(mean / sqrt(1 + pi variance / 8)).
    """
    kept = 1 / (1 + noise**2)
    return (intercept + kept * (logit + noise * spread * error)) / np.sqrt(1 + np.pi / 8 * spread**2 * (1 - kept))


def _slate_noise(world: World, shape: tuple[int, ...], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The randomness of the policy, drawn once: the rounds of fitting intercepts share it."""
    if world.policy.exploration == "plackett_luce":
        return {"gumbel": generator.gumbel(size=shape)}
    if world.policy.exploration == "none":
        return {}
    explored = generator.random(shape[0]) < epsilon_of(world)
    return {"explored": explored, "uniform": generator.random(shape)}


def epsilon_of(world: World) -> float:
    """The epsilon of a policy that is not Plackett-Luce: all others are epsilon policies."""
    return {"none": 0.0, "epsilon": world.policy.epsilon, "uniform": 1.0}[world.policy.exploration]


def _slates(world: World, score: np.ndarray, noise: dict[str, np.ndarray]) -> np.ndarray:
    key = score.astype(np.float64)
    if "gumbel" in noise:
        key = key / world.policy.temperature + noise["gumbel"]
    elif noise:
        key = np.where(noise["explored"][:, None], noise["uniform"], key)
    return np.argsort(-key, axis=1, kind="stable")[:, : world.slots]


def _intercept(logit: np.ndarray, weight: np.ndarray, rate: float) -> float:
    """The intercept at which the weighted mean probability is `rate`, by bisection; `weight` sums to 1 a request."""
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        found = (weight * _sigmoid(logit + middle)).sum(1).mean()
        low, high = (middle, high) if found < rate else (low, middle)
    return 0.5 * (low + high)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _logit(rate: float) -> float:
    return float(np.log(rate) - np.log1p(-rate))


def shown_rows(served: Served) -> np.ndarray:
    """Rows of the candidates that were shown, request after request, best position first."""
    return (np.arange(served.slate.shape[0])[:, None] * served.score.shape[1] + served.slate).ravel()


def propensities(world: World, served: Served) -> dict[str, np.ndarray]:
    """The columns `position`, `position_propensity` and `exposure_propensity` of all candidates, each `[n]`."""
    requests, candidates = served.score.shape
    position = np.full(served.score.size, -1, np.int32)
    position[shown_rows(served)] = np.tile(np.arange(world.slots, dtype=np.int32), requests)
    random = world.policy.exploration == "plackett_luce"
    at_position, exposure = log_propensities(
        served.score.ravel(),
        np.arange(requests + 1) * candidates,
        position,
        world.traffic.examination,
        temperature=world.policy.temperature if random else None,
        epsilon=None if random else epsilon_of(world),
    )
    return {"position": position, "position_propensity": at_position, "exposure_propensity": exposure}
