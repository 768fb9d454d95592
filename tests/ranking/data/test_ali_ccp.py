import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.data.ali_ccp import import_ali_ccp
from ranking.data.ali_ccp_lines import FEW_COLUMNS, FINE, MALFORMED, Layout, parse
from ranking.data.ali_ccp_toml import COMMON_MULTI, COMMON_SINGLE, SKELETON_MULTI, SKELETON_SINGLE, dataset_toml
from ranking.data.check import check
from ranking.data.schema import parse_schema
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.features import Encoder
from ranking.timeline import Timeline

LAYOUT = Layout(2, 0, ("101", "121"), ("109_14", "210"), keep=3)
ROWS = {"train": 60, "test": 40}


def features(*entries):
    return "\x01".join(f"{field}\x02{value}\x03{weight}" for field, value, weight in entries)


def lines_of(text, layout=LAYOUT):
    return parse(np.frombuffer(text.encode(), np.uint8), layout)


def test_lines_by_hand():
    text = (
        "k1,4," + features(("101", 7, "1.0"), ("109_14", 5, "2.5"), ("109_14", 6, "1e-2"), ("210", 9, "0")) + "\n"
        "k2,0,\r\n"
        "k3,9,"
        + features(("109_14", 1, 1), ("109_14", 2, 3), ("109_14", 3, 2), ("109_14", 4, 1), ("109_14", 5, 9))
        + "\x01"
        + features(("101", 1, 1), ("101", 2, 1), ("999_14", 3, 1), ("12345678901", 3, 1))
        + "\n"
        "k4\n"
        "k5,1,101\x02"
    )
    found = lines_of(text)
    assert found.status.tolist() == [FINE, FINE, FINE, FEW_COLUMNS, MALFORMED]
    assert found.counts[:3].tolist() == [[4, 4], [0, 0], [9, 9]]
    assert found.single.tolist() == [[7, -1], [-1, -1], [1, -1], [-1, -1], [-1, -1]]
    # of 1 3 2 1 9 the first 1 goes for the second (no: an equal stays out), then for 9
    assert found.multi[0].to_pylist() == ["5:2.5,6:1e-2", "", "2:3,3:2,5:9", "", ""]
    assert found.multi[1].to_pylist() == ["9:0", "", "", "", ""]
    assert found.text(0).to_pylist() == ["k1", "k2", "k3", "", "k5"]
    assert (found.unknown, found.repeated, found.cut, found.unknown_field) == (2, 1, 2, "999_14")
    assert len(set(found.keys.tolist())) == 5 and found.keys[3] == 0
    assert lines_of("").status.tolist() == []


BROKEN = (
    "101 101_ 101_x:1 101_7 101_7: 101_7:x 101_7:-1 101_7:1.2.3 101_7:1e 101_-7:1 _7:1 101_7:1, 101_7:nan 101_7:1e99"
)


@pytest.mark.parametrize("broken", [*BROKEN.split(), "101_" + "9" * 19 + ":1", "\x01101_7:1"])
def test_malformed_lists(broken):
    good = features(("109_14", 5, 1), ("101", 3, 1), ("109_14", 6, 1), ("109_14", 7, 1), ("109_14", 8, 1))
    broken = broken.replace("_", "\x02").replace(":", "\x03")
    found = lines_of(f"k,1,{good}\x01{broken}\nk,1,{good}\n")
    assert found.status.tolist() == [MALFORMED, FINE]
    # nothing of it is left over, and nothing of it is counted
    assert found.single[0].tolist() == [-1, -1] and found.multi[0].to_pylist() == ["", "5:1,6:1,7:1"] and found.cut == 1


