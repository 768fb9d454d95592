"""The commands about serving: a server, and a question to one."""

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking.errors import UserError
from ranking.progress import quiet

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    app.command()(serve)
    app.command()(rank)


def serve(
    models: Annotated[Path, typer.Argument(help="The folder of models.")],
    rest_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8501,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8500,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    poll: Annotated[float, typer.Option(help="Seconds between looks for new versions.")] = 1.0,
) -> None:
    """Serves models over REST and gRPC as TensorFlow Serving does; new versions are picked up while it runs."""
    quiet()
    from serving.server import Server

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
    with Server(models, host=host, rest_port=rest_port, grpc_port=grpc_port, poll_seconds=poll) as server:
        Console(stderr=True).print(
            f"REST on http://{host}:{server.rest_port}/v1/models, gRPC on {host}:{server.grpc_port}. Ctrl-C stops."
        )
        server.wait()


def rank(
    user: Annotated[str, typer.Option(help="The target user's id.")],
    items: Annotated[str, typer.Option(help="Candidate ids, comma separated; or @FILE with one a line.")],
    context: Annotated[list[str] | None, typer.Option(help="A context column, as tab=1; repeat for more.")] = None,
    prices: Annotated[
        str | None, typer.Option(help="Prices, comma separated, one a candidate; empty = the item's.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights to try, as similarity=.2,pctr=1,pcvr=.6.")] = None,
    url: Annotated[str, typer.Option(help="Where the REST server listens.")] = "http://127.0.0.1:8501",
    grpc: Annotated[bool, typer.Option("--grpc", help="Ask over gRPC.")] = False,
    address: Annotated[str, typer.Option(help="Where the gRPC server listens.")] = "127.0.0.1:8500",
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")] = False,
) -> None:
    """Ranks candidates for one user on a running server, the best first."""
    quiet()
    from ranking.fusion import parse_weights
    from ranking.report.tables import ranking_table

    ids = Path(items[1:]).read_text().splitlines() if items.startswith("@") else items.split(",")
    given = _pairs(context or [], "--context")
    money = None if prices is None else [_number(text, "--prices") for text in prices.split(",")]
    if grpc:
        from serving.rpc import RankClient as GrpcClient

        client: Any = GrpcClient(address, model=name)
    else:
        from serving.rest import RankClient as RestClient

        client = RestClient(url, model=name)
    chosen = parse_weights(weights) if weights else None
    found = client.rank(user, ids, context=given, price=money, weights=chosen)
    order = sorted(range(len(ids)), key=lambda row: -found["score"][row])
    rows = [{"item_id": ids[row], **{key: values[row] for key, values in found.items()}} for row in order]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
    else:
        Console().print(ranking_table(rows))


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
