"""A user leaves a Redis or Valkey server: his vector of `seedrank users export`, and a shared seed store."""

import re
from collections.abc import Sequence
from typing import Any

from lookalike.redis_link import StoreUnavailable, place_of
from lookalike.seeds_redis import RedisSeedStore
from ranking.errors import UserError
from ranking.forget_log import number_of
from ranking.users_export import REDIS_KEY, SECONDS

__all__ = ["RedisPlace"]

_STORE = "seeds"  # the name that a RedisSeedStore has where nobody gave another one
_SETTINGS = re.compile(rb"format=1 latest=(\d+) byte_budget=(\d+|None) future_seconds=(\d+)")


class RedisPlace:
    """A server, and whether it has a seed store.

    Args:
        url: str. `redis://`, `rediss://` or `unix://`. Its user may `DEL seedrank:user:*`, or has the rights of a
            `RedisSeedStore`, or both; what is not allowed is left out and noted.

    Attributes:
        name: str. The URL without its secrets.
        notes: list of str. What was not allowed.

    Raises:
        UserError: the package `redis` is missing, or the server cannot be reached.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise UserError("a key-value store needs the package `redis`: pip install 'seedrank[redis]'.") from None
        self._redis, self._url, self.notes = redis, url, list[str]()
        try:
            self.name = place_of(url)
        except ValueError as error:
            raise UserError(f"--redis: {error}") from None
        found = self._ask(lambda client: client.hgetall(f"{{{_STORE}}}:meta"), "the seed store") or {}
        told = _SETTINGS.fullmatch(found.get(b"settings", b""))
        self._settings = told.groups() if told else None

    def _ask(self, work: Any, what: str) -> Any:
        """The server's answer, None where it may not be asked."""
        try:
            with self._redis.Redis.from_url(
                self._url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, decode_responses=False
            ) as client:
                return work(client)
        except self._redis.exceptions.NoPermissionError:
            self.notes.append(f"{self.name}: this URL's user may not touch {what}; it was left as it is")
            return None
        except (self._redis.RedisError, ValueError, OSError) as error:
            raise UserError(f"{self.name}: {str(error) or type(error).__name__}") from None

    def erase(self, users: Sequence[Any]) -> dict[str, int]:
        """Takes a user out, under each of some ids; what was removed: vectors, seeds."""
        keys = [f"{REDIS_KEY}{user}" for user in dict.fromkeys(map(str, users))]
        removed = {"vectors": self._ask(lambda client: client.delete(*keys), f"{REDIS_KEY}*") or 0, "seeds": 0}
        if self._settings is not None:
            latest, budget, future = (None if text == b"None" else int(text) for text in self._settings)
            store = RedisSeedStore(
                self._url, name=_STORE, latest=latest or 1, byte_budget=budget, future_seconds=future or 0
            )
            try:
                removed["seeds"] = store.erase([number_of(user) for user in users])
            except (StoreUnavailable, ValueError) as error:
                raise UserError(str(error)) from None
            finally:
                store.close()
        return {what: count for what, count in removed.items() if count}
