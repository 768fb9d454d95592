"""A user leaves the lines that broke a rule and were set aside beside a click log."""

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lookalike.click_packing import MAGIC
from ranking.atomic import atomic_file

__all__ = ["lines_with", "without_lines"]

_ASIDE = ("tails/*.rejects", "set-aside.jsonl")  # of followed files and of streams


def lines_with(folder: Path, user: Any) -> dict[Path, int]:
    """Files of a log's folder with lines that were set aside -> how many of them hold a user's id, or may.

    Args:
        folder: Path. The log.
        user: int or str. The id, as the log declares ids.
    """
    holds = _finder(user)
    paths = [path for pattern in _ASIDE for path in sorted(folder.glob(pattern))]
    found = {path: sum(his for _, his in _lines(path, holds)) for path in paths}
    return {path: count for path, count in found.items() if count}


def without_lines(folder: Path, user: Any) -> int:
    """Removes those lines; how many. Nobody else may write the files meanwhile; each changes whole or not at all.

    Args:
        folder: Path. The log.
        user: int or str. The id, as the log declares ids.
    """
    holds = _finder(user)
    return sum(_write_without(path, holds) for path in lines_with(folder, user))


def _finder(user: Any) -> Callable[[bytes], bool]:
    """Tells whether an id is in the bytes of a line, however JSON or a packed value writes it."""
    text = str(user)
    if isinstance(user, int):
        number = re.compile(rb"(?<![0-9])%s(?![0-9])|%s" % (text.encode(), re.escape(struct.pack("<q", user))))
        return lambda piece: bool(number.search(piece))
    escaped = json.dumps(text)[1:-1]
    upper = re.sub(r"\\u([0-9a-f]{4})", lambda found: f"\\u{found[1].upper()}", escaped)
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    forms = {re.escape(form.encode("utf-8", "surrogatepass")) for form in (text, plain, escaped, upper)}
    whole = b"|".join(sorted(forms))
    before = rb"(?<![0-9A-Za-z])" if text[0].isascii() and text[0].isalnum() else b""
    after = rb"(?![0-9A-Za-z])" if text[-1].isascii() and text[-1].isalnum() else b""
    word, anywhere = re.compile(before + rb"(?:%s)" % whole + after), re.compile(whole)
    # Packed texts stand side by side without anything between them: others who spell him there go with him.
    return lambda piece: bool((anywhere if piece.startswith(MAGIC) else word).search(piece))


def _lines(path: Path, holds: Callable[[bytes], bool]) -> Iterator[tuple[bytes, bool]]:
    """Lines of a file of what was set aside, and whether each holds the user; one that is half-written may."""
    with path.open("rb") as file:
        for line in file:
            try:
                told = json.loads(line)
                pieces = [
                    str(told.get(name, "")).encode("utf-8", "surrogatepass") for name in ("why", "line", "reason")
                ]
                packed = told.get("base64", "")
                packed = [*packed.keys(), *packed.values()] if isinstance(packed, dict) else [packed]
                pieces += [base64.b64decode(text) for text in packed]
            except (ValueError, TypeError, AttributeError):
                yield line, True
                continue
            yield line, any(map(holds, pieces))


def _write_without(path: Path, holds: Callable[[bytes], bool]) -> int:
    removed = 0
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for line, his in _lines(path, holds):
            removed += his
            if not his:
                file.write(line)
    return removed
