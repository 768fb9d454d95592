"""The `seedrank replay` commands: judge and choose fusion weights."""

import dataclasses
import json
import shlex
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ranking.errors import UserError
from ranking.progress import Bars, quiet
from ranking.replay_source import ReplaySource, tune_source

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
    rivals: Annotated[bool, typer.Option(help="Also judge a learned fusion, and separate models of the run.")] = False,
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
    from ranking.replay.estimators import choose_estimator
    from ranking.replay.evaluation import Evaluator
    from ranking.replay.study import Study

    if window not in ("tune", "test"):
        raise UserError(f"`--window` should be tune or test. Received: {window!r}.")
    study = Study.load(source) if source.is_file() else None
    group = "request"
    if study is None:
        texts = {name: str(path or "") for name, path in (("data", data), ("production", production))}
        where = ReplaySource(str(source), diversity=diversity or "", **texts)
    else:
        where, group, estimator = _source_of(study, source), study.settings["group"], study.settings["estimator"]
        where = where.moved(data)
    with Bars(Console(stderr=True)) as bars:
        loaded = where.load([window], progress=bars)
    log = loaded.logs[window]
    if study is not None:
        study.refuse_other(window, log.hash)
    base = loaded.production if study is None else study.production
    settings = [_setting(text, base) for text in weights]
    judge = Evaluator(log, base, choose_estimator(log, group, estimator))
    if window == "test" and study is not None:
        study = study.looked(uuid.uuid4().hex).save(source)  # before the number is seen
    found = judge.evaluate(settings)
    notes = [*judge.estimator.banners(log), *([loaded.note] if loaded.note else [])]
    if window == "test":
        looks = "; no study counts it" if study is None else f": {len(study.looks)} so far"
        notes.append(f"This was a look at the test window{looks}.")
    if as_json:
        rows = [{**row.to_json(), "refused": row.refused} for row in found]
        print(json.dumps({"window": window, "estimator": judge.estimator.name, "notes": notes, "settings": rows}))
    else:
        Console().print(_whatif_table(found, judge.objectives, window), *(Text(note) for note in notes), sep="\n")


def _source_of(study: Any, path: Path) -> ReplaySource:
    if not study.source:
        raise UserError(f"{path} does not say where its log is: give the run or the dataset in its place.")
    return ReplaySource(**study.source)


def _setting(text: str, production: Any) -> Any:
    from ranking.fusion import parse_weights

    given = parse_weights(text)
    for name, weight in given.items():
        low, high = production.bounds.get(name, (0.0, 0.0))
        if name not in production.weights or not low <= weight <= high:
            raise UserError(
                f"`--weights` should be of {', '.join(production.weights)}, each within production's bounds. "
                f"Received: {name}={weight:g}, bounds {low:g} to {high:g}."
            )
    return dataclasses.replace(production, weights={**production.weights, **given}, segments={})


def _whatif_table(found: Any, objectives: Any, window: str) -> Table:
    from ranking.replay.evaluation import percent

    table = Table(
        title=f"Change against production on the {window} window, 95 %", title_justify="left", box=None, pad_edge=False
    )
    for name in ("weights", *(name.replace("_", " ") for name in objectives), "support"):
        table.add_column(name)
    for row in found:
        changes = [
            f"{percent(one.delta)} [{percent(one.low)}, {percent(one.high)}]" if one else "-"
            for one in map(row.estimates.get, objectives)
        ]
        state = row.refused or ("biased" if row.support is None else f"effective sample {row.support.effective:.0%}")
        used = ",".join(f"{name}={weight:.3g}" for name, weight in row.weights.items() if weight)
        table.add_row(used, *changes, f"refused: {state}" if row.refused else state)
    return table


def _same_data(study: Any, path: Path, data: Path | None) -> None:
    """Refuses a study of another log than the one in `data`."""
    if data is not None:
        with Bars(Console(stderr=True)) as bars:
            log = _source_of(study, path).moved(data).load(["tune"], progress=bars).logs["tune"]
        study.refuse_other("tune", log.hash)


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
    _same_data(found, study, data)
    page = out or study.with_suffix(".html")
    apply = f"seedrank replay apply {shlex.quote(str(study))} --pick {'recommended' if found.pick else 'production'}"
    commands = [f"{apply} --models MODELS", *([_tune_line(found, study)] if found.source else [])]
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
    pick: Annotated[
        str, typer.Option(help="recommended, knee, best:value (or another objective), production, or 'setting 3'.")
    ] = "recommended",
    models: Annotated[
        Path | None, typer.Option(help="The folder of models: a version with these weights is published in it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The weights file to write.")] = None,
    name: Annotated[str, typer.Option(help="The model's name.")] = "seedrank",
    data: SameData = None,
) -> None:
    """Publishes a version that is the live one but for the weights, or writes them as a file.

    Example: seedrank replay apply study.json --pick recommended --models models
    """
    from ranking.replay.study import Study

    if models is None and out is None:
        raise UserError("Where to? Pass --models, to publish a version with the weights, or --out, to write a file.")
    found = Study.load(study)
    _same_data(found, study, data)
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
