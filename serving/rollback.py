"""An earlier version's content back in service, as a higher number, and there to stay."""

import datetime
from pathlib import Path

from serving.errors import ServingError
from serving.layout import copy_version
from serving.lease import lease
from serving.manifest import Content, complete, read_manifest
from serving.pin import pinned, write_pin
from serving.publish import publish_leased
from serving.retention import live_version, version_folders
from serving.verifier import Verifier

__all__ = ["rollback"]


def rollback(
    base_path: str | Path, to: int | None = None, *, verify: bool = True, verifier: Verifier | None = None
) -> int:
    """Publishes the content of an earlier version again, as the newest, and pins the model to it.

    A server only ever goes to a higher number, so the old content gets one. All three of its parts come back:
    parameters, weights and tables. Refreshes are refused until `unpin`; no version is removed.

    Args:
        base_path: str or Path. The model's folder.
        to: int or `None`. The version whose content comes back. Defaults to the one before the live one; where the
            live one is itself a rollback, the one before what it went back to.
        verify: bool. Whether to load it and replay its golden requests first. Defaults to `True`.
        verifier: Verifier or `None`. Defaults to a process started for it.

    Returns:
        The new version.

    Raises:
        ServingError: there is no such version or none before, its files are not those of its manifest, or the
            verification refused it. The model stays as it was.
    """
    base = Path(base_path)
    if live_version(base) is None:
        raise ServingError(f"{base} should hold a published version. Received: none.")
    with lease(base):
        target = _target(base, to)
        origin = rolled_back_to(base, target) or target
        live, former = live_version(base), pinned(base)

        def build(folder: Path, _: Path | None) -> Content:
            return copy_version(version_folders(base)[target], folder)

        # Before the version: a crash in between pauses refreshes for nothing, the other way they would go on.
        write_pin(base, {"version": origin, "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")})
        try:
            return publish_leased(base, build, verify=verify, verifier=verifier, rolled_back_to=origin)
        except BaseException:
            if live_version(base) == live:
                write_pin(base, former)
            raise


def rolled_back_to(base_path: str | Path, version: int) -> int | None:
    """The version whose content a rollback brought back as this one; `None` for any other version."""
    found = read_manifest(version_folders(Path(base_path))[version]).get("rolled_back_to")
    return found if isinstance(found, int) else None


def _target(base: Path, to: int | None) -> int:
    folders = {version: folder for version, folder in version_folders(base).items() if complete(folder)}
    live = max(folders)
    listed = ", ".join(map(str, sorted(folders)))
    if to is None:
        origin = rolled_back_to(base, live) or live
        earlier = [version for version in folders if version < origin]
        if not earlier:
            raise ServingError(f"{base} should hold a version before {origin}. Received: {listed}.")
        return max(earlier)
    if to not in folders:
        raise ServingError(f"`to` should be a version of {base}: {listed}. Received: to={to}.")
    if to == live:
        raise ServingError(f"`to` should be another version than the live one, {live}. Received: to={to}.")
    return to
