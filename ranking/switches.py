"""Settings of a stage from one option of the command line: `name=value,name=value`."""

import dataclasses
from typing import Any, TypeVar

from ranking.errors import UserError

__all__ = ["parse_switches"]

Settings = TypeVar("Settings")


def parse_switches(defaults: Settings, text: str, option: str) -> Settings:
    """A settings object from text; what is not named stays as it is in the defaults.

    Args:
        defaults: a dataclass of bool, int, float, str and tuples of int.
        text: str. `name=value,name=value`; a tuple is written `360-200-80`.
        option: str. The command line's option, for the messages.

    Raises:
        UserError: a name that is not a field, or a value of another type.
    """
    known: dict[str, Any] = vars(defaults)
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or name not in known:
            raise UserError(f"`{option}` should be name=value with a name of: {', '.join(known)}. Received: {part!r}.")
        found[name] = _parsed(name, value, known[name], option)
    return dataclasses.replace(defaults, **found)  # type: ignore[type-var]


def _parsed(name: str, value: str, default: Any, option: str) -> Any:
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise UserError(f"`{option}` {name} should be true or false. Received: {value!r}.")
        return value == "true"
    if isinstance(default, str) or (name == "alpha" and value == "learned"):
        return value
    try:
        return tuple(int(part) for part in value.split("-")) if isinstance(default, tuple) else type(default)(value)
    except ValueError:
        rule = "whole numbers, as 360-200-80" if isinstance(default, tuple) else "a number"
        raise UserError(f"`{option}` {name} should be {rule}. Received: {value!r}.") from None
