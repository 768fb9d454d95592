"""What `seedrank up` refuses before it starts anything, and the addresses it takes."""

import socket

import pytest
from typer.testing import CliRunner

import ranking.up
from ranking.cli import app
from ranking.errors import UserError
from ranking.up import Plan


@pytest.fixture
def folders(tmp_path):
    for name, file in (("run", "run.json"), ("data", "dataset.toml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    return {name: tmp_path / name for name in ("run", "models", "log", "data")}


FREE = dict.fromkeys(("ingest_port", "refresh_port", "rest_port", "grpc_port"), 0)


def test_free_ports_differ_and_a_given_one_is_kept(folders):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        wanted = held.getsockname()[1]
    ports = Plan(**folders, **FREE | {"rest_port": wanted}).ports()
    assert len(set(ports)) == 4 and ports[2] == wanted and 0 not in ports


def test_a_port_that_is_taken_is_named_with_its_option(folders):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        taken = held.getsockname()[1]
        with pytest.raises(UserError, match=rf"^`--refresh-port` should be a free port of .* Received: {taken} \(Addr"):
            Plan(**folders, **FREE | {"refresh_port": taken}).ports()


def test_an_address_of_another_machine_is_refused(folders):
    with pytest.raises(UserError, match="`--ingest-port` should be a free port of 203.0.113.1"):
        Plan(**folders, **FREE, host="203.0.113.1").ports()


def test_ports_should_differ(folders):
    with pytest.raises(UserError, match=r"^the ports should differ. Received: 8600, 8601, 8600, 8500.$"):
        Plan(**folders, rest_port=8600)


@pytest.mark.parametrize("name, file", [("run", "run.json"), ("data", "dataset.toml")])
def test_folders_are_what_they_should_be(folders, name, file):
    (folders[name] / file).unlink()
    with pytest.raises(UserError, match=f"`--{name}` should be a folder with {file}. Received: .*{name}"):
        Plan(**folders)


@pytest.mark.parametrize("name", ["models", "log"])
def test_a_replay_asks_for_new_folders(folders, name):
    Plan(**folders, speed=1000.0)
    folders[name].mkdir()
    Plan(**folders, speed=1000.0)  # an empty one is new
    (folders[name] / "something").write_text("")
    with pytest.raises(UserError, match=f"`--{name}` should be a new folder for a replay. Received: .*{name}"):
        Plan(**folders, speed=1000.0)
    Plan(**folders)


def test_the_refresh_gets_its_options(folders, monkeypatch):
    plans = []
    monkeypatch.setattr(ranking.up, "run_up", lambda plan, screen: plans.append(plan))
    words = ["up", *(word for name, folder in folders.items() for word in (f"--{name}", str(folder)))]
    for more in ([], ["--accept-loss"], ["--min-seeds", "9", "--accept-loss"]):
        CliRunner().invoke(app, [*words, *more])
        assert sorted(plans[-1].refresh_options) == sorted(more)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_the_speed_of_a_replay_is_positive(folders, speed):
    with pytest.raises(UserError, match="`--speed` should be positive. Received: "):
        Plan(**folders, speed=speed)
