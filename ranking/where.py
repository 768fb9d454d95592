"""Conditions on users' attributes, as in `age_range in 18-24,25-34 and followers >= 100`."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ranking.data.schema import Feature
from ranking.errors import UserError

__all__ = ["Condition", "Where", "parse_where"]

_TOKEN = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|(<=|>=|!=|=|<|>)|(,)|([^\s,"'<>=!]+))""")
_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EXAMPLE = "age_range in 18-24,25-34 and followers >= 100"


@dataclass(frozen=True)
class Condition:
    """One attribute against one or more values.

    Args:
        attribute: str.
        sign: str. `"in"`, `"not in"`, or one of `<`, `<=`, `>`, `>=`; `=` and `!=` are `in` and `not in` one value.
        values: tuple of str.
    """

    attribute: str
    sign: str
    values: tuple[str, ...]

    def mask(self, column: pd.Series, feature: Feature) -> NDArray[np.bool_]:
        """Who meets it, bool `[n]`."""
        if feature.kind == "numeric":
            numbers = column.to_numpy(np.float64, na_value=np.nan)
            if self.sign in _ORDER:
                return np.asarray(_ORDER[self.sign](numbers, float(self.values[0])), bool)  # NaN meets nothing
            among = np.isin(numbers, [float(value) for value in self.values])
        else:
            codes, texts = pd.factorize(column)
            wanted = set(self.values)
            meets = [bool(wanted.intersection(_values(text, feature))) for text in map(str, texts)]
            among = np.append(meets, False).astype(bool)[codes]  # code -1, missing: the last
        return ~among if self.sign == "not in" else among


def _values(text: str, feature: Feature) -> list[str]:
    """The values in a text, without their weights."""
    if feature.kind != "multi":
        return [text]
    values = text.split(feature.separator)
    return [value.rpartition(feature.weights)[0] for value in values] if feature.weights else values


@dataclass(frozen=True)
class Where:
    """Conditions that all hold.

    A missing value is in no list and neither above nor below anything: it meets `!=` and `not in` only. An attribute
    of several values is in a list if one of them is.

    Args:
        text: str. As it was written.
        conditions: tuple of `Condition`.
    """

    text: str
    conditions: tuple[Condition, ...]

    @property
    def attributes(self) -> list[str]:
        """The attributes that are asked for, each once."""
        return list(dict.fromkeys(condition.attribute for condition in self.conditions))

    def check(self, features: Mapping[str, Feature]) -> None:
        """Refuses what the attributes of a population cannot answer.

        Raises:
            UserError: an unknown attribute, an order of texts, or a text against a number.
        """
        for condition in self.conditions:
            feature = features.get(condition.attribute)
            if feature is None:
                known = ", ".join(features) or "none"
                raise UserError(f"`where` should name one of: {known}. Received: {condition.attribute!r}.")
            if feature.kind == "numeric":
                for value in condition.values:
                    if not _is_number(value):
                        raise UserError(f"`where`: {feature.name} is a number. Received: {value!r}.")
            elif condition.sign in _ORDER:
                raise UserError(
                    f"`where`: {feature.name} is no number, so it takes =, !=, in or not in. "
                    f"Received: {condition.sign!r}."
                )

    def mask(self, frame: pd.DataFrame, features: Mapping[str, Feature]) -> NDArray[np.bool_]:
        """Who meets all conditions, bool `[n]`.

        Args:
            frame: pandas.DataFrame `[n]`. Raw attributes.
            features: name -> `Feature`.
        """
        found = np.ones(len(frame), bool)
        for condition in self.conditions:
            found &= condition.mask(frame[condition.attribute], features[condition.attribute])
        return found


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def parse_where(text: str) -> Where:
    """Reads `ATTRIBUTE (in|not in) VALUE,VALUE` and `ATTRIBUTE (=|!=|<|<=|>|>=) VALUE`, joined by `and`.

    Names and values with other characters, or that are words of the language, go in quotes.

    Raises:
        UserError: the text is no such condition.
    """
    tokens = _tokens(text)
    conditions = []
    while True:
        attribute = _take(tokens, text, "an attribute")
        sign = _sign(tokens, text)
        values = [_value(tokens, text)]
        while sign in ("in", "not in") and tokens and tokens[0] == (",", True):
            tokens.pop(0)
            values.append(_value(tokens, text))
        known = {"=": "in", "!=": "not in"}
        conditions.append(Condition(attribute, known.get(sign, sign), tuple(values)))
        if not tokens:
            return Where(text, tuple(conditions))
        if tokens.pop(0) != ("and", True) or not tokens:
            raise _wrong(text, "conditions joined by `and`")


def _wrong(text: str, what: str) -> UserError:
    return UserError(f"`where` should be {what}, as in {_EXAMPLE!r}. Received: {text!r}.")


def _tokens(text: str) -> list[tuple[str, bool]]:
    """(text, whether it may belong to the language): what is in quotes is a name or a value."""
    found: list[tuple[str, bool]] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        token = _TOKEN.match(text, at)
        if token is None:
            raise _wrong(text, "attributes, signs and values")
        double, single, sign, comma, word = token.groups()
        quoted = double if double is not None else single
        found.append((quoted, False) if quoted is not None else (sign or comma or word, True))
        at = token.end()
    return found


def _take(tokens: list[tuple[str, bool]], text: str, what: str) -> str:
    if not tokens or (tokens[0][1] and tokens[0][0] in (*_ORDER, "=", "!=", ",", "and")):
        raise _wrong(text, f"a condition with {what} at each place")
    return tokens.pop(0)[0]


def _sign(tokens: list[tuple[str, bool]], text: str) -> str:
    words = [word if bare else "" for word, bare in tokens[:2]]
    if words[:2] == ["not", "in"]:
        del tokens[:2]
        return "not in"
    if words and words[0] in (*_ORDER, "=", "!=", "in"):
        return tokens.pop(0)[0]
    raise _wrong(text, "an attribute, then in, not in, =, !=, <, <=, > or >=")


def _value(tokens: list[tuple[str, bool]], text: str) -> str:
    """One quoted text, or words up to a comma or `and`, joined by single spaces."""
    bare = bool(tokens) and tokens[0][1]
    words = [_take(tokens, text, "a value")]
    while bare and tokens and tokens[0][1] and tokens[0][0] not in (*_ORDER, "=", "!=", ",", "and"):
        words.append(tokens.pop(0)[0])
    return " ".join(words)
