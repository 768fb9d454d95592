"""A user leaves a click log: its segments, the lines set aside beside them, and the snapshots of the seed store."""

import base64
import contextlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookalike.clicklog import ERASED, ClickLog, ClickLogError, keys_of
from lookalike.snapshots import SnapshotError, Snapshots
from ranking.atomic import atomic_file
from ranking.erasure import Person
from ranking.errors import UserError

__all__ = ["LogPlace", "number_of"]

SEEDS = "seeds"  # the folder of snapshots in a log's folder
_ASIDE = ("tails/*.rejects", "set-aside.jsonl")  # lines that broke a rule, of followed files and of streams


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
        self._mark = _mark(self.user)
        self._look()

    def _look(self) -> None:
        aside = [path for pattern in _ASIDE for path in sorted(self.folder.glob(pattern))]
        found = {path: sum(his for _, his in _lines(path, self._mark)) for path in aside}
        self.lines = {path: count for path, count in found.items() if count}
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
                    only = self.events and not self.lines
                    ask = ", or have it erase the user (POST /v1/erase) and come again" if only else ""
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
            for path in self.lines:
                removed["lines set aside"] += _without_lines(path, self._mark)
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


def _mark(user: Any) -> "re.Pattern[bytes]":
    """Finds an id in the bytes of a line, however JSON or a packed value writes it."""
    text = str(user)
    if isinstance(user, int):
        return re.compile(rb"(?<![0-9])%s(?![0-9])|%s" % (text.encode(), re.escape(struct.pack("<q", user))))
    escaped = json.dumps(text)[1:-1]
    upper = re.sub(r"\\u([0-9a-f]{4})", lambda found: f"\\u{found[1].upper()}", escaped)
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    forms = {re.escape(form.encode("utf-8", "surrogatepass")) for form in (text, plain, escaped, upper)}
    whole = b"|".join(sorted(forms))
    before = rb"(?<![0-9A-Za-z])" if text[0].isascii() and text[0].isalnum() else b""
    after = rb"(?![0-9A-Za-z])" if text[-1].isascii() and text[-1].isalnum() else b""
    return re.compile(before + rb"(?:%s)" % whole + after)


def _lines(path: Path, mark: "re.Pattern[bytes]") -> Iterator[tuple[bytes, bool]]:
    """Lines of a file of what was set aside, and whether each holds the user; one that is half-written may."""
    with path.open("rb") as file:
        for line in file:
            try:
                told = json.loads(line)
                pieces = [
                    str(told.get(name, "")).encode("utf-8", "surrogatepass") for name in ("why", "line", "reason")
                ]
                packed = told.get("base64", "")
                packed = [*packed.keys(), *packed.values()] if isinstance(packed, dict) else [packed]
                pieces += [base64.b64decode(text) for text in packed]
            except (ValueError, TypeError, AttributeError):
                yield line, True
                continue
            yield line, any(mark.search(piece) for piece in pieces)


def _without_lines(path: Path, mark: "re.Pattern[bytes]") -> int:
    removed = 0
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for line, his in _lines(path, mark):
            removed += his
            if not his:
                file.write(line)
    return removed


def _without_unreadable(folder: Path) -> int:
    """Removes the snapshots that were set aside or not finished; how many."""
    found = [*folder.glob("*.damaged"), *folder.glob(".tmp-*")]
    for path in found:
        path.unlink()
    return len(found)
