"""Processes started, watched, started again and ended in order, with children of a few lines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ranking import up_supervisor
from ranking.errors import UserError
from ranking.up_supervisor import Supervisor, Task

ROOT = Path(__file__).resolve().parents[2]
# Says that it is there, and on SIGTERM writes its name into a file and ends well.
DRAINS = """
import os, signal, sys, time
from ranking.up_child import end_with_parent
name, folder = sys.argv[1:]
def drain(*_):
    with open(f"{folder}/ended", "a") as file:
        file.write(name + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
end_with_parent()
print("working", flush=True)
with open(f"{folder}/{name}", "a") as file:
    file.write(f"{os.getpid()} {os.getpgid(0)} ")
while True:
    time.sleep(0.05)
"""


def task(name, folder, code=DRAINS, **settings):
    path = Path(folder) / name  # of one that drains it is there before its content is
    ready = settings.pop("ready", lambda: path.exists() and (code != DRAINS or path.stat().st_size > 0))
    return Task(name, ("-c", code, name, str(folder)), ready, **settings)


def look_until(supervisor, done, seconds=30.0):
    """Looks until something holds; whether it came to hold."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        supervisor.look()
        time.sleep(0.02)
    return done()


def written(path, until):
    """What a process wrote to a file; a file is there before its content is."""
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    return path.read_text()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(up_supervisor, "FIRST_PAUSE", 0.05)


def test_children_get_ready_and_end_in_the_order_of_the_tasks(tmp_path):
    said = []
    with Supervisor(
        [task(name, tmp_path) for name in ("b", "a", "c")], say=lambda name, line: said.append((name, line))
    ) as supervisor:
        assert look_until(supervisor, supervisor.all_ready)
        assert {child.state for child in supervisor.children.values()} == {"ready"}
        assert supervisor.end()
    assert (tmp_path / "ended").read_text().split() == ["b", "a", "c"]
    assert sorted(said) == [("a", "working"), ("b", "working"), ("c", "working")]
    assert {child.state for child in supervisor.children.values()} == {"ended"}
    assert {child.status for child in supervisor.children.values()} == {0}


def test_a_child_that_is_killed_is_started_again_and_the_others_go_on(tmp_path):
    with Supervisor([task("one", tmp_path), task("other", tmp_path)]) as supervisor:
        assert look_until(supervisor, supervisor.all_ready)
        one, other = supervisor.children.values()
        old, untouched = one.pid, other.pid
        os.kill(old, signal.SIGKILL)
        assert look_until(supervisor, lambda: one.restarts == 1)
        assert look_until(supervisor, lambda: len((tmp_path / "one").read_text().split()) == 4)  # two starts
        assert one.pid not in (None, old) and other.pid == untouched and other.restarts == 0
        assert supervisor.end()


def test_pauses_double_up_to_a_longest_one(tmp_path, monkeypatch):
    monkeypatch.setattr(up_supervisor, "LONGEST_PAUSE", 0.2)
    said = []
    dies = task("dies", tmp_path, "raise SystemExit(7)", ready=lambda: False)
    with Supervisor([dies], say=lambda name, line: said.append(line)) as supervisor:
        child = supervisor.children["dies"]
        assert look_until(supervisor, lambda: child.restarts == 4)
    # 0.05, then twice as long each time, and no longer than 0.2
    assert said == [f"ended with status 7; it is started again in {pause} s" for pause in (0.05, 0.1, 0.2, 0.2)]


def test_a_child_that_refuses_its_arguments_ends_everything_with_its_words(tmp_path):
    refuses = "import sys; print('seedrank: `--every` should be a time.', file=sys.stderr); sys.exit(2)"
    tasks = [task("fine", tmp_path), task("wrong", tmp_path, refuses, ready=lambda: False)]
    with pytest.raises(UserError, match=r"^wrong: `--every` should be a time\.$"), Supervisor(tasks) as supervisor:
        look_until(supervisor, lambda: False)
    assert supervisor.children["fine"].pid is None  # nobody is left behind


def test_a_child_starts_after_the_one_it_needs_has_worked(tmp_path):
    works = []
    tasks = [task("second", tmp_path, after="first"), task("first", tmp_path, ready=lambda: bool(works))]
    with Supervisor(tasks) as supervisor:
        assert look_until(supervisor, (tmp_path / "first").exists)
        assert not look_until(supervisor, (tmp_path / "second").exists, 0.3)
        assert supervisor.children["second"].state == "waiting" and not supervisor.all_ready()
        works.append(1)
        assert look_until(supervisor, supervisor.all_ready)
        # It does not wait for one that is started again.
        os.kill(supervisor.children["first"].pid, signal.SIGKILL)
        os.kill(supervisor.children["second"].pid, signal.SIGKILL)
        works.clear()
        assert look_until(supervisor, lambda: len((tmp_path / "second").read_text().split()) == 4)
        assert supervisor.end()


def test_status_2_of_a_child_that_worked_is_a_death_like_any_other(tmp_path):
    code = "import os, sys, time; open(f'{sys.argv[2]}/{sys.argv[1]}', 'w')\n"
    code += "while not os.path.exists(f'{sys.argv[2]}/go'): time.sleep(0.02)\nsys.exit(2)"
    with Supervisor([task("late", tmp_path, code)]) as supervisor:
        assert look_until(supervisor, supervisor.all_ready)
        (tmp_path / "go").touch()
        assert look_until(supervisor, lambda: supervisor.children["late"].restarts == 1)


def test_a_task_that_does_not_last_ends_well_or_ends_everything(tmp_path):
    with Supervisor([task("once", tmp_path, "pass", lasting=False)]) as supervisor:
        assert look_until(supervisor, supervisor.all_ready)
        assert supervisor.children["once"].state == "ended" and supervisor.children["once"].restarts == 0
    with pytest.raises(UserError, match=r"^once: ended with status 3$"):
        with Supervisor([task("once", tmp_path, "raise SystemExit(3)", lasting=False, ready=lambda: False)]) as found:
            look_until(found, lambda: False)


DEAF = "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); open(f'{sys.argv[2]}/{sys.argv[1]}', 'w')\n"
DEAF += "time.sleep(600)"


def test_who_does_not_end_is_killed_after_its_grace(tmp_path):
    with Supervisor([task("deaf", tmp_path, DEAF, grace=0.3), task("next", tmp_path)]) as supervisor:
        assert look_until(supervisor, supervisor.all_ready)
        assert not supervisor.end()
    assert supervisor.children["deaf"].status == -signal.SIGKILL
    assert supervisor.children["next"].status == 0  # and the next one still drains
    assert (tmp_path / "ended").read_text() == "next "


def test_a_second_stop_does_not_wait(tmp_path):
    shown = []
    with Supervisor([task("deaf", tmp_path, DEAF, grace=600.0)]) as supervisor:
        assert look_until(supervisor, supervisor.all_ready)
        assert not supervisor.end(at_once=lambda: len(shown) > 3, show=lambda: shown.append(1))
    assert supervisor.children["deaf"].status == -signal.SIGKILL


def test_children_drain_when_their_parent_is_killed_and_do_not_share_its_terminal(tmp_path):
    code = f"""
import time
from ranking.up_supervisor import Supervisor, Task
code = {DRAINS!r}
with Supervisor([Task("child", ("-c", code, "child", {str(tmp_path)!r}), lambda: True)]) as supervisor:
    while True:
        supervisor.look()
        time.sleep(0.02)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    until = time.monotonic() + 30
    pid, group = map(int, written(tmp_path / "child", until).split())
    assert group == pid != os.getpgid(parent.pid)  # Ctrl-C goes to the parent's group: the parent says who ends when
    parent.kill()
    parent.wait()
    assert written(tmp_path / "ended", until) == "child "


def test_names_are_unique():
    with pytest.raises(UserError, match="names of their own"):
        Supervisor([Task("a", (), lambda: True), Task("a", (), lambda: True)])
