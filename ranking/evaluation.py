"""What a run is worth on a window: metrics beside baselines, with standard errors that know users repeat."""

from typing import Any

import numpy as np
import pandas as pd

from ranking.batches import Progress, silent
from ranking.bootstrap import AUC, ECE, GAUC, NDCG, PCOC, LogLoss, Mean, Statistic, user_bootstrap
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.features import Arrays
from ranking.metrics import precision_at
from ranking.rows import Rows, labelled, training_rows
from ranking.run import Run
from ranking.scoring import context_arrays
from ranking.state import similarity_of
from ranking.timeline import Timeline

__all__ = ["HEADS", "METRICS", "RARE", "evaluate_run", "frozen_rows"]

HEADS = {  # head -> label, probability, rows it is judged on
    "click": ("click", "pctr", "all"),
    "cvr": ("conversion", "pcvr", "clicked"),
    "ctcvr": ("conversion", "pctcvr", "mature"),
    # the paper's protocol: every model's own pcvr times one common pctr, so that only the pcvr is compared
    "ctcvr_common": ("conversion", "pctcvr_common", "mature"),
}
METRICS = {"auc": AUC, "gauc": GAUC, "ndcg": NDCG, "logloss": LogLoss, "pcoc": PCOC, "ece": ECE}
SEGMENTS = ("all", "new", "rare")
RARE = 50  # an item with fewer impressions before the watermark is rarely shown


