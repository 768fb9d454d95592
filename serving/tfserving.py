"""TensorFlow Serving beside the embedded server: its configuration files, its flags, its start.

The files describe the folder of models they are written beside; TensorFlow Serving reads them as they are, and so does
`seedrank serve --models-config`. Every setting that differs from TensorFlow Serving's own says why.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.containers import compose_text, kubernetes_text
from serving.errors import ServingError
from serving.layout import model_folder
from serving.manifest import complete
from serving.retention import MODELS_CONFIG, version_folders
from serving.server.models_config import ModelConfig, Policy, read_models_config
from serving.server.versions import find_models

__all__ = ["BATCHING", "COMPOSE", "KUBERNETES", "MONITORING", "command", "run", "write_files"]

BINARY = "tensorflow_model_server"
BATCHING = "batching.config"
MONITORING = "monitoring.config"
COMPOSE = "docker-compose.yml"
KUBERNETES = "kubernetes.yaml"
RELOAD_SECONDS = 30

_MONITORING_TEXT = """\
# tensorflow.serving.MonitoringConfig: metrics for Prometheus, on the REST port.
prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }
"""

_BATCHING_TEXT = """\
# tensorflow.serving.BatchingParameters, for --enable_batching --batching_parameters_file. NOT switched on: a batch
# joins requests along the first dimension, and the signatures that rank have inputs of 1 row beside inputs of N
# ("Batching Run() input tensors must have equal 0th-dimension size"). A request is a batch already: its candidates.
# Use it where all requests are rows (serving_default) and small.
max_batch_size { value: 5000 }        # at least the largest request: a larger one is refused, never split
batch_timeout_micros { value: 0 }     # wait for nobody; 1000 to 10000 where throughput matters more than time
num_batch_threads { value: 4 }        # the CPUs of the container
max_enqueued_batches { value: 16 }    # beyond them UNAVAILABLE: a short queue keeps late answers few
"""

# Flag -> value and why; the order of the command line.
_FLAGS: dict[str, tuple[str, str]] = {
    "model_config_file_poll_wait_seconds": (
        str(RELOAD_SECONDS), "Labels and policies are read again while it runs; by itself it reads them once."
    ),
    "file_system_poll_wait_seconds": (
        "1", "How soon a published version is noticed. More on a network volume, where listing costs."
    ),
    "num_load_threads": ("1", "Versions load in a thread of their own: by itself the loop that manages all does it."),
    "num_unload_threads": ("1", "The same for unloading, which frees gigabytes."),
    "max_num_load_retries": (
        "1", "A version that does not load is reported after one more try; by itself it tries for 5 minutes."
    ),
    "load_retry_interval_micros": ("1000000", "And that try comes after a second, not a minute."),
    "enable_model_warmup": ("true", "Replays the version's recorded requests before the version answers anybody."),
    "enable_grpc_healthcheck_service": ("true", "grpc.health.v1, for probes and load balancers."),
}  # fmt: skip
_LABEL_FLAG = ("true", "Labels name versions that are still loading at the start.")


def write_files(
    models: str | Path,
    out: str | Path | None = None,
    *,
    name: str = "seedrank",
    stable: int | None = None,
    canary: int | None = None,
) -> list[Path]:
    """Writes models.config, batching.config, monitoring.config, docker-compose.yml and kubernetes.yaml.

    Without labels the newest version of every model is served, and each one published follows by itself. With labels
    exactly the versions named are: publish, `canary=` the new one, watch it, then `stable=` it.

    Args:
        models: str or Path. The folder of models.
        out: str or Path. Where to write. Defaults to `models`, where publishers look for labels: a version that has
            one is not removed.
        name: str. The model that the labels are for; other models keep what models.config says of them. Defaults to
            `"seedrank"`.
        stable: int. The version of the label `stable`.
        canary: int. The version of the label `canary`.

    Returns:
        The paths written.

    Raises:
        ServingError: no such model or version, or a name that can not be part of a URL.
    """
    found = find_models(models)
    root = found[0].base_path.parent.absolute()
    folder = Path(out).absolute() if out is not None else root
    for path in (root, folder):
        if re.search(r"[\x00-\x1f\x7f]", str(path)):
            raise ServingError(f"`models` and `out` should be paths without control characters. Received: {path!r}.")
    configs = _configs(found, folder / MODELS_CONFIG, name, {"stable": stable, "canary": canary})
    labelled = any(config.labels for config in configs)
    flags = _flags(labelled)
    texts = {
        MODELS_CONFIG: _models_config(configs),
        BATCHING: _BATCHING_TEXT,
        MONITORING: _MONITORING_TEXT,
        COMPOSE: compose_text(root, folder, [*_file_flags(folder), *flags]),
        KUBERNETES: kubernetes_text(
            [config.name for config in configs],
            {MODELS_CONFIG: _models_config(configs, Path("/models")), MONITORING: _MONITORING_TEXT},
            [*_file_flags(Path("/config")), *flags],
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        _write(folder / file, text)
    return [folder / file for file in texts]


def command(
    models_config: str | Path,
    *,
    monitoring: str | Path | None = None,
    rest_port: int = 8501,
    grpc_port: int = 8500,
) -> list[str]:
    """The command line that serves a models.config with TensorFlow Serving.

    Args:
        models_config: str or Path. The file.
        monitoring: str or Path. The file monitoring.config. Defaults to the one beside `models_config`, where there
            is one.
        rest_port: int. Defaults to `8501`.
        grpc_port: int. Defaults to `8500`.

    Raises:
        ServingError: TensorFlow Serving is not on the PATH, the configuration can not be served, or a port is 0.
    """
    for argument, port in (("rest_port", rest_port), ("grpc_port", grpc_port)):
        if not 0 < port < 65536:
            raise ServingError(f"`{argument}` should be from 1 to 65535: 0 is not a free one here. Received: {port}.")
    binary = shutil.which(BINARY)
    if binary is None:
        raise ServingError(f"{BINARY} should be on the PATH. Received: none there; `--engine embedded` needs none.")
    path = Path(models_config).absolute()
    labelled = any(config.labels for config in read_models_config(path))
    beside = Path(monitoring) if monitoring is not None else path.parent / MONITORING
    return [
        binary,
        f"--port={grpc_port}",
        f"--rest_api_port={rest_port}",
        f"--model_config_file={path}",
        *([f"--monitoring_config_file={beside.absolute()}"] if monitoring is not None or beside.is_file() else []),
        *(flag for flag, _ in _flags(labelled)),
    ]


def run(arguments: Sequence[str]) -> int:
    """Runs a server until it ends; what stops this process stops the server.

    Args:
        arguments: sequence of str. The command line.

    Returns:
        Its exit code, 128 + the signal where one killed it.
    """
    early: list[int] = []
    forward = early.append
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda received, _: forward(received)) for number in numbers}
    try:
        child = subprocess.Popen(arguments, process_group=0)  # a Ctrl-C reaches it once, through us
        forward = child.send_signal
        for received in early:  # before there was a child
            child.send_signal(received)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _configs(
    found: Sequence[ModelConfig], before: Path, name: str, labels: Mapping[str, int | None]
) -> list[ModelConfig]:
    wanted = {label: version for label, version in labels.items() if version is not None}
    kept = {config.name: config for config in read_models_config(before)} if before.is_file() else {}
    if wanted and name not in {config.name for config in found}:
        raise ServingError(f"`name` should be of {', '.join(config.name for config in found)}. Received: {name!r}.")
    configs = []
    for config in found:
        model_folder(config.base_path.parent, config.name)
        if config.name != name:
            configs.append(kept.get(config.name, config))
            continue
        there = version_folders(config.base_path)
        for label, version in wanted.items():
            if version not in there or not complete(there[version]):
                has = ", ".join(str(number) for number in sorted(there, reverse=True) if complete(there[number]))
                raise ServingError(f"`{label}` should be a version of {config.name}: {has}. Received: {version}.")
        versions = tuple(sorted(set(wanted.values())))
        policy = Policy("specific", versions=versions) if wanted else Policy()
        configs.append(ModelConfig(config.name, config.base_path, policy, wanted))
    return configs


def _models_config(configs: Sequence[ModelConfig], mount: Path | None = None) -> str:
    """The text of models.config; `mount`: where a container sees the folder of models."""
    lines = ["# tensorflow.serving.ModelServerConfig, written by `seedrank tfserving`; read again while servers run."]
    lines.append("model_config_list {")
    for config in configs:
        path = mount / config.base_path.name if mount else config.base_path
        lines.append("  config {")
        lines.append(f"    name: {_quoted(config.name)}")
        lines.append(f"    base_path: {_quoted(str(path))}")
        lines.append('    model_platform: "tensorflow"')
        lines += [f"    {line}" for line in _policy_lines(config)]
        for label, version in sorted(config.labels.items()):
            lines.append(f"    version_labels {{ key: {_quoted(label)} value: {version} }}")
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _policy_lines(config: ModelConfig) -> list[str]:
    policy = config.policy
    if policy.kind == "specific":
        versions = " ".join(f"versions: {number}" for number in policy.versions)
        return [
            "# These and no others: one that is published waits for its label. A request that names neither version",
            "# nor label gets the highest number of them, so ask for label stable where a canary is out.",
            f"model_version_policy {{ specific {{ {versions} }} }}",
        ]
    if policy.kind == "all":
        return ["model_version_policy { all { } }"]
    return [
        "# The newest; while one loads the one before it answers, so there is memory for two.",
        f"model_version_policy {{ latest {{ num_versions: {policy.num_versions} }} }}",
    ]


def _flags(labelled: bool) -> list[tuple[str, str]]:
    """Flags as `--name=value`, each with why."""
    chosen = _FLAGS | ({"allow_version_labels_for_unavailable_models": _LABEL_FLAG} if labelled else {})
    return [(f"--{name}={value}", why) for name, (value, why) in chosen.items()]


def _file_flags(folder: Path) -> list[tuple[str, str]]:
    return [
        (f"--model_config_file={folder / MODELS_CONFIG}", "Which models and versions, with their labels."),
        (f"--monitoring_config_file={folder / MONITORING}", "Metrics for Prometheus at the REST port."),
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # its escapes are those of text protos too


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a server may read it at any time."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
