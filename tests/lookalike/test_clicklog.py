import json
import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.clicklog import CLICK, ERASED, FORGET, UNCLICK, Batch, ClickLog, ClickLogError, keys_of

NOW = 1_700_000_000_000
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


def events(log, *arguments, raw=False, **rest):
    """What a log holds: one tuple an event, its offset first."""
    found = []
    for batch in log.read(*arguments, raw=raw, **rest):
        ids = (batch.user_ids, batch.item_ids) if raw else (batch.user.tolist(), batch.item.tolist())
        offsets = range(batch.offset, batch.next)
        found += list(zip(offsets, *ids, batch.time.tolist(), batch.kind.tolist(), strict=True))
    return found


def append(log, count, start=0):
    """Events that tell their own number: user n, item n % 3, time NOW + n."""
    number = np.arange(start, start + count)
    return log.append(number, number % 3, NOW + number)


# A frame, byte by byte.


def test_a_frame_is_these_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000)  # 5 ms
    with ClickLog(tmp_path) as log:
        assert log.append([7, -1], [9, 10], [1000, 1003], [CLICK, UNCLICK]) == (0, 2)
    number = int(json.loads((tmp_path / "format.json").read_text())["log"], 16)
    columns = bytes.fromhex(
        "0700000000000000" "ffffffffffffffff"  # users
        "0900000000000000" "0a00000000000000"  # items
        "e803000000000000" "00000000" "03000000"  # times: 1000, then 0 and 3 above it
        "00" "01"  # kinds
    )  # fmt: skip
    assert len(columns) == 50
    header = b"\xc1CLK" + bytes([1, 0, 1, 0])  # version 1, ids are numbers, times above the least
    header += struct.pack("<Q", number) + bytes(8) + bytes.fromhex("0200000032000000")  # offset 0, 2 events, 50 bytes
    header += bytes.fromhex("0500000000000000") + struct.pack("<I", zlib.crc32(columns))
    expected = header + struct.pack("<I", zlib.crc32(header)) + columns
    assert len(expected) == 98
    assert (tmp_path / "00000000000000000000.clicks").read_bytes() == expected


def test_a_frame_of_texts_holds_keys_lengths_and_utf8(tmp_path):
    with ClickLog(tmp_path, user_ids="string") as log:
        log.append(["ü", "bc"], [1, 2], [1000, 1000])
    data = (tmp_path / "00000000000000000000.clicks").read_bytes()[48:]
    assert data[:16] == keys_of(["ü", "bc"]).tobytes()
    assert data[16:24] == bytes([2, 0, 2, 0]) + "übc".encode()
    assert data[24:40] == np.array([1, 2]).tobytes()
    assert data[40:] == (1000).to_bytes(8, "little") + bytes(8) + bytes([CLICK])  # one kind for all


def test_numbers_take_at_most_24_bytes_an_event_and_a_frame_48(tmp_path):
    count = 1000
    with ClickLog(tmp_path / "near") as log:
        append(log, count)
        assert log.nbytes == 48 + count * 20 + 8 + 1
    with ClickLog(tmp_path / "far") as log:  # times further apart than 2^32 ms, 49 days
        log.append(np.arange(count), np.arange(count), np.arange(count) << 40)
        assert log.nbytes == 48 + count * 24 + 1


# Keys.


def siphash(data, key):
    """SipHash-2-4 as its paper has it (Aumasson and Bernstein, 2012)."""

    def rotated(x, by):
        return (x << by | x >> (64 - by)) & (1 << 64) - 1

    def rounds(v, count):
        for _ in range(count):
            v[0] = (v[0] + v[1]) & (1 << 64) - 1
            v[2] = (v[2] + v[3]) & (1 << 64) - 1
            v[1], v[3] = rotated(v[1], 13) ^ v[0], rotated(v[3], 16) ^ v[2]
            v[0] = (rotated(v[0], 32) + v[3]) & (1 << 64) - 1
            v[2] = (v[2] + v[1]) & (1 << 64) - 1
            v[1], v[3] = rotated(v[1], 17) ^ v[2], rotated(v[3], 21) ^ v[0]
            v[2] = rotated(v[2], 32)

    low, high = struct.unpack("<QQ", key)
    v = [low ^ 0x736F6D6570736575, high ^ 0x646F72616E646F6D, low ^ 0x6C7967656E657261, high ^ 0x7465646279746573]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(v, 2)
        v[0] ^= word
    v[2] ^= 255
    rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_siphash_is_the_papers():
    # Its appendix A: 15 bytes 0 to 14 with the key 0 to 15.
    assert siphash(bytes(range(15)), bytes(range(16))) == 0xA129CA6149BE45E5


