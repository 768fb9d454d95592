"""The commands about audiences."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking.atomic import refuse_file
from ranking.errors import UserError
from ranking.progress import Bars, quiet

__all__ = ["add_to", "parse_size"]

SIZES = ("size", "percent", "threshold", "band")


def parse_size(size: str | None, percent: str | None, threshold: str | None, band: str | None) -> dict[str, Any]:
    """The one size option that is given, as the argument of `Cut`.

    Raises:
        UserError: none is given, or several, or it is no number.
    """
    texts = {name: text for name, text in zip(SIZES, (size, percent, threshold, band), strict=True) if text is not None}
    if len(texts) != 1:
        received = " and ".join(f"--{name}" for name in texts) or "none"
        raise UserError(f"One of --size, --percent, --threshold and --band should be given. Received: {received}.")
    ((name, text),) = texts.items()
    if name == "size":
        return {name: _number(text, int, "--size", "a whole number of users, as 10000")}
    if name != "band":
        return {name: _number(text, float, f"--{name}", "a number")}
    low, dash, high = text.partition("-")
    rule = "two percentages, as 1-2"
    if not dash:
        raise UserError(f"`--band` should be {rule}. Received: {text!r}.")
    return {name: (_number(low, float, "--band", rule), _number(high, float, "--band", rule))}


def _number(text: str, kind: Callable[[str], Any], option: str, rule: str) -> Any:
    try:
        return kind(text.strip().removesuffix("%") if kind is float else text)
    except ValueError:
        raise UserError(f"`{option}` should be {rule}. Received: {text!r}.") from None


def _refuse_outputs(outputs: Sequence[Path], inputs: Sequence[Path], overwrite: bool) -> None:
    """Said before the work: what may not be written."""
    taken = {path.resolve(): path for path in inputs}
    for path in outputs:
        if path.resolve() in taken and not path.is_dir():
            raise UserError(f"{path} is read by this command: choose another name to write.")
        refuse_file(path, overwrite)
        taken[path.resolve()] = path


def expand(
    run: Annotated[Path, typer.Option("--run", help="The run folder that `seedrank train` wrote.")],
    seeds: Annotated[
        list[Path],
        typer.Option(
            help="Users to find more of: CSV with a column user_id (and weight), .txt with an id a line, or Parquet. "
            "Repeat for more lists, an audience each."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The audience to write (Parquet): list, user_id, rank, similarity, centroid.")
    ],
    size: Annotated[str | None, typer.Option(help="How many users.", metavar="N")] = None,
    percent: Annotated[str | None, typer.Option(help="Or: percent of those who can be chosen.", metavar="P")] = None,
    threshold: Annotated[str | None, typer.Option(help="Or: similarity of at least T, -1 to 1.", metavar="T")] = None,
    band: Annotated[
        str | None, typer.Option(help="Or: the B percent most similar without the first A, as 1-2.", metavar="A-B")
    ] = None,
    negatives: Annotated[Path | None, typer.Option(help="Users whom the audience should not resemble.")] = None,
    exclude: Annotated[list[Path] | None, typer.Option(help="Users to leave out: a list or an audience.")] = None,
    where: Annotated[
        str | None,
        typer.Option(help='Attributes of all members, as "age_range in 18-24,25-34 and followers >= 100".'),
    ] = None,
    hash_: Annotated[
        str | None, typer.Option("--hash", help="sha256: the lists hold digests of trimmed, lower-case ids.")
    ] = None,
    min_seeds: Annotated[int, typer.Option(help="Refuse a list with fewer matched users.", min=1)] = 100,
    together: Annotated[bool, typer.Option("--together", help="Join the lists: one audience.")] = False,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Count duplicate and malformed ids, no error.")] = False,
    users: Annotated[
        Path | None, typer.Option(help="Choose among these instead: Parquet with user_id, vector and attributes.")
    ] = None,
    holdout: Annotated[bool, typer.Option(help="Hide a fifth of the seeds and see whether they are found.")] = True,
    report: Annotated[Path | None, typer.Option(help="Also write a page (HTML) about the audience.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of clustering and hold-out.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Finds the users most like your seeds, and says how far to trust it.

    Seeds are looked up by id, as written, then trimmed and without case; the match report tells what became of each
    row. Seeds are never in their own audience. The best come first, so a smaller audience is the head of a larger one.

    Example: seedrank expand --run run --seeds buyers.csv --percent 1 --out audience.parquet --report audience.html
    """
    given = parse_size(size, percent, threshold, band)
    inputs = [*seeds, *(exclude or []), *(path for path in (negatives, users) if path is not None)]
    _refuse_outputs([path for path in (out, report) if path is not None], inputs, overwrite)
    quiet()
    with Bars(Console(stderr=True)) as bars:
        bars("loading the run", 0, 1)
        from lookalike.audience import Cut
        from ranking.atomic import atomic_file
        from ranking.expansion import expand_seeds
        from ranking.report.audience_tables import expansion_table
        from ranking.run import load_run

        try:
            cut = Cut(**given)
        except ValueError as error:
            raise UserError(str(error)) from None
        loaded = load_run(run)
        bars("loading the run", 1, 1)
        found = expand_seeds(
            loaded,
            seeds,
            cut=cut,
            negatives=negatives,
            exclude=exclude or [],
            where=where,
            hash=hash_,  # type: ignore[arg-type]  # it is checked there
            min_seeds=min_seeds,
            together=together,
            drop_bad=drop_bad,
            users=users,
            check=holdout,
            seed=seed,
            progress=bars,
        )
        with atomic_file(out) as temporary:  # neither file without the other
            found.save(temporary)
            if report is not None:
                from ranking.report.audience import write_page

                write_page(found.as_dict(), report)
    if as_json:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        Console().print(expansion_table(found.as_dict(), out))


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(expand)
