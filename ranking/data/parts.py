"""Parts of a long import on disk: each is written whole or not at all, so that a killed import goes on."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ranking.atomic import atomic_file
from ranking.errors import UserError

__all__ = ["Parts", "line_blocks"]

_MANIFEST = "manifest.json"


class Parts:
    """Tables in a folder, listed in a manifest with what is known of them.

    Args:
        folder: Path. It is made where it is absent.
        key: dict. What the parts are made from (files, sizes, settings): another key's parts are refused.

    Raises:
        UserError: the folder holds the parts of another key.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _MANIFEST
        self._manifest: dict[str, Any] = {"key": dict(key), "parts": {}}
        if path.exists():
            found = json.loads(path.read_text())
            if found["key"] != self._manifest["key"]:
                raise UserError(f"{folder} holds the parts of an import of other files; remove it and start again.")
            self._manifest = found
        else:
            self._save()
            for stray in folder.glob("*.arrow"):
                stray.unlink()

    def _save(self) -> None:
        with atomic_file(self.folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(self._manifest))

    def __contains__(self, name: str) -> bool:
        return name in self._manifest["parts"]

    def info(self, name: str) -> dict[str, Any]:
        """What is known of a complete part."""
        return self._manifest["parts"][name]

    def add(self, name: str, tables: Mapping[str, pa.Table], info: Mapping[str, Any], *, mapped: bool = False) -> None:
        """Writes a part's tables, and then its line of the manifest; uncompressed where they will be `mapped`."""
        options = pa.ipc.IpcWriteOptions(compression=None if mapped else "lz4")
        for kind, table in tables.items():
            with atomic_file(self._path(name, kind)) as temporary, pa.OSFile(str(temporary), "wb") as sink:
                with pa.ipc.new_file(sink, table.schema, options=options) as writer:
                    writer.write_table(table)
        self._manifest["parts"][name] = dict(info)
        self._save()

    def table(self, name: str, kind: str) -> pa.Table:
        """A table of a part; what was written to be mapped stays on disk until it is touched."""
        return pa.ipc.open_file(pa.memory_map(str(self._path(name, kind)))).read_all()

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}-{kind}.arrow"


def line_blocks(
    path: Path, size: int, done: Callable[[int], int | None]
) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """A file's bytes in blocks of whole lines.

    Args:
        path: Path. The file.
        size: int. Bytes of a block; one that holds no line end grows until it does.
        done: callable. `done(number)` says where a block ends that needs no reading, else None.

    Yields:
        Its number, the place of its end in the file, and its bytes (uint8; None where it was done).
    """
    total, place, number = path.stat().st_size, 0, 0
    with open(path, "rb") as stream:
        while place < total:
            known = done(number)
            data = None
            if known is None:
                stream.seek(place)
                content = stream.read(size)
                while place + len(content) < total and b"\n" not in content:
                    content += stream.read(size)
                if place + len(content) < total:
                    content = content[: content.rindex(b"\n") + 1]
                data, place = np.frombuffer(content, np.uint8), place + len(content)
            else:
                place = known
            yield number, place, data
            number += 1