def mixed(x):
    """The last steps of splitmix64, which pandas puts behind SipHash."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return x ^ x >> 31


@given(st.lists(TEXT, min_size=1, max_size=5))
@settings(deadline=None, derandomize=True)
def test_keys_of_texts_are_63_bits_of_siphash(texts):
    expected = [mixed(siphash(text.encode(), b"seedrank-clicks.")) >> 1 for text in texts]
    assert keys_of(texts).tolist() == expected
    assert keys_of(np.array(texts, object)).tolist() == expected


def test_keys_of_numbers_are_themselves():
    numbers = [9007199254740993, -1, 0]
    for given_ids in (numbers, np.array(numbers), np.array(numbers, object)):
        assert keys_of(given_ids).tolist() == numbers and keys_of(given_ids).dtype == np.int64
    assert keys_of([]).tolist() == []


def test_keys_tell_a_trailing_nul():
    assert len(set(keys_of(["a", "a\0", "007", "7"]).tolist())) == 4


# Append and read.


@given(st.lists(st.lists(st.tuples(INT64, INT64, INT64, st.sampled_from([CLICK, UNCLICK, FORGET])), max_size=5)))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_what_is_appended_is_read(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("log")
    expected = []
    with ClickLog(folder, segment_bytes=300) as log:
        for batch in batches:
            columns = [list(column) for column in zip(*batch, strict=True)] or [[], [], [], []]
            first, after = log.append(*columns)
            assert (first, after) == (len(expected), len(expected) + len(batch))
            expected += batch
        assert events(log) == [(offset, *event) for offset, event in enumerate(expected)]
    with ClickLog(folder) as log:
        assert log.end == len(expected) and log.damage == []
        assert events(log) == [(offset, *event) for offset, event in enumerate(expected)]


@given(st.lists(st.tuples(TEXT, TEXT, INT64), min_size=1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_texts_come_back_beside_their_keys(tmp_path_factory, rows):
    users, items, times = ([*column] for column in zip(*rows, strict=True))
    with ClickLog(tmp_path_factory.mktemp("log"), user_ids="string", item_ids="string") as log:
        log.append(users, np.array(items, object), times)
        (batch,) = log.read(raw=True)
        assert (batch.user_ids, batch.item_ids, batch.time.tolist()) == (users, items, times)
        assert batch.user.tolist() == keys_of(users).tolist() and batch.item.tolist() == keys_of(items).tolist()
        (plain,) = log.read()
        assert plain.user.tolist() == batch.user.tolist() and plain.user_ids is None


@given(st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_part_can_be_read(tmp_path_factory, low, high):
    low, high = sorted((low, high))
    with ClickLog(tmp_path_factory.mktemp("log"), segment_bytes=400) as log:
        for count in (1, 9, 5, 11, 4):
            append(log, count, log.end)
        assert [event[:2] for event in events(log, low, until=high)] == [(n, n) for n in range(low, high)]


def test_batches_are_large_and_their_arrays_typed(tmp_path):
    with ClickLog(tmp_path) as log:
        for _ in range(20):
            append(log, 10_000, log.end)
        batches = list(log.read())
        assert [len(batch) for batch in batches] == [140_000, 60_000]
        assert all(isinstance(batch, Batch) for batch in batches)
        names = ("user", "item", "time", "received")
        assert {getattr(batch, name).dtype for batch in batches for name in names} == {np.dtype(np.int64)}
        assert {batch.kind.dtype for batch in batches} == {np.dtype(np.uint8)}
        (one,) = log.read(1, until=8)  # one frame, whose columns lie at odd places
        for name in (*names, "kind"):
            assert getattr(one, name).flags.carray and getattr(one, name).dtype.isnative


def test_a_large_append_is_cut_into_frames(tmp_path):
    with ClickLog(tmp_path, user_ids="string") as log:
        assert append_texts(log, 300, "x" * 65_535) == (0, 300)  # 19.7 MB: two frames of at most 16 MiB
        (batch,) = log.read(raw=True)
        assert set(batch.user_ids) == {"x" * 65_535} and len(batch) == 300
        assert next(iter(log.read(299))).offset == 299
    with ClickLog(tmp_path / "numbers") as log:
        assert append(log, 200_000) == (0, 200_000)
        assert [event[1] for event in events(log, 65_530, until=65_540)] == [*range(65_530, 65_540)]


def append_texts(log, count, text):
    return log.append([text] * count, np.arange(count), np.arange(count))


def test_received_is_when_the_log_took_it(tmp_path, monkeypatch):
    moments = iter([5_000_000, 9_999_999])  # 5 ms, 9.999999 ms
    monkeypatch.setattr("time.time_ns", lambda: next(moments))
    with ClickLog(tmp_path) as log:
        append(log, 2)
        append(log, 1, 2)
        (batch,) = log.read()
        assert batch.received.tolist() == [5, 5, 9]


WRONG = {
    "lengths": (([1, 2], [1], [1]), "lengths"),
    "kinds' length": (([1, 2], [1, 2], [1, 2], [0]), "lengths"),
    "texts for numbers": ((["1"], [1], [1]), "`user`"),
    "a float": (([1.0], [1], [1]), "`user`"),
    "a bool": (([True], [1], [1]), "`user`"),
    "NaN": (([1], [1], [float("nan")]), "`time`"),
    "beyond int64": (([1], [1 << 63], [1]), "`item`"),
    "far beyond int64": (([1], [1], [1 << 80]), "`time`"),
    "two dimensions": (([[1]], [1], [1]), "`user`"),
    "no dimension": ((1, [1], [1]), "`user`"),
    "None": (([None], [1], [1]), "`user`"),
    "kind 3": (([1], [1], [1], [3]), "`kind`"),
    "kind erased": (([1], [1], [1], [ERASED]), "`kind`"),
    "kind -1": (([1], [1], [1], [-1]), "`kind`"),
}


@pytest.mark.parametrize(("given_arguments", "named"), WRONG.values(), ids=WRONG)
def test_what_is_no_event_is_refused_and_nothing_is_appended(tmp_path, given_arguments, named):
    with ClickLog(tmp_path) as log:
        append(log, 1)
        with pytest.raises(ValueError, match=named):
            log.append(*given_arguments)
        assert (log.end, log.nbytes) == (1, 48 + 29)


@pytest.mark.parametrize("wrong", ["", 7, None, b"a", "\ud800", "x" * 65_536, "ü" * 40_000, "x" * 1_000_001])
def test_what_is_no_text_id_is_refused(tmp_path, wrong):
    with ClickLog(tmp_path, user_ids="string", item_ids="string") as log:
        for users, items in ((["a", wrong], ["b", "c"]), (["a", "b"], ["c", wrong])):
            with pytest.raises(ValueError, match="user" if users[1] is wrong else "item") as caught:
                log.append(users, items, [1, 1])
            assert len(str(caught.value)) < 300
        assert log.end == 0


def test_nothing_is_appended_without_a_sync(tmp_path):
    with ClickLog(tmp_path) as log:
        assert log.append([], [], []) == (0, 0) and log.counters["syncs"] == 0 and events(log) == []


@pytest.mark.parametrize(("offset", "until"), [(-1, None), (4, None), (0, 4), (2, 1)])
def test_offsets_that_are_not_there_are_refused(tmp_path, offset, until):
    with ClickLog(tmp_path) as log:
        append(log, 3)
        with pytest.raises(ValueError, match="should be from"):
            log.read(offset, until=until)


# Opening.


def test_ids_are_what_the_log_was_made_with(tmp_path):
    with ClickLog(tmp_path, item_ids="string") as log:
        assert (log.user_ids, log.item_ids) == ("int64", "string")
    for write in (True, False):
        with ClickLog(tmp_path, write=write) as log:
            assert (log.user_ids, log.item_ids) == ("int64", "string")
        with pytest.raises(ClickLogError, match='item_ids="string"'):
            ClickLog(tmp_path, item_ids="int64", write=write)
    with pytest.raises(ValueError, match="user_ids"):
        ClickLog(tmp_path, user_ids="int32")
    with pytest.raises(ValueError, match="segment_bytes"):
        ClickLog(tmp_path, segment_bytes=0)


def test_no_log_is_said(tmp_path):
    for arguments in ({"write": False}, {"create": False}):
        with pytest.raises(ClickLogError, match="no click log"):
            ClickLog(tmp_path / "absent", **arguments)
    assert not (tmp_path / "absent").exists()
    with pytest.raises(ClickLogError, match="no click log"):
        ClickLog(tmp_path, write=False)
    assert list(tmp_path.iterdir()) == []


def test_one_writer_and_many_readers(tmp_path):
    with ClickLog(tmp_path) as log:
        append(log, 3)
        with pytest.raises(ClickLogError, match=f"process {os.getpid()} writes"):
            ClickLog(tmp_path)
        readers = [ClickLog(tmp_path, write=False) for _ in range(3)]
        for reader in readers:
            assert len(events(reader)) == 3
            with pytest.raises(ClickLogError, match="for reading"):
                append(reader, 1)
            for call in (reader.retain, reader.compact):
                with pytest.raises(ClickLogError, match="for reading"):
                    call([1])
        append(log, 2, 3)
        assert [reader.end for reader in readers] == [5, 5, 5]
    with pytest.raises(ClickLogError, match="closed"):
        append(log, 1)
    with ClickLog(tmp_path) as log:
        assert append(log, 1, 5) == (5, 6)
    assert len(events(readers[0])) == 6


# Threads.


def test_threads_that_wait_share_a_sync(tmp_path, monkeypatch):
    synced = os.fdatasync

    def slow(descriptor):
        time.sleep(0.002)
        synced(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    placed = {}
    with ClickLog(tmp_path, segment_bytes=20_000) as log:

        def work(thread):
            for step in range(20):
                first, after = log.append([thread, thread], [step, step], [NOW, NOW + 1])
                assert after == first + 2
                placed[first] = (thread, step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.end == 16 * 20 * 2 and log.counters["events"] == log.end
        assert 20 <= log.counters["syncs"] <= 160  # 320 appends; ideal is about 2 rounds of 20
        found = events(log)
    assert [event[0] for event in found] == [*range(640)]
    for first, (thread, step) in placed.items():
        assert found[first][1:4] == (thread, step, NOW) and found[first + 1][1:4] == (thread, step, NOW + 1)


def test_reading_goes_on_beside_appends_and_the_rest(tmp_path):
    stop, problems = threading.Event(), []
    with ClickLog(tmp_path, segment_bytes=5_000) as log:

        def read():
            try:
                while not stop.is_set():
                    start = log.start
                    found = events(log, max(start, log.end - 500))
                    assert all(offset == user or kind == ERASED for offset, user, _, _, kind in found)
            except Exception as error:  # told to the main thread
                problems.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(100):
            append(log, 37, log.end)
            if log.end % 10 == 0:
                log.compact([log.end - 40])
        stop.set()
        reader.join()
        assert problems == [] and log.end == 3700 and log.check() == []


# Retention.


def test_retention_removes_whole_segments_below(tmp_path):
    with ClickLog(tmp_path, segment_bytes=500) as log:  # frames of 10 events take 257 bytes: one a segment
        for _ in range(5):
            append(log, 10, log.end)
        assert log.start == 0
        assert log.retain(0) == 0 and log.retain(9) == 0
        assert log.retain(10) == 10 and log.retain(29) == 20
        assert [event[0] for event in events(log)] == [*range(20, 50)]
        with pytest.raises(ValueError, match="from 20 to 50"):
            log.read(0)
        assert log.retain(1_000) == 40  # the one that is written stays
        assert append(log, 1, 50) == (50, 51) and log.damage == []
    with ClickLog(tmp_path) as log:
        assert (log.start, log.end) == (40, 51) and log.damage == []


def test_retention_under_a_reader_is_said(tmp_path):
    with ClickLog(tmp_path, segment_bytes=500) as log:
        for _ in range(5):
            append(log, 10, log.end)
        reading = log.read()
        frames = log._reader.frames(0, 50, 50)
        next(frames)
        log.retain(30)
        for begun in (reading, frames):
            with pytest.raises(ClickLogError, match="removed while"):
                list(begun)


# Erasure.


def held(folder):
    """Every byte below a folder."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("kind_of_ids", ["int64", "string"])
