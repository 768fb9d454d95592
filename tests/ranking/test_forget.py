"""A user leaves a dataset and lists. Runs: tests/integration/test_forget.py."""

import base64
import json
import os
import shutil
import struct
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from lookalike.click_packing import pack
from lookalike.click_streams import Entry, Pump
from lookalike.clicklog import CLICK, FORGET, UNCLICK, ClickLog, keys_of
from lookalike.snapshots import Snapshots, open_store, state_of
from ranking.cli_audience import add_to
from ranking.data.tables import Dataset, write_dataset
from ranking.erasure import Person
from ranking.errors import UserError
from ranking.fingerprints import fingerprints
from ranking.forget import forget
from ranking.forget_data import forget_in_data, rows_in_data
from ranking.forget_models import versions_with
from ranking.ingest_log import LogWriter
from ranking.ingest_metrics import IngestMetrics
from ranking.ingest_streams import Stream
from ranking.ingest_tail import Tail
from ranking.timeline import Timeline
from ranking.users_export import REDIS_KEY
from serving.publish import MANIFEST, write_golden
from tests.lookalike.redis_server import Server, allow, needed

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


# Click logs.

NUMBER, TEXT = 2**53 + 12_345_671, '张"三/7'
OTHERS = {
    "int64": [17, 2**53 + 12_345_670, NUMBER * 10],
    "string": ["张", "三/7", '_"三/77'],
}  # side by side, as a log holds them, no two spell the user
T = 1_767_225_600_000


def events(kind: str, user, *, without: bool = False):
    """User, item, time and kind of events; those of one user are clicks, an unclick and a forget among the others'."""
    generator = np.random.default_rng(3)
    who = [*OTHERS[kind], user]
    users = [who[place] for place in generator.integers(0, len(who), 600)]
    kinds = np.where(generator.random(600) < 0.05, UNCLICK, CLICK)
    kinds[np.flatnonzero([one == user for one in users])[40]] = FORGET
    columns = users, (generator.integers(0, 30, 600) + 10**6), T + generator.integers(0, 10**6, 600), kinds
    if not without:
        return columns
    left = [place for place, one in enumerate(users) if one != user]
    return [users[place] for place in left], *(column[left] for column in columns[1:])


def append(log, columns, low: int, high: int) -> None:
    users, items, times, kinds = (column[low:high] for column in columns)
    log.append(users, items, times, kinds)


@pytest.fixture
def make_log(tmp_path):
    """`(kind of the user ids, the user) -> Path`: a log with all that may hold an id beside it."""

    def make(kind: str, user, segment_bytes: int = 2000) -> Path:
        folder, columns = tmp_path / "log", events(kind, user)
        with ClickLog(folder, user_ids=kind, item_ids="int64", segment_bytes=segment_bytes) as log:
            snapshots = Snapshots(folder / "seeds")
            for low in range(0, 400, 50):
                append(log, columns, low, low + 50)
                if low in (100, 200, 300):
                    snapshots.save(open_store(log, snapshots))
            append(log, columns, 400, 600)
            pump = Pump(None, log)
            beside = OTHERS[kind][:2] if kind == "int64" else ("bo", "di")  # packed texts stand side by side
            packed = pack([beside[0], user, beside[1]], [77] * 3, [T] * 3) + b"too much"
            whole = {b"user_id": str(user).encode(), b"time": b"never"}
            wrong = [Entry("clicks 1", 1, packed), Entry("clicks 2", 2, whole), Entry("clicks 3", 3, b"of nobody")]
            pump._put_aside([(entry, "malformed") for entry in wrong])
        other = OTHERS[kind][0]
        lines = [{"user_id": one, "item_id": "none", "time": T} for one in (user, other)]
        lines += [{"user_id": user, "item_id": 5, "time": T + 10**6 + 1}]  # a click like any other
        followed = tmp_path / "followed.jsonl"
        followed.write_text("".join(json.dumps(line) + "\n" for line in lines) + f'{{"user_id": {user}, oh\n')
        with_tail = LogWriter(folder, IngestMetrics())
        tail = Tail(followed, with_tail, IngestMetrics())
        while tail.step():
            pass
        tail._close()
        with_tail.close()
        followed.unlink()
        torn = snapshots.paths()[0].read_bytes()[:-9]
        (folder / "seeds" / f"{1:020d}.damaged").write_bytes(torn)
        (folder / "seeds" / ".tmp-0123").write_bytes(torn[:500])
        return folder

    return make


