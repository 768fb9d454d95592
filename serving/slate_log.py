"""The log of shown slates: requests and all their candidates, as Parquet parts that appear whole or not at all."""

import atexit
import contextlib
import logging
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from serving.errors import ServingError
from serving.slate import Shown

__all__ = ["SlateLog"]

_KINDS = {"categorical": pa.string(), "multi": pa.string(), "numeric": pa.float64()}
_IDS = {"int64": pa.int64(), "string": pa.string()}
_PARTS = ("similarity", "pctr", "pcvr", "price")
_STALE_SECONDS = 86_400  # a temporary folder so old is of a process that died
_logger = logging.getLogger(__name__)


class SlateLog:
    """Writes what was shown and what could have been, for the replay to read.

    A part is a folder `part-<ms>-<random>` with `requests.parquet` and `candidates.parquet`; both appear at once, by
    one rename. Any number of processes may log into one folder. `add` only keeps the slate in memory; a thread writes.
    What a killed process held back is lost: at most `seconds` of it. Slates beyond `limit` (the disk is full, or too
    slow) are dropped and counted in `dropped`: serving goes on.

    Args:
        folder: str or Path. It is made where it is absent.
        user_id: str. `"int64"` or `"string"`, as in dataset.toml. Defaults to `"int64"`.
        item_id: str. Likewise. Defaults to `"int64"`.
        context: dict of str to str. The context features of the request and their kinds, `"categorical"`, `"multi"` or
            `"numeric"`. Defaults to none.
        rows: int. Candidates of a part, about. Defaults to `200_000`.
        seconds: float. A part is written at least so often. Defaults to `60.0`.
        limit: int. Most candidates held in memory. Defaults to `1_000_000`.

    Attributes:
        dropped: int. Slates that were not logged.
        error: Exception or None. Why the last part could not be written; it is tried again.

    Raises:
        ServingError: an argument breaks its rule.

    Example:
        ```python
        with SlateLog("log", context={"tab": "categorical"}) as log:
            shown = make_slate({"item_id": ids, **reply}, settings, generator)
            request_id = log.add(shown, user_id=7, context={"tab": "1"})
        ```
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        user_id: str = "int64",
        item_id: str = "int64",
        context: Mapping[str, str] | None = None,
        rows: int = 200_000,
        seconds: float = 60.0,
        limit: int = 1_000_000,
    ) -> None:
        for name, kind in (("user_id", user_id), ("item_id", item_id)):
            if kind not in _IDS:
                raise ServingError(f'`{name}` should be "int64" or "string". Received: {name}={kind!r}.')
        for name, kind in (context or {}).items():
            if kind not in _KINDS:
                raise ServingError(f"`context` should have kinds among {sorted(_KINDS)}. Received: {name}={kind!r}.")
        for name, value in (("rows", rows), ("seconds", seconds), ("limit", limit - rows)):
            if not value > 0:
                rule = "above `rows`" if name == "limit" else "positive"
                raise ServingError(f"`{name}` should be {rule}. Received: {limit if name == 'limit' else value}.")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._user, self._item, self._context = user_id, item_id, dict(context or {})
        self._rows, self._seconds, self._limit = rows, seconds, limit
        self.dropped = 0
        self.error: Exception | None = None
        self._held: list[tuple[dict[str, Any], Shown]] = []
        self._size, self._closed = 0, False
        self._wake, self._writing = threading.Condition(), threading.Lock()
        for stale in self.folder.glob(".tmp-*"):
            with contextlib.suppress(OSError):
                if stale.stat().st_mtime < time.time() - _STALE_SECONDS:
                    shutil.rmtree(stale)
        self._thread = threading.Thread(target=self._work, name="slate-log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> "SlateLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        shown: Shown,
        *,
        user_id: int | str,
        request_id: str | None = None,
        timestamp: int | None = None,
        segment: str | None = None,
        policy_id: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> str:
        """Logs one slate; safe from any thread, and some microseconds. A slate of nothing is not logged.

        Args:
            shown: `Shown`. Its arrays should not be changed afterwards.
            user_id: int or str, as declared.
            request_id: str. Unique; clicks are joined by it. Defaults to a random one.
            timestamp: int. Milliseconds since the epoch. Defaults to now.
            segment: str. What fusion weights differ by. Defaults to none.
            policy_id: str. Who decided, as the model's version. Defaults to none.
            context: dict. A value for each declared context feature; None where it is missing. Defaults to none.

        Returns:
            str. The request_id, for the client to send back with its clicks.

        Raises:
            ServingError: an id of another type, a context feature that is missing or not declared, or a closed log.
        """
        request_id = uuid.uuid4().hex if request_id is None else request_id
        timestamp = time.time_ns() // 1_000_000 if timestamp is None else timestamp
        row = {
            "request_id": self._checked(request_id, "request_id", "string"),
            "timestamp": self._checked(timestamp, "timestamp", "int64"),
            "user_id": self._checked(user_id, "user_id", self._user),
            **self._checked_context(context or {}),
        }
        for name, text in (("segment", segment), ("policy_id", policy_id)):
            row[name] = None if text is None else self._checked(text, name, "string")
        if (shown.item_id.dtype == np.int64) != (self._item == "int64") and len(shown.item_id):
            raise ServingError(f'`item_id` is declared "{self._item}". Received: a slate of {shown.item_id.dtype}.')
        if not len(shown.item_id):
            return request_id
        if self._item == "string" and not _encodable("".join(shown.item_id)):
            raise ServingError("`item_id` should be text that UTF-8 can write. Received: a lone surrogate.")
        with self._wake:
            if self._closed:
                raise ServingError(f"{self.folder}: the log is closed, no slate can be added.")
            if self._size + len(shown.item_id) > self._limit:
                self.dropped += 1
                return request_id
            self._held.append((row, shown))
            self._size += len(shown.item_id)
            if self._size >= self._rows:
                self._wake.notify()
        return request_id

    @staticmethod
    def _checked(value: Any, name: str, kind: str) -> Any:
        if kind == "string":
            if not isinstance(value, str) or not value or not _encodable(value):
                raise ServingError(f"`{name}` should be a text, not empty. Received: {value!r}.")
            return value
        least = -(1 << 63) if name == "user_id" else 0
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 1 << 63:
            raise ServingError(f"`{name}` should be an int64{'' if least else ', 0 or more'}. Received: {value!r}.")
        return int(value)

    def _checked_context(self, context: Mapping[str, Any]) -> dict[str, Any]:
        if context.keys() != self._context.keys():
            wanted, given = sorted(self._context), sorted(context)
            raise ServingError(f"`context` should have the declared features, {wanted}. Received: {given}.")
        found: dict[str, Any] = {}
        for name, value in context.items():
            if value is not None and self._context[name] == "numeric":
                if not isinstance(value, int | float | np.number) or not math.isfinite(value):
                    raise ServingError(f"`context` {name} should be a finite number. Received: {value!r}.")
                found[name] = float(value)
            else:
                found[name] = None if value is None or value == "" else self._checked(str(value), name, "string")
        return found

    def flush(self) -> None:
        """Writes what is held, now.

        Raises:
            OSError: the part could not be written; its slates are kept, and tried again with the next part.
        """
        with self._writing:
            with self._wake:
                held, self._held = self._held, []  # their size counts until they are written
            if not held:
                return
            try:
                self._write(held)
            except BaseException:
                with self._wake:
                    self._held = held + self._held
                raise
            with self._wake:
                self._size -= sum(len(shown.item_id) for _, shown in held)
            self.error = None

    def close(self) -> None:
        """Writes what is held and ends the thread. A second call tries again what could not be written."""
        atexit.unregister(self.close)
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self.flush()

    def _work(self) -> None:
        while not self._closed:
            with self._wake:
                if not self._closed and (self.error or self._size < self._rows):
                    self._wake.wait(self._seconds)
            try:
                self.flush()
            except Exception as error:  # whatever it is, the thread goes on
                self.error = error
                _logger.error("%s: a part of the slate log could not be written: %s", self.folder, error)

    def _write(self, held: list[tuple[dict[str, Any], Shown]]) -> None:
        name = f"part-{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:12]}"
        temporary = self.folder / f".tmp-{name}"
        temporary.mkdir()
        try:
            for table_name, table in (("requests", self._requests(held)), ("candidates", self._candidates(held))):
                path = temporary / f"{table_name}.parquet"
                pa.parquet.write_table(table, path, compression="zstd")
                _sync(path)
            _sync(temporary)
            os.rename(temporary, self.folder / name)
            _sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _requests(self, held: list[tuple[dict[str, Any], Shown]]) -> pa.Table:
        types = {"request_id": pa.string(), "timestamp": pa.int64(), "user_id": _IDS[self._user]}
        types |= {"segment": pa.string(), "policy_id": pa.string(), "exploration": pa.string()}
        types |= {"epsilon": pa.float64(), "temperature": pa.float64(), "slots": pa.int32()}
        types |= {name: _KINDS[kind] for name, kind in self._context.items()}
        policy = ("exploration", "epsilon", "temperature", "slots")
        rows = [{**row, **{name: getattr(shown.settings, name) for name in policy}} for row, shown in held]
        return pa.Table.from_pylist(rows, pa.schema(types))

    def _candidates(self, held: list[tuple[dict[str, Any], Shown]]) -> pa.Table:
        sizes = [len(shown.item_id) for _, shown in held]
        number = pa.array(np.repeat(np.arange(len(held), dtype=np.int32), sizes))
        request = pa.array([row["request_id"] for row, _ in held], pa.string())
        columns = {"request_id": request.take(number)}
        items = np.concatenate([shown.item_id for _, shown in held])
        columns["item_id"] = pa.array(items, _IDS[self._item])
        for name in _PARTS:
            parts = [shown.parts.get(name, np.full(size, np.nan)) for (_, shown), size in zip(held, sizes, strict=True)]
            columns[name] = pa.array(np.concatenate(parts).astype(np.float32))
        for name in ("score", "position", "pool", "position_propensity"):
            columns[name] = pa.array(np.concatenate([getattr(shown, name) for _, shown in held]))
        exposure = [
            np.full(size, np.nan) if shown.exposure_propensity is None else shown.exposure_propensity
            for (_, shown), size in zip(held, sizes, strict=True)
        ]
        columns["exposure_propensity"] = pa.array(np.concatenate(exposure))
        return pa.table(columns)


def _encodable(text: str) -> bool:
    """Whether it can be written: one text that cannot would hold up all others of its part."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
