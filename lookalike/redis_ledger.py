"""What the writers of a shared seed store agree on, and how one of them at a time changes it."""

import random
import re
import time
from collections.abc import Callable
from typing import Any

from lookalike.redis_link import Commands, Link, Session, StoreUnavailable, WrongAnswer

__all__ = ["Ledger", "Numbers", "Plan", "check_name"]

Numbers = dict[str, int]
Plan = tuple[Commands, Numbers] | None
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LEASE = 2000  # milliseconds after which a writer that died no longer makes others wait
_ATTEMPTS = 50


class Ledger:
    """The numbers of a shared store, in one hash, and transactions that hold only where nobody changed them meanwhile.

    A writer reads, plans and writes in one transaction that watches the hash: had another one written since, nothing
    is done and the writer plans anew. So every change is exact with any number of writers. A lock with a lease spares
    them most of the vain attempts; nothing depends on it.

    Args:
        link: Link. The server.
        name: str. Of the store: letters, digits, `_`, `.` and `-`. All its keys start with it in braces, so that a
            cluster keeps them on one node.
        settings: str. What every writer of the store has to agree on.
    """

    def __init__(self, link: Link, name: str, settings: str) -> None:
        check_name("name", name)
        self.link, self.settings = link, settings.encode()
        self.prefix = b"{%s}:" % name.encode()
        self._meta, self._lock = self.prefix + b"meta", self.prefix + b"lock"

    def read(self, session: Session) -> Numbers:
        """The numbers as they are."""
        return self._numbers(session.ask_one(b"HGETALL", self._meta))

    def change(self, plan: Callable[[Session, Numbers], Plan]) -> Numbers:
        """Carries out what `plan` makes of the present numbers: commands and new numbers, together or not at all.

        Args:
            plan: function. It may read and is called again where another writer was faster; None: nothing to do.

        Returns:
            dict of ints: the numbers afterwards.

        Raises:
            StoreUnavailable: it is not known to be done.
        """
        for _ in range(_ATTEMPTS):
            numbers = self.link.run(lambda session: self._attempt(session, plan))
            if numbers is not None:
                return numbers
        raise StoreUnavailable(f"{self.link.place}: other writers were faster {_ATTEMPTS} times.")

    def _attempt(self, session: Session, plan: Callable[[Session, Numbers], Plan]) -> Numbers | None:
        locked, numbers = self._begin(session)
        try:
            planned = plan(session, numbers)
        except ValueError:
            self._leave(session, locked)
            raise
        if planned is None:
            self._leave(session, locked)
            return numbers
        commands, changed = planned
        changed["version"] = numbers.get("version", 0) + 1
        words: list[bytes | str | int] = [word for pair in changed.items() for word in pair]
        commands.add(b"HSET", self._meta, b"settings", self.settings, *words)
        if locked:
            commands.add(b"DEL", self._lock)
        if session.transact(commands) is None:
            return None
        return numbers | changed

    def _begin(self, session: Session) -> tuple[bool, Numbers]:
        """Waits for the turn; whether it is ours, and the numbers, watched from here on."""
        patience = time.monotonic() + 2 * _LEASE / 1000
        while True:
            commands = Commands()
            commands.add(b"SET", self._lock, b"1", b"NX", b"PX", _LEASE)
            commands.add(b"WATCH", self._meta)
            commands.add(b"HGETALL", self._meta)
            taken, _, found = session.ask(commands)
            if taken is not None or time.monotonic() > patience:
                return taken is not None, self._numbers(found)
            session.ask_one(b"UNWATCH")
            time.sleep(random.uniform(0.001, 0.004))  # noqa: S311  (only spreads the writers)

    def _leave(self, session: Session, locked: bool) -> None:
        commands = Commands()
        commands.add(b"UNWATCH")
        if locked:
            commands.add(b"DEL", self._lock)
        session.ask(commands)

    def _numbers(self, reply: Any) -> Numbers:
        if not isinstance(reply, list) or len(reply) % 2:
            raise WrongAnswer("no hash")
        try:
            found = dict(zip((name.decode() for name in reply[0::2]), reply[1::2], strict=True))
            settings = found.pop("settings", self.settings)
            numbers = {name: int(value) for name, value in found.items()}
        except (AttributeError, UnicodeDecodeError, TypeError, ValueError):
            raise WrongAnswer("a hash of something else") from None
        if settings != self.settings:
            raise ValueError(
                f"{self.link.place}: every writer of the store should have its settings, "
                f"{settings[:200]!r}. Received: {self.settings!r}."
            )
        return numbers


def check_name(argument: str, value: str) -> None:
    """Refuses what could be taken for something else in a key."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"`{argument}` should be 1 to 64 letters, digits, `_`, `.` or `-`. "
            f"Received: {argument}={str(value)[:80]!r}."
        )
