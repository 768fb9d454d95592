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
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: it cannot be undone.")] = False,
    as_json: Json = False,
) -> None:
    """Erases a user from a dataset, from runs, and from seed lists and audiences; later audiences leave him out.

    Each place changes whole or not at all. Versions that were exported before are not rewritten: export again and
    delete them.
    """
    places = [str(place) for place in (*([] if data is None else [data]), *(run or []), *(file or []))]
    if not places:
        raise UserError("Nowhere to look: name a dataset (--data), runs (--run) or lists (--file).")
    if not yes and not sys.stdin.isatty():
        raise UserError("This cannot be undone: pass --yes where nobody can be asked.")
    if not yes:
        typer.confirm(f"Erase user {user} from {', '.join(places)}? This cannot be undone.", abort=True, err=True)
    quiet()
    with Bars(Console(stderr=True)) as bars:
        bars("loading TensorFlow", 0, 1)
        from ranking.forget import forget as erase

        bars("loading TensorFlow", 1, 1)
        found = erase(user, data=data, runs=run or [], files=file or [], progress=bars)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        Console().print(_forgotten(found))


def _forgotten(found: dict[str, Any]) -> Group:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("where", "what", "removed"):
        table.add_column(name, justify="right" if name == "removed" else "left", no_wrap=name != "where")
    places = [found["data"]] if found["data"] else []
    for place in (*places, *found["runs"]):
        for what, count in place["removed"].items() or [("was not in it", 0)]:
            table.add_row(place["path"], what, f"{count:,}")
    for place in found["files"]:
        table.add_row(place["path"], "rows", f"{place['removed']:,}")
    notes = [*(note for place in found["runs"] for note in place["notes"]), *found["notes"]]
    return Group(table, "", *(f"Note: {note}." for note in dict.fromkeys(notes)))


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(retrieve)
    app.command()(forget)
