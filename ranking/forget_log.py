"""A user leaves a click log: its segments, the lines set aside beside them, and the snapshots of the seed store."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookalike.clicklog import ERASED, ClickLog, ClickLogError, keys_of
from lookalike.snapshots import SnapshotError, Snapshots
from ranking.erasure import Person
from ranking.errors import UserError
from ranking.forget_aside import lines_with, without_lines

__all__ = ["LogPlace", "number_of"]

SEEDS = "seeds"  # the folder of snapshots in a log's folder


class LogPlace:
    """A click log and what belongs to it, looked through for a user.

    Args:
        folder: str or Path. The log.
        person: Person.

    Attributes:
        events: int. Events of the user in the log.
        lines: dict. Files of lines that were set aside -> how many of them hold his id.
        snapshots: list of Path. Snapshots of the seed store that hold him, or that nobody can read.
        copies: list of Path. Damaged bytes of the log: nobody can tell whose.

    Raises:
        UserError: there is no log, or its ids are numbers and the user's is none.
    """

    def __init__(self, folder: str | Path, person: Person) -> None:
        self.folder = Path(folder)
        self._log: ClickLog | None = None
        try:
            with ClickLog(self.folder, create=False, write=False) as log:
                self.user = person.id(log.user_ids, str(self.folder))
                self.key = number_of(self.user)
                self.events = sum(
                    int(((batch.user == self.key) & (batch.kind != ERASED)).sum()) for batch in log.read()
                )
        except ClickLogError as error:
            raise UserError(str(error)) from None
        self._look()

    def _look(self) -> None:
        self.lines = lines_with(self.folder, self.user)
        self.snapshots = Snapshots(self.folder / SEEDS).holding([self.key])
        self.copies = sorted(self.folder.glob("quarantine/*.bytes"))

    @property
    def known(self) -> bool:
        """Whether the user is in it, as far as it can be read."""
        return bool(self.events or self.lines or any(path.suffix == ".snapshot" for path in self.snapshots))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While the block runs, nobody else writes what has to be written here.

        Raises:
            UserError: another process does; nothing was changed.
        """
        with contextlib.ExitStack() as stack:
            if self.snapshots:
                try:
                    stack.enter_context(Snapshots(self.folder / SEEDS).held(alone=True))
                except SnapshotError as error:
                    raise UserError(f"{error} Stop `seedrank refresh` (or `seedrank up`) first.") from None
            if self.events or self.lines or self.copies:
                try:
                    self._log = stack.enter_context(ClickLog(self.folder, create=False))
                except ClickLogError as error:
                    ask = "" if self.copies else ", or have it erase the user (POST /v1/erase) and come again"
                    raise UserError(f"{error} Stop it first{ask}.") from None
            try:
                yield
            finally:
                self._log = None

    def erase(self) -> dict[str, int]:
        """Takes the user out of everything; inside of `held`. A call that was killed is done again.

        Returns:
            What was removed: clicks, seeds, lines that were set aside, damaged copies.
        """
        removed = {"clicks": 0, "lines set aside": 0, "seeds": 0, "damaged copies": len(self.copies)}
        if self._log is not None:
            removed["clicks"] = self._log.compact([self.user])
            removed["lines set aside"] = without_lines(self.folder, self.user)
        if self.snapshots:
            snapshots = Snapshots(self.folder / SEEDS)
            removed["damaged copies"] += _without_unreadable(snapshots.folder)
            store = snapshots.load()
            if store is not None:
                removed["seeds"] = store.erase([self.key])
                snapshots.save(store, alone=True)
            removed["damaged copies"] += _without_unreadable(snapshots.folder)
        return {what: count for what, count in removed.items() if count}

    def remaining(self) -> list[str]:
        """Looks again, at what lies on the disk: files that hold him still, or may."""
        with ClickLog(self.folder, create=False, write=False) as log:
            his = any(((batch.user == self.key) & (batch.kind != ERASED)).any() for batch in log.read())
        self._look()
        return [*([str(self.folder)] if his else []), *map(str, (*self.lines, *self.snapshots, *self.copies))]


def number_of(user: Any) -> int:
    """The key that an id has in click logs and seed stores.

    Raises:
        UserError: a whole number that no id can be.
    """
    if isinstance(user, int) and not -(2**63) <= user < 2**63:
        raise UserError(f"ids are whole numbers from -2^63 to 2^63 - 1. Received: {user}.")
    return int(keys_of([user])[0])


def _without_unreadable(folder: Path) -> int:
    """Removes the snapshots that were set aside or not finished; how many."""
    found = [*folder.glob("*.damaged"), *folder.glob(".tmp-*")]
    for path in found:
        path.unlink()
    return len(found)
