"""`seedrank rank`: a question to a running server."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ranking.errors import UserError

if TYPE_CHECKING:
    from ranking.fusion_weights import FusionWeights

__all__ = ["add_to"]

FUSION = "assets.extra/fusion.json"  # in a version's folder


def add_to(app: typer.Typer) -> None:
    """Adds the command to an app."""
    app.command()(rank)


def rank(
    items: Annotated[str, typer.Option(help="Candidate ids, comma separated; or @FILE with one a line.")],
    user: Annotated[str | None, typer.Option(help="The target user's id.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(help="Instead of --user, one the model has not seen: age=31, repeated; or one JSON object."),
    ] = None,
    context: Annotated[list[str] | None, typer.Option(help="A context column, as tab=1; repeat for more.")] = None,
    prices: Annotated[
        str | None, typer.Option(help="Prices, comma separated, one a candidate; empty = the item's.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to try, as similarity=.2,pctr=1,pcvr=.6.")] = None,
    top: Annotated[int | None, typer.Option(help="The best K only.", min=1)] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show each part of the score times its weight.")] = False,
    models: Annotated[
        Path | None, typer.Option(help="With --explain: the server's folder of models, where it does not tell weights.")
    ] = None,
    version: Annotated[int | None, typer.Option(help="This version; else the newest that is served.")] = None,
    label: Annotated[str | None, typer.Option(help="The version with this label, as canary.")] = None,
    url: Annotated[str, typer.Option(help="Where the REST server listens.")] = "http://127.0.0.1:8501",
    grpc: Annotated[bool, typer.Option("--grpc", help="Ask over gRPC.")] = False,
    address: Annotated[str, typer.Option(help="Where the gRPC server listens.")] = "127.0.0.1:8500",
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Ranks candidates for one user on a running server, the best first.

    For example:

      seedrank rank --user 712 --items 5239,6831 --context tab=1

      seedrank rank --user 712 --items @candidates.txt --context tab=1 --top 10 --explain

      seedrank rank --features '{"age": 31, "clicked": ["5239", "17"]}' --items 5239,6831 --context tab=1

      seedrank rank --user 712 --items 5239,6831 --context tab=1 --weights pctr=1,price=.5
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from ranking.fusion_weights import parse_weights

    if (user is None) == (not features):
        raise UserError("one of `--user` and `--features` should be given.")
    if features and weights:
        raise UserError("`--weights` should not be given with `--features`: weights are tried on users that are known.")
    ids = _ids(items)
    given: dict[str, Any] = {"context": _pairs(context or [], "--context"), "version": version, "label": label}
    given["price"] = None if prices is None else [_number(text, "--prices") for text in prices.split(",")]
    chosen = parse_weights(weights) if weights else None
    with _client(grpc, url, address, name, timeout) as client:
        if features:
            found = client.rank_features(_features(features), ids, **given)
        elif top and not chosen and not explain:
            found = client.rank_top(user, ids, top, **given)
            ids = [str(item) for item in found["item_id"]]
        else:
            found = client.rank(user, ids, weights=chosen, **given)
        parts = None
        if explain:
            from ranking.explain import explain as taken_apart

            segment = given["context"].get("segment")
            served = _weights(client, models, name, version, label)
            parts = taken_apart(found, served, given["price"], segment, override=chosen)
    order = sorted(range(len(ids)), key=lambda row: -found["score"][row])[:top]
    rows = [{"item_id": ids[row], **{k: v[row] for k, v in found.items() if k != "item_id"}} for row in order]
    if parts is not None:
        rows = [{**row, "parts": parts[number]["parts"]} for row, number in zip(rows, order, strict=True)]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    from ranking.report.tables import ranking_table

    Console().print(ranking_table(rows) if parts is None else _explained(rows))


def _client(grpc: bool, url: str, address: str, name: str, timeout: float) -> Any:
    if grpc:
        from serving.rpc import RankClient as GrpcClient

        return GrpcClient(address, name, timeout)
    from serving.rest import RankClient as RestClient

    return RestClient(url, name, timeout)


def _weights(client: Any, models: Path | None, name: str, version: int | None, label: str | None) -> "FusionWeights":
    """The weights of the version that answered."""
    from ranking.fusion_weights import FusionWeights

    if label is not None:
        raise UserError("`--explain` should be given with `--version`, not `--label`: whose weights, it does not tell.")
    if models is None:
        live = client.live()
        fusion = live.get("facts", {}).get("fusion")
        if fusion and version in (None, live["version"]):
            return FusionWeights(**fusion)
        raise UserError(
            "`--explain` needs `--models`, the folder that is served: the server does not tell its weights."
        )
    if version is None:
        version = next((found["version"] for found in client.status() if found["state"] == "AVAILABLE"), None)
    return FusionWeights.load(models / name / str(version) / FUSION)


def _explained(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Item and score, and under each part its value and what it adds: weight times standardised value."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("item", no_wrap=True)
    table.add_column("score", justify="right")
    names = list(rows[0]["parts"])
    for name in names:
        weight = rows[0]["parts"][name]["weight"]
        table.add_column(f"{name}\n{weight:+.3f} x z", justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for name in names:
            part = row["parts"][name]
            value = "-" if part["value"] is None else f"{part['value']:.4g}"
            cells.append(f"{value} -> {part['contribution']:+.4f}")
        table.add_row(str(row["item_id"]), f"{row['score']:.4f}", *cells)
    return table


def _ids(items: str) -> list[str]:
    if not items.startswith("@"):
        return items.split(",")
    try:
        return Path(items[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"`--items` should be ids, or @FILE with one a line. Received: {items}: {error}.") from None


def _features(texts: list[str]) -> dict[str, Any]:
    """A JSON object, or name=value texts."""
    if not texts[0].lstrip().startswith("{"):
        return dict(_pairs(texts, "--features"))
    try:
        (text,) = texts
        found = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"`--features` should be one JSON object, or name=value. Received: {texts[0]!r}: {error}."
        ) from None
    return dict(found)


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    """name=value texts to a dict."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"`{option}` should look like name=value. Received: {text!r}.")
        found[key.strip()] = value.strip()
    return found


def _number(text: str, option: str) -> float:
    """A number, NaN where the text is empty."""
    try:
        return float(text) if text.strip() else float("nan")
    except ValueError:
        raise UserError(f"`{option}` should be numbers. Received: {text!r}.") from None