FIELDS = st.sampled_from(["101", "121", "109_14", "210", "853"])
# Weights are float32: under 1e-30 one is as good as 0.
NUMBERS = st.one_of(st.sampled_from(["0", "1.0", "2", "0.69315", ".5", "3."]), st.floats(1e-30, 1e6).map(repr))


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(FIELDS, st.integers(0, 10**18 - 1), NUMBERS), max_size=12), max_size=5))
def test_lines_against_plain_python(rows):
    found = lines_of("".join(f"k{n},{len(row)},{features(*row)}\n" for n, row in enumerate(rows)))
    assert found.status.tolist() == [FINE] * len(rows)
    for line, row in enumerate(rows):
        for place, field in enumerate(LAYOUT.single):
            values = [value for name, value, _ in row if name == field]
            assert found.single[line, place] == (values[0] if values else -1)
        for place, field in enumerate(LAYOUT.multi):
            assert found.multi[place][line].as_py() == heaviest(row, field, LAYOUT.keep)


def heaviest(entries, field, keep):
    """`id:value,...` of a field's heaviest entries, in their order; of equals the earlier."""
    own = [
        (float(weight), -place, f"{value}:{weight}")
        for place, (name, value, weight) in enumerate(entries)
        if name == field
    ]
    kept = sorted(own, reverse=True)[:keep]
    return ",".join(text for _, _, text in sorted(kept, key=lambda entry: -entry[1]))


