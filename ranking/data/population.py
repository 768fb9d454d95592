"""Who and what is in a simulated world: latent tastes, and the partial view of them that the features give."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ranking.data.world import DAY_MS, World

__all__ = ["FIRST_ITEM", "FIRST_USER", "SEGMENTS", "Population", "draw_population"]

# Ids beyond 2^32 and 2^24: a float32 anywhere on their way would show.
FIRST_USER = 10_000_000_001
FIRST_ITEM = 20_000_001
SEGMENTS = ("new", "casual", "loyal")

_DIMENSIONS = 8
_AGES = ("under 18", "18-24", "25-34", "35-44", "45-54", "over 54")
_CITIES = 20
_TAGS_PER_CATEGORY = 3
_ITEMS_PER_AUTHOR = 8
_RECENCY_DAYS = 3.0


@dataclass(frozen=True)
class Population:
    """Users, items and what moves them. Rows of users and items are the indices used everywhere in a simulation.

    Args:
        users: DataFrame. The `users` table.
        items: DataFrame. The `items` table, future items included.
        taste: dict. `"click"` and `"conversion"` -> float64 `[users, dim]`, centred.
        topic: dict. The items' counterpart, float64 `[items, dim]`, centred: taste . topic is pure interaction.
        user_effect: dict. `"click"` and `"conversion"` -> float64 `[users]`.
        item_effect: dict. `"click"` -> float64 `[days, items]` (drifts), `"conversion"` -> `[1, items]`.
        tab_effect: float64 `[categories, tabs]`. Of a tab on clicks, per category.
        category: int64 `[items]`.
        traffic: dict. `"user"` -> float64 `[users]`, probability of a request; `"item"` -> float64 `[days, items]`,
            cumulated weights of the candidates' draw; `"segment"` -> int64 `[users]`.
    """

    users: pd.DataFrame
    items: pd.DataFrame
    taste: dict[str, np.ndarray]
    topic: dict[str, np.ndarray]
    user_effect: dict[str, np.ndarray]
    item_effect: dict[str, np.ndarray]
    tab_effect: np.ndarray
    category: np.ndarray
    traffic: dict[str, np.ndarray]


def draw_population(world: World, generator: np.random.Generator) -> Population:
    """Draws users and items, in one fixed order of calls to the generator."""
    categories = world.items.categories
    centres = generator.normal(size=(categories, _DIMENSIONS))
    share = generator.dirichlet(np.full(categories, 5.0))
    users, user_latent = _draw_users(world, centres, share, generator)
    items, item_latent = _draw_items(world, centres, share, generator)
    born = items["born"].to_numpy()
    return Population(
        users=users,
        items=items,
        taste={"click": _centred(user_latent["taste"]), "conversion": _centred(user_latent["intent"])},
        topic={"click": _centred(item_latent["topic"]), "conversion": _centred(item_latent["offer"])},
        user_effect={"click": user_latent["click"], "conversion": user_latent["conversion"]},
        item_effect={"click": item_latent["quality"], "conversion": item_latent["conversion"][None]},
        tab_effect=generator.normal(size=(categories, len(world.traffic.tabs)))
        + 0.7 * generator.normal(size=len(world.traffic.tabs)),
        category=item_latent["category"],
        traffic={
            "user": user_latent["activity"] / user_latent["activity"].sum(),
            "item": _candidate_weights(world, born, item_latent, generator),
            "segment": np.searchsorted(np.quantile(user_latent["activity"], [0.2, 0.7]), user_latent["activity"]),
        },
    )


def _draw_users(
    world: World, centres: np.ndarray, share: np.ndarray, generator: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    count, categories = world.users.count, len(share)
    first, second = generator.choice(categories, size=(2, count), p=share)
    taste = 0.8 * centres[first] + 0.5 * centres[second] + 0.5 * generator.normal(size=(count, _DIMENSIONS))
    intent = generator.normal(size=(count, _DIMENSIONS))
    log_activity = generator.normal(size=count)
    wealth = generator.normal(size=count)
    age = _noisy(_standard(taste @ generator.normal(size=_DIMENSIONS)), 0.6, generator)
    city = _standard(taste @ generator.normal(size=(_DIMENSIONS, _CITIES))) + generator.gumbel(size=(count, _CITIES))
    liked = np.argsort(-(_standard(taste @ centres.T) + 0.4 * generator.normal(size=(count, categories))), axis=1)
    how_many = generator.choice(4, size=count, p=[0.1, 0.2, 0.4, 0.3])
    frame = pd.DataFrame(
        {
            "user_id": np.arange(FIRST_USER, FIRST_USER + count),
            "age_range": np.array(_AGES, object)[np.searchsorted(np.quantile(age, [0.05, 0.3, 0.6, 0.8, 0.93]), age)],
            "city": [f"city-{number:02d}" for number in city.argmax(1)],
            "interests": [
                ",".join(f"category-{number:02d}" for number in sorted(row[:kept])) or None
                for row, kept in zip(liked, how_many, strict=True)
            ],
            "activity": np.round(10 * np.exp(_noisy(0.8 * log_activity, 0.3, generator)), 1),
            "income": np.round(_noisy(intent[:, 0] + wealth, 0.7, generator), 2),
        }
    )
    latent = {
        "taste": taste,
        "intent": intent,
        "activity": np.exp(0.8 * log_activity),
        "click": 0.4 * log_activity + 0.9 * generator.normal(size=count),
        "conversion": 0.5 * wealth + 0.85 * generator.normal(size=count),
    }
    return frame, latent


def _draw_items(
    world: World, centres: np.ndarray, share: np.ndarray, generator: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    categories, count = len(share), world.items.count + world.items.born_per_day * world.days
    authors = -(-count // _ITEMS_PER_AUTHOR)
    home = generator.choice(categories, size=authors, p=share)
    voice = generator.normal(size=(authors, _DIMENSIONS))
    author = generator.integers(authors, size=count)
    category = np.where(generator.random(count) < 0.85, home[author], generator.choice(categories, size=count, p=share))
    topic = 0.8 * centres[category] + 0.4 * voice[author] + 0.45 * generator.normal(size=(count, _DIMENSIONS))
    offer = 0.7 * generator.normal(size=(categories, _DIMENSIONS))[category]
    offer += 0.7 * generator.normal(size=(count, _DIMENSIONS))
    quality = _drifting(world, count, generator)
    log_price = 3.0 + 0.5 * generator.normal(size=categories)[category] + 0.5 * generator.normal(size=count)
    old = -generator.integers(1, 60 * DAY_MS, size=world.items.count)
    young = np.repeat(np.arange(world.days), world.items.born_per_day) * DAY_MS
    young = np.sort(young + generator.integers(DAY_MS, size=young.size))
    flavour = (topic - 0.8 * centres[category]) @ generator.normal(size=(_DIMENSIONS, _TAGS_PER_CATEGORY))
    tag = (_standard(flavour) + 0.5 * generator.normal(size=(count, _TAGS_PER_CATEGORY))).argmax(1)
    other = generator.integers(categories, size=count)
    frame = pd.DataFrame(
        {
            "item_id": np.arange(FIRST_ITEM, FIRST_ITEM + count),
            "category": [f"category-{number:02d}" for number in category],
            "author": [f"author-{number:04d}" for number in author],
            "tags": [f"tag-{c:02d}-{t},trend-{o:02d}" for c, t, o in zip(category, tag, other, strict=True)],
            "rating": np.round(_noisy(quality[0], 0.8, generator), 2),
            "price": np.round(np.exp(log_price), 2),
            "born": world.start_ms + np.concatenate([np.sort(old), young]),
        }
    )
    latent = {
        "topic": topic,
        "offer": offer,
        "quality": quality,
        "conversion": 0.8 * generator.normal(size=count) - 0.6 * _standard(log_price),
        "category": category,
    }
    return frame, latent


def _drifting(world: World, count: int, generator: np.random.Generator) -> np.ndarray:
    """Quality of each item on each day, [days, items]: unit variance, `drift` of it renewed a day."""
    quality = np.empty((world.days, count))
    quality[0] = generator.normal(size=count)
    for day in range(1, world.days):
        renewed = generator.normal(size=count)
        quality[day] = np.sqrt(1 - world.items.drift) * quality[day - 1] + np.sqrt(world.items.drift) * renewed
    return quality


def _candidate_weights(
    world: World, born: np.ndarray, latent: dict[str, np.ndarray], generator: np.random.Generator
) -> np.ndarray:
    """Cumulated weights of the draw of candidates, [days, items]; 0 on days before an item's birth."""
    popularity = 0.8 * generator.normal(size=born.size)
    noon = world.start_ms + DAY_MS * (np.arange(world.days)[:, None] + 0.5)
    age = np.maximum(noon - born, 0.0) / DAY_MS
    weight = np.exp(popularity + 0.5 * latent["quality"] + 1.5 * np.exp(-age / _RECENCY_DAYS))
    weight[born >= noon + DAY_MS / 2] = 0.0
    return np.cumsum(weight, axis=1)


def _noisy(signal: np.ndarray, noise: float, generator: np.random.Generator) -> np.ndarray:
    return signal + noise * generator.normal(size=signal.shape)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(0)
