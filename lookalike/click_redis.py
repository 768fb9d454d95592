"""A Redis stream of clicks, read by a consumer group."""

import socket
import time
from collections.abc import Sequence
from typing import Any

from lookalike.click_streams import Entry
from lookalike.redis_link import Commands, Link, Session, WrongAnswer

__all__ = ["RedisStreamSource"]

_VALUE = b"events"


class RedisStreamSource:
    """Entries of a Redis stream, given again until they were acknowledged.

    An entry has the field `events` (what `pack` made, or JSON lines), or the fields of one event: user_id, item_id,
    time, and kind where it is no click. Packed, an event takes about 25 bytes of the server's memory; an entry an event
    takes more and is far slower.

    Entries that this consumer did not acknowledge before a crash come first; those that another consumer has had for
    `idle` seconds are taken over. The stream is not trimmed here: producers do, by `XADD clicks MAXLEN ~ N`, with N
    well above what comes while this process may be down. The user needs these rights:

        ACL SETUSER seedrank on >PASSWORD resetkeys ~clicks resetchannels -@all +select +xreadgroup +xack
        +xautoclaim +xgroup|create

    Args:
        url: str. As of `RedisSeedStore`.
        stream: str. The key.
        group: str. The consumer group; it is made where it is absent, from the stream's first entry on.
        consumer: str, optional. Keep it over restarts, one for each process. Defaults to the host's name.
        entries: int. Entries pulled at once. Defaults to `100`.
        idle: float. Seconds after which another consumer's entries are taken over. Defaults to `60.0`.
        deadline: float. Seconds for an answer of the server. Defaults to `5.0`.
    """

    def __init__(
        self,
        url: str,
        *,
        stream: str,
        group: str,
        consumer: str | None = None,
        entries: int = 100,
        idle: float = 60.0,
        deadline: float = 5.0,
    ) -> None:
        for name, text in (("stream", stream), ("group", group)):
            if not text:
                raise ValueError(f"`{name}` should not be empty.")
        if entries < 1:
            raise ValueError(f"`entries` should be a positive integer. Received: entries={entries}.")
        if not idle > 0:
            raise ValueError(f"`idle` should be a positive number of seconds. Received: idle={idle}.")
        self._link = Link(url, deadline=deadline)
        self._stream, self._group, self._consumer = stream, group, consumer or socket.gethostname()
        self._entries, self._idle, self._deadline = entries, idle, deadline
        self._ready = False
        self._own: bytes | None = b"0"  # the entry behind which this consumer's unacknowledged ones are read
        self._cursor, self._claim_at = b"0-0", 0.0
        self.deleted = 0  # entries trimmed off the stream before they were read: too little room in it

    def pull(self, wait: float) -> list[Entry]:
        """Next entries, after at most `wait` seconds, and less where the deadline is short."""
        return self._link.run(lambda session: self._pull(session, wait))

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Those entries are durable elsewhere and need not be given again."""
        try:
            self._link.run(lambda session: self._acknowledge(session, [entry.receipt for entry in entries]))
        except BaseException:
            self.again()
            raise

    def again(self) -> None:
        """Gives what was pulled and not acknowledged once more."""
        self._own = b"0"

    def close(self) -> None:
        """Closes the connection."""
        self._link.close()

    def _pull(self, session: Session, wait: float) -> list[Entry]:
        if not self._ready:
            self._make_group(session)
        while self._own is not None:
            found = self._read(session, self._own, 0)
            self._own = found[-1][0] if found else None
            if entries := self._present(session, found):
                return entries
        self._own = b"0"  # until the reply is here: what a lost one held has been given to this consumer
        entries = self._claim(session) if time.monotonic() >= self._claim_at else []
        entries = entries or self._present(session, self._read(session, b">", min(wait, self._deadline / 2)))
        self._own = None
        return entries

    def _make_group(self, session: Session) -> None:
        try:
            session.ask_one(b"XGROUP", b"CREATE", self._stream, self._group, b"0", b"MKSTREAM")
        except Exception as error:
            if "BUSYGROUP" not in str(error) and "already exists" not in str(error):
                raise
        self._ready = True

    def _read(self, session: Session, after: bytes, wait: float) -> list[Any]:
        words: list[bytes | str | int] = [b"XREADGROUP", b"GROUP", self._group, self._consumer, b"COUNT", self._entries]
        if wait:
            words += [b"BLOCK", max(int(1000 * wait), 1)]
        try:
            reply = session.ask_one(*words, b"STREAMS", self._stream, after)
        except Exception as error:
            if "NOGROUP" in str(error):  # the stream was deleted: the next pull makes the group anew
                self._ready, self._own = False, b"0"
            raise
        if reply is None:
            return []
        try:
            ((_, found),) = reply
        except (TypeError, ValueError):
            raise WrongAnswer("not the one stream asked for") from None
        return _listed(found)

    def _claim(self, session: Session) -> list[Entry]:
        """Takes over entries of consumers that are gone, a part at a time."""
        words = (b"XAUTOCLAIM", self._stream, self._group, self._consumer, int(1000 * self._idle), self._cursor)
        reply = session.ask_one(*words, b"COUNT", self._entries)
        if not isinstance(reply, list) or len(reply) < 2 or not isinstance(reply[0], bytes):
            raise WrongAnswer("nothing that was taken over")
        self._cursor, found = reply[0], _listed(reply[1])
        self.deleted += len(reply[2]) if len(reply) > 2 else 0
        if self._cursor == b"0-0":
            self._claim_at = time.monotonic() + self._idle / 2
        return self._present(session, found)

    def _present(self, session: Session, found: list[Any]) -> list[Entry]:
        """Entries with their values; those that are no longer in the stream are let go."""
        gone = [name for name, fields in found if fields is None]
        if gone:
            self.deleted += len(gone)
            self._acknowledge(session, gone)
        return [self._entry(name, fields) for name, fields in found if fields is not None]

    def _acknowledge(self, session: Session, names: list[bytes]) -> None:
        commands = Commands()
        commands.add(b"XACK", self._stream, self._group, *names)
        session.ask(commands)

    def _entry(self, name: bytes, fields: list[bytes]) -> Entry:
        pairs = dict(zip(fields[0::2], fields[1::2], strict=False))
        value = pairs[_VALUE] if set(pairs) == {_VALUE} else pairs
        return Entry(f"{self._stream} {name.decode('ascii', 'replace')}", name, value)


def _listed(found: Any) -> list[Any]:
    """Entries as (id, fields or None), or an answer that cannot be right."""
    right = isinstance(found, list) and all(
        isinstance(one, list)
        and len(one) == 2
        and isinstance(one[0], bytes)
        and (one[1] is None or (isinstance(one[1], list) and all(isinstance(word, bytes) for word in one[1])))
        for one in found
    )
    if not right:
        raise WrongAnswer("no list of entries")
    return found
