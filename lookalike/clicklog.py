"""The append-only click log: what is acknowledged is on the disk, and what is lost is said."""

import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.clicklog_columns import CLICK, ERASED, FORGET, UNCLICK, checked_columns, keys_of
from lookalike.clicklog_damage import Damage, Quarantine
from lookalike.clicklog_erasure import erase
from lookalike.clicklog_files import Format, Mark, sync_folder
from lookalike.clicklog_reading import Batch, ClickLogError, Reader, opened
from lookalike.clicklog_segments import Frame, frames, segment_name, segments
from lookalike.clicklog_writing import Writer, take_lock

__all__ = ["CLICK", "ERASED", "FORGET", "UNCLICK", "Batch", "ClickLog", "ClickLogError", "Damage", "keys_of"]

_KINDS = ("int64", "string")


class ClickLog:
    """Clicks in segment files, in the order in which they were acknowledged; each has an offset, which it keeps.

    One process writes; any number of others may read meanwhile, with `write=False`: they see what is durable. Every
    byte is covered by a checksum. A frame that the writer left half-written is cut off when the log is opened again;
    anything else that is no valid frame is damage: reading goes on behind it, its events are counted, and its bytes
    are copied to the folder `quarantine`.

    Args:
        folder: str or Path. It is made where it is absent.
        user_ids: str, optional. `"int64"` or `"string"`. Defaults to what the log has; `"int64"` for a new one.
        item_ids: str, optional. Likewise.
        segment_bytes: int. A new segment file is begun above it. Defaults to `268_435_456`.
        create: bool. Whether an absent folder is made, and not refused. Defaults to `True`.
        write: bool. Whether this is the log's writer. Defaults to `True`.

    Raises:
        ClickLogError: there is no log, another process writes it, or it has other ids.
        OSError: the folder cannot be written.

    Example:
        ```python
        with ClickLog("clicks") as log:
            first, after = log.append(user=[7, 8], item=[1, 1], time=[now, now])
            for batch in log.read(first):
                store.apply(batch)
        ```
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        user_ids: str | None = None,
        item_ids: str | None = None,
        segment_bytes: int = 268_435_456,
        create: bool = True,
        write: bool = True,
    ) -> None:
        for name, kind in (("user_ids", user_ids), ("item_ids", item_ids)):
            if kind not in (None, *_KINDS):
                raise ValueError(f'`{name}` should be "int64" or "string". Received: {name}={kind!r}.')
        if segment_bytes < 1:
            raise ValueError(f"`segment_bytes` should be a positive integer. Received: segment_bytes={segment_bytes}.")
        self.folder = Path(folder)
        if write and create:
            self.folder.mkdir(parents=True, exist_ok=True)
        if not self.folder.is_dir():
            raise ClickLogError(f"{self.folder}: there is no click log.")
        self._lock = take_lock(self.folder) if write else -1
        try:
            self._format = self._settle_format(user_ids, item_ids, write)
            self._mark = Mark(self.folder, self._format.log)
            self._quarantine = Quarantine(self.folder)
            self._reader = Reader(self.folder, self._format.log, self._quarantine)
            self._writer = None
            if write:
                self._writer = Writer(self.folder, self._format, self._mark, self._quarantine, segment_bytes)
        except BaseException:
            self._unlock()
            raise
        self._keeping = threading.Lock()

    def _settle_format(self, user_ids: str | None, item_ids: str | None, write: bool) -> Format:
        kept = Format.read(self.folder)
        found = kept or self._format_of_frames()
        if found is None and not write:
            raise ClickLogError(f"{self.folder}: there is no click log.")
        if found is None:
            found = Format(secrets.randbits(64), user_ids or "int64", item_ids or "int64")
        for name, asked, held in (("user_ids", user_ids, found.user_ids), ("item_ids", item_ids, found.item_ids)):
            if asked not in (None, held):
                raise ClickLogError(f'{self.folder}: the log has {name}="{held}". Received: {name}={asked!r}.')
        if write and kept is None:
            found.write(self.folder)
        return found

    def _format_of_frames(self) -> Format | None:
        """The format as the first frame has it, where the file that says it is lost."""
        for base in segments(self.folder):
            with opened(self.folder, base) as descriptor:
                for piece in frames(descriptor, 0, base):
                    if isinstance(piece, Frame):
                        header = piece.header
                        return Format(header.log, _KINDS[header.user_text], _KINDS[header.item_text])
        return None

    def __enter__(self) -> "ClickLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process write the log. Reading goes on to work."""
        if self._writer is not None:
            self._writer.close()
            self._mark.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def user_ids(self) -> str:
        """`"int64"` or `"string"`."""
        return self._format.user_ids

    @property
    def item_ids(self) -> str:
        """`"int64"` or `"string"`."""
        return self._format.item_ids

    @property
    def start(self) -> int:
        """The first offset that is kept."""
        found = segments(self.folder)
        return found[0] if found else 0

    @property
    def end(self) -> int:
        """The offset behind the last durable event."""
        if self._writer is not None:
            return self._writer.end
        mark = self._mark.read()
        if mark is not None:
            return mark
        end = 0
        for base in segments(self.folder)[-1:]:  # a copy without a mark: as far as frames go
            end = base
            with opened(self.folder, base) as descriptor:
                for piece in frames(descriptor, 0, base, log=self._format.log):
                    end = piece.header.next if isinstance(piece, Frame) else end
        return end

    @property
    def damage(self) -> list[Damage]:
        """Events that are lost, as far as they were met by anyone who read the log; `check` reads all of it."""
        return self._quarantine.damages()

    @property
    def counters(self) -> dict[str, int]:
        """What was done since the log was opened: events, bytes, syncs, failures (appends that were refused)."""
        return {} if self._writer is None else dict(self._writer.counters)

    @property
    def nbytes(self) -> int:
        """Bytes of the segments."""
        return sum((self.folder / segment_name(base)).stat().st_size for base in segments(self.folder))

    def append(self, user: Any, item: Any, time: Any, kind: Any = None) -> tuple[int, int]:
        """Appends events; when it returns they are durable. Safe from any thread; those that wait share a sync.

        Args:
            user: int64 `[n]`, or texts, as declared.
            item: likewise.
            time: int64 `[n]`. Milliseconds since the epoch; any number, for who reads the log judges it.
            kind: int `[n]`, optional. `CLICK`, `UNCLICK` (takes the user's clicks on the item back, up to that time)
                or `FORGET` (on all items; the item means nothing). Defaults to `CLICK` for all.

        Returns:
            The offsets of the first event and behind the last.

        Raises:
            ValueError: an argument breaks its rule; nothing was appended.
            OSError: it could not be written; nothing was appended, and later appends may succeed.
            ClickLogError: the log is closed, opened for reading, or of no use after a failure.
        """
        writer = self._writing()
        texts = {"user_text": self.user_ids == "string", "item_text": self.item_ids == "string"}
        columns = checked_columns(user, item, time, kind, **texts)
        first = writer.append(columns)
        return first, first + len(columns)

    def read(self, offset: int | None = None, *, until: int | None = None, raw: bool = False) -> Iterator[Batch]:
        """Events in order, in large batches. Lost ones are left out and listed in `damage`; no batch spans them.

        Args:
            offset: int, optional. Where to start. Defaults to the first that is kept.
            until: int, optional. Where to stop. Defaults to the end as it is now.
            raw: bool. Whether the texts of ids come along. Defaults to `False`.

        Raises:
            ValueError: an offset that the log doesn't have, or no longer.
            ClickLogError: retention removed what was still to be read.
        """
        start, end = self.start, self.end
        offset, until = start if offset is None else offset, end if until is None else until
        if not start <= offset <= end:
            raise ValueError(f"`offset` should be from {start} to {end}. Received: offset={offset}.")
        if not offset <= until <= end:
            raise ValueError(f"`until` should be from {offset} to {end}. Received: until={until}.")
        return self._reader.batches(offset, until, end, raw=raw)

    def check(self) -> list[Damage]:
        """Reads the whole log, and returns its damage."""
        end = self.end
        for _ in self._reader.frames(self.start, end, end):
            pass
        return self.damage

    def retain(self, before: int) -> int:
        """Removes whole segments, the oldest first, whose events are all below an offset.

        Args:
            before: int. Events from this offset on are kept.

        Returns:
            int. The first offset that is kept now.
        """
        self._writing().refuse()
        with self._keeping:
            found = segments(self.folder)
            for base, after in zip(found, found[1:], strict=False):
                if after > before:
                    break
                (self.folder / segment_name(base)).unlink()
            sync_folder(self.folder)
            return self.start

    def compact(self, without_users: Any) -> int:
        """Erases users: their events, whatever kind, keep their offsets and items, and nothing else of them is left.

        Segments are rewritten one by one, each at once; appends and readers go on meanwhile. Copies of damaged bytes
        are removed too, for nobody can tell whose events they hold.

        Args:
            without_users: int64 `[n]`, or texts. Ids of the users.

        Returns:
            int. Events erased.
        """
        writer = self._writing()
        users = checked_columns(
            without_users, np.zeros(len(without_users), np.int64), np.zeros(len(without_users), np.int64), None,
            user_text=self.user_ids == "string", item_text=False,
        )  # fmt: skip
        texts = None if users.user_ids is None else set(users.user_ids)
        with self._keeping:
            writer.seal()
            self.check()
            found = segments(self.folder)
            erased = 0
            for base, after in zip(found, found[1:], strict=False):
                path = self.folder / segment_name(base)
                erased += erase(path, base, after, self._format.log, users.user, texts)
            self._quarantine.erase()
            return erased

    def _writing(self) -> Writer:
        if self._writer is None:
            raise ClickLogError(f"{self.folder}: the log was opened for reading.")
        return self._writer
