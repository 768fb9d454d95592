import dataclasses

import numpy as np
import pytest

from esmm.embedding import Feature
from ranking import training
from ranking.checkpoints import Checkpoint
from ranking.errors import UserError
from ranking.esmm_settings import EsmmSettings
from ranking.rows import Rows
from ranking.training import train_esmm

pytestmark = pytest.mark.slow

FEATURES = (Feature("item_id", "categorical", "item", 40), Feature("age", "numeric"))
SETTINGS = EsmmSettings(embedding_dim=4, towers=(8, 4), batch_size=64, epochs=3, learning_rate=0.01)


def rows(n: int = 640, seed: int = 0, **columns) -> Rows:
    """Labels that the item tells of, and noise enough to be learned by heart."""
    generator = np.random.default_rng(seed)
    item = generator.integers(2, 40, n).astype(np.int32)
    click = (generator.random(n) < 0.2 + 0.4 * (item % 2)).astype(np.float32)
    conversion = click * (generator.random(n) < 0.2 + 0.4 * (item % 3 == 0)).astype(np.float32)
    found = {
        "row": np.arange(n),
        "features": {"item_id": item, "age": generator.random(n).astype(np.float32)},
        "click": click,
        "conversion": conversion,
        "mature": np.ones(n, bool),
        "repeat": np.zeros(n, bool),
    }
    return Rows(**(found | columns))


def weights(model) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in model.get_weights()])


class Killed(Exception):
    pass


def killed_after(steps: int):
    """A progress that dies, as a killed process does, with no clean-up of ours."""
    calls = iter(range(10**6))

    def progress(stage: str, done: int, total: int) -> None:
        if next(calls) == steps:
            raise Killed

    return progress


# A pass is 10 steps of 64; progress is told at steps 1 and 11, 21, ... of all and at the end of the training.
@pytest.mark.parametrize("strategy, calls", [("esmm", 1), ("aman", 3)])
def test_a_killed_training_goes_on_to_the_same_curve_and_weights(tmp_path, monkeypatch, strategy, calls):
    settings = dataclasses.replace(SETTINGS, strategy=strategy)
    model, info = train_esmm(rows(), FEATURES, settings, validation=rows(300, 1))
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)  # after every step
    monkeypatch.setattr(training.Steps, "on_train_batch_end", every_step)
    with pytest.raises(Killed):
        checkpoint = Checkpoint(tmp_path / "c", {})
        killed = killed_after(7 * calls)
        train_esmm(rows(), FEATURES, settings, validation=rows(300, 1), checkpoint=checkpoint, progress=killed)
    again = Checkpoint(tmp_path / "c", {}, resume=True)
    state, _ = again.kept("ESMM")
    assert state["passes"] * 10 + state["step"] == 7 * calls  # mid-pass, and past a pass
    resumed, told = train_esmm(rows(), FEATURES, settings, validation=rows(300, 1), checkpoint=again)
    assert told["loss"] == pytest.approx(info["loss"], rel=1e-6) and told["epochs"] == info["epochs"]
    np.testing.assert_array_equal(weights(resumed), weights(model))
    once_more, _ = train_esmm(rows(), FEATURES, settings, validation=rows(300, 1), checkpoint=again)
    np.testing.assert_array_equal(weights(once_more), weights(model))  # finished: not trained a second time


def every_step(self, batch, logs=None):
    self.progress(self.stage, batch, self.total)


def judged(*losses: tuple[float, float]):
    """A validation that says what it is told to: click and conversion losses of each pass."""
    told = iter(losses)

    def judge(model, rows, batch_size):
        click, conversion = next(told)
        return {"click_loss": click, "conversion_loss": conversion}

    return judge


def predicted(model, of: Rows) -> dict[str, np.ndarray]:
    return model.predict({t.name: of.features[t.name] for t in model.inputs}, verbose=0)


@pytest.mark.parametrize("strategy", ["esmm", "esmm_ns", "base", "division", "escm2_ips"])
def test_each_task_stops_by_itself(monkeypatch, strategy):
    settings = dataclasses.replace(SETTINGS, strategy=strategy)
    validation = rows(300, 1)
    one_pass, _ = train_esmm(rows(), FEATURES, dataclasses.replace(settings, epochs=1), validation=validation)
    # The click is worse in the second pass, which is taken back; the conversion goes on for two more, then for none.
    monkeypatch.setattr(training, "_judge", judged((0.5, 0.3), (0.6, 0.2), (0.5, 0.2), (0.5, 0.1)))
    model, info = train_esmm(rows(), FEATURES, settings, validation=validation)
    assert info["epochs"] == {"click": 1, "conversion": 3} and len(info["loss"]) == 4
    before, after = predicted(one_pass, validation), predicted(model, validation)
    np.testing.assert_allclose(before["pctr"], after["pctr"], rtol=1e-6)
    assert np.abs(before["pctcvr"] - after["pctcvr"]).max() > 1e-3


