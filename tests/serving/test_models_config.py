"""TensorFlow Serving's models.config: what is read, and each mistake in one line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ServingError
from serving.server.models_config import ModelConfig, Policy, read_models_config

MODEL = 'name: "m" base_path: "/models/m" model_platform: "tensorflow"'


def write(tmp_path, *models):
    path = tmp_path / "models.config"
    listed = "\n".join(f"  config {{ {model} }}" for model in models)
    path.write_text(f"model_config_list {{\n{listed}\n}}\n")
    return path


def test_everything(tmp_path):
    path = write(
        tmp_path,
        MODEL,
        f"{MODEL.replace('m', 'n', 0).replace(chr(34) + 'm' + chr(34), chr(34) + 'n' + chr(34))} "
        "model_version_policy { latest { num_versions: 2 } } "
        'version_labels { key: "stable" value: 3 } version_labels { key: "canary" value: 4 }',
        'name: "o" base_path: "/o" model_type: TENSORFLOW model_version_policy { all {} }',
        'name: "p" base_path: "/p" model_platform: "tensorflow" '
        "model_version_policy { specific { versions: 5 versions: 6 } }",
        'name: "q" base_path: "/q" model_platform: "tensorflow" model_version_policy { latest {} }',
    )
    assert read_models_config(path) == [
        ModelConfig("m", Path("/models/m")),
        ModelConfig("n", Path("/models/m"), Policy("latest", 2), {"stable": 3, "canary": 4}),
        ModelConfig("o", Path("/o"), Policy("all")),
        ModelConfig("p", Path("/p"), Policy("specific", versions=(5, 6))),
        ModelConfig("q", Path("/q")),
    ]


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([MODEL, MODEL], "Illegal to list model m multiple times in config list"),
        (
            [MODEL.replace("/models", "models")],
            r"Expected model m to have an absolute path or URI; got base_path\(\)=m",
        ),
        ([MODEL.replace("/models", "gs://models")], "Model m should be in a folder of this machine"),
        ([MODEL.replace("tensorflow", "torch")], "Model m requests unsupported platform torch"),
        (['name: "m" base_path: "/m"'], "Illegal setting neither ModelServerConfig::model_type"),
        ([MODEL + " model_type: TENSORFLOW"], "Illegal setting both ModelServerConfig::model_type"),
        ([MODEL.replace('"m"', '""')], "Expected every model to have a name"),
        ([MODEL.replace("base_path", "base_pat")], 'Error parsing .*2:22 : .*has no field named "base_pat"'),
        ([], "should hold `model_config_list"),
    ],
)
def test_mistakes(tmp_path, models, words):
    with pytest.raises(ServingError, match=words) as caught:
        read_models_config(write(tmp_path, *models))
    assert str(caught.value).startswith(str(tmp_path / "models.config"))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ServingError, match="`models_config` should be a file. Received: .*No such file"):
        read_models_config(tmp_path / "absent")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ServingError, match="Error parsing text-format"):
        read_models_config(tmp_path / "bytes")


def test_choices():
    found = [3, 10, 7]
    assert Policy().choose(found) == [10]
    assert Policy("latest", 2).choose(found) == [10, 7]
    assert Policy("latest", 0).choose(found) == [10]
    assert Policy("all").choose(found) == [10, 7, 3]
    assert Policy("specific", versions=(3, 4)).choose(found) == [3]
    assert Policy("all").choose([]) == []


@given(st.sets(st.integers(1, 30)), st.integers(1, 5))
def test_the_newest_are_newer_than_all_others(found, count):
    chosen = Policy("latest", count).choose(found)
    assert len(chosen) == min(count, len(found))
    assert all(one > other for one in chosen for other in found - set(chosen))
