"""Finding, swapping and reporting versions, with a loader that only takes notes."""

import os
import shutil
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, RequestError, ServingError
from serving.manifest import Content, write_manifest
from serving.server.memory import Memory
from serving.server.metrics import Metrics
from serving.server.models_config import ModelConfig, Policy
from serving.server.versions import Models, find_models


class Note:
    """Stands for a loaded bundle."""

    def __init__(self, path, log):
        self.name, self.log, self.warm_up_seconds = path.name, log, 0.25
        if (path / "broken").exists():
            raise DeadlineExceeded("too slow to load")
        log.append(f"load {self.name}")

    def empty(self):
        raise RequestError("keeps nothing", "UNIMPLEMENTED")

    def close(self):
        self.log.append(f"close {self.name}")


class Renewable(Note):
    """One that takes the next version on where its graph is the same."""

    def __init__(self, path, log):
        super().__init__(path, log)
        self.graph = (path / "saved_model.pb").read_text()

    def empty(self):
        self.log.append(f"empty {self.name}")

    def renew(self, path):
        if (path / "broken").exists():
            raise DeadlineExceeded("too slow to warm up")
        if (path / "saved_model.pb").read_text() != self.graph:
            return False
        self.log.append(f"{self.name} becomes {path.name}")
        self.name = path.name
        return True