def test_erasure_leaves_offsets_and_no_byte_of_the_user(tmp_path, kind_of_ids):
    rare = 0x1122334455667788
    users = [rare, 2, rare, 3] if kind_of_ids == "int64" else ["Ségolène", "two", "Ségolène", "three"]
    needle = rare.to_bytes(8, "little") if kind_of_ids == "int64" else "Ségolène".encode()
    with ClickLog(tmp_path, user_ids=kind_of_ids, segment_bytes=1_000) as log:
        for step in range(20):
            log.append(users, [step] * 4, [NOW] * 4, [CLICK, CLICK, FORGET, UNCLICK])
        before = events(log, raw=True)
        assert held(tmp_path).count(needle) == 40
        assert keys_of([users[0]])[0].tobytes() in held(tmp_path)
        assert log.compact([users[0]]) == 40
        assert held(tmp_path).count(needle) == 0 and keys_of([users[0]])[0].tobytes() not in held(tmp_path)
        nobody = 0 if kind_of_ids == "int64" else ""
        expected = [
            (offset, nobody, item, 0, ERASED) if user == users[0] else (offset, user, item, moment, kind)
            for offset, user, item, moment, kind in before
        ]
        assert events(log, raw=True) == expected
        assert log.compact([users[0]]) == 0 and log.compact([]) == 0
        log.append(users, [99] * 4, [NOW] * 4)
    with ClickLog(tmp_path) as log:
        assert events(log, until=80, raw=True) == expected and log.end == 84 and log.check() == []


