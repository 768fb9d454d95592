"""The settings of a simulated world: a TOML file, read into frozen dataclasses that check themselves."""

import dataclasses
import math
import tomllib
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from ranking.errors import UserError

__all__ = [
    "EXPLORATIONS",
    "Feedback",
    "Items",
    "Policy",
    "State",
    "Traffic",
    "Users",
    "World",
    "dataset_toml",
    "load_world",
]

DAY_MS = 86_400_000
EXPLORATIONS = ("none", "epsilon", "plackett_luce", "uniform")
_PARTS = ("similarity", "pctr", "pcvr", "price")
_WINDOWS = ("lookalike", "train", "calibrate", "tune", "test")


def _require(kept: bool, name: str, rule: str, value: object) -> None:
    if not kept:
        raise UserError(f"`{name}` should be {rule}. Received: {value!r}.")


@dataclasses.dataclass(frozen=True)
class Users:
    """Who is there.

    Args:
        count: int. Users.
        history_clicks: float. Mean clicks of a user in the `history_days` before the log.
        history_days: int. Length of that history.
    """

    count: int
    history_clicks: float
    history_days: int

    def __post_init__(self) -> None:
        _require(self.count >= 10, "users.count", "at least 10", self.count)
        _require(self.history_clicks >= 0, "users.history_clicks", "0 or more", self.history_clicks)
        _require(self.history_days >= 1, "users.history_days", "a positive integer", self.history_days)


@dataclasses.dataclass(frozen=True)
class Items:
    """What is shown.

    Args:
        count: int. Items born before the log starts.
        born_per_day: int. Items born on each day of the log, at any hour.
        categories: int. Interests of the world; each item has one, each user a mixture.
        drift: float. Share of the variance of an item's quality that is renewed in a day, in [0, 1).
    """

    count: int
    born_per_day: int
    categories: int
    drift: float

    def __post_init__(self) -> None:
        _require(self.count >= 2, "items.count", "at least 2", self.count)
        _require(self.born_per_day >= 0, "items.born_per_day", "0 or more", self.born_per_day)
        _require(self.categories >= 2, "items.categories", "at least 2", self.categories)
        _require(0 <= self.drift < 1, "items.drift", "in [0, 1)", self.drift)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What is asked.

    Args:
        requests: int. In all.
        daily: tuple of float. Relative traffic of each day; its length is the number of days.
        candidates: int. Per request, drawn without replacement by popularity and recency among the items born.
        examination: tuple of float. P(the user looks at position k); the first is 1; its length is the slots.
        tabs: tuple of str. The values of the context column `tab`.
    """

    requests: int
    daily: tuple[float, ...]
    candidates: int
    examination: tuple[float, ...]
    tabs: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(self.requests >= 1, "traffic.requests", "a positive integer", self.requests)
        _require(bool(self.daily) and min(self.daily) > 0, "traffic.daily", "positive numbers, one a day", self.daily)
        theta = self.examination
        falls = bool(theta) and theta[0] == 1 and min(theta) > 0 and max(theta) <= 1
        _require(falls, "traffic.examination", "numbers in (0, 1], the first of them 1", theta)
        _require(
            self.candidates >= len(theta), "traffic.candidates", f"at least {len(theta)}, the slots", self.candidates
        )
        _require(bool(self.tabs), "traffic.tabs", "at least one name", self.tabs)


@dataclasses.dataclass(frozen=True)
class Feedback:
    """What users do. Rates are met in expectation, over all impressions and over all clicks.

    Args:
        click_rate: float. Clicks per impression.
        conversion_rate: float. Conversions per click.
        interaction_share: float. Share of the logits' variance that is user x item; the rest is additive.
        spread: tuple of two floats. Standard deviation over candidates of the click and of the conversion logit.
        kinship: float. Correlation of the two logits' interactions, in [-1, 1].
        delay_hours: float. Median time from click to conversion (log-normal).
        attribution_hours: float. Conversions come within it.
    """

    click_rate: float
    conversion_rate: float
    interaction_share: float
    spread: tuple[float, ...]
    kinship: float
    delay_hours: float
    attribution_hours: float

    def __post_init__(self) -> None:
        for name in ("click_rate", "conversion_rate"):
            _require(0 < getattr(self, name) < 1, f"feedback.{name}", "in (0, 1)", getattr(self, name))
        _require(0 <= self.interaction_share <= 1, "feedback.interaction_share", "in [0, 1]", self.interaction_share)
        two = len(self.spread) == 2 and min(self.spread) > 0
        _require(two, "feedback.spread", "two positive numbers, of the click and the conversion logit", self.spread)
        _require(-1 <= self.kinship <= 1, "feedback.kinship", "in [-1, 1]", self.kinship)
        _require(self.delay_hours > 0, "feedback.delay_hours", "positive", self.delay_hours)
        late = self.attribution_hours > self.delay_hours
        _require(late, "feedback.attribution_hours", "above delay_hours", self.attribution_hours)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who wrote the log.

    Args:
        name: str. The `policy_id` of the requests.
        weights: dict. Fusion weights on the standardised parts (product form); a part that is left out counts 0.
        exploration: str. `"none"`, `"epsilon"`, `"plackett_luce"` or `"uniform"`.
        temperature: float. Of `plackett_luce`: slates are drawn by score / temperature.
        epsilon: float. Of `epsilon`: probability that a whole slate is a uniform draw.
        noise: float. Error of the served models' logits, in standard deviations of the true ones.
        blind_days: float. An item this young has no similarity yet.
    """

    name: str
    weights: dict[str, float]
    exploration: str
    temperature: float
    epsilon: float
    noise: float
    blind_days: float

    def __post_init__(self) -> None:
        known = bool(self.weights) and set(self.weights) <= set(_PARTS) and any(self.weights.values())
        _require(known, "policy.weights", f"numbers, not all 0, among {', '.join(_PARTS)}", self.weights)
        allowed = self.exploration in EXPLORATIONS
        _require(allowed, "policy.exploration", f"one of {', '.join(EXPLORATIONS)}", self.exploration)
        _require(self.temperature > 0, "policy.temperature", "positive", self.temperature)
        _require(0 <= self.epsilon <= 1, "policy.epsilon", "in [0, 1]", self.epsilon)
        _require(self.noise >= 0, "policy.noise", "0 or more", self.noise)
        _require(self.blind_days >= 0, "policy.blind_days", "0 or more", self.blind_days)


