"""The training step for several workers is the step of `fit`."""

import keras
import numpy as np
import pytest

from esmm.architecture import Architecture
from esmm.embedding import Feature
from esmm.loop import training_step
from esmm.model import build_esmm, losses, targets
from esmm.optimizers import RowAdam

FEATURES = (
    Feature("user", "categorical", size=20),
    Feature("tags", "multi", size=9),
    Feature("age", "numeric"),
)


def model_of(dropout=0.0, l2=0.01):
    keras.utils.set_random_seed(0)
    return build_esmm(FEATURES, Architecture(embedding_dim=4, towers=(8,), dropout=dropout, l2=l2))


def batch_of(rows, seed=0):
    generator = np.random.default_rng(seed)
    inputs = {
        "user": generator.integers(0, 20, rows).astype(np.int32),
        "tags": generator.integers(0, 9, (rows, 3)).astype(np.int32),
        "age": generator.random(rows).astype(np.float32),
    }
    click = generator.random(rows) < 0.5
    labels = targets(click, click & (generator.random(rows) < 0.5))
    return inputs, labels, {"log_pctcvr": generator.random(rows).astype(np.float32)}


@pytest.mark.slow
def test_the_step_is_that_of_fit():
    batches = [batch_of(10, seed) for seed in range(5)] + [batch_of(3, 9)]
    shares = {"click_logit": 1.0, "log_pctcvr": 2.5}
    fitted = model_of()
    fitted.compile(RowAdam(0.01), loss=losses(), loss_weights=shares, jit_compile=False)
    expected = []
    for inputs, labels, weights in batches:
        weights = {"click_logit": np.ones_like(labels["click_logit"]), **weights}
        expected.append(float(fitted.train_on_batch(inputs, labels, sample_weight=weights, return_dict=True)["loss"]))
        fitted.reset_metrics()
    model = model_of()
    step = training_step(model, RowAdam(0.01), losses(), loss_weights={"log_pctcvr": 2.5})
    # fit's own number is the mean of losses so far; with the metrics reset, of this batch
    found = [float(step(*batch)) for batch in batches]
    np.testing.assert_allclose(found[:5], expected[:5], rtol=2e-6)
    for ours, theirs in zip(model.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_only_rows_of_the_batch_move():
    model = model_of(l2=0.0)
    before = [weights.copy() for weights in model.get_weights()]
    step = training_step(model, RowAdam(0.01), losses())
    inputs, labels, weights = batch_of(2)
    step(inputs, labels, weights)
    # the embedding's 29 rows: users 0..19, then tags 20..28; the padding row 20 of the tags is read but has no gradient
    moved = {int(row) for row in np.flatnonzero(np.any(model.get_weights()[0] != before[0], axis=1))}
    looked_up = {int(user) for user in inputs["user"]} | {20 + int(tag) for tag in inputs["tags"].ravel() if tag}
    assert moved == looked_up


def test_an_empty_part_changes_nothing():
    model = model_of()
    step = training_step(model, keras.optimizers.SGD(0.1), losses())
    before = [weights.copy() for weights in model.get_weights()]
    assert float(step(*batch_of(0))) == 0
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_dropout_draws_anew_at_each_step():
    model = model_of(dropout=0.5)
    step = training_step(model, keras.optimizers.SGD(0.0), losses())
    assert len({float(step(*batch_of(20))) for _ in range(4)}) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": {}}, "losses"),
        ({"losses": {"pcvrr": losses()["click_logit"]}}, "pcvrr"),
        ({"losses": losses(), "loss_weights": {"pctr": 1.0}}, "pctr"),
        ({"losses": {"pctr": keras.losses.BinaryCrossentropy(reduction="sum")}}, "'sum'"),
    ],
)
def test_losses_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_step(model_of(), RowAdam(), **arguments)
