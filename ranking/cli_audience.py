"""The commands about single users and items: who is like whom, and forgetting a user."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table

from ranking.errors import UserError
from ranking.progress import Bars, quiet

__all__ = ["add_to"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]


def retrieve(
    run: Annotated[Path, typer.Option("--run", help="The run folder that `seedrank train` wrote.")],
    item: Annotated[str | None, typer.Option(help="An item's id: find its best users.", metavar="ID")] = None,
    user: Annotated[str | None, typer.Option(help="A user's id: find the best items.", metavar="ID")] = None,
    k: Annotated[int, typer.Option("-k", help="How many at most.", min=1)] = 10,
    threshold: Annotated[
        float | None, typer.Option(help="Leave out what is less similar: the exposure gate.", min=-1, max=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """The users most like an item's seeds, or the items whose seeds a user is most like: exact, over all of the run.

    Seeds are among the users. Items below min_seeds have no similarity and are left out.
    """
    if (item is None) == (user is None):
        received = "neither" if item is None else "both"
        raise UserError(f"One of --item and --user should be given. Received: {received}.")
    quiet()
    with Bars(Console(stderr=True)) as bars:
        bars("loading the run", 0, 1)
        from ranking.retrieval import items_of_user, users_of_item
        from ranking.run import load_run

        loaded = load_run(run)
        bars("loading the run", 1, 1)
        if item is not None:
            rows = users_of_item(loaded, item, k, threshold=threshold)
        else:
            rows = items_of_user(loaded, str(user), k, threshold=threshold)
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    side = "user" if item is not None else "item"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(side, no_wrap=True)
    table.add_column("similarity", justify="right")
    for row in rows:
        table.add_row(str(row[f"{side}_id"]), f"{row['similarity']:.4f}")
    Console().print(table if rows else f"No {side} is similar enough.")


def forget(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    data: Annotated[
        Path | None, typer.Option(help="The dataset folder; the runs' centroids are then rebuilt without the user.")
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(help="A run folder; repeat for more.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A seed list or an audience (CSV, txt, Parquet); repeat for more.")
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="A click log, with the snapshots of its seeds; ingest and refresh have to be stopped."),
    ] = None,
    redis: Annotated[
        list[str] | None,
        typer.Option(help="A server with users' vectors (`seedrank users export`) or a shared seed store."),
    ] = None,
    models: Annotated[
        list[Path] | None, typer.Option(help="A folder of models: which versions hold the user? They stay.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: it cannot be undone.")] = False,
    as_json: Json = False,
) -> None:
    """Erases a user from a dataset, runs, a click log, and seed lists and audiences; later audiences leave him out.

    Each place changes whole or not at all, and is looked through again afterwards. Stopped in between? The same command
    does the rest. Versions that were exported before are not rewritten: export or refresh, and delete them. --models
    names those that hold the user, and those of a run that cannot be read, for they may.

      seedrank forget 712 --data data --run run --log clicks --models models --yes

    While `seedrank ingest` runs it can take the user's clicks back at once (POST /v1/forget), and erase them from the
    log (POST /v1/erase); then only `seedrank refresh` has to be stopped for this command.
    """
    named = (*([] if data is None else [data]), *(run or []), *(file or []), *(log or []))
    servers = [url.rpartition("@")[2] for url in redis or []]  # not the password
    places = [*map(str, named), *servers]
    if not places:
        raise UserError(
            "Nowhere to look: name a dataset (--data), runs (--run), lists (--file), click logs (--log) or servers "
            "(--redis)."
        )
    if not yes and not sys.stdin.isatty():
        raise UserError("This cannot be undone: pass --yes where nobody can be asked.")
    if not yes:
        typer.confirm(f"Erase user {user} from {', '.join(places)}? This cannot be undone.", abort=True, err=True)
    quiet()
    with Bars(Console(stderr=True)) as bars:
        bars("loading TensorFlow", 0, 1)
        from ranking.forget import forget as erase

        bars("loading TensorFlow", 1, 1)
        found = erase(
            user,
            data=data,
            runs=run or [],
            files=file or [],
            logs=log or [],
            redis=redis or [],
            models=models or [],
            progress=bars,
        )
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        Console().print(_forgotten(found))
    if found["remaining"]:
        raise typer.Exit(1)


def _forgotten(found: dict[str, Any]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("where", "what", "removed"):
        table.add_column(name, justify="right" if name == "removed" else "left", no_wrap=name != "where")
    places = [found["data"]] if found["data"] else []
    for place in (*places, *found["runs"], *found["logs"], *found["redis"]):
        for what, count in place["removed"].items() or [("was not in it", 0)]:
            table.add_row(place["path"], what, f"{count:,}")
    for place in found["files"]:
        table.add_row(place["path"], "rows", f"{place['removed']:,}")
    notes = [*(note for place in found["runs"] for note in place["notes"]), *found["notes"]]
    looked = found["data"] or found["runs"] or found["files"] or found["logs"]
    left = [f"Still there: {path}" for path in found["remaining"]]
    if looked and not left:
        left = ["Looked again: nothing of the user is left there."]
    versions = [
        f"{'May hold the user, cannot be read' if path in place['unreadable'] else 'Holds the user'}: {path}"
        for place in found["models"]
        for path in place["versions"]
    ]
    return Group(table, "", *left, *(f"Note: {note}." for note in dict.fromkeys(notes)), *versions)


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(retrieve)
    app.command()(forget)