@dataclasses.dataclass(frozen=True)
class State:
    """What `dataset.toml` says about seeds.

    Args:
        seed_event: str. `"click"` (clicks of the log) or `"behaviors.clicked"` (those of the history too).
        k: int. Centroids an item.
        min_seeds: int. An item with fewer has no similarity.
    """

    seed_event: str
    k: int
    min_seeds: int

    def __post_init__(self) -> None:
        allowed = ("click", "behaviors.clicked")
        _require(self.seed_event in allowed, "state.seed_event", f"one of {', '.join(allowed)}", self.seed_event)
        _require(self.k >= 1, "state.k", "a positive integer", self.k)
        _require(self.min_seeds >= 1, "state.min_seeds", "a positive integer", self.min_seeds)


@dataclasses.dataclass(frozen=True)
class World:
    """All settings of a simulation: the same world is the same bytes.

    Args:
        name: str.
        seed: int. Of the one generator.
        start: datetime.date. First day of the log (UTC).
        users: `Users`.
        items: `Items`.
        traffic: `Traffic`.
        feedback: `Feedback`.
        policy: `Policy`.
        windows: dict. lookalike, train, calibrate, tune, test -> (first day, end day), counted from `start`;
            negative days are the history.
        state: `State`.
    """

    name: str
    seed: int
    start: date
    users: Users
    items: Items
    traffic: Traffic
    feedback: Feedback
    policy: Policy
    windows: dict[str, tuple[int, int]]
    state: State

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        enough = self.items.count >= self.traffic.candidates
        _require(enough, "items.count", f"at least the {self.traffic.candidates} candidates", self.items.count)
        _require(tuple(self.windows) == _WINDOWS, "windows", f"the tables {', '.join(_WINDOWS)}", tuple(self.windows))

    @property
    def days(self) -> int:
        """Days of the log."""
        return len(self.traffic.daily)

    @property
    def slots(self) -> int:
        """Positions of a slate."""
        return len(self.traffic.examination)

    @property
    def start_ms(self) -> int:
        """First moment of the log, ms since the epoch."""
        return int(datetime.combine(self.start, datetime.min.time(), UTC).timestamp()) * 1000


