"""The times of `dataset.toml`: moments, windows and the tick, in milliseconds since the epoch, UTC."""

import re
from datetime import UTC, date, datetime, time
from typing import Any

__all__ = ["parse_moment", "parse_tick"]

_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_moment(value: Any, *, ordinal: bool = False) -> int:
    """Milliseconds of a date, a datetime or its ISO text; without an offset it is UTC. An integer if `ordinal`.

    Raises:
        ValueError: the rule, without the place: the caller knows the file and the key.
    """
    if ordinal:
        if type(value) is not int:
            raise ValueError("should be an integer, because time is ordinal")
        return value
    rule = "should be a date or a datetime, as in 2022-04-25 or 2022-04-25T08:00:00Z"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(rule) from None
    elif type(value) is date:
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise ValueError(rule)
    value = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return int(value.replace(microsecond=0).timestamp()) * 1000 + value.microsecond // 1000


def parse_tick(value: Any, *, ordinal: bool = False) -> int:
    """Milliseconds of a duration such as `"1d"`, `"1h"`, `"5m"`, `"30s"`. A positive integer if `ordinal`.

    Raises:
        ValueError: the rule, without the place.
    """
    if ordinal:
        if type(value) is not int or value < 1:
            raise ValueError("should be a positive integer, because time is ordinal")
        return value
    match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", value) if isinstance(value, str) else None
    if not match:
        raise ValueError('should be a whole number and a unit, as in "1d", "1h", "5m"')
    return int(match[1]) * _UNIT_MS[match[2]]
