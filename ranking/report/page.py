"""What the report pages share: one template, its style and script, sections, tables, and how data gets into a page."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ranking.atomic import atomic_file

__all__ = ["bullets", "cell", "contents", "copy_button", "page", "plot", "section", "table", "verdict", "write_page"]


def write_page(text: str, path: str | Path) -> Path:
    """Writes a page, whole or not at all.

    Args:
        text: str. What `page` made.
        path: str or Path. The HTML file.

    Returns:
        Path. The file.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def page(
    title: str,
    subtitle: str,
    body: str,
    footer: str,
    figures: Mapping[str, Any],
    *,
    data: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
) -> str:
    """One HTML file without any link to the outside.

    Args:
        title: str. Plain text, as are `subtitle` and `footer`.
        subtitle: str. Under the title.
        body: str. HTML: the verdict and the sections.
        footer: str. The last line.
        figures: dict of element id -> plotly figure, drawn in the element that `plot` made.
        data: dict. What else the scripts read. Defaults to nothing.
        scripts: sequence of str. JavaScript files beside this module, run after `page.js`. Defaults to none.

    Returns:
        str. The page, about 5 MB of it the plotting library.
    """
    from plotly.offline import get_plotlyjs

    folder = files("ranking.report")

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    return Template(read("page.html")).substitute(
        title=escape(f"{title} - Seedrank"),
        heading=escape(title),
        subtitle=escape(subtitle),
        body=body,
        footer=escape(footer),
        style=read("style.css"),
        data=_in_script({"figures": figures, **(data or {})}),
        plotly=get_plotlyjs(),
        scripts="\n".join(read(name) for name in ("page.js", *scripts)),
    )


def _in_script(value: Any) -> str:
    """JSON for a `<script>`: no text in it can end the script, or open a comment."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def verdict(sentence: str, good: bool, head: str = "") -> str:
    """The box with the sentence for everybody; green-edged where there is something to do."""
    return f'<section class="verdict {"pick" if good else "keep"}">{head}<p>{escape(sentence)}</p></section>'


def section(title: str, *parts: str, name: str = "") -> str:
    """A titled box of HTML parts; `name` is its anchor."""
    anchor = f' id="{name}"' if name else ""
    return f"<section{anchor}><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def contents(sections: Sequence[str]) -> str:
    """Links to the sections that have an anchor; an empty section is none."""
    found = [re.match(r'<section id="([^"]+)"><h2>(.*?)</h2>', text) for text in sections]
    links = (f'<a href="#{match[1]}">{match[2]}</a>' for match in found if match)
    return f'<nav aria-label="sections">{"".join(links)}</nav>'


def plot(name: str, label: str, height: int | None = None) -> str:
    """Where a figure is drawn; `label` says in words what it shows."""
    style = f' style="height:{height}px"' if height else ""
    return f'<div class="plot" id="{escape(name)}" role="img" aria-label="{escape(label)}"{style}></div>'


def bullets(texts: Sequence[str]) -> str:
    """A list of plain sentences."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def copy_button(text: str, label: str) -> str:
    """A button that puts a text on the clipboard."""
    return f'<button type="button" data-copy="{escape(text)}">{escape(label)}</button>'


def cell(html: str, value: float | str | None = None, attributes: str = "") -> str:
    """A table cell that sorts by `value`; without one, by its text."""
    by = "" if value is None else f' data-value="{escape(str(value))}"'
    return f"<td{by}{attributes}>{html}</td>"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str] | str], *, style: str = "", name: str = "", sortable: bool = True
) -> str:
    """A table in a box that scrolls sideways where it is too wide.

    Args:
        head: sequence of str. Column heads, plain text. The first column is what the rows are about.
        rows: sequence. Each a sequence of cells (HTML, with or without their `td`), or the whole `tr` as text.
        style: str. A class, as `"number"`, which aligns all but the first column to the right. Defaults to `""`.
        name: str. The element's id, and what a screen reader calls the box. Defaults to `""`.
        sortable: bool. Whether a click on a head sorts. A head without text never does. Defaults to `True`.
    """
    heads = "".join(
        f'<th aria-sort="none"><button type="button">{escape(text)}</button></th>'
        if sortable and text and len(rows) > 1
        else f"<th>{escape(text)}</th>"
        for text in head
    )
    lines = "".join(line if isinstance(line, str) else f"<tr>{''.join(map(_cell, line))}</tr>" for line in rows)
    attributes = (f' class="{style}"' if style else "") + (f' id="{escape(name)}"' if name else "")
    label = escape(name.replace("-", " ") or head[0] or "table")
    # A box that scrolls has to take the focus, or arrow keys could not scroll it.
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
    return f"{box}<table{attributes}><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"


def _cell(html: str) -> str:
    return html if html.startswith("<td") else f"<td>{html}</td>"
