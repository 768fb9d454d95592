"""Scores of the separate models of a run, as a replay reads them."""

import numpy as np
import pandas as pd
import pytest

from ranking import rivals
from ranking.batches import silent
from ranking.data.tables import Dataset
from ranking.errors import UserError
from ranking.replay.log import ReplayLog
from ranking.scoring import score_candidates

pytestmark = pytest.mark.slow


def test_candidates_scored_by_the_separate_models(tiny):
    dataset = Dataset(tiny.data)
    served, base = (score_candidates(tiny.run, dataset, "tune", variant=name) for name in ("seedrank", "base"))
    for name in ("similarity", "has_similarity", "price"):
        np.testing.assert_array_equal(served[name], base[name])
    for name in ("pctr", "pcvr"):
        assert np.abs(served[name] - base[name]).max() > 1e-3 and (base[name] > 0).all()


def test_the_rows_of_a_log_get_the_scores_of_their_candidates(tiny):
    dataset = Dataset(tiny.data)
    logs = {window: ReplayLog.from_dataset(dataset, window) for window in ("tune", "test")}
    log = logs["tune"]
    found = rivals._with_parts(log, tiny.run, dataset, "tune", silent)
    scores = score_candidates(tiny.run, dataset, "tune", variant="base")
    rows = dataset.candidates[dataset.candidates["request_id"].isin(log.request_id)]
    wanted = pd.Series(scores["pcvr"], pd.MultiIndex.from_frame(rows[["request_id", "item_id"]]))
    keys = log.request_id[log.request_of_row], np.asarray(log.item_id)[log.item]
    np.testing.assert_array_equal(found.parts["pcvr"], wanted[pd.MultiIndex.from_arrays(keys)])
    with pytest.raises(UserError, match="should be the window 'test'"):
        rivals._with_parts(log, tiny.run, dataset, "test", silent)
    rival, why = rivals.multi_model_rival(tiny.run, dataset, log, logs["test"], tiny.run.weights, "clicks")
    assert rival is None and "does not support" in why  # 375 requests
