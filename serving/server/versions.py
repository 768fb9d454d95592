"""All models: which there are, which of them answers a request, and how a new configuration takes their place."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from serving.errors import FailedPrecondition, InvalidArgument, NotFound, RequestError, ServingError
from serving.pin import pinned
from serving.retention import version_folders
from serving.server.bundle import Bundle
from serving.server.memory import Memory
from serving.server.metrics import Metrics
from serving.server.model import Model, VersionStatus
from serving.server.models_config import ModelConfig, check_configs

__all__ = ["Models", "VersionStatus", "find_models"]

FIRST_LOADS = 4  # models that load at the same time at the start
REMOVED = 100  # models that are no longer configured and still have their states listed


def find_models(models_dir: str | Path) -> list[ModelConfig]:
    """The models of a folder, the newest version of each, where a model is a folder with numeric versions in it.

    Args:
        models_dir: str or Path. A folder of models, or one model's own folder.

    Raises:
        ServingError: there is no such folder, no model in it, or a model without a version.
    """
    root = Path(models_dir)
    if not root.is_dir():
        raise ServingError(f"`models_dir` should be a folder of models. Received: {root}, which is not a folder.")
    if version_folders(root):
        return [ModelConfig(root.resolve().name, root.absolute())]
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not folders:
        raise ServingError(
            f"`models_dir` should hold MODEL/VERSION/saved_model.pb. Received: {root}, which has no model."
        )
    for path in folders:
        if not version_folders(path):
            raise ServingError(
                f"model {path.name} has no version: {path} should hold a folder with a number for a name "
                "and saved_model.pb in it."
            )
    return [ModelConfig(path.name, path.absolute()) for path in folders]


class Models:
    """The loaded models.

    Args:
        configs: iterable of ModelConfig. The models until the next `reload` or `update`.
        load: callable. Folder of a version -> bundle. Defaults to `Bundle`.
        metrics: Metrics. Told which models there are, and of every load. Defaults to one of its own.
        memory: Memory. Asked before every load. Defaults to one of its own.
    """

    def __init__(
        self,
        configs: Iterable[ModelConfig],
        load: Callable[[Path], Bundle] = Bundle,
        *,
        metrics: Metrics | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._load = load
        self._metrics = metrics or Metrics()
        self._memory = memory or Memory()
        self._reloading = threading.Lock()
        self._configuring = threading.Lock()
        self._poll_seconds: float | None = None
        self._threads: list[threading.Thread] = []
        self._removed: dict[str, Model] = {}
        self._models: dict[str, Model] = {}  # replaced as a whole, so that a request reads it without a lock
        configs = list(configs)
        check_configs(configs, ())
        self._models = {config.name: self._model(config) for config in configs}
        self._metrics.set_models(set(self._models))

    def _model(self, config: ModelConfig) -> Model:
        return Model(config, self._load, self._memory, self._metrics)

    def start(self) -> None:
        """Loads every model.

        Raises:
            ServingError: a model has no version that loads.
        """
        models = list(self._models.values())
        with ThreadPoolExecutor(min(FIRST_LOADS, len(models)) or 1, thread_name_prefix="serving-load") as pool:
            list(pool.map(Model.look, models))
        for model in models:
            if not model.available():
                model.look()  # what it listed may have been pruned while it loaded, and a newer one be there
            if not model.available():
                failed = model.failure()
                reason = f"version {failed.version}: {failed.error_message}" if failed else "it has none"
                raise ServingError(f"model {model.config.name} has no version that loads; {reason}")

    def poll(self) -> None:
        """Looks once at the folder of every model, one after the other."""
        for model in self._models.values():
            model.look()

    def watch(self, seconds: float) -> None:
        """Looks at the folder of every model from now on, in a thread each: a slow load holds up no other model.

        Args:
            seconds: float. Pause between two looks.
        """
        with self._configuring:
            self._poll_seconds = seconds
            for model in self._models.values():
                self._watch(model)

    def _watch(self, model: Model) -> None:
        if self._poll_seconds is not None:
            name = f"serving-look-{model.config.name}"
            thread = threading.Thread(target=model.watch, args=(self._poll_seconds,), name=name, daemon=True)
            thread.start()
            self._threads = [*(thread for thread in self._threads if thread.is_alive()), thread]

    def update(self, configs: Iterable[ModelConfig]) -> list[Model]:
        """Takes another configuration, without waiting for what it loads; models that it does not list go.

        A label points to a new version as soon as that answers, and to the old one until then.

        Returns:
            The models that are new.

        Raises:
            InvalidArgument: with TensorFlow Serving's text; nothing has changed then.
        """
        configs = list(configs)
        with self._configuring:
            check_configs(configs, self._models)
            return self._update(configs)

    def _update(self, configs: list[ModelConfig]) -> list[Model]:
        old, names = self._models, {config.name for config in configs}
        new = {config.name: self._model(config) for config in configs if config.name not in old}
        self._models = {config.name: new.get(config.name) or old[config.name] for config in configs}
        self._metrics.set_models(names)
        for config in configs:
            self._removed.pop(config.name, None)
            if config.name in old:
                old[config.name].configure(config)
        for name in old.keys() - names:
            self._removed[name] = old[name]
            threading.Thread(target=old[name].remove, name=f"serving-remove-{name}", daemon=True).start()
        while len(self._removed) > REMOVED:
            del self._removed[next(iter(self._removed))]
        for model in new.values():
            self._watch(model)
            model.configure(model.config)  # wakes its thread: the first look is now
        return list(new.values())

    def reload(self, configs: Iterable[ModelConfig], seconds: float) -> None:
        """Takes another configuration as TensorFlow Serving does on request: waits until every new model answers.

        Args:
            configs: iterable of ModelConfig. All models; one that is not listed goes.
            seconds: float. The longest wait. The configuration stays when it is over, and so does the loading.

        Raises:
            RequestError: with TensorFlow Serving's code and text; ABORTED while another reload waits.
        """
        if not self._reloading.acquire(blocking=False):
            raise RequestError("Another HandleReloadConfigRequest is waiting for its models.", "ABORTED")
        try:
            configs = list(configs)
            with self._configuring:
                check_configs(configs, self._models)
                self._check_labels(configs)
                new = self._update(configs)
            deadline = time.monotonic() + seconds
            for model in new:
                if not model.wait(max(0.0, deadline - time.monotonic())):
                    raise RequestError(
                        f"Model {model.config.name} has no version yet; it is still waited for.", "DEADLINE_EXCEEDED"
                    )
            failures = {model.config.name: failure for model in new if (failure := model.failure())}
            if failures:
                listed = "".join(
                    f"{{{{name: {name} version: {failed.version}}} due to error: {failed.error_code}: "
                    f"{failed.error_message}}}, "
                    for name, failed in failures.items()
                )
                raise RequestError(f"{len(failures)} servable(s) did not become available: {{{listed}}}", "UNKNOWN")
        finally:
            self._reloading.release()

    def _check_labels(self, configs: list[ModelConfig]) -> None:
        for config in configs:
            model = self._models.get(config.name)
            available = model.available() if model else {}
            for version in config.labels.values():
                if version not in available:
                    raise FailedPrecondition(
                        f"Request to assign label to version {version} of model {config.name}, which is not currently "
                        "available for inference"
                    )

    def use(self, name: str, version: int | None = None, label: str = "") -> AbstractContextManager[tuple[int, Bundle]]:
        """The version number and bundle that answer a request; it is not unloaded meanwhile.

        Raises:
            RequestError: with TensorFlow Serving's code and text.
        """
        if not name:
            raise InvalidArgument("ModelSpec has no name specified.")
        model = self._models.get(name)
        if model is None:
            if label:
                raise InvalidArgument(f"Unrecognized servable version label: {label}")
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise NotFound(f"Servable not found for request: {wanted}")
        return model.use(version, label)

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """The state of every version of a model, newest first, or of the one asked for.

        Raises:
            NotFound: there is no such model, or no such version.
        """
        model = self._models.get(name) or self._removed.get(name)
        known = model.statuses() if model is not None else {}
        if not known:
            raise NotFound(f"Could not find any versions of model {name}")
        if version is None:
            return [known[number] for number in sorted(known, reverse=True)]
        if version not in known:
            raise NotFound(f"Could not find version {version} of model {name}")
        return [known[version]]

    def live(self, name: str) -> VersionStatus:
        """The version that answers, and what pins it.

        Raises:
            NotFound: there is no such model, or none of its versions is loaded.
        """
        model = self._models.get(name)
        available = model.available() if model is not None else {}
        if model is None or not available:
            raise NotFound(f"Servable not found for request: Latest({name})")
        return replace(available[max(available)], pinned=pinned(model.config.base_path))

    def available(self) -> dict[str, dict[int, VersionStatus]]:
        """Model name -> the versions that answer, newest first."""
        return {name: model.available() for name, model in self._models.items()}

    def close(self) -> None:
        """Ends the looking and unloads everything."""
        for model in self._models.values():
            model.close()
        for thread in self._threads:
            thread.join()
