"""What may happen to clicks, seeds and their files: disks, clocks, floods, items with hardly any seeds."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import urllib3

from lookalike.clicklog import Batch, ClickLog, ClickLogError
from lookalike.clustering import cluster
from lookalike.scorer import Scorer
from lookalike.seeds import SeedStore
from lookalike.snapshots import SnapshotError, Snapshots, catch_up, open_store, state_of
from ranking.ingest import Ingest

ROOT = Path(__file__).resolve().parents[2]
DAY = 86_400_000
START = 1_740_960_000_000  # 2025-03-03


def clicks(first: int, last: int, *, users: int = 100_003, items: int = 20) -> tuple[np.ndarray, ...]:
    """Users, items and times of clicks number `first` to `last`."""
    number = np.arange(first, last)
    return number * 7919 % users, number * 104_729 % items, START + 10 * number


def follow(log: ClickLog, store: SeedStore) -> SeedStore:
    catch_up(store, log)
    return store


def assert_holds(log: ClickLog, count: int) -> None:
    """The log holds the first so many clicks, in order, and nothing is damaged."""
    read = [np.concatenate(part) for part in zip(*((b.user, b.item, b.time) for b in log.read()), strict=True)]
    for found, sent in zip(read, clicks(0, count), strict=True):
        np.testing.assert_array_equal(found, sent)
    assert log.end == count and log.damage == []


def same_seeds(one: SeedStore, other: SeedStore) -> None:
    np.testing.assert_array_equal(one.items(), other.items())
    same_seeds_of(one.items(), one, other)


def same_seeds_of(items: np.ndarray, one: SeedStore, other: SeedStore) -> None:
    for mine, its in zip(one.seeds(items), other.seeds(items), strict=True):
        np.testing.assert_array_equal(mine, its)


def many(offset: int, user: np.ndarray, item: np.ndarray) -> Batch:
    """Clicks, as the log would yield them."""
    time = START + np.arange(len(user))
    return Batch(offset, user, item, time, np.zeros(len(user), np.uint8), time)


# Disks.


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The system writes what fits below `size` bytes of a file, and refuses the rest: as a disk that runs full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_acknowledges_nothing_and_recovers(tmp_path):
    with ClickLog(tmp_path) as log:
        count = 0
        with files_end_at(100_000):
            with pytest.raises(OSError, match="File too large"):
                while True:
                    count = log.append(*clicks(count, count + 700))[1]
            assert log.end == count > 2000
            with pytest.raises(OSError):  # and again
                log.append(*clicks(count, count + 700))
            with ClickLog(tmp_path, write=False) as reader:
                assert_holds(reader, count)  # what was half-written is seen by nobody
        log.append(*clicks(count, count + 700))  # the same writer goes on, nothing repaired by hand
        assert_holds(log, count + 700)
    with ClickLog(tmp_path) as log:
        assert_holds(log, count + 700)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_failing_calls_acknowledge_nothing(tmp_path, monkeypatch, call, number):
    with ClickLog(tmp_path) as log:
        log.append(*clicks(0, 100))

        def fails(descriptor: int, *_: object) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            with pytest.raises(OSError) as failure:
                log.append(*clicks(100, 200))
        assert failure.value.errno == number
        assert_holds(log, 100)
        log.append(*clicks(100, 300))
    with ClickLog(tmp_path, write=False) as log:
        assert_holds(log, 300)


def post(port: int, first: int, last: int) -> urllib3.BaseHTTPResponse:
    columns = zip(*(column.tolist() for column in clicks(first, last)), strict=True)
    lines = (json.dumps({"user_id": user, "item_id": item, "time": time}) for user, item, time in columns)
    return urllib3.request("POST", f"http://127.0.0.1:{port}/v1/clicks", body="\n".join(lines), retries=False)


def test_full_disk_behind_http(tmp_path):
    """503 with a time to come again, and no offsets; then the same service takes clicks again."""
    with Ingest(tmp_path, user_ids="int64", item_ids="int64", port=0) as ingest:
        count = 0
        with files_end_at(50_000):
            while (reply := post(ingest.port, count, count + 400)).status == 200:
                count = reply.json()["next"]
            assert reply.status == 503 and "Retry-After" in reply.headers and "next" not in reply.json()
            assert count > 1000
            health = urllib3.request("GET", f"http://127.0.0.1:{ingest.port}/healthz", retries=False)
            assert health.json()["end"] == count
        reply = post(ingest.port, count, count + 400)
        assert reply.status == 200 and reply.json()["next"] == count + 400
    with ClickLog(tmp_path, write=False) as log:
        assert_holds(log, count + 400)


DISK = """
import json, os, subprocess, sys, time
from pathlib import Path
import numpy as np
from lookalike.clicklog import Batch, ClickLog, ClickLogError
from lookalike.seeds import SeedStore

