"""What is published: every version of a model with its size, what it is made of, and why it stays."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.manifest import Content, complete, read_manifest, version_content
from serving.pin import pinned
from serving.retention import live_version, named_versions, version_folders

__all__ = ["Version", "list_models", "list_versions"]


@dataclass(frozen=True)
class Version:
    """One published version.

    Args:
        version: int.
        published_at: str. ISO time in UTC, of the folder where there is no manifest.
        bytes: int. Of all its files.
        content: Content. What it is made of.
        live: bool. Whether it is what a server without other orders serves.
        complete: bool. Whether all its files are there.
        rolled_back_to: int or `None`. The version whose content a rollback brought back as this one.
        labels: tuple of str. Those that `models.config` gives it.
        pinned: bool. Whether refreshes wait here.
    """

    version: int
    published_at: str
    bytes: int
    content: Content
    live: bool
    complete: bool
    rolled_back_to: int | None
    labels: tuple[str, ...]
    pinned: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON: versions as text, which no reader rounds."""
        found = asdict(self)
        content = found.pop("content")
        back = None if self.rolled_back_to is None else str(self.rolled_back_to)
        return {**found, **content, "version": str(self.version), "rolled_back_to": back, "labels": list(self.labels)}


def list_models(models: str | Path) -> list[Path]:
    """The folders of the models in a folder of models: those with a version in them.

    Raises:
        ServingError: there is no such folder, or no model in it.
    """
    models = Path(models)
    if not models.is_dir():
        raise ServingError(f"{models} should be a folder of models. Received: no such folder.")
    found = [
        path for path in sorted(models.iterdir()) if path.is_dir() and path.name[0] != "." and version_folders(path)
    ]
    if not found:
        raise ServingError(f"{models} should hold MODEL/VERSION/saved_model.pb. Received: no published version in it.")
    return found


def list_versions(base_path: str | Path) -> list[Version]:
    """The versions of a model, newest first.

    Raises:
        ServingError: `models.config` beside it can not be read.
    """
    base = Path(base_path)
    live, labels = live_version(base), named_versions(base)
    pin = pinned(base) is not None
    found = []
    for version, folder in sorted(version_folders(base).items(), reverse=True):
        manifest = read_manifest(folder)
        at = manifest.get("published_at") or datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat()
        found.append(
            Version(
                version=version,
                published_at=str(at),
                bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
                content=version_content(folder),
                live=version == live,
                complete=complete(folder),
                rolled_back_to=manifest.get("rolled_back_to"),
                labels=tuple(labels.get(version, ())),
                pinned=pin and version == live,
            )
        )
    return found
