"""A user leaves a dataset and lists. Runs: tests/integration/test_forget.py."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from ranking.cli_audience import add_to
from ranking.data.tables import Dataset, write_dataset
from ranking.erasure import Person
from ranking.errors import UserError
from ranking.forget import forget
from ranking.forget_data import forget_in_data, rows_in_data
from ranking.timeline import Timeline

TOML = """
schema_version = 1
[ids]
user = "string"
item = "int64"
[labels]
seed_event = "click"
[windows]
train = ["2025-03-01", "2025-03-02"]
[features.user]
city = { kind = "categorical" }
[features.behavior]
read = { vocabulary = "item" }
"""
DAY = 1_740_787_200_000  # 2025-03-01


def tables(ann: str = "ann", bob: str = "bob") -> dict[str, pd.DataFrame]:
    """Two requests, of three candidates with two shown each: the first is Ann's, and so is the last row of all."""
    return {
        "impressions": pd.DataFrame(
            {
                "request_id": [1, 1, 2, 2, 3],
                "timestamp": [DAY, DAY, DAY + 1, DAY + 1, DAY + 2],
                "user_id": [ann, ann, bob, bob, ann],
                "item_id": [10, 11, 10, 12, 10],
                "click": [1, 0, 1, 1, 0],
                "conversion": 0,
            }
        ),
        "users": pd.DataFrame({"user_id": [ann, bob], "city": ["rome", "oslo"]}),
        "requests": pd.DataFrame({"request_id": [1, 2], "timestamp": [DAY, DAY + 1], "user_id": [ann, bob]}),
        "candidates": pd.DataFrame({"request_id": [1, 1, 1, 2, 2, 2], "item_id": [10, 11, 12] * 2, "pctr": 0.1}),
        "behaviors": pd.DataFrame(
            {"user_id": [bob, ann, bob], "field": "read", "value": [10, 10, 11], "timestamp": DAY - 5}
        ),
        "truth/impressions": pd.DataFrame({"pctr": [0.1, 0.2, 0.3, 0.4, 0.5]}),
        "truth/candidates": pd.DataFrame({"pctr": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}),
        "extra": pd.DataFrame({"user_id": [ann, ann, bob], "note": "undeclared"}),
    }


@pytest.fixture
def data(tmp_path) -> Path:
    folder = write_dataset(tmp_path / "data", TOML, tables())
    (folder / "truth" / "world.json").write_text("{}")
    (folder / "production_weights.json").write_text("{}")
    return folder


def test_every_row_of_hers_goes_and_no_other(data):
    found = forget("ann", data=data)
    assert found["data"]["removed"] == {
        "impressions": 3,
        "users": 1,
        "requests": 1,
        "candidates": 3,
        "behaviors": 1,
        "truth/impressions": 3,
        "truth/candidates": 3,
        "extra": 2,
    }
    dataset = Dataset(data)
    assert dataset.impressions["user_id"].tolist() == ["bob", "bob"] and dataset.impressions["item_id"].tolist() == [
        10,
        12,
    ]
    assert dataset.candidates["request_id"].tolist() == [2, 2, 2] and len(dataset.requests) == 1
    assert pd.read_parquet(data / "truth" / "impressions.parquet")["pctr"].tolist() == [0.3, 0.4]
    assert pd.read_parquet(data / "truth" / "candidates.parquet")["pctr"].tolist() == [0.4, 0.5, 0.6]
    assert (data / "truth" / "world.json").read_text() == "{}" and (data / "production_weights.json").exists()
    timeline = Timeline(dataset)
    offsets, users = timeline.seeds(DAY + 10)
    # she was a seed of item 10; Bob is one of 10 and 12
    assert timeline.user_ids[users].tolist() == ["bob", "bob"] and offsets.tolist() == [0, 1, 1, 2]
    files = [path for path in data.rglob("*") if path.is_file()]
    assert len(files) == 11 and not [path for path in files if b"ann" in path.read_bytes()]


def test_ids_that_only_look_alike_stay(tmp_path):
    folder = write_dataset(tmp_path / "data", TOML, tables("007", "7"))
    forget("7", data=folder)
    assert Dataset(folder).impressions["user_id"].unique().tolist() == ["007"]


def test_numbers_above_two_to_the_53(tmp_path):
    folder = write_dataset(tmp_path / "data", TOML.replace('"string"', '"int64"'), tables(2**53 + 1, 2**53))
    forget(2**53 + 1, data=folder)
    assert Dataset(folder).users["user_id"].tolist() == [2**53]
    with pytest.raises(UserError, match=r"dataset.toml: ids are whole numbers. Received: 'ann'"):
        forget("ann", data=folder)


def test_csv_tables(tmp_path):
    folder = tmp_path / "data"
    (folder / "truth").mkdir(parents=True)
    (folder / "dataset.toml").write_text(TOML)
    for name, frame in tables().items():
        suffix = ".csv.gz" if name == "candidates" else ".csv"
        frame.to_csv(folder / f"{name}{suffix}", index=False)
    assert forget("ann", data=folder)["data"]["removed"]["candidates"] == 3
    assert Dataset(folder).candidates["request_id"].tolist() == ["2", "2", "2"]
    assert pd.read_csv(folder / "truth" / "impressions.csv")["pctr"].tolist() == [0.3, 0.4]