def clicks(count):
    return np.arange(count), np.arange(count) % 9, np.full(count, 1740960000000)

def refused(work):
    try:
        work()
    except (OSError, ClickLogError) as error:
        return f"{getattr(error, 'errno', None)} {error}"

def appended(log, times):
    for _ in range(times):
        log.append(*clicks(500))

folder, told = Path(sys.argv[1]), {}
"""
SMALL_DISK = (
    DISK
    + """
mount = lambda *words: subprocess.run(["mount", *words, str(folder)], check=True)
mount("-t", "tmpfs", "-o", "size=400k", "tmpfs")
log = ClickLog(folder / "log", segment_bytes=50_000)
(folder / "ballast").write_bytes(bytes(150_000))
told["full"] = refused(lambda: appended(log, 100))
told["end"] = log.end
told["again"] = refused(lambda: appended(log, 100))
told["end again"] = log.end
(folder / "ballast").unlink()
appended(log, 3)
told["grown by"] = log.end - told["end again"]
log.close()
mount("-o", "remount,ro")
told["read-only"] = refused(lambda: ClickLog(folder / "log"))
with ClickLog(folder / "log", write=False) as log:
    store = SeedStore()
    for batch in log.read():
        store.apply(batch)
    told["read"] = store.offset
    told["damage"] = len(log.damage)
mount("-o", "remount,rw")
with ClickLog(folder / "log") as log:
    appended(log, 1)
    told["at last"] = log.end
print(json.dumps(told))
"""
)
READ_ONLY_FOLDER = (
    DISK
    + """
if os.getuid() == 0:  # to whom no mode means anything
    os.chown(folder, 65534, 65534)
    os.setuid(65534)
log = ClickLog(folder / "log", segment_bytes=20_000)
appended(log, 1)
os.chmod(folder / "log", 0o555)
told["next segment"] = refused(lambda: appended(log, 10))
told["end"] = log.end
told["another writer"] = refused(lambda: ClickLog(folder / "log"))
with ClickLog(folder / "log", write=False) as reader:
    told["read"] = sum(len(batch) for batch in reader.read())
log.close()
os.chmod(folder / "log", 0o755)
with ClickLog(folder / "log", segment_bytes=20_000) as log:
    appended(log, 10)
    told["at last"], told["damage"] = log.end, len(log.damage)
print(json.dumps(told))
"""
)


def alone(code: str, folder: Path, *before: str) -> dict:
    line = [*before, sys.executable, "-c", code, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_small_disk_full_then_read_only(tmp_path):
    """A real file system of 400 kB, in a name space of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    told = alone(SMALL_DISK, tmp_path, "unshare", "-m")
    assert told["full"].startswith(f"{errno.ENOSPC} ") and told["again"].startswith(f"{errno.ENOSPC} ")
    assert told["end"] >= 500 and told["end"] % 500 == told["end again"] % 500 == 0
    assert told["grown by"] == 1500
    assert told["read-only"].startswith(f"{errno.EROFS} ")
    assert told["read"] == told["end again"] + 1500 and told["damage"] == 0
    assert told["at last"] == told["read"] + 500


def test_read_only_folder():
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's own, which is root's alone
        Path(folder).chmod(0o755)
        told = alone(READ_ONLY_FOLDER, Path(folder))
    assert told["next segment"].startswith(f"{errno.EACCES} ")
    assert told["end"] % 500 == 0 and told["read"] == told["end"] >= 500
    assert told["another writer"]
    assert told["at last"] >= told["end"] + 5000 and told["damage"] == 0


