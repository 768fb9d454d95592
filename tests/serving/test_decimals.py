"""Many floats at a time against one at a time: the same text, bit for bit."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.server.decimals import _exactly, decimals


def texts(values):
    return [text.replace(b"\0", b"").decode() for text in decimals(values)]


def test_by_hand():
    # 0.1f is 0.100000001490116...: six digits, 0.1, read back as it; 1/3 needs nine, 0.333333343.
    # 2^-14 = 6.103515625e-05 exactly: nine digits are a tie, which goes to the even 6.10351562e-05.
    values = [0.1, 1 / 3, 2.0**-14, 1e-5, 123456792.0, -0.5, 120.0, 1e6, 999999.0, 1234567.0, 0.0, -0.0, 1e-45, np.nan]
    assert texts(np.array(values, np.float32)) == [
        "0.1", "0.333333343", "6.10351562e-05", "1e-05", "123456792.0", "-0.5", "120.0", "1e+06", "999999.0",
        "1234567.0", "0.0", "-0.0", "1.4013e-45", "NaN",
    ]  # fmt: skip
    assert texts(np.array([], np.float32)) == []
    assert texts(np.array([0.1, 1 / 3])) == ["0.1", "0.33333333333333331"]


@pytest.mark.parametrize("kind", ["bits", "scores", "rounded", "dyadic", "whole"])
def test_the_same_as_one_at_a_time(kind):
    generator = np.random.default_rng(3)
    values = {
        "bits": lambda: generator.integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32),
        "scores": lambda: 10 ** generator.uniform(-9, 1, 20_000),
        "rounded": lambda: np.round(generator.normal(size=20_000), 4),
        "dyadic": lambda: generator.integers(-4096, 4096, 20_000) / 2.0 ** generator.integers(0, 30, 20_000),
        "whole": lambda: generator.integers(-(10**8), 10**8, 20_000),
    }[kind]().astype(np.float32)
    assert texts(values) == [_exactly(value).decode() for value in values]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=32), max_size=30))
@example([9.9999995, 0.99999997, 999999.94, 9999999.0, 99999.99])
def test_any_floats(numbers):
    values = np.array(numbers, np.float32)
    assert texts(values) == [_exactly(value).decode() for value in values]
    back = np.array([np.float32(text) for text in texts(values)], np.float32)
    np.testing.assert_array_equal(back, values)
