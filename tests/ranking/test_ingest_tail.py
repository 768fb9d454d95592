"""A followed file: no line lost, none read half, whatever becomes of the file or of who reads it."""

import errno
import json
import os
import random
import shutil
import threading

import pytest

from lookalike.clicklog import ClickLog
from ranking import ingest_tail
from ranking.errors import UserError
from ranking.ingest_log import LogNotWritable, LogWriter
from ranking.ingest_metrics import IngestMetrics
from ranking.ingest_tail import Tail

T = 1_767_225_600_000


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ingest_tail, "QUIET_SECONDS", 0.0)


class Followed:
    """A file, its log and who follows it."""

    def __init__(self, folder, name="clicks.jsonl"):
        self.folder = folder
        self.path = folder / name
        self.metrics = IngestMetrics()
        self.log = self.tail = None

    def start(self):
        self.log = LogWriter(self.folder / "log", self.metrics, user_ids="int64", item_ids="int64")
        self.tail = Tail(self.path, self.log, self.metrics)

    def stop(self):
        self.tail._close()
        self.log.close()

    def restart(self):
        """As after a crash: what was counted is lost."""
        self.stop()
        self.metrics = IngestMetrics()
        self.start()

    def write(self, *users, end="\n"):
        with self.path.open("a") as file:
            for user in users:
                file.write(line(user) + end)

    def read(self):
        """Looks until there is nothing more."""
        while self.tail.step():
            pass

    @property
    def users(self):
        return [user for batch in self.log.log.read() for user in batch.user.tolist()]

    @property
    def rejects(self):
        file = self.tail.rejects
        return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []

    def balances(self):
        value = self.metrics.value
        return value("received", "tail") == value("accepted", "tail") + value("refused", "tail")


@pytest.fixture
def followed(tmp_path):
    found = Followed(tmp_path)
    found.start()
    yield found
    assert found.balances()
    found.stop()


def line(user):
    return json.dumps({"user_id": user, "item_id": 1, "time": T + user})


def test_lines_come_in_as_the_file_grows(followed):
    followed.read()  # the file is absent
    followed.write(1, 2)
    followed.read()
    followed.write(3)
    followed.read()
    assert followed.users == [1, 2, 3]
    assert followed.tail.behind == 0


def test_half_a_line_waits_for_its_end(followed):
    text = line(12345) + "\n"
    for place in range(len(text)):
        with followed.path.open("a") as file:
            file.write(text[place])
        followed.read()
        assert followed.users == ([12345] if place == len(text) - 1 else [])


def test_a_restart_goes_on_where_it_was(followed):
    followed.write(1, 2)
    followed.write(3, end="")
    followed.read()
    followed.restart()
    followed.write(end="\n")
    with followed.path.open("a") as file:
        file.write("\n")
    followed.write(4)
    followed.read()
    assert followed.users == [1, 2, 3, 4]


def test_blocks_smaller_than_the_file(followed, monkeypatch):
    monkeypatch.setattr(ingest_tail, "BLOCK", 150)
    followed.write(*range(100))
    followed.read()
    assert followed.users == [*range(100)]


def test_wrong_lines_are_set_aside_and_counted(followed):
    followed.write(1)
    with followed.path.open("ab") as file:
        file.write(b'{"user_id": 2, "item_id": 1}\nrubbish \xff\n\n{"user_id": "x", "item_id": 1, "time": 1}\n')
    followed.write(3)
    followed.read()
    assert followed.users == [1, 3]
    first, second, third = followed.rejects
    start = len(line(1)) + 1
    assert (first["byte"], first["line"]) == (start, '{"user_id": 2, "item_id": 1}')
    assert first["why"].startswith("should be whole milliseconds")
    assert (second["byte"], second["line"]) == (start + 29, "rubbish \\xff")  # 28 characters and a line break
    assert third["why"].startswith("should be a whole number")
    assert followed.metrics.value("refused", "tail") == 3


