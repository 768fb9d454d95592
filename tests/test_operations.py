"""docs/operations.md: its alert rules parse, and ask for metrics that the processes have."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "ranking").glob("*metrics.py"))
SOURCES += (ROOT / "ranking" / "ingest.py").read_text() + (ROOT / "ranking" / "ingest_http.py").read_text()
SERVER = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "serving" / "server").glob("*.py"))


def rules() -> list[dict]:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    return [rule for group in yaml.safe_load(block)["groups"] for rule in group["rules"]]


def exported(metric: str) -> bool:
    metric = (
        re.sub(r"_(bucket|sum|count)$", "", metric) if "append_seconds" in metric or "latency" in metric else metric
    )
    for prefix in ("seedrank_ingest_", "seedrank_refresh_", "seedrank_seeds_"):
        if metric.startswith(prefix):
            name = metric.removeprefix(prefix)
            return any(f'"{word}"' in SOURCES or metric in SOURCES for word in (name, name.removesuffix("_total")))
    return metric in SERVER or (metric.startswith("seedrank_requests_") and "seedrank_requests_" in SERVER)


def test_rules_are_whole_and_have_names_of_their_own():
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) > 20
    for rule in found:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"} and rule["labels"]["severity"]
        assert rule["expr"].count("(") == rule["expr"].count(")") and rule["expr"].count("{") == rule["expr"].count("}")
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1s"))


def test_metrics_named_in_the_page_exist():
    in_rules = {name for rule in rules() for name in re.findall(r"(?:seedrank_|:tensorflow:)[a-z_:]+", rule["expr"])}
    in_text = set(re.findall(r"`((?:seedrank_|:tensorflow:)[a-z_:]+)", TEXT))
    assert len(in_rules) > 20 and len(in_text) > 30
    assert [name for name in sorted(in_rules | in_text) if not exported(name)] == []
    assert not exported("seedrank_ingest_log_writeable") and not exported("seedrank_nothing")
