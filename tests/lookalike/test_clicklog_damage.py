"""Whatever becomes of a log's bytes: an event is read as it was appended, or it is listed as lost."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.clicklog import ClickLog, Damage

NOW = 1_700_000_000_000


@pytest.fixture(autouse=True, scope="module")
def _no_sync():
    """No power fails in these tests, and their many small files need not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        patch.setattr("os.fdatasync", lambda descriptor: None)
        yield


def append(log, count):
    """Events that tell their own number: user n (or its text), item n % 3, time NOW + n."""
    number = np.arange(log.end, log.end + count)
    users = number if log.user_ids == "int64" else [f"ü{n}" for n in number.tolist()]
    return log.append(users, number % 3, NOW + number)


def read(log):
    """The offsets that are read; each event should be the one that was appended there."""
    offsets = []
    for batch in log.read(raw=True):
        number = np.arange(batch.offset, batch.next)
        users = number.tolist() if log.user_ids == "int64" else [f"ü{n}" for n in number.tolist()]
        assert list(batch.user_ids) == users
        assert (batch.item == number % 3).all() and (batch.time == NOW + number).all() and not batch.kind.any()
        offsets += number.tolist()
    return offsets


def lost(damage):
    return [offset for entry in damage for offset in range(entry.offset, entry.offset + entry.lost)]


def all_accounted_for(folder, end):
    """Reader and writer agree: every event below `end` is read or listed; and appends go on behind."""
    with ClickLog(folder, write=False) as reader:
        seen = read(reader)
        assert sorted(seen + lost(reader.damage)) == [*range(end)]
    with ClickLog(folder) as log:
        assert log.end == end and read(log) == seen and log.damage == reader.damage
        append(log, 3)
        assert read(log) == [*seen, end, end + 1, end + 2]
        told = log.damage
    with ClickLog(folder) as log:  # what is known stays known, and nothing is told twice
        assert log.check() == told
    return seen, told


def small_log(folder, user_ids="int64", sizes=(2, 3, 1), segment_bytes=1 << 20):
    with ClickLog(folder, user_ids=user_ids, segment_bytes=segment_bytes) as log:
        for count in sizes:
            append(log, count)
    return sum(sizes)


def segment(folder, index=0):
    return sorted(folder.glob("*.clicks"))[index]


# A frame of 2 events of numbers takes 48 + 2 * 16 + 8 + 2 * 4 + 1 = 97 bytes, one of 3 takes 117, one of 1 takes 77.


def test_a_damaged_frame_is_set_aside_and_counted(tmp_path, caplog):
    small_log(tmp_path)
    data = bytearray(segment(tmp_path).read_bytes())
    assert len(data) == 97 + 117 + 77
    data[97 + 60] ^= 4  # in the columns of the second frame
    segment(tmp_path).write_bytes(data)
    seen, damage = all_accounted_for(tmp_path, 6)
    assert seen == [0, 1, 5]
    name = "00000000000000000000"
    assert damage == [Damage(f"{name}.clicks", byte=97, size=117, offset=2, lost=3, quarantined=True)]
    aside = tmp_path / "quarantine" / f"{name}-97-2"
    assert aside.with_suffix(".bytes").read_bytes() == data[97 : 97 + 117]
    assert json.loads(aside.with_suffix(".json").read_text())["lost"] == 3
    assert "3 events from offset 2 are lost" in caplog.text


def test_a_damaged_header_is_searched_past(tmp_path):
    small_log(tmp_path)
    data = bytearray(segment(tmp_path).read_bytes())
    data[97 + 20] ^= 1
    segment(tmp_path).write_bytes(data)
    seen, damage = all_accounted_for(tmp_path, 6)
    assert seen == [0, 1, 5] and [(d.byte, d.size, d.offset, d.lost) for d in damage] == [(97, 117, 2, 3)]