def forms(user) -> list[bytes]:
    """A user's id as it may lie in a file: text, JSON's escapes, the number or the key."""
    return [str(user).encode(), json.dumps(str(user))[1:-1].encode(), struct.pack("<q", int(keys_of([user])[0]))]


def decoded(name: str, data: bytes) -> bytes:
    """And what lies in it as base64."""
    if name.endswith("set-aside.jsonl"):
        packed = [json.loads(line)["base64"] for line in data.splitlines()]
        texts = [text for one in packed for text in ([*one, *one.values()] if isinstance(one, dict) else [one])]
        data += b" ".join(base64.b64decode(text) for text in texts)
    return data


def holding(folder: Path, user) -> set[str]:
    found = {name: decoded(name, data) for name, data in contents(folder).items()}
    return {name for name, data in found.items() if any(form in data for form in forms(user))}


@pytest.mark.parametrize(("kind", "user"), [("int64", NUMBER), ("string", TEXT)])
def test_a_user_leaves_a_click_log_without_a_trace(make_log, kind, user, tmp_path):
    folder = make_log(kind, user)
    before = holding(folder, user)
    assert {name.split(".")[-1] for name in before} >= {"clicks", "snapshot", "rejects", "jsonl"}
    assert sum(name.endswith(".snapshot") for name in before) == 2
    with ClickLog(folder, write=False) as log:
        held, end = [*log.read(raw=True)], log.end
    his = sum(sum(one == user for one in batch.user_ids) for batch in held)
    found = forget(str(user), logs=[folder])
    (place,) = found["logs"]
    assert place["removed"].pop("seeds") > 15  # of the clicks that the newest snapshot has seen
    assert place == {"path": str(folder), "removed": {"clicks": his, "lines set aside": 4, "damaged copies": 2}}
    assert found["remaining"] == []
    assert holding(folder, user) == set()

    # the others' events, and their places, are as they were
    with ClickLog(folder, write=False) as log:
        assert log.end == end and log.damage == []
        left = [*log.read(raw=True)]
    rows = [row for batch in held for row in zip(batch.user_ids, batch.item, batch.time, batch.kind, strict=True)]
    now = [row for batch in left for row in zip(batch.user_ids, batch.item, batch.time, batch.kind, strict=True)]
    assert [row for row in rows if row[0] != user] == [row for row in now if row[3] != 255]
    assert [row[3] == 255 for row in now] == [row[0] == user for row in rows]
    # and so are the lines of others
    (rejects,) = (folder / "tails").glob("*.rejects")
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [
        json.dumps({"user_id": OTHERS[kind][0], "item_id": "none", "time": T})
    ]
    assert [json.loads(line)["place"] for line in (folder / "set-aside.jsonl").read_text().splitlines()] == ["clicks 3"]

    # the store is that of a log that never knew the user: from the snapshot, and from the log's beginning
    with ClickLog(tmp_path / "never", user_ids=kind, item_ids="int64") as log:
        append(log, events(kind, user, without=True), 0, 600)
        never = Snapshots(tmp_path / "states" / "never").save(open_store(log, Snapshots(tmp_path / "none")))
    with ClickLog(folder, write=False) as log:
        for name, snapshots in (("snapshot", Snapshots(folder / "seeds")), ("log", Snapshots(tmp_path / "none"))):
            store = open_store(log, snapshots)
            assert state_of(Snapshots(tmp_path / "states" / name).save(store)) == state_of(never)
            counts = store.counts
            assert counts.accepted == counts.applied + counts.late + counts.invalid + counts.duplicate
    with pytest.raises(UserError, match="is in none of these: .*log. Nothing was changed"):
        forget(str(user), logs=[folder])


class _Killed(BaseException):
    pass


