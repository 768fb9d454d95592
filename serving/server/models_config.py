"""Which models to serve, and which of their versions: TensorFlow Serving's models.config."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import InvalidArgument, RequestError, ServingError
from serving.protos import messages

__all__ = ["ModelConfig", "Policy", "check_configs", "model_configs", "read_models_config"]

PLATFORM = "tensorflow"
MAX_MODELS = 1000  # TensorFlow Serving has no limit; each model has a thread that looks at its folder


@dataclass(frozen=True)
class Policy:
    """Which of the versions on disk are to be served.

    Args:
        kind: str. `"latest"`: the newest `num_versions`; `"all"`; or `"specific"`: those of `versions`, where they are
            on disk. Defaults to `"latest"`.
        num_versions: int. 0 means 1. Defaults to `1`.
        versions: tuple of int. Defaults to `()`.
    """

    kind: str = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, found: Iterable[int]) -> list[int]:
        """Those of the versions found that are to be served, newest first."""
        newest_first = sorted(found, reverse=True)
        if self.kind == "latest":
            return newest_first[: max(1, self.num_versions)]
        return [version for version in newest_first if self.kind == "all" or version in self.versions]


@dataclass(frozen=True)
class ModelConfig:
    """One model of the configuration.

    Args:
        name: str. What requests call it.
        base_path: Path. The folder with a folder a version.
        policy: Policy. Defaults to the newest version.
        labels: mapping. Label -> version: other names for versions, `stable` and `canary` say. Defaults to none.
        platform: str. Only TensorFlow's models are served. Defaults to `"tensorflow"`.
    """

    name: str
    base_path: Path
    policy: Policy = field(default_factory=Policy)
    labels: Mapping[str, int] = field(default_factory=dict)
    platform: str = PLATFORM


def read_models_config(path: str | Path) -> list[ModelConfig]:
    """The models of a models.config, a `tensorflow.serving.ModelServerConfig` as text.

    Raises:
        ServingError: the file can not be read, or asks for something that can not be served.
    """
    from google.protobuf import text_format

    config = messages("tensorflow_serving/config/model_server_config.proto").ModelServerConfig()
    try:
        text_format.Parse(Path(path).read_text(encoding="utf-8"), config)
    except OSError as error:
        raise ServingError(f"`models_config` should be a file. Received: {path}: {error.strerror}.") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ServingError(
            f"{path}: Error parsing text-format tensorflow.serving.ModelServerConfig: {error}"
        ) from error
    if config.WhichOneof("config") != "model_config_list" or not config.model_config_list.config:
        raise ServingError(f"{path} should hold `model_config_list {{ config {{ name: .. base_path: .. }} }}`.")
    try:
        configs = model_configs(config.model_config_list)
        check_configs(configs, ())
    except RequestError as error:
        raise ServingError(f"{path}: {error.message}") from error
    return configs


def model_configs(listed: Any) -> list[ModelConfig]:
    """The models of a `ModelConfigList`.

    Raises:
        InvalidArgument: a model has no platform, or two.
    """
    if len(listed.config) > MAX_MODELS:
        raise InvalidArgument(f"A config list should have at most {MAX_MODELS} models. Received: {len(listed.config)}.")
    return [
        ModelConfig(
            config.name,
            Path(config.base_path),
            _policy(config.model_version_policy),
            dict(config.version_labels),
            _platform(config),
        )
        for config in listed.config
    ]


def check_configs(configs: Iterable[ModelConfig], served: Collection[str]) -> None:
    """Refuses what can not be served, with TensorFlow Serving's texts; `served`: the names of the models until now.

    Raises:
        InvalidArgument: no name, a name twice, a path that is not absolute, or another platform.
    """
    seen = set()
    for config in configs:
        if not config.name:
            raise InvalidArgument("Expected every model to have a name; got name()=")
        if config.name in seen:
            raise InvalidArgument(f"Illegal to list model {config.name} multiple times in config list")
        seen.add(config.name)
        if config.platform != PLATFORM:
            if config.name in served:
                raise InvalidArgument(
                    f"Illegal to change a model's platform. For model {config.name} platform was {PLATFORM} and new "
                    f"platform requested is {config.platform}"
                )
            raise InvalidArgument(f"Model {config.name} requests unsupported platform {config.platform}")
        path = str(config.base_path)
        if re.match(r"\w+:/", path):
            raise InvalidArgument(f"Model {config.name} should be in a folder of this machine; got base_path()={path}")
        if not config.base_path.is_absolute() or "\0" in path:
            raise InvalidArgument(
                f"Expected model {config.name} to have an absolute path or URI; got base_path()={path}"
            )


def _policy(proto: Any) -> Policy:
    kind = proto.WhichOneof("policy_choice") or "latest"
    if kind == "latest":
        return Policy(kind, max(1, proto.latest.num_versions))
    return Policy(kind, versions=tuple(proto.specific.versions) if kind == "specific" else ())


def _platform(config: Any) -> str:
    """`model_platform`, or what the older `model_type` says."""
    if config.model_type:
        if config.model_platform:
            raise InvalidArgument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
            )
        return PLATFORM if config.model_type == 1 else "other"
    if not config.model_platform:
        raise InvalidArgument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    return str(config.model_platform)