def test_erasure_goes_by_the_text_where_keys_collide(tmp_path, monkeypatch):
    monkeypatch.setattr("lookalike.clicklog_columns.keys_of", lambda ids: np.full(len(ids), 5))
    with ClickLog(tmp_path, user_ids="string") as log:
        log.append(["a", "b"], [1, 1], [NOW, NOW])
        assert log.compact(["a"]) == 1
        assert events(log, raw=True) == [(0, "", 1, 0, ERASED), (1, "b", 1, NOW, CLICK)]


def test_a_reader_amid_an_erasure_reads_on(tmp_path):
    with ClickLog(tmp_path, segment_bytes=1 << 22) as log:
        for _ in range(4):
            append(log, 100_000, log.end)
        reading = ClickLog(tmp_path, write=False).read()
        first = next(reading)
        log.compact(range(0, 400_000, 2))
        assert len(first) + sum(len(batch) for batch in reading) == 400_000
        assert log.check() == []


def test_erasure_of_user_zero(tmp_path):
    with ClickLog(tmp_path) as log:
        log.append([0, 1], [5, 5], [NOW, NOW])
        assert log.compact([0]) == 1 and log.compact([0]) == 0
        assert events(log) == [(0, 0, 5, 0, ERASED), (1, 1, 5, NOW, CLICK)]
