"""A log's days once more on the live system, a thousand times as fast: the clock that all parts see, and who clicks."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ranking.atomic import atomic_file
from ranking.data.tables import Dataset
from ranking.errors import UserError

__all__ = ["Clock", "backfill_before", "feed", "refresh_by"]

STEP = 0.2  # seconds between two looks at the clock
MOST = 5_000  # clicks of a request
QUESTIONS = 20  # asked at a step, at most
SHORTEST = 1.0  # seconds between two refreshes, whatever the speed


class Clock:
    """Simulated time, the same in all processes: it stands at `origin` until `start`, and then goes fast.

    Args:
        origin: int, ms. In simulated time.
        file: str or Path. Holds the real moment of the start, once it has come.
        speed: float. Defaults to `1000.0`.
    """

    def __init__(self, origin: int, file: str | Path, speed: float = 1000.0) -> None:
        if not speed > 0:
            raise UserError(f"`--speed` should be positive. Received: {speed}.")
        self.origin, self.speed = origin, speed
        self._file = Path(file)
        self._started: float | None = None

    def start(self) -> None:
        """Lets it go, everywhere. Later calls change nothing."""
        if not self._file.exists():
            with atomic_file(self._file) as temporary:
                temporary.write_text(repr(time.time()))

    def now(self) -> int:
        """Simulated ms since the epoch."""
        if self._started is None and self._file.exists():
            self._started = float(self._file.read_text())
        seconds = 0.0 if self._started is None else max(0.0, time.time() - self._started)
        return self.origin + int(seconds * 1000 * self.speed)

    def note(self) -> str:
        """The moment, for a screen."""
        moment = datetime.fromtimestamp(self.now() / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        return f"replay {moment}, {self.speed:,g}x"

    def words(self) -> list[str]:
        """As arguments of the hidden command."""
        return ["--origin", str(self.origin), "--clock", str(self._file), "--speed", repr(self.speed)]


def backfill_before(log: Path, data: Path, before: int) -> int:
    """Appends the dataset's seed events before a moment to a log; how many."""
    from lookalike.clicklog import ClickLog
    from ranking.refresh_seeds import backfill
    from ranking.timeline import Timeline

    timeline = Timeline(Dataset(data))
    with ClickLog(log, user_ids=timeline.schema.user_id, item_ids=timeline.schema.item_id) as opened:
        return backfill(opened, timeline, before=before)


def feed(data: Path, clock: Clock, clicks: str, ranking: str, stop: threading.Event) -> tuple[int, int]:
    """Sends each click of a dataset when its time has come, and asks what its requests asked, until the log ends.

    Args:
        data: Path. The dataset.
        clock: Clock.
        clicks: str. Where clicks are sent to.
        ranking: str. The server's REST address.
        stop: Event. Set, it ends before the log does.

    Returns:
        Clicks sent, requests answered.
    """
    from ranking.timeline import Timeline
    from serving.errors import ServingError
    from serving.rest import RankClient

    dataset = Dataset(data)
    timeline = Timeline(dataset)
    user, item, time_ms, order = timeline.seed_events()
    by = np.lexsort((order, time_ms))
    by = by[time_ms[by] >= clock.origin]
    users, items = (ids[rows[by]] for ids, rows in ((timeline.user_ids, user), (timeline.item_ids, item)))
    times = time_ms[by]
    end = int(max(timeline.time.max(), times.max(initial=0)))
    sent = answered = 0
    questions = _questions(dataset, clock.origin)
    waiting = next(questions, None)
    with RankClient(ranking, timeout=1.0, retries=0) as client:
        while not stop.wait(STEP):
            now = clock.now()
            until = int(np.searchsorted(times, now))
            while sent < until and not stop.is_set():
                some = slice(sent, min(until, sent + MOST))
                columns = {
                    "user_id": users[some].tolist(),
                    "item_id": items[some].tolist(),
                    "time": times[some].tolist(),
                }
                if _send(clicks, columns, stop):
                    sent = some.stop
            asked = 0
            while waiting is not None and waiting[0] < now:
                if asked < QUESTIONS and not stop.is_set():
                    asked += 1
                    try:
                        client.rank(waiting[1], waiting[2], context=waiting[3])
                        answered += 1
                    except (ServingError, OSError):  # the server counts its refusals; a replay goes on
                        pass
                waiting = next(questions, None)
            if now > end:
                break
    return sent, answered


def _questions(dataset: Dataset, origin: int) -> Iterator[tuple[int, Any, list[Any], dict[str, Any]]]:
    """Time, user, items and context of the logged requests; none where their candidates were not logged."""
    if not dataset.has("candidates"):
        return
    requests = dataset.requests.sort_values("timestamp", kind="stable")
    requests = requests[requests["timestamp"] >= origin]
    context = [feature.name for feature in dataset.schema.side("context")]
    candidates = dataset.candidates
    items = candidates["item_id"].to_numpy()
    ids = candidates["request_id"].to_numpy()
    rows = np.argsort(ids, kind="stable")
    ids = ids[rows]
    for request in requests.to_dict("records"):
        low, high = (int(np.searchsorted(ids, request["request_id"], side)) for side in ("left", "right"))
        told = {name: request[name] for name in context}
        yield int(request["timestamp"]), request["user_id"], items[rows[low:high]].tolist(), told


def _send(url: str, columns: dict[str, list[Any]], stop: threading.Event) -> bool:
    """One request of clicks, again while the log is busy or away; whether it was acknowledged."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while not stop.is_set():
        try:
            with opener.open(url, json.dumps(columns).encode(), timeout=10):
                return True
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503):
                raise UserError(f"{url} refused clicks: {error.read().decode(errors='replace')[:300]}") from None
        except OSError:
            pass
        stop.wait(0.5)
    return False


def refresh_by(
    clock: Clock,
    run: Path,
    models: Path,
    log: Path,
    data: Path,
    *,
    every: float,
    name: str,
    host: str,
    port: int,
    stop: threading.Event,
) -> None:
    """Refreshes by a simulated clock, as `seedrank refresh` does by the real one.

    Args:
        clock: Clock.
        run: Path.
        models: Path.
        log: Path.
        data: Path.
        every: float, simulated seconds. Where it is less than a second by the real clock, it is a second.
        name: str. The model's name.
        host: str. Of the metrics.
        port: int. Likewise.
        stop: Event. Set, it ends the refresh that runs after the step in hand.
    """
    from lookalike.clicklog import ClickLog
    from lookalike.seeds import SeedStore
    from ranking.refresh import Refreshed, Refresher
    from ranking.refresh_metrics import seed_metrics, serve_metrics
    from ranking.run import load_run

    class Simulated(Refresher):
        def once(self, now: int | None = None) -> Refreshed:
            return super().once(clock.now() if now is None else now)

    loaded = load_run(run)
    with ClickLog(log, write=False) as opened:
        store = SeedStore()
        refresher = Simulated(
            loaded,
            models,
            store,
            opened,
            name=name,
            data=data,
            min_seeds=loaded.schema.min_seeds,
            every=max(SHORTEST, every / clock.speed),
        )
        with refresher, serve_metrics(lambda: refresher.metrics.text() + seed_metrics(store), host, port):
            refresher.run(stop)
