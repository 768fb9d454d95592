"""Every strategy and every way of sharing, beside what they have to beat, on one dataset.

Each contender chooses its passes on the calibrate window with its first random seed (and is calibrated there); with
--refit all its random seeds are then fitted on train + calibrate + tune. Judged is the test window, state frozen at the
watermark; standard errors by a bootstrap over users. Where the dataset has a truth beside it (a simulated one), the
conversion head is judged over the entire space. Finished contenders stay in the work folder: an interrupted run goes
on where it was.

    python benchmarks/quality.py --data slice --work work/slice --refit --seeds 3
    python benchmarks/quality.py --data reference --work work/reference --seeds 5
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd

from ranking.progress import quiet

CONTENDERS = {  # name -> what differs from the defaults
    "ESMM": {},
    "ESMM, no similarity": {},
    "BASE": {"strategy": "base"},
    "AMAN": {"strategy": "aman"},
    "OVERSAMPLING": {"strategy": "oversampling"},
    "UNBIAS": {"strategy": "unbias"},
    "DIVISION": {"strategy": "division"},
    "ESMM-NS": {"strategy": "esmm_ns"},
    "ESCM2-IPS": {"strategy": "escm2_ips"},
    "ESCM2-DR": {"strategy": "escm2_dr"},
    "hard": {"sharing": "hard"},
    "mmoe": {"sharing": "mmoe"},
    "hierarchical": {"sharing": "hierarchical"},
    "shared_private": {"sharing": "shared_private"},
}
SIMPLE = ("popularity", "logistic regression", "gradient boosting")
PARTS = ("pctr", "pcvr", "pctcvr")
HEADS = {
    "click": ("click", "pctr", ""),
    "CVR": ("conversion", "pcvr", "clicked"),
    "CTCVR": ("conversion", "pctcvr", ""),
}
CALIBRATED = {
    f"{head}, calibrated": (label, f"{part}, calibrated", where) for head, (label, part, where) in HEADS.items()
}
BOOSTING = {"learning_rate": 0.05, "max_leaf_nodes": 31, "min_samples_leaf": 40, "l2_regularization": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--work", type=Path, required=True, help="folder of runs and finished contenders")
    parser.add_argument("--refit", action="store_true", help="fit on train + calibrate + tune in the end")
    parser.add_argument("--seeds", type=int, default=3, help="random seeds of each contender")
    parser.add_argument("--epochs", type=int, default=3, help="passes at most")
    parser.add_argument("--only", nargs="+", default=[*CONTENDERS, *SIMPLE], help="contenders, by name")
    parser.add_argument("--esmm", default="", help="other defaults of all contenders, as dropout=0.3,l2=1e-6")
    parser.add_argument("--replicates", type=int, default=200, help="bootstrap replicates over users")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    quiet()
    from rich.console import Console

    from ranking.progress import Bars

    with Bars(Console(stderr=True)) as bars:
        bench = Bench(arguments, bars)
        for name in arguments.only:
            bench.predictions(name)
    found = bench.judge(arguments.only, arguments.replicates)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


class Bench:
    """The dataset, its rows as a run sees them, and the contenders' predictions of the test window."""

    def __init__(self, arguments: argparse.Namespace, progress) -> None:
        from ranking.data.tables import Dataset
        from ranking.esmm_settings import EsmmSettings
        from ranking.evaluation import frozen_rows
        from ranking.timeline import Timeline

        self.arguments, self.progress = arguments, progress
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.settings = EsmmSettings.parse(arguments.esmm, EsmmSettings(epochs=arguments.epochs))
        self.dataset = Dataset(arguments.data)
        self.timeline = Timeline(self.dataset)
        self.first = self._run(refit=False)
        self.last = self._run(refit=True) if arguments.refit else self.first
        self.choice = self._rows(self.first, "train")
        self.calibrate = self._rows(self.first, "calibrate")
        self.final = self._rows(self.last, "train", "calibrate", "tune") if arguments.refit else self.choice
        self.test = frozen_rows(self.last, self.timeline, "test")

    def _run(self, *, refit: bool):
        from ranking.esmm_settings import EsmmSettings
        from ranking.fit import fit_run
        from ranking.run import load_run
        from ranking.training import Settings

        path = self.arguments.work / ("refitted" if refit else "run")
        if not path.exists():
            settings = Settings(esmm=EsmmSettings(epochs=1))  # only its first stages and its tables are used
            fit_run(self.dataset, path, settings=settings, refit=refit, resume=True, progress=self.progress)
        return load_run(path)

    def _rows(self, run, *windows: str):
        from ranking.rows import training_rows

        rows = training_rows(run.builder(self.timeline), *windows, progress=self.progress)
        return dataclasses.replace(rows, features=run.scales.apply(rows.features))

    def predictions(self, name: str) -> dict[str, np.ndarray]:
        """pctr, pcvr and pctcvr of the test window, `[random seeds, rows]`, as trained and calibrated."""
        path = self.arguments.work / f"{name}.npz"
        if not path.exists():
            simple = {"popularity": self._popularity, "logistic regression": self._logistic}
            simple["gradient boosting"] = self._boosting
            found, info = simple[name]() if name in simple else self._network(name)
            arrays = {part: np.stack([seed[part] for seed in found]) for part in found[0]}
            np.savez(path, info=np.array(json.dumps(info)), **arrays)
        with np.load(path) as found:
            return {key: found[key] for key in found.files}

    def _network(self, name: str) -> tuple[list[dict], dict]:
        from esmm.calibration import calibrated
        from ranking.fitting import calibration_on
        from ranking.training import train_esmm

        settings = dataclasses.replace(self.settings, **CONTENDERS[name])
        similarity = name != "ESMM, no similarity"
        model, info = train_esmm(
            self.choice,
            self.first.features(similarity=similarity),
            settings,
            validation=self.calibrate,
            progress=self.progress,
            stage=f"{name}, passes",
        )
        maps = calibration_on(model, self.calibrate, "auto")
        found = []
        for seed in range(self.arguments.seeds):
            if self.arguments.refit or seed:
                model, _ = train_esmm(
                    self.final,
                    self.last.features(similarity=similarity),
                    settings,
                    schedule=info["epochs"],
                    seed=seed,
                    progress=self.progress,
                    stage=f"{name}, random seed {seed}",
                )
                if not self.arguments.refit:
                    maps = calibration_on(model, self.calibrate, "auto")
            after = {f"{part}, calibrated": values for part, values in self._predict(calibrated(model, maps)).items()}
            found.append(self._predict(model) | after)
        return found, {key: info[key] for key in ("epochs", "validation")}

    def _predict(self, model) -> dict[str, np.ndarray]:
        arrays = self.last.scales.apply(self.test.features)
        inputs = {tensor.name: arrays[tensor.name] for tensor in model.inputs}
        found = model.predict(inputs, batch_size=8192, verbose=0)
        return {part: np.asarray(found[part]) for part in PARTS}

    def _popularity(self) -> tuple[list[dict], dict]:
        from ranking.baselines import Popularity

        rows, timeline = self.final, self.timeline
        fitted = Popularity.fit(timeline.item[rows.row], rows, len(timeline.item_ids))
        return [fitted.predict(timeline.item[self.test.row])], {}

    def _logistic(self) -> tuple[list[dict], dict]:
        from ranking.baselines import Logistic

        features = self.last.features(similarity=False)
        fitted = Logistic.fit(self.final, features)
        return [fitted.predict(self.last.scales.apply(self.test.features), features)], {}

    def _boosting(self) -> tuple[list[dict], dict]:
        """scikit-learn's trees on the same point-in-time statistics, attributes and context; no ids, no similarity."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        test = self.last.scales.apply(self.test.features)
        found, trees = {}, {}
        for part, label, clicked in (("pctr", "click", 0), ("pcvr", "conversion", 1), ("pctcvr", "conversion", 0)):
            sides = []
            for rows in (self.choice, self.calibrate, self.final):
                kept = rows.mature & (rows.click > 0) if clicked else rows.mature | (label == "click")
                sides.append((self._matrix(rows.features)[kept], getattr(rows, label)[kept]))
            (x, y), (judge_x, judge_y), (final_x, final_y) = sides
            settings = {**BOOSTING, "categorical_features": self._categorical(), "early_stopping": False}
            model = HistGradientBoostingClassifier(max_iter=300, random_state=0, **settings).fit(x, y)
            losses = [
                -np.mean(judge_y * np.log(p[:, 1]) + (1 - judge_y) * np.log(p[:, 0]))
                for p in model.staged_predict_proba(judge_x)
            ]
            trees[part] = int(np.argmin(losses)) + 1
            model = HistGradientBoostingClassifier(max_iter=trees[part], random_state=0, **settings)
            found[part] = model.fit(final_x, final_y).predict_proba(self._matrix(test))[:, 1]
            self.progress("gradient boosting", len(found), 3)
        return [found], {"trees": trees}

    def _columns(self) -> list:
        wanted = [f for f in self.first.features(similarity=False) if f.kind != "multi"]
        return [f for f in wanted if f.name not in ("user_id", "item_id") and (f.kind == "numeric" or f.size <= 250)]

    def _categorical(self) -> list[int]:
        widths = [max(feature.size, 1) if feature.kind == "numeric" else 1 for feature in self._columns()]
        starts = np.cumsum([0, *widths])
        return [int(starts[n]) for n, feature in enumerate(self._columns()) if feature.kind == "categorical"]

    def _matrix(self, features: dict) -> np.ndarray:
        parts = []
        for column in self._columns():
            values = np.asarray(features[column.name], np.float64)
            if column.kind == "categorical":  # a value that came later is one not known
                values = np.where(values < column.size, values, 1)
            parts.append(values.reshape(len(values), -1))
        return np.hstack(parts)

    def judge(self, names: list[str], replicates: int) -> dict:
        """Metrics of every contender, the mean over its random seeds, and ESMM minus each of them."""
        from ranking.bootstrap import AUC, PCOC, LogLoss, user_bootstrap

        test = self.test
        columns = {"click": test.click, "conversion": test.conversion, "clicked": (test.click > 0) & test.mature}
        user = self.timeline.user[test.row]
        statistics, info = {}, {}
        common = self.predictions("BASE")["pctr"][0] if "BASE" in names else None
        for name in names:
            found = self.predictions(name)
            info[name] = json.loads(str(found.pop("info")))
            parts = {part: list(values) for part, values in found.items()}
            if common is not None:
                parts["common"] = [np.clip(common * values, 0, 1) for values in found["pcvr"]]
            for part, seeds in parts.items():
                columns |= {f"{name}/{part}/{n}": np.asarray(v, np.float64) for n, v in enumerate(seeds)}
            for head, (label, part, where) in {
                **HEADS,
                **CALIBRATED,
                "CTCVR, one pCTR": ("conversion", "common", ""),
            }.items():
                for metric, kind in (("AUC", AUC), ("log loss", LogLoss), ("PCOC", PCOC)):
                    if part in parts:
                        each = [kind(label, f"{name}/{part}/{n}", where=where) for n in range(len(parts[part]))]
                        statistics[f"{name}|{head}|{metric}"] = Mean(each)
        pairs = {
            f"ESMM|{key.split('|', 1)[1]} minus {key.split('|')[0]}": (f"ESMM|{key.split('|', 1)[1]}", key)
            for key in statistics
            if "ESMM" in names and not key.startswith("ESMM|")
        }
        found = user_bootstrap(user, columns, statistics, differences=pairs, replicates=replicates, seed=0)
        table: dict = {name: {"info": info[name]} for name in names}
        for key in statistics:
            name, head, metric = key.split("|")
            each = [float(part(columns, np.ones(len(user)))) for part in statistics[key].parts]
            entry = {"value": found.estimate[key], "se": found.se[key], "by seed": each}
            pair = f"ESMM|{head}|{metric} minus {name}"
            if pair in pairs:
                entry |= {"ESMM minus": found.estimate[pair], "ESMM minus, se": found.se[pair]}
            table[name].setdefault(head, {})[metric] = entry
        result = {"rows": len(test.row), "contenders": table}
        truth = self.dataset.path / "truth" / "impressions.parquet"
        return result | ({"truth": self._against(truth, names)} if truth.exists() else {})

    def _against(self, path: Path, names: list[str]) -> dict:
        """Against the true probabilities of every impression: share of what can be known, means, deciles."""
        truth = pd.read_parquet(path).iloc[self.test.row]
        click = (truth["examination"] * truth["pctr"]).to_numpy(np.float64)
        true = {"pctr": click, "pcvr": truth["pcvr"].to_numpy(np.float64)}
        true["pctcvr"] = true["pctr"] * true["pcvr"]
        true |= {f"{part}, calibrated": values for part, values in true.items()}
        users, index = np.unique(self.timeline.user[self.test.row], return_inverse=True)
        draws = np.random.default_rng(0).multinomial(len(users), np.full(len(users), 1 / len(users)), size=1000)
        draws = np.vstack([np.ones(len(users)), draws])

        def cross(p: np.ndarray, q: np.ndarray) -> np.ndarray:
            q = np.clip(q, 1e-12, 1 - 1e-12)
            each = -(p * np.log(q) + (1 - p) * np.log1p(-q))
            return draws @ np.bincount(index, each, minlength=len(users))

        found: dict = {name: {} for name in names}
        share: dict = {}
        for part, p in true.items():
            least, most = cross(p, p), cross(p, np.full(len(p), p.mean()))
            decile = np.argsort(np.argsort(p)) * 10 // len(p)
            for name in names:
                if part not in self.predictions(name):
                    continue
                seeds = self.predictions(name)[part].astype(np.float64)
                losses = [cross(p, q) for q in seeds]
                values = np.mean([(most - loss) / (most - least) for loss in losses], axis=0)
                share[name, part] = values
                own = np.argsort(np.argsort(seeds[0])) * 10 // len(p)
                found[name][part] = {
                    "share": values[0],
                    "share, se": values[1:].std(ddof=1),
                    "share by seed": [float((most[0] - loss[0]) / (most[0] - least[0])) for loss in losses],
                    "excess log loss": float(np.mean([(loss[0] - least[0]) / len(p) for loss in losses])),
                    "mean over true mean": float(seeds.mean() / p.mean()),
                    "by decile of the truth": [
                        float(seeds[:, decile == d].mean() / p[decile == d].mean()) for d in range(10)
                    ],
                    "by decile of the prediction": [
                        float(seeds[0][own == d].mean() / p[own == d].mean()) for d in range(10)
                    ],
                }
        for (name, part), values in share.items():
            if ("ESMM", part) in share and name != "ESMM":
                difference = share["ESMM", part] - values
                found[name][part] |= {"ESMM minus": difference[0], "ESMM minus, se": difference[1:].std(ddof=1)}
        return found


class Mean:
    """The mean of one statistic over the random seeds."""

    def __init__(self, parts: list) -> None:
        self.parts = parts

    def __call__(self, columns, weight: np.ndarray) -> float:
        if getattr(self, "columns", None) is not columns:
            self.columns, self.ready = columns, [part.prepare(columns) for part in self.parts]
        return float(np.mean([value(weight) for value in self.ready]))


def show(found: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    heads = [head for head in (*HEADS, "CTCVR, one pCTR") if any(head in row for row in found["contenders"].values())]
    table = Table(title=f"{found['rows']:,} rows of the test window: AUC, and its bootstrap standard error", box=None)
    for column in ("", *heads, *(f"PCOC {head}{by}" for head in HEADS for by in ("", ", cal.")), "passes"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in found["contenders"].items():
        cells = [f"{row[h]['AUC']['value']:.4f} ±{row[h]['AUC']['se']:.4f}" if h in row else "-" for h in heads]
        pcoc = [f"{row[h]['PCOC']['value']:.3f}" if h in row else "-" for c in CALIBRATED for h in (c.split(",")[0], c)]
        table.add_row(name, *cells, *pcoc, "/".join(str(n) for n in row["info"].get("epochs", {}).values()) or "-")
    Console(width=140).print(table)
    if "truth" not in found:
        return
    for by in ("", ", calibrated"):
        parts = [part + by for part in PARTS]
        title = f"against the truth, every impression{by}: share of the log-loss gap closed; mean over its truth"
        table = Table(title=title, box=None)
        for column in ("", *PARTS, "ESMM minus, pcvr", *(f"mean {part}" for part in PARTS)):
            table.add_column(column, justify="right" if column else "left")
        for name, row in found["truth"].items():
            if parts[0] in row:
                gain = row[parts[1]]
                minus = f"{gain['ESMM minus']:+.4f} ±{gain['ESMM minus, se']:.4f}" if "ESMM minus" in gain else ""
                shares = [f"{row[p]['share']:.4f} ±{row[p]['share, se']:.4f}" for p in parts]
                table.add_row(name, *shares, minus, *(f"{row[p]['mean over true mean']:.3f}" for p in parts))
        Console(width=140).print(table)
    for part in [f"{part}, calibrated" for part in PARTS] if "ESMM" in found["truth"] else ():
        row = found["truth"]["ESMM"][part]
        for by in ("truth", "prediction"):
            cells = " ".join(f"{value:.2f}" for value in row[f"by decile of the {by}"])
            print(f"ESMM, mean {part}, over its truth, by decile of the {by}: {cells}")


if __name__ == "__main__":
    main()
