"""A user is forgotten: by dataset, run, exported version and audience. Copies only: the fixtures stay."""

import dataclasses
import io
import json
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lookalike.audience import Cut
from lookalike.clicklog import ClickLog
from lookalike.snapshots import Snapshots, catch_up, open_store
from ranking.data.tables import Dataset
from ranking.erasure import Person
from ranking.evaluation import evaluate_run
from ranking.expansion import expand_seeds
from ranking.export import export_run
from ranking.forget import forget
from ranking.forget_log import LogPlace
from ranking.forget_models import versions_with
from ranking.fusion import FusionWeights
from ranking.retrieval import items_of_user, users_of_item
from ranking.run import load_run, parameters_hash
from ranking.seeds_file import fingerprint
from ranking.state import similarity_of
from ranking.timeline import Timeline

pytestmark = pytest.mark.slow


def copied(trained, folder: Path) -> tuple[Path, Path]:
    """Dataset and run, copied."""
    return shutil.copytree(trained.data, folder / "data"), shutil.copytree(trained.path, folder / "run")


def victim(trained, which: int = 0) -> str:
    """A user who clicked much and whose id no item shares, as the awkward ones do."""
    log = trained.dataset.impressions
    clicks = log.loc[(log["click"] == 1) & ~log["user_id"].isin(trained.user_ids), "user_id"].value_counts()
    return clicks.index[which]


def unpacked(path: Path) -> bytes:
    """All that a file says: archives unpacked, Parquet decoded, and the bytes as they lie."""
    data = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data += b"".join(archive.read(name) for name in archive.namelist())
    if path.suffix == ".parquet":
        data += pq.read_table(path).to_pandas().to_csv().encode()
    return data


def traces(folder: Path, user: str) -> list[str]:
    """Files that hold a text id, in UTF-8, as JSON writes it, or in numpy's four bytes a character."""
    forms = {user.encode(), json.dumps(user)[1:-1].encode(), user.encode("utf-32-le")}
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(form in unpacked(path) for form in forms)
    ]


def digits(run, count: int = 500) -> np.ndarray:
    """Scores of pairs that have nothing to do with a forgotten user."""
    generator = np.random.default_rng(0)
    user, item = generator.integers(0, len(run.state.user_ids), count), generator.integers(0, 80, count)
    arrays = run.state.features(user, item, {"context_tab": np.full(count, 2, np.int32)})
    arrays |= similarity_of(run.lookalike, run.state, user, item)
    return run.predict(arrays)["pctcvr"]


@pytest.fixture(scope="module")
def forgotten(text, tmp_path_factory):
    """`(dataset, run folder, id, report)`: a text id, forgotten everywhere at once."""
    folder = tmp_path_factory.mktemp("forgotten")
    data, path = copied(text, folder)
    user = victim(text)
    seeds, audience = folder / "seeds.csv", folder / "audience.parquet"
    pd.DataFrame({"user_id": [user, *text.run.state.user_ids[20:30]]}).to_csv(seeds, index=False)
    pd.DataFrame({"list": "a", "user_id": [text.run.state.user_ids[5], user]}).to_parquet(audience)
    report = forget(user, data=data, runs=[path], files=[seeds, audience])
    return data, path, user, report


def test_no_trace_of_a_text_id(forgotten, text):
    data, path, user, report = forgotten
    assert traces(text.data, user) and len(traces(text.path, user)) >= 4  # the search finds what is there
    assert traces(data.parent, user) == []
    assert report["files"][0]["removed"] == report["files"][1]["removed"] == 1
    assert json.loads((path / "forgotten.json").read_text()) == [fingerprint(user)]


def test_gone_from_seeds_and_embeddings(forgotten, text):
    data, path, user, _ = forgotten
    before, after = text.run, load_run(path)
    timeline = Timeline(Dataset(data))
    assert user in text.timeline.user_ids and user not in timeline.user_ids
    offsets, users = text.timeline.seeds(before.state.tick)
    place = text.timeline.user_ids.get_loc(user)
    his = np.repeat(text.timeline.item_ids, np.diff(offsets))[users == place]
    assert len(his)
    was = dict(zip(text.timeline.item_ids, np.diff(offsets), strict=True))
    now = dict(zip(timeline.item_ids, np.diff(timeline.seeds(before.state.tick)[0]), strict=True))
    assert all(now[item] == was[item] - (item in his) for item in now)

    vector = before.state.user_vectors[before.state.user_ids.get_loc(user)]
    assert len(after.state.user_ids) == len(before.state.user_ids) - 1
    assert np.abs(after.state.user_vectors - vector).max(axis=1).min() > 1e-4
    assert all(len(values) == len(after.state.user_ids) + 1 for values in after.state.users.values())
    place = after.encoder.vocabularies["user_id"]
    assert user not in place.values and place.size == before.encoder.vocabularies["user_id"].size
    assert after.attributes()["user_id"].tolist() == after.state.user_ids.tolist()
    # the seed counts are the new log's, and the items without him have the centroids they had
    items = pd.Index(after.state.item_ids)
    counts = after.state.seed_counts[:-1]
    assert counts.tolist() == [now[item] for item in items]
    others = [row for row, item in enumerate(items) if item not in set(his)]
    old = before.state.centroids[before.state.item_ids.get_indexer(items[others])]
    assert others and after.state.centroids[others] == pytest.approx(old, abs=1e-5)