def test_snapshot_on_a_full_disk(tmp_path):
    """The one before stays, the store goes on, the next one is good."""
    snapshots = Snapshots(tmp_path / "snapshots")
    with ClickLog(tmp_path / "log") as log:
        log.append(*clicks(0, 3000))
        store = open_store(log, snapshots)
        before = [snapshots.save(store)]
        log.append(*clicks(3000, 30_000))
        catch_up(store, log)
        with files_end_at(50_000), pytest.raises(OSError):
            snapshots.save(store)
        assert snapshots.paths() == before and len([*snapshots.folder.iterdir()]) == 1  # nothing else lies around
        same_seeds(open_store(log, snapshots), store)
        assert snapshots.save(store) in snapshots.paths()
        same_seeds(snapshots.load(), store)


# Snapshots.


@pytest.fixture
def saved(tmp_path) -> Iterator[tuple[ClickLog, Snapshots, SeedStore]]:
    """A log of 3,000 clicks in several segments, snapshots at 1,000 and 2,000, and the store as it should be."""
    snapshots = Snapshots(tmp_path / "snapshots")
    with ClickLog(tmp_path / "log", segment_bytes=5000) as log:
        store = open_store(log, snapshots)
        for first in (0, 1000, 2000):
            for low in range(first, first + 1000, 100):
                log.append(*clicks(low, low + 100))
            catch_up(store, log)
            if first < 2000:
                snapshots.save(store)
        yield log, snapshots, store


