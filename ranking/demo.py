"""`seedrank demo`: the whole life cycle once, on a simulated log."""

import time
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from ranking.atomic import refuse_existing
from ranking.errors import UserError
from ranking.progress import Bars, quiet

__all__ = ["run_demo"]

CANDIDATES = 10


def run_demo(out: Path, *, overwrite: bool = False) -> None:
    """Simulates, trains, evaluates, tunes, exports, serves and asks; prints what happened and where it lies.

    Args:
        out: Path. The folder for everything: data, run, study, models.
        overwrite: bool. Whether the data and run of an earlier demo are replaced. Defaults to `False`.
    """
    data, run_path, models, study_path = out / "data", out / "run", out / "models", out / "study.json"
    for folder in (data, run_path):
        refuse_existing(folder, overwrite)
    if models.exists() and not overwrite:
        raise UserError(f"{models} exists already: choose another --out, or pass --overwrite.")
    screen, began = Console(), time.perf_counter()

    def step(title: str) -> None:
        screen.print(Rule(title, align="left"))

    step("1. A log whose truth is known")
    from ranking.data.check import check, print_report
    from ranking.data.simulator import load_world, simulate

    with Bars(screen) as bars:
        simulate(load_world("demo"), data, overwrite=overwrite, progress=bars)
    print_report(check(data))

    step("2. Training: user representation, look-alike, ESMM, baselines")
    with Bars(screen) as bars:
        bars("loading TensorFlow", 0, 1)
        quiet()
        from ranking.data.tables import Dataset
        from ranking.evaluation import evaluate_run
        from ranking.export import export_run
        from ranking.fit import fit_run
        from ranking.report.tables import evaluation_table, ranking_table, training_table

        bars("loading TensorFlow", 1, 1)
        dataset = Dataset(data)
        run = fit_run(dataset, run_path, baselines=True, seeds=1, overwrite=overwrite, progress=bars)
    screen.print(training_table(run.info, run_path))

    step("3. Evaluation on later days, tables frozen at the watermark")
    with Bars(screen) as bars:
        found = evaluate_run(run, dataset, replicates=100, progress=bars)
    screen.print(evaluation_table(found))

    step("4. Replay: which weights would have earned more, without losing clicks?")
    from ranking.cli_replay import study_lines, tune_source
    from ranking.report.replay import write_report

    with Bars(screen) as bars:
        study = tune_source(
            run_path,
            data,
            progress=bars,
            segments="segment",
            diversity="category",
            rivals=True,
            objective="value",
            guardrails={"clicks": -0.01},
        ).save(study_path)
    for line in study_lines(study)[: 3 + len(study.banners)]:
        screen.print(line, highlight=False)
    pick = "recommended" if study.pick else "production"
    commands = [f"seedrank replay apply {study_path} --pick {pick} {models}"]
    page = write_report(study, out / "replay.html", commands=commands)
    weights = study.apply(out / "fusion.json") if study.pick else None

    step("5. Export: a verified, atomically published version")
    with Bars(screen) as bars:
        bars("export and verify", 0, 1)
        version = export_run(run, models, weights=weights)
        bars("export and verify", 1, 1)
    screen.print(f"{version}, serving {'the chosen weights' if weights else 'the weights of production'}")

    step("6. Serving: one request over REST, the same over gRPC")
    from serving.rest import RankClient as RestClient
    from serving.rpc import RankClient as GrpcClient
    from serving.server import Server

    last = dataset.requests.iloc[-1]
    shown = dataset.candidates[dataset.candidates["request_id"] == last["request_id"]].head(CANDIDATES)
    context = {feature.name: last[feature.name] for feature in dataset.schema.side("context")}
    user, items = last["user_id"].item(), shown["item_id"].tolist()
    answers = []
    with Server(models, rest_port=0, grpc_port=0) as server:
        for client in (
            RestClient(f"http://127.0.0.1:{server.rest_port}"),
            GrpcClient(f"127.0.0.1:{server.grpc_port}"),
        ):
            with client:
                client.rank(user, items, context=context)  # the first request traces nothing, but warms caches
                started = time.perf_counter()
                answers.append((client.rank(user, items, context=context), time.perf_counter() - started))
    rest, grpc = answers
    order = sorted(range(len(items)), key=lambda row: -rest[0]["score"][row])
    screen.print(ranking_table([{"item_id": items[row], **{k: v[row] for k, v in rest[0].items()}} for row in order]))
    gap = max(abs(a - b) for a, b in zip(rest[0]["score"], grpc[0]["score"], strict=True))
    screen.print(
        f"{len(items)} candidates: REST {1000 * rest[1]:.1f} ms, gRPC {1000 * grpc[1]:.1f} ms; "
        f"the largest difference of a score is {gap:.1e}"
    )

    step(f"Done in {time.perf_counter() - began:.0f} s")
    for what, path in (
        ("the simulated log", data),
        ("the trained run", run_path),
        ("the replay report, open it in a browser", page),
        ("the models, as TensorFlow Serving reads them", models),
    ):
        screen.print(f"  {str(path):<32} {what}", highlight=False)
    tab = " ".join(f"--context {name}={value}" for name, value in context.items())
    screen.print(
        "Try next:\n"
        f"  seedrank serve {models} &\n"
        f"  seedrank rank --user {user} --items {','.join(map(str, items[:5]))} {tab}\n"
        f"  seedrank evaluate --run {run_path} --data {data} --state rolling\n"
        f"  seedrank data import kuairand --source KuaiRand-Pure --out kuairand   # your own log: docs/data.md",
        highlight=False,
        soft_wrap=True,
    )
