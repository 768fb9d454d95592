import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from serving.errors import ServingError
from serving.slate import Slate, make_slate
from serving.slate_log import SlateLog

SETTINGS = Slate(2, "epsilon", epsilon=0.2, examination=(1.0, 0.5))


def slate(ids=(1, 2, 3)):
    scores = np.linspace(1, 0, len(ids))
    return make_slate({"item_id": ids, "score": scores, "pctr": scores / 2}, SETTINGS, np.random.default_rng(0))


def table(folder, name):
    return pa.concat_tables([pa.parquet.read_table(part / f"{name}.parquet") for part in sorted(folder.glob("part-*"))])


def test_a_part_by_hand(tmp_path):
    large = 2**53 + 1
    with SlateLog(tmp_path, context={"tab": "categorical", "hour": "numeric"}) as log:
        first = log.add(
            slate([large, 5, 7]), user_id=-large, request_id="r", timestamp=9, segment="s", policy_id="p",
            context={"tab": 3, "hour": 2},
        )  # fmt: skip
        second = log.add(slate([8]), user_id=np.int64(4), context={"tab": "", "hour": None})
        log.add(slate([]), user_id=4, request_id="nothing", context={"tab": "", "hour": None})
    assert first == "r" and len(second) == 32
    rows = table(tmp_path, "requests").to_pylist()
    policy = {"exploration": "epsilon", "epsilon": 0.2, "temperature": None, "slots": 2}
    told = {
        "request_id": "r",
        "timestamp": 9,
        "user_id": -large,
        "segment": "s",
        "policy_id": "p",
        "tab": "3",
        "hour": 2.0,
    }
    assert rows[0] == {**told, **policy}
    assert (
        rows[1]["request_id"] == second
        and rows[1]["tab"] is None
        and abs(rows[1]["timestamp"] / 1e3 - time.time()) < 600
    )
    assert len(rows) == 2
    found = table(tmp_path, "candidates")
    assert found.schema.field("score").type == pa.float32() and found.schema.field("item_id").type == pa.int64()
    assert found["request_id"].to_pylist() == ["r"] * 3 + [second] and found["item_id"].to_pylist() == [large, 5, 7, 8]
    assert found["position"].to_pylist() == [0, 1, -1, 0] and found["pool"].to_pylist() == [0] * 4
    # epsilon .2 of three: .8 + .2 / 3 for the place of its score; looked at .8 (1, .5, 0) + .2 / 3 (1 + .5)
    np.testing.assert_allclose(found["position_propensity"][:2].to_pylist(), [0.8 + 0.2 / 3] * 2)
    np.testing.assert_allclose(found["exposure_propensity"].to_pylist(), [0.9, 0.5, 0.1, 1.0])
    assert np.isnan(found["similarity"].to_pylist()).all() and found["pctr"].to_pylist() == [0.5, 0.25, 0, 0.5]


