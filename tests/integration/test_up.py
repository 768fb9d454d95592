"""`seedrank up` as a user starts it: clicks become seeds, seeds a similarity that is served; and how it ends."""

import contextlib
import json
import os
import queue
import signal
import threading
import time
import urllib.request

import pytest

from serving.rest import RankClient

pytestmark = pytest.mark.slow
PARTS = ("ingest", "refresh", "server")


class Up:
    """A running `seedrank up`, and what it says each second."""

    def __init__(self, process):
        self.process = process
        self._told: queue.Queue = queue.Queue()
        self.words: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        self._listener = threading.Thread(target=lambda: self.words.extend(process.stderr), daemon=True)
        self._listener.start()

    def _read(self):
        for line in self.process.stdout:
            self._told.put(json.loads(line))
        self._told.put(None)

    def until(self, holds, seconds=900.0):
        """The first status of which something holds."""
        end = time.monotonic() + seconds
        while True:
            told = self._told.get(timeout=max(0.0, end - time.monotonic()))
            assert told is not None, "".join(self.words)
            if holds(told):
                return told

    def ready(self):
        return self.until(
            lambda told: (
                told["version"]
                and told["seeds"] is not None
                and {part["state"] for part in told["processes"].values()} == {"ready"}
            )
        )

    def ended(self, seconds=300.0):
        status = self.process.wait(seconds)
        self._listener.join(30)
        return status


@pytest.fixture
def up(started, tiny, tmp_path_factory):
    """`() -> Up`, on the same models and log each time."""
    folder = tmp_path_factory.getbasetemp() / "up"
    settings = ["--run", tiny.path, "--data", tiny.data, "--models", folder / "models", "--log", folder / "log"]
    settings += ["--every", "15s", "--min-seeds", tiny.run.schema.min_seeds, "--json"]
    for name in ("ingest", "refresh", "rest", "grpc"):
        settings += [f"--{name}-port", "0"]
    return lambda: Up(started("up", *settings))


def gone(pids, seconds=60.0):
    """Whether no such process is there any more, in the end."""
    end = time.monotonic() + seconds
    left = set(pids)
    while left and time.monotonic() < end:
        for pid in list(left):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] != "Z":
                    continue
            left.discard(pid)
        time.sleep(0.1)
    return not left


def family(pid):
    """A process and all that it started, by their numbers."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [pid, *(number for child in file.read().split() for number in family(int(child)))]
    return [pid]


def post(where, clicks):
    body = "\n".join(json.dumps(click) for click in clicks).encode()
    with urllib.request.urlopen(where["clicks"], body, timeout=30) as reply:
        return json.load(reply)


def test_clicks_become_seeds_and_a_similarity_that_is_served(up, tiny):
    state, few = tiny.run.state, tiny.run.schema.min_seeds
    counts = state.seed_counts[:-1]
    item = state.item_ids.tolist()[int(counts.argmin())]
    clicker, clicked, *_ = tiny.timeline.seed_events()
    before = set(tiny.timeline.user_ids[clicker[tiny.timeline.item_ids[clicked] == item]])
    users = [user for user in state.user_ids.tolist() if user not in before][:few]
    assert counts.min() < few
    running = up()
    told = running.ready()
    where = told["where"]
    with RankClient(where["ranking"].partition("/v1")[0], timeout=60) as client:
        before = client.rank(users[0], [item], context={"tab": "home"})
        assert not before["has_similarity"][0]

        # One that dies is started again where it was, and the others go on.
        os.kill(told["processes"]["ingest"]["pid"], signal.SIGKILL)
        told = running.until(lambda now: now["processes"]["ingest"]["restarts"] == 1)
        assert told["processes"]["server"]["restarts"] == 0
        told = running.ready()
        assert told["where"] == where

        moment = int(time.time() * 1000)
        answer = post(where, [{"user_id": user, "item_id": item, "time": moment} for user in users])
        assert answer["accepted"] == few
        running.until(lambda now: now["seeds"] is not None and now["seeds"] >= told["seeds"] + 1)
        taken = int(time.time() * 1000)  # the store has them: every tick from now on does
        running.until(lambda now: now["watermark"] is not None and now["watermark"] > taken)
        after = client.rank(users[0], [item], context={"tab": "home"})
    assert after["has_similarity"][0]
    assert int(after["seed_watermark"][0]) > moment
    assert int(after["table_version"][0]) != int(before["table_version"][0])
    assert after["similarity"][0] != before["similarity"][0]

    # Ctrl-C drains: nobody is left, and the exit code is 0.
    everybody = family(running.process.pid)
    assert len(everybody) > len(PARTS)
    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 0, "".join(running.words)
    assert gone(everybody)
    words = "".join(running.words)
    assert "Stopped." in words and words.count("every request that had come was answered") == 2


def test_sigkill_leaves_nobody_behind_and_sigterm_drains(up):
    running = up()
    running.ready()
    everybody = family(running.process.pid)
    running.process.kill()
    assert gone(everybody, 300.0)

    # The log and the models are as they were: it starts again, and SIGTERM is a Ctrl-C.
    running = up()
    running.ready()
    everybody = family(running.process.pid)
    running.process.terminate()
    assert running.ended() == 0, "".join(running.words)
    assert gone(everybody)
