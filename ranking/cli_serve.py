"""The commands about serving: a server, TensorFlow Serving's files, a question (`ranking.cli_rank`)."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ranking import cli_rank
from ranking.data.times import parse_tick
from ranking.errors import UserError

__all__ = ["add_to"]

ModelsDir = Annotated[Path, typer.Argument(help="The folder of models: MODELS/seedrank/VERSION/saved_model.pb.")]
ModelsConfig = Annotated[
    Path | None,
    typer.Option(
        help="A models.config instead of MODELS' newest versions: policies and labels (`seedrank tfserving`)."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    app.command()(serve)
    app.command()(tfserving)
    cli_rank.add_to(app)


def serve(
    models: ModelsDir,
    rest_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8501,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free port.")] = 8500,
    models_config: ModelsConfig = None,
    engine: Annotated[
        str, typer.Option(help="embedded: this program; tfserving: tensorflow_model_server from the PATH.")
    ] = "embedded",
    host: Annotated[str, typer.Option(help="Address that the embedded server listens on.")] = "127.0.0.1",
    poll: Annotated[float, typer.Option(help="Seconds between the embedded server's looks for new versions.")] = 1.0,
    config_poll: Annotated[
        float, typer.Option(help="Seconds between the embedded server's looks at --models-config; 0 reads it once.")
    ] = 30.0,
    hard_table_age: Annotated[
        str | None,
        typer.Option(help="As 30m or 1h: with older tables /healthz answers 503, so that a balancer asks others."),
    ] = None,
) -> None:
    """Serves models over REST and gRPC as TensorFlow Serving does; new versions are picked up while it runs.

    Ctrl-C and SIGTERM stop it: requests that run are answered, then it ends with exit code 0.

    For example:

      seedrank serve models

      seedrank serve models --models-config models/models.config

      seedrank serve models --hard-table-age 1h

      seedrank serve models --engine tfserving
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if engine not in ("embedded", "tfserving"):
        raise UserError(f"`--engine` should be embedded or tfserving. Received: {engine!r}.")
    if engine == "tfserving":
        if host != "127.0.0.1":
            raise UserError("`--host` should not be given with `--engine tfserving`: it listens on every address.")
        if hard_table_age is not None:
            raise UserError("`--hard-table-age` should not be given with `--engine tfserving`: it knows no age.")
        raise typer.Exit(_tensorflow_serving(models, models_config, rest_port, grpc_port))
    limit = None if hard_table_age is None else _seconds(hard_table_age)
    from serving.server import Server

    screen = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a supervisor's stop is a Ctrl-C
    server = Server(
        None if models_config else models,
        models_config=models_config,
        config_poll_seconds=config_poll,
        host=host,
        rest_port=rest_port,
        grpc_port=grpc_port,
        poll_seconds=poll,
        hard_table_age=limit,
    )
    try:
        with server:
            screen.print(
                f"REST on http://{host}:{server.rest_port}/v1/models, gRPC on {host}:{server.grpc_port}. Ctrl-C stops.",
                highlight=False,
                soft_wrap=True,
            )
            server.wait()
    except KeyboardInterrupt:
        screen.print("Stopped: every request that had come was answered.")


def _seconds(age: str) -> float:
    try:
        return parse_tick(age) / 1000
    except ValueError as error:
        raise UserError(f"`--hard-table-age` {error}. Received: {age!r}.") from None


def _tensorflow_serving(models: Path, models_config: Path | None, rest_port: int, grpc_port: int) -> int:
    from serving.tfserving import MODELS_CONFIG, command, run, write_files

    with tempfile.TemporaryDirectory(prefix="seedrank-") as folder:
        if models_config is None:
            write_files(models, folder)
            models_config = Path(folder) / MODELS_CONFIG
        arguments = command(models_config, rest_port=rest_port, grpc_port=grpc_port)
        Console(stderr=True).print(" ".join(arguments), highlight=False, soft_wrap=True)
        return run(arguments)


def tfserving(
    models: ModelsDir,
    out: Annotated[Path | None, typer.Option(help="Where to write; else MODELS itself.")] = None,
    stable: Annotated[int | None, typer.Option(help="The version that requests for label stable get.")] = None,
    canary: Annotated[int | None, typer.Option(help="The version that requests for label canary get.")] = None,
    name: Annotated[str, typer.Option(help="The model that the labels are for.")] = "seedrank",
) -> None:
    """Writes TensorFlow Serving's files: configuration, docker-compose.yml, kubernetes.yaml; each flag says why.

    Without labels the newest version is served, and every new one by itself. With labels exactly the versions named
    are served, and stay on disk; running servers follow within 30 seconds. To try version 8 on a share of the requests,
    those that ask for label canary, and then to give it to all:

      seedrank tfserving models --stable 7 --canary 8

      seedrank tfserving models --stable 8
    """
    from serving.tfserving import COMPOSE, write_files

    paths = write_files(models, out, name=name, stable=stable, canary=canary)
    for path in paths:
        print(path)
    compose = next(path for path in paths if path.name == COMPOSE)
    Console(stderr=True).print(f"Next: docker compose -f {compose} up -d", highlight=False, soft_wrap=True)
