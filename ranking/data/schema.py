"""`dataset.toml`: what a dataset's columns mean. Everything is declared, nothing guessed, unknown keys are refused."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranking.data.times import parse_moment, parse_tick
from ranking.data.toml_rules import Rules
from ranking.errors import UserError

__all__ = [
    "FUNNEL",
    "LABEL_COLUMNS",
    "WINDOWS",
    "Behavior",
    "Feature",
    "Schema",
    "Statistic",
    "load_schema",
    "parse_schema",
]

FUNNEL = ("click", "conversion")
LABEL_COLUMNS = ("click", "conversion", "click_time", "conversion_time", "value")
WINDOWS = ("lookalike", "train", "calibrate", "tune", "test")

_ID_TYPES = ("int64", "string")
_SIDES = ("user", "item", "context")
_KINDS = {
    "categorical": ("min_count",),
    "multi": ("min_count", "separator", "weights", "keep"),
    "numeric": ("transform",),
}
_TRANSFORMS = ("minmax", "log1p")
_RESERVED = (
    "user_id",
    "item_id",
    "request_id",
    "timestamp",
    "position",
    "score",
    "similarity",
    "pctr",
    "pcvr",
    "pctcvr",
)


@dataclass(frozen=True)
class Feature:
    """One input column of the model.

    Args:
        name: str. The column, in `users` (side user), `items` (side item) or `impressions` and `requests` (context).
        side: str. `"user"`, `"item"` or `"context"`.
        kind: str. `"categorical"` (one value), `"multi"` (several, joined by `separator`) or `"numeric"`.
        min_count: int. Categorical and multi: rarer values are out of vocabulary. Defaults to `1`.
        separator: str. Multi: what joins the values. Defaults to `","`.
        transform: str. Numeric: `"minmax"` or `"log1p"` (then min-max), clipped to the fitted range.
            Defaults to `"minmax"`.
        per: str. Context: `"request"` (one value a request, `[1]` on the wire) or `"candidate"` (`[N]`).
            Defaults to `"request"`.
        weights: str. Multi: what stands between a value and its weight (0 or more), as `":"` in `sport:2.5,city:1`;
            empty where values have none. Defaults to `""`.
        keep: int. Multi: how many values are used: the heaviest, or the first where there are no weights.
            Defaults to `16`.
    """

    name: str
    side: str
    kind: str
    min_count: int = 1
    separator: str = ","
    transform: str = "minmax"
    per: str = "request"
    weights: str = ""
    keep: int = 16


@dataclass(frozen=True)
class Behavior:
    """One field of the `behaviors` table as a sequence input: the user's latest `keep` values before the tick.

    Args:
        name: str. The value of the `field` column.
        vocabulary: str. `"item"` (values are item ids) or `"own"` (values are any text). Defaults to `"item"`.
        keep: int. How many of the latest values are used. Defaults to `50`.
    """

    name: str
    vocabulary: str = "item"
    keep: int = 50


@dataclass(frozen=True)
class Statistic:
    """The count and the smoothed rate of an event over a key, from events strictly before the row's last tick.

        rate = (events + prior * base) / (trials + prior),   base = all events / all trials

    Args:
        name: str. The statistic's own name.
        key: tuple of str. Among `user_id`, `item_id` and declared features that are not numeric; a multi feature
            stands alone, and for the mean over its values.
        event: str. `"click"`, `"conversion"` or `"behaviors.<field>"`.
        per: str. What counts as a trial: `"impression"`, `"click"` or `"behaviors.<field>"`.
            Defaults to `"impression"`.
        prior: float. Weight of the base rate, in trials. Defaults to `20.0`.
    """

    name: str
    key: tuple[str, ...]
    event: str
    per: str = "impression"
    prior: float = 20.0


@dataclass(frozen=True)
class Schema:
    """A parsed and validated `dataset.toml`. Times are milliseconds since the epoch (or ordinals).

    Args:
        user_id: str. `"int64"` or `"string"`.
        item_id: str. `"int64"` or `"string"`.
        time: str. `"epoch"`, or `"ordinal"` where a source has order only: times, windows and tick are plain integers.
        funnel: tuple of str. The label columns, in order.
        attribution_ms: dict. Label -> how long after the impression it may still come.
        observed_until: int or None. When the log was closed; `None`: just after the last impression
            (`Dataset.observed_until`).
        seed_event: str. What makes a user a seed of an item: `"click"`, `"conversion"` or `"behaviors.<field>"`.
        seed_sample: str. The labelled samples of the look-alike stage: `"impressions"`, or `"behaviors.<field>"`,
            whose rows are positive where a seed event has the same user, value and order.
        windows: dict. Name -> half-open `(start, end)`.
        features: tuple of `Feature`.
        behaviors: tuple of `Behavior`.
        statistics: tuple of `Statistic`.
        tick_ms: int. The cadence at which seeds, centroids and statistics advance.
        k: int. Centroids an item.
        min_seeds: int. An item with fewer seeds has no similarity.
        examination: tuple of float or None. P(user looks at position k) that exposure propensities were made with.
        segment: str. The column that fusion weights may differ by, `segment` on the wire. Defaults to `""`: none.
    """

    user_id: str
    item_id: str
    time: str
    funnel: tuple[str, ...]
    attribution_ms: dict[str, int]
    observed_until: int | None
    seed_event: str
    seed_sample: str
    windows: dict[str, tuple[int, int]]
    features: tuple[Feature, ...]
    behaviors: tuple[Behavior, ...]
    statistics: tuple[Statistic, ...]
    tick_ms: int
    k: int
    min_seeds: int
    examination: tuple[float, ...] | None
    segment: str = ""

    def window(self, name: str) -> tuple[int, int]:
        """The half-open `(start, end)` of a window, or a UserError that lists the declared ones."""
        if name not in self.windows:
            raise UserError(f"[windows] should declare `{name}`. Received: {', '.join(self.windows) or 'no window'}.")
        return self.windows[name]

    def side(self, side: str) -> tuple[Feature, ...]:
        """The features of one side, in the order of the file."""
        return tuple(feature for feature in self.features if feature.side == side)

    def behavior_fields(self) -> dict[str, str]:
        """Every behaviour field in use -> its vocabulary: declared sequences, seeds and statistics."""
        fields = {behavior.name: behavior.vocabulary for behavior in self.behaviors}
        events = [self.seed_event, self.seed_sample]
        events += [event for statistic in self.statistics for event in (statistic.event, statistic.per)]
        for event in events:
            if event.startswith("behaviors."):
                fields.setdefault(event.removeprefix("behaviors."), "item")
        return fields


def load_schema(path: str | Path) -> Schema:
    """Reads a `dataset.toml` (or the one in a folder). Raises UserError, one line, at the first broken rule."""
    path = Path(path) / "dataset.toml" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: a dataset is a folder of tables and one dataset.toml.")
    return parse_schema(path.read_bytes().decode("utf-8", errors="replace"), str(path))


def parse_schema(text: str, origin: str = "dataset.toml") -> Schema:
    """Parses the text of a `dataset.toml`; `origin` names the file in error messages."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin}: not valid TOML: {error}.") from None
    return _Parser(origin).schema(document)


