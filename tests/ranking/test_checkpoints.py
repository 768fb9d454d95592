import keras
import numpy as np
import pytest

from ranking.checkpoints import Checkpoint
from ranking.errors import UserError

FINGERPRINT = {"settings": {"towers": (8, 4)}, "rows": 3}


def model() -> keras.Model:
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(1)(inputs))


def test_a_new_checkpoint_writes_nothing(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", FINGERPRINT)
    assert checkpoint.finished("ESMM") is None and checkpoint.kept("ESMM") is None
    assert not (tmp_path / "c").exists()


def test_what_is_kept_comes_back_in_order(tmp_path):
    arrays = [np.full(1, number) for number in range(12)]  # as text, 10 comes before 2
    Checkpoint(tmp_path / "c", FINGERPRINT).keep("ESMM", {"step": 3, "epochs": {"click": 1}}, now=arrays, best=[])
    state, found = Checkpoint(tmp_path / "c", FINGERPRINT, resume=True).kept("ESMM")
    assert state == {"step": 3, "epochs": {"click": 1}}
    assert [int(value[0]) for value in found["now"]] == list(range(12)) and "best" not in found


def test_a_finished_stage_comes_back_and_is_no_longer_under_way(tmp_path):
    made, checkpoint = model(), Checkpoint(tmp_path / "c", FINGERPRINT)
    checkpoint.keep("base, random seed 0", {}, now=[])
    checkpoint.finish("base, random seed 0", made, {"loss": [0.5]})
    again = Checkpoint(tmp_path / "c", FINGERPRINT, resume=True)
    found, info = again.finished("base, random seed 0")
    assert info == {"loss": [0.5]} and again.kept("base, random seed 0") is None
    for before, after in zip(made.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_unfinished_training_is_neither_lost_nor_taken_up_unasked(tmp_path):
    Checkpoint(tmp_path / "c", FINGERPRINT).keep("ESMM", {}, now=[])
    with pytest.raises(UserError, match="holds a training that was stopped: pass --resume"):
        Checkpoint(tmp_path / "c", FINGERPRINT)
    assert Checkpoint(tmp_path / "c", FINGERPRINT, overwrite=True).kept("ESMM") is None


def test_another_training_is_refused_by_what_differs(tmp_path):
    Checkpoint(tmp_path / "c", FINGERPRINT).keep("ESMM", {}, now=[])
    with pytest.raises(UserError, match="with other rows: .*Received: rows=4, not 3"):
        Checkpoint(tmp_path / "c", {**FINGERPRINT, "rows": 4}, resume=True)


def test_a_checkpoint_is_removed_whole(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", FINGERPRINT)
    checkpoint.keep("ESMM", {}, now=[])
    checkpoint.remove()
    assert not (tmp_path / "c").exists()
