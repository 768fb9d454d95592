"""How old tables are, by their watermark: the last tick of clicks that they know."""

import math
import time
from collections.abc import Mapping
from typing import Any

from serving.errors import ServingError

__all__ = ["FIRST_TIME", "WATERMARK", "check_age", "table_age", "watermark_of"]

WATERMARK = "seed_watermark"  # among a version's facts, and of its outputs
FIRST_TIME = 10**12  # milliseconds, in 2001: a watermark or a version below it counts something else


def table_age(watermark: Any) -> float | None:
    """Seconds since a watermark in milliseconds since 1970, by this machine's clock; none where it is no time.

    One in the future, where clocks differ, is 0 seconds old.
    """
    if not isinstance(watermark, int) or watermark < FIRST_TIME:
        return None
    return max(0.0, time.time() - watermark / 1000)


def watermark_of(outputs: Mapping[str, Any]) -> Any:
    """The watermark among the outputs of an answer, the same for every candidate; none where it is not there."""
    values = outputs.get(WATERMARK)
    return values[0] if isinstance(values, list) and values else None


def check_age(name: str, seconds: float | None) -> None:
    """Refuses a limit that is not a positive number of seconds; `None` is no limit.

    Raises:
        ServingError: it names the argument.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise ServingError(f"`{name}` should be a positive number of seconds. Received: {name}={seconds}.")