def test_a_line_that_is_too_long(followed, monkeypatch):
    monkeypatch.setattr(ingest_tail, "BLOCK", 150)
    followed.write(1)
    with followed.path.open("a") as file:
        file.write("x" * 1000)
    followed.read()
    followed.restart()  # in the middle of it
    with followed.path.open("a") as file:
        file.write("x" * 1000 + "\n")
    followed.write(2)
    followed.read()
    assert followed.users == [1, 2]
    assert [wrong["why"] for wrong in followed.rejects] == ["should not be longer than 150 bytes"]


def test_csv(tmp_path):
    followed = Followed(tmp_path, "clicks.csv")
    followed.path.write_text("\ufeffuser_id,time,item_id\r\n")
    followed.start()
    with followed.path.open("a") as file:
        file.write(f'1,{T},5\r\n"2",2026-01-01T00:00:00Z,6\n3,{T}\n4,{T},"7\n5,{T},8\n6,{T},9')
    followed.read()
    assert followed.users == [1, 2, 5]
    assert [wrong["line"][:1] for wrong in followed.rejects] == ["3", "4"]
    followed.restart()
    with followed.path.open("a") as file:
        file.write("9\n")
    followed.read()
    assert followed.users == [1, 2, 5, 6]  # of item 99
    followed.stop()


@pytest.mark.parametrize(
    "header", ["user_id,item_id", "user_id,item_id,time,when", "user_id,user_id,item_id,time", "\xff"]
)
def test_csv_with_a_wrong_header(tmp_path, header):
    followed = Followed(tmp_path, "clicks.csv")
    followed.path.write_text(header + "\n", "latin-1")
    with pytest.raises(UserError, match="the header should name user_id, item_id, time"):
        followed.start()
    followed.log.close()


def test_a_wrong_header_that_comes_later_waits_for_a_repair_or_the_next_file(tmp_path):
    followed = Followed(tmp_path, "clicks.csv")
    followed.start()
    followed.path.write_text("when\n")
    with pytest.raises(UserError):
        followed.tail.step()
    followed.path.rename(tmp_path / "clicks.csv.1")
    followed.path.write_text(f"user_id,item_id,time\n7,1,{T}\n")
    followed.read()
    assert followed.users == [7]
    assert followed.metrics.value("tail_lost", "header") == 1
    followed.stop()


# Rotation.


def test_a_file_that_is_rotated_away_is_read_to_its_end(followed):
    followed.write(1, 2)
    followed.read()
    with followed.path.open("a") as old:
        followed.path.rename(followed.path.with_name("clicks.jsonl.1"))
        old.write(line(3) + "\n")  # a program writes on until it is told
        old.flush()
        followed.write(5)
        old.write(line(4))  # and leaves without a line break
    followed.read()
    assert followed.users == [1, 2, 3, 4, 5]


def test_a_half_line_at_the_end_of_a_rotated_file_is_set_aside(followed):
    followed.write(1)
    with followed.path.open("a") as file:
        file.write(line(2)[:-3])
    followed.read()
    followed.path.rename(followed.path.with_name("clicks.jsonl-20260131"))
    followed.write(3)
    followed.read()
    assert followed.users == [1, 3]
    assert [wrong["line"] for wrong in followed.rejects] == [line(2)[:-3]]


def test_a_half_line_of_csv_at_the_end_of_a_rotated_file_is_set_aside(tmp_path):
    followed = Followed(tmp_path, "clicks.csv")
    followed.path.write_text(f"user_id,item_id,time\n1,1,{T}\n2,1,{T}")  # the time could go on
    followed.start()
    followed.read()
    followed.path.rename(tmp_path / "clicks.csv.1")
    followed.path.write_text(f"user_id,item_id,time\n3,1,{T}\n")
    followed.read()
    assert followed.users == [1, 3]
    assert [wrong["why"] for wrong in followed.rejects] == ["should end with a line break"]
    followed.stop()


