"""The commands about published versions: bring one in, list them, go back to an earlier one, remove old ones."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ranking.errors import UserError
from ranking.progress import Bars

if TYPE_CHECKING:
    from serving.listing import Version

__all__ = ["add_to"]

_MODELS_HELP = "The folder of models, as given to `seedrank export --models`."
Models = Annotated[Path, typer.Argument(help=_MODELS_HELP)]
Name = Annotated[str, typer.Option(help="The model's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
_DATE = 1e11  # milliseconds; a smaller watermark counts events, in a dataset that knows their order only


def add_to(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    for command in (publish, versions, rollback, prune):
        app.command()(command)


def publish(
    folder: Annotated[Path, typer.Argument(help="A SavedModel's folder, or a version of another folder of models.")],
    models: Models,
    name: Name = "seedrank",
    keep: Annotated[int, typer.Option(help="Newest versions that stay.", min=1)] = 3,
    as_json: Json = False,
) -> None:
    """Publishes a SavedModel that was made elsewhere, after verification; `export` publishes a run.

    The copy is loaded in a process of its own, which replays its warm-up records and golden requests, and refused if
    its graph could do more than rank (read files, run Python), if a file is not what its manifest says, or if answers
    are wrong. Only then it appears, whole, under a number higher than any before; servers pick it up.

    Example: seedrank publish staging/seedrank/1795414372003 models
    """
    from serving.layout import model_folder
    from serving.publish import publish_folder

    base = model_folder(models, name)
    with Bars(Console(stderr=True)) as bars:
        bars("verification", 0, 1)
        version = publish_folder(base, folder, keep=keep)
        bars("verification", 1, 1)
    _show({"version": str(version)}, as_json, f"Published {version}\nNext: seedrank versions {models}")


def versions(
    models: Models,
    name: Annotated[str | None, typer.Option(help="Only this model; without it all of them.")] = None,
    as_json: Json = False,
) -> None:
    """Lists the published versions, the newest first: age, size, what each is made of, and why it stays.

    A version is made of parameters, weights and tables, shown by the first digits of their hashes: `apply` changes
    the weights alone, a refresh the tables alone. Watermark: the tables know the events before it.

    Marks: live (what a server without other orders serves), pinned (refreshes wait after a rollback), "content of V"
    (a rollback to V), the labels that models.config gives, incomplete (files are missing; not served).

    Example: seedrank versions models
    """
    from serving.layout import model_folder
    from serving.listing import list_models, list_versions

    bases = list_models(models) if name is None else [model_folder(models, name)]
    found = {base.name: list_versions(base) for base in bases}
    if name is not None and not found[name]:
        raise UserError(f"{bases[0]} should hold a published version. Received: none.")
    now = datetime.now(UTC)
    content = {model: [version.to_dict() for version in listed] for model, listed in found.items()}
    _show(content, as_json, *(_versions_table(model, listed, now) for model, listed in found.items()))


def rollback(
    models: Models,
    to: Annotated[int | None, typer.Option(help="The version to go back to; without it the one before.")] = None,
    unpin: Annotated[bool, typer.Option("--unpin", help="Only let refreshes go on again.")] = False,
    name: Name = "seedrank",
    as_json: Json = False,
) -> None:
    """Publishes an earlier version's content again as the newest, and pins the model to it.

    Parameters, weights and tables all come back, verified as any version. Pinned: a refresh is refused until
    `--unpin`, so that nothing undoes the rollback by itself; what you publish by hand still goes live, and the pin
    stays. `seedrank versions MODELS` shows what there is to go back to.

    Example: seedrank rollback models --to 1795414372003, and once the fault is found: seedrank rollback models --unpin
    """
    from serving import pin
    from serving import rollback as rolling
    from serving.layout import model_folder

    base = model_folder(models, name)
    if unpin:
        if to is not None:
            raise UserError(f"`--to` should not be given with `--unpin`, which publishes nothing. Received: --to {to}.")
        was = pin.unpin(base)
        told = f"{base} is no longer pinned: refreshes go on." if was else f"{base} was not pinned."
        _show({"unpinned": was}, as_json, told)
        return
    with Bars(Console(stderr=True)) as bars:
        bars("verification", 0, 1)
        version = rolling.rollback(base, to)
        bars("verification", 1, 1)
    origin = rolling.rolled_back_to(base, version)
    told = (
        f"Rolled back to {origin}: its content is live as {version}, and {base} is pinned to it.\n"
        f"When refreshes may go on: seedrank rollback {models} --name {name} --unpin"
    )
    _show({"version": str(version), "rolled_back_to": str(origin)}, as_json, told)


def prune(
    models: Models,
    keep: Annotated[int, typer.Option(help="Newest versions that stay.", min=1)],
    name: Name = "seedrank",
    as_json: Json = False,
) -> None:
    """Removes older versions. The live one stays always, and so do those that models.config names.

    Every publish keeps the newest three by itself; this is for keeping fewer, or for a folder that others wrote to.

    Example: seedrank prune models --keep 1
    """
    from serving.layout import model_folder
    from serving.retention import prune as remove
    from serving.retention import versions as remaining

    base = model_folder(models, name)
    removed, left = remove(base, keep), remaining(base)
    told = f"Removed {', '.join(map(str, removed)) or 'nothing'}. Left: {', '.join(map(str, left)) or 'nothing'}."
    _show({"removed": [str(version) for version in removed], "left": [str(v) for v in left]}, as_json, told)


def _show(value: Any, as_json: bool, *renderables: Any) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        for renderable in renderables:
            console = Console()
            if isinstance(renderable, Table):  # whole, a version a line: a narrow screen or a pipe cuts no number
                whole = console.measure(renderable, options=console.options.update(max_width=1000)).maximum
                console = Console(width=max(console.width, whole))
            console.print(renderable, soft_wrap=isinstance(renderable, str))


def _versions_table(model: str, listed: "list[Version]", now: datetime) -> Table:
    table = Table(title=model, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for head in ("version", "age", "size", "parameters", "weights", "tables", "watermark", ""):
        table.add_column(head, justify="right" if head in ("age", "size") else "left", no_wrap=True)
    for version in listed:
        hashes = [version.content.hashes.get(part, "-")[:6] for part in ("parameters", "weights", "tables")]
        watermark = _watermark(version.content.facts.get("seed_watermark"))
        cells = (str(version.version), _age(version.published_at, now), _size(version.bytes), *hashes, watermark)
        table.add_row(*cells, ", ".join(_marks(version)), style="bold" if version.live else None)
    return table


def _marks(version: "Version") -> list[str]:
    back = [] if version.rolled_back_to is None else [f"content of {version.rolled_back_to}"]
    flags = {"live": version.live, "pinned": version.pinned, "incomplete": not version.complete}
    return [*(name for name, on in flags.items() if on), *back, *version.labels]


def _age(published_at: str, now: datetime) -> str:
    try:
        seconds = (now - datetime.fromisoformat(published_at)).total_seconds()
    except (ValueError, TypeError):
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _watermark(tick: Any) -> str:
    if not isinstance(tick, int):
        return "-"
    if abs(tick) < _DATE:
        return str(tick)
    return datetime.fromtimestamp(tick / 1000, UTC).strftime("%Y-%m-%d %H:%M")
