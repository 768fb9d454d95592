"""TensorFlow Serving's files: the official protos parse them, YAML reads them, and a fake server gets the flags."""

import inspect
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format, wrappers_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from ranking import cli, cli_serve
from serving.containers import IMAGE
from serving.errors import ServingError
from serving.manifest import Content, write_manifest
from serving.protos import messages
from serving.retention import named_versions
from serving.tfserving import RELOAD_SECONDS, command, write_files

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "tensorflow_serving/config"


def _version(models: Path, name: str, number: int) -> None:
    folder = models / name / str(number)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    write_manifest(folder, number, "", Content())


@pytest.fixture
def models(tmp_path) -> Path:
    """`seedrank` with versions 7, 8, 9 and `other` with 1, in a folder with a difficult name."""
    root = tmp_path / 'my "$HOME" models: ä'
    for number in (7, 8, 9):
        _version(root, "seedrank", number)
    _version(root, "other", 1)
    return root


def _parse(path: Path, file: str, message: str):
    return text_format.Parse(path.read_text(), getattr(messages(file), message)())


def test_without_labels_the_newest_version_of_each_model(models):
    paths = write_files(models)
    assert [path.name for path in paths] == [
        "models.config", "batching.config", "monitoring.config", "docker-compose.yml", "kubernetes.yaml"
    ]  # fmt: skip
    assert {path.parent for path in paths} == {models}
    config = _parse(paths[0], f"{CONFIG}/model_server_config.proto", "ModelServerConfig")
    other, seedrank = config.model_config_list.config
    assert (other.name, other.base_path) == ("other", f"{models}/other")
    assert seedrank.model_platform == "tensorflow"
    assert seedrank.model_version_policy.latest.num_versions == 1
    assert dict(seedrank.version_labels) == {}


def _written_by_hand(text: str, message: str, **fields: int):
    """A message that comes with no Python package: `fields` are its wrappers, or its texts and truths, by number."""
    pool = DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = FileDescriptorProto(name="hand.proto", syntax="proto3", dependency=["google/protobuf/wrappers.proto"])
    kind = file.message_type.add(name=message)
    for name, number in fields.items():
        wrapped = kind.field.add(name=name, number=number, label=1)
        if message == "BatchingParameters":
            wrapped.type, wrapped.type_name = 11, ".google.protobuf.Int64Value"
        else:
            wrapped.type = 8 if name == "enable" else 9  # bool, string
    pool.AddSerializedFile(file.SerializeToString())
    return text_format.Parse(text, GetMessageClass(pool.FindMessageTypeByName(message))())


def test_batching_and_monitoring(models):
    paths = {path.name: path.read_text() for path in write_files(models)}
    # servables/tensorflow/session_bundle_config.proto
    fields = {"max_batch_size": 1, "batch_timeout_micros": 2, "max_enqueued_batches": 3, "num_batch_threads": 4}
    batching = _written_by_hand(paths["batching.config"], "BatchingParameters", **fields)
    assert batching.max_batch_size.value == 5000  # the limit of candidates in the graph
    assert batching.num_batch_threads.value > 0
    # config/monitoring_config.proto: MonitoringConfig { PrometheusConfig prometheus_config = 1 }
    comment, text = paths["monitoring.config"].splitlines()
    assert comment.startswith("#")
    inner = text.removeprefix("prometheus_config {").removesuffix("}")
    monitoring = _written_by_hand(inner, "PrometheusConfig", enable=1, path=2)
    assert monitoring.enable and monitoring.path == "/monitoring/prometheus/metrics"