def test_a_rotated_file_that_still_grows_is_waited_for(followed, monkeypatch):
    monkeypatch.setattr(ingest_tail, "QUIET_SECONDS", 1000.0)
    followed.write(1)
    followed.read()
    followed.path.rename(followed.path.with_name("clicks.jsonl.1"))
    followed.write(2)
    followed.read()
    assert followed.users == [1]
    monkeypatch.setattr(ingest_tail, "QUIET_SECONDS", 0.0)
    followed.read()
    assert followed.users == [1, 2]


def test_rotations_while_nobody_read(followed):
    followed.write(*range(10))
    followed.read()
    followed.stop()
    followed.write(10)
    for count in range(1, 4):  # clicks.jsonl.3 is the oldest in the end
        for number in range(count, 0, -1):
            source = followed.path if number == 1 else followed.path.with_name(f"clicks.jsonl.{number - 1}")
            source.rename(followed.path.with_name(f"clicks.jsonl.{number}"))
        followed.write(10 + count)
        os.utime(followed.path, ns=(T * 10**6 + count, T * 10**6 + count))
    os.utime(followed.path.with_name("clicks.jsonl.3"), ns=(T * 10**6, T * 10**6))
    followed.start()
    followed.read()
    assert followed.users == [*range(14)]
    assert followed.metrics.value("tail_lost") == 0


def test_a_file_that_is_gone_is_counted(followed):
    followed.write(1)
    followed.read()
    followed.stop()
    followed.path.unlink()
    followed.path.write_text(line(2) + "\n")  # the same inode, perhaps
    followed.start()
    followed.read()
    assert followed.users == [1, 2]
    assert followed.metrics.value("tail_lost", "gone") == 1


def test_a_cut_file_is_read_from_its_start_and_counted(followed):
    followed.write(*range(10))
    followed.read()
    os.truncate(followed.path, 0)
    followed.write(11)
    followed.read()
    assert followed.users == [*range(10), 11]
    assert followed.metrics.value("tail_lost", "gone") == 1


def test_a_file_that_is_cut_and_has_grown_beyond_its_old_end(followed):
    followed.write(*range(10))
    followed.read()
    os.truncate(followed.path, 0)
    followed.write(*range(100, 120))
    followed.read()
    assert followed.users == [*range(10), *range(100, 120)]


def test_what_a_cut_took_is_read_from_the_copy(followed):
    followed.write(*range(10))
    followed.read()
    followed.write(10)  # not read when the copy is made
    shutil.copy2(followed.path, followed.path.with_name("clicks.jsonl.1"))
    os.truncate(followed.path, 0)
    followed.write(11)
    followed.read()
    assert followed.users == [*range(12)]
    assert followed.metrics.value("tail_lost") == 0


# Failures.


def test_a_log_that_can_not_be_written_stops_the_place(followed, monkeypatch):
    followed.write(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(errno.ENOSPC))
        for _ in range(3):
            with pytest.raises(LogNotWritable):
                followed.tail.step()
    assert followed.users == []
    followed.read()
    assert followed.users == [1, 2]


@pytest.mark.parametrize("name", ["save_place", "fsync"])
def test_a_place_or_rejects_that_can_not_be_written_do_not_append_again_and_again(followed, monkeypatch, name):
    followed.write(1)
    with followed.path.open("a") as file:
        file.write("rubbish\n")
    followed.tail.step()
    followed.write(2)
    with followed.path.open("a") as file:
        file.write("rubbish\n")
    with monkeypatch.context() as patch:
        patch.setattr(*((ingest_tail, name) if name == "save_place" else (os, name)), failing(errno.EROFS))
        for _ in range(3):
            with pytest.raises(OSError, match="Read-only"):
                followed.tail.step()
                followed.tail._save()
    followed.read()
    assert followed.users == [1, 2]


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_place_that_is_rubbish_is_said(followed):
    followed.write(1)
    followed.read()
    followed.stop()
    place = next((followed.folder / "log" / "tails").glob("*.json"))
    kept = place.read_text()
    place.write_text("{")
    with pytest.raises(UserError, match="should be the place of a followed file"):
        followed.start()
    followed.log.close()
    place.write_text(kept)
    followed.start()


