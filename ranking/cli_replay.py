"""The `seedrank replay` commands: judge and choose fusion weights."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ranking.errors import UserError
from ranking.progress import Bars, quiet
from ranking.replay_source import tune_source

__all__ = ["parse_guardrail", "replay_app", "study_lines", "tune_source"]

replay_app = typer.Typer(
    help="Judge and choose fusion weights on a log of candidates: check it, tune, look at the report, apply.",
    no_args_is_help=True,
)
StudyFile = Annotated[Path, typer.Argument(help="The study file that `replay tune` wrote.")]
Source = Annotated[Path, typer.Argument(help="A run folder (with --data), or a dataset folder with candidates.")]
Data = Annotated[Path | None, typer.Option("--data", help="The dataset whose candidates the run scores.")]
SameData = Annotated[
    Path | None,
    typer.Option("--data", help="The dataset that the study should be of: it is refused where it is another's."),
]
Production = Annotated[
    Path | None,
    typer.Option(
        help="Weights that changes are against; else the run's, or production_weights.json beside the log.",
    ),
]
Diversity = Annotated[
    str | None,
    typer.Option(help="A column of items: adds the objective diversity, how mixed a slate is in it.", metavar="COLUMN"),
]
Estimators = Annotated[
    str, typer.Option(help="E0 to E6 (docs/replay.md); auto: E3 where the log explored, else E0, which is biased.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]


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


def study_lines(study: Any) -> list[str]:
    """The verdict, what it rests on, and the shortlist as text."""
    from ranking.replay.evaluation import percent

    lines = [study.verdict, *study.banners, f"The test window was looked at {len(study.looks)} time(s)."]
    for entry in (*study.shortlist, *study.rivals):
        weights = ", ".join(f"{name}={value:.3g}" for name, value in entry.test.weights.items())
        roles = f" ({', '.join(entry.roles)})" if entry.roles else ""
        head = f"  {entry.name}{roles}: {weights or entry.description.rstrip('.')}"
        if entry.test.refused:
            lines.append(f"{head}: refused: {entry.test.refused}")
            continue
        changes = ", ".join(
            f"{name} {percent(found.delta)} [{percent(found.low)}, {percent(found.high)}]"
            for name, found in entry.test.estimates.items()
        )
        lines.append(f"{head}: {changes}")
    for where, log in (("tune", study.tune), ("test", study.test)):
        groups = ", ".join(f"{name} {count:,}" for name, count in log.informative.items())
        lines.append(f"Informative {study.settings['group']}s of the {where} window: {groups}.")
    if study.pick:
        lines.append(f"Weights hash of {study.pick}: {study.weights().hash}")
    return lines


@replay_app.command("check")
def check_command(
    log: Annotated[Path, typer.Argument(help="A dataset folder, best with candidates.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="A run whose scores take the place of the log's, as in tuning on it.")
    ] = None,
    window: Annotated[str, typer.Option(help="A window of dataset.toml.")] = "tune",
    production: Production = None,
    as_json: Json = False,
) -> None:
    """Is the served score reproduced, what did the policy explore, are labels final, is a row there twice?

    Exit code 2 where the log is not fit for a replay.

    Example: seedrank replay check data
    """
    if run is not None:
        quiet()
    from ranking.replay.check import check_lines, check_log

    with Bars(Console(stderr=True)) as bars:
        found = check_log(log, run, window=window, production=production, progress=bars)
    print(json.dumps(found.to_json()) if as_json else "\n".join(check_lines(found)))
    if not found.ok:
        raise typer.Exit(2)


@replay_app.command("tune")
def tune_command(
    source: Source,
    out: Annotated[Path, typer.Option(help="The study file to write (JSON); tuning again counts another look.")],
    data: Data = None,
    objective: Annotated[
        str, typer.Option(help="What to raise: clicks, conversions, value, new_items or diversity.")
    ] = "conversions",
    guardrail: Annotated[
        list[str] | None,
        typer.Option(help="What must not fall, on its lower bound; repeat for more. Without one, clicks>=-1%."),
    ] = None,
    diversity: Diversity = None,
    segments: Annotated[
        str | None,
        typer.Option(
            help="A column of requests or users: the report tells where the change differs.", metavar="COLUMN"
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Settings to try.", min=1)] = 2000,
    group: Annotated[str, typer.Option(help="Informative groups are counted by request, user or item.")] = "request",
    minimum_groups: Annotated[int, typer.Option(help="Refuse with fewer informative groups an objective.")] = 2000,
    estimator: Estimators = "auto",
    examination: Annotated[
        str, typer.Option(help="estimated before the tune window, stated by the log, or auto: estimated if it can be.")
    ] = "auto",
    rivals: Annotated[bool, typer.Option(help="Also judge a learned fusion, and separate models of the run.")] = True,
    allow_biased: Annotated[bool, typer.Option(help="Tune on a re-ordering estimate where nothing explored.")] = False,
    production: Production = None,
    seed: Annotated[int, typer.Option(help="Random seed of the search.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a tuning that was stopped (OUT.checkpoint), if there is one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Searches fusion weights on the tune window and decides on the test window, once.

    Recommended is what surely gains and surely keeps every guardrail; else the verdict is to keep production.

    Example: seedrank replay tune run --data data --objective value --guardrail "clicks>=-1%" --out study.json
    """
    from ranking.replay.study import Study

    if out.exists():
        Study.load(out)  # what may not be replaced is said before the work
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists() and not resume:
        raise UserError(f"{checkpoint} holds a tuning that was stopped: pass --resume to go on, or delete it.")
    guardrails = dict(map(parse_guardrail, guardrail)) if guardrail else None
    with Bars(Console(stderr=True)) as bars:
        study = tune_source(
            source,
            data,
            production=production,
            segments=segments,
            diversity=diversity,
            examination=examination,
            rivals=rivals,
            progress=bars,
            objective=objective,
            guardrails=guardrails,
            trials=trials,
            group=group,
            minimum_groups=minimum_groups,
            estimator=estimator,
            allow_biased=allow_biased,
            seed=seed,
            checkpoint=checkpoint,
        ).save(out)
    if as_json:
        print(json.dumps(study.to_json()))
    else:
        print("\n".join(study_lines(study)))
        print(f"Wrote {out}. Next: seedrank replay report {out}")