def test_labels(models):
    paths = write_files(models, stable=7, canary=9)
    config = _parse(paths[0], f"{CONFIG}/model_server_config.proto", "ModelServerConfig")
    other, seedrank = config.model_config_list.config
    assert dict(seedrank.version_labels) == {"stable": 7, "canary": 9}
    assert list(seedrank.model_version_policy.specific.versions) == [7, 9]
    assert other.model_version_policy.latest.num_versions == 1
    assert named_versions(models / "seedrank") == {7: ["stable"], 9: ["canary"]}  # so they are not removed

    write_files(models, name="other", stable=1)  # leaves the labels of seedrank
    config = _parse(paths[0], f"{CONFIG}/model_server_config.proto", "ModelServerConfig")
    assert [dict(one.version_labels) for one in config.model_config_list.config] == [
        {"stable": 1}, {"stable": 7, "canary": 9}
    ]  # fmt: skip
    write_files(models)  # takes them from seedrank
    assert named_versions(models / "seedrank") == {}
    assert named_versions(models / "other") == {1: ["stable"]}


def test_rejected(models):
    for arguments, message in (
        ({"stable": 6}, r"`stable` should be a version of seedrank: 9, 8, 7\. Received: 6\."),
        ({"canary": 9, "name": "nope"}, r"`name` should be of other, seedrank\. Received: 'nope'\."),
    ):
        with pytest.raises(ServingError, match=message):
            write_files(models, **arguments)
    (models / "seedrank" / "9" / "saved_model.pb").write_bytes(b"")  # no longer as its manifest says
    with pytest.raises(ServingError, match=r"`canary` should be a version of seedrank: 8, 7\. Received: 9\."):
        write_files(models, canary=9)
    _version(models, "no: name", 1)
    with pytest.raises(ServingError, match="`name` should be of letters"):
        write_files(models)
    with pytest.raises(ServingError, match="without control characters"):
        write_files(models, models / "a\nb")
    assert [path.name for path in models.iterdir() if path.is_file()] == []


