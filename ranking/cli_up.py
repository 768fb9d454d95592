"""The commands that run everything on one machine, and that say what it is worth."""

import json
import signal
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking.errors import UserError

__all__ = ["add_to"]

RunDir = Annotated[Path, typer.Option("--run", help="The run folder that `seedrank train` wrote.")]
DataDir = Annotated[Path, typer.Option("--data", help="The dataset folder (with dataset.toml).")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    app.command()(up)
    app.command()(freshness)
    app.command(hidden=True)(replayed)


def up(
    run: RunDir,
    models: Annotated[Path, typer.Option(help="The folder of models; the run is exported where it has no version.")],
    log: Annotated[Path, typer.Option(help="The click log; a new one first gets the dataset's seed events.")],
    data: Annotated[Path, typer.Option(help="The dataset, whose files may be replaced meanwhile (by renaming).")],
    every: Annotated[str, typer.Option(help="How often the tables are refreshed, as 30s, 5m or 1h.")] = "5m",
    min_seeds: Annotated[
        int | None, typer.Option(help="Items with fewer have no similarity; else 100, or the run's if that is more.")
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without clicks that the log no longer holds, nor a snapshot.")
    ] = False,
    tail: Annotated[
        list[Path] | None, typer.Option(help="A growing file of clicks (seedrank ingest); may be given again.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file with the token of ingest's admin verbs.")] = None,
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    host: Annotated[str, typer.Option(help="Address that all listen on.")] = "127.0.0.1",
    ingest_port: Annotated[int, typer.Option(help="For clicks; 0 takes a free port.", min=0, max=65535)] = 8600,
    refresh_port: Annotated[
        int, typer.Option(help="For the refresh's metrics; 0: a free one.", min=0, max=65535)
    ] = 8601,
    rest_port: Annotated[int, typer.Option(help="For ranking over REST; 0: a free one.", min=0, max=65535)] = 8501,
    grpc_port: Annotated[int, typer.Option(help="For ranking over gRPC; 0: a free one.", min=0, max=65535)] = 8500,
    replay: Annotated[
        bool, typer.Option("--replay", help="Replay the dataset's log from the run's watermark on, into new folders.")
    ] = False,
    speed: Annotated[float, typer.Option(help="How many times as fast as it happened a replay goes.")] = 1000.0,
    no_live: Annotated[bool, typer.Option("--no-live", help="Lines instead of a screen.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON each second on standard output.")] = False,
) -> None:
    """Server, ingest and refresh together: a click becomes a seed, and changes what is served at the next refresh.

    Three processes, `seedrank ingest`, `seedrank refresh` and `seedrank serve`, so that none disturbs another. One that
    dies is started again, after a pause that grows. None outlives this one. A first start exports the run and fills the
    log.

      seedrank up --run run --models models --log clicks --data data

      curl localhost:8600/v1/clicks -d '{"user_id": 7, "item_id": 42}'

      seedrank rank --user 7 --items 42,43

    Ctrl-C and SIGTERM drain: ingest answers what has come, the refresh ends after the step in hand, the server answers
    what is in flight; exit code 0. A second Ctrl-C does not wait.

    To see it work, replay the days after a run's training a thousand times as fast as they happened, here those of
    `seedrank demo`. At the end it says how many refreshes new items waited for their similarity:

      seedrank up --run run --models new-models --log new-clicks --data data --replay

    What that is worth, as a page with plots, in exact simulated time: `seedrank freshness`.
    """
    from ranking.up import Plan, run_up
    from ranking.up_screen import Screen

    _milliseconds(every)
    if replay and min_seeds is not None:
        raise UserError("`--min-seeds` should not be given with `--replay`, which takes the run's own.")
    ingest_options = [word for path in tail or () for word in ("--tail", str(path))]
    ingest_options += ["--token-file", str(token_file)] if token_file else []
    refresh_options = ["--accept-loss"] if accept_loss else []
    refresh_options += [] if min_seeds is None else ["--min-seeds", str(min_seeds)]
    plan = Plan(
        run=run,
        models=models,
        log=log,
        data=data,
        every=every,
        name=name,
        host=host,
        ingest_port=ingest_port,
        refresh_port=refresh_port,
        rest_port=rest_port,
        grpc_port=grpc_port,
        ingest_options=ingest_options,
        refresh_options=refresh_options,
        speed=speed if replay else None,
    )
    console = Console(stderr=True)
    well = run_up(plan, lambda where: Screen(console, live=not no_live, as_json=as_json, where=where))
    console.print("Stopped." if well else "Stopped, and not all of it in good order.")
    raise typer.Exit(0 if well else 1)


def freshness(
    run: RunDir,
    data: DataDir,
    out: Annotated[Path, typer.Option(help="The page to write (HTML).")],
    every: Annotated[str, typer.Option(help="How often the tables are refreshed, as 5m or 1h.")] = "5m",
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates over users.", min=20)] = 200,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a sentence.")] = False,
) -> None:
    """What refreshing tables is worth on a log: how soon new items have a similarity, and how well they are ranked.

    The days after the run's training once more, in simulated time: clicks go through the click log, the seed store and
    the refresher, and every impression is scored with the tables that would have been served: refreshed, exported once
    a tick (a day), or never again. Tables know what happened strictly before them; an impression is judged with those
    that were there when it was shown. The page plots the time from birth to a similarity, and the AUC before and after
    it; on a simulated log also by the true chances. The items table needs the column `born`.

      seedrank freshness --run run --data data --every 5m --out freshness.html

    A refresh of a small log takes a fraction of a second, and five days at 5m are 1,440 of them; --every 1h is twelve
    times as fast.
    """
    from ranking.atomic import refuse_file
    from ranking.progress import Bars, quiet

    seconds = _milliseconds(every) // 1000
    refuse_file(out, overwrite)
    quiet()
    with Bars(Console(stderr=True)) as bars, tempfile.TemporaryDirectory(prefix="seedrank-") as work:
        bars("loading TensorFlow", 0, 1)
        from ranking.data.tables import Dataset
        from ranking.freshness import measure_freshness
        from ranking.report.freshness import verdict, write_page
        from ranking.run import load_run

        bars("loading TensorFlow", 1, 1)
        found = measure_freshness(
            load_run(run), Dataset(data), work, every=seconds, replicates=replicates, progress=bars
        )
        write_page(found, out)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        Console().print(f"{verdict(found)}\nWrote {out}.", highlight=False)