def test_both_tasks_may_stop_at_once(monkeypatch):
    validation = rows(300, 1)
    one_pass, _ = train_esmm(rows(), FEATURES, dataclasses.replace(SETTINGS, epochs=1), validation=validation)
    monkeypatch.setattr(training, "_judge", judged((0.5, 0.3), (0.6, 0.4)))
    model, info = train_esmm(rows(), FEATURES, SETTINGS, validation=validation)
    assert info["epochs"] == {"click": 1, "conversion": 1}
    np.testing.assert_array_equal(weights(model), weights(one_pass))


def test_a_schedule_repeats_what_was_chosen(monkeypatch):
    one_pass, _ = train_esmm(rows(), FEATURES, SETTINGS, schedule={"click": 1, "conversion": 1})
    model, info = train_esmm(rows(), FEATURES, SETTINGS, schedule={"click": 1, "conversion": 2})
    assert info["epochs"] == {"click": 1, "conversion": 2} and len(info["loss"]) == 2
    np.testing.assert_allclose(predicted(one_pass, rows())["pctr"], predicted(model, rows())["pctr"], rtol=1e-6)
    assert np.abs(predicted(one_pass, rows())["pcvr"] - predicted(model, rows())["pcvr"]).max() > 1e-3


def test_labels_that_are_not_final_do_not_matter():
    mature = np.arange(640) % 3 > 0
    early = rows(mature=mature)
    late = rows(mature=mature, conversion=np.where(mature, early.conversion, early.click - early.conversion))
    models = [train_esmm(of, FEATURES, SETTINGS)[0] for of in (early, late)]
    np.testing.assert_array_equal(*map(weights, models))


def test_conversions_count_by_their_value():
    settings = dataclasses.replace(SETTINGS, value_power=1.0, epochs=6)
    data = rows(4000)
    dear = data.features["age"] > 0.5
    found = {}
    for name, value in (("alike", np.ones(4000)), ("dear", np.where(dear, 9.0, 1.0))):
        model, _ = train_esmm(dataclasses.replace(data, value=value), FEATURES, settings)
        pcvr = predicted(model, data)["pctcvr"]
        found[name] = pcvr[dear].mean() / pcvr[~dear].mean()
    assert found["dear"] > 2 * found["alike"]  # nine times the weight a conversion


@pytest.mark.parametrize(
    "columns, rule",
    [
        ({"click": np.zeros(640, np.float32)}, "the click task should have both classes.*0 of 640 impressions"),
        ({"conversion": np.zeros(640, np.float32)}, "the conversion task should have both .*clicks with a final label"),
        ({"mature": np.zeros(640, bool)}, "the conversion task .*0 of 0 clicks"),
        (
            {"features": {**rows().features, "age": np.full(640, np.inf, np.float32)}},
            "input `age` should be finite numbers. Received: 640",
        ),
        ({"features": {**rows().features, "age": np.full(640, np.nan, np.float32)}}, "input `age` should be finite"),
    ],
)
def test_rows_that_teach_nothing_are_refused(columns, rule):
    with pytest.raises(UserError, match=rule):
        train_esmm(rows(**columns), FEATURES, SETTINGS)


def test_a_loss_that_is_no_number_ends_the_training():
    with pytest.raises(UserError, match=r"ESMM: the loss is (nan|inf) after step \d+ of pass 1; lower the learning"):
        train_esmm(rows(), FEATURES, dataclasses.replace(SETTINGS, learning_rate=1e30))


def test_values_are_asked_for():
    with pytest.raises(UserError, match="needs the impressions' column `value`"):
        train_esmm(rows(), FEATURES, dataclasses.replace(SETTINGS, value_power=1.0))


@pytest.mark.parametrize(
    "text, rule",
    [
        ("sharing=soft", "`sharing` should be one of"),
        ("epochs=0", "`epochs` should be positive"),
        ("towers=360-x", "`--esmm` towers should be whole numbers"),
        ("wide=yes", "`--esmm` wide should be true or false"),
        ("towrs=3", "`--esmm` should be name=value with a name of: strategy, sharing"),
        ("strategy=best", "should be one of"),
        ("calibration=isotonic", "`calibration` should be one of: auto, platt, piecewise, none"),
        ("learning_rate=nan", "`learning_rate` should be a positive number"),
        ("value_power=-1", r"`value_power` should be in \[0, 2\]"),
        ("conversion_weight=0", "`conversion_weight` should be a positive number"),
    ],
)
def test_switches_refused(text, rule):
    with pytest.raises(UserError, match=rule):
        EsmmSettings.parse(text)


def test_switches_of_the_command_line():
    found = EsmmSettings.parse("towers=64-32, sharing=mmoe,wide=false,learning_rate=1e-3", EsmmSettings(epochs=5))
    assert (found.towers, found.sharing, found.wide, found.learning_rate) == ((64, 32), "mmoe", False, 1e-3)
    assert found.epochs == 5
