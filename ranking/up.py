"""Server, ingest and refresh together on one machine: three processes, one command, one screen."""

import contextlib
import math
import signal
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike.clicklog_segments import segments
from ranking.errors import UserError
from ranking.up_replay import Clock
from ranking.up_screen import Screen
from ranking.up_status import Status, Watch
from ranking.up_supervisor import Supervisor, Task
from serving.publish import version_content, version_folders, versions

__all__ = ["Plan", "run_up"]

CHILD = ("-m", "ranking.up_child")  # seedrank
LOOK = 0.2  # seconds between two looks at the processes
SHOW = 1.0  # and between two statuses
GRACE = {"ingest": 30.0, "refresh": 120.0, "server": 45.0}  # seconds to end: a request, a step, what is in flight


@dataclass(frozen=True)
class Plan:
    """What is run, and where it listens.

    Args:
        run: Path. The run that the live version was exported from, or is when there is none.
        models: Path. The folder of models.
        log: Path. The click log.
        data: Path. The dataset whose tables are read again where they changed.
        every: str. Between two refreshes. Defaults to `"5m"`.
        name: str. The model's name. Defaults to `"seedrank"`.
        host: str. Address that all listen on. Defaults to `"127.0.0.1"`.
        ingest_port: int. Defaults to `8600`; here and in the next ones 0 takes a free port.
        refresh_port: int. Of the refresh's metrics. Defaults to `8601`.
        rest_port: int. Defaults to `8501`.
        grpc_port: int. Defaults to `8500`.
        ingest_options: sequence of str. More for `seedrank ingest`. Defaults to none.
        refresh_options: sequence of str. More for `seedrank refresh`. Defaults to none.
        speed: float or `None`. The dataset's log from the run's watermark on is replayed so many times as fast as it
            happened, into new folders. Defaults to `None`: nothing is replayed.
    """

    run: Path
    models: Path
    log: Path
    data: Path
    every: str = "5m"
    name: str = "seedrank"
    host: str = "127.0.0.1"
    ingest_port: int = 8600
    refresh_port: int = 8601
    rest_port: int = 8501
    grpc_port: int = 8500
    ingest_options: Sequence[str] = ()
    refresh_options: Sequence[str] = ()
    speed: float | None = None

    def __post_init__(self) -> None:
        for option, folder, file in (("run", self.run, "run.json"), ("data", self.data, "dataset.toml")):
            if not (folder / file).is_file():
                raise UserError(f"`--{option}` should be a folder with {file}. Received: {folder}.")
        ports = [port for port in self._ports().values() if port]
        if len(set(ports)) < len(ports):
            raise UserError(f"the ports should differ. Received: {', '.join(map(str, self._ports().values()))}.")
        if self.speed is not None:
            if not 0 < self.speed < math.inf:
                raise UserError(f"`--speed` should be positive. Received: {self.speed:g}.")
            for option, folder in (("models", self.models), ("log", self.log)):
                if folder.is_dir() and any(folder.iterdir()):
                    raise UserError(f"`--{option}` should be a new folder for a replay. Received: {folder}.")

    def _ports(self) -> dict[str, int]:
        return {
            "--ingest-port": self.ingest_port,
            "--refresh-port": self.refresh_port,
            "--rest-port": self.rest_port,
            "--grpc-port": self.grpc_port,
        }

    def ports(self) -> tuple[int, ...]:
        """Ingest, refresh, REST and gRPC: a child that is started again listens where it did."""
        with contextlib.ExitStack() as stack:  # all are held until all are chosen
            found = []
            for option, port in self._ports().items():
                held = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET))
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    held.bind((self.host, port))
                except (OSError, OverflowError) as error:
                    why = error.strerror if isinstance(error, OSError) else str(error)
                    raise UserError(
                        f"`{option}` should be a free port of {self.host}; 0 takes one. Received: {port} ({why})."
                    ) from None
                found.append(held.getsockname()[1])
        return tuple(found)


