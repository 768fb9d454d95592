"""What a training that was stopped goes on from."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ranking.atomic import atomic_file
from ranking.errors import UserError

__all__ = ["Checkpoint"]

DESCRIPTION = "checkpoint.json"


class Checkpoint:
    """A folder of finished stages, and of the one under way as of its last save.

    Each file is written whole or not at all, so that a kill at any moment leaves the state before or after a save.

    Args:
        folder: Path. Made at the first save.
        fingerprint: dict, JSON. What the training is: its settings and its data. Another one's states are refused.
        resume: bool. Whether an unfinished training in the folder is gone on with. Defaults to `False`.
        overwrite: bool. Whether it is thrown away. Defaults to `False`.

    Raises:
        UserError: there is an unfinished training and neither is wished, or it was another one.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self.fingerprint = json.loads(json.dumps(dict(fingerprint), sort_keys=True))
        if not (folder / DESCRIPTION).is_file():
            return
        if resume:
            found = json.loads((folder / DESCRIPTION).read_text())
            other = sorted(key for key in {*found, *self.fingerprint} if found.get(key) != self.fingerprint.get(key))
            if other:
                both = [settings.get(other[0]) for settings in (self.fingerprint, found)]
                plain = not any(isinstance(value, dict | list) for value in both)
                received = f" Received: {other[0]}={both[0]!r}, not {both[1]!r}." if plain else ""
                raise UserError(
                    f"{folder} is of another training, with other {', '.join(other)}: train as then, or pass "
                    f"--overwrite to start anew.{received}"
                )
        elif overwrite:
            self.remove()
        else:
            raise UserError(
                f"{folder} holds a training that was stopped: pass --resume to go on with it, or --overwrite to start "
                "anew."
            )

    def _write(self, name: str) -> Any:
        if not (self.folder / DESCRIPTION).is_file():
            with atomic_file(self.folder / DESCRIPTION) as temporary:
                temporary.write_text(json.dumps(self.fingerprint, indent=1))
        return atomic_file(self.folder / name)

    def finish(self, name: str, model: keras.Model, info: Mapping[str, Any]) -> None:
        """Keeps a stage that is done: its model and what is told of it."""
        with self._write(f"{name}.keras") as temporary:
            model.save(temporary)
        with self._write(f"{name}.json") as temporary:  # last: a stage without it is not finished
            temporary.write_text(json.dumps(info))
        (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def finished(self, name: str) -> tuple[keras.Model, dict[str, Any]] | None:
        """The model and the info of a finished stage."""
        if not (self.folder / f"{name}.json").is_file():
            return None
        model = keras.models.load_model(self.folder / f"{name}.keras")
        return model, json.loads((self.folder / f"{name}.json").read_text())

    def keep(self, name: str, state: Mapping[str, Any], **arrays: Sequence[np.ndarray]) -> None:
        """Keeps a stage under way: its state, as JSON, and lists of arrays."""
        flat = {f"{kind}/{number}": value for kind, values in arrays.items() for number, value in enumerate(values)}
        with self._write(f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **flat)  # type: ignore[arg-type]

    def kept(self, name: str) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]] | None:
        """What `keep` was given last."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as found:
            state = json.loads(str(found["state"]))
            names = sorted((n for n in found.files if "/" in n), key=lambda n: (n.split("/")[0], int(n.split("/")[1])))
            arrays: dict[str, list[np.ndarray]] = {}
            for place in names:
                arrays.setdefault(place.split("/")[0], []).append(found[place])
        return state, arrays

    def remove(self) -> None:
        """Throws the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)
