"""The command line: parse, call one function, print."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking import (
    cli_audience,
    cli_expand,
    cli_ingest,
    cli_quadrants,
    cli_refresh,
    cli_serve,
    cli_up,
    cli_versions,
)
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
    without_users: Annotated[
        bool, typer.Option("--without-users", help="Leave the user table out: requests bring a vector or features.")
    ] = False,
    user_table_limit: Annotated[
        str, typer.Option(help="The largest user table to put into a model, as 500M or 2G.")
    ] = "1G",
    centroids: Annotated[
        str, typer.Option(help="float32, or bfloat16: half the bytes of the seeds' table, scores to about 1e-3.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Publishes a run as a SavedModel version: verified in a fresh process, then renamed into place.

    Users of a model with millions of them are better kept in a key-value store (`seedrank users export`): the calls
    rank_embedding and rank_features then take what a request brings.

    Example: seedrank export --run run --models models
    """
    limit = _bytes(user_table_limit, "--user-table-limit")
    if centroids not in ("float32", "bfloat16"):
        raise UserError(f"`--centroids` should be float32 or bfloat16. Received: {centroids!r}.")
    quiet()

    with Bars(console) as bars:
        bars("export", 0, 1)
        from ranking.export import export_run
        from ranking.fusion import FusionWeights
        from ranking.run import load_run

        loaded = load_run(run)
        chosen = FusionWeights.load(weights, loaded.info["parameters_hash"]) if weights else None
        version = export_run(
            loaded,
            models,
            name=name,
            weights=chosen,
            users=not without_users,
            user_table_limit=limit,
            centroid_dtype="bfloat16" if centroids == "bfloat16" else "float32",
        )
        bars("export", 1, 1)
    show({"version": str(version)}, as_json, f"Published {version}\nNext: seedrank serve {models}")


cli_expand.add_to(app)
cli_audience.add_to(app)
cli_quadrants.add_to(app)
cli_serve.add_to(app)
cli_versions.add_to(app)
cli_ingest.add_to(app)
cli_refresh.add_to(app)
cli_up.add_to(app)


def _bytes(text: str, option: str) -> int:
    """A size as 500M or 2G, in powers of 1024."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or unit not in ("", "K", "M", "G"):
        raise UserError(f"`{option}` should be a size as 500M or 2G. Received: {text!r}.")
    return int(number) * 1024 ** ("", "K", "M", "G").index(unit)


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
