"""The `seedrank replay` commands."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ranking.errors import UserError
from ranking.progress import Bars, quiet

__all__ = ["parse_guardrail", "replay_app", "study_lines", "tune_source"]

replay_app = typer.Typer(help="Judge and choose fusion weights on a log of candidates.", no_args_is_help=True)
StudyFile = Annotated[Path, typer.Argument(help="The study file that `replay tune` wrote.")]


def parse_guardrail(text: str) -> tuple[str, float]:
    """`clicks>=-1%` to ("clicks", -0.01)."""
    name, sign, bound = text.partition(">=")
    number = bound.strip()
    try:
        least = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        sign = ""
        least = 0.0
    if not sign or not name.strip():
        raise UserError(f"`--guardrail` should look like clicks>=-1%. Received: {text!r}.")
    return name.strip(), least


def tune_source(
    source: Path,
    data: Path | None,
    *,
    production: Path | None = None,
    progress: Bars | None = None,
    **arguments: Any,
) -> Any:
    """Tunes on a run's own scores of a dataset's candidates, or on the scores that a log holds.

    Args:
        source: Path. A run folder (then `data` is needed), or a dataset folder with candidates.
        data: Path or `None`. The dataset whose candidates the run scores.
        production: Path or `None`. The weights that changes are against; defaults to the run's, or to
            `production_weights.json` beside the log.
        progress: Bars or `None`.
        **arguments: as `ranking.replay.tuning.tune`.

    Returns:
        Study.
    """
    from ranking.data.tables import Dataset
    from ranking.fusion import FusionWeights
    from ranking.replay.log import ReplayLog
    from ranking.replay.tuning import tune

    logs = {}
    if (source / "run.json").is_file():
        if data is None:
            raise UserError("`--data` is needed beside a run: the dataset whose candidates it scores.")
        quiet()
        from ranking.run import load_run
        from ranking.scoring import score_candidates

        run, dataset = load_run(source), Dataset(data)
        if run.info["refit"]:
            raise UserError(
                f"{source} was fitted again on its tune window, so its scores there have seen the answers; "
                "train without --refit to tune, then carry the weights over."
            )
        weights = FusionWeights.load(production, run.info["parameters_hash"]) if production else run.weights
        for window in ("tune", "test"):
            parts = score_candidates(run, dataset, window, progress=progress or (lambda *_: None))
            names = (*run.weights.weights, "has_similarity")
            logs[window] = ReplayLog.from_dataset(dataset, window, {name: parts[name] for name in names})
    else:
        dataset = Dataset(source)
        path = production or source / "production_weights.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist: pass --production, the weights that the log was served with.")
        weights = FusionWeights.load(path)
        logs = {window: ReplayLog.from_dataset(dataset, window) for window in ("tune", "test")}

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("settings tried", done, total)

    return tune(logs["tune"], logs["test"], production=weights, progress=report, **arguments)


def study_lines(study: Any) -> list[str]:
    """The verdict and the shortlist as text."""
    lines = [study.verdict, *study.banners, f"The test window was looked at {len(study.looks)} time(s)."]
    for entry in study.shortlist:
        weights = ", ".join(f"{name}={value:.3g}" for name, value in entry.test.weights.items())
        roles = f" ({', '.join(entry.roles)})" if entry.roles else ""
        if entry.test.refused:
            lines.append(f"  {entry.name}{roles}: {weights}: refused: {entry.test.refused}")
            continue
        changes = ", ".join(
            f"{name} {estimate.delta:+.1%} [{estimate.low:+.1%}, {estimate.high:+.1%}]"
            for name, estimate in entry.test.estimates.items()
        )
        lines.append(f"  {entry.name}{roles}: {weights}: {changes}")
    return lines


@replay_app.command("tune")
def tune_command(
    source: Annotated[Path, typer.Argument(help="A run folder (with --data), or a dataset folder with candidates.")],
    out: Annotated[Path, typer.Option(help="The study file to write (JSON); tuning again counts another look.")],
    data: Annotated[Path | None, typer.Option(help="The dataset whose candidates the run scores.")] = None,
    objective: Annotated[str, typer.Option(help="clicks, conversions, value or new_items.")] = "conversions",
    guardrail: Annotated[
        list[str] | None, typer.Option(help="What must not fall, as clicks>=-1%; repeat for more.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Settings to try.", min=1)] = 1000,
    group: Annotated[str, typer.Option(help="Informative groups are counted by request, user or item.")] = "request",
    minimum_groups: Annotated[int, typer.Option(help="Refuse with fewer informative groups an objective.")] = 2000,
    allow_biased: Annotated[bool, typer.Option(help="Tune on a re-ordering estimate where nothing explored.")] = False,
    production: Annotated[Path | None, typer.Option(help="Weights that changes are against.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the search.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Searches fusion weights on the tune window and decides on the test window, once."""
    guardrails = dict(map(parse_guardrail, guardrail)) if guardrail else None
    with Bars(Console(stderr=True)) as bars:
        study = tune_source(
            source,
            data,
            production=production,
            progress=bars,
            objective=objective,
            guardrails=guardrails,
            trials=trials,
            group=group,
            minimum_groups=minimum_groups,
            allow_biased=allow_biased,
            seed=seed,
        ).save(out)
    if as_json:
        print(json.dumps(study.to_json()))
    else:
        print("\n".join(study_lines(study)))
        print(f"Wrote {out}. Next: seedrank replay report {out}")


@replay_app.command("report")
def report_command(
    study: StudyFile,
    out: Annotated[Path | None, typer.Option(help="The page; defaults to the study's name with .html.")] = None,
) -> None:
    """Writes the study as one self-contained HTML page."""
    from ranking.replay.study import Study
    from ranking.report.replay import write_report

    page = out or study.with_suffix(".html")
    commands = [
        f"seedrank replay apply {study} --out fusion.json",
        "seedrank export --run RUN --models MODELS --weights fusion.json",
    ]
    write_report(Study.load(study), page, commands=commands)
    print(f"Wrote {page}")


@replay_app.command("apply")
def apply_command(
    study: StudyFile,
    out: Annotated[Path, typer.Option(help="The weights file to write.")],
    pick: Annotated[str, typer.Option(help="pick, knee, or the name of a row of the report.")] = "pick",
) -> None:
    """Writes the chosen weights as the file that `seedrank export --weights` reads."""
    from ranking.replay.study import Study

    weights = Study.load(study).apply(out, pick)
    print(f"Wrote {out}: {', '.join(f'{name}={value:.4g}' for name, value in weights.weights.items())}")
