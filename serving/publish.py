"""Versions appear whole or not at all: temporary folder, verify, fsync, rename."""

import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.manifest import MANIFEST, Content, complete, version_content, version_hashes, write_manifest

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "Content",
    "complete",
    "publish",
    "version_content",
    "version_hashes",
    "versions",
    "write_golden",
]

GOLDEN = "assets.extra/golden.json"
LEASE = ".lease"
VERIFY_SECONDS = 600


def versions(base_path: str | Path) -> list[int]:
    """The published versions under `base_path`, oldest first.

    A version is a folder whose name is a number, as TensorFlow Serving reads it; everything else is ignored.
    """
    return sorted(version_folders(Path(base_path)))


def version_folders(base_path: Path) -> dict[int, Path]:
    """Version -> folder ("00000123" is version 123)."""
    try:
        with os.scandir(base_path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return {}
    return {int(name): base_path / name for name in names if re.fullmatch(r"[0-9]+", name) and int(name) < 1 << 63}


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

    def listed(values: Any) -> Any:
        values = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(values, (list, tuple)):
            return [listed(value) for value in values]
        return values.decode() if isinstance(values, bytes) else values

    content = {
        "tolerance": tolerance,
        "requests": [
            {
                "signature": request["signature"],
                **{
                    key: {name: listed(values) for name, values in request[key].items()}
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


def publish(
    base_path: str | Path,
    build: Callable[[Path, Path | None], Content | None],
    *,
    keep: int = 3,
    verify: bool = True,
) -> int:
    """Publishes what `build` writes as the next version of a model.

    `build` writes a SavedModel into a temporary folder, which a server never loads. A fresh process loads it and
    replays its golden requests (`write_golden`); then every file is synced and the folder renamed to its version. A
    crash at any moment leaves the published versions as they were; the next publish removes what was left over.

    From before `build` reads the live version until the new one is in its place no other publisher acts, so that who
    changes a part of the live version never undoes what another one changed meanwhile.

    Args:
        base_path: str or Path. The model's folder; made if missing. One publisher at a time: a second one waits.
        build: callable. Given the temporary folder and the folder of the newest version, `None` where there is none. It
            may return what the version is made of; the manifest keeps it and a server tells its hashes.
        keep: int. Newest versions that stay, this one included. Defaults to `3`.
        verify: bool. Whether to load and replay in a fresh process. Defaults to `True`.

    Returns:
        The version: milliseconds since 1970, or one more than the last version where that is larger.

    Raises:
        ServingError: `keep` is not positive, nothing was built, or the verification refused it.
    """
    if keep < 1:
        raise ServingError(f"`keep` should be a positive integer. Received: keep={keep}.")
    base = Path(base_path)
    base.mkdir(parents=True, exist_ok=True)
    with _lease(base):
        for leftover in base.glob(".tmp-*"):  # the lease is ours, so their publishers are dead
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = base / f".tmp-{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            found = version_folders(base)
            content = build(temporary, found[max(found)] if found else None)
            if not (temporary / "saved_model.pb").is_file():
                raise ServingError(
                    f"`build` should write a SavedModel into the folder it is given. Received: {build!r}."
                )
            if verify:
                _verify(temporary)
            version = max(int(time.time() * 1000), *(last + 1 for last in versions(base)), 0)
            published_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            write_manifest(temporary, version, published_at, content or Content())
            _sync(temporary)
            os.rename(temporary, base / str(version))
            _fsync(base)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _retain(base, keep)
    return version


@contextlib.contextmanager
def _lease(base: Path) -> Iterator[None]:
    """Held by the living publisher only: the kernel releases it when the process dies."""
    with open(base / LEASE, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _verify(directory: Path) -> None:
    root = str(Path(__file__).resolve().parent.parent)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "serving.verify", str(directory)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=VERIFY_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ServingError(f"not published: no answer from the verification in {VERIFY_SECONDS} seconds.") from error
    if done.returncode:
        said = (done.stdout.strip() or done.stderr.strip() or f"exit code {done.returncode}").splitlines()
        raise ServingError(f"not published: {said[-1]}")


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


def _retain(base: Path, keep: int) -> None:
    folders = version_folders(base)
    for old in sorted(folders)[:-keep]:
        doomed = base / f".tmp-{uuid.uuid4().hex}"  # renamed first: a server never sees half a version
        os.rename(folders[old], doomed)
        shutil.rmtree(doomed)
