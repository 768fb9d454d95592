"""Prometheus text read back, against values by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranking.up_metrics import parse, quantile, read, total
from serving.server.metrics import Metrics

TEXT = """
# HELP clicks_total Clicks.
# TYPE clicks_total counter
clicks_total{source="http"} 30
clicks_total{source="tail",path="a \\"b\\" {c} d"} 12
up 1
odd line
bad nan_not
:tensorflow:serving:request_count{model_name="m",status="OK"} 7
age 1.5e3
"""


def test_parse_keeps_names_labels_and_values():
    found = parse(TEXT)
    assert found["up"] == {(): 1.0}
    assert found["age"] == {(): 1500.0}
    assert found["clicks_total"][(("source", "http"),)] == 30
    assert (("source", "tail"), ("path", 'a \\"b\\" {c} d')) in found["clicks_total"]
    assert found[":tensorflow:serving:request_count"] == {(("model_name", "m"), ("status", "OK")): 7.0}
    assert "odd" not in found and "bad" not in found


def test_total_sums_the_series_with_the_labels():
    found = parse(TEXT)
    assert total(found, "clicks_total") == 42
    assert total(found, "clicks_total", source="tail") == 12
    assert total(found, "clicks_total", source="other") == 0
    assert total(found, "nothing") is None and total(None, "clicks_total") is None


def histogram(*counts, labels=""):
    """Buckets up to 10, 100, 1000 and without end, cumulated."""
    bounds = ("10", "100", "1000", "+Inf")
    return "\n".join(f'h_bucket{{{labels}le="{bound}"}} {count}' for bound, count in zip(bounds, counts, strict=True))


def test_a_quantile_goes_by_the_logarithm_within_its_bucket():
    # 10 values up to 10, 10 from 10 to 100: the median ends the first bucket, three quarters is half way in the
    # logarithm between 10 and 100, and one quarter half of the first bucket, which begins at 0.
    found = parse(histogram(10, 20, 20, 20))
    assert quantile(found, None, "h", 0.5) == pytest.approx(10)
    assert quantile(found, None, "h", 0.75) == pytest.approx(10 * math.sqrt(10))
    assert quantile(found, None, "h", 0.25) == pytest.approx(5)


def test_a_quantile_counts_what_came_between_two_readings_over_all_labels():
    before = parse(histogram(10, 20, 20, 20, labels='API="a",'))
    # Since then 4 in the third bucket, of two labels: their median is sqrt(100 * 1000).
    now = parse(histogram(10, 20, 22, 22, labels='API="a",') + "\n" + histogram(0, 0, 2, 2, labels='API="b",'))
    assert quantile(now, before, "h", 0.5) == pytest.approx(math.sqrt(100_000))
    assert quantile(now, now, "h", 0.5) is None  # nothing came
    assert quantile(before, now, "h", 0.25) == pytest.approx(5)  # another process: from its start
    assert quantile(parse(""), None, "h", 0.5) is None
    assert quantile(parse(histogram(0, 0, 0, 3)), None, "h", 0.5) == 1000  # beyond the last bound


@given(st.lists(st.floats(1.01e-5, 100.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_within_a_bucket_of_the_exact_one(seconds, share):
    metrics = Metrics()
    metrics.set_models({"m"})
    for value in seconds:
        metrics.observe("m", "predict", "REST", "OK", value)
    found = quantile(parse(metrics.text()), None, ":tensorflow:serving:request_latency", share)
    exact = sorted(seconds)[math.ceil(share * len(seconds)) - 1] * 1e6
    assert exact / 1.81 <= found <= exact * 1.81  # the bounds grow by 1.8


def test_a_process_that_does_not_answer_tells_nothing():
    assert read("http://127.0.0.1:1/metrics", timeout=0.2) is None