def version(folder, number, **files):
    """A folder that looks like a version; a file's text by its name."""
    path = folder / str(number)
    path.mkdir(parents=True, exist_ok=True)
    (path / "saved_model.pb").write_text("graph")
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def until(condition):
    """Unloading has a thread of its own."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def made(configs, log, **settings):
    models = Models(configs, load=lambda path: Note(path, log), **settings)
    models.log = log
    return models


def look(models):
    """A version without a manifest is loaded once it looked the same twice."""
    models.poll()
    models.poll()


@pytest.fixture
def models(tmp_path):
    version(tmp_path / "m", 1)
    models = made([ModelConfig("m", tmp_path / "m")], [])
    models.start()
    return models


def states(models, name="m"):
    return {status.version: status.state for status in models.statuses(name)}


def current(models, name="m", **which):
    with models.use(name, **which) as (number, _):
        return number


def test_newest_is_served_and_the_next_is_loaded_before_the_old_goes(models, tmp_path):
    version(tmp_path / "m", 2)
    look(models)
    until(lambda: states(models) == {2: "AVAILABLE", 1: "END"})
    assert models.log == ["load 1", "load 2", "close 1"]
    assert current(models) == 2


@pytest.fixture
def renewing(tmp_path):
    version(tmp_path / "m", 1)
    log = []
    models = Models([ModelConfig("m", tmp_path / "m")], load=lambda path: Renewable(path, log))
    models.log = log
    models.start()
    yield models
    models.close()


def swap(models, folder, number, **files):
    version(folder, number, **files)
    before = len([line for line in models.log if line.startswith("empty")])
    look(models)
    until(
        lambda: len([line for line in models.log if line.startswith("empty")]) > before and models._models["m"]._spare
    )


def test_what_went_becomes_the_next_version_with_its_graph(renewing, tmp_path):
    """Two bundles take turns; one of another graph takes none of their places."""
    for number in (2, 3, 4):
        swap(renewing, tmp_path / "m", number)
        assert current(renewing) == number
    assert renewing.log == ["load 1", "load 2", "empty 1", "1 becomes 3", "empty 2", "2 becomes 4", "empty 3"]
    version(tmp_path / "m", 5)
    (tmp_path / "m" / "5" / "saved_model.pb").write_text("another")
    look(renewing)
    until(lambda: renewing.log[-1] == "empty 4")
    assert renewing.log[7:] == ["close 3", "load 5", "empty 4"]
    until(lambda: states(renewing)[4] == "END")
    renewing.close()
    assert sorted(renewing.log[10:]) == ["close 4", "close 5"]


def test_one_that_fails_to_become_the_next_version_is_closed_and_that_one_tried_again(renewing, tmp_path):
    swap(renewing, tmp_path / "m", 2)
    broken = version(tmp_path / "m", 3, broken="")
    look(renewing)
    assert current(renewing) == 2 and states(renewing)[3] == "END"
    assert renewing.log == ["load 1", "load 2", "empty 1", "close 1"]
    (broken / "broken").unlink()
    look(renewing)
    assert current(renewing) == 3 and renewing.log[4] == "load 3"


def test_nothing_becomes_another_version_while_a_request_has_it(renewing, tmp_path):
    with renewing.use("m") as (number, held):
        version(tmp_path / "m", 2)
        look(renewing)
        version(tmp_path / "m", 3)
        look(renewing)
        assert number == 1 and held.name == "1" and current(renewing) == 3
        assert "empty 1" not in renewing.log
    until(lambda: "empty 1" in renewing.log)


def test_a_version_that_was_pruned_while_it_loaded_is_served_until_a_newer_one_is(tmp_path):
    """Versions come every second and take three to load: what is served has to move all the same."""
    log = []

    def load(path):
        if path.name != "1":
            shutil.rmtree(path)
            version(tmp_path / "m", int(path.name) + 2)
        return Note(path, log)

    version(tmp_path / "m", 1)
    models = Models([ModelConfig("m", tmp_path / "m")], load=load)
    models.start()
    version(tmp_path / "m", 2)
    served = []
    for _ in range(3):
        look(models)
        served.append(current(models))
        until(lambda: f"close {served[-1] - 2 or 1}" in log)  # versions end in threads of their own
    assert served == [2, 4, 6]
    assert log == ["load 1", "load 2", "close 1", "load 4", "close 2", "load 6", "close 4"]


def test_one_that_was_pruned_before_it_had_loaded_is_no_failure(tmp_path, caplog):
    def load(path):
        if path.name == "2":
            shutil.rmtree(path)
            raise NotFound("no such file")
        return Note(path, [])

    version(tmp_path / "m", 1)
    models = Models([ModelConfig("m", tmp_path / "m")], load=load)
    models.start()
    version(tmp_path / "m", 2)
    look(models)
    assert current(models) == 1 and not caplog.records
    assert models.statuses("m")[0].state == "END" and not models.statuses("m")[0].error_message
    version(tmp_path / "m", 3)
    look(models)
    assert current(models) == 3


def test_a_broken_version_is_reported_and_the_old_one_stays(models, tmp_path):
    broken = version(tmp_path / "m", 2, broken="")
    look(models)
    models.poll()
    assert current(models) == 1
    newest, oldest = models.statuses("m")
    assert (newest.state, newest.error_code, newest.error_message) == ("END", "DEADLINE_EXCEEDED", "too slow to load")
    assert oldest.state == "AVAILABLE"
    (broken / "broken").unlink()
    look(models)  # its files changed: tried again
    until(lambda: states(models) == {2: "AVAILABLE", 1: "END"})


def test_an_old_version_stays_though_its_folder_goes_where_the_new_one_fails(models, tmp_path):
    version(tmp_path / "m", 2, broken="")
    shutil.rmtree(tmp_path / "m" / "1")
    look(models)
    assert current(models) == 1


def test_an_error_that_is_no_answer_of_the_runtime_is_reported_too(tmp_path):
    version(tmp_path / "m", 1)
    models = Models([ModelConfig("m", tmp_path / "m")], load=lambda path: 1 / 0)
    with pytest.raises(ServingError, match="model m has no version that loads; version 1: .*division by zero"):
        models.start()
    (status,) = models.statuses("m")
    assert (status.state, status.error_code) == ("END", "INTERNAL")


def test_deleting_the_newest_rolls_back(models, tmp_path):
    version(tmp_path / "m", 2)
    look(models)
    until(lambda: states(models)[1] == "END")
    shutil.rmtree(tmp_path / "m" / "2")
    look(models)
    until(lambda: states(models) == {2: "END", 1: "AVAILABLE"})
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
    until(lambda: states(models) == {1: "END"})


def test_a_request_keeps_its_version_and_holds_up_no_look(models, tmp_path):
    version(tmp_path / "m", 2)
    with models.use("m") as (number, _):
        look(models)
        assert states(models) == {2: "AVAILABLE", 1: "UNLOADING"}
        assert (number, current(models)) == (1, 2)
        with pytest.raises(NotFound, match=r"Specific\(m, 1\)"):
            current(models, version=1)
        version(tmp_path / "m", 3)
        look(models)  # though version 1 is not unloaded yet
        assert current(models) == 3
        until(lambda: "close 2" in models.log)
        assert "close 1" not in models.log
    until(lambda: "close 1" in models.log)


def test_a_version_that_comes_back_while_it_goes_stays_available(models, tmp_path):
    with models.use("m"):
        shutil.move(tmp_path / "m" / "1", tmp_path / "aside")
        models.poll()
        assert states(models) == {1: "UNLOADING"}
        shutil.move(tmp_path / "aside", tmp_path / "m" / "1")
        look(models)
        assert states(models) == {1: "AVAILABLE"}
    until(lambda: models.log == ["load 1", "load 1", "close 1"])
    time.sleep(0.02)
    assert states(models) == {1: "AVAILABLE"}


def test_start_falls_back_to_the_newest_that_loads(tmp_path):
    for number in (1, 2, 3):
        version(tmp_path / "m", number)
    (tmp_path / "m" / "3" / "broken").touch()
    models = made([ModelConfig("m", tmp_path / "m")], [])
    models.start()
    assert models.log == ["load 2"]
    assert states(models) == {3: "END", 2: "AVAILABLE"}


def test_start_fails_when_nothing_loads(tmp_path):
    version(tmp_path / "m", 3, broken="")
    with pytest.raises(ServingError, match="model m has no version that loads; version 3: too slow to load"):
        made([ModelConfig("m", tmp_path / "m")], []).start()


def test_a_folder_that_grows_is_not_loaded_until_it_rests(models, tmp_path):
    path = version(tmp_path / "m", 2)
    models.poll()
    for part in range(3):
        (path / "data").write_text("x" * part)
        models.poll()
        assert states(models) == {2: "START", 1: "AVAILABLE"}
    models.poll()
    assert states(models)[2] == "AVAILABLE"


def test_a_folder_that_changes_while_it_loads_is_not_served(tmp_path):
    path = version(tmp_path / "m", 1)
    log = []

    def load(folder):
        (path / "late").write_text("x") if not log else None
        return Note(folder, log)

    models = Models([ModelConfig("m", tmp_path / "m")], load=load)
    models.poll()
    assert (log, states(models)) == (["load 1", "close 1"], {1: "START"})
    look(models)
    assert current(models) == 1


def test_a_version_with_a_manifest_is_loaded_at_once_when_all_its_files_are_there(models, tmp_path):
    path = version(tmp_path / "m", 2, data="123")
    write_manifest(path, 2, "2026-01-01T00:00:00Z", Content())
    (path / "data").write_text("12")
    models.poll()
    assert states(models)[2] == "START"
    models.poll()
    newest, _ = models.statuses("m")  # it rests, and is not whole
    assert (newest.state, newest.error_code) == ("END", "DATA_LOSS")
    (path / "data").write_text("124")
    models.poll()
    newest, _ = models.statuses("m")  # of the right size, with one bit of another value
    assert (newest.state, newest.error_code) == (
        "END",
        "DATA_LOSS",
    ) and "should have the SHA-256" in newest.error_message
    (path / "data").write_text("123")
    os.utime(path / "data", ns=(1, 1))  # many systems have one time for all of 4 ms
    models.poll()
    assert current(models) == 2


def test_a_version_that_would_not_fit_is_refused_and_tried_again_when_it_would(tmp_path):
    version(tmp_path / "m", 1)
    left = [1 << 40]
    models = made([ModelConfig("m", tmp_path / "m")], [], memory=Memory(lambda: left[0]))
    models.start()
    # 10,000,000 bytes of variables: 12,000,000 + 32 MiB of which 40,000,000 are left; the graph is 5 bytes.
    version(tmp_path / "m", 2, data="x" * 10_000_000)
    left[0] = 40_000_000
    look(models)
    newest, _ = models.statuses("m")
    assert (newest.state, newest.error_code) == ("END", "RESOURCE_EXHAUSTED")
    assert "would take about 43 MiB of memory and 38 MiB are left" in newest.error_message
    assert current(models) == 1
    left[0] = 46_000_000
    models.poll()
    assert current(models) == 2


def test_loads_that_run_together_share_the_memory(tmp_path):
    folder = version(tmp_path / "m", 1, data="x" * 10_000_000)
    memory = Memory(lambda: 90_000_000)  # 45,554,452 bytes a load: one fits, two do not
    with memory.room(folder):
        with pytest.raises(RequestError, match="41 MiB|42 MiB"), memory.room(folder):
            pass
    with memory.room(folder):
        pass


def test_a_start_whose_only_version_is_pruned_while_it_loads_takes_the_next(tmp_path):
    first, log = version(tmp_path / "m", 1), []

    def load(path):
        if path == first:
            write_manifest(version(tmp_path / "m", 2), 2, "2026-01-01T00:00:00Z", Content())
            shutil.rmtree(first)
            raise DeadlineExceeded("its files are gone")
        return Note(path, log)

    models = Models([ModelConfig("m", tmp_path / "m")], load=load)
    models.start()
    assert current(models) == 2


def test_a_slow_load_holds_up_neither_requests_nor_other_models(tmp_path):
    begun, go = threading.Event(), threading.Event()
    log = []

    def load(path):
        if path.parent.name == "slow" and path.name == "2":
            begun.set()
            go.wait(20)
        return Note(path, log)

    for name in ("slow", "quick"):
        version(tmp_path / name, 1)
    models = Models([ModelConfig(name, tmp_path / name) for name in ("slow", "quick")], load=load)
    models.start()
    models.watch(0.005)
    try:
        version(tmp_path / "slow", 2)
        assert begun.wait(20)
        version(tmp_path / "quick", 2)
        until(lambda: current(models, "quick") == 2)
        assert current(models, "slow") == 1
        go.set()
        until(lambda: current(models, "slow") == 2)
    finally:
        go.set()
        models.close()


def test_policies(tmp_path):
    for number in (1, 2, 3):
        version(tmp_path / "m", number)
    config = ModelConfig("m", tmp_path / "m", Policy("latest", 2))
    models = made([config], [])
    models.start()
    assert set(models.available()["m"]) == {3, 2}
    assert [current(models), current(models, version=2)] == [3, 2]
    models.update([ModelConfig("m", tmp_path / "m", Policy("all"))])
    look(models)
    assert set(models.available()["m"]) == {3, 2, 1}
    models.update([ModelConfig("m", tmp_path / "m", Policy("specific", versions=(1, 9)))])
    look(models)
    assert set(models.available()["m"]) == {1}
    assert models.log[:3] == ["load 3", "load 2", "load 1"]
    models.update([ModelConfig("m", tmp_path / "m", Policy("specific", versions=(9,)))])
    look(models)  # none is there: what is loaded stays
    assert set(models.available()["m"]) == {1}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "broken", "delete"]), st.integers(1, 4)), max_size=12),
    st.sampled_from([Policy(), Policy("latest", 2), Policy("all"), Policy("specific", versions=(2, 3))]),
)
def test_once_something_answers_something_answers_as_long_as_there_is_a_version(tmp_path_factory, steps, policy):
    folder = tmp_path_factory.mktemp("walk") / "m"
    folder.mkdir()
    models = made([ModelConfig("m", folder, policy)], [])
    answered = False
    for action, number in steps:
        path = folder / str(number)
        shutil.rmtree(path, ignore_errors=True)
        if action != "delete":
            version(folder, number, **({"broken": ""} if action == "broken" else {}))
        look(models)
        found = {int(entry.name) for entry in folder.iterdir()}
        loaded = set(models.available()["m"])
        answered = bool(loaded) or (answered and bool(found))
        assert bool(loaded) == answered
        whole = {number for number in found if not (folder / str(number) / "broken").exists()}
        # Whatever the policy asks for and loads is loaded.
        assert set(policy.choose(found)) & whole <= loaded


def test_labels_point_to_versions_that_answer(tmp_path):
    for number in (1, 2):
        version(tmp_path / "m", number)

    def config(**labels):
        return ModelConfig("m", tmp_path / "m", Policy("latest", 2), labels)

    models = made([config(stable=1, next=3)], [])
    models.start()
    assert current(models, label="stable") == 1
    with pytest.raises(InvalidArgument, match="Unrecognized servable version label: next"):
        current(models, label="next")
    models.update([config(stable=3, canary=2)])
    assert current(models, label="stable") == 1  # until version 3 answers
    assert current(models, label="canary") == 2
    version(tmp_path / "m", 3)
    look(models)
    assert current(models, label="stable") == 3
    models.update([config()])
    with pytest.raises(InvalidArgument, match="Unrecognized servable version label: stable"):
        current(models, label="stable")


def test_a_label_whose_version_was_unloaded_is_not_found(tmp_path):
    version(tmp_path / "m", 1)
    models = made([ModelConfig("m", tmp_path / "m", labels={"stable": 1})], [])
    models.start()
    version(tmp_path / "m", 2)
    look(models)
    with pytest.raises(NotFound, match=r"Servable not found for request: Specific\(m, 1\)"):
        current(models, label="stable")


def test_reload_takes_models_in_and_out(models, tmp_path):
    models.watch(3600)  # a reload does not wait for the next look
    version(tmp_path / "n", 5)
    models.reload([ModelConfig("m", tmp_path / "m"), ModelConfig("n", tmp_path / "n")], 20)
    assert [current(models), current(models, "n")] == [1, 5]
    models.reload([ModelConfig("n", tmp_path / "n")], 20)
    with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(m\)"):
        current(models)
    until(lambda: states(models) == {1: "END"})  # still listed
    models.reload([ModelConfig("n", tmp_path / "n"), ModelConfig("m", tmp_path / "m")], 20)
    assert current(models) == 1
    models.close()


def test_reload_refuses_as_a_whole(models, tmp_path):
    models.watch(3600)
    version(tmp_path / "m", 2)
    both = Policy("specific", versions=(1, 2))
    with pytest.raises(
        FailedPrecondition,
        match="^Request to assign label to version 2 of model m, which is not currently available for inference$",
    ):
        models.reload([ModelConfig("m", tmp_path / "m", both, {"canary": 2})], 20)
    assert states(models) == {1: "AVAILABLE"}  # nor is version 2 loaded
    for configs, words in [
        ([ModelConfig("m", tmp_path)] * 2, "Illegal to list model m multiple times in config list"),
        (
            [ModelConfig("m", tmp_path / "x", platform="other")],
            "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is "
            "other",
        ),
        ([ModelConfig("n", tmp_path, platform="foo")], "Model n requests unsupported platform foo"),
    ]:
        with pytest.raises(InvalidArgument, match=f"^{words}$"):
            models.reload(configs, 20)
    assert current(models) == 1
    models.close()


def test_reload_tells_which_model_failed_and_waits_no_longer_than_asked(models, tmp_path):
    models.watch(0.005)
    version(tmp_path / "n", 7, broken="")
    with pytest.raises(
        RequestError,
        match=r"^1 servable\(s\) did not become available: \{\{\{name: n version: 7\} due to error: "
        r"DEADLINE_EXCEEDED: too slow to load\}, \}$",
    ) as caught:
        models.reload([ModelConfig("m", tmp_path / "m"), ModelConfig("n", tmp_path / "n")], 20)
    assert caught.value.code == "UNKNOWN"
    with pytest.raises(RequestError, match="Model o has no version yet") as caught:
        models.reload([ModelConfig("m", tmp_path / "m"), ModelConfig("o", tmp_path / "absent")], 0.05)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    version(tmp_path / "absent", 1)
    until(lambda: models.available()["o"])  # the configuration stayed
    models.close()


def test_one_reload_waits_at_a_time(models, tmp_path):
    models.watch(3600)
    waiting = [ModelConfig("m", tmp_path / "m"), ModelConfig("o", tmp_path / "absent")]
    refused = []

    def reload():
        try:
            models.reload(waiting, 20)
        except RequestError as error:
            refused.append(error.code)

    thread = threading.Thread(target=reload)
    thread.start()
    until(lambda: "o" in models.available())
    with pytest.raises(RequestError, match="Another HandleReloadConfigRequest") as caught:
        models.reload(waiting, 20)
    assert caught.value.code == "ABORTED"
    version(tmp_path / "absent", 1)
    look(models)
    thread.join()
    assert refused == []
    models.close()


def test_another_folder_for_a_model_is_loaded_before_the_old_content_goes(models, tmp_path):
    version(tmp_path / "elsewhere", 1, here="")
    with models.use("m") as (_, old):
        models.update([ModelConfig("m", tmp_path / "elsewhere")])
        look(models)
        with models.use("m") as (number, new):
            assert number == 1
            assert new is not old
        assert models.log == ["load 1", "load 1"]
    until(lambda: models.log == ["load 1", "load 1", "close 1"])
    assert states(models) == {1: "AVAILABLE"}


def test_loads_are_counted(tmp_path):
    version(tmp_path / "m", 1)
    version(tmp_path / "m", 2, broken="")
    metrics = Metrics()
    made([ModelConfig("m", tmp_path / "m")], [], metrics=metrics).start()
    found = [line.rsplit("/", 1)[1] for line in metrics.text().splitlines() if "load_attempt_count{" in line]
    assert found == ['2",status="fail"} 1', '1",status="success"} 1']
    path = tmp_path / "m" / "1"
    assert f':tensorflow:serving:model_warmup_latency_sum{{model_path="{path}",status="OK"}} 250000' in metrics.text()


def test_unknown_things(models):
    with pytest.raises(InvalidArgument, match="ModelSpec has no name specified."), models.use(""):
        pass
    for name in ("m", "n"):
        with pytest.raises(InvalidArgument, match="Unrecognized servable version label: x"):
            current(models, name, label="x")
        with pytest.raises(NotFound, match=rf"Servable not found for request: Specific\({name}, 9\)"):
            current(models, name, version=9)
    with pytest.raises(NotFound, match=r"Servable not found for request: Latest\(n\)"):
        current(models, "n")
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
    assert find_models(tmp_path) == [ModelConfig("a", tmp_path / "a")]
    assert find_models(tmp_path / "a") == [ModelConfig("a", tmp_path / "a")]
    (tmp_path / "b").mkdir()
    with pytest.raises(ServingError, match="model b has no version"):
        find_models(tmp_path)


def test_the_version_that_answers_says_what_it_is_made_of(models, tmp_path):
    assert (models.live("m").version, models.live("m").hashes) == (1, {})
    path = version(tmp_path / "m", 2)
    write_manifest(path, 2, "2026-01-01T00:00:00Z", Content({"weights": "abc"}, {"seed_watermark": 5}))
    models.poll()
    live = models.live("m")
    assert (live.version, live.state, live.hashes, live.facts) == (
        2,
        "AVAILABLE",
        {"weights": "abc"},
        {"seed_watermark": 5},
    )
    version(tmp_path / "m", 3, broken="")
    look(models)
    assert models.live("m").version == 2
    models.close()
    assert "close 2" in models.log
    for name in ("m", "absent"):
        with pytest.raises(NotFound):
            models.live(name)


def test_names_that_are_no_versions_are_ignored(models, tmp_path):
    for name in ("-1", "1e3", str(1 << 63), "2a", ".tmp-2", "٣"):
        (tmp_path / "m" / name).mkdir()
    version(tmp_path / "m", "00000002")
    look(models)
    assert current(models) == 2
    assert os.path.basename(models.log[1].split()[1]) == "00000002"
