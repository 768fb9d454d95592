"""SIGKILL at random moments of the ingest: what it acknowledged is in the log; a followed file loses no line."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lookalike.clicklog import ClickLog

ROOT = Path(__file__).resolve().parents[2]
T = 1_767_225_600_000
KILLS = 12

# Imports once; every line it reads forks one service, which is killed by its number.
STARTER = """
import os, signal, sys
from ranking.ingest import Ingest
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("tensorflow" in sys.modules, flush=True)
for line in sys.stdin:
    if os.fork() == 0:
        service = Ingest(sys.argv[1], port=0, tails=[sys.argv[2]])
        service.start()
        print(os.getpid(), service.port, flush=True)
        service.wait()
"""


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-c", STARTER, folder / "log", folder / "clicks.jsonl"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "False\n"

        def start():
            process.stdin.write("\n")
            process.stdin.flush()
            return map(int, process.stdout.readline().split())

        yield folder, start
        process.stdin.close()
        process.wait(30)


def send(port, users, acknowledged):
    """Sends clicks until the service is dead."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        for user in users:
            some = [user * 10 + n for n in range(5)]
            link.request("POST", "/v1/clicks", json.dumps({"user_id": some, "item_id": [1] * 5, "time": [T] * 5}))
            reply = link.getresponse()
            text = reply.read()
            if reply.status == 200:
                acknowledged.append((json.loads(text)["first"], some))
    except (OSError, http.client.HTTPException):
        pass
    finally:
        link.close()


@pytest.mark.slow
def test_what_was_acknowledged_is_there_after_sigkill(starter):
    folder, start = starter
    generator = random.Random(0)
    acknowledged, written, numbers = [], 0, iter(range(0, 10**9, 1_000_000))
    for _ in range(KILLS):
        process, port = start()
        threads = [
            threading.Thread(target=send, args=[port, range(base := next(numbers), base + 1_000_000), acknowledged])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        # The service lives for a random time, and until a random number of acknowledgements, however slow it is.
        moment, wanted = time.monotonic() + generator.uniform(0.0, 0.3), len(acknowledged) + generator.randrange(20)
        with (folder / "clicks.jsonl").open("a") as file:
            while time.monotonic() < moment or (len(acknowledged) < wanted and time.monotonic() < moment + 60):
                for _ in range(generator.randrange(1, 50)):
                    file.write(json.dumps({"user_id": -1 - written, "item_id": 2, "time": T}) + "\n")
                    written += 1
                file.flush()
                time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
    process, port = start()
    deadline = time.monotonic() + 120
    while behind(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)

    with ClickLog(folder / "log", write=False) as log:
        assert log.check() == []
        events = {}
        for batch in log.read():
            events.update(zip(range(batch.offset, batch.next), batch.user.tolist(), strict=True))
    lost = [some for first, some in acknowledged if [events.get(first + n) for n in range(5)] != some]
    assert lost == []
    assert len(acknowledged) > 5 * KILLS
    followed = list(dict.fromkeys(-1 - user for user in events.values() if user < 0))
    assert followed == [*range(written)]
    assert written > 0


def behind(port):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.request("GET", "/healthz")
    reply = json.loads(link.getresponse().read())
    link.close()
    return reply["tails"][0]["behind"]


@pytest.mark.slow
def test_the_command_teaches_and_ends_cleanly(tmp_path):
    """`seedrank ingest`: a new log needs its ids declared; SIGTERM ends it with exit code 0."""
    command = [sys.executable, "-c", "from ranking.cli import main; main()", "ingest", "--log", tmp_path / "log"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 2
    assert "is a new log: declare its ids" in wrong.stderr and "Traceback" not in wrong.stderr
    command += ["--user-ids", "int64", "--item-ids", "string", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        link.request("POST", "/v1/clicks", b'{"user_id": 1, "item_id": "a"}')
        assert link.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Stopped" in process.stderr.read()
        link.close()
    with ClickLog(tmp_path / "log", write=False) as log:
        assert (log.end, log.item_ids) == (1, "string")
