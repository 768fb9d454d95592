import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from ranking import rivals
from ranking.errors import UserError
from ranking.fusion import fuse
from ranking.learned_fusion import MonotoneFusion
from ranking.replay.evaluation import Evaluator
from ranking.rivals import learned_rival, multi_model_rival

RUN, DATASET = SimpleNamespace(models={"seedrank": [], "base": []}), SimpleNamespace(path="data")


def conversions(world, score):
    """Expected conversions a request of the order by a score."""
    log = world.log
    order = np.lexsort((-score, log.request_of_row))
    place = np.arange(len(order)) - log.offsets[log.request_of_row]
    seen = place < len(log.examination)
    return float((log.examination[place[seen]] * (world.pctr * world.pcvr)[order][seen]).sum() / log.requests)


@pytest.fixture
def exact_models(monkeypatch, world, later):
    """Separate models that know the truth."""

    def with_parts(log, run, dataset, window, report):
        found = {"tune": world, "test": later}[window]
        parts = {**log.parts, "pctr": found.pctr.astype(np.float32), "pcvr": found.pcvr.astype(np.float32)}
        return dataclasses.replace(log, parts=parts)

    monkeypatch.setattr(rivals, "_with_parts", with_parts)


@pytest.mark.slow
def test_learned_rival_is_the_fusion_learned_on_the_tune_window(world, later):
    found, why = learned_rival(world.log, later.log, world.production, "conversions")
    assert why == "" and found.name == "learned fusion" and "conversions" in found.description
    fusion = MonotoneFusion.fit(world.log, world.production, "conversions")
    np.testing.assert_array_equal(found.tune, fusion.score(world.log))
    np.testing.assert_array_equal(found.test, fusion.score(later.log))
    assert found.test.dtype == np.float32
    assert conversions(later, found.test) > 1.05 * conversions(later, fuse(later.log.parts, world.production))


def test_learned_rival_says_why_there_is_none(world, later):
    assert learned_rival(world.log, later.log, world.production, "new_items") == (
        None,
        "`objective` should be one of ['clicks', 'conversions', 'value'] to learn from. Received: 'new_items'.",
    )


def test_separate_models_are_fused_with_constants_of_their_own(world, later, exact_models, monkeypatch):
    used = []
    monkeypatch.setattr(rivals, "fuse", lambda parts, weights, **rest: used.append(weights) or fuse(parts, weights))
    found, why = multi_model_rival(RUN, DATASET, world.log, later.log, world.production, "conversions")
    assert why == "" and found.name == "a model an objective"
    log_pctr = np.log(world.pctr)  # of the exact models, on the tune window, for both
    assert used[0] == used[1] and used[0].mu["pctr"] == pytest.approx(log_pctr.mean(), rel=1e-5)
    assert used[0].sd["pctr"] == pytest.approx(log_pctr.std(), rel=1e-5)
    # The best order is by pctr pcvr: the search gets near it.
    best = conversions(later, later.pctr * later.pcvr)
    assert conversions(later, found.test) > 0.98 * best
    again, _ = multi_model_rival(RUN, DATASET, world.log, later.log, world.production, "conversions")
    np.testing.assert_array_equal(again.test, found.test)


def test_separate_models_say_why_there_are_none(world, later, exact_models, monkeypatch):
    logs = world.log, later.log
    plain = SimpleNamespace(models={"seedrank": []})
    found, why = multi_model_rival(plain, DATASET, *logs, world.production, "clicks")
    assert found is None and "--with-baselines" in why
    found, why = multi_model_rival(RUN, DATASET, *logs, world.production, "new_items")
    assert found is None and "Received: 'new_items'" in why
    late = dataclasses.replace(world.log, mature=np.zeros(world.log.requests, bool))
    found, why = multi_model_rival(RUN, DATASET, late, logs[1], world.production, "conversions")
    assert found is None and "too little of the objective 'conversions'" in why

    def refused(*arguments, **others):
        raise UserError("The log does not support the production weights themselves: it is too small.")

    monkeypatch.setattr(rivals, "Evaluator", refused)
    found, why = multi_model_rival(RUN, DATASET, *logs, world.production, "clicks")
    assert found is None and why.endswith("it is too small.")


def test_the_search_leaves_out_what_the_log_does_not_support(world, monkeypatch):
    refused = SimpleNamespace(reason="unsupported")
    fine = SimpleNamespace(reason="")

    def deltas(self, settings):  # the more pctr the better, but nothing supports more than a half
        share = settings[:, self.parts.index("pctr")] / np.abs(settings).max(axis=1)
        return {"clicks": share}, [refused if one > 0.5 else fine for one in share]

    monkeypatch.setattr(Evaluator, "deltas", deltas)
    start = world.setting(similarity=1.0, pctr=0.1)
    found = rivals._searched(world.log, start, "clicks", seed=0)
    assert 0.45 < found.weights["pctr"] <= 0.5
