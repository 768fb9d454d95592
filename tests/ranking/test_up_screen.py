"""The numbers of the screen from what three processes tell, and the screen as text of 80 columns."""

import io
import json
import re
import time
from types import SimpleNamespace

from rich.console import Console

from ranking import up_screen, up_status
from ranking.up_metrics import parse
from ranking.up_screen import Screen, line_of, screen_of
from ranking.up_status import Status, Watch
from ranking.up_supervisor import Child, Task

INGEST = """
seedrank_ingest_accepted_total{{source="http"}} {clicks}
seedrank_ingest_accepted_total{{source="tail"}} 0
seedrank_ingest_refused_total{{reason="invalid"}} 4
seedrank_ingest_log_end 1000
"""
REFRESH = """
seedrank_seeds_accepted_total 900
seedrank_seeds_late_total 2
seedrank_seeds_invalid_total 1
seedrank_seeds_duplicate_total 7
seedrank_seeds_kept 800
seedrank_seeds_items 30
seedrank_seeds_offset 900
seedrank_refresh_dirty_items 12
seedrank_refresh_waiting_items 0
seedrank_refresh_new_similar_items_total 3
seedrank_refresh_rounds_total 5
seedrank_refresh_failures_total{reason="tables"} 1
seedrank_refresh_step_seconds{step="tables"} 0.5
seedrank_refresh_step_seconds{step="publish"} 1.25
"""
SERVER = """
:tensorflow:serving:request_count{{model_name="seedrank",status="OK"}} {fine}
:tensorflow:serving:request_count{{model_name="seedrank",status="INVALID_ARGUMENT"}} 3
:tensorflow:serving:request_latency_bucket{{model_name="seedrank",le="1000"}} 0
:tensorflow:serving:request_latency_bucket{{model_name="seedrank",le="4000"}} {fine}
:tensorflow:serving:request_latency_bucket{{model_name="seedrank",le="+Inf"}} {fine}
seedrank_requests_refused_total 6
seedrank_loaded_version{{model_name="seedrank",version="41"}} 1
seedrank_loaded_version{{model_name="seedrank",version="42"}} 1
seedrank_seed_watermark{{model_name="seedrank",version="41"}} 1000000
seedrank_seed_watermark{{model_name="seedrank",version="42"}} 1060000
"""


def told(clicks, fine):
    return {"i": INGEST.format(clicks=clicks), "r": REFRESH, "s": SERVER.format(fine=fine)}