@pytest.mark.parametrize("user_ids", ["int64", pytest.param("string", marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, user_ids):
    # Every byte of the segment, the format and the mark, one bit of each.
    end = small_log(tmp_path / "log", user_ids)
    names = [segment(tmp_path / "log").name, "format.json", "durable"]
    generator = np.random.default_rng(0)
    for name in names:
        data = (tmp_path / "log" / name).read_bytes()
        for place in range(len(data)):
            folder = tmp_path / f"{name}-{place}"
            shutil.copytree(tmp_path / "log", folder)
            flipped = bytearray(data)
            flipped[place] ^= 1 << generator.integers(8)
            (folder / name).write_bytes(flipped)
            seen, damage = all_accounted_for(folder, end)
            assert len(damage) == name.endswith(".clicks") and (len(seen) == end) == (not damage)
            shutil.rmtree(folder)


@pytest.mark.parametrize("user_ids", ["int64", "string"])
def test_a_torn_tail_is_cut_off_and_the_rest_is_kept(tmp_path, user_ids):
    # The last frame was never acknowledged: the mark is the one from before it.
    with ClickLog(tmp_path / "log", user_ids=user_ids) as log:
        append(log, 2)
        append(log, 3)
        mark, whole = (tmp_path / "log" / "durable").read_bytes(), segment(tmp_path / "log").stat().st_size
        append(log, 4)
    data = segment(tmp_path / "log").read_bytes()
    (tmp_path / "log" / "durable").write_bytes(mark)
    for size in range(whole, len(data)):
        folder = tmp_path / str(size)
        shutil.copytree(tmp_path / "log", folder)
        segment(folder).write_bytes(data[:size])
        with ClickLog(folder, write=False) as reader:
            assert read(reader) == [0, 1, 2, 3, 4] and reader.damage == []
        assert segment(folder).stat().st_size == size  # a reader changes nothing
        assert all_accounted_for(folder, 5) == ([0, 1, 2, 3, 4], [])
        assert segment(folder).read_bytes()[whole : whole + 4] == b"\xc1CLK"  # what came next starts here
        shutil.rmtree(folder)
    with ClickLog(tmp_path / "log", write=False) as reader:
        assert reader.end == 5  # whole, but nobody knows whether it is durable
    with ClickLog(tmp_path / "log"):
        assert reader.end == 9  # the writer has seen to it
    assert read(reader) == [*range(9)]


def test_acknowledged_events_that_were_cut_off_are_listed(tmp_path):
    # As above, but the mark says that they were acknowledged: offsets are not given again.
    end = small_log(tmp_path / "log")
    data = segment(tmp_path / "log").read_bytes()
    for size in range(len(data)):
        folder = tmp_path / str(size)
        shutil.copytree(tmp_path / "log", folder)
        segment(folder).write_bytes(data[:size])
        with ClickLog(folder) as log:
            assert lost(log.damage) == [*range(0 if size < 97 else 2 if size < 97 + 117 else 5, end)]  # told at opening
        seen, damage = all_accounted_for(folder, end)
        assert seen == [*range(0 if size < 97 else 2 if size < 97 + 117 else 5)] and len(damage) == 1
        shutil.rmtree(folder)


@pytest.mark.parametrize("also", [False, True])
def test_a_copy_without_its_mark_or_format_is_read_as_far_as_frames_go(tmp_path, also):
    end = small_log(tmp_path, "string")
    (tmp_path / "durable").unlink()
    if also:
        (tmp_path / "format.json").unlink()
    with ClickLog(tmp_path, write=False) as reader:
        assert (reader.end, reader.user_ids, reader.item_ids) == (end, "string", "int64")
        assert read(reader) == [*range(end)]
    assert all_accounted_for(tmp_path, end) == ([*range(end)], [])


def test_without_a_mark_the_last_frame_counts_as_torn_and_those_before_as_damaged(tmp_path):
    small_log(tmp_path)
    (tmp_path / "durable").unlink()
    data = bytearray(segment(tmp_path).read_bytes())
    data[50] ^= 1  # the first frame
    data[-1] ^= 1  # the last one
    segment(tmp_path).write_bytes(data)
    seen, damage = all_accounted_for(tmp_path, 5)
    assert seen == [2, 3, 4] and [(d.offset, d.lost) for d in damage] == [(0, 2)]


def test_a_segment_that_is_gone_is_listed(tmp_path):
    end = small_log(tmp_path, sizes=(2, 3, 1, 4), segment_bytes=1)
    segment(tmp_path, 1).unlink()
    seen, damage = all_accounted_for(tmp_path, end)
    assert seen == [0, 1, 5, 6, 7, 8, 9]
    assert [(d.segment[-10:], d.byte, d.size, d.offset, d.lost) for d in damage] == [("000.clicks", 97, 0, 2, 3)]


def test_the_last_segment_that_is_gone_is_listed(tmp_path):
    end = small_log(tmp_path, sizes=(2, 3, 1, 4), segment_bytes=1)
    segment(tmp_path, -1).unlink()
    seen, damage = all_accounted_for(tmp_path, end)
    assert seen == [*range(6)] and lost(damage) == [6, 7, 8, 9]


def test_a_segment_of_another_log_is_none_of_this_one(tmp_path):
    end = small_log(tmp_path / "one", segment_bytes=1)
    small_log(tmp_path / "two", segment_bytes=1)
    shutil.copy(segment(tmp_path / "two", 1), segment(tmp_path / "one", 1))
    seen, damage = all_accounted_for(tmp_path / "one", end)
    assert seen == [0, 1, 5] and lost(damage) == [2, 3, 4]


def test_ids_cannot_pass_for_frames(tmp_path):
    # User ids that are, byte for byte, a frame of the same log's format; and the header before them is damaged.
    small_log(tmp_path / "other", sizes=(2,))
    forged = segment(tmp_path / "other").read_bytes()
    with ClickLog(tmp_path / "log") as log:
        log.append(np.frombuffer(forged[:96], np.int64), [0] * 12, [NOW] * 12)
        log.append([12], [0], [NOW + 12])
    path = segment(tmp_path / "log")
    data = bytearray(path.read_bytes())
    assert forged[:96] in data
    data[0] ^= 1
    path.write_bytes(data)
    seen, damage = all_accounted_for(tmp_path / "log", 13)
    assert seen == [12] and [(d.offset, d.lost) for d in damage] == [(0, 12)]


def test_damage_outlives_an_erasure_and_its_bytes_do_not(tmp_path):
    small_log(tmp_path)
    data = bytearray(segment(tmp_path).read_bytes())
    data[97 + 48] ^= 64  # user 2 of the second frame
    segment(tmp_path).write_bytes(data)
    with ClickLog(tmp_path) as log:
        assert log.compact([3, 4, 5]) == 1  # 3 and 4 are lost already
        assert [(d.offset, d.lost) for d in log.check()] == [(2, 3)]
        assert [path.suffix for path in (tmp_path / "quarantine").iterdir()] == [".json"]
        assert segment(tmp_path).stat().st_size == 97 + 77
        assert [offset for batch in log.read() for offset in range(batch.offset, batch.next)] == [0, 1, 5]


def test_damage_is_told_where_nothing_can_be_written(tmp_path, monkeypatch):
    end = small_log(tmp_path)
    data = bytearray(segment(tmp_path).read_bytes())
    data[60] ^= 1
    segment(tmp_path).write_bytes(data)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("lookalike.clicklog_damage.write_whole", refuse)
        with ClickLog(tmp_path, write=False) as reader:
            assert len(read(reader)) == 4 and [d.quarantined for d in reader.damage] == [False]
    assert [d.quarantined for d in all_accounted_for(tmp_path, end)[1]] == [True]


# Faults of all sorts at once.


@st.composite
def faults(draw):
    """Kind of a fault, which segment, where in it (as a share), and a length or bit."""
    kind = draw(st.sampled_from(["flip", "cut out", "put in", "repeat", "zero", "truncate", "remove"]))
    return kind, draw(st.integers(0, 9)), draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 200))


