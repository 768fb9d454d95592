"""A connection to Redis or Valkey: deadlines, bounded tries, a rest when the server is down, no secrets in messages."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

__all__ = ["Commands", "Link", "Session", "StoreUnavailable", "WrongAnswer", "place_of"]

T = TypeVar("T")
_SCHEMES = ("redis", "rediss", "unix")
_PAUSE = 0.05  # seconds before the first new try, doubled before each further one
_INSTALL = "The package `redis` is not installed: pip install 'seedrank[redis]'."


class StoreUnavailable(RuntimeError):
    """The shared store cannot be reached, is too slow, refuses, or answers what cannot be right.

    What was asked for is not done, or not known to be done: ask again.
    """


class WrongAnswer(Exception):
    """A reply of a shape that no server gives to this command."""


def place_of(url: str) -> str:
    """A URL without its user, password and options: what messages may show."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            "`url` should start with redis://, rediss:// or unix://, with the password percent-encoded. "
            "Received: another one."
        )
    path = parts.path if parts.scheme == "unix" or parts.path.strip("/").isdigit() else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{path}"


class Commands:
    """Commands in the order they are sent, packed as they go over the wire."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0

    def add(self, *words: bytes | str | int) -> None:
        """One command."""
        self.pieces.append(b"*%d\r\n" % len(words) + b"".join(map(_packed, words)))
        self.count += 1

    def add_packed(self, words: tuple[bytes, ...], rest: bytes, count: int) -> None:
        """One command whose last `count` words are packed already."""
        self.pieces.append(b"*%d\r\n" % (len(words) + count) + b"".join(map(_packed, words)) + rest)
        self.count += 1


def _packed(word: bytes | str | int) -> bytes:
    data = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


class Session:
    """One connection, for the length of one piece of work."""

    def __init__(self, connection: Any, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def ask(self, commands: Commands) -> list[Any]:
        """The replies to some commands, all within the deadline."""
        connection = self._connection
        late, done = threading.Event(), threading.Event()

        def watch() -> None:
            pause = self._deadline
            while not done.wait(pause):  # again, for it may be connecting just then
                late.set()
                connection.disconnect()
                pause = _PAUSE

        # A timeout of the socket is for one wait; a server that sends a byte now and then would never run into it.
        threading.Thread(target=watch, daemon=True).start()
        try:
            connection.send_packed_command([b"".join(commands.pieces)], check_health=False)
            return [connection.read_response(disable_decoding=True) for _ in range(commands.count)]
        except Exception as error:
            if late.is_set():
                raise TimeoutError(f"no answer within {self._deadline:g} s") from error
            if isinstance(error, ArithmeticError | LookupError | TypeError | ValueError | MemoryError):
                if not isinstance(error, OSError):  # as an error of certificates is
                    raise WrongAnswer("no reply of the protocol") from error
            raise
        finally:
            done.set()

    def ask_one(self, *words: bytes | str | int) -> Any:
        """The reply to one command."""
        commands = Commands()
        commands.add(*words)
        return self.ask(commands)[0]

    def transact(self, commands: Commands) -> list[Any] | None:
        """The replies to commands that are carried out together; None where a watched key had changed: nothing was."""
        whole = Commands()
        whole.add(b"MULTI")
        whole.pieces += commands.pieces
        whole.count += commands.count
        whole.add(b"EXEC")
        replies = self.ask(whole)[-1]
        if replies is None:
            return None
        if not isinstance(replies, list) or len(replies) != commands.count:
            raise WrongAnswer("another number of replies than of commands")
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies


class Link:
    """Work on a Redis or Valkey server, with a deadline and bounded tries.

    A connection that breaks is tried anew, `retries` times. What ran into the deadline is not: the caller has waited
    enough. After a failure the server gets a rest, in which calls fail at once in place of waiting; the first call
    after it tries again, so that a server that is back is used again without anybody's help.

    Args:
        url: str. redis://, rediss:// (TLS) or unix://, with user and password where there are any. The options of
            redis-py may follow, as in `?ssl_ca_certs=FILE`.
        deadline: float. Seconds for an answer. Defaults to `5.0`.
        retries: int. New tries after a broken connection. Defaults to `2`.
        rest: float. Seconds without a call after a failure. Defaults to `1.0`.

    Raises:
        ImportError: the extra `redis` is not installed.
        ValueError: the URL is none.
    """

    def __init__(self, url: str, *, deadline: float = 5.0, retries: int = 2, rest: float = 1.0) -> None:
        self.place = place_of(url)
        for name, value in (("deadline", deadline), ("rest", rest)):
            if not value > 0:
                raise ValueError(f"`{name}` should be a positive number of seconds. Received: {name}={value}.")
        if retries < 0:
            raise ValueError(f"`retries` should be 0 or more. Received: retries={retries}.")
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.connection import parse_url
            from redis.retry import Retry
        except ImportError:
            raise ImportError(_INSTALL) from None
        self._errors = redis.exceptions
        self._deadline, self._retries, self._rest, self._rest_until = deadline, retries, rest, 0.0
        self._reason = ""
        # Not handed to a pool: it would add what needs another protocol, and options of the URL would go before these.
        settings = {
            "protocol": 2,
            "decode_responses": False,
            "socket_timeout": deadline,
            "socket_connect_timeout": deadline,
            "health_check_interval": 0,
            "driver_info": None,  # no CLIENT SETINFO, for which the user needs no right
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            found = parse_url(url)
            kind = found.pop("connection_class", redis.Connection)
            self._new = partial(kind, **found | settings)
            self._new()  # it connects with its first command
        except (ValueError, TypeError) as error:
            raise ValueError(f"`url` should be a URL that redis-py reads, {self.place} is not.") from error
        self._free: list[Any] = []
        self._process = os.getpid()

    def run(self, work: Callable[[Session], T]) -> T:
        """What `work` returns. It may be called several times.

        Raises:
            StoreUnavailable: it could not be done.
        """
        if time.monotonic() < self._rest_until:
            raise StoreUnavailable(f"{self.place}: {self._reason} It is tried again in a moment.")
        errors = self._errors
        for attempt in range(self._retries + 1):
            try:
                with self._session() as session:
                    return work(session)
            except (errors.AuthenticationError, errors.NoPermissionError) as error:
                raise self._failed(f"access refused ({_words(error)}).") from error
            except (TimeoutError, errors.TimeoutError) as error:
                raise self._failed(f"no answer within {self._deadline:g} s.") from error
            except (OSError, errors.ConnectionError, errors.InvalidResponse) as error:
                if attempt == self._retries:
                    raise self._failed(f"no connection ({_words(error)}).") from error
                time.sleep(_PAUSE * 2**attempt)
            except errors.RedisError as error:
                raise self._failed(f"refused ({_words(error)}).") from error
            except WrongAnswer as error:
                raise self._failed(f"an answer that cannot be right ({_words(error)}).") from error
        raise StoreUnavailable(self.place)  # not reached: the last try returns or raises

    def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
        while self._free:
            self._free.pop().disconnect()

    def _failed(self, reason: str) -> StoreUnavailable:
        self._reason, self._rest_until = reason, time.monotonic() + self._rest
        return StoreUnavailable(f"{self.place}: {reason}")

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        if self._process != os.getpid():  # after a fork the connections are the parent's
            self._process, self._free = os.getpid(), []
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._new()
        try:
            yield Session(connection, self._deadline)
        except BaseException:
            # Replies may be outstanding and keys watched: nobody should get this connection next.
            connection.disconnect()
            raise
        self._free.append(connection)


def _words(error: Exception) -> str:
    """What an error says, short, on one line, without control characters."""
    text = " ".join(str(error).split())[:200]
    return text.encode("unicode_escape").decode().strip(".") or type(error).__name__
