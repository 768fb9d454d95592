"""The commands that take clicks: into the log, over HTTP, from files or a stream; and on into a shared seed store."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ranking.errors import UserError

__all__ = ["add_to"]

_IDS = ("int64", "string")


def add_to(app: typer.Typer) -> None:
    """Adds the command to an app."""
    app.command()(ingest)
    app.command()(seeds)


def ingest(
    log: Annotated[Path, typer.Option(help="The folder of the click log; made where it is absent.")],
    data: Annotated[
        Path | None, typer.Option(help="For a new log: the dataset whose dataset.toml declares the ids.")
    ] = None,
    user_ids: Annotated[str | None, typer.Option(help="For a new log, without --data: int64 or string.")] = None,
    item_ids: Annotated[str | None, typer.Option(help="For a new log, without --data: int64 or string.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free port.", min=0, max=65535)] = 8600,
    tail: Annotated[
        list[Path] | None,
        typer.Option(help="A growing file of JSON lines, or CSV where its name ends so; may be given again."),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(help="A Redis stream or a Kafka topic to follow, as below.", envvar="SEEDRANK_STREAM"),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token of the admin verbs, which are off without it.")
    ] = None,
    admin_anywhere: Annotated[
        bool, typer.Option("--admin-anywhere", help="Answer admin verbs on other addresses than loopback too.")
    ] = False,
) -> None:
    """Takes clicks over HTTP, from files or a stream into the click log; each is acknowledged when it is on the disk.

    One JSON object a line: user_id, item_id, time (ms since 1970, or ISO 8601 with its zone; else the time of arrival)
    and kind (click, or unclick to take clicks back). A line that is wrong refuses its request (400), and the reply
    names line, field and rule; nothing of it is taken. Send a request again after 429, 503 or no reply, with the same
    times: a click that comes twice counts once. gzip is understood.

      seedrank ingest --log clicks --data data

      curl localhost:8600/v1/clicks -d '{"user_id": 7, "item_id": 42, "time": 1767225600000}'

      curl localhost:8600/v1/clicks --data-binary @clicks.jsonl

      curl localhost:8600/v1/clicks -d '{"user_id": [7, 8], "item_id": [42, 9], "kind": ["click", "unclick"]}'

      curl localhost:8600/healthz; curl localhost:8600/metrics

    Followed files are read to the end of each line, through rotation and restarts; a wrong line goes to
    LOG/tails/*.rejects with the reason. Their lines need a time.

      seedrank ingest --log clicks --tail /var/log/shop/clicks.jsonl

    So is a stream (the extra `redis` or `kafka` of the package): an entry has clicks as JSON lines, or packed by
    lookalike.click_packing. What is wrong goes to LOG/set-aside.jsonl. A URL with a password is better given as
    SEEDRANK_STREAM than in the arguments. Options of redis-py and librdkafka may follow in it.

      seedrank ingest --log clicks --stream "redis://localhost:6379/0?stream=clicks&group=seedrank"

      seedrank ingest --log clicks --stream "kafka://one:9092,two:9092/clicks?group=seedrank&security.protocol=SSL"

    Admin verbs: forget takes a user's clicks back on all items; erase removes his ids from the log's files and the
    lines set aside, when the seed stores have read the forget; retain removes whole segments before an offset.

      curl localhost:8600/v1/forget -H "Authorization: Bearer $(cat token)" -d '{"user_id": 7}'

      curl localhost:8600/v1/erase -H "Authorization: Bearer $(cat token)" -d '{"user_id": 7}'

      curl localhost:8600/v1/retain -H "Authorization: Bearer $(cat token)" -d '{"before": 1000000}'

    Ctrl-C and SIGTERM end it: what has come is answered, then exit code 0.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
    users, items = _id_kinds(log, data, user_ids, item_ids)
    from ranking.ingest import Ingest, read_token

    token = read_token(token_file) if token_file else None
    screen = Console(stderr=True)
    service = Ingest(
        log,
        user_ids=users,
        item_ids=items,
        host=host,
        port=port,
        tails=tail or (),
        stream=stream,
        token=token,
        admin_anywhere=admin_anywhere,
    )
    try:
        with service:
            screen.print(
                f"Clicks on http://{host}:{service.port}/v1/clicks into {log}. Ctrl-C stops.",
                highlight=False,
                soft_wrap=True,
            )
            service.wait()
    except KeyboardInterrupt:
        screen.print("Stopped: every request that had come was answered.")


def seeds(
    log: Annotated[Path, typer.Option(help="The click log of this machine, as `seedrank ingest` writes it.")],
    redis: Annotated[str, typer.Option(help="Redis or Valkey, as rediss://USER@HOST:6379/0.", envvar="SEEDRANK_REDIS")],
    partition: Annotated[str, typer.Option(help="The log's own name in the store; keep it.")] = "0",
    byte_budget: Annotated[
        int | None, typer.Option(help="Bytes for all seeds, 16 each, the same for all; else no limit.", min=16)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="To the log's end as it is now.")] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without clicks that the log no longer holds, nor the server.")
    ] = False,
) -> None:
    """Brings the clicks of a log into a seed store on Redis or Valkey that several machines share.

    Each machine runs it beside its ingest, with a --partition of its own. A click that came is counted once, however
    often this is stopped, killed or started twice. While the server is away the clicks wait in the log. A URL with a
    password is better given as SEEDRANK_REDIS than in the arguments. Rights of its user, the server's settings and
    memory: docs/realtime.md.

      seedrank seeds --log clicks --redis redis://localhost:6379/0 --partition one

    Ctrl-C and SIGTERM end it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from lookalike.clicklog import ClickLog, ClickLogError
    from ranking.ingest_seeds import follow, open_shared

    screen = Console(stderr=True)
    try:
        with ClickLog(log, write=False) as opened:
            store = open_shared(redis, opened, partition=partition, byte_budget=byte_budget, accept_loss=accept_loss)
            screen.print(f"{store}: at offset {store.offset} of {log}.", highlight=False, soft_wrap=True, markup=False)
            if not once:
                follow(store, opened, threading.Event())
    except ClickLogError as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        screen.print("Stopped.")


def _id_kinds(
    log: Path, data: Path | None, user_ids: str | None, item_ids: str | None
) -> tuple[str | None, str | None]:
    """The kinds of ids: declared, never guessed."""
    for name, kind in (("user", user_ids), ("item", item_ids)):
        if kind not in (None, *_IDS):
            raise UserError(f"`--{name}-ids` should be int64 or string. Received: {kind!r}.")
    if data is not None:
        if user_ids or item_ids:
            raise UserError("`--data` declares the ids: leave `--user-ids` and `--item-ids` out.")
        from ranking.data.schema import load_schema

        schema = load_schema(data / "dataset.toml")
        return schema.user_id, schema.item_id
    is_new = not log.is_dir() or not any(log.iterdir())
    if is_new and not (user_ids and item_ids):
        raise UserError(f"{log} is a new log: declare its ids by `--data`, or by `--user-ids` and `--item-ids`.")
    return user_ids, item_ids