def test_stopped_anywhere_and_done_again_it_ends_the_same(make_log, tmp_path, monkeypatch):
    """Every rename and every removal may be the last thing that a process did."""
    start = make_log("int64", NUMBER, segment_bytes=6000)
    once = shutil.copytree(start, tmp_path / "once")
    forget(str(NUMBER), logs=[once])
    expected = contents(once)
    real = {name: getattr(os, name) for name in ("replace", "unlink")}
    for moment in range(100):
        folder, calls = shutil.copytree(start, tmp_path / f"copy{moment}"), []

        def call(name, *arguments, calls=calls, moment=moment, **named):
            calls.append(name)
            if len(calls) > moment:
                raise _Killed
            return real[name](*arguments, **named)

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, lambda *arguments, name=name, **named: call(name, *arguments, **named))
            try:
                forget(str(NUMBER), logs=[folder])
            except _Killed:
                pass
            else:
                break
        if holding(folder, NUMBER):
            found = forget(str(NUMBER), logs=[folder])
            assert found["remaining"] == []
        left = {name: data for name, data in contents(folder).items() if ".tmp-" not in name}
        assert left == expected
        assert holding(folder, NUMBER) == set()
        shutil.rmtree(folder)
    assert moment > 10  # segments, lines, snapshots


def test_a_log_in_use_is_refused_and_nothing_changes(make_log, data, tmp_path):
    folder = make_log("string", "ann")
    before = contents(data), contents(folder)
    with ClickLog(folder):
        with pytest.raises(UserError, match=rf"process {os.getpid()} writes this log already. Stop it first"):
            forget("ann", data=data, logs=[folder])
    with Snapshots(folder / "seeds").held():
        with pytest.raises(UserError, match="another process uses these snapshots. Stop `seedrank refresh`"):
            forget("ann", data=data, logs=[folder])
    (folder / "seeds" / "lock").unlink()
    assert (contents(data), contents(folder)) == before
    service = LogWriter(folder, IngestMetrics())
    with pytest.raises(UserError, match=r"or have it erase the user \(POST /v1/erase\) and come again"):
        forget("ann", data=data, logs=[folder])
    assert service.erase("ann")["set_aside"] == 4
    found = forget("ann", data=data, logs=[folder])
    service.close()
    assert [*found["logs"][0]["removed"]] == ["seeds", "damaged copies"] and found["data"]["removed"]["users"] == 1
    assert found["remaining"] == [] and not any(b"ann" in text for text in contents(folder).values())


def test_what_damage_may_hold_goes_too(make_log):
    folder = make_log("int64", NUMBER)
    segment = sorted(folder.glob("*.clicks"))[1]
    content = bytearray(segment.read_bytes())
    content[200] ^= 1
    segment.write_bytes(content)
    with ClickLog(folder, write=False) as log:
        lost = log.check()
    assert lost and list(folder.glob("quarantine/*.bytes"))
    found = forget(NUMBER, logs=[folder])
    assert found["logs"][0]["removed"]["damaged copies"] == 3 and holding(folder, NUMBER) == set()
    with ClickLog(folder, write=False) as log:  # that events are lost stays to be seen
        assert sum(damage.lost for damage in log.check()) == sum(damage.lost for damage in lost)


