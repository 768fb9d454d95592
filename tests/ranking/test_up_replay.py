"""The clock of a replay, who gains a similarity when, and what is sent and asked, against values by hand."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ranking import up_replay
from ranking.data.tables import Dataset, write_dataset
from ranking.errors import UserError
from ranking.up_replay import Arrivals, Clock, enough_seeds, feed

HOUR = 3_600_000
ORIGIN = 1_741_651_200_000  # 2025-03-11


def test_the_clock_stands_until_it_is_started_and_then_goes_fast(tmp_path, monkeypatch):
    real = [1000.0]
    monkeypatch.setattr(up_replay, "time", SimpleNamespace(time=lambda: real[0]))
    mine, another = (Clock(ORIGIN, tmp_path / "clock", 1000.0) for _ in range(2))
    real[0] += 50
    assert mine.now() == another.now() == ORIGIN
    mine.start()
    real[0] += 4.5
    assert mine.now() == another.now() == ORIGIN + 75 * 60_000  # 4.5 s are 75 minutes
    another.start()  # again: nothing changes
    assert another.now() == ORIGIN + 75 * 60_000
    assert mine.note() == "replay 2025-03-11 01:15, 1,000x"
    real[0] -= 100  # a clock set back
    assert mine.now() == ORIGIN
    with pytest.raises(UserError, match="`--speed` should be positive. Received: 0"):
        Clock(ORIGIN, tmp_path / "clock", 0)


def events(*rows):
    """(user, item, ms) of the seed events, of items a, b and c."""
    user, item, time = (np.array(column) for column in zip(*rows, strict=True))
    return SimpleNamespace(seed_events=lambda: (user, item, time, np.zeros(len(user))), item_ids=pd.Index(list("abc")))


def test_enough_seeds_counts_users_once_by_their_first_click():
    timeline = events((1, 0, 50), (1, 0, 10), (2, 0, 30), (1, 0, 31), (3, 0, 40), (1, 1, 7), (1, 1, 8), (2, 2, 9))
    assert enough_seeds(timeline, 1) == {"a": 10, "b": 7, "c": 9}
    assert enough_seeds(timeline, 2) == {"a": 30}
    assert enough_seeds(timeline, 3) == {"a": 40}
    assert enough_seeds(timeline, 4) == {}


def test_arrivals_count_the_refreshes_that_passed():
    arrivals = Arrivals({"old": -1, "next": 100, "late": 150, "edge": 200, "never": 160}, since=0)
    arrivals.look(["old"], 100, 105)
    arrivals.look(["old", "next"], 200, 210)  # of what is strictly before 200: not the edge
    arrivals.look(["next", "late", "edge"], 300, 320)
    # next: ready at 100 the tick of 100 did not see it, that of 200 did. late: 200 and 300. edge: 300.
    assert arrivals.refreshes() == [1, 2, 1]
    # published after 110, 170 and 120 ms, which at 10x are a tenth of it
    assert arrivals.told(20, 10.0) == (
        "2 of 3 items had their similarity at the first refresh after their 20th seed, the last one at number 2. "
        "Tables with it came out after 0.0 s (median; at most 0.0 s), which at 10x are 0.0 h of the log."
    )
    assert Arrivals({}, 0).told(20, 10.0) == "No item gained its 20th seed and a similarity meanwhile."
    hours = Arrivals({"a": 0}, 0)
    hours.look(["a"], HOUR, 2 * HOUR)
    assert "after 7.2 s (median; at most 7.2 s), which at 1,000x are 2.0 h of the log" in hours.told(20, 1000.0)


TOML = """schema_version = 1
[ids]
user = "int64"
item = "int64"
[labels]
seed_event = "behaviors.clicked"
[windows]
train = ["2025-03-10", "2025-03-11"]
[features.item]
price = { kind = "numeric" }
[features.context]
tab = { kind = "categorical" }
[features.behavior]
clicked = { keep = 5 }
"""


@pytest.fixture
def dataset(tmp_path):
    hours = ORIGIN + np.array([-2, 1, 2, 3]) * HOUR
    tables = {
        "items": pd.DataFrame({"item_id": [1, 2, 3], "price": [1.0, 2.0, 3.0]}),
        "impressions": pd.DataFrame({"request_id": range(4), "timestamp": hours, "user_id": [7, 8, 9, 7],
                                     "item_id": [1, 2, 3, 1], "tab": "home", "click": 1, "conversion": 0}),
        "behaviors": pd.DataFrame({"user_id": [7, 8, 9, 7], "field": "clicked", "value": [1, 2, 3, 1],
                                   "timestamp": hours + 1000}),
        "requests": pd.DataFrame({"request_id": range(4), "timestamp": hours, "user_id": [7, 8, 9, 7],
                                  "tab": ["home", "home", "search", "home"]}),
        "candidates": pd.DataFrame({"request_id": np.repeat(range(4), 2), "item_id": [1, 2, 2, 3, 3, 1, 1, 2]}),
    }  # fmt: skip
    return write_dataset(tmp_path / "data", TOML, tables)


@pytest.fixture
def service():
    """Takes clicks, refusing the first request as busy."""
    bodies, busy = [], [True]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = 429 if busy.pop() else 200
            busy.append(False)
            if status == 200:
                bodies.append(json.loads(body))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_clicks_and_questions_go_out_when_their_time_has_come(dataset, service, tmp_path, monkeypatch):
    url, bodies = service
    asked = []

    class Client:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def rank(self, user, items, context):
            asked.append((user, items, context))

    monkeypatch.setattr("serving.rest.RankClient", Client)
    monkeypatch.setattr(up_replay, "STEP", 0.01)
    clock = Clock(ORIGIN, tmp_path / "clock")
    moments = iter([0.0, 1.0, 1.5, 2.5, 4.0])
    monkeypatch.setattr(clock, "now", lambda: ORIGIN + int(next(moments) * HOUR))
    # What was before the beginning is neither sent nor asked; the click of hour 1 is not sent at hour 1 itself.
    assert feed(dataset, clock, url, "", threading.Event()) == (3, 3)
    assert [body["user_id"] for body in bodies] == [[8], [9], [7]]
    assert bodies[0] == {"user_id": [8], "item_id": [2], "time": [ORIGIN + HOUR + 1000]}
    assert asked == [(8, [2, 3], {"tab": "home"}), (9, [3, 1], {"tab": "search"}), (7, [1, 2], {"tab": "home"})]


def test_a_stop_ends_it(dataset, service, tmp_path):
    stop = threading.Event()
    stop.set()
    url, _ = service
    assert feed(dataset, Clock(ORIGIN, tmp_path / "clock"), url, url, stop) == (0, 0)


def test_a_log_without_candidates_asks_nothing(dataset):
    (dataset / "candidates.parquet").unlink()
    assert list(up_replay._questions(Dataset(dataset), ORIGIN)) == []
