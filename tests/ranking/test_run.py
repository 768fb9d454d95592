import numpy as np
import pandas as pd
import pytest

from ranking.errors import UserError
from ranking.run import Scales, load_run, load_state, save_state
from ranking.state import State
from ranking.statistics import StatisticTable


def arrays():
    return {
        "similarity": np.array([0.2, 0.0, 0.6], np.float32),
        "has_similarity": np.array([1.0, 0.0, 1.0], np.float32),
        "log_seed_count": np.array([1.0, 2.0, 3.0], np.float32),
        "statistic_ctr": np.array([[0.0, -1.0], [0.5, 1.0], [1.0, 3.0]], np.float32),
        "item_id": np.array([2, 3, 4], np.int32),
    }


def test_scales_by_hand():
    scales = Scales.fit(arrays())
    found = scales.apply(arrays())
    # over the two rows that have one: mean .4, sd .2
    assert scales.similarity == pytest.approx((0.4, 0.2))
    assert found["similarity"] == pytest.approx([-1, 0, 1], abs=1e-6)  # missing: exactly the mean
    assert found["similarity"][1] == 0
    # mean 2, sd sqrt(2/3) = .816, taken as 1
    assert found["log_seed_count"] == pytest.approx([-1, 0, 1])
    # the shrinkage from [0, 1] to [-1, 1]; the logit: mean 1, sd sqrt((4 + 0 + 4) / 3) = 1.633
    assert found["statistic_ctr"][:, 0] == pytest.approx([-1, 0, 1])
    assert found["statistic_ctr"][:, 1] == pytest.approx(np.array([-2, 0, 2]) / 1.63299, abs=1e-5)
    assert found["item_id"].tolist() == [2, 3, 4]


def test_scales_without_any_similarity():
    scales = Scales.fit({**arrays(), "has_similarity": np.zeros(3, np.float32)})
    assert scales.similarity == (0.0, 1.0)
    assert not scales.apply({**arrays(), "has_similarity": np.zeros(3, np.float32)})["similarity"].any()


@pytest.mark.parametrize("ids", [[3, 9007199254740993], ['a"b/天', "007"]])
def test_a_state_is_read_back_exactly(tmp_path, ids):
    generator = np.random.default_rng(0)
    state = State(
        tick=1651500000000,
        user_ids=pd.Index(ids),
        item_ids=pd.Index(ids[:1]),
        users={"user_id": np.array([2, 3, 1], np.int32), "user_age": np.array([0.1, 0.2, 0.3], np.float32)},
        items={"item_id": np.array([2, 1], np.int32)},
        user_vectors=generator.normal(size=(3, 4)).astype(np.float32),
        centroids=generator.normal(size=(2, 2, 4)).astype(np.float32),
        centroid_counts=np.array([[3, 0], [0, 0]]),
        seed_counts=np.array([3, 0]),
        prices=np.array([np.nan, np.nan], np.float32),
        statistics={
            "ctr": StatisticTable("item", np.ones((2, 2), np.float32)),
            "item_tab": StatisticTable(
                "cross", np.ones((3, 2), np.float32), (("item_row", 2), ("context_tab", 5)), np.array([3, 7])
            ),
        },
    )
    save_state(state, tmp_path / "state.npz")
    found = load_state(tmp_path / "state.npz")
    assert found.tick == state.tick and found.user_ids.tolist() == ids and found.item_ids.tolist() == ids[:1]
    assert found.rows("user", pd.Index([ids[1], ids[0]])).tolist() == [1, 0]
    for name in ("user_vectors", "centroids", "centroid_counts", "seed_counts", "prices"):
        np.testing.assert_array_equal(getattr(found, name), getattr(state, name))
    assert found.users.keys() == state.users.keys() and found.items.keys() == state.items.keys()
    assert found.statistics["item_tab"].columns == state.statistics["item_tab"].columns
    np.testing.assert_array_equal(found.statistics["item_tab"].codes, [3, 7])
    assert found.statistics["ctr"].side == "item"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder: it has no run.json"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format should be 2. Received: 99; train again"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{half")
    with pytest.raises(UserError, match="run.json should be JSON"):
        load_run(tmp_path)
