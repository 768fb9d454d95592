"""What is asked in a simulated world, and what is true of it: requests, candidates, logits, the clicks before."""

from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

from ranking.data.population import Population
from ranking.data.world import DAY_MS, World

__all__ = ["Logits", "Requests", "draw_history", "draw_requests"]

_HISTORY_SET = 30  # items that a click of the history was chosen from
_HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Requests:
    """Requests in time order.

    Args:
        timestamp: int64 `[requests]`, ms.
        day: int64 `[requests]`, of the log.
        user: int64 `[requests]`, rows of the population.
        tab: int64 `[requests]`.
        item: int64 `[requests, candidates]`, rows of the population, no item twice in a request.
    """

    timestamp: np.ndarray
    day: np.ndarray
    user: np.ndarray
    tab: np.ndarray
    item: np.ndarray


def draw_requests(world: World, population: Population, generator: np.random.Generator) -> Requests:
    """Draws who asks when and where, and the candidates of each request."""
    share = np.cumsum(world.traffic.daily) / np.sum(world.traffic.daily)
    count = world.traffic.requests
    day = np.searchsorted(share, (np.arange(count) + 0.5) / count)
    hours = np.linspace(0, 24, 289)
    busy = np.cumsum(1 - 0.8 * np.cos((hours - 3) / 24 * 2 * np.pi))  # quiet at three in the morning
    within = np.interp(generator.random(count), (busy - busy[0]) / (busy[-1] - busy[0]), hours) * _HOUR_MS
    within = np.minimum(within.astype(np.int64), DAY_MS - 1)
    timestamp = np.sort(world.start_ms + day * DAY_MS + within)
    user = generator.choice(world.users.count, size=count, p=population.traffic["user"])
    tab = generator.choice(len(world.traffic.tabs), size=count)
    item = np.empty((count, world.traffic.candidates), np.int64)
    born = population.items["born"].to_numpy()
    _draw_candidates(generator, population.traffic["item"], born, day, timestamp, item)
    return Requests(timestamp, day, user, tab, item)


@numba.njit(cache=True)
def _draw_candidates(
    generator: np.random.Generator,
    cumulated: np.ndarray,
    born: np.ndarray,
    day: np.ndarray,
    timestamp: np.ndarray,
    item: np.ndarray,
) -> None:
    """Weighted draws without replacement among the items born: a repeated or unborn item is drawn again."""
    for request in range(item.shape[0]):
        weights = cumulated[day[request]]
        found = 0
        while found < item.shape[1]:
            drawn = np.searchsorted(weights, generator.random() * weights[-1], side="right")
            again = born[drawn] > timestamp[request]
            for earlier in range(found):
                again = again or item[request, earlier] == drawn
            if not again:
                item[request, found] = drawn
                found += 1


@numba.njit(cache=True)
def _dot(left: np.ndarray, right: np.ndarray, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Products of the rows of left [users, dim] and right [items, dim] for requests x candidates."""
    out = np.empty(item.shape)
    for request in range(item.shape[0]):
        for place in range(item.shape[1]):
            total = 0.0
            for dim in range(left.shape[1]):
                total += left[user[request], dim] * right[item[request, place], dim]
            out[request, place] = total
    return out


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


@dataclass(frozen=True)
class Logits:
    """What is true of all candidates, but for the intercepts.

    Args:
        click: float64 `[requests, candidates]`. Click logit, mean 0.
        conversion: float64 `[requests, candidates]`. Conversion logit, mean 0.
        interest: float64 `[requests, candidates]`. The interaction part of `click`, standardised.
        interaction_gain: float. Click logit per unit of taste . topic.
        item_gain: float. Click logit per unit of an item's effect.
    """

    click: np.ndarray
    conversion: np.ndarray
    interest: np.ndarray
    interaction_gain: float
    item_gain: float

    @classmethod
    def of(cls, world: World, population: Population, requests: Requests) -> "Logits":
        """Mixes interactions and additive parts, each standardised over the candidates, in the world's shares."""
        share, kin = world.feedback.interaction_share, world.feedback.kinship
        user, item = requests.user[:, None], requests.item
        dot = _dot(population.taste["click"], population.topic["click"], requests.user, item)
        interest = _standard(dot)
        own = _standard(_dot(population.taste["conversion"], population.topic["conversion"], requests.user, item))
        intent = _standard(kin * interest + np.sqrt(1 - kin**2) * own)
        additive = 0.5 * population.user_effect["click"][user]
        additive = additive + 0.7 * population.item_effect["click"][requests.day[:, None], item]
        additive += 0.5 * population.tab_effect[population.category[item], requests.tab[:, None]]
        other = 0.5 * population.user_effect["conversion"][user] + 0.8 * population.item_effect["conversion"][0, item]
        inner, outer = np.sqrt(share), np.sqrt(1 - share)
        click_spread, conversion_spread = world.feedback.spread
        return cls(
            click=click_spread * (inner * interest + outer * _standard(additive)),
            conversion=conversion_spread * (inner * intent + outer * _standard(other)),
            interest=interest,
            interaction_gain=float(click_spread * inner / dot.std()),
            item_gain=float(click_spread * outer * 0.7 / additive.std()),
        )


def draw_history(
    world: World, population: Population, logits: Logits, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and time of the clicks before the log.

    P(item j is the one clicked | one of the set is) is proportional to the odds of a click on j: intercept, user and
    position drop out.
    """
    count = generator.poisson(world.users.history_clicks * world.users.count)
    user = generator.choice(world.users.count, size=count, p=population.traffic["user"])
    span = world.users.history_days * DAY_MS
    time = np.sort(world.start_ms - 1 - generator.integers(span, size=count))
    item = np.empty(count, np.int64)
    _choose_history(
        generator,
        population.traffic["item"][0],
        population.items["born"].to_numpy(),
        time,
        logits.interaction_gain * population.taste["click"][user],
        population.topic["click"],
        logits.item_gain * population.item_effect["click"][0],
        item,
    )
    first = ~pd.DataFrame({"user": user, "item": item}).duplicated().to_numpy() & (item >= 0)
    return user[first], item[first], time[first]


@numba.njit(cache=True)
def _choose_history(
    generator: np.random.Generator,
    weights: np.ndarray,
    born: np.ndarray,
    time: np.ndarray,
    taste: np.ndarray,
    topic: np.ndarray,
    effect: np.ndarray,
    item: np.ndarray,
) -> None:
    for event in range(item.size):
        best, item[event] = -np.inf, -1
        for _ in range(_HISTORY_SET):
            drawn = np.searchsorted(weights, generator.random() * weights[-1], side="right")
            utility = effect[drawn] - np.log(-np.log(1.0 - generator.random()))  # Gumbel noise: a draw by odds
            for dim in range(topic.shape[1]):
                utility += taste[event, dim] * topic[drawn, dim]
            if born[drawn] <= time[event] and utility > best:
                best, item[event] = utility, drawn
