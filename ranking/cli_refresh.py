"""The commands that keep what is served as of now: `refresh`, and `users export`."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ranking.data.times import parse_tick
from ranking.errors import UserError
from ranking.progress import Bars, quiet

if TYPE_CHECKING:
    from lookalike.clicklog import ClickLog
    from lookalike.seeds import SeedStore
    from lookalike.snapshots import Snapshots
    from ranking.refresh import Refreshed, Refresher
    from ranking.run import Run

__all__ = ["add_to"]

users_app = typer.Typer(help="The users of a run.", no_args_is_help=True)
RunDir = Annotated[Path, typer.Option("--run", help="The run folder that the live version was exported from.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
SNAPSHOT_EVENTS = 2_000_000  # a restart replays at most so many, in a second or two


def add_to(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    app.command()(refresh)
    app.add_typer(users_app, name="users")


def refresh(
    run: RunDir,
    models: Annotated[Path, typer.Option(help="The folder of models; new versions are published in it.")],
    log: Annotated[Path, typer.Option(help="The click log, as `seedrank ingest` writes it.")],
    data: Annotated[
        Path | None, typer.Option(help="The dataset, whose files may be replaced meanwhile; else the run's own.")
    ] = None,
    every: Annotated[str, typer.Option(help="How often, as 30s, 5m or 1h.")] = "5m",
    once: Annotated[bool, typer.Option("--once", help="One refresh, and what it did.")] = False,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="First append the dataset's seed events to the log.")
    ] = False,
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without clicks that the log no longer holds, nor a snapshot.")
    ] = False,
    min_seeds: Annotated[
        int | None, typer.Option(help="Items with fewer have no similarity; else 100, or the run's if that is more.")
    ] = None,
    newest: Annotated[int, typer.Option(help="Seeds of an item that are clustered, the newest by time.")] = 20_000,
    byte_budget: Annotated[
        int | None, typer.Option(help="Bytes for all seeds, 16 each; else as many as there are.", min=16)
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(help="A seed store on Redis or Valkey, as rediss://USER@HOST:6379/0.", envvar="SEEDRANK_REDIS"),
    ] = None,
    partition: Annotated[str, typer.Option(help="With --redis: the log's own name in the store.")] = "0",
    cohort: Annotated[
        str | None,
        typer.Option(help="A column of the users table (day of registration): no cohort outweighs the others."),
    ] = None,
    max_cohort_share: Annotated[float, typer.Option(help="What a cohort may weigh of an item's seeds.")] = 0.1,
    host: Annotated[str, typer.Option(help="Address of /metrics and /healthz.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of /metrics and /healthz; 0 takes a free port.", min=0, max=65535)] = 8601,
    as_json: Json = False,
) -> None:
    """Publishes the live version again and again, with tables as of now; the graph and its weights stay.

    Clicks become seeds, and items whose seeds changed get new centroids, the most changed first. Users, items,
    behaviours and statistics are read from the dataset's files where these changed: put new ones in their place by
    renaming. New items and users are answered from the next version on, items with --min-seeds clickers by similarity.

    The log has to know the clicks before it: once, with ingest stopped,

      seedrank refresh --run run --models models --log clicks --data data --backfill --once

      seedrank refresh --run run --models models --log clicks --data data --every 5m

    What is left out, and when: clustering takes at most 60 % of the interval, and items beyond that come first the next
    time. A refresh that is due while one runs is skipped. While the model is pinned (`seedrank rollback`) nothing is
    published. An item whose clustering failed keeps its centroids. A user whom the users table lacks is counted among
    the seeds of what he clicked; his vector comes with his row.

    Against bought accounts, name what they have in common: no day of registration outweighs a tenth of an item's seeds.

      seedrank refresh --run run --models models --log clicks --data data --cohort registered --max-cohort-share 0.1

    Watch in /metrics: seedrank_refresh_table_age_seconds, failures_total, oldest_waiting_rounds, skipped_ticks_total.

    With --redis the seeds lie on a server that the logs of several machines fill (`seedrank seeds`), and no snapshots
    are written. While the server is away nothing is published, and the table's age rises.

    SIGTERM and Ctrl-C end it after the step in hand; nothing is half-written.
    """
    seconds = _seconds(every)
    quiet()
    console = Console(stderr=True)
    taken_in = 0
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(_stopping())
        with Bars(console) as bars:

            def replayed(done: int, total: int) -> None:
                nonlocal taken_in
                taken_in = done
                bars("clicks replayed", done, total)

            loaded = _load(run, bars)
            opened = stack.enter_context(_log(log, loaded, data, write=backfill, bars=bars))
            store: Any
            if redis is None:
                store, snapshots = _store(opened, byte_budget, accept_loss, replayed, stack)
            else:
                from ranking.ingest_seeds import open_shared

                snapshots = None
                store = open_shared(
                    redis,
                    opened,
                    partition=partition,
                    byte_budget=byte_budget,
                    accept_loss=accept_loss,
                    progress=replayed,
                )
        from ranking.refresh import Refresher

        refresher = Refresher(
            loaded,
            models,
            store,
            opened,
            name=name,
            data=data,
            min_seeds=min_seeds,
            newest=newest,
            every=seconds,
            cohort=cohort,
            max_cohort_share=max_cohort_share,
            taken_in=taken_in,
        )
        saved = int(snapshots.paths()[0].stem) if snapshots and snapshots.paths() else 0  # the offset of the newest one
        stack.enter_context(refresher)
        if once:
            refresher.stop = stop
            done = refresher.once()
            _show(done, as_json)
            _save(store, snapshots, saved, 0)
            return
        port = stack.enter_context(_metrics(refresher, host, port))
        console.print(
            f"Refreshing every {every}; metrics on http://{host}:{port}/metrics. Ctrl-C stops.", highlight=False
        )

        def after(done: "Refreshed | None") -> None:
            nonlocal saved
            if done is not None:
                _say(done, as_json)
            saved = _save(store, snapshots, saved, SNAPSHOT_EVENTS)

        refresher.run(stop, after)
        _save(store, snapshots, saved, 0)
        console.print("Stopped: what was published stays.")


@users_app.command()
def export(
    run: RunDir,
    out: Annotated[Path | None, typer.Option(help="The Parquet file to write.")] = None,
    redis: Annotated[
        str | None, typer.Option(help="Redis or Valkey, as redis://localhost:6379/0: keys seedrank:user:ID.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The dataset as it is now; without it the users are those of the run.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Writes every user's vector for a key-value store: user_id, user_vector, embedding_space_id.

    For more users than a model should hold: `seedrank export` refuses a table of users above --user-table-limit
    (1 GiB), and --without-users leaves it out. A gateway then looks the vector up and sends it with the request:

      seedrank users export --run run --out users.parquet

      seedrank users export --run run --data data --redis redis://localhost:6379/0

      signature rank_embedding: user_vector [1, m], embedding_space_id [1], item_id [N], ...

    Such a user has his own similarity; the other features of the score are an unknown user's, as rank_embedding brings
    his vector only. A vector of another embedding space is refused by the model: export again when a run with a new
    user space is live. In Redis a value is the space (int64) and the vector (float32), little-endian:

      ranking.users_export.unpacked(redis.get("seedrank:user:42"))
    """
    if out is None and redis is None:
        raise UserError("Nowhere to write: name a file (--out), a server (--redis), or both.")
    quiet()
    with Bars(Console(stderr=True)) as bars:
        loaded = _load(run, bars)
        from ranking.exported.ranker import space_id
        from ranking.refresh_tables import LiveTables
        from ranking.users_export import users_to_parquet, users_to_redis

        state = loaded.state if data is None else LiveTables(loaded, data).at(int(time.time() * 1000))
        if out is not None:
            users_to_parquet(loaded, state, out, overwrite=overwrite, progress=bars)
        if redis is not None:
            users_to_redis(loaded, state, redis, progress=bars)
    found = {"users": len(state.user_ids), "dimensions": state.user_vectors.shape[1]}
    found |= {"embedding_space_id": str(space_id(loaded)), "out": out and str(out)}
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(
            f"{found['users']:,} users of {found['dimensions']} numbers, embedding space {found['embedding_space_id']}."
        )


