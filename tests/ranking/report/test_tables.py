import io

import pytest
from rich.console import Console

from ranking.report.tables import evaluation_table


def found(*models):
    metrics = {"auc": 0.71649, "gauc": 0.70812, "ndcg": 0.6, "logloss": 0.40031, "pcoc": 1.0249, "ece": float("nan")}
    head = metrics | {f"{name}_se": 0.00421 for name in metrics}
    return {
        "rows": 30000,
        "window": "test",
        "state": "frozen",
        "models": {model: {"click": head, "cvr": head, "ctcvr": head} for model in models},
        "differences": [],
        "similarity": {"rows": 1, "auc": 0.5, "auc_se": 0.1, "precision_at_10": 0.1, "precision_at_10_random": 0.1},
        "unknown": {"users": 0, "items": 0},
    }


def printed(value, width):
    screen = io.StringIO()
    Console(width=width, file=screen).print(evaluation_table(value))
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_off(width):
    lines = printed(found("seedrank", "no_similarity", "logistic"), width)
    assert all(len(line) <= width and "…" not in line for line in lines)


def test_values_stand_with_their_errors():
    line = next(line for line in printed(found("no_similarity"), 100) if line.startswith("no_similarity"))
    words = "no_similarity 0.7165 ±.0042 0.7081 ±.0042 0.6000 ±.0042 0.4003 ±.0042 1.02 ±.00 -"
    assert line.split() == words.split()


def test_a_head_that_no_model_has_is_left_out():
    text = "\n".join(printed(found("seedrank"), 100))
    assert "clicked rows" in text and "own pcvr" not in text