class _Parser:
    """Turns the TOML document into a Schema; holds the file's name for the messages."""

    def __init__(self, origin: str) -> None:
        rules = Rules(origin)
        self.fail, self.keys, self.choice = rules.fail, rules.keys, rules.choice
        self.count, self.text = rules.count, rules.text
        self.ordinal = False

    def schema(self, document: dict[str, Any]) -> Schema:
        top = ("schema_version", "time", "ids", "labels", "windows", "features", "state", "replay")
        self.keys(document, "top level", top, ("schema_version", "ids", "windows"))
        if document["schema_version"] != 1 or type(document["schema_version"]) is not int:
            raise self.fail("`schema_version`", "should be 1", document["schema_version"])
        time_kind = self.choice(document, "time", "top level", ("epoch", "ordinal"), "epoch")
        self.ordinal = time_kind == "ordinal"
        ids = self.keys(document["ids"], "[ids]", ("user", "item"), ("user", "item"))
        labels = self.labels(document.get("labels", {}))
        state = self.keys(document.get("state", {}), "[state]", ("tick", "k", "min_seeds"))
        replay = self.keys(document.get("replay", {}), "[replay]", ("examination", "segment"))
        tables = self.keys(document.get("features", {}), "[features]", (*_SIDES, "behavior", "statistic"))
        features = tuple(feature for side in _SIDES for feature in self.features(tables.get(side, {}), side))
        behaviors = self.behaviors(tables.get("behavior", {}))
        for key in ("seed_event", "seed_sample"):
            self.item_field(labels[key], f"[labels] `{key}`", behaviors)
        return Schema(
            user_id=self.choice(ids, "user", "[ids]", _ID_TYPES, ""),
            item_id=self.choice(ids, "item", "[ids]", _ID_TYPES, ""),
            time=time_kind,
            windows=self.windows(document["windows"]),
            features=features,
            behaviors=behaviors,
            statistics=self.statistics(tables.get("statistic", {}), features),
            tick_ms=self.tick(state.get("tick", None if self.ordinal else "1d")),
            k=self.count(state, "k", "[state]", 20),
            min_seeds=self.count(state, "min_seeds", "[state]", 30),
            examination=self.examination(replay.get("examination")),
            segment=self.text(replay, "segment", "[replay]"),
            **labels,
        )

    def labels(self, table: Any) -> dict[str, Any]:
        allowed = ("funnel", "attribution_hours", "observed_until", "seed_event", "seed_sample")
        self.keys(table, "[labels]", allowed)
        funnel = table.get("funnel", list(FUNNEL))
        if not isinstance(funnel, list) or tuple(funnel) != FUNNEL:
            raise self.fail("[labels] `funnel`", 'should be ["click", "conversion"] (name the columns so)', funnel)
        hours = self.keys(table.get("attribution_hours", {}), "[labels] `attribution_hours`", FUNNEL)
        for label, value in hours.items():
            if type(value) not in (int, float) or not 0 <= value < 1e6 or (self.ordinal and value):
                rule = "should be 0 with ordinal time" if self.ordinal else "should be a number of hours, 0 or more"
                raise self.fail(f"[labels] attribution_hours `{label}`", rule, value)
        until = table.get("observed_until")
        return {
            "funnel": FUNNEL,
            "attribution_ms": {label: round(hours.get(label, 0) * 3_600_000) for label in FUNNEL},
            "observed_until": None if until is None else self.instant(until, "[labels] `observed_until`"),
            "seed_event": self.event(table.get("seed_event", "click"), "[labels] `seed_event`", FUNNEL),
            "seed_sample": self.event(
                table.get("seed_sample", "impressions"), "[labels] `seed_sample`", ("impressions",)
            ),
        }

    def event(self, value: Any, where: str, plain: tuple[str, ...]) -> str:
        if value in plain or (isinstance(value, str) and re.fullmatch(r"behaviors\.\S+", value)):
            return value
        raise self.fail(where, f"should be one of {', '.join(plain)}, behaviors.<field>", value)

    def item_field(self, event: str, where: str, behaviors: tuple[Behavior, ...]) -> None:
        for behavior in behaviors:
            if event == f"behaviors.{behavior.name}" and behavior.vocabulary != "item":
                raise self.fail(where, 'should name a behaviour whose vocabulary is "item"', event)

    def instant(self, value: Any, where: str) -> int:
        try:
            return parse_moment(value, ordinal=self.ordinal)
        except ValueError as error:
            raise self.fail(where, str(error), value) from None

    def windows(self, table: Any) -> dict[str, tuple[int, int]]:
        self.keys(table, "[windows]", WINDOWS)
        windows: dict[str, tuple[int, int]] = {}
        previous = ""
        for name in WINDOWS:
            if name not in table:
                continue
            where = f"[windows] `{name}`"
            if not isinstance(table[name], list) or len(table[name]) != 2:
                raise self.fail(where, "should be a pair [start, end], end exclusive", table[name])
            start, end = (self.instant(value, where) for value in table[name])
            if start >= end:
                raise self.fail(where, "should start before it ends (the end is exclusive)", table[name])
            if previous and start < windows[previous][1]:
                raise self.fail(where, f"should start at or after the end of `{previous}`", table[name])
            windows[name] = (start, end)
            previous = name
        return windows

    def tick(self, value: Any) -> int:
        try:
            return parse_tick(value, ordinal=self.ordinal)
        except ValueError as error:
            raise self.fail("[state] `tick`", str(error), value) from None

    def features(self, table: Any, side: str) -> list[Feature]:
        found = []
        for name in self.keys(table, f"[features.{side}]", table if isinstance(table, dict) else ()):
            where = f"[features.{side}] `{name}`"
            if name in LABEL_COLUMNS:
                raise self.fail(where, "is a label: labels come after the impression and may not be features", name)
            if name in _RESERVED:
                raise self.fail(where, "is a column of the log itself and may not be declared as a feature", name)
            options = ("min_count", "separator", "weights", "keep", "transform", "per")
            entry = self.keys(table[name], where, ("kind", *options), ("kind",))
            kind = self.choice(entry, "kind", where, tuple(_KINDS), "")
            per = ("per",) if side == "context" else ()
            self.keys(entry, f"{where} ({kind}, side {side})", ("kind", *_KINDS[kind], *per))
            separator = entry.get("separator", ",")
            if not isinstance(separator, str) or not separator:
                raise self.fail(f"{where} `separator`", "should be a non-empty text", separator)
            min_count = self.count(entry, "min_count", where, 1)
            transform = self.choice(entry, "transform", where, _TRANSFORMS, "minmax")
            per_value = self.choice(entry, "per", where, ("request", "candidate"), "request")
            weights = self.weights(entry, where, separator)
            keep = self.count(entry, "keep", where, 16)
            if weights and f"{name}_weight" in table:
                raise self.fail(where, f"should not stand beside `{name}_weight`, the name of its weights", name)
            found.append(Feature(name, side, kind, min_count, separator, transform, per_value, weights, keep))
        return found

    def weights(self, entry: Mapping[str, Any], where: str, separator: str) -> str:
        if "weights" not in entry:
            return ""
        weights = entry["weights"]
        if not isinstance(weights, str) or not weights or re.search(r"[0-9.eE+\-]", weights):
            raise self.fail(f"{where} `weights`", "should be a text that cannot be a part of a number", weights)
        if weights in separator or separator in weights:
            raise self.fail(f"{where} `weights`", f"should differ from the separator {separator!r}", weights)
        return weights

    def behaviors(self, table: Any) -> tuple[Behavior, ...]:
        found = []
        for name in self.keys(table, "[features.behavior]", table if isinstance(table, dict) else ()):
            where = f"[features.behavior] `{name}`"
            entry = self.keys(table[name], where, ("vocabulary", "keep"))
            vocabulary = self.choice(entry, "vocabulary", where, ("item", "own"), "item")
            found.append(Behavior(name, vocabulary, self.count(entry, "keep", where, 50)))
        return tuple(found)

    def statistics(self, table: Any, features: tuple[Feature, ...]) -> tuple[Statistic, ...]:
        found = []
        for name in self.keys(table, "[features.statistic]", table if isinstance(table, dict) else ()):
            where = f"[features.statistic] `{name}`"
            entry = self.keys(table[name], where, ("key", "event", "per", "prior"), ("key", "event"))
            event = self.event(entry["event"], f"{where} `event`", FUNNEL)
            per = self.event(entry.get("per", "impression"), f"{where} `per`", ("impression", "click"))
            prior = entry.get("prior", 20)
            if type(prior) not in (int, float) or not 0 < prior < 1e9:
                raise self.fail(f"{where} `prior`", "should be a positive number", prior)
            if event == per:
                raise self.fail(f"{where} `per`", "should differ from `event`", per)
            of_behaviors = event.startswith("behaviors.")
            if of_behaviors != per.startswith("behaviors."):
                raise self.fail(
                    f"{where} `per`", "should be of the same table as `event` (both behaviors or neither)", per
                )
            key = self.statistic_key(entry["key"], f"{where} `key`", features, of_behaviors)
            found.append(Statistic(name, key, event, per, float(prior)))
        return tuple(found)

    def statistic_key(self, key: Any, where: str, features: tuple[Feature, ...], of_behaviors: bool) -> tuple[str, ...]:
        if not isinstance(key, list) or not key or not all(isinstance(part, str) for part in key):
            raise self.fail(where, "should be a non-empty list of column names", key)
        if len(set(key)) != len(key):
            raise self.fail(where, "should name each column once", key)
        allowed = ["user_id", "item_id", *(feature.name for feature in features)]
        self.keys(dict.fromkeys(key), where, dict.fromkeys(allowed))
        multi = False
        for part in key:
            sides = [feature for feature in features if feature.name == part]
            if len(sides) > 1:
                raise self.fail(where, f"should not use `{part}`: it is declared on more than one side", key)
            if sides and sides[0].kind == "numeric":
                raise self.fail(where, f"should hold no numeric feature, and `{part}` is one", key)
            if sides and sides[0].side == "context" and of_behaviors:
                raise self.fail(where, f"should hold no context column, because behaviors have none: `{part}`", key)
            multi = multi or bool(sides and sides[0].kind == "multi")
        if multi and len(key) > 1:
            raise self.fail(where, "should hold a multi feature alone", key)
        return tuple(key)

    def examination(self, values: Any) -> tuple[float, ...] | None:
        if values is None:
            return None
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or not values or not all(0 < value <= 1 for value in values):
            raise self.fail("[replay] `examination`", "should be a list of numbers above 0 and up to 1", values)
        return tuple(float(value) for value in values)