def test_docker_compose(models):
    text = next(path for path in write_files(models, stable=8) if path.name == "docker-compose.yml").read_text()
    service = yaml.safe_load(text)["services"]["serving"]
    assert service["image"] == IMAGE == "tensorflow/serving:2.21.0"
    assert all("latest" not in line for line in text.splitlines() if "image:" in line)
    (volume,) = service["volumes"]
    escaped = str(models).replace("$", "$$")
    assert volume == {"type": "bind", "source": escaped, "target": escaped, "read_only": True}
    assert service["read_only"] and service["user"] == "10001:10001"
    assert f"--model_config_file={escaped}/models.config" in service["command"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    _check_flags(service["command"], labelled=True)


def test_kubernetes(models):
    text = next(path for path in write_files(models, stable=8) if path.name == "kubernetes.yaml").read_text()
    found = {part["kind"]: part for part in yaml.safe_load_all(text)}
    assert list(found) == ["ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
    config = messages(f"{CONFIG}/model_server_config.proto").ModelServerConfig()
    text_format.Parse(found["ConfigMap"]["data"]["models.config"], config)
    paths = [one.base_path for one in config.model_config_list.config]
    assert paths == ["/models/other", "/models/seedrank"]
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["models"]["readOnly"] and mounts["models"]["mountPath"] == "/models"
    _check_flags(container["args"], labelled=True)
    assert "--model_config_file=/config/models.config" in container["args"]
    assert container["startupProbe"]["httpGet"] == {"path": "/v1/models/other", "port": "http"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/other/metadata"
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", found["Deployment"]["metadata"]["name"])
    metric = found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["resource"]
    assert metric["name"] == "cpu"  # of the requests, which are set


def _check_flags(flags, *, labelled):
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    expected = {
        "port": "8500", "rest_api_port": "8501", "num_load_threads": "1", "num_unload_threads": "1",
        "max_num_load_retries": "1", "load_retry_interval_micros": "1000000", "file_system_poll_wait_seconds": "1",
        "enable_model_warmup": "true", "enable_grpc_healthcheck_service": "true",
    }  # fmt: skip
    assert expected.items() <= given.items()
    assert "enable_batching" not in given
    assert ("allow_version_labels_for_unavailable_models" in given) == labelled


# ---- the command: a fake tensorflow_model_server that writes down its arguments


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts it on the PATH; the file that it writes its arguments to."""
    binary = tmp_path / "bin" / "tensorflow_model_server"
    binary.parent.mkdir()
    written = tmp_path / "arguments.json"
    binary.write_text(
        textwrap.dedent(f"""\
            #!{sys.executable}
            import json, os, pathlib, signal, sys, time
            path = [flag.split("=", 1)[1] for flag in sys.argv if flag.startswith("--model_config_file=")][0]
            signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
            target = pathlib.Path({str(written)!r})
            said = [sys.argv[1:], pathlib.Path(path).read_text()]
            target.with_suffix(".new").write_text(json.dumps(said))
            target.with_suffix(".new").rename(target)
            while "WAIT" in os.environ:
                time.sleep(0.05)
            sys.exit(3)
            """)
    )
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{binary.parent}{os.pathsep}{os.environ['PATH']}")
    return written


def _seedrank(*arguments, **options):
    code = "from ranking.cli import main; main()"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def test_the_engine_gets_the_generated_files_and_its_exit_code_is_passed_on(models, fake):
    process = _seedrank("serve", models, "--engine", "tfserving", "--rest-port", 9501, "--grpc-port", 9500)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 3, error
    flags, config = json.loads(fake.read_text())
    assert {"--port=9500", "--rest_api_port=9501"} <= set(flags)
    _check_flags([*flags, "--port=8500", "--rest_api_port=8501"], labelled=False)
    assert any(flag.startswith("--monitoring_config_file=") for flag in flags)
    assert f'base_path: "{models}/seedrank"'.replace('"$HOME"', '\\"$HOME\\"') in config
    assert not Path(next(flag for flag in flags if "model_config" in flag).split("=", 1)[1]).exists()  # tidied up
    assert [path.name for path in models.iterdir()] and not (models / "models.config").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_engine(models, fake, number):
    config = write_files(models, stable=8)[0]
    process = _seedrank(
        "serve", models, "--engine", "tfserving", "--models-config", config, env={**os.environ, "WAIT": "1"}
    )
    while not fake.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=240)
    # The fake exits with 7 on SIGTERM, and as Python does on an interrupt: killed by signal 2, so 128 + 2.
    assert process.returncode == (7 if number == signal.SIGTERM else 130), error
    flags, _ = json.loads(fake.read_text())
    assert f"--model_config_file={config}" in flags
    assert f"--monitoring_config_file={config.parent}/monitoring.config" in flags
    _check_flags(flags, labelled=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tfserving"], "tensorflow_model_server should be on the PATH. Received: none there"),
        (["--engine", "tfserving", "--rest-port", "0"], "`rest_port` should be from 1 to 65535"),
        (["--engine", "tfserving", "--host", "0.0.0.0"], "`--host` should not be given with `--engine tfserving`"),
        (["--engine", "triton"], "`--engine` should be embedded or tfserving. Received: 'triton'."),
    ],
)
def test_mistakes_are_one_line(models, arguments, message, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["seedrank", "serve", str(models), *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_files_command(models, tmp_path, monkeypatch, capsys):
    arguments = ["tfserving", str(models), "--out", str(tmp_path / "out"), "--stable", "8"]
    monkeypatch.setattr(sys, "argv", ["seedrank", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "out" / "models.config")
    compose = yaml.safe_load((tmp_path / "out" / "docker-compose.yml").read_text())
    assert len(compose["services"]["serving"]["volumes"]) == 2  # the models and the configuration


def test_command_rejects_what_can_not_be_served(tmp_path, fake):
    (tmp_path / "models.config").write_text("nonsense {")
    with pytest.raises(ServingError, match="Error parsing text-format"):
        command(tmp_path / "models.config")


def test_the_embedded_server_stops_on_sigterm(tmp_path, save_half):
    save_half(tmp_path / "half" / "1")
    process = _seedrank("serve", tmp_path, "--rest-port", 0, "--grpc-port", 0)
    first = process.stderr.readline()
    while "REST on" not in first:
        assert first, "it ended"
        first = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0
    assert error.splitlines()[-1] == "Stopped: every request that had come was answered."


def test_labels_reach_both_servers_as_soon():
    """`seedrank tfserving --help` and the page promise it of either."""
    assert inspect.signature(cli_serve.serve).parameters["config_poll"].default == RELOAD_SECONDS