def test_a_table_beside_another_should_fit(data):
    pd.DataFrame({"pctr": [0.1, 0.2]}).to_parquet(data / "truth" / "impressions.parquet")
    before = contents(data)
    with pytest.raises(UserError, match=r"a row for each of the 5 of impressions.parquet.*Received: 2"):
        forget("ann", data=data)
    assert contents(data) == before


def test_the_only_user_is_not_taken_from_a_dataset(tmp_path):
    made = {name: frame for name, frame in tables("ann", "ann").items() if name not in ("users", "requests")}
    del made["candidates"], made["truth/candidates"]
    with pytest.raises(UserError, match="all impressions are of this user"):
        forget("ann", data=write_dataset(tmp_path / "data", TOML, made))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_lists_and_audiences(tmp_path):
    seeds, audience, other = tmp_path / "seeds.csv", tmp_path / "audience.parquet", tmp_path / "other.txt"
    seeds.write_text("user_id,weight\nann,2\n ANN ,1\nbob,1\n")
    pd.DataFrame({"list": "a", "user_id": ["bob", "ann"], "rank": [1, 2]}).to_parquet(audience, index=False)
    other.write_text("bob\n")
    stamp = other.stat().st_mtime_ns
    found = forget("ann", files=[seeds, audience, other])
    assert [place["removed"] for place in found["files"]] == [2, 1, 0]
    assert seeds.read_text() == "user_id,weight\nbob,1\n" and other.stat().st_mtime_ns == stamp
    assert pd.read_parquet(audience).to_dict("list") == {"list": ["a"], "user_id": ["bob"], "rank": [1]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audience.parquet", "other.txt", "seeds.csv"]


def test_mistakes_change_nothing(data, tmp_path):
    seeds = tmp_path / "seeds.csv"
    seeds.write_text("ann\n")
    before = contents(data)
    wide = tmp_path / "wide.csv"
    wide.write_text("name,age\nann,3\n")
    for arguments, words in (
        ({"user": "eve", "data": data, "files": [seeds]}, "user 'eve' is in none of these: .*data, .*seeds.csv"),
        ({"user": "ann"}, "Nowhere to look"),
        ({"user": "ann", "data": data, "files": [tmp_path / "none.csv"]}, "none.csv should be a file with user ids"),
        ({"user": "ann", "data": data, "files": [wide]}, "should have a column `user_id`. Received: name, age"),
        ({"user": "ann", "data": data, "files": [data / "dataset.toml"]}, "should be one of .parquet"),
        ({"user": "ann", "data": data, "runs": [tmp_path]}, "is not a run folder"),
        ({"user": "ann", "data": tmp_path, "files": [seeds]}, "dataset.toml"),
    ):
        with pytest.raises(UserError, match=words):
            forget(**arguments)
    assert contents(data) == before and seeds.read_text() == "ann\n"


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_stop_leaves_the_old_dataset(data, monkeypatch, moment):
    before = contents(data)
    mine = rows_in_data(Dataset(data), Person("ann"))

    def stop(*arguments, **named):
        raise KeyboardInterrupt

    name, where = ("without_rows", "ranking.forget_data") if moment == "writing" else ("replace", "ranking.atomic.os")
    real, calls = os.replace, []

    def second(*arguments):  # the first moves the old folder away
        calls.append(arguments)
        return stop() if len(calls) == 2 else real(*arguments)

    monkeypatch.setattr(f"{where}.{name}", second if moment == "renaming" else stop)
    with pytest.raises(KeyboardInterrupt):
        forget_in_data(data, mine)
    monkeypatch.undo()
    assert contents(data) == before and [path.name for path in data.parent.iterdir()] == ["data"]


def test_what_a_killed_command_left_is_said(data):
    left = data.parent / ".tmp-0123-data-old"
    shutil.copytree(data, left)
    assert forget("ann", data=data)["notes"] == [
        f"{left.resolve()} was left by a command that was killed and may hold the user: delete it"
    ]


def test_command(data):
    app = typer.Typer()
    add_to(app)
    asked = CliRunner().invoke(app, ["forget", "ann", "--data", str(data)])
    assert isinstance(asked.exception, UserError) and "--yes" in str(asked.exception)
    done = CliRunner().invoke(app, ["forget", "ann", "--data", str(data), "--yes", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["data"]["removed"]["impressions"] == 3
    again = CliRunner().invoke(app, ["forget", "ann", "--data", str(data), "--yes"])
    assert isinstance(again.exception, UserError) and "\n" not in str(again.exception)
    shown = CliRunner().invoke(app, ["forget", "bo", "--file", str(data), "--yes"])
    assert isinstance(shown.exception, UserError)
