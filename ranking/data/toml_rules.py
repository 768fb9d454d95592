"""The rules every table of a TOML file is held to: known keys, allowed words, positive counts."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ranking.errors import UserError

__all__ = ["Rules"]


class Rules:
    """Checks of TOML values; each error names the file, the key and what was received.

    Args:
        origin: str. The file's name.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def fail(self, where: str, rule: str, received: object) -> UserError:
        """The error for a value that breaks a rule."""
        return UserError(f"{self.origin}: {where} {rule}. Received: {received!r}.")

    def keys(self, table: Any, where: str, allowed: Iterable[str], required: Iterable[str] = ()) -> Mapping[str, Any]:
        """The table, when it has the required keys and no other than the allowed ones."""
        if not isinstance(table, dict):
            raise self.fail(where, "should be a table", table)
        allowed = tuple(allowed)
        for key in table:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f"did you mean `{near[0]}`? " if near else ""
                raise UserError(f"{self.origin}: {where}: unknown key `{key}`; {hint}allowed: {', '.join(allowed)}.")
        for key in required:
            if key not in table:
                raise UserError(f"{self.origin}: {where} should have the key `{key}`.")
        return table

    def choice(self, table: Mapping[str, Any], key: str, where: str, allowed: tuple[str, ...], default: str) -> str:
        """The value of a key that is one of a few words."""
        value = table.get(key, default)
        if value not in allowed:
            raise self.fail(f"{where} `{key}`", f"should be one of {', '.join(allowed)}", value)
        return value

    def count(self, table: Mapping[str, Any], key: str, where: str, default: int) -> int:
        """The value of a key that is a positive integer."""
        value = table.get(key, default)
        if type(value) is not int or value < 1:
            raise self.fail(f"{where} `{key}`", "should be a positive integer", value)
        return value

    def text(self, table: Mapping[str, Any], key: str, where: str) -> str:
        """The value of a key that is a text and not empty; empty where the key is absent."""
        value = table.get(key, "")
        if not isinstance(value, str) or (key in table and not value):
            raise self.fail(f"{where} `{key}`", "should be a non-empty text", value)
        return value