def test_his_rows_are_the_unknown_users(forgotten, text):
    _, path, user, report = forgotten
    after = load_run(path)
    row = int(np.flatnonzero(text.run.encoder.vocabularies["user_id"].values == user)[0]) + 2
    tables = 0
    for old, new in zip(text.run.models["seedrank"], after.models["seedrank"], strict=True):
        for layer, was in zip(new._flatten_layers(), old._flatten_layers(), strict=True):
            if "user_id" not in getattr(layer, "offsets", {}):
                continue
            tables += 1
            start = layer.offsets["user_id"]
            values, before = np.array(layer.table), np.array(was.table)
            assert values[start + row].tolist() == before[start + 1].tolist() != before[start + row].tolist()
            values[start + row] = before[start + row]
            assert (values == before).all()
    assert tables == 2 == report["runs"][0]["removed"]["model rows"]


def test_the_run_is_whole(forgotten, text, tmp_path, cli):
    data, path, user, report = forgotten
    run = load_run(path)
    calibration = run.calibrations["seedrank"][0]
    hashed = parameters_hash(run.representation, run.lookalike, run.models["seedrank"][0], calibration=calibration)
    assert hashed == run.info["parameters_hash"] == run.weights.parameters_hash == report["runs"][0]["parameters_hash"]
    assert hashed != text.run.info["parameters_hash"]
    assert FusionWeights.load(path / "fusion.json", hashed).weights == text.run.weights.weights
    found = evaluate_run(run, Dataset(data), window="test", replicates=20)
    assert 0.5 < found["models"]["seedrank"]["click"]["auc"] < 1 and found["unknown"]["users"] == 0
    assert export_run(run, tmp_path / "models").is_dir()  # verified against golden requests in a fresh process
    assert traces(tmp_path / "models", user) == []
    assert cli("evaluate", "--run", path, "--data", data, "--json").code == 0


def test_later_audiences_leave_him_out(forgotten, text, tmp_path):
    _, path, user, _ = forgotten
    run = load_run(path)
    seeds = run.state.user_ids[100:300].tolist()
    found = expand_seeds(run, {"some": seeds}, cut=Cut(percent=100), min_seeds=20)
    assert user not in set(found.frame()["user_id"])
    # nor is he chosen from a file that still has him
    others = text.run.state
    rows = np.union1d(others.user_ids.get_loc(user), np.arange(80, 400))
    vectors = others.user_vectors[rows].tolist()
    pd.DataFrame({"user_id": others.user_ids[rows], "vector": vectors}).to_parquet(tmp_path / "users.parquet")
    found = expand_seeds(run, {"some": seeds}, cut=Cut(percent=100), min_seeds=20, users=tmp_path / "users.parquet")
    members = set(found.frame()["user_id"])
    assert user not in members and len(members) == len(rows) - 1 - len(seeds)


@pytest.fixture(scope="module")
def numbers(tiny, tmp_path_factory):
    """`(dataset, run folder, id, report)`: an id above 2^53, forgotten by the run alone."""
    data, path = copied(tiny, tmp_path_factory.mktemp("numbers"))
    user = 2**53 + 1
    assert user in tiny.user_ids
    return data, path, user, forget(str(user), runs=[path])


def test_a_number_leaves_and_its_neighbour_stays(numbers, tiny):
    _, path, user, report = numbers
    before, after = tiny.run, load_run(path)
    for ids in (
        after.state.user_ids,
        *(e.vocabularies["user_id"].values for e in (after.encoder, after.lookalike_encoder)),
    ):
        assert ids.dtype == np.int64 and user not in ids and user - 1 in ids
    placeholder = set(after.encoder.vocabularies["user_id"].values) - set(before.encoder.vocabularies["user_id"].values)
    assert len(placeholder) == 1 and placeholder.pop() < -(2**62)
    assert after.attributes()["user_id"].dtype == np.int64
    assert "rebuilt" in report["runs"][0]["notes"][0] and not report["runs"][0]["rebuilt"]
    # seedrank, no_similarity: an embedding and a wide part each; base: two networks of both; three logistic heads
    assert report["runs"][0]["removed"]["model rows"] == 2 + 2 + 4 + 3


