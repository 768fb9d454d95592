"""What a search that was stopped goes on from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ranking.atomic import atomic_file
from ranking.errors import UserError
from ranking.replay.support import Support

__all__ = ["Checkpoint", "Deltas"]

Deltas = tuple[dict[str, np.ndarray], list[Support | None]]  # what `Evaluator.deltas` gives
_SECONDS = 3.0  # between two writes, at least


class Checkpoint:
    """A file of the settings tried so far and what was found for each.

    A search is decided by its seed and by what it is told: begun again, it asks for the same settings in the same
    order, and those in the file are answered from it. So it ends where it would have ended without the stop.

    Args:
        path: str or Path. Written whole or not at all; what is there is gone on with.
        fingerprint: mapping, JSON. What the search is: its logs and its arguments. The file of another is refused.

    Raises:
        UserError: the file is no checkpoint, or one of another search.
    """

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.hash = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        self._rows: list[dict[str, Any]] = []
        self._asked = 0  # rows of the file, or new ones, that were asked for so far
        self._written = time.monotonic()
        if self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                written, self._rows = found["hash"], found["rows"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} should be a checkpoint of `replay tune`. Received: {error}.") from error
            if written != self.hash:
                raise UserError(
                    f"{self.path} is of another tuning, of another log or with other arguments: tune as then, or "
                    f"delete it to start anew. Received: {self.hash[:12]}, not {written[:12]}."
                )

    def deltas(self, evaluate: Callable[[np.ndarray], Deltas], batch: np.ndarray) -> Deltas:
        """Changes and supports of settings `[S, J]`: from the file where they are there, else evaluated and kept."""
        rows = self._rows[self._asked : self._asked + len(batch)]
        if len(rows) == len(batch) and np.array_equal([row["weights"] for row in rows], batch):
            self._asked += len(batch)
            names = list(rows[0]["deltas"]) if rows else []
            changes = {name: np.array([row["deltas"][name] for row in rows]) for name in names}
            return changes, [row["support"] and Support(**row["support"]) for row in rows]
        changes, supports = evaluate(batch)
        del self._rows[self._asked :]
        for index, gate in enumerate(supports):
            self._rows.append(
                {
                    "weights": batch[index].tolist(),
                    "deltas": {name: float(column[index]) for name, column in changes.items()},
                    "support": None if gate is None else asdict(gate),
                }
            )
        self._asked = len(self._rows)
        if time.monotonic() - self._written >= _SECONDS:
            self.write()
        return changes, supports

    def write(self) -> None:
        """Writes the file now."""
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps({"hash": self.hash, "rows": self._rows}), encoding="utf-8")
        self._written = time.monotonic()

    def remove(self) -> None:
        """Deletes the file: the search is over."""
        self.path.unlink(missing_ok=True)
