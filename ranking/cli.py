"""The command line: parse, call one function, print."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking import cli_audience, cli_expand, cli_quadrants
from ranking.atomic import refuse_existing
from ranking.cli_data import data_app
from ranking.cli_replay import replay_app
from ranking.errors import UserError
from ranking.progress import Bars, quiet
from serving.errors import ServingError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Rank by look-alike similarity, click and conversion in one score; tune it on logs; serve it.\n\n"
    "The life cycle: data simulate or import, train, evaluate, replay tune, export, serve, rank; and expand, which "
    "makes an audience of a list of users. "
    "`seedrank demo` walks through all of it on a simulated log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")
app.add_typer(replay_app, name="replay")

console = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
DataDir = Annotated[Path, typer.Option("--data", help="The dataset folder (with dataset.toml).")]
RunDir = Annotated[Path, typer.Option("--run", help="The run folder that `seedrank train` wrote.")]


def show(value: Any, as_json: bool, table: Any) -> None:
    """Prints JSON on standard output, or a rich renderable."""
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        Console().print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("seedrank-demo"),
    overwrite: Overwrite = False,
) -> None:
    """Everything once, on a simulated log: train, evaluate, tune, export, serve, ask."""
    from ranking.demo import run_demo

    run_demo(out, overwrite=overwrite)


@app.command()
def train(
    data: DataDir,
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    with_baselines: Annotated[
        bool, typer.Option(help="Also train ESMM without the similarity, BASE, popularity and logistic regression.")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(help="Fit ESMM again on train + calibrate + tune. A replay on the tune window is then refused."),
    ] = False,
    seeds: Annotated[int, typer.Option(help="Random seeds of each ESMM variant, with baselines.", min=1)] = 3,
    esmm: Annotated[
        str,
        typer.Option(help="Switches of ESMM (docs/models.md), as sharing=mmoe,towers=128-64,epochs=3."),
    ] = "",
    lookalike: Annotated[
        str,
        typer.Option(help="Switches of the look-alike stages (docs/models.md), as merge=concat,k=10."),
    ] = "",
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="A run to go on from: ESMM learns the days since; user space and switches stay."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was stopped (OUT.checkpoint), if there is one.")
    ] = False,
    on_disk: Annotated[
        bool, typer.Option("--on-disk", help="Keep ESMM's rows on disk; else only those over 4 GiB are.")
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Processes that train ESMM; with TF_CONFIG set, this one is one of its cluster.", min=1)
    ] = 1,
    parameter_servers: Annotated[
        int, typer.Option(help="Processes that hold the weights; 0: every worker does, and they step together.", min=0)
    ] = 0,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's curves and histograms.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Trains representation, look-alike and ESMM, each on its own window."""
    quiet()
    from ranking.data.tables import Dataset

    dataset = Dataset(data)
    refuse_existing(out, overwrite)
    with Bars(console) as bars:
        bars("loading TensorFlow", 0, 1)
        from ranking.esmm_settings import EsmmSettings
        from ranking.fit import fit_run, settings_of
        from ranking.lookalike_settings import LookalikeSettings
        from ranking.report.tables import training_table
        from ranking.run import load_run
        from ranking.training import Settings
        from ranking.workers import Workers

        bars("loading TensorFlow", 1, 1)
        previous = load_run(from_) if from_ else None
        if previous is None:
            settings = Settings(LookalikeSettings.parse(lookalike), EsmmSettings.parse(esmm))
        elif lookalike:
            raise UserError("`--lookalike` should not be given with `--from`: the run's user space stays.")
        else:
            settings = settings_of(previous)
            settings = Settings(settings.lookalike, EsmmSettings.parse(esmm, settings.esmm))
        run = fit_run(
            dataset,
            out,
            settings=settings,
            baselines=with_baselines,
            seeds=seeds,
            refit=refit,
            previous=previous,
            resume=resume,
            on_disk=on_disk,
            workers=Workers(workers, parameter_servers) if workers > 1 or parameter_servers else None,
            overwrite=overwrite,
            tensorboard=tensorboard,
            progress=bars,
        )
    show(run.info, as_json, training_table(run.info, out))


