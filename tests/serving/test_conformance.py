"""Cases recorded from TensorFlow Serving and cases of our own, asked of the embedded server by the script."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.protos import messages
from serving.server import Server

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT.parent / "shared" / "conformance" / "tfserving_cases.json"
OWN = Path(__file__).with_name("tfserving_cases.json")
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


def model_config(name, path, more=""):
    return f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}'


@pytest.fixture(scope="module")
def server(conformance_models, tmp_path_factory):
    """As the cases' fixtures say: `two` has two versions, loaded first and then labelled."""
    import grpc
    from google.protobuf import text_format

    folder = tmp_path_factory.mktemp("config")
    for version in ("123", "124"):
        shutil.copytree(conformance_models / "two" / "123", folder / "two" / version)
    others = [model_config(path.name, path) for path in sorted(conformance_models.iterdir()) if path.name != "two"]

    def listed(labels=""):
        return "\n".join(
            [*others, model_config("two", folder / "two", f"model_version_policy {{ all {{}} }} {labels}")]
        )

    (folder / "models.config").write_text(f"model_config_list {{ {listed()} }}")
    kinds = messages("tensorflow_serving/apis/model_management.proto")
    with Server(models_config=folder / "models.config", rest_port=0, grpc_port=0, poll_seconds=3600) as server:
        labels = 'version_labels { key: "stable" value: 123 } version_labels { key: "canary" value: 124 }'
        request = text_format.Parse(
            f"config {{ model_config_list {{ {listed(labels)} }} }}", kinds.ReloadConfigRequest()
        )
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = channel.unary_unary(RELOAD, lambda m: m.SerializeToString(), kinds.ReloadConfigResponse.FromString)
            assert call(request, timeout=60).status.error_code == 0
        yield server


def script(cases, server, *options):
    addresses = ["--rest", f"127.0.0.1:{server.rest_port}", "--grpc", f"127.0.0.1:{server.grpc_port}"]
    command = [sys.executable, ROOT / "benchmarks" / "conformance.py", cases, *addresses, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_recorded_cases(server):
    if not RECORDED.is_file():
        pytest.skip("the recorded cases are not beside the project (../shared/conformance/tfserving_cases.json)")
    count = len(json.loads(RECORDED.read_text())["cases"])
    done = script(RECORDED, server)
    assert (done.returncode, done.stdout) == (0, f"{count} of {count} cases pass.\n"), done.stdout + done.stderr
    done = script(RECORDED, server, "--exact")
    assert f"{count - 1} of {count} cases pass." in done.stdout, done.stdout + done.stderr
    assert "json-float-format" in done.stdout  # the recording flushed the denormal 1e-45 to zero


def test_own_cases(server):
    done = script(OWN, server, "--exact")
    count = len(json.loads(OWN.read_text())["cases"])
    assert (done.returncode, done.stdout) == (0, f"{count} of {count} cases pass.\n"), done.stdout + done.stderr


def test_own_cases_are_of_every_kind():
    cases = json.loads(OWN.read_text())["cases"]
    assert len({case["id"] for case in cases}) == len(cases)
    calls = {case["request"].get("rpc", "").rsplit("/", 1)[-1] for case in cases}
    assert calls >= {"Predict", "GetModelMetadata", "GetModelStatus", "HandleReloadConfigRequest", "Classify"}
    paths = [case["request"].get("path", "") for case in cases]
    for part in (":predict", "/labels/", "/versions/", "/metadata", ":classify", ":regress"):
        assert any(part in path for path in paths), part


def test_the_script_says_what_is_wrong(server, tmp_path):
    wrong = [
        {
            "id": "a",
            "transport": "rest",
            "request": {"method": "GET", "path": "/v1/models/half"},
            "expect": {"status": 404},
        },
        {
            "id": "b",
            "transport": "grpc",
            "request": {"rpc": "/tensorflow.serving.ModelService/GetModelStatus", "message": {}},
            "expect": {"code": "INVALID_ARGUMENT", "message_contains": "no such words"},
        },
    ]
    (tmp_path / "cases.json").write_text(json.dumps({"cases": wrong}))
    done = script(tmp_path / "cases.json", server)
    assert done.returncode == 1
    assert "status 200 instead of 404" in done.stdout
    assert "Missing ModelSpec instead of .. no such words .." in done.stdout
    assert "0 of 2 cases pass." in done.stdout
