import numpy as np
import pytest

from ranking.replay.support import SupportGates, support


def test_numbers_by_hand():
    # q = (1.2, .8) repeated 200 times: mean 1, ESS/n = 1 / (mean q^2) = 1 / 1.04, largest = 1.2 / 400
    weight = np.tile([1.2, 0.8], 200)[None]
    found = support(weight, np.full((1, 400), 0.02))[0]
    assert found.state == "supported"
    assert found.weight_mean == pytest.approx(1)
    assert found.effective == pytest.approx(1 / 1.04)
    assert found.largest == pytest.approx(1.2 / 400)
    assert found.unsupported == pytest.approx(0.02)
    assert found.standard_error == pytest.approx(0.2 / np.sqrt(399))


@pytest.mark.parametrize(
    ("weight", "unsupported", "reason"),
    [
        (np.tile([1.2, 0.8], 200), 0.3, "30% of the new order's examination"),
        (np.tile([1.9, 0.1], 50), 0.0, "too few requests"),
        (np.tile([1.1, 0.7], 2000), 0.0, "weight mean 0.900 is not 1"),
        (np.tile([10.0] + [0.0] * 9, 5000), 0.0, "effective sample size is 10%"),
        (np.r_[np.full(12000, 0.94), 760.0], 0.0, "effective|too few"),
    ],
)
def test_each_gate_refuses(weight, unsupported, reason):
    found = support(weight[None], np.full((1, len(weight)), unsupported))[0]
    assert found.state == "refused"
    assert any(text in found.reason for text in reason.split("|"))


def test_one_request_may_not_decide():
    weight = np.r_[np.full(99, 0.9394), 7.0][None]
    gates = SupportGates(max_standard_error=1.0)
    assert "one request holds 7%" in support(weight, np.zeros((1, 100)), gates)[0].reason


def test_no_weight_at_all_is_refused():
    assert support(np.zeros((1, 100)), np.zeros((1, 100)))[0].state == "refused"
    with pytest.raises(ValueError, match="`max_largest` should be positive"):
        SupportGates(max_largest=0)