@app.command()
def evaluate(
    run: RunDir,
    data: DataDir,
    window: Annotated[str, typer.Option(help="A window of dataset.toml.")] = "test",
    state: Annotated[
        str, typer.Option(help="frozen: tables as of the run's watermark, as exported; rolling: as of each row's tick.")
    ] = "frozen",
    replicates: Annotated[int, typer.Option(help="Bootstrap replicates over users.", min=20)] = 200,
    as_json: Json = False,
) -> None:
    """Click, conversion and similarity metrics of a run beside its baselines, with standard errors."""
    quiet()
    from ranking.data.tables import Dataset

    if state not in ("frozen", "rolling"):
        raise UserError(f"`--state` should be frozen or rolling. Received: {state!r}.")
    dataset = Dataset(data)
    with Bars(console) as bars:
        bars("loading the run", 0, 1)
        from ranking.evaluation import evaluate_run
        from ranking.report.tables import evaluation_table
        from ranking.run import load_run

        loaded = load_run(run)
        bars("loading the run", 1, 1)
        found = evaluate_run(loaded, dataset, window=window, state=state, replicates=replicates, progress=bars)
    show(found, as_json, evaluation_table(found))


@app.command()
def export(
    run: RunDir,
    models: Annotated[Path, typer.Option(help="The folder of models; a new version is published in it.")],
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    weights: Annotated[Path | None, typer.Option(help="Fusion weights to serve instead of the run's own.")] = None,
    as_json: Json = False,
) -> None:
    """Publishes a run as a SavedModel version: verified in a fresh process, then renamed into place."""
    quiet()

    with Bars(console) as bars:
        bars("export", 0, 1)
        from ranking.export import export_run
        from ranking.fusion import FusionWeights
        from ranking.run import load_run

        loaded = load_run(run)
        chosen = FusionWeights.load(weights, loaded.info["parameters_hash"]) if weights else None
        version = export_run(loaded, models, name=name, weights=chosen)
        bars("export", 1, 1)
    show({"version": str(version)}, as_json, f"Published {version}\nNext: seedrank serve {models}")


@app.command()
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
        console.print(
            f"REST on http://{host}:{server.rest_port}/v1/models, gRPC on {host}:{server.grpc_port}. Ctrl-C stops."
        )
        server.wait()


@app.command()
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
    as_json: Json = False,
) -> None:
    """Ranks candidates for one user on a running server, the best first."""
    quiet()
    from ranking.fusion import parse_weights
    from ranking.report.tables import ranking_table

    ids = Path(items[1:]).read_text().splitlines() if items.startswith("@") else items.split(",")
    given = pairs(context or [], "--context")
    money = None if prices is None else [number(text, "--prices") for text in prices.split(",")]
    if grpc:
        from serving.rpc import GrpcClient

        client: Any = GrpcClient(address, model=name)
    else:
        from serving.rest import RestClient

        client = RestClient(url, model=name)
    chosen = parse_weights(weights) if weights else None
    found = client.rank(user, ids, context=given, price=money, weights=chosen)
    order = sorted(range(len(ids)), key=lambda row: -found["score"][row])
    rows = [{"item_id": ids[row], **{key: values[row] for key, values in found.items()}} for row in order]
    show(rows, as_json, ranking_table(rows))


cli_expand.add_to(app)
cli_audience.add_to(app)
cli_quadrants.add_to(app)


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """name=value texts to a dict."""
    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise UserError(f"`{option}` should look like name=value. Received: {text!r}.")
        found[key.strip()] = value.strip()
    return found


def number(text: str, option: str) -> float:
    """A number, NaN where the text is empty."""
    try:
        return float(text) if text.strip() else float("nan")
    except ValueError:
        raise UserError(f"`{option}` should be numbers. Received: {text!r}.") from None


def main() -> None:
    """Runs the command line; a user's mistake is one line and exit code 2."""
    try:
        app()
    except (UserError, ServingError, OSError) as error:
        print(f"seedrank: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("seedrank: stopped", file=sys.stderr)
        sys.exit(130)