def run_up(plan: Plan, screen: Callable[[Sequence[tuple[str, str]]], Screen]) -> bool:
    """Runs until Ctrl-C or SIGTERM, then drains: ingest, refresh, server. A second Ctrl-C ends them at once.

    A replay ends with its log.

    Args:
        plan: Plan.
        screen: callable. Makes the screen of the addresses (name, address).

    Returns:
        bool. Whether all ended by themselves.

    Raises:
        UserError: a part can not do what it was asked to.
    """
    ingest, refresh, rest, grpc = plan.ports()
    at = f"[{plan.host}]" if ":" in plan.host else plan.host
    where = [
        ("clicks", f"http://{at}:{ingest}/v1/clicks"),
        ("ranking", f"http://{at}:{rest}/v1/models/{plan.name}, gRPC {at}:{grpc}"),
    ]
    urls = {
        "ingest": f"http://{at}:{ingest}/metrics",
        "refresh": f"http://{at}:{refresh}/metrics",
        "server": f"http://{at}:{rest}/monitoring/prometheus/metrics",
    }
    with screen(where) as shown, _stops() as stops, tempfile.TemporaryDirectory(prefix="seedrank-") as own:
        for task in _first(plan):
            with Supervisor([task], say=shown.say) as supervisor:
                _run(supervisor, shown, Status, stops, note=lambda: "first start", until=supervisor.all_ready)
                if stops:
                    return supervisor.end(at_once=lambda: len(stops) > 1)
        clock = None if plan.speed is None else Clock(_watermark(plan), f"{own}/clock", plan.speed)
        # Each refresh prunes old versions: none should before the server has loaded its first, however long that takes.
        refreshed, served = _answers(urls["refresh"]), _answers(urls["server"])
        tasks = [
            Task("ingest", _ingest(plan, ingest), _answers(f"http://{at}:{ingest}/healthz"), GRACE["ingest"]),
            Task("refresh", _refresh(plan, refresh, clock), refreshed, GRACE["refresh"], after="server"),
            Task("server", _serve(plan, rest, grpc), served, GRACE["server"]),
        ]
        if clock is not None:
            words = [*CHILD, "replayed", "feed", "--data", str(plan.data), *clock.words()]
            words += ["--clicks", f"http://{at}:{ingest}/v1/clicks", "--ranking", f"http://{at}:{rest}"]
            tasks.insert(0, Task("replay", words, lambda: True, lasting=False))
        watch = Watch(urls, now=clock.now) if clock else Watch(urls)
        try:
            with Supervisor(tasks, say=shown.say) as supervisor:
                children = supervisor.children
                over = (lambda: children["replay"].state == "ended") if clock else (lambda: False)
                note = clock.note if clock else str
                _run(supervisor, shown, watch.read, stops, note=note, until=over, ready=clock.start if clock else None)
                last = watch.read()  # whoever has ended tells nothing
                show = _once_a_second(lambda: shown.show(children, last, "draining"))
                well = supervisor.end(at_once=lambda: len(stops) > 1, show=show)
                shown.show(children, last, "stopped")
                return well
        finally:
            watch.close()


def _first(plan: Plan) -> Iterator[Task]:
    """What has to be there before: a version to serve, and a log that knows what the run was trained on."""
    if not versions(plan.models / plan.name):
        words = [*CHILD, "export", "--run", str(plan.run), "--models", str(plan.models), "--name", plan.name]
        yield Task("export", words, lambda: False, lasting=False)
    if plan.speed is not None:
        words = [*CHILD, "replayed", "backfill", "--log", str(plan.log), "--data", str(plan.data)]
        yield Task("backfill", [*words, "--origin", str(_watermark(plan))], lambda: False, lasting=False)
    elif not (plan.log.is_dir() and segments(plan.log)):
        words = _refresh(plan, 0, None)
        yield Task("backfill", [*words, "--backfill", "--once"], lambda: False, lasting=False)


def _watermark(plan: Plan) -> int:
    """Of the live version: a refresh never goes back behind it."""
    base = plan.models / plan.name
    content = version_content(version_folders(base)[versions(base)[-1]])
    return int(content.facts["seed_watermark"])


def _ingest(plan: Plan, port: int) -> list[str]:
    words = [
        *CHILD,
        "ingest",
        "--log",
        str(plan.log),
        "--data",
        str(plan.data),
        "--host",
        plan.host,
        "--port",
        str(port),
    ]
    return [*words, *plan.ingest_options]


def _refresh(plan: Plan, port: int, clock: Clock | None) -> list[str]:
    words = ["--run", str(plan.run), "--models", str(plan.models), "--log", str(plan.log), "--data", str(plan.data)]
    words += ["--every", plan.every, "--name", plan.name, "--host", plan.host, "--port", str(port)]
    if clock is not None:
        return [*CHILD, "replayed", "refresh", *words, *clock.words()]
    return [*CHILD, "refresh", *words, *plan.refresh_options]


def _serve(plan: Plan, rest: int, grpc: int) -> list[str]:
    return [*CHILD, "serve", str(plan.models), "--host", plan.host, "--rest-port", str(rest), "--grpc-port", str(grpc)]


def _run(
    supervisor: Supervisor,
    shown: Screen,
    status: Callable[[], Status],
    stops: Sequence[int],
    *,
    note: Callable[[], str],
    until: Callable[[], bool],
    ready: Callable[[], None] | None = None,
) -> None:
    """Watches and shows until a stop, or until something is done."""
    show = _once_a_second(lambda: shown.show(supervisor.children, status(), note()))
    while not stops and not until():
        supervisor.look()
        if ready is not None and supervisor.all_ready():
            ready()
        show()
        time.sleep(LOOK)


def _once_a_second(show: Callable[[], None]) -> Callable[[], None]:
    told = 0.0

    def maybe() -> None:
        nonlocal told
        if time.monotonic() - told >= SHOW:
            told = time.monotonic()
            show()

    return maybe


@contextlib.contextmanager
def _stops() -> Iterator[list[int]]:
    """The signals to stop that have come."""
    found: list[int] = []
    kept = {
        number: signal.signal(number, lambda received, _: found.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield found
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _answers(url: str) -> Callable[[], bool]:
    """Whether an address answers, and well."""

    def asked() -> bool:
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(url, timeout=1.0) as reply:
                return bool(reply.status == 200)
        except (OSError, ValueError):
            return False

    return asked
