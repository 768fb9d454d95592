"""Which versions of which models are loaded: found on disk, swapped without a gap, reported with their states."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import InvalidArgument, NotFound, RequestError, ServingError
from serving.publish import version_folders, version_hashes
from serving.server.bundle import Bundle

__all__ = ["Models", "VersionStatus", "find_models"]

_log = logging.getLogger("serving")
DRAIN_SECONDS = 60.0
STATUSES = 100  # versions of a model that stay listed


@dataclass(frozen=True)
class VersionStatus:
    """What the server says of one version: START, LOADING, AVAILABLE, UNLOADING or END, and the error if it failed.

    `hashes`, of an available one: what it is made of, as its manifest says.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)


def find_models(models_dir: str | Path) -> dict[str, Path]:
    """Model name -> folder, where a model is a folder with numeric versions in it.

    Args:
        models_dir: str or Path. A folder of models, or one model's own folder.

    Raises:
        ServingError: there is no such folder, no model in it, or a model without a version.
    """
    root = Path(models_dir)
    if not root.is_dir():
        raise ServingError(f"`models_dir` should be a folder of models. Received: {root}, which is not a folder.")
    if version_folders(root):
        return {root.resolve().name: root}
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if not folders:
        raise ServingError(
            f"`models_dir` should hold MODEL/VERSION/saved_model.pb. Received: {root}, which has no model."
        )
    for name, path in folders.items():
        if not version_folders(path):
            raise ServingError(
                f"model {name} has no version: {path} should hold a folder with a number for a name "
                "and saved_model.pb in it."
            )
    return folders


class _Loaded:
    """A bundle and the requests that are using it."""

    def __init__(self, version: int, bundle: Bundle) -> None:
        self.version = version
        self.bundle = bundle
        self.users = 0


class _Model:
    """One model: its folder, the loaded version, the state of every version seen."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.loaded: _Loaded | None = None
        self.statuses: dict[int, VersionStatus] = {}
        self.failed: dict[int, tuple[int, int]] = {}  # version -> (inode, mtime) of the folder that failed to load


class Models:
    """The loaded models.

    The newest version on disk is served. A newer one is loaded before the old one is unloaded, and the old one stays
    until the last request that uses it has ended. A version that fails to load is reported and the old one stays; it
    is tried again when its folder changes. Deleting the newest version brings the one before it back.

    Args:
        folders: dict. Model name -> folder.
        load: callable. Folder of a version -> bundle. Defaults to `Bundle`.
    """

    def __init__(self, folders: dict[str, Path], load: Callable[[Path], Bundle] = Bundle) -> None:
        self._models = {name: _Model(name, folder) for name, folder in folders.items()}
        self._load = load
        self._changed = threading.Condition()

    def start(self) -> None:
        """Loads every model.

        Raises:
            ServingError: a model has no version that loads.
        """
        self.poll()
        for model in self._models.values():
            if model.loaded is None:
                failed = [status for status in self.statuses(model.name) if status.error_message]
                reason = f"version {failed[0].version}: {failed[0].error_message}" if failed else "it has none"
                raise ServingError(f"model {model.name} has no version that loads; {reason}")

    def poll(self) -> None:
        """Brings what is loaded in line with what is on disk."""
        for model in self._models.values():
            if not model.folder.is_dir():
                _log.error("model %s: %s has vanished; still serving what is loaded", model.name, model.folder)
                continue
            self._update(model, version_folders(model.folder))

    def _update(self, model: _Model, folders: dict[int, Path]) -> None:
        current = model.loaded
        for version in sorted(folders, reverse=True):
            if current is not None and version == current.version:
                return
            if self._try(model, version, folders[version]):
                break
            if current is not None:
                return
        else:
            if folders:
                return
            with self._changed:
                model.loaded = None
        if current is not None:
            self._unload(model, current)

    def _try(self, model: _Model, version: int, folder: Path) -> bool:
        """Loads a version and makes it the one that answers; whether that worked."""
        try:
            found = folder.stat()
        except FileNotFoundError:
            return False
        stamp = (found.st_ino, found.st_mtime_ns)
        if model.failed.get(version) == stamp:
            return False
        self._report(model, VersionStatus(version, "LOADING"))
        try:
            hashes = version_hashes(folder)
            bundle = self._load(folder)
        except RequestError as error:
            _log.error("model %s version %d failed to load: %s", model.name, version, error)
            model.failed[version] = stamp
            self._report(model, VersionStatus(version, "END", error.code, error.message))
            return False
        with self._changed:
            model.loaded = _Loaded(version, bundle)
            model.statuses[version] = VersionStatus(version, "AVAILABLE", hashes=hashes)
        _log.info("model %s version %d loaded", model.name, version)
        return True

    def _unload(self, model: _Model, old: _Loaded) -> None:
        self._report(model, VersionStatus(old.version, "UNLOADING"))
        with self._changed:
            self._changed.wait_for(lambda: old.users == 0, timeout=DRAIN_SECONDS)
        old.bundle.close()
        self._report(model, VersionStatus(old.version, "END"))
        _log.info("model %s version %d unloaded", model.name, old.version)

    def _report(self, model: _Model, status: VersionStatus) -> None:
        with self._changed:
            model.statuses[status.version] = status
            for version in sorted(model.statuses)[:-STATUSES]:
                del model.statuses[version]

    @contextlib.contextmanager
    def use(self, name: str, version: int | None = None, label: str = "") -> Iterator[tuple[int, Bundle]]:
        """The version number and bundle that answer a request; it is not unloaded meanwhile.

        Raises:
            RequestError: with TensorFlow Serving's code and text.
        """
        if not name:
            raise InvalidArgument("ModelSpec has no name specified.")
        if label:
            raise InvalidArgument(f"Unrecognized servable version label: {label}")
        with self._changed:
            model = self._models.get(name)
            loaded = model.loaded if model is not None else None
            if loaded is None or (version is not None and version != loaded.version):
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise NotFound(f"Servable not found for request: {wanted}")
            loaded.users += 1
        try:
            yield loaded.version, loaded.bundle
        finally:
            with self._changed:
                loaded.users -= 1
                self._changed.notify_all()

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """The state of every version of a model, newest first, or of the one asked for.

        Raises:
            NotFound: there is no such model, or no such version.
        """
        with self._changed:
            model = self._models.get(name)
            known = dict(model.statuses) if model is not None else {}
        if not known:
            raise NotFound(f"Could not find any versions of model {name}")
        if version is None:
            return [known[number] for number in sorted(known, reverse=True)]
        if version not in known:
            raise NotFound(f"Could not find version {version} of model {name}")
        return [known[version]]

    def live(self, name: str) -> VersionStatus:
        """The version that answers.

        Raises:
            NotFound: there is no such model, or none of its versions is loaded.
        """
        for status in self.statuses(name):
            if status.state == "AVAILABLE":
                return status
        raise NotFound(f"Servable not found for request: Latest({name})")

    def close(self) -> None:
        """Unloads everything."""
        for model in self._models.values():
            with self._changed:
                loaded, model.loaded = model.loaded, None
            if loaded is not None:
                self._unload(model, loaded)
