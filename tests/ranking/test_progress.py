import io

from rich.console import Console

from ranking.progress import Bars


def drawn(terminal, calls):
    stream = io.StringIO()
    with Bars(Console(file=stream, force_terminal=terminal, width=100)) as bars:
        for call in calls:
            bars(*call)
    return stream.getvalue()


def test_a_line_a_finished_stage_where_there_is_no_terminal():
    lines = drawn(False, [("read", 0, 2000), ("read", 1000, 2000), ("write", 0, 1), ("read", 2000, 2000)]).splitlines()
    # write never finished; read did, once
    assert len(lines) == 1 and lines[0].startswith("  read: 2,000 in ") and lines[0].endswith(" s")
    # a stage that tells its end twice is one line still; no escape codes in a log file
    text = drawn(False, [("read", 2, 2), ("read", 2, 2), ("write", 1, 1)])
    assert [line.split(":")[0].strip() for line in text.splitlines()] == ["read", "write"] and "\x1b" not in text


def test_a_bar_a_stage_in_a_terminal():
    text = drawn(True, [("read", 1, 4), ("read", 4, 4), ("write", 0, 0), ("write", 3, 3)])
    last = text[text.rindex("read") :]
    assert "4/4" in last and "write" in last and "3/3" in last