@replay_app.command("whatif")
def whatif_command(
    source: Annotated[Path, typer.Argument(help="A study file; or a run folder (with --data), or a dataset folder.")],
    weights: Annotated[
        list[str], typer.Option(help="As similarity=.2,pctr=1: others as in production; repeat for more.")
    ],
    data: SameData = None,
    window: Annotated[
        str, typer.Option(help="tune, or test: a look at the test window, which a study counts.")
    ] = "tune",
    production: Production = None,
    diversity: Diversity = None,
    estimator: Estimators = "auto",
    as_json: Json = False,
) -> None:
    """What some weights would have done against production, with intervals; on the tune window unless told otherwise.

    Example: seedrank replay whatif study.json --weights similarity=.2,pctr=1,pcvr=.6
    """
    from ranking.replay_whatif import what_if

    with Bars(Console(stderr=True)) as bars:
        found = what_if(
            source,
            weights,
            data=data,
            window=window,
            production=production,
            diversity=diversity,
            estimator=estimator,
            progress=bars,
        )
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        Console().print(_whatif_table(found), *map(Text, found.notes), sep="\n")


def _whatif_table(found: Any) -> Table:
    from ranking.replay.evaluation import percent

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (f"change against production, {found.window} window", "", "95 % interval"):
        table.add_column(name, justify="left" if not table.columns else "right")
    for row in found.evaluations:
        state = f"refused: {row.refused}" if row.refused else "re-ordering estimate, biased"
        if row.support is not None and not row.refused:
            state = f"supported, effective sample {row.support.effective:.0%}"
        table.add_row(Text(", ".join(f"{name}={weight:.3g}" for name, weight in row.weights.items()), style="bold"))
        table.add_row(Text(state, style="dim"))
        for name in found.objectives:
            if name in row.estimates:
                one = row.estimates[name]
                interval = f"{percent(one.low)} to {percent(one.high)}"
                table.add_row(f"  {name.replace('_', ' ')}", percent(one.delta), interval)
    return table