def test_a_stop_between_append_and_place_reads_a_block_again(followed, monkeypatch):
    """Every kill between two steps leaves one of these states: append, set aside, save."""
    followed.write(1)
    followed.read()
    for user, name in ((2, "_set_aside"), (3, "_save")):
        followed.write(user)
        with monkeypatch.context() as patch:
            patch.setattr(Tail, name, failing(errno.EIO))
            with pytest.raises(OSError):
                followed.tail.step()
        followed.restart()
        followed.read()
    assert followed.users == [1, 2, 2, 3, 3]  # twice in the log, once in a store: the same user, item and time


def test_random_life_of_a_file(tmp_path, monkeypatch):
    """Writes of any piece, rotations, restarts and crashes in any order: each line at least once, in order."""
    generator = random.Random(0)
    monkeypatch.setattr(ingest_tail, "BLOCK", 300)
    followed = Followed(tmp_path)
    followed.start()
    followed.path.touch()
    followed.read()
    sent, rest, rotations = 0, "", 0
    written = 0  # of the file that was rotated last: many systems have one time for all of 4 ms
    for _ in range(400):
        what = generator.random()
        if what < 0.5:
            for _ in range(generator.randrange(1, 8)):
                rest += line(sent) + "\n"
                sent += 1
            piece = rest[: generator.randrange(len(rest) + 1)]
            rest = rest[len(piece) :]
            with followed.path.open("a") as file:
                file.write(piece)
        elif what < 0.8:
            followed.tail.step()
        elif what < 0.9:
            followed.restart()
        elif what < 0.95:
            with monkeypatch.context() as patch:
                patch.setattr(Tail, generator.choice(["_set_aside", "_save"]), failing(errno.EIO))
                try:
                    followed.tail.step()
                except OSError:
                    followed.restart()
        elif followed.path.exists():
            with followed.path.open("a") as file:
                file.write(rest)
            rest, rotations = "", rotations + 1
            written = max(written + 1, followed.path.stat().st_mtime_ns)
            os.utime(followed.path, ns=(written, written))
            followed.path.rename(followed.path.with_name(f"clicks.jsonl.{rotations}"))
            followed.path.touch()
    with followed.path.open("a") as file:
        file.write(rest)
    followed.read()
    first = list(dict.fromkeys(followed.users))
    assert first == [*range(sent)]
    assert followed.rejects == []
    assert rotations > 3 and sent > 300
    followed.stop()


def test_its_thread_goes_on_after_failures_and_ends_when_told(followed, monkeypatch):
    monkeypatch.setattr(ingest_tail, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(ingest_tail, "LOOK_SECONDS", 0.01)
    stop, failed = threading.Event(), threading.Event()
    steps = []

    def step(self):
        steps.append(1)
        if len(steps) < 5:
            raise [LogNotWritable("x"), OSError(errno.EACCES, "x"), UserError("x"), RuntimeError("x")][len(steps) - 1]
        failed.set()
        return False

    monkeypatch.setattr(Tail, "step", step)
    thread = threading.Thread(target=followed.tail.run, args=[stop])
    thread.start()
    assert failed.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert followed.tail.failing == ""


def test_folders_and_names(followed, tmp_path):
    with pytest.raises(UserError, match="should be a file"):
        Tail(tmp_path, followed.log, followed.metrics)
    other = followed.path.with_name("clicks.jsonl.bak")  # no name that rotation gives
    followed.write(1)
    followed.read()
    other.write_text(line(9) + "\n")
    followed.path.rename(followed.path.with_name("clicks.jsonl.1"))
    followed.read()
    assert followed.users == [1]


def test_another_process_may_read_the_log(followed):
    followed.write(1, 2)
    followed.read()
    with ClickLog(followed.folder / "log", write=False) as reader:
        assert [batch.user.tolist() for batch in reader.read()] == [[1, 2]]