def replayed(
    part: Annotated[str, typer.Argument()],
    data: DataDir,
    origin: Annotated[int, typer.Option()],
    clock: Annotated[Path, typer.Option()] = Path(),
    speed: Annotated[float, typer.Option()] = 1000.0,
    clicks: Annotated[str, typer.Option()] = "",
    ranking: Annotated[str, typer.Option()] = "",
    run: Annotated[Path, typer.Option()] = Path(),
    models: Annotated[Path, typer.Option()] = Path(),
    log: Annotated[Path, typer.Option()] = Path(),
    every: Annotated[str, typer.Option()] = "5m",
    name: Annotated[str, typer.Option()] = "seedrank",
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 0,
) -> None:
    """The parts of `seedrank up --replay`: backfill, feed or refresh."""
    from ranking.up_replay import Clock, backfill_before, feed, refresh_by

    stop = threading.Event()

    def end(*_: Any) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    time = Clock(origin, clock, speed)
    if part == "backfill":
        from ranking.progress import quiet

        quiet()
        print(f"{backfill_before(log, data, origin):,} clicks before the replay")
    elif part == "feed":
        sent, answered = feed(data, time, clicks, ranking, stop)
        print(f"{sent:,} clicks sent, {answered:,} requests answered")
    elif part == "refresh":
        from ranking.progress import quiet

        quiet()
        seconds = _milliseconds(every) / 1000
        refresh_by(time, run, models, log, data, every=seconds, name=name, host=host, port=port, stop=stop)
    else:
        raise UserError(f"`part` should be backfill, feed or refresh. Received: {part!r}.")


def _milliseconds(every: str) -> int:
    from ranking.data.times import parse_tick

    try:
        return parse_tick(every)
    except ValueError as error:
        raise UserError(f"`--every` {error}. Received: {every!r}.") from None
