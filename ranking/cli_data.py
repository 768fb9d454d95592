"""The `seedrank data` commands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking.errors import UserError
from ranking.progress import Bars

__all__ = ["data_app"]

data_app = typer.Typer(help="Make, fetch, import and check datasets.", no_args_is_help=True)
console = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
SOURCES = ("kuairand", "ali-ccp", "movielens", "mind", "taobao", "served")


@data_app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="The dataset folder to write.")],
    world: Annotated[str, typer.Option(help="demo, reference, or the path of a world's TOML file.")] = "demo",
    shuffle_labels: Annotated[bool, typer.Option(help="Permute the labels: every AUC should then be 0.5.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Simulates a log, with the truth beside it in OUT/truth."""
    from ranking.data.simulator import load_world
    from ranking.data.simulator import simulate as make

    with Bars(console) as bars:
        make(load_world(world), out, shuffle_labels=shuffle_labels, overwrite=overwrite, progress=bars)
    console.print(f"Wrote {out}. Next: seedrank data check {out}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="What to download, as movielens-1m; a wrong name lists them all.")],
    out: Annotated[Path, typer.Option(help="The folder to unpack into.")],
) -> None:
    """Downloads a public data set from its owners; the same command goes on after an interruption."""
    from ranking.data.fetch import fetch as download

    with Bars(console) as bars:
        download(name, out, progress=bars)
    source = name.split("-")[0]
    console.print(f"Wrote {out}. Next: seedrank data import {source} --source {out} --out DATASET")


@data_app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help=f"What to import: {', '.join(SOURCES)}.")],
    folder: Annotated[Path, typer.Option("--source", help="The raw folder, as downloaded and unpacked.")],
    out: Annotated[Path, typer.Option(help="The dataset folder to write.")],
    conversion: Annotated[
        str | None, typer.Option(help="KuaiRand: the conversion label, long_view (default) or engage.")
    ] = None,
    days: Annotated[
        int | None, typer.Option(help="Taobao: a purchase up to so many days after the click converts it (default 1).")
    ] = None,
    clicks: Annotated[
        Path | None, typer.Option(help="Served: what was clicked, CSV or Parquet with request_id and item_id.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Served: the dataset whose dataset.toml, users, items and behaviors to take.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Imports a public log into the dataset format; docs/data.md says what click and conversion mean in each.

    `served` is what your own server logged (serving.slate_log): with the clicks on it, a replay has all it needs.

    Example: seedrank data import served --source log --clicks clicks.csv --like data --out served
    """
    if source not in SOURCES:
        raise UserError(f"`source` should be one of: {', '.join(SOURCES)}. Received: {source!r}.")
    owners: dict[str, tuple[object, str]] = {
        "--conversion": (conversion, "kuairand"),
        "--days": (days, "taobao"),
        "--clicks": (clicks, "served"),
        "--like": (like, "served"),
    }
    for option, (value, owner) in owners.items():
        if value is not None and source != owner:
            raise UserError(f"`{option}` should be given with {owner} only. Received: {value} with {source}.")
    with Bars(console) as bars:
        given: dict[str, Any] = {"overwrite": overwrite, "progress": bars}
        if source == "kuairand":
            from ranking.data.kuairand import import_kuairand

            report = import_kuairand(folder, out, conversion=conversion or "long_view", **given)
        elif source == "ali-ccp":
            from ranking.data.ali_ccp import import_ali_ccp

            report = import_ali_ccp(folder, out, **given)
        elif source == "movielens":
            from ranking.data.movielens import import_movielens

            report = import_movielens(folder, out, **given)
        elif source == "mind":
            from ranking.data.mind import import_mind

            report = import_mind(folder, out, **given)
        elif source == "served":
            from ranking.data.served import import_served

            if clicks is None or like is None:
                raise UserError("`--clicks` and `--like` should be given with served.")
            report = import_served(folder, clicks, like, out, overwrite=overwrite)
        else:
            from ranking.data.taobao import import_taobao

            report = import_taobao(folder, out, days=1 if days is None else days, **given)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        Console().print(str(report), markup=False, highlight=False)


@data_app.command()
def check(directory: Annotated[Path, typer.Argument(help="The dataset folder.")], as_json: Json = False) -> None:
    """Counts, rates, time span, and every broken rule of a dataset; exit code 2 if there is one."""
    from ranking.data.check import check as examine
    from ranking.data.check import print_report

    report = examine(directory)
    if as_json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(2)