DAMAGES = {
    "first byte": lambda data: b"\x00" + data[1:],
    "a bit in the middle": lambda data: data[:9000] + bytes([data[9000] ^ 4]) + data[9001:],
    "a bit of the offset": lambda data: data.replace(b'"offset": 2000', b'"offset": 2001'),
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
    "half": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupt_newest_snapshot(saved, damage):
    """The one before and a longer replay; the damaged file is set aside and said."""
    log, snapshots, store = saved
    newest, before = snapshots.paths()
    data = newest.read_bytes()
    assert (changed := DAMAGES[damage](data)) != data
    newest.write_bytes(changed)
    again = Snapshots(snapshots.folder)
    found = open_store(log, again)
    same_seeds(found, store)
    assert found.counts == store.counts and found.offset == 3000
    assert len(again.damaged) == 1 and again.damaged[0].read_bytes() == changed
    assert again.paths() == [before]
    assert state_of(again.save(found)) == state_of(again.save(store))


def test_every_snapshot_corrupt(saved):
    """All from the log, while the log has all; else it is not started in silence with less."""
    log, snapshots, store = saved
    for path in snapshots.paths():
        path.write_bytes(path.read_bytes()[:-5])
    copies = {path: path.read_bytes() for path in snapshots.paths()}
    same_seeds(open_store(log, Snapshots(snapshots.folder)), store)
    for path, data in copies.items():
        path.write_bytes(data)
    log.retain(1500)
    assert 0 < log.start <= 1500
    with pytest.raises(SnapshotError, match="the events between are gone"):
        open_store(log, Snapshots(snapshots.folder))
    rest = open_store(log, Snapshots(snapshots.folder), accept_loss=True)
    assert rest.counts.accepted == 3000 - log.start and rest.offset == 3000


def test_log_behind_retention(saved):
    """Retention may go as far as the oldest snapshot that should be of use, and no further."""
    log, snapshots, store = saved
    newest, before = snapshots.paths()
    log.retain(2000)
    assert 1000 < log.start <= 2000
    same_seeds(open_store(log, snapshots), store)
    newest.write_bytes(b"")
    with pytest.raises(SnapshotError, match=rf"begins at offset {log.start} .* ends at 1000"):
        open_store(log, Snapshots(snapshots.folder))


def test_snapshot_ahead_of_the_log(saved, tmp_path):
    """A log brought back from a backup has lost what was acknowledged since: that is for a person to decide."""
    log, snapshots, _ = saved
    backup = tmp_path / "backup"
    shutil.copytree(log.folder, backup)
    for path in sorted(backup.glob("*.clicks"))[2:]:
        path.unlink()
    (backup / "durable").unlink()
    with ClickLog(backup) as old:
        assert 0 < old.end < 2000
        with pytest.raises(SnapshotError, match=f"offset 2000, ahead of {backup}, which ends at {old.end}"):
            open_store(old, snapshots)
    assert len(snapshots.paths()) == 2  # nothing was touched


def test_snapshots_of_another_log(saved, tmp_path):
    with ClickLog(tmp_path / "other") as log:
        log.append(*clicks(0, 5000))
        with pytest.raises(SnapshotError, match="another log"):
            open_store(log, saved[1])


# Delivery.


def test_shuffled_repeated_interleaved_delivery(tmp_path):
    """The same events from four producers at once, in another order, a third of them twice: the same bytes."""
    rng = np.random.default_rng(4)
    count = 40_000
    user, item = rng.integers(3000, size=count), (60 * rng.random(count) ** 2).astype(int)
    time, kind = START + rng.integers(DAY, size=count), rng.choice([0, 1, 2], size=count, p=[0.95, 0.045, 0.005])
    order = rng.permutation(np.append(np.arange(count), rng.integers(count, size=count // 3)))
    settings = {"latest": 800, "byte_budget": 16 * 20_000}
    states = []
    with ClickLog(tmp_path / "once") as log:
        log.append(user, item, time, kind)
        store = open_store(log, Snapshots(tmp_path / "1"), **settings)
        assert store.effective_latest < 800
        states.append(state_of(Snapshots(tmp_path / "1").save(store)))
    with ClickLog(tmp_path / "many") as log, ThreadPoolExecutor(4) as pool:

        def send(part: np.ndarray) -> None:
            log.append(user[part], item[part], time[part], kind[part])

        [*pool.map(send, np.array_split(order, 300))]
        store = open_store(log, Snapshots(tmp_path / "2"), **settings)
        assert store.counts.accepted == len(order)
        states.append(state_of(Snapshots(tmp_path / "2").save(store)))
    assert states[0] == states[1]


# Processes that stand still.

STOPPED = """
import sys, time
import numpy as np
from lookalike.clicklog import Batch, ClickLog, ClickLogError
from lookalike.seeds import SeedStore
from lookalike.snapshots import catch_up

what, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
number = np.arange(count)
user, item, moment = number * 7919 % 100_003, number * 104_729 % 20, 1740960000000 + 10 * number
store = SeedStore()
with ClickLog(folder, write=what == "writer") as log:
    store.items()  # compiled code is loaded
    print("open", flush=True)
    sys.stdin.readline()
    while log.end < count or store.offset < count:
        if what == "writer":
            after = min(log.end + 200, count)
            log.append(user[log.end:after], item[log.end:after], moment[log.end:after])
        catch_up(store, log)
    print(store.offset, store.counts.accepted, store.counts.applied + store.counts.duplicate, flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def process_of(what: str, folder: Path, count: int) -> Iterator[subprocess.Popen]:
    line = [sys.executable, "-c", STOPPED, what, str(folder), str(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes) as process:
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_processes_that_stand_still_lose_nothing_and_go_on(tmp_path):
    """A writer and a follower stopped at random moments, for as long as it takes: what others see meanwhile is whole.

    While the writer stands still nobody else may write: it holds the log, and what it was about to do, it will do.
    """
    rng, count, stops = np.random.default_rng(6), 60_000, 25
    with ClickLog(tmp_path) as log:
        log.append(*clicks(0, 200))
    with process_of("writer", tmp_path, count) as writer, process_of("follower", tmp_path, count) as follower:
        stood = 0
        for process in (writer, follower):
            process.stdin.write("go\n")
        for number in range(stops):
            one = (writer, follower)[number % 2]
            os.kill(one.pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0.0, 0.02))
            with ClickLog(tmp_path, write=False) as log:
                stood += 200 < log.end < count
                assert log.end % 200 == 0
                if number % 6 == 0:
                    assert_holds(log, log.end)
            if one is writer:
                with pytest.raises(ClickLogError, match=f"process {writer.pid} writes this log already"):
                    ClickLog(tmp_path)
            os.kill(one.pid, signal.SIGCONT)
            time.sleep(rng.uniform(0.0, 0.02))
        assert stood  # they were at work
        for process in (writer, follower):
            assert process.stdout.readline().split() == [str(count)] * 3
            process.stdin.write("end\n")
            assert process.wait(60) == 0
    with ClickLog(tmp_path) as log:
        assert_holds(log, count)


# Clocks.


def test_times_out_of_range_change_nothing(tmp_path):
    """In the future, zero, negative, in 2100, at the ends of int64: counted, and no item's floor moves."""
    now = int(time.time() * 1000)
    ends = np.iinfo(np.int64)
    wrong = [0, 1, -1, -now, 946_684_799_999, now + DAY, 4_102_444_800_000, ends.max, ends.min]
    with ClickLog(tmp_path / "with") as log, ClickLog(tmp_path / "without") as clean:
        for each in (log, clean):
            each.append(*clicks(0, 3000))
        for kind in (0, 1, 2):
            log.append(np.arange(len(wrong)), np.zeros(len(wrong), int), np.array(wrong), np.full(len(wrong), kind))
        for each in (log, clean):
            each.append(*clicks(3000, 6000))
        store, other = follow(log, SeedStore(latest=30)), follow(clean, SeedStore(latest=30))
    assert store.counts.invalid == 3 * len(wrong)
    assert store.counts.accepted == 6000 + 3 * len(wrong)
    assert store.counts.applied == other.counts.applied
    same_seeds(store, other)
    assert store.seed_counts([0]) == 30


# Floods.


def test_item_with_99_percent_of_all_clicks(tmp_path):
    """It keeps its latest 2,000; what the others keep is as if it were not there."""
    rng = np.random.default_rng(3)
    count = 200_000
    hot = rng.random(count) < 0.99
    user, time = rng.integers(1 << 40, size=count), START + np.arange(count)
    item = np.where(hot, 7, 1000 + rng.integers(50, size=count))
    settings = {"latest": 2000}
    with ClickLog(tmp_path / "all") as log, ClickLog(tmp_path / "others") as quiet:
        for low in range(0, count, 10_000):
            part = slice(low, low + 10_000)
            log.append(user[part], item[part], time[part])
        quiet.append(user[~hot], item[~hot], time[~hot])
        store, other = follow(log, SeedStore(**settings)), follow(quiet, SeedStore(**settings))
    assert store.counts.accepted == count
    _, users, times = store.seeds([7])
    latest = np.flatnonzero(hot)[-2000:][::-1]
    np.testing.assert_array_equal(users, user[latest])
    np.testing.assert_array_equal(times, time[latest])
    for mine, its in zip(store.seeds(other.items()), other.seeds(other.items()), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_flooded_item_does_not_slow_the_others():
    """Events of other items, and their seeds, cost what they cost beside an item without the flood: CPU, by turns.

    Both do the same work, so that a factor of 5 between the least of ten rounds each is no chance.
    """
    flooded, quiet = SeedStore(), SeedStore()
    flooded.apply(many(flooded.offset, np.arange(1_500_000), np.zeros(1_500_000, int)))
    items, seconds = 1 + np.arange(50), {id(flooded): [], id(quiet): []}
    for number in range(10):
        for store in (flooded, quiet):
            users = np.arange(20_000) + 20_000 * number
            start = time.thread_time()
            store.apply(many(store.offset, users, 1 + users % 50))
            store.seeds(items, newest=500)
            seconds[id(store)].append(time.thread_time() - start)
    same_seeds_of(items, flooded, quiet)
    slow, usual = (min(seconds[id(store)]) for store in (flooded, quiet))
    assert slow < 5 * usual, (slow, usual)


@pytest.mark.slow
def test_a_million_new_items_stay_within_the_byte_budget(tmp_path):
    """One n for all: a hundred items with 5,000 seeds each shrink, the newcomers get their one seed each.

    By hand: the budget is 1,200,000 seeds of 16 bytes. With a million items of one seed each, 200,000 are left for the
    hundred: 2,000 each (min(n, 1) = 1 for each newcomer).
    """
    budget = 16 * 1_200_000
    store = SeedStore(byte_budget=budget)
    old, new = 100, 1_000_000
    with ClickLog(tmp_path) as log:
        user, item = np.tile(np.arange(5000), old), np.repeat(np.arange(old), 5000)
        log.append(user, item, START + np.arange(len(user)))
        follow(log, store)
        assert store.effective_latest >= 5000
        before = store.nbytes
        for low in range(0, new, 100_000):
            many = np.arange(low, low + 100_000)
            log.append(many, 1_000_000 + many, START + DAY + many)
            follow(log, store)
            assert 16 * store.seed_counts(store.items()).sum() <= budget
    assert store.effective_latest == 2000
    assert len(store.items()) == old + new
    assert (store.seed_counts(np.arange(old)) == 2000).all()
    assert store.seed_counts(1_000_000 + np.arange(new)).sum() == new
    # Twice the budget for the seeds, and what it takes to know an item at all.
    assert store.nbytes <= 2 * budget + 100 * (old + new), (before, store.nbytes)


# Items with hardly any seeds.

K, DIM, HIDDEN = 4, 6, 5


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return Scorer(
        kernel=draw(DIM, HIDDEN), bias=np.zeros(HIDDEN, np.float32), slope=np.full(HIDDEN, 0.2, np.float32),
        local_kernel=draw(HIDDEN, HIDDEN), global_kernel=draw(3, HIDDEN), global_query=draw(3), alpha=0.3,
    )  # fmt: skip


CASES = ["none", "one", "k - 1", "k", "k + 1", "all the same", "zero vectors", "some zero vectors"]


@pytest.mark.parametrize("size_bias", [False, True])
def test_every_item_has_a_defined_score(scorer, tmp_path, size_bias):
    """From clicks through the store and the clustering, cold and warm, to similarities."""
    scorer = Scorer(**{**vars(scorer), "size_bias": size_bias})
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((60, DIM)).astype(np.float32)
    vectors[20:40], vectors[40:60] = vectors[20], 0  # users 20 to 39 are alike, 40 to 59 are nobody
    members = [[], [0], range(K - 1), range(K), range(K + 1), range(20, 40), range(40, 60), [0, *range(40, 50)]]
    with ClickLog(tmp_path) as log:
        for item, users in enumerate(members):
            log.append([*users], [item] * len(users), [START + number for number in range(len(users))])
        offsets, users, _ = follow(log, SeedStore()).seeds(np.arange(len(members)))
    np.testing.assert_array_equal(np.diff(offsets), [len(each) for each in members])

    seeds = scorer.transform(vectors[users])
    cold = cluster(seeds, offsets, K)
    warm = cluster(seeds, offsets, K, iterations=2, initial=cold.centroids)
    stranger = rng.standard_normal((1, DIM)).astype(np.float32)
    targets = np.concatenate([vectors[:1], vectors[20:21], vectors[40:41], stranger])  # [users, dim]
    for found in (cold, warm):
        assert np.isfinite(found.centroids).all()
        similarity = scorer.similarity(targets, scorer.summarize(found.centroids, found.counts))  # [users, items]
        assert np.isfinite(similarity).all() and (np.abs(similarity) <= 1 + 1e-6).all()
        of = dict(zip(CASES, similarity.T, strict=True))
        assert (of["none"] == 0).all() and (of["zero vectors"] == 0).all()  # exactly
        assert (similarity[2] == 0).all()  # a target user who is nobody
        # One centroid, or equal ones, is both the global and the local summary: 0.3 cos + 0.7 cos.
        hidden = scorer.transform(targets).astype(np.float64)
        unit = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-30)
        np.testing.assert_allclose(of["one"], unit @ unit[0], atol=1e-5)
        np.testing.assert_allclose(of["all the same"], unit @ unit[1], atol=1e-5)
    np.testing.assert_allclose(cold.centroids, warm.centroids, atol=1e-6)
