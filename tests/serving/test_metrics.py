"""The counters' text, by a small reader of Prometheus' format."""

import re

import pytest

from serving.server.metrics import Metrics

LINE = re.compile(
    r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)\{(?P<labels>(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*)\} (?P<value>\S+)'
)


def read(text):
    """(name, labels) -> value, and name -> kind; every line fits the format."""
    values, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            found = LINE.fullmatch(line)
            assert found, line
            labels = tuple(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found["labels"]))
            values[found["name"], labels] = float(found["value"])
    return values, kinds


@pytest.fixture
def metrics():
    made = Metrics()
    made.set_models({"m"})
    return made


def test_requests_under_the_names_and_labels_of_tensorflow_serving(metrics):
    metrics.observe("m", "Predict", "GRPC", "OK", 0.000_020)
    metrics.observe("m", "Predict", "GRPC", "OK", 0.001)
    metrics.observe("m", "predict", "REST", "INVALID_ARGUMENT", 3600.0)
    metrics.observe_runtime("m", "Predict", 0.000_5)
    values, kinds = read(metrics.text())
    assert kinds == {
        ":tensorflow:serving:request_count": "counter",
        ":tensorflow:serving:request_latency": "histogram",
        ":tensorflow:serving:runtime_latency": "histogram",
    }
    count = ":tensorflow:serving:request_count"
    assert values[count, (("model_name", "m"), ("status", "OK"))] == 2
    assert values[count, (("model_name", "m"), ("status", "INVALID_ARGUMENT"))] == 1
    grpc = (("model_name", "m"), ("API", "Predict"), ("entrypoint", "GRPC"))
    latency = ":tensorflow:serving:request_latency"
    # Bounds 10, 18, 32.4, 58.32 ..: 20 microseconds are under 32.4, and 1,000 under 1101.99 = 10 x 1.8^8.
    buckets = {
        dict(key)["le"]: value
        for (name, key), value in values.items()
        if name == f"{latency}_bucket" and key[:3] == grpc
    }
    assert list(buckets)[:5] == ["10", "18", "32.4", "58.32", "104.976"]
    assert len(buckets) == 34
    assert list(buckets)[-1] == "+Inf"
    assert [buckets[le] for le in ("18", "32.4", "612.22", "1102", "+Inf")] == [0, 1, 1, 2, 2]
    assert values[f"{latency}_sum", grpc] == pytest.approx(1020)
    assert values[f"{latency}_count", grpc] == 2
    # An hour is over the last bound, 10 x 1.8^32 microseconds = 25 minutes.
    rest = (("model_name", "m"), ("API", "predict"), ("entrypoint", "REST"))
    assert values[f"{latency}_bucket", (*rest, ("le", "1.47476e+09"))] == 0
    assert values[f"{latency}_bucket", (*rest, ("le", "+Inf"))] == 1
    runtime = (("model_name", "m"), ("API", "Predict"), ("runtime", "TF1"))
    assert values[":tensorflow:serving:runtime_latency_count", runtime] == 1


def test_a_value_on_a_bound_is_under_it(metrics):
    metrics.observe("m", "Predict", "GRPC", "OK", 10e-6)
    assert ',le="10"} 1' in metrics.text()


def test_names_of_models_that_do_not_exist_make_no_series(metrics):
    for number in range(1000):
        metrics.observe(f"x{number}", "Predict", "GRPC", "NOT_FOUND", 0.1)
        metrics.observe_runtime(f"x{number}", "Predict", 0.1)
    values, _ = read(metrics.text())
    assert values == {("seedrank_unknown_model_requests_total", ()): 1000}
    metrics.observe("m", "Predict", "GRPC", "OK", 0.1)
    metrics.set_models({"n"})
    assert "model_name" not in metrics.text()


def test_paths_of_versions_are_forgotten_in_the_end(metrics):
    for version in range(500):
        metrics.observe_load(f"/models/m/{version}", version % 2 == 0, 0.5)
        metrics.observe_warmup(f"/models/m/{version}", "OK", 0.1)
    values, kinds = read(metrics.text())
    attempts = [key for name, key in values if name == ":tensorflow:cc:saved_model:load_attempt_count"]
    assert attempts[-1] == (("model_path", "/models/m/499"), ("status", "fail"))
    assert len(attempts) == 100
    assert values[":tensorflow:cc:saved_model:load_latency", (("model_path", "/models/m/499"),)] == 500_000
    assert kinds[":tensorflow:serving:model_warmup_latency"] == "histogram"


def test_gauges_are_read_when_asked(metrics):
    waiting = [3]
    metrics.gauge("seedrank_waiting", "Requests that wait.", lambda: waiting[0])
    metrics.gauge("seedrank_refused_total", "Refused.", lambda: {(("why", 'a "b" \\'),): 0.5}, kind="counter")
    metrics.gauge("seedrank_none", "Not known.", lambda: float("nan"))
    assert "seedrank_waiting{} 3\n" in metrics.text()
    waiting[0] = 4
    text = metrics.text()
    assert "# HELP seedrank_waiting Requests that wait.\n# TYPE seedrank_waiting gauge\nseedrank_waiting{} 4\n" in text
    assert '# TYPE seedrank_refused_total counter\nseedrank_refused_total{why="a \\"b\\" \\\\"} 0.5\n' in text
    assert "seedrank_none{} NaN\n" in text
    read(text)


def test_totals_by_tensorflow_servings_own_names(metrics):
    assert metrics.total("/tensorflow/serving/request_count") == 0
    metrics.observe("m", "Predict", "GRPC", "OK", 0.1)
    metrics.observe("m", "Predict", "GRPC", "INTERNAL", 0.1)
    assert metrics.total("/tensorflow/serving/request_count") == 2
    assert metrics.total("/tensorflow/serving/else") is None
