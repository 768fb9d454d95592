"""Versions appear whole or not at all: temporary folder, verify, fsync, rename."""

import contextlib
import datetime
import filecmp
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.layout import check_layout, copy_version
from serving.lease import lease
from serving.manifest import MANIFEST, Content, complete, version_content, version_hashes, write_manifest
from serving.pin import Pinned, pin_message, pinned, refuse_pinned
from serving.retention import check_keep, live_version, remove, retain, version_folders, versions
from serving.verifier import Verifier

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "Content",
    "Pinned",
    "complete",
    "publish",
    "publish_folder",
    "version_content",
    "version_folders",
    "version_hashes",
    "versions",
    "write_golden",
]

GOLDEN = "assets.extra/golden.json"
_log = logging.getLogger("serving")
Build = Callable[[Path, Path | None], Content | None]


def write_golden(directory: str | Path, requests: Sequence[Mapping[str, Any]], *, tolerance: float = 1e-5) -> Path:
    """Writes the requests that a SavedModel must answer before it may be published.

    Args:
        directory: str or Path. The SavedModel's folder.
        requests: sequence of dicts with `signature` (str), `inputs` and `outputs` (dicts of arrays by name); and, where
            given, `parts` (the same): what the outputs were made of beside the inputs. It is kept for who changes what
            they are made with, and never replayed.
        tolerance: float. Largest accepted `|answer - output| / max(1, |output|)`. Defaults to `1e-5`.

    Returns:
        The path of the file, `assets.extra/golden.json`.
    """
    content = {
        "tolerance": tolerance,
        "requests": [
            {
                "signature": request["signature"],
                **{
                    key: {name: as_lists(values) for name, values in request[key].items()}
                    for key in ("inputs", "outputs", "parts")
                    if key in request
                },
            }
            for request in requests
        ],
    }
    path = Path(directory) / GOLDEN
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def as_lists(values: Any) -> Any:
    """Arrays as JSON has them: lists, and text for bytes."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, (list, tuple)):
        return [as_lists(value) for value in values]
    return values.decode() if isinstance(values, bytes) else values


def publish(
    base_path: str | Path,
    build: Build,
    *,
    keep: int = 3,
    verify: bool = True,
    verifier: Verifier | None = None,
    when_pinned: str = "go on",
) -> int:
    """Publishes what `build` writes as the next version of a model.

    `build` writes a SavedModel into a temporary folder, which a server never loads. A process of its own loads it and
    replays its golden requests (`write_golden`); where the graph is, byte for byte, that of the live version, those of
    one signature. Then every file is synced and the folder renamed to its version. A crash at any moment leaves the
    published versions as they were; the next publish removes what was left over.

    From before `build` reads the live version until the new one is in its place no other publisher acts, so that who
    changes a part of the live version never undoes what another one changed meanwhile.

    Args:
        base_path: str or Path. The model's folder; made if missing. One publisher at a time: a second one waits.
        build: callable. Given the temporary folder and the folder of the live version, `None` where there is none. It
            may return what the version is made of; the manifest keeps it and a server tells its hashes.
        keep: int. Newest versions that stay, this one included. Beside them stay those that `models.config` names.
            Defaults to `3`.
        verify: bool. Whether to load and replay first. Defaults to `True`.
        verifier: Verifier or `None`. Defaults to a process started for it.
        when_pinned: str. `"go on"`: the new version goes live and the pin stays; `"refuse"`: what a refresh says.
            Defaults to `"go on"`.

    Returns:
        The version: milliseconds since 1970, or one more than the last version where that is larger.

    Raises:
        Pinned: the model was rolled back and `when_pinned` is `"refuse"`.
        ServingError: an argument is wrong, nothing was built, or the verification refused it.
    """
    check_keep(keep)
    if when_pinned not in ("go on", "refuse"):
        raise ServingError(f"`when_pinned` should be 'go on' or 'refuse'. Received: when_pinned={when_pinned!r}.")
    base = Path(base_path)
    base.mkdir(parents=True, exist_ok=True)
    with lease(base):
        if when_pinned == "refuse":
            refuse_pinned(base)
        version = publish_leased(base, build, verify=verify, verifier=verifier)
        if (pin := pinned(base)) is not None:
            _log.warning("version %d is live; %s", version, pin_message(base, pin))
        try:
            retain(base, keep)
        except (ServingError, OSError) as error:  # published it is: older versions that stay are no failure of that
            _log.warning("older versions stay: %s", error)
    return version


def publish_folder(
    base_path: str | Path, folder: str | Path, *, keep: int = 3, verifier: Verifier | None = None
) -> int:
    """Publishes a SavedModel's folder that was made elsewhere, after verification; a version keeps what it is made of.

    Args:
        base_path: str or Path. The model's folder; made if missing.
        folder: str or Path. The SavedModel, or a version of another folder of models.
        keep: int. As for `publish`. Defaults to `3`.
        verifier: Verifier or `None`. Defaults to a process started for it.

    Returns:
        The version.

    Raises:
        ServingError: the folder holds what it should not, is not as its manifest says, or was refused.
    """
    check_layout(folder)  # before a folder for the model is made
    return publish(base_path, lambda target, _: copy_version(Path(folder), target), keep=keep, verifier=verifier)


def publish_leased(
    base: Path, build: Build, *, verify: bool, verifier: Verifier | None, rolled_back_to: int | None = None
) -> int:
    """`publish` for who holds the lease; removes no version."""
    for leftover in base.glob(".tmp-*"):  # the lease is ours, so their publishers are dead
        with contextlib.suppress(OSError):
            remove(leftover)
    temporary = base / f".tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        found = version_folders(base)
        live = live_version(base)
        content = build(temporary, found[live] if live is not None else None)
        if not (temporary / "saved_model.pb").is_file():
            raise ServingError(f"`build` should write a SavedModel into the folder it is given. Received: {build!r}.")
        version = max(int(time.time() * 1000), *(last + 1 for last in found), 0)
        if version >= 1 << 63:
            raise ServingError(f"{base} should hold versions below 2^63 - 1. Received: {version - 1}; remove it.")
        published_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        write_manifest(temporary, version, published_at, content or Content(), rolled_back_to=rolled_back_to)
        if verify:
            (verifier or Verifier()).verify(
                temporary, known_graph=live is not None and _same_graph(temporary, found[live])
            )
        _sync(temporary)
        os.rename(temporary, base / str(version))
        _fsync(base)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return version


def _same_graph(folder: Path, other: Path) -> bool:
    """Whether two versions differ in no more than their variables."""
    graph, its = folder / "saved_model.pb", other / "saved_model.pb"
    return its.is_file() and filecmp.cmp(graph, its, shallow=False)


def _sync(directory: Path) -> None:
    for found in sorted(directory.rglob("*"), reverse=True):
        _fsync(found)
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
