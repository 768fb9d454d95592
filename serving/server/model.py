"""One model: its versions found on disk, loaded before the old ones go, reported with their states."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import InvalidArgument, NotFound, RequestError, ServingError
from serving.manifest import MANIFEST, check_files, complete, version_content
from serving.retention import version_folders
from serving.server.bundle import Bundle
from serving.server.memory import Memory, NoRoom
from serving.server.metrics import Metrics
from serving.server.models_config import ModelConfig

__all__ = ["Model", "VersionStatus"]

_log = logging.getLogger("serving")
DRAIN_SECONDS = 60.0  # at the end of the process; a version that goes while the server runs waits for its last request
STATUSES = 100  # versions of a model that stay listed


@dataclass(frozen=True)
class VersionStatus:
    """What the server says of one version: START, LOADING, AVAILABLE, UNLOADING or END, and the error if it failed.

    `hashes` and `facts`, of an available one: what it is made of, as its manifest says. `pinned`, of the one that
    answers: why no other may take its place, where there is such a reason.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    pinned: Mapping[str, Any] | None = None


class _Loaded:
    """A bundle and the requests that are using it."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder = folder
        self.bundle = bundle
        self.users = 0
        self.retired = False


class Model:
    """The versions of one model.

    `look` brings what is loaded in line with what is on disk: a version that the policy wants is loaded before one
    that it no longer wants goes; a version that fails keeps an old one in its place, and is tried again when its files
    change. A folder that something still writes into is left alone. Loading happens in the thread that looks, and no
    lock that a request takes is held meanwhile; each unloading has a thread of its own, which waits for the last
    request of the version. What it had compiled is kept for the next version that has the same graph.

    Args:
        config: ModelConfig.
        load: callable. Folder of a version -> bundle.
        memory: Memory. Shared with the other models.
        metrics: Metrics. Told of every load.
    """

    def __init__(self, config: ModelConfig, load: Callable[[Path], Bundle], memory: Memory, metrics: Metrics) -> None:
        self.config = config
        self._load = load
        self._memory = memory
        self._metrics = metrics
        self._looking = threading.Lock()  # of those who look; requests never take it
        self._changed = threading.Condition()  # held for moments only
        self._wake = threading.Event()
        self._closed = self._looked = False
        self._loaded: dict[int, _Loaded] = {}
        self._spare: Bundle | None = None  # of a version that went, without its variables
        self._statuses: dict[int, VersionStatus] = {}
        self._labels: dict[str, int] = {}
        self._stamps: dict[int, object] = {}  # version -> its files at the last look
        self._failed: dict[int, object] = {}  # version -> its files when it failed to load
        self._complaint = ""

    def look(self) -> None:
        """Loads and unloads what the disk and the policy ask for."""
        with self._looking:
            if self._closed:
                return
            config = self.config
            try:
                folders = version_folders(config.base_path)
                gone = not folders and not config.base_path.is_dir()
            except OSError:
                gone = True
            if gone:
                self._complain(f"{config.base_path} has vanished; still serving what is loaded")
                return
            wanted = config.policy.choose(folders)
            missing = [version for version in wanted if not self._bring(version, folders[version])]
            if missing and not self._loaded and config.policy.kind == "latest":
                # An older one is better than none, at a start with a broken newest version.
                for version in sorted(set(folders) - set(wanted), reverse=True):
                    if self._bring(version, folders[version]):
                        break
            if not wanted and folders and not self._loaded:
                self._complain(f"none of the versions {list(config.policy.versions)} is in {config.base_path}")
            extra = sorted(set(self._loaded) - set(wanted), reverse=True)
            # What fails pushes nothing out, nor does a policy of which no version is there; an empty folder does.
            if config.policy.kind == "latest":
                kept = len(missing)
            else:
                kept = len(extra) if folders and len(missing) == len(wanted) else 0
            for version in extra[kept:]:
                self._retire(version)
            for noted in (self._stamps, self._failed):
                for version in set(noted) - set(folders):
                    del noted[version]
            with self._changed:
                self._looked = True
                self._changed.notify_all()

    def _bring(self, version: int, folder: Path) -> bool:
        """Whether a version is loaded: now, or after this."""
        if version in self._loaded and self._loaded[version].folder == folder:
            return True
        stamp = _stamp(folder)
        settled = not self._looked or self._stamps.get(version) == stamp  # the first look does not wait for a second
        self._stamps[version] = stamp
        if stamp is None or self._failed.get(version) == stamp:
            return False
        with_manifest = (folder / MANIFEST).exists()
        if not settled and not (with_manifest and complete(folder)):
            self._report(VersionStatus(version, "START"))
            return False
        try:
            _check(folder)
            with self._memory.room(folder):
                self._report(VersionStatus(version, "LOADING"))
                self._publish(version, folder, stamp)
        except Exception as error:
            if _stamp(folder) is None:
                _log.info("model %s version %d was removed before it had loaded", self.config.name, version)
                self._report(VersionStatus(version, "END"))
                return False
            failure = error if isinstance(error, RequestError) else RequestError(f"{folder}: {error}", "INTERNAL")
            if not isinstance(error, NoRoom):  # room may come without a change on disk
                self._failed[version] = stamp
            self._complain(f"version {version} failed to load: {failure}", once=f"{version} {type(error)} {stamp}")
            self._report(VersionStatus(version, "END", failure.code, failure.message))
        return version in self._loaded and self._loaded[version].folder == folder

    def _publish(self, version: int, folder: Path, stamp: object) -> None:
        """Loads a version; from then on it answers."""
        content = version_content(folder)
        start = time.perf_counter()
        try:
            bundle = self._renewed(folder) or self._load(folder)
        except Exception:
            self._metrics.observe_load(str(folder), False, time.perf_counter() - start)
            raise
        self._metrics.observe_load(str(folder), True, time.perf_counter() - start)
        if bundle.warm_up_seconds is not None:
            self._metrics.observe_warmup(str(folder), "OK", bundle.warm_up_seconds)
        # Written into meanwhile, what was read may be half of it. Pruned meanwhile, it has been read: where versions
        # come faster than they load, it is what there is to serve.
        newest = self.config.policy.kind == "latest" and version > max(self._loaded, default=-1)
        if (now := _stamp(folder)) != stamp and not (now is None and newest):
            bundle.close()
            self._report(VersionStatus(version, "START"))
            return
        with self._changed:
            old = self._loaded.get(version)  # of another folder
            self._loaded[version] = _Loaded(folder, bundle)
            self._statuses[version] = VersionStatus(version, "AVAILABLE", hashes=content.hashes, facts=content.facts)
            self._point_labels()
            self._changed.notify_all()
        self._complaint = ""
        _log.info("model %s version %d loaded", self.config.name, version)
        if old is not None:
            self._unload_later(version, old)

    def _renewed(self, folder: Path) -> Bundle | None:
        """What is left of the version that went, as this one."""
        with self._changed:
            spare, self._spare = self._spare, None
        if spare is None:
            return None
        try:
            if spare.renew(folder):
                return spare
        except Exception:
            spare.close()
            raise
        spare.close()
        return None

    def _set_aside(self, bundle: Bundle) -> None:
        """Keeps what a version had compiled, in the place of what an older one had."""
        left: Bundle | None = bundle
        with contextlib.suppress(RequestError):
            if not self._closed:
                bundle.empty()
                with self._changed:
                    if not self._closed:
                        left, self._spare = self._spare, bundle
        if left is not None:
            left.close()

    def _retire(self, version: int) -> None:
        """No request takes this version from now on."""
        with self._changed:
            old = self._loaded.pop(version)
        self._report(VersionStatus(version, "UNLOADING"))
        self._unload_later(version, old)

    def _unload_later(self, version: int, old: _Loaded) -> None:
        """Unloads a version after the last request that has it."""
        name = f"serving-unload-{self.config.name}-{version}"
        threading.Thread(target=self._unload, args=(version, old, None), name=name, daemon=True).start()

    def _unload(self, version: int, old: _Loaded, timeout: float | None) -> None:
        with self._changed:
            old.retired = True
            if not self._changed.wait_for(lambda: old.users == 0, timeout):
                return  # in use: the end of the process frees it
        self._set_aside(old.bundle)
        with self._changed:
            if version not in self._loaded:  # it may be back
                self._report(VersionStatus(version, "END"))
        _log.info("model %s version %d unloaded", self.config.name, version)

    def _report(self, status: VersionStatus) -> None:
        with self._changed:
            self._statuses[status.version] = status
            for version in sorted(self._statuses)[:-STATUSES]:
                if version not in self._loaded:
                    del self._statuses[version]
            self._changed.notify_all()

    def _complain(self, words: str, once: str | None = None) -> None:
        """Logs an error once, not at every look; `once`: what tells it from others, where that is not its words."""
        if (once or words) != self._complaint:
            _log.error("model %s: %s", self.config.name, words)
        self._complaint = once or words

    def configure(self, config: ModelConfig) -> None:
        """Takes another folder, policy and labels; a label points where it did until its new version answers."""
        with self._changed:
            self.config = config
            self._point_labels()
        self._wake.set()

    def _point_labels(self) -> None:
        wanted = self.config.labels
        kept = {label: version for label, version in self._labels.items() if label in wanted}
        self._labels = kept | {label: version for label, version in wanted.items() if version in self._loaded}

    def watch(self, seconds: float) -> None:
        """Looks again and again, until `close`: the body of a thread."""
        while not self._closed:
            self._wake.wait(seconds)
            self._wake.clear()
            try:
                self.look()
            except Exception:  # a look that failed must not end the looking
                _log.exception("model %s: looking for new versions failed", self.config.name)

    def wait(self, timeout: float) -> bool:
        """Waits until a version answers, or all that there are have failed; whether that came."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._loaded) or self.failure() is not None, timeout)

    def failure(self) -> VersionStatus | None:
        """The newest version that failed to load, where none is loaded and none may be soon."""
        with self._changed:
            states = {status.state for status in self._statuses.values()}
            if self._loaded or not self._looked or states & {"START", "LOADING"}:
                return None
            failed = [status for status in self._statuses.values() if status.error_message]
            return max(failed, key=lambda status: status.version, default=None)

    @contextlib.contextmanager
    def use(self, version: int | None, label: str) -> Iterator[tuple[int, Bundle]]:
        """The version number and bundle that answer a request; it is not unloaded meanwhile.

        Raises:
            RequestError: with TensorFlow Serving's code and text.
        """
        with self._changed:
            if label:
                if label not in self._labels:
                    raise InvalidArgument(f"Unrecognized servable version label: {label}")
                version = self._labels[label]
            number = version if version is not None else max(self._loaded, default=-1)
            if number not in self._loaded:
                name = self.config.name
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise NotFound(f"Servable not found for request: {wanted}")
            loaded = self._loaded[number]
            loaded.users += 1
        try:
            yield number, loaded.bundle
        finally:
            with self._changed:
                loaded.users -= 1
                if loaded.retired and not loaded.users:
                    self._changed.notify_all()

    def statuses(self) -> dict[int, VersionStatus]:
        """The state of every version seen."""
        with self._changed:
            return dict(self._statuses)

    def available(self) -> dict[int, VersionStatus]:
        """The versions that answer."""
        with self._changed:
            return {version: self._statuses[version] for version in sorted(self._loaded, reverse=True)}

    def remove(self) -> None:
        """Unloads everything, each version after its last request, and ends the looking."""
        self._end()
        with self._looking:
            for version in list(self._loaded):
                self._retire(version)

    def close(self) -> None:
        """Unloads everything and returns when that is done; what is in use stays until the process ends."""
        self._end()
        with self._looking:
            for version in list(self._loaded):
                with self._changed:
                    old = self._loaded.pop(version)
                self._report(VersionStatus(version, "UNLOADING"))
                self._unload(version, old, DRAIN_SECONDS)

    def _end(self) -> None:
        with self._changed:
            self._closed = True
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
        self._wake.set()


def _check(folder: Path) -> None:
    """Compares a version with its manifest: the runtime does not see a flipped byte in saved_model.pb."""
    if (folder / MANIFEST).exists() and not complete(folder):
        raise RequestError(f"{folder}: files of its {MANIFEST} are missing or cut short.", "DATA_LOSS")
    try:
        check_files(folder)
    except ServingError as error:
        raise RequestError(str(error), "DATA_LOSS") from error


def _stamp(folder: Path) -> object:
    """What tells that the files of a version have changed; `None` where it is gone."""
    try:
        found = []
        for path in sorted([folder, *folder.rglob("*")]):
            stat = path.stat()
            found.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return tuple(found)
    except OSError:
        return None