def _seconds(every: str) -> float:
    try:
        return parse_tick(every) / 1000
    except ValueError as error:
        raise UserError(f"`--every` {error}. Received: {every!r}.") from None


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set while the block runs; a second Ctrl-C does not wait."""
    stop = threading.Event()

    def handle(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _load(run: Path, bars: Bars) -> "Run":
    bars("loading the run", 0, 1)
    from ranking.run import load_run

    loaded = load_run(run)
    bars("loading the run", 1, 1)
    return loaded


@contextlib.contextmanager
def _log(folder: Path, run: "Run", data: Path | None, *, write: bool, bars: Bars) -> Iterator["ClickLog"]:
    """The log, opened to be read; before that filled from the dataset where asked."""
    from lookalike.clicklog import ClickLog, ClickLogError

    user, item = run.schema.user_id, run.schema.item_id
    try:
        if write:
            from ranking.data.tables import Dataset
            from ranking.refresh_seeds import backfill
            from ranking.timeline import Timeline

            timeline = Timeline(Dataset(run.info["dataset"] if data is None else data))
            with ClickLog(folder, user_ids=user, item_ids=item) as log:
                total = len(timeline.seed_events()[0])
                bars("seeds of the dataset", 0, total)
                bars("seeds of the dataset", backfill(log, timeline), total)
        opened = ClickLog(folder, user_ids=user, item_ids=item, write=False)
    except ClickLogError as error:
        raise UserError(str(error)) from None
    with opened:
        yield opened


def _store(
    log: "ClickLog",
    byte_budget: int | None,
    accept_loss: bool,
    progress: Callable[[int, int], None],
    stack: contextlib.ExitStack,
) -> "tuple[SeedStore, Snapshots]":
    from lookalike.snapshots import SnapshotError, Snapshots, open_store

    snapshots = Snapshots(log.folder / "seeds")
    try:
        stack.enter_context(snapshots.held())  # as long as the store is in use
        store = open_store(log, snapshots, byte_budget=byte_budget, accept_loss=accept_loss, progress=progress)
    except (SnapshotError, RuntimeError) as error:
        raise UserError(str(error)) from None
    return store, snapshots


def _save(store: "SeedStore", snapshots: "Snapshots | None", saved: int, events: int) -> int:
    """Writes a snapshot where more than so many events came since the last one; the offset of the last one."""
    if snapshots is None or store.offset - saved <= events:  # a shared store keeps itself
        return saved
    try:
        snapshots.save(store)
    except OSError as error:
        Console(stderr=True).print(f"{snapshots.folder}: no snapshot ({error}); a restart replays more.", style="red")
        return saved
    return store.offset


def _metrics(refresher: "Refresher", host: str, port: int) -> contextlib.AbstractContextManager[int]:
    from ranking.refresh_metrics import seed_metrics, serve_metrics

    return serve_metrics(lambda: refresher.metrics.text() + seed_metrics(refresher.store), host, port)


def _show(done: "Refreshed", as_json: bool) -> None:
    from ranking.refresh_report import refreshed_table

    if as_json:
        print(json.dumps(done.to_dict()))
    else:
        Console().print(refreshed_table(done))


def _say(done: "Refreshed", as_json: bool) -> None:
    from ranking.refresh_report import refreshed_line

    if as_json:
        print(json.dumps(done.to_dict()), flush=True)
    else:
        Console().print(refreshed_line(done), highlight=False, soft_wrap=True)
