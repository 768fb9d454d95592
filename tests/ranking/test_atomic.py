import os

import pytest

from ranking.atomic import atomic_directory, atomic_file
from ranking.errors import UserError


def write(path, text, **rest):
    with atomic_directory(path, **rest) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file"]
    with atomic_file(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second" and os.listdir(path.parent) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "run"
    with pytest.raises(KeyboardInterrupt), atomic_directory(path) as folder:
        (folder / "file").write_text("half")
        assert not path.exists()
        raise KeyboardInterrupt
    assert os.listdir(path.parent) == []
    write(path, "first")
    assert (path / "inner" / "file").read_text() == "first" and os.listdir(path.parent) == ["run"]


def test_a_folder_is_replaced_only_when_asked(tmp_path):
    path = tmp_path / "run"
    write(path, "first")
    with pytest.raises(UserError, match="neither a dataset nor a run"):
        write(path, "second", overwrite=True)
    (path / "run.json").write_text("")
    with pytest.raises(UserError, match=f"{path} exists already: choose another folder, or pass --overwrite"):
        write(path, "second")
    with pytest.raises(ZeroDivisionError), atomic_directory(path, overwrite=True):
        raise ZeroDivisionError
    assert (path / "inner" / "file").read_text() == "first"
    write(path, "second", overwrite=True)
    assert (path / "inner" / "file").read_text() == "second"
    assert sorted(os.listdir(path)) == ["inner"] and os.listdir(tmp_path) == ["run"]


def test_an_interruption_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "run"
    write(path, "first")
    (path / "run.json").write_text("")
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:  # the old one is out of the way, the new one is not there yet
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, "second", overwrite=True)
    assert (path / "inner" / "file").read_text() == "first" and os.listdir(tmp_path) == ["run"]


def test_everything_is_synced_before_the_rename(tmp_path, monkeypatch):
    synced, fsync, replace = [], os.fsync, os.replace
    order = []

    def recorded(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source, target):
        order.append(list(synced))
        replace(source, target)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("names of open files are read from /proc")
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", renamed)
    write(tmp_path / "run", "text")
    # the file, its folder, the temporary folder; and the parent after the rename
    assert order[0][:2] == ["file", "inner"] and order[0][2].startswith(".tmp-") and len(order[0]) == 3
    assert synced[3:] == [tmp_path.name]
