"""Finding, swapping and reporting versions, with a loader that only takes notes."""

import os
import shutil
import threading

import pytest

from serving.errors import DeadlineExceeded, InvalidArgument, NotFound, ServingError
from serving.server.versions import Models, find_models


class Note:
    """Stands for a loaded bundle."""

    def __init__(self, path, log):
        self.name, self.log = path.name, log
        if (path / "broken").exists():
            raise DeadlineExceeded("too slow to load")
        log.append(f"load {self.name}")

    def close(self):
        self.log.append(f"close {self.name}")


@pytest.fixture
def models(tmp_path):
    log = []
    (tmp_path / "m" / "1").mkdir(parents=True)
    made = Models({"m": tmp_path / "m"}, load=lambda path: Note(path, log))
    made.log = log
    made.start()
    return made


def states(models):
    return {status.version: status.state for status in models.statuses("m")}


def current(models):
    with models.use("m") as (version, _):
        return version


def test_newest_is_served_and_the_next_is_loaded_before_the_old_goes(models, tmp_path):
    (tmp_path / "m" / "2").mkdir()
    models.poll()
    assert models.log == ["load 1", "load 2", "close 1"]
    assert states(models) == {2: "AVAILABLE", 1: "END"}
    assert current(models) == 2


def test_a_broken_version_is_reported_and_the_old_one_stays(models, tmp_path):
    broken = tmp_path / "m" / "2"
    broken.mkdir()
    (broken / "broken").touch()
    models.poll()
    models.poll()
    assert current(models) == 1
    newest, oldest = models.statuses("m")
    assert (newest.state, newest.error_code, newest.error_message) == ("END", "DEADLINE_EXCEEDED", "too slow to load")
    assert oldest.state == "AVAILABLE"
    (broken / "broken").unlink()
    os.utime(broken, ns=(1, 1))
    models.poll()  # its folder changed: tried again
    assert states(models) == {2: "AVAILABLE", 1: "END"}


def test_deleting_the_newest_rolls_back(models, tmp_path):
    (tmp_path / "m" / "2").mkdir()
    models.poll()
    shutil.rmtree(tmp_path / "m" / "2")
    models.poll()
    assert current(models) == 1
    assert models.log == ["load 1", "load 2", "close 1", "load 1", "close 2"]


def test_a_vanished_folder_unloads_nothing_an_empty_one_everything(models, tmp_path):
    shutil.rmtree(tmp_path / "m")
    models.poll()
    assert current(models) == 1
    (tmp_path / "m").mkdir()
    models.poll()
    with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(m\)"):
        current(models)
    assert states(models) == {1: "END"}


def test_a_request_keeps_its_version(models, tmp_path):
    (tmp_path / "m" / "2").mkdir()
    with models.use("m") as (version, _):
        swap = threading.Thread(target=models.poll)
        swap.start()
        while states(models).get(1) != "UNLOADING":
            pass
        assert version == 1
        assert current(models) == 2
        assert "close 1" not in models.log
    swap.join()
    assert models.log == ["load 1", "load 2", "close 1"]


def test_start_falls_back_to_the_newest_that_loads(tmp_path):
    log = []
    for name in ("1", "2", "3"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "3" / "broken").touch()
    models = Models({"m": tmp_path / "m"}, load=lambda path: Note(path, log))
    models.start()
    assert log == ["load 2"]
    assert states(models) == {3: "END", 2: "AVAILABLE"}


def test_start_fails_when_nothing_loads(tmp_path):
    (tmp_path / "m" / "3").mkdir(parents=True)
    (tmp_path / "m" / "3" / "broken").touch()
    with pytest.raises(ServingError, match="model m has no version that loads; version 3: too slow to load"):
        Models({"m": tmp_path / "m"}, load=lambda path: Note(path, [])).start()


def test_unknown_things(models):
    with pytest.raises(InvalidArgument, match="ModelSpec has no name specified."), models.use(""):
        pass
    with pytest.raises(InvalidArgument, match="Unrecognized servable version label: x"), models.use("m", label="x"):
        pass
    with pytest.raises(NotFound, match=r"Servable not found for request: Specific\(m, 9\)"), models.use("m", 9):
        pass
    with pytest.raises(NotFound, match="Could not find any versions of model n"):
        models.statuses("n")
    with pytest.raises(NotFound, match="Could not find version 9 of model m"):
        models.statuses("m", 9)


def test_find_models(tmp_path):
    with pytest.raises(ServingError, match="which is not a folder"):
        find_models(tmp_path / "absent")
    with pytest.raises(ServingError, match="which has no model"):
        find_models(tmp_path)
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / ".tmp-1").mkdir()
    assert find_models(tmp_path) == {"a": tmp_path / "a"}
    assert find_models(tmp_path / "a") == {"a": tmp_path / "a"}
    (tmp_path / "b").mkdir()
    with pytest.raises(ServingError, match="model b has no version"):
        find_models(tmp_path)


def test_the_version_that_answers_says_what_it_is_made_of(models, tmp_path):
    assert (models.live("m").version, models.live("m").hashes) == (1, {})
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "2" / "manifest.json").write_text('{"version": 2, "hashes": {"weights": "abc"}}')
    models.poll()
    assert (models.live("m").version, models.live("m").state) == (2, "AVAILABLE")
    assert models.live("m").hashes == {"weights": "abc"}
    broken = tmp_path / "m" / "3"
    broken.mkdir()
    (broken / "broken").touch()
    models.poll()
    assert models.live("m").version == 2
    models.close()
    for name in ("m", "absent"):
        with pytest.raises(NotFound):
            models.live(name)
