"""What the report pages share: one style, the plotting library and how data gets into a page, all in one file."""

import json
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

__all__ = ["fill", "in_script", "row"]


def fill(name: str, **parts: str) -> str:
    """A page without any link to the outside.

    Args:
        name: str. The template beside this module; `$style` and `$plotly` in it are the shared style and plotly.js.
        **parts: str, ready HTML (text from the data escaped already) or what `in_script` made. The other placeholders.
    """
    from plotly.offline import get_plotlyjs

    folder = files("ranking.report")
    style = (folder / "style.css").read_text(encoding="utf-8")
    page = Template((folder / name).read_text(encoding="utf-8"))
    return page.substitute(style=style, plotly=get_plotlyjs(), **parts)


def in_script(value: Any) -> str:
    """JSON for a `<script>`: no text in it can end the script, or open a comment."""
    return json.dumps(value).replace("<", "\\u003c")


def row(cells: Sequence[str], tag: str = "td", attributes: str = "") -> str:
    """A table row of cells that are HTML already."""
    return f"<tr{attributes}>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"