def watch(monkeypatch, *readings):
    """A watch of processes that tell these texts, one reading every two seconds."""
    clock = iter([100.0 + 2 * number for number in range(len(readings))])
    monkeypatch.setattr(up_status, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    left = [{name: reading for name, reading in texts.items()} for texts in readings]
    urls = {"ingest": "i", "refresh": "r", "server": "s"}

    def reader(url):
        text = left[0].get(url) if len(left[0]) else None
        return None if text is None else parse(text)

    made = Watch(urls, now=lambda: 1_180_000, reader=reader)
    found = []
    for _ in readings:
        found.append(made.read())
        left.pop(0)
        left.append({})
    made.close()
    return found


def test_numbers_of_two_readings(monkeypatch):
    _, found = watch(monkeypatch, told(100, 50), told(140, 70))
    # 40 clicks and 20 requests in 2 seconds; 20 latencies between 1 and 4 ms: the median is 2 by the logarithm.
    assert (found.clicks_per_second, found.requests_per_second) == (20, 10)
    assert abs(found.p50_ms - 2) < 1e-9
    assert (found.clicks, found.clicks_refused, found.behind) == (140, 4, 100)
    assert (found.accepted, found.late, found.invalid, found.duplicate) == (900, 2, 1, 7)
    assert (found.seeds, found.items, found.dirty, found.new_similar, found.failures) == (800, 30, 12, 3, 1)
    assert found.refresh_seconds == 1.75
    # The newest version counts; its tables are 120 s old.
    assert (found.version, found.watermark, found.table_age) == (42, 1_060_000, 120)
    assert (found.requests, found.errors, found.refused) == (73, 3, 6)


def test_a_process_that_started_again_counts_from_its_start(monkeypatch):
    _, found = watch(monkeypatch, told(100, 50), told(6, 8))
    assert found.clicks_per_second == 3  # 6 in 2 seconds
    assert found.requests_per_second == 11 / 2  # 8 and the 3 errors


def test_nobody_tells_nothing_is_known(monkeypatch):
    (found,) = watch(monkeypatch, {})
    assert set(found.as_dict().values()) == {None}


def test_who_tells_of_no_event_had_none(monkeypatch):
    (found,) = watch(monkeypatch, {"i": "up 1", "r": "up 1", "s": "up 1"})
    assert (found.clicks, found.clicks_refused, found.failures, found.requests, found.errors) == (0, 0, 0, 0, 0)
    assert found.seeds is None and found.version is None


def children():
    now = time.monotonic()
    made = {}
    for name, state, pid, ago, restarts in (
        ("ingest", "ready", 1234567, 90_061, 0),
        ("refresh", "waiting", None, 5, 12),
        ("server", "draining", 7654321, 754, 0),
    ):
        made[name] = Child(Task(name, (), lambda: True), state=state, pid=pid, since=now - ago, restarts=restarts)
    return made


LARGE = Status(**{name: 999_999_999.0 for name in Status().as_dict()} | {"version": 1795431703937, "watermark": 1.7e12})
WHERE = [("clicks", "http://127.0.0.1:8600/v1/clicks"), ("ranking", "http://[::1]:8501/v1/models/seedrank, gRPC " * 3)]


def text_of(status, note=""):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(screen_of(children(), status, up=200.0, where=WHERE, note=note))
    return console.export_text()


def test_the_screen_fits_80_columns_and_a_terminal_of_24_lines():
    for status in (Status(), LARGE):
        lines = text_of(status, "replay 2025-03-11 14:20, 1,000x").splitlines()
        assert max(map(len, lines)) <= 80 and len(lines) < 20


def test_the_screen_says_who_runs_and_what_is_served():
    status = Status(
        clicks_per_second=1234.4, clicks=56789.0, clicks_refused=0.0, seeds=20_123_456.0, dirty=7.0, new_similar=2.0,
        refresh_seconds=1.75, failures=0.0, version=42, watermark=1_741_651_200_000.0, table_age=125.0,
        requests_per_second=10.0, p50_ms=4.06, p99_ms=123.4, refused=0.0, errors=1.0,
    )  # fmt: skip
    words = " ".join(text_of(status, "draining").split())
    for said in (
        "seedrank up 3 min 20 s draining",
        "ingest ready pid 1234567 1 d 1 h",
        "refresh waiting restarted 12x",
        "clicks 1,234/s 56,789 durable 0 refused",
        "seeds 20,123,456",
        "7 dirty 2 gained a similarity 1.8 s 0 failed",
        "tables 2 min 05 s old as of 2025-03-11 00:00:00 version 42",
        "10/s p50 4.1 p99 123 ms 0 refused 1 errors",
        "http://[::1]:8501/v1/models",
    ):
        assert said in words


def test_where_there_is_no_terminal_it_is_a_line_now_and_then(monkeypatch):
    clock = iter([0.0, *(float(second) for second in range(100) for _ in range(2))])
    monkeypatch.setattr(up_screen, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    out = io.StringIO()
    with Screen(Console(file=out, width=80)) as screen:
        screen.say("ingest", "[bold]words[/] of a child")
        for _ in range(12):
            screen.show({}, Status())
    lines = out.getvalue().splitlines()
    assert lines[0] == "ingest: [bold]words[/] of a child"
    assert 2 <= len(lines) < 12


def test_a_line_has_the_numbers():
    assert "refresh waiting" in line_of(children(), LARGE)
    assert "requests 999,999,999/s" in line_of(children(), LARGE)


def test_json_is_a_line_each_time(capsys):
    with Screen(Console(file=io.StringIO()), as_json=True) as screen:
        screen.show(children(), LARGE, "x")
        screen.show(children(), Status())
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["processes"]["refresh"] == {"state": "waiting", "restarts": 12, "pid": None}
    assert first["version"] == 1795431703937 and second["version"] is None


def test_a_terminal_is_drawn_on_and_shows_the_last_words():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=24)
    with Screen(console) as screen:
        for number in range(5):
            screen.say("server", f"line {number} " + "x" * 200)
        screen.show(children(), LARGE)
    drawn = out.getvalue()
    assert "line 4" in drawn and "line 1" not in drawn
    # At the end what was cut is there in full, once, under the last screen.
    assert drawn.count("x" * 200) == 3 and drawn.index("seeds") < drawn.index("x" * 200)


def test_colors_are_left_out_where_the_user_says_so(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    with Screen(Console(file=out, force_terminal=True, width=80, height=24)) as screen:
        screen.show(children(), LARGE)
    colors = re.findall(r"\x1b\[([0-9;]*)m", out.getvalue())
    assert not [
        code for sequence in colors for code in sequence.split(";") if code.isdigit() and 30 <= int(code) <= 107
    ]


def test_without_a_screen_the_first_lines_say_where_everything_is(capsys):
    out = io.StringIO()
    with Screen(Console(file=out, width=80), where=WHERE[:1]):
        pass
    assert out.getvalue() == "clicks: http://127.0.0.1:8600/v1/clicks\n"
    with Screen(Console(file=io.StringIO()), as_json=True, where=WHERE[:1]) as screen:
        screen.show({}, Status())
    assert json.loads(capsys.readouterr().out)["where"] == dict(WHERE[:1])