def _same_data(study: Any, data: Path | None) -> None:
    """Refuses a study of another log than the one in `data`, where that is given."""
    if data is not None:
        from ranking.replay_whatif import refuse_other_data

        with Bars(Console(stderr=True)) as bars:
            refuse_other_data(study, data, bars)


@replay_app.command("report")
def report_command(
    study: StudyFile,
    out: Annotated[Path | None, typer.Option(help="The page; defaults to the study's name with .html.")] = None,
    data: SameData = None,
) -> None:
    """Writes the study as one self-contained HTML page.

    Example: seedrank replay report study.json
    """
    from ranking.replay.study import Study
    from ranking.report.replay import write_report

    found = Study.load(study)
    _same_data(found, data)
    page = out or study.with_suffix(".html")
    apply = f"seedrank replay apply {shlex.quote(str(study))} --pick {'recommended' if found.pick else 'production'}"
    commands = [f"{apply} MODELS", *([_tune_line(found, study)] if found.source else [])]
    write_report(found, page, commands=commands)
    print(f"Wrote {page}")


def _tune_line(study: Any, out: Path) -> str:
    """The command that made a study."""
    source, settings = dict(study.source), study.settings
    words = ["seedrank", "replay", "tune", source.pop("source"), "--objective", study.objective]
    for name, least in study.guardrails.items():
        words += ["--guardrail", f"{name}>={100 * least:g}%"]
    given = {name: settings[name] for name in ("trials", "group", "minimum_groups", "estimator", "seed")}
    for name, value in {**source, **given}.items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value != "" else []
    return shlex.join([*words, "--out", str(out)])


@replay_app.command("apply")
def apply_command(
    study: StudyFile,
    models: Annotated[
        Path | None, typer.Argument(help="The folder of models: a version with these weights is published in it.")
    ] = None,
    pick: Annotated[
        str, typer.Option(help="recommended, knee, best:value (or another objective), production, or 'setting 3'.")
    ] = "recommended",
    out: Annotated[Path | None, typer.Option(help="The weights file to write.")] = None,
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    data: SameData = None,
) -> None:
    """Publishes a version that is the live one but for the weights, or writes them as a file.

    Example: seedrank replay apply study.json --pick recommended models
    """
    from ranking.replay.study import Study

    if models is None and out is None:
        raise UserError("Where to? Give MODELS, to publish a version with the weights, or --out, to write a file.")
    found = Study.load(study)
    _same_data(found, data)
    weights = found.weights(pick)
    if models is not None:
        quiet()
        with Bars(Console(stderr=True)) as bars:
            bars("publish and verify", 0, 1)
            from ranking.apply import apply_weights

            version = apply_weights(models, weights, name=name)
            bars("publish and verify", 1, 1)
        print(f"Published {version}")
    if out is not None:
        weights.save(out)
        print(f"Wrote {out}")
    print(f"Weights: {', '.join(f'{part}={value:.4g}' for part, value in weights.weights.items())}")
    print(f"Hash: {weights.hash}")


@replay_app.command("export")
def export_command(
    study: StudyFile,
    storage: Annotated[
        str, typer.Option(help="sqlite:///FILE, or the file of an Optuna journal (which is faster to write).")
    ],
) -> None:
    """Writes every trial as an Optuna study, for optuna-dashboard.

    Example: seedrank replay export study.json --storage sqlite:///trials.db
    """
    from ranking.replay.optuna_export import STUDY_NAME, export_study
    from ranking.replay.study import Study

    found = Study.load(study)
    with Bars(Console(stderr=True)) as bars:
        path = export_study(found, storage, progress=lambda done, total: bars("trials written", done, total))
    print(f"Wrote {path}, study {STUDY_NAME!r}: open it with optuna-dashboard {storage}")
