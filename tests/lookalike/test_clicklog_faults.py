"""A disk that fails, a process that is killed, and processes beside each other."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lookalike.clicklog import ClickLog, ClickLogError

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_700_000_000_000


def append(log, count):
    """Events that tell their own number."""
    number = np.arange(log.end, log.end + count)
    return log.append(number, number % 3, NOW + number)


def check(log, end):
    """Every event up to `end` is there, and is what was appended."""
    after = 0
    for batch in log.read():
        number = np.arange(batch.offset, batch.next)
        assert batch.offset == after and (batch.user == number).all() and (batch.item == number % 3).all()
        after = batch.next
    assert after == log.end == end and log.damage == []


def files(folder):
    """The segments' bytes: what a failed append should leave as it was."""
    return {path.name: path.read_bytes() for path in folder.glob("*.clicks")}


def python(code, folder, **rest):
    """A process of its own that has the log, `append` and `check`, and none of TensorFlow: it starts at once."""
    own = Path(__file__).read_text()
    helpers = own[own.index("def append") : own.index("def files")]
    start = f"""
import sys, types
package = types.ModuleType("lookalike")
package.__path__ = [{str(ROOT / "lookalike")!r}]
sys.modules["lookalike"] = package
import os, resource, time
import numpy as np
from lookalike.clicklog import ClickLog, ClickLogError
NOW, folder = {NOW}, {str(folder)!r}
"""
    command = [sys.executable, "-c", start + helpers + textwrap.dedent(code)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **rest)


def output(process):
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return text.split()


# A disk that fails.


def fails_once(monkeypatch, name, error, before=lambda *_: None):
    """The next call of an os function does `before`, then raises."""
    real = getattr(os, name)

    def call(*arguments):
        monkeypatch.setattr(os, name, real)
        before(real, *arguments)
        raise error

    monkeypatch.setattr(os, name, call)