def test_the_others_scores_stay(numbers, tiny):
    """Without a dataset only his own rows change: the others' scores are the same to the last digit."""
    _, path, user, _ = numbers
    before, after = tiny.run, load_run(path)
    others = before.state.user_ids != user
    kept = before.state.only(others, np.ones(len(before.state.item_ids), bool))
    assert digits(after).tolist() == digits(dataclasses.replace(before, state=kept)).tolist()
    for name, table in kept.statistics.items():
        assert np.array_equal(after.state.statistics[name].values, table.values)
    assert (after.impressions == before.impressions).all()
    row = int(np.flatnonzero(before.encoder.vocabularies["user_id"].values == user)[0]) + 2
    for head, values in after.logistic.coefficients.items():
        assert values[row] == before.logistic.coefficients[head][1]
    optimizer = after.models["seedrank"][0].optimizer
    shape = next(x.table.shape for x in after.models["seedrank"][0]._flatten_layers() if hasattr(x, "offsets"))
    slots = [np.array(slot) for slot in optimizer.variables if slot.shape == shape]
    assert slots and all((slot[row] == slot[1]).all() for slot in slots)  # the users' rows come first


def test_again_with_the_dataset_rebuilds(numbers, tiny):
    data, path, user, _ = numbers
    stale = load_run(path).state.seed_counts.sum()
    report = forget(user, data=data, runs=[path])
    fresh = load_run(path)
    assert report["runs"][0]["rebuilt"] and fresh.state.seed_counts.sum() < stale
    assert fresh.impressions.sum() < tiny.run.impressions.sum()
    assert user not in Dataset(data).impressions["user_id"].to_numpy()
    assert json.loads((path / "forgotten.json").read_text()) == [fingerprint(user)]
    again = forget(user, data=data, runs=[path])  # he is known as forgotten: not a mistake
    assert again["data"]["removed"] == {} and again["runs"][0]["rebuilt"]


def test_another_dataset_is_refused_before_anything_changes(text, tmp_path, cli, rewritten):
    other = rewritten(text.data, toml={"min_seeds = 8": "min_seeds = 9"})
    path = shutil.copytree(text.path, tmp_path / "run")
    user = victim(text, 4)
    cli("forget", user, "--data", other, "--run", path, "--yes").mistake("dataset.toml", "min_seeds")
    assert user in load_run(path).state.user_ids and user in Dataset(other).users["user_id"].to_numpy()


def test_command(text, tmp_path, cli):
    data, path = copied(text, tmp_path)
    user = victim(text, 1)
    cli("forget", "no-such-user", "--data", data, "--run", path, "--yes").mistake("'no-such-user'", str(path))
    cli("forget", user, "--run", path).mistake("--yes")
    for awkward in text.user_ids:  # quotes, slashes, commas, tabs, Chinese
        answer = cli("forget", awkward, "--run", path, "--yes", "--json")
        assert answer.code == 0 and json.loads(answer.out)["runs"][0]["removed"]["state"] == 1
    answer = cli("forget", user, "--run", path, "--yes")
    assert answer.code == 0 and "model rows" in answer.out and "export again" in " ".join(answer.out.split())
    answer = cli("forget", user, "--data", data, "--run", path, "--yes", "--json")
    assert answer.code == 0 and json.loads(answer.out)["runs"][0]["rebuilt"]
    assert traces(tmp_path, user) == []


def test_retrieve(tiny, cli):
    run = tiny.run
    item = run.state.item_ids[np.argmax(run.state.seed_counts[:-1])]
    answer = cli("retrieve", "--run", tiny.path, "--item", item, "-k", 3, "--json")
    assert answer.code == 0 and json.loads(answer.out) == users_of_item(run, int(item), 3)
    user = 2**53 + 1
    answer = cli("retrieve", "--run", tiny.path, "--user", user, "--threshold", 0.0)
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()[1:] if line.strip()] == [
        str(row["item_id"]) for row in items_of_user(run, user, threshold=0.0)
    ]
    cli("retrieve", "--run", tiny.path, "--user", 77).mistake("does not know the user 77")
    cli("retrieve", "--run", tiny.path).mistake("--item", "--user", "neither")


KILLED = """
import sys
from ranking.forget import forget
forget(sys.argv[1], data=sys.argv[2], runs=[sys.argv[3]])
"""