def load_world(name_or_path: str | Path) -> World:
    """Reads a world: `"demo"`, `"reference"`, or the path of a TOML file of the same form.

    Raises:
        UserError: no such world, an unknown or missing key, or a value that breaks its rule.
    """
    shipped = {file.name.removesuffix(".toml"): file for file in resources.files("ranking.data.worlds").iterdir()}
    names = sorted(name for name, file in shipped.items() if file.name.endswith(".toml"))
    origin = str(name_or_path)
    if origin in names:
        text = shipped[origin].read_text(encoding="utf-8")
    elif Path(origin).is_file():
        text = Path(origin).read_text(encoding="utf-8")
    else:
        raise UserError(f"`world` should be {', '.join(names)} or a TOML file. Received: {origin!r}.")
    try:
        return _build(World, tomllib.loads(text), "")
    except (tomllib.TOMLDecodeError, UserError) as error:
        raise UserError(f"{origin}: {error}") from None


def _build(cls: Any, table: Any, prefix: str) -> Any:
    """A dataclass from a TOML table: every key known, none missing, every value of the declared type."""
    _require(isinstance(table, dict), prefix.rstrip(".") or "the file", "a table", table)
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            raise UserError(f"unknown key `{prefix}{key}`: allowed are {', '.join(fields)}.")
    for key in fields:
        if key not in table:
            raise UserError(f"missing key `{prefix}{key}`.")
    return cls(**{key: _value(kind, table[key], prefix + key) for key, kind in fields.items()})


def _value(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, name + ".")
    if kind is float:
        number = type(value) in (int, float) and math.isfinite(value)
        _require(number, name, "a number", value)
        return float(value)
    if kind in (int, str, date):
        _require(type(value) is kind, name, {int: "an integer", str: "a text", date: "a date"}[kind], value)
        return value
    container, inner = kind.__origin__, kind.__args__
    if container is dict:
        _require(isinstance(value, dict), name, "a table", value)
        return {key: _value(inner[1], entry, f"{name}.{key}") for key, entry in value.items()}
    _require(isinstance(value, list), name, "a list", value)
    if Ellipsis not in inner:
        _require(len(value) == len(inner), name, f"a list of {len(inner)}", value)
    return tuple(_value(inner[0], entry, name) for entry in value)


def dataset_toml(world: World) -> str:
    """The `dataset.toml` of a world."""

    def day(number: int) -> str:
        return f'"{(world.start + timedelta(days=number)).isoformat()}"'

    windows = "\n".join(f"{name} = [{day(first)}, {day(end)}]" for name, (first, end) in world.windows.items())
    closed = datetime.combine(world.start, datetime.min.time()) + timedelta(
        days=world.days, hours=world.feedback.attribution_hours
    )
    return _TEMPLATE.format(
        name=world.name,
        attribution=world.feedback.attribution_hours,
        closed=closed.isoformat(timespec="seconds") + "Z",
        windows=windows,
        k=world.state.k,
        min_seeds=world.state.min_seeds,
        seed_event=world.state.seed_event,
        examination=list(world.traffic.examination),
    )


_TEMPLATE = """\
# Written by the simulator from the world "{name}".
schema_version = 1

[ids]
user = "int64"
item = "int64"

[labels]
funnel = ["click", "conversion"]
attribution_hours = {{ conversion = {attribution} }}
observed_until = {closed}
seed_event = "{seed_event}"

[windows]
{windows}

[features.user]
age_range = {{ kind = "categorical" }}
city = {{ kind = "categorical", min_count = 5 }}
interests = {{ kind = "multi", separator = "," }}
activity = {{ kind = "numeric", transform = "log1p" }}
income = {{ kind = "numeric" }}

[features.item]
category = {{ kind = "categorical" }}
author = {{ kind = "categorical", min_count = 2 }}
tags = {{ kind = "multi", separator = "," }}
rating = {{ kind = "numeric" }}
price = {{ kind = "numeric", transform = "log1p" }}

[features.context]
tab = {{ kind = "categorical" }}

[features.behavior]
clicked = {{ vocabulary = "item", keep = 50 }}

[features.statistic]
item_ctr = {{ key = ["item_id"], event = "click", prior = 20 }}
item_tab_ctr = {{ key = ["item_id", "tab"], event = "click", prior = 20 }}
category_ctr = {{ key = ["category"], event = "click", prior = 20 }}
author_ctr = {{ key = ["author"], event = "click", prior = 20 }}
user_ctr = {{ key = ["user_id"], event = "click", prior = 20 }}
item_cvr = {{ key = ["item_id"], event = "conversion", per = "click", prior = 20 }}

[state]
tick = "1d"
k = {k}
min_seeds = {min_seeds}

[replay]
examination = {examination}
"""