def half(write, descriptor, data):
    write(descriptor, data[: len(data) // 2])


ERRORS = {
    "no write": ("write", OSError(errno.ENOSPC, "No space left on device"), lambda *_: None),
    "half a write": ("write", OSError(errno.ENOSPC, "No space left on device"), half),
    "a read-only disk": ("write", OSError(errno.EROFS, "Read-only file system"), lambda *_: None),
    "no sync": ("fdatasync", OSError(errno.EIO, "Input/output error"), lambda *_: None),
}


@pytest.mark.parametrize(("name", "error", "before"), ERRORS.values(), ids=ERRORS)
def test_a_failed_append_leaves_the_log_as_it_was(tmp_path, monkeypatch, name, error, before):
    with ClickLog(tmp_path) as log, ClickLog(tmp_path, write=False) as reader:
        append(log, 5)
        bytes_before = files(tmp_path)
        fails_once(monkeypatch, name, error, before)
        with pytest.raises(OSError, match=error.strerror) as caught:
            append(log, 7)
        assert caught.value.errno == error.errno and str(tmp_path) in str(caught.value)
        assert files(tmp_path) == bytes_before and log.counters["failures"] == 1
        check(reader, 5)
        assert append(log, 2) == (5, 7)
        check(log, 7)
        check(reader, 7)
    with ClickLog(tmp_path) as log:
        check(log, 7)


def test_no_process_sees_what_is_not_durable(tmp_path, monkeypatch):
    seen = []
    with ClickLog(tmp_path) as log, ClickLog(tmp_path, write=False) as reader:
        append(log, 5)

        def look(sync, descriptor):
            assert os.fstat(descriptor).st_size > 200  # both frames are written
            seen.append((log.end, reader.end, sum(len(batch) for batch in reader.read())))

        fails_once(monkeypatch, "fdatasync", OSError(errno.EIO, "Input/output error"), look)
        with pytest.raises(OSError, match="Input/output"):
            append(log, 7)
    assert seen == [(5, 5, 5)]


def test_all_who_wait_are_told_of_a_failed_sync(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    def fail(descriptor):
        time.sleep(0.05)
        raise OSError(errno.EIO, "Input/output error")

    real = os.fdatasync
    with ClickLog(tmp_path) as log:
        monkeypatch.setattr(os, "fdatasync", fail)
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(log.append, [1], [1], [NOW]) for _ in range(8)]
            assert [type(future.exception()) for future in futures] == [OSError] * 8
        monkeypatch.setattr(os, "fdatasync", real)
        assert 1 <= log.counters["failures"] <= 8 and log.end == 0
        append(log, 3)
        check(log, 3)


def test_a_write_that_cannot_be_taken_back_ends_writing_until_reopened(tmp_path, monkeypatch):
    with ClickLog(tmp_path) as log:
        append(log, 5)
        fails_once(monkeypatch, "write", OSError(errno.EIO, "Input/output error"), half)
        fails_once(monkeypatch, "ftruncate", OSError(errno.EIO, "Input/output error"))
        with pytest.raises(OSError, match="Input/output"):
            append(log, 7)
        for _ in range(2):
            with pytest.raises(ClickLogError, match="could not be taken back"):
                append(log, 1)
        check(log, 5)  # reading goes on
    with ClickLog(tmp_path) as log:
        check(log, 5)
        append(log, 1)
        check(log, 6)


@pytest.mark.parametrize("stuck", [False, True])
def test_a_segment_that_cannot_be_begun(tmp_path, monkeypatch, stuck):
    with ClickLog(tmp_path, segment_bytes=200) as log:
        append(log, 5)
        with monkeypatch.context() as patch:
            fails_once(patch, "fsync", OSError(errno.EIO, "Input/output error"))
            if stuck:
                fails_once(patch, "unlink", OSError(errno.EIO, "Input/output error"))
            with pytest.raises(OSError, match="Input/output"):
                append(log, 5)
        if stuck:
            with pytest.raises(ClickLogError, match="open the log anew"):
                append(log, 5)
        else:
            append(log, 5)
            check(log, 10)
    with ClickLog(tmp_path, segment_bytes=200) as log:
        end = 5 if stuck else 10
        check(log, end)
        append(log, 5)
        check(log, end + 5)


def test_an_interrupt_amid_a_sync_takes_the_write_back(tmp_path, monkeypatch):
    with ClickLog(tmp_path) as log:
        append(log, 5)
        before = files(tmp_path)
        fails_once(monkeypatch, "fdatasync", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            append(log, 7)
        assert files(tmp_path) == before
        append(log, 1)
        check(log, 6)


def test_a_mark_that_is_stuck_loses_nothing(tmp_path, monkeypatch, caplog):
    with ClickLog(tmp_path) as log, ClickLog(tmp_path, write=False) as reader:
        append(log, 5)
        fails_once(monkeypatch, "pwrite", OSError(errno.EIO, "Input/output error"))
        assert append(log, 2) == (5, 7) and "do not see new events" in caplog.text
        check(log, 7)
        assert reader.end == 5
        append(log, 1)
        check(reader, 8)


def test_an_erasure_that_fails_leaves_each_segment_whole(tmp_path, monkeypatch):
    with ClickLog(tmp_path, segment_bytes=1) as log:
        for _ in range(4):
            append(log, 3)
        real, calls = os.replace, []

        def replace(*paths):
            calls.append(paths)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(OSError, match="No space"):
                log.compact([1, 4, 7])
        kinds = np.concatenate([batch.kind for batch in log.read()])
        assert np.flatnonzero(kinds).tolist() == [1]
        assert log.check() == [] and not list(tmp_path.glob(".tmp*"))
        assert log.compact([1, 4, 7]) == 2
        assert append(log, 1) == (12, 13)


def test_a_full_disk(tmp_path):
    # A limit on the size of files stands for it: writes go half through, then fail.
    process = python(
        """
        log = ClickLog(folder)
        append(log, 100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            append(log, 1000)
        except OSError as error:
            print(error.errno, log.end, log.nbytes)
        append(log, 100)
        print(log.end)
        log.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        log = ClickLog(folder)  # opens all the same: retention may be what makes room
        try:
            append(log, 1)
        except OSError as error:
            print(error.errno, log.retain(200))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        append(log, 1000)
        check(log, 1200)
        print("whole")
        """,
        tmp_path,
    )
    # 100 events take 48 + 16 * 100 + 8 + 4 * 100 + 1 = 2057 bytes, 1000 take 20057.
    assert output(process) == [str(errno.EFBIG), "100", "2057", "200", str(errno.EFBIG), "0", "whole"]
    with ClickLog(tmp_path) as log:
        check(log, 1200)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_folder_that_may_only_be_read():
    folder = Path("/tmp") / f"clicklog-{os.getpid()}"
    try:
        with ClickLog(folder) as log:
            append(log, 5)
        (folder / "lock").chmod(0o644)
        folder.chmod(0o555)
        data = bytearray(next(folder.glob("*.clicks")).read_bytes())
        code = """
            os.setuid(65534)
            try:
                ClickLog(folder)
            except PermissionError as error:
                print(os.path.basename(error.filename))
            with ClickLog(folder, write=False) as log:
                print(sum(len(batch) for batch in log.read()), [d.lost for d in log.damage])
        """
        assert output(python(code, folder)) == ["lock", "5", "[]"]
        data[60] ^= 1
        next(folder.glob("*.clicks")).write_bytes(data)
        assert output(python(code, folder, stderr=subprocess.DEVNULL)) == ["lock", "0", "[5]"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


# Other processes.


WRITER = """
    log = ClickLog(folder, segment_bytes=20_000)
    print(log.end, flush=True)
    generator = np.random.default_rng(os.getpid())
    while True:
        _, after = append(log, int(generator.integers(1, 400)))
        os.write(1, f"{after}\\n".encode())
"""


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(tmp_path):
    moments = random.Random(0)
    least = 0
    for _ in range(10):
        process = python(WRITER, tmp_path)
        # So much is acknowledged, however slow the disk is.
        told = "".join(process.stdout.readline() for _ in range(1 + moments.randrange(5)))
        time.sleep(moments.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        acknowledged = (told + process.stdout.read()).split("\n")[:-1]  # the last line may be half
        process.wait()
        least = int(acknowledged[-1])
        with ClickLog(tmp_path) as log:
            assert log.end >= least
            check(log, log.end)
            least = log.end
    assert least > 1000


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path):
    process = python(WRITER, tmp_path)
    process.stdout.readline()
    with pytest.raises(ClickLogError, match=f"process {process.pid} writes"):
        ClickLog(tmp_path)
    process.kill()
    process.communicate()
    with ClickLog(tmp_path) as log:
        check(log, log.end)


def test_a_reader_beside_a_writer_sees_whole_frames_in_order(tmp_path):
    process = python(WRITER, tmp_path)
    process.stdout.readline()
    after = rounds = 0
    with ClickLog(tmp_path, write=False) as reader:
        while after < 20_000 or rounds <= 5:
            for batch in reader.read(after):
                number = np.arange(batch.offset, batch.next)
                assert batch.offset == after and (batch.user == number).all() and (batch.time == NOW + number).all()
                after = batch.next
            rounds += 1
        assert reader.damage == []
    process.kill()
    acknowledged = process.communicate()[0].split()
    assert after <= int(acknowledged[-1]) + 400