@pytest.mark.parametrize("pattern", [".tmp-*-data/behaviors.parquet", ".tmp-*-run/state.npz"])
def test_a_kill_leaves_old_or_new(text, tmp_path, kill_when, pattern):
    data, path = copied(text, tmp_path)
    user = victim(text, 4)
    kill_when(["-c", KILLED, user, str(data), str(path)], tmp_path, pattern)
    dataset, run = Dataset(data), load_run(path)
    here = {user in dataset.users["user_id"].to_numpy(), user in dataset.impressions["user_id"].to_numpy()}
    assert len(here) == 1 and user in run.state.user_ids and user in run.encoder.vocabularies["user_id"].values
    report = forget(user, data=data, runs=[path])
    assert user not in load_run(path).state.user_ids and traces(data, user) == [] == traces(path, user)
    assert any("killed" in note for note in report["notes"])


def test_versions_that_hold_the_user_are_named(text, tmp_path):
    data, path = copied(text, tmp_path)
    user, models = victim(text, 5), tmp_path / "models"
    before = export_run(load_run(path), models)
    found = forget(user, data=data, runs=[path], models=[models])
    assert found["models"] == [{"path": str(models), "versions": [str(before)], "unreadable": []}]
    assert found["remaining"] == []
    assert any("prune" in note for note in found["notes"])
    after = export_run(load_run(path), models)
    assert versions_with(models, [user]) == ([str(before)], []) and traces(after, user) == []
    assert versions_with(models / "seedrank", [user]) == ([str(before)], [])
    index = after / "variables" / "variables.index"
    index.write_bytes(index.read_bytes()[:-9])
    assert versions_with(models, [user]) == ([str(before), str(after)], [str(after)])


ERASE = """
import sys
from ranking.erasure import Person
from ranking.forget_log import LogPlace
place = LogPlace(sys.argv[1], Person(sys.argv[2]))
print("looked", flush=True)
with place.held():
    place.erase()
print("done", flush=True)
"""


def erase(folder: Path, user: int, after: float | None, root: Path) -> float:
    """Erases in a process of its own, which is killed so many seconds after it has looked; how long it ran."""
    line = [sys.executable, "-c", ERASE, str(folder), str(user)]
    process = subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "looked\n"
    started = time.monotonic()
    if after is not None:
        time.sleep(after)
        process.kill()
    said = process.communicate()[0]
    assert after is not None or said == "done\n"
    return time.monotonic() - started


def test_a_log_whose_erasure_is_killed_is_erased_by_the_next_one(tmp_path):
    """SIGKILL at random moments: the same bytes as without."""
    root, user, generator = Path(__file__).resolve().parents[2], 2**53 + 12_345_671, np.random.default_rng(1)
    start = tmp_path / "start"
    with ClickLog(start, user_ids="int64", item_ids="int64", segment_bytes=200_000) as log:
        snapshots = Snapshots(start / "seeds")
        store = open_store(log, snapshots)
        for number in range(40):
            users = np.where(generator.random(5000) < 0.01, user, generator.integers(0, 10**6, 5000))
            log.append(users, generator.integers(0, 500, 5000), 1_767_225_600_000 + np.arange(5000) + 5000 * number)
            if number in (20, 30):
                catch_up(store, log)
                snapshots.save(store)
    packed = user.to_bytes(8, "little")

    def contents(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    whole = erase(shutil.copytree(start, tmp_path / "whole"), user, None, root)
    expected = contents(tmp_path / "whole")
    assert not any(packed in data for data in expected.values()) and len(expected) > 15
    chance, half = random.Random(7), 0
    for number in range(12):
        folder = shutil.copytree(start, tmp_path / f"killed{number}")
        erase(folder, user, chance.uniform(0, whole), root)
        half += contents(folder) not in (expected, contents(start))
        place = LogPlace(folder, Person(str(user)))
        with place.held():
            place.erase()
        assert place.remaining() == []
        assert {name: data for name, data in contents(folder).items() if ".tmp-" not in name} == expected
        shutil.rmtree(folder)
    assert half  # some were killed in the middle


def test_the_search_for_traces_sees_into_files(tmp_path):
    """What the tests above rely on."""
    np.savez(tmp_path / "a.npz", ids=np.array(["ab", "天-17"]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", "天-17" * 100)
    (tmp_path / "b.keras").write_bytes(buffer.getvalue())
    pd.DataFrame({"user_id": ["a", "天-17", "天-18"]}).to_parquet(tmp_path / "c.parquet", compression="zstd")
    (tmp_path / "d.json").write_text(json.dumps(["天-17"]))
    (tmp_path / "e.json").write_text(json.dumps(["天-1"], ensure_ascii=False))
    assert traces(tmp_path, "天-17") == ["a.npz", "b.keras", "c.parquet", "d.json"]
