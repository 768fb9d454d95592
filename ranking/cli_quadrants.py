"""The command about items: hidden gems, flashy ones, winners and those to retire."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ranking.atomic import refuse_file
from ranking.progress import Bars, quiet

__all__ = ["add_to"]

_TOLD = 10


def quadrants(
    data: Annotated[Path, typer.Option("--data", help="The dataset folder (with dataset.toml).")],
    out: Annotated[Path, typer.Option(help="The page to write (HTML).")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Place the items by this run's predictions, not by what happened.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            help="A window of dataset.toml; repeat for more. Without it train, calibrate and tune: the test window is "
            "kept for judging what was decided."
        ),
    ] = None,
    min_impressions: Annotated[int, typer.Option(help="Leave out items that were shown less often.", min=1)] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Items by clicks and conversions: which are hidden gems (few clicks, many of them convert), which only flashy.

    Rates are smoothed, and an item of which too little is known stays undecided.

    Example: seedrank quadrants --data data --out quadrants.html
    """
    refuse_file(out, overwrite)
    quiet()
    with Bars(Console(stderr=True)) as bars:
        bars("loading TensorFlow", 0, 1)
        from ranking.data.tables import Dataset
        from ranking.quadrants import WINDOWS, quadrants_of_log, quadrants_of_run
        from ranking.report.quadrants import write_page
        from ranking.run import load_run

        bars("loading TensorFlow", 1, 1)
        dataset, windows = Dataset(data), tuple(dict.fromkeys(window or WINDOWS))
        if run is None:
            found = quadrants_of_log(dataset, windows, min_impressions=min_impressions)
        else:
            found = quadrants_of_run(load_run(run), dataset, windows, min_impressions=min_impressions, progress=bars)
        write_page(found, out)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        Console().print(_table(found, out))


def _table(found: Any, out: Path) -> Group:
    """How many items are where, and the first hidden gems and flashy ones."""
    from ranking.report.quadrants import PLURALS

    counts = Table(box=None, pad_edge=False, header_style="bold")
    counts.add_column("quadrant")
    counts.add_column("items", justify="right")
    for name, count in found.counts().items():
        counts.add_row(PLURALS.get(name, name), f"{count:,}")
    parts: list[Any] = [Text(found.span()), "", counts]
    for quadrant in ("hidden gem", "flashy"):
        items = found.of(quadrant).head(_TOLD)
        table = Table(title=PLURALS[quadrant], title_justify="left", box=None, pad_edge=False, header_style="bold")
        table.add_column("item")
        for name in ("click rate", "per click", "impressions", "clicks", "conversions", "certainty"):
            table.add_column(name, justify="right")
        for one in items.itertuples():
            certainty = "-" if found.about["source"] == "run" else f"{one.certainty:.0%}"
            counted = (f"{count:,}" for count in (one.impressions, one.clicks, one.conversions))
            rates = (f"{rate:.2%}" for rate in (one.click_rate, one.conversion_rate))
            table.add_row(Text(str(one.item_id)), *rates, *counted, certainty)  # an id is no markup
        parts += ["", table] if len(items) else []
    return Group(*parts, "", Text(f"wrote {out}"))


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(quadrants)