def raw(folder, seed=0):
    """The four raw files with every trap, as text."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)

    def number():
        return str(random.choice(["1.0", "2.70805", "0.69315", "1e-05", f"{random.random() * 5:.5f}"]))

    for file, count in ROWS.items():
        keys = [f"{int(key):016x}" for key in random.integers(0, 2**62, 12)]
        side = []
        for place, key in enumerate([*keys, keys[0]]):  # the last one repeats an index, with another profile
            entries = [] if place == 3 else [("101", 100 + place % 7, "1.0")]  # one has no user
            entries += [(field, int(random.integers(3)), "1.0") for field in COMMON_SINGLE if field != "101"][
                : 5 + place
            ]
            for field in COMMON_MULTI:
                entries += [(field, int(random.integers(99)), number()) for _ in range(random.integers(0, 25))]
            side.append(f"{key},{len(entries)},{features(*entries)}\n")
        side.insert(2, "deadbeef,1,101\x02x\x031.0\n")
        (folder / f"common_features_{file}.csv").write_text("".join(side))
        log = []
        for row in range(count):
            item = int(random.integers(30))
            entries = [
                ("205", item, "1.0"),
                ("206", item % 5, "1.0"),
                ("207", item % 4, "1.0"),
                ("301", 3 + row % 3, "1.0"),
            ]
            entries += [("210", value, number()) for value in range(item % 3)] + [("508", row, number())]
            entries += [("853", value, number()) for value in random.integers(0, 9, row % 4)]
            entries = [("206", 4, "1")] + entries[1:] if row == 7 else entries  # no item, and a category twice
            entries += [("999", 1, "1.0")] if row == 8 else []
            click = int(random.random() < 0.4)
            bought = int(click and random.random() < 0.4)
            labels = {5: "0,1", 6: "2,0", 9: ",0"}.get(row, f"{click},{bought}")
            key = "0000" if row == 10 else keys[row * len(keys) // count]
            announced = 99 if row == 11 else len(entries)
            log.append(f"{row + 1},{labels},{key},{announced},{features(*entries)}\n")
        log[12] = "13,1\n"
        log[13] = log[13].replace("\x03", "\x02", 1)
        text = "".join(log)
        # the last line is cut: inside its list in one file, just behind an entry in the other
        cut = text.rindex("\x01") if file == "train" else len(text) - 4
        (folder / f"sample_skeleton_{file}.csv").write_text(text[:cut])
    return folder


def naive(folder):
    """What the import should find, a line at a time: impressions, users, items and rejected rows."""
    rows, users, items, rejected, before = [], {}, {}, {}, 0

    def entries_of(text):
        entries = []
        for entry in text.split("\x01") if text else []:
            field, _, rest = entry.partition("\x02")
            value, sign, weight = rest.partition("\x03")
            if not sign or not value.isdigit() or float(weight) < 0:
                raise ValueError(entry)
            entries.append((field, int(value), weight))
        return entries

    def first(entries, field):
        return next((value for name, value, _ in entries if name == field), None)

    def reject(reason):
        rejected[reason] = rejected.get(reason, 0) + 1

    for file in ROWS:
        common = {}
        for line in (folder / f"common_features_{file}.csv").read_text().splitlines():
            key, _, text = line.split(",")
            try:
                common.setdefault(key, entries_of(text))
            except ValueError:
                continue
        for entries in common.values():
            if (user := first(entries, "101")) is not None:
                users.setdefault(user, [first(entries, field) for field in COMMON_SINGLE][1:])
        text = (folder / f"sample_skeleton_{file}.csv").read_text()
        for number, line in enumerate(text.split("\n")):
            if number == text.count("\n"):
                reject("a truncated last line")
                before += number + 1
                continue
            if line.count(",") < 5:
                reject("too few columns")
                continue
            _, click, bought, key, _, text_of = line.split(",")
            try:
                entries = entries_of(text_of)
            except ValueError:
                reject("a malformed feature list")
                continue
            if click not in ("0", "1") or bought not in ("0", "1"):
                reject("a label that is not 0 or 1")
            elif (click, bought) == ("0", "1"):
                reject("a conversion without a click")
            elif key not in common:
                reject("a common_feature_index that common_features lacks")
            elif first(common[key], "101") is None:
                reject("no user id (field 101)")
            elif (item := first(entries, "205")) is None:
                reject("no item id (field 205)")
            else:
                row = {"request_id": key, "timestamp": before + number, "user_id": first(common[key], "101")}
                row |= {"item_id": item, "click": int(click), "conversion": int(bought), "place": first(entries, "301")}
                row |= {name: heaviest(common[key], field, 16) for field, name in COMMON_MULTI.items()}
                row |= {name: heaviest(entries, field, 16) for field, name in SKELETON_MULTI.items() if field != "210"}
                rows.append(row)
                attributes = [first(entries, field) for field in SKELETON_SINGLE][1:4]
                items.setdefault(item, [*attributes, heaviest(entries, "210", 16)])
    return rows, users, items, rejected


def plain(values):
    return [None if value in ("", None) or value != value else str(value) for value in values]


@pytest.mark.parametrize("block_bytes", [700, 5000, 1 << 25])
def test_against_a_naive_reader(tmp_path, block_bytes):
    folder = raw(tmp_path / "raw")
    told = []
    report = import_ali_ccp(folder, tmp_path / "out", block_bytes=block_bytes, progress=lambda *step: told.append(step))
    rows, users, items, rejected = naive(folder)
    assert report.rejected == rejected and len(rejected) == 8
    assert report.read == sum(ROWS.values()) == report.accepted + sum(report.rejected.values())
    assert (report.clicks, report.conversions) == (sum(r["click"] for r in rows), sum(r["conversion"] for r in rows))
    dataset = Dataset(tmp_path / "out")
    found = dataset.impressions
    assert len(found) == len(rows) == report.accepted
    for place, row in enumerate(rows):
        read = found.iloc[place]
        assert set(row) == set(read.index)
        assert plain(read[name] for name in row) == plain(row.values()), place
    by_id = dataset.users.set_index("user_id")
    assert {user: plain(by_id.loc[user, list(COMMON_SINGLE.values())[1:]]) for user in by_id.index} == {
        user: plain(values) for user, values in users.items()
    }
    by_id = dataset.items.set_index("item_id")
    assert {item: plain(by_id.loc[item, ["category", "shop", "brand", "intentions"]]) for item in by_id.index} == {
        item: plain(values) for item, values in items.items()
    }
    assert report.rows == {"users": len(users), "items": len(items), "impressions": len(rows)}
    # 12 records and one malformed, in each file; one index twice
    assert report.notes["common features left out: a malformed feature list"] == 2
    assert report.notes["common features with an index that was there before, left out"] == 2
    assert report.notes["entries of fields not known"] == 2
    assert report.notes["the first field not known"] == "999 in sample_skeleton_train.csv"
    assert report.notes["the first with a conversion without a click"] == "sample_skeleton_train.csv, line 6"
    assert report.notes["the first with a truncated last line"] == "sample_skeleton_train.csv, line 60"
    # row 11 of each file announces 99 entries; in the test file it is one of the user without an id
    assert report.notes["lines whose list is longer or shorter than announced"] == 1
    assert "lines of the skeletons a second" in str(report)
    assert told[-1][0] == "writing" and ("sample_skeleton_test", 40, 40) in told
    checked = check(tmp_path / "out")
    assert checked.ok, checked.errors
    assert not (tmp_path / "out.parts").exists()


def test_encoded_with_weights(tmp_path):
    import_ali_ccp(raw(tmp_path / "raw"), tmp_path / "out")
    timeline = Timeline(Dataset(tmp_path / "out"))
    encoder = Encoder.fit(timeline, before=timeline.window("tune")[1])
    context = encoder.context(timeline, timeline.impressions)
    values, weights = context["context_history_categories"], context["context_history_categories_weight"]
    assert values.shape == weights.shape == (len(timeline.impressions), 16)
    assert (np.diff(weights, axis=1) <= 0).all() and weights.max() > 2
    assert (timeline.tick(timeline.time[-1:]) <= timeline.time[-1]).all()


KILLED = """
import os, signal, sys
from ranking.data.ali_ccp import import_ali_ccp
calls = 0
def progress(stage, done, total):
    global calls
    calls += stage == sys.argv[4]
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
import_ali_ccp(sys.argv[1], sys.argv[2], block_bytes=3000, progress=progress)
"""


@pytest.mark.slow
def test_goes_on_after_a_kill_and_ends_with_the_same_bytes(tmp_path):
    folder = raw(tmp_path / "raw")
    whole = import_ali_ccp(folder, tmp_path / "whole", block_bytes=3000)
    names = ("impressions.parquet", "users.parquet", "items.parquet", "dataset.toml")
    for calls, stage in (("2", "common_features_train"), ("3", "sample_skeleton_train"), ("1", "writing")):
        out = tmp_path / "killed"
        command = [sys.executable, "-c", KILLED, str(folder), str(out), calls, stage]
        assert subprocess.run(command, capture_output=True, timeout=100).returncode == -9
        assert not out.exists() and (tmp_path / "killed.parts/manifest.json").exists()
        made = len(list((tmp_path / "killed.parts").glob("*.arrow")))
        (tmp_path / "killed.parts/.tmp-left-over").write_bytes(b"half")
        again = import_ali_ccp(folder, out, block_bytes=3000)
        assert made >= int(calls) and not (tmp_path / "killed.parts").exists()
        for name in names:
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (stage, name)
        assert (again.rejected, again.rows, again.clicks) == (whole.rejected, whole.rows, whole.clicks)
        import shutil

        shutil.rmtree(out)


def test_parts_of_other_files_are_refused(tmp_path):
    folder = raw(tmp_path / "raw")
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out"), "1", "common_features_train"]
    subprocess.run(command, capture_output=True, timeout=100)
    with open(folder / "sample_skeleton_test.csv", "a") as stream:
        stream.write("\n")
    with pytest.raises(UserError, match="out.parts holds the parts of an import of other files; remove it"):
        import_ali_ccp(folder, tmp_path / "out", block_bytes=3000)


def test_files_that_are_missing_or_empty(tmp_path):
    folder = raw(tmp_path / "raw")
    (folder / "sample_skeleton_test.csv").rename(tmp_path / "away.csv")
    with pytest.raises(UserError, match=r"raw should hold one sample_skeleton_test.csv. Received: 0 of them"):
        import_ali_ccp(folder, tmp_path / "out")
    (folder / "sample_skeleton_test.csv").write_text("")
    with pytest.raises(UserError, match="sample_skeleton_test.csv should have at least one line"):
        import_ali_ccp(folder, tmp_path / "out")
    with pytest.raises(UserError, match="at least 20 lines. Received: 60 and 3"):
        dataset_toml(60, 3, "raw")
    schema = parse_schema(dataset_toml(1000, 300, "raw"))
    # a quarter, up to nine tenths, half of the rest each; then the test file
    assert schema.windows == {
        "lookalike": (0, 250), "train": (250, 900), "calibrate": (900, 950), "tune": (950, 1000), "test": (1000, 1300)
    }  # fmt: skip
    assert schema.tick_ms == 50