def test_threads_and_rotation(tmp_path):
    with SlateLog(tmp_path, user_id="string", item_id="string", rows=100, seconds=0.05) as log:
        shown = slate(["a", "新", "c"])

        def work(name):
            for number in range(200):
                log.add(shown, user_id="u", request_id=f"{name}/{number}")

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("part-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        log.add(shown, user_id="u", request_id="last")  # so that there is a second part
    requests, candidates = table(tmp_path, "requests"), table(tmp_path, "candidates")
    wanted = ["last", *(f"{name}/{number}" for name in "abcd" for number in range(200))]
    assert sorted(requests["request_id"].to_pylist()) == sorted(wanted)
    assert candidates.num_rows == 2403 and log.dropped == 0
    assert len(list(tmp_path.glob("part-*"))) > 1 and not list(tmp_path.glob(".tmp-*"))


def test_a_quiet_log_is_written_after_its_seconds(tmp_path):
    with SlateLog(tmp_path, seconds=0.05) as log:
        log.add(slate(), user_id=1)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("part-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert table(tmp_path, "requests").num_rows == 1


KILLED = """
import sys, numpy as np
from serving.slate import Slate, make_slate
from serving.slate_log import SlateLog
log = SlateLog(sys.argv[1], rows=300, seconds=0.01)
before, n = len(list(log.folder.glob("part-*"))), 0
while True:
    shown = make_slate({"item_id": range(50), "score": range(50)}, Slate(3), np.random.default_rng(0))
    log.add(shown, user_id=1, request_id=f"{sys.argv[2]}/{n}")
    n += 1
    if n % 100 == 0 and len(list(log.folder.glob("part-*"))) > before + 2:
        print("going", flush=True)
"""


@pytest.mark.slow
def test_killed_writers_leave_whole_parts(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), name], stdout=subprocess.PIPE) for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"going\n"  # it has written three parts and goes on
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    requests, candidates = table(tmp_path, "requests"), table(tmp_path, "candidates")
    names = requests["request_id"].to_pylist()
    assert len(names) == len(set(names)) > 0 and candidates.num_rows == 50 * len(names)
    for name in "ab":  # what was written is the beginning of what was shown: no part is missing in between
        numbers = sorted(int(found.split("/")[1]) for found in names if found.startswith(name))
        assert numbers == list(range(len(numbers)))


def test_leftovers_of_dead_writers_are_removed_after_a_day(tmp_path):
    for name, age in ((".tmp-part-old", 2 * 86_400), (".tmp-part-new", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    SlateLog(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-part-new"]


def test_a_full_disk_holds_up_nobody_and_loses_nothing_below_the_limit(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    write = pa.parquet.write_table
    monkeypatch.setattr(pa.parquet, "write_table", full)
    log = SlateLog(tmp_path, rows=9, limit=15, seconds=0.02)
    for number in range(8):
        log.add(slate(), user_id=1, request_id=str(number))
    assert log.dropped == 3  # 15 of 24 candidates are kept
    with pytest.raises(OSError, match="No space"):
        log.flush()
    deadline = time.monotonic() + 60
    while log.error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(log.error, OSError) and not list(tmp_path.glob("part-*"))
    monkeypatch.setattr(pa.parquet, "write_table", write)
    log.close()
    assert table(tmp_path, "requests")["request_id"].to_pylist() == list("01234") and log.error is None
    with pytest.raises(ServingError, match="closed"):
        log.add(slate(), user_id=1)
    log.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"user_id": "int32"}, "user_id='int32'"),
        ({"context": {"tab": "text"}}, "tab='text'"),
        ({"rows": 0}, "`rows`"),
        ({"seconds": 0}, "`seconds`"),
        ({"limit": 10}, "above `rows`"),
    ],
)
def test_settings_that_are_refused(tmp_path, arguments, words):
    with pytest.raises(ServingError) as error:
        SlateLog(tmp_path, **arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user_id": "7"}, "`user_id` should be an int64"),
        ({"user_id": 2**63}, "`user_id`"),
        ({"user_id": True}, "`user_id`"),
        ({"request_id": ""}, "`request_id`"),
        ({"request_id": 7}, "`request_id`"),
        ({"request_id": "\ud800"}, "`request_id`"),
        ({"timestamp": -1}, "0 or more"),
        ({"segment": 3}, "`segment`"),
        ({"context": {}}, "['hour', 'tab']"),
        ({"context": {"tab": 1, "hour": "x"}}, "hour should be a finite number"),
        ({"context": {"tab": "\ud800", "hour": 1}}, "`tab`"),
        ({"shown": slate(["a"])}, '`item_id` is declared "int64"'),
    ],
)
def test_slates_that_are_refused_and_hold_up_no_others(tmp_path, change, words):
    good = {"shown": slate(), "user_id": 1, "context": {"tab": 1, "hour": 0}}
    with SlateLog(tmp_path, context={"tab": "categorical", "hour": "numeric"}) as log:
        with pytest.raises(ServingError) as error:
            log.add(**{**good, **change})
        log.add(**good)
    assert words in str(error.value) and table(tmp_path, "requests").num_rows == 1
