"""A log's days once more on the live system, a thousand times as fast: the clock that all parts see, and who clicks."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ranking.atomic import atomic_file
from ranking.data.tables import Dataset
from ranking.errors import UserError

__all__ = ["Arrivals", "Clock", "backfill_before", "enough_seeds", "feed", "refresh_by"]

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


def enough_seeds(timeline: Any, min_seeds: int) -> dict[Any, int]:
    """Item id -> ms, when its `min_seeds`-th user first clicked it; items that have fewer are left out."""
    user, item, time_ms, _ = timeline.seed_events()
    by = np.lexsort((time_ms, user, item))
    first = np.append(True, (np.diff(item[by]) != 0) | (np.diff(user[by]) != 0))[: len(by)]  # of a user on an item
    by = by[first]
    by = by[np.lexsort((time_ms[by], item[by]))]
    starts = np.searchsorted(item[by], item[by])
    enough = by[np.arange(len(by)) - starts == min_seeds - 1]
    return dict(zip(timeline.item_ids[item[enough]].tolist(), time_ms[enough].tolist(), strict=True))


class Arrivals:
    """How long items waited for their similarity: from the user who made enough seeds to tables that have it.

    Args:
        ready: item id -> ms, as `enough_seeds` says.
        since: int, ms. Items that had enough before are left out.
    """

    def __init__(self, ready: Mapping[Any, int], since: int) -> None:
        self._ready = {item: moment for item, moment in ready.items() if moment >= since}
        self._ticks: list[int] = []
        self._served: dict[Any, tuple[int, int]] = {}

    def look(self, similar: Iterable[Any], tick: int, published: int) -> None:
        """Tables as of `tick` were published, ms of simulated time, with a similarity of these items."""
        self._ticks.append(tick)
        for item in similar:
            if item in self._ready:
                self._served.setdefault(item, (tick, published))

    def refreshes(self) -> list[int]:
        """How many refreshes each took that has its similarity: 1 where the next one did."""
        found = []
        for item, (tick, _) in self._served.items():
            found.append(sum(self._ready[item] < other <= tick for other in self._ticks))
        return found

    def told(self, min_seeds: int, speed: float) -> str:
        """In a sentence."""
        waits = [(published - self._ready[item]) / 1000 for item, (_, published) in self._served.items()]
        if not waits:
            return f"No item gained its {min_seeds}th seed and a similarity meanwhile."
        taken = self.refreshes()
        within = f"{sum(count <= 1 for count in taken):,} of {len(taken):,}"
        return (
            f"{within} items had their similarity at the first refresh after their {min_seeds}th seed, the last one "
            f"at number {max(taken)}. Tables with it came out after {np.median(waits) / speed:.1f} s (median; at most "
            f"{max(waits) / speed:.1f} s), which at {speed:,g}x are {np.median(waits) / 3600:.1f} h of the log."
        )


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
        every: float, simulated seconds. Where it is less than a second by the real clock, it is a second; a refresh
            that takes longer is followed by the next one at once.
        name: str. The model's name.
        host: str. Of the metrics.
        port: int. Likewise.
        stop: Event. Set, it ends the refresh that runs after the step in hand.
    """
    import pandas as pd

    from lookalike.clicklog import ClickLog
    from lookalike.seeds import SeedStore
    from ranking.refresh import Refreshed, Refresher
    from ranking.refresh_metrics import seed_metrics, serve_metrics
    from ranking.run import load_run
    from ranking.timeline import Timeline

    class Simulated(Refresher):
        similar = pd.Index([])

        def once(self, now: int | None = None) -> Refreshed:
            return super().once(clock.now() if now is None else now)

        def _cluster(self, done: Refreshed, state: Any, order: np.ndarray) -> None:
            pause, self.every = self.every, every  # the time that it would have had, or items would wait for another
            try:
                super()._cluster(done, state, order)
            finally:
                self.every = pause

        def _publish(self, done: Refreshed, state: Any) -> None:
            super()._publish(done, state)
            self.similar = self._table.item_ids[self._table.similar(self.min_seeds)]

    loaded = load_run(run)
    few = loaded.schema.min_seeds
    arrivals = Arrivals(enough_seeds(Timeline(Dataset(data)), few), clock.origin)
    with ClickLog(log, write=False) as opened:
        store = SeedStore()
        refresher = Simulated(
            loaded,
            models,
            store,
            opened,
            name=name,
            data=data,
            min_seeds=few,
            every=max(SHORTEST, every / clock.speed),
        )

        def look(done: Refreshed | None) -> None:
            if done is not None and done.version is not None:
                arrivals.look(refresher.similar, done.tick, clock.now())

        with refresher:
            refresher.stop = stop
            look(refresher.once())  # whoever asks for the metrics starts the clock
            with serve_metrics(lambda: refresher.metrics.text() + seed_metrics(store), host, port):
                while clock.now() == clock.origin and not stop.wait(STEP):  # nothing new to publish
                    pass
                refresher.run(stop, look)
    print(arrivals.told(few, clock.speed), flush=True)