def test_mistakes_about_logs(make_log, tmp_path):
    folder = make_log("int64", NUMBER)
    before = contents(folder)
    for user, arguments, words in (
        ("ann", {"logs": [folder]}, "log: ids are whole numbers. Received: 'ann'"),
        (2**63, {"logs": [folder]}, r"from -2\^63 to 2\^63 - 1. Received: 9223372036854775808"),
        (5, {"logs": [folder]}, "user '5' is in none of these"),
        (5, {"logs": [tmp_path / "none"]}, "none: there is no click log"),
        (NUMBER, {"logs": [folder], "models": [tmp_path / "none"]}, "none: should be a folder of models"),
        (5, {"redis": ["http://localhost"]}, "--redis: `url` should start with redis://"),
        (5, {"redis": ["redis://ann:secret@127.0.0.1:1"]}, r"redis://127.0.0.1:1: .*[Cc]onnect"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            forget(user, **arguments)
        assert "secret" not in str(refused.value)
    assert contents(folder) == before


def test_an_unfinished_training_is_removed(data, tmp_path):
    unfinished = tmp_path / "run.checkpoint"
    unfinished.mkdir()
    (unfinished / "checkpoint.json").write_text("{}")
    found = forget("ann", data=data, runs=[tmp_path / "run"])
    assert not unfinished.exists() and str(unfinished) in found["notes"][0]


def test_command_with_a_log(make_log, tmp_path):
    app, folder = typer.Typer(), make_log("int64", NUMBER)
    add_to(app)
    asked = CliRunner().invoke(app, ["forget", str(NUMBER), "--log", str(folder)])
    assert isinstance(asked.exception, UserError) and "--yes" in str(asked.exception)
    no_models = CliRunner().invoke(app, ["forget", "5", "--log", str(folder), "--models", str(tmp_path), "--yes"])
    assert "user '5' is in none of these" in str(no_models.exception) and str(tmp_path / "log") in str(
        no_models.exception
    )
    (tmp_path / "models").mkdir()
    words = ["forget", str(NUMBER), "--log", str(folder), "--models", str(tmp_path / "models"), "--yes"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "lines set aside" in done.stdout and "Looked again: nothing" in done.stdout
    assert "Holds the user" not in done.stdout and holding(folder, NUMBER) == set()


@pytest.mark.parametrize("way", ["tail", "stream"])
def test_what_is_set_aside_beside_an_erasure_is_kept(tmp_path, monkeypatch, way):
    """A line that comes while its file is rewritten waits for the new one."""
    log = LogWriter(tmp_path / "log", IngestMetrics(), user_ids="string", item_ids="int64")
    (tmp_path / "clicks.jsonl").write_text("")
    tail = Tail(tmp_path / "clicks.jsonl", log, IngestMetrics())
    stream = Stream("redis://localhost?stream=clicks", log, IngestMetrics())

    def put_aside(who: str) -> None:
        if way == "tail":
            tail._set_aside([(7, who.encode(), "wrong")], 0)
        else:
            stream._pump._append([Entry("clicks 7", 7, who.encode())])

    beside = threading.Thread(target=put_aside, args=["bo"])
    real = os.replace

    def replace(*arguments):
        beside.start()
        beside.join(0.3)
        real(*arguments)

    put_aside("ann")
    with monkeypatch.context() as patch:
        patch.setattr("ranking.atomic.os.replace", replace)
        assert log.erase("ann") == {"erased": 0, "set_aside": 1}
    beside.join()
    path = tail.rejects if way == "tail" else stream._pump.set_aside
    assert len(path.read_text().splitlines()) == 1 and log.erase("bo")["set_aside"] == 1
    tail._close()
    log.close()


# Versions.


def version(folder: Path, users, *, ours: str) -> Path:
    """What is looked at in a version: its table of users, and what says that it was exported from a run."""
    import tensorflow as tf

    tables = tf.Module()
    tables.user = tf.Module()
    tables.user.keys = tf.Variable([*fingerprints(tf.constant(users)).numpy(), 0])
    tf.train.Checkpoint(tables=tables).write(str(folder / "variables" / "variables"))
    if ours == "golden requests":
        write_golden(folder, [])
    elif ours:
        (folder / MANIFEST).write_text(json.dumps({"hashes": {ours: "0" * 64}}))
    return folder


DAMAGES = {
    "no variables": lambda folder: shutil.rmtree(folder),
    "no index": lambda folder: (folder / "variables.index").unlink(),
    "a short index": lambda folder: change(folder / "variables.index", lambda data: data[:-9]),
    "a bit of the index": lambda folder: change(folder / "variables.index", flipped),
    "no data": lambda folder: next(folder.glob("*.data-*")).unlink(),
    "short data": lambda folder: change(next(folder.glob("*.data-*")), lambda data: data[:9]),
    "a bit of the data": lambda folder: change(next(folder.glob("*.data-*")), flipped),
}


def change(path: Path, how) -> None:
    path.write_bytes(how(path.read_bytes()))


def flipped(data: bytes) -> bytes:
    return data[:9] + bytes([data[9] ^ 1]) + data[10:]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_version_that_cannot_be_read_may_hold_the_user(tmp_path, damage):
    """Of ours; other models are no matter, whole or not."""
    base = tmp_path / "seedrank"
    his = version(base / "1", ["ann", "bo"], ours="golden requests")
    version(base / "2", ["bo"], ours="tables")
    unread = [version(base / "3", ["bo"], ours="golden requests"), version(base / "4", ["bo"], ours="tables")]
    foreign = [version(tmp_path / "others" / "1", ["ann"], ours=""), version(base / "5", ["bo"], ours="graph")]
    for folder in (*unread, *foreign):
        DAMAGES[damage](folder / "variables")
    (base / "6").mkdir()
    assert versions_with(tmp_path, ["ann"]) == ([str(path) for path in (his, *unread)], [*map(str, unread)])


def test_a_version_that_cannot_be_read_is_said(data, tmp_path):
    app = typer.Typer()
    add_to(app)
    models = tmp_path / "models"
    his, unread = (version(models / "seedrank" / name, ["ann"], ours="tables") for name in ("1", "2"))
    (unread / "variables" / "variables.index").unlink()
    copy = shutil.copytree(data, tmp_path / "copy")
    words = ["forget", "ann", "--models", str(models), "--yes", "--data"]
    done = CliRunner().invoke(app, [*words, str(data)], env={"COLUMNS": "1000"})
    assert done.exit_code == 0 and "cannot be read and may, are named below" in done.stdout
    assert f"Holds the user: {his}" in done.stdout and f"May hold the user, cannot be read: {unread}" in done.stdout
    told = json.loads(CliRunner().invoke(app, [*words, str(copy), "--json"]).stdout)["models"]
    assert told == [{"path": str(models), "versions": [str(his), str(unread)], "unreadable": [str(unread)]}]


# Servers.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    needed()
    running = Server(tmp_path_factory.mktemp("redis"))
    yield running
    running.stop()


@pytest.mark.parametrize(("kind", "user"), [("int64", NUMBER), ("string", TEXT)])
def test_a_user_leaves_a_server(make_log, server, kind, user):
    from lookalike.seeds_redis import RedisSeedStore

    admin, other = server.admin(), OTHERS[kind][0]
    admin.flushall()
    for one in (user, other):
        admin.set(f"{REDIS_KEY}{one}", b"vector")
    folder = make_log(kind, user)
    store = RedisSeedStore(server.url(), latest=1000, byte_budget=10**6, future_seconds=10**9)
    with ClickLog(folder, write=False) as log:
        for batch in log.read():
            store.apply(batch)
    found = forget(str(user), logs=[folder], redis=[server.url()])
    assert found["redis"] == [{"path": server.url(), "removed": {"vectors": 1, "seeds": 31}}]
    assert admin.get(f"{REDIS_KEY}{other}") == b"vector" and not admin.exists(f"{REDIS_KEY}{user}")
    items = store.items()
    key = int(keys_of([user])[0])
    assert len(items) and key not in store.seeds(items)[1] and int(keys_of([other])[0]) in store.seeds(items)[1]
    held = [admin.dump(key) for key in admin.keys()]
    assert not any(form in value for value in held for form in forms(user))
    with pytest.raises(UserError, match="is in none of these: unix://.*. Nothing was changed"):
        forget(str(user), redis=[server.url()])
    store.close()


def test_rights_that_a_server_does_not_give_are_said(server):
    admin = server.admin()
    admin.flushall()
    admin.set(f"{REDIS_KEY}ann", b"vector")
    for rights in ("~seedrank:user:* +del", "~{seeds}:* +hgetall"):
        admin.execute_command("ACL", "SETUSER", "erasure", "reset", "on", ">s3cret", *rights.split())
        if "+del" in rights:
            found = forget("ann", redis=[server.url("erasure", "s3cret")])
            assert (
                found["redis"][0]["removed"] == {"vectors": 1} and "may not touch the seed store" in found["notes"][0]
            )
        else:
            with pytest.raises(UserError, match="in none of these"):
                forget("ann", redis=[server.url("erasure", "s3cret")])
    allow(admin)  # the rights of a RedisSeedStore are enough for the store