def evaluate_run(
    run: Run,
    dataset: Dataset,
    *,
    window: str = "test",
    state: str = "frozen",
    replicates: int = 200,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Judges a run on a window of a dataset, its own or that of later days.

    Args:
        run: Run.
        dataset: Dataset. May be another folder than the one trained on; unknown ids are counted.
        window: str. Name of a window of the dataset.
        state: str. `"frozen"`: every row sees the tables as of the run's watermark, as an exported model does;
            `"rolling"`: each row sees those of its own tick (users' own statistics stay frozen at the window's start).
        replicates: int. Bootstrap replicates over users.
        progress: Progress.

    Returns:
        Dict as `seedrank evaluate --json` prints it: `rows`, `models` (model -> head of `HEADS` -> each of `METRICS`,
        the mean over the random seeds of a model, and its standard error `<metric>_se`), `similarity`, `unknown`, and
        `differences` of seedrank from the others: paired, overall and on items that are new or rarely shown. The head
        `ctcvr_common` is there where the run has the variant "base", whose first click network is the common one.
    """
    timeline = Timeline(dataset)
    start, _ = timeline.window(window)
    if start < run.state.tick and state == "frozen":
        raise UserError(
            f"{dataset.path}: the window {window!r} starts before the run's watermark, so its tables have seen the "
            "answers; choose a later window, or --state rolling."
        )
    rows = frozen_rows(run, timeline, window) if state == "frozen" else None
    if rows is None:
        at = int(timeline.tick(np.array([start]))[0])
        rows = training_rows(run.builder(timeline), window, user_statistics_at=at, progress=progress)
    users, items = _raw_ids(timeline, rows)
    item_row = run.state.rows("item", items)
    shown = np.append(run.impressions, 0)[item_row]
    columns: dict[str, np.ndarray] = {
        "click": rows.click,
        "conversion": rows.conversion,
        "user_id": timeline.user[rows.row],
        "all": np.ones(len(rows.row), bool),
        "clicked": (rows.click > 0) & rows.mature,
        "mature": rows.mature,
        "new": shown == 0,
        "rare": (shown > 0) & (shown < RARE),
    }
    predictions = _predictions(run, rows, item_row, progress)
    _add_common(predictions)
    progress("bootstrap over users", 0, 1)
    models, differences = _judge(columns, predictions, replicates)
    progress("bootstrap over users", 1, 1)
    has = rows.features["has_similarity"] > 0
    return {
        "rows": len(rows.row),
        "window": window,
        "state": state,
        "watermark": run.state.tick,
        "models": models,
        "differences": differences,
        "similarity": _similarity(columns, rows, has, items, replicates),
        "unknown": {
            "users": int((~users.isin(run.state.user_ids)).sum()),
            "items": int((~items.isin(run.state.item_ids)).sum()),
        },
        "immature": int((~rows.mature).sum()),
        "repeats": int(rows.repeat.sum()),
        "rows_new_items": int(columns["new"].sum()),
        "rows_rare_items": int(columns["rare"].sum()),
    }


def _raw_ids(timeline: Timeline, rows: Rows) -> tuple[pd.Series, pd.Series]:
    frame = timeline.impressions.iloc[rows.row]
    return frame["user_id"], frame["item_id"]


def frozen_rows(run: Run, timeline: Timeline, window: str) -> Rows:
    """The rows of a window as an exported version of the run would see them."""
    chosen = timeline.some_rows_in(window)
    frame = timeline.impressions.iloc[chosen]
    user, item = run.state.rows("user", frame["user_id"]), run.state.rows("item", frame["item_id"])
    features = run.state.features(user, item, context_arrays(run, frame))
    features |= similarity_of(run.lookalike, run.state, user, item)
    return labelled(timeline, chosen, features, np.zeros(len(chosen), bool))


def _predictions(run: Run, rows: Rows, item_row: np.ndarray, progress: Progress) -> dict[str, list[Arrays]]:
    """Model -> one dict of probabilities a random seed."""
    found: dict[str, list[Arrays]] = {}
    total = sum(map(len, run.models.values()))
    for variant, models in run.models.items():
        found[variant] = []
        for number in range(len(models)):
            found[variant].append(run.predict(rows.features, variant, number, position=True))
            progress("predictions", sum(map(len, found.values())), total)
    if run.popularity is not None:
        found["popularity"] = [run.popularity.predict(item_row)]
    if run.logistic is not None:
        found["logistic"] = [run.logistic.predict(rows.features, run.features(similarity=False))]
    return found


def _add_common(predictions: dict[str, list[Arrays]]) -> None:
    if "base" not in predictions:
        return
    common = predictions["base"][0]["pctr"]
    for parts in (parts for seeds in predictions.values() for parts in seeds):
        parts["pctcvr_common"] = common * parts["pcvr"]


def _judge(
    columns: dict[str, np.ndarray], predictions: dict[str, list[Arrays]], replicates: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of every model, and paired differences of seedrank from the others; by segment from no_similarity."""
    columns = dict(columns)
    for model, seeds in predictions.items():
        for number, parts in enumerate(seeds):
            columns |= {f"{model}/{number}/{part}": np.asarray(values, np.float64) for part, values in parts.items()}
    for segment in SEGMENTS[1:]:
        columns |= {f"{where}&{segment}": columns[where] & columns[segment] for _, _, where in HEADS.values()}

    def over_seeds(kind: type, model: str, head: str, segment: str = "all") -> Mean:
        label, part, where = HEADS[head]
        where = where if segment == "all" else f"{where}&{segment}"
        return Mean([kind(label, f"{model}/{number}/{part}", where=where) for number in range(len(predictions[model]))])

    heads = [head for head, (_, part, _) in HEADS.items() if all(part in seeds[0] for seeds in predictions.values())]
    statistics: dict[str, Statistic] = {}
    pairs = {}
    for head in heads:
        for model in predictions:
            for metric, kind in METRICS.items():
                statistics[f"{model}/{head}/all/{metric}"] = over_seeds(kind, model, head)
            for segment in SEGMENTS if model in ("seedrank", "no_similarity") else SEGMENTS[:1]:
                for metric, kind in (("auc", AUC), ("logloss", LogLoss)):
                    statistics[f"{model}/{head}/{segment}/{metric}"] = over_seeds(kind, model, head, segment)
                    if model != "seedrank":
                        pair = f"seedrank/{head}/{segment}/{metric}", f"{model}/{head}/{segment}/{metric}"
                        pairs[f"{model}/{head}/{segment}/{metric}/difference"] = pair
    found = user_bootstrap(columns["user_id"], columns, statistics, differences=pairs, replicates=replicates, seed=0)
    ones = np.ones(len(columns["click"]))
    models: dict[str, Any] = {}
    for model in predictions:
        models[model] = {}
        for head in heads:
            of_head: dict[str, Any] = {}
            for metric in METRICS:
                of_head[metric] = found.estimate[f"{model}/{head}/all/{metric}"]
                of_head[f"{metric}_se"] = found.se[f"{model}/{head}/all/{metric}"]
            of_head["auc_by_seed"] = [part(columns, ones) for part in over_seeds(AUC, model, head).parts]
            models[model][head] = of_head
    names = ("from", "head", "items", "metric")
    differences = [
        dict(zip(names, name.split("/")[:4], strict=True)) | {"difference": found.estimate[name], "se": found.se[name]}
        for name in pairs
    ]
    return models, differences


def _similarity(
    columns: dict[str, np.ndarray], rows: Rows, has: np.ndarray, items: pd.Series, replicates: int
) -> dict[str, Any]:
    """The similarity alone, on the rows that have one; precision over the exposed users of each item."""
    score = rows.features["similarity"].astype(np.float64)
    both = {"click": columns["click"], "similarity": score, "has": has}
    found = user_bootstrap(
        columns["user_id"], both, {"auc": AUC("click", "similarity", where="has")}, replicates=replicates, seed=0
    )
    item = pd.factorize(items)[0]
    return {
        "rows": int(has.sum()),
        "auc": found.estimate["auc"],
        "auc_se": found.se["auc"],
        "precision_at_10": precision_at(columns["click"][has], score[has], item[has], 10),
        "precision_at_10_random": precision_at(columns["click"][has], np.zeros(int(has.sum())), item[has], 10),
    }