def inflict(folder, kind, which, share, amount):
    paths = sorted(folder.glob("*.clicks"))
    path = paths[which % len(paths)]
    data = bytearray(path.read_bytes())
    place = int(share * len(data))
    if kind == "remove" and which % len(paths):  # without the first, what is left is a log that starts later
        path.unlink()
        return
    if kind == "flip" and data:
        data[place] ^= 1 << amount % 8
    elif kind == "cut out":
        del data[place : place + amount]
    elif kind == "put in":
        data[place:place] = bytes(range(193, 193 + amount % 60)) + b"\xc1CLK" * (amount % 3)
    elif kind == "repeat":
        data[place:place] = data[max(place - amount, 0) : place + amount]
    elif kind == "zero":
        data[place : place + amount] = bytes(len(data[place : place + amount]))
    elif kind == "truncate":
        del data[place:]
    path.write_bytes(data)


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=8),
    st.sampled_from([1, 300, 1 << 20]),
    st.sampled_from(["int64", "string"]),
    st.lists(faults(), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_fault_goes_unsaid(tmp_path_factory, sizes, segment_bytes, user_ids, several):
    folder = tmp_path_factory.mktemp("log")
    end = small_log(folder, user_ids, sizes, segment_bytes)
    for fault in several:
        inflict(folder, *fault)
    seen, damage = all_accounted_for(folder, end)
    assert len(seen) == end or damage
    shutil.rmtree(folder)
