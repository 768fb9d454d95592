from dataclasses import replace

import optuna
import pytest

from ranking.errors import UserError
from ranking.replay.optuna_export import STUDY_NAME, export_study
from ranking.replay.study import Study
from ranking.replay.tuning import tune


@pytest.fixture(scope="module")
def study(world, later) -> Study:
    return tune(world.log, later.log, production=world.production, trials=24, minimum_groups=500)


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.slow), "journal"])
def test_optuna_reads_every_trial_as_the_study_has_it(study, tmp_path, kind):
    path = tmp_path / "trials"
    told = []
    # One refused, as a log that does not support a setting would make it.
    refused = {"weights": study.trials[3]["weights"], "feasible": False, "reason": "too few requests"}
    study = replace(study, trials=[*study.trials[:3], refused, *study.trials[4:]])
    where = f"sqlite:///{path}" if kind == "sqlite" else str(path)
    assert export_study(study, where, progress=lambda done, total: told.append((done, total))) == path
    assert told[-1] == (24, 24)
    storage = where if kind == "sqlite" else optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(where)
    )  # fmt: skip
    found = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    axes = study.settings["axes"]
    assert axes == ["conversions", "clicks", "new_items", "diversity"] and found.metric_names == axes
    assert found.directions == [optuna.study.StudyDirection.MAXIMIZE] * 4
    assert found.user_attrs["verdict"] == study.verdict
    assert len(found.trials) == len(study.trials)
    for trial, row in zip(found.trials, study.trials, strict=True):
        assert trial.params == row["weights"]
        assert trial.user_attrs["feasible"] == row["feasible"]
        if "reason" in row:
            assert trial.state.name == "FAIL" and trial.values is None and trial.user_attrs["reason"] == row["reason"]
        else:
            assert trial.values == [row["deltas"][name] for name in axes]
            # a guardrail of -1 % is kept where -0.01 - delta <= 0
            assert trial.system_attrs["constraints"] == [-0.01 - row["deltas"]["clicks"]]
            assert trial.user_attrs["value"] == row["deltas"]["value"]
    assert found.trials[0].user_attrs["name"] == "production"
    assert found.best_trials  # the front, by Optuna
    assert found.trials[0].distributions["pctr"] == optuna.distributions.FloatDistribution(-1.0, 1.0)
    with pytest.raises(UserError, match="exists already"):
        export_study(study, where)


def test_whole_or_not_at_all(study, tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_study(study, f"sqlite:///{tmp_path / 'trials.db'}", progress=stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="should be sqlite:///FILE or a journal file. Received: 'mysql://u@h/db'"):
        export_study(study, "mysql://u@h/db")
    with pytest.raises(UserError, match="is a folder"):
        export_study(study, str(tmp_path))


def test_a_rounded_weight_beyond_its_bound_is_at_the_bound(study, tmp_path):
    third = replace(study.production, bounds={**study.production.bounds, "pcvr": (-1.0, 1 / 3)})
    row = {**study.trials[1], "weights": {**study.trials[1]["weights"], "pcvr": 0.333334}}
    export_study(replace(study, production=third, trials=[row]), str(tmp_path / "journal"))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    found = optuna.load_study(study_name=STUDY_NAME, storage=optuna.storages.JournalStorage(backend))
    assert found.trials[0].params["pcvr"] == 1 / 3
