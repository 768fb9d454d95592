"""What a version says of itself: what it is made of, the facts of it, and the hash of each of its files."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import ServingError

__all__ = ["Content", "MANIFEST", "check_files", "complete", "version_content", "version_hashes", "write_manifest"]

MANIFEST = "manifest.json"
FORMAT = 2  # 1, without a number, had no facts
_SHARD = re.compile(r"variables\.data-\d{5}-of-(\d{5})")


@dataclass(frozen=True)
class Content:
    """What a version is made of, as its publisher gave it.

    Args:
        hashes: mapping. Part -> hash: parameters, weights, tables. Defaults to none.
        facts: mapping. Name -> JSON value: the watermark of its tables, its embedding space, what else a reader should
            know without loading it. Defaults to none.
    """

    hashes: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def version_content(folder: str | Path) -> Content:
    """What a version says it is made of; empty where it says nothing."""
    manifest = read_manifest(Path(folder))
    try:
        hashes = {str(name): str(digest) for name, digest in manifest.get("hashes", {}).items()}
        return Content(hashes, dict(manifest.get("facts", {})))
    except (AttributeError, TypeError, ValueError):
        return Content()


def version_hashes(folder: str | Path) -> dict[str, str]:
    """What a version says it is made of: part -> hash; empty where it says nothing."""
    return dict(version_content(folder).hashes)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a version, empty where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_manifest(
    folder: Path, version: int, published_at: str, content: Content, *, rolled_back_to: int | None = None
) -> None:
    """Writes the manifest of a folder whose files are all there."""
    manifest = {
        "format": FORMAT,
        "version": version,
        "published_at": published_at,
        "hashes": dict(content.hashes),
        "facts": dict(content.facts),
        **({} if rolled_back_to is None else {"rolled_back_to": rolled_back_to}),
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / MANIFEST
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def complete(folder: str | Path) -> bool:
    """Whether all files of a version are there: a folder that is still being copied is not to be loaded.

    With a manifest, every file that it lists has its size. Without one, there are the graph and every shard of the
    variables; whether they are whole is then the loader's affair.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        try:
            files = read_manifest(folder)["files"].items()
            return all((folder / name).stat().st_size == said["bytes"] for name, said in files)
        except (OSError, KeyError, TypeError, AttributeError, ValueError):
            return False
    if not (folder / "saved_model.pb").is_file():
        return False
    try:
        names = {path.name for path in (folder / "variables").iterdir()}
    except FileNotFoundError:
        return True
    except OSError:
        return False
    shards = [match for match in map(_SHARD.fullmatch, names) if match]
    return "variables.index" in names and bool(shards) and all(len(shards) == int(shard[1]) for shard in shards)


def check_files(folder: str | Path) -> None:
    """Compares every file of a version with its manifest; a version without one passes.

    Raises:
        ServingError: a file is missing, of another size or another hash; or is there and not in the manifest.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        return
    said = read_manifest(folder).get("files")
    if not isinstance(said, dict):
        raise ServingError(f"{folder / MANIFEST} should be JSON with `files`. Received: something else; it is damaged.")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {MANIFEST}
    for name in sorted(found | set(said)):
        if name not in said:
            raise ServingError(f"{folder} should hold the files of its manifest only. Received: {name}.")
        if name not in found:
            raise ServingError(f"{folder} should hold {name}, as its manifest says. Received: no such file.")
        digest = _sha256(folder / name)
        if digest != said[name].get("sha256"):
            raise ServingError(
                f"{folder / name} should have the SHA-256 of the manifest, {said[name].get('sha256')}. Received: "
                f"{digest}; the file is damaged or was changed."
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
