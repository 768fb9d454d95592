"""JSON as TensorFlow Serving reads it, within bounds: NaN and infinities, the first document only, its error texts."""

import json
import re
from itertools import islice
from typing import Any, NoReturn

from serving.errors import InvalidArgument

__all__ = ["describe", "parse", "type_name"]

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"((?:[^"\\\x00-\x1f]|\\.)*)"', re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {
    "null": None,
    "true": True,
    "false": False,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
    "Inf": float("inf"),
    "-Inf": float("-inf"),
}
MAX_DEPTH = 10_000
MAX_VALUES = 1 << 21  # a value is some hundred bytes in memory, and as few as two in the text
_SLOW = 1 << 17  # bytes of text that the slow reader takes
_DESCRIBED = 256  # bytes of a value that an error message repeats


def parse(body: bytes) -> Any:
    """The first JSON document in `body`; what follows it is ignored.

    The standard library's scanner reads nearly everything. What it refuses (nesting beyond its recursion limit,
    `Inf`, broken text) goes through a slower reader without recursion, whose error texts are TensorFlow Serving's;
    a large text does not, whose writer would have a thread work for seconds.

    Raises:
        InvalidArgument: `JSON Parse error: <what> at offset: <byte>`; more than `MAX_VALUES` values or `MAX_DEPTH`
            levels; an object that has a key twice, of which different readers take different ones.
    """
    text = body.decode("utf-8-sig", "surrogateescape")
    start = _skip(text, 0)
    if start == len(text):
        raise InvalidArgument("JSON Parse error: The document is empty" + (f" at offset: {start}" if text else ""))
    if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
        raise InvalidArgument(f"JSON Parse error: More than {MAX_VALUES} values.")
    try:
        return _decoder.raw_decode(text, start)[0]
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidArgument):
            raise
        if len(body) <= _SLOW:
            return _Reader(text).document(start)
        if isinstance(error, json.JSONDecodeError):
            raise InvalidArgument(
                f"JSON Parse error: {error.msg.removesuffix(' at')} at offset: {_offset(text, error.pos)}"
            ) from error
        what = "Nested too deeply" if isinstance(error, RecursionError) else "A number has too many digits"
        raise InvalidArgument(f"JSON Parse error: {what} for a text of more than {_SLOW} bytes.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _twice(key)
            seen.add(key)
    return found


def _twice(key: str) -> NoReturn:
    raise InvalidArgument(f"JSON Parse error: An object has the key {describe(key)} twice.")


_decoder = json.JSONDecoder(object_pairs_hook=_unique)


def _offset(text: str, position: int) -> int:
    return len(text[:position].encode("utf-8", "surrogateescape"))


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


class _Reader:
    """A JSON reader with its own stack."""

    def __init__(self, text: str) -> None:
        self._text = text

    def document(self, position: int) -> Any:
        """The value that starts at `position`."""
        text = self._text
        stack: list[list[Any] | dict[str, Any]] = []
        keys: list[str] = []
        while True:
            # a value starts here
            if len(stack) > MAX_DEPTH:
                self._fail(f"Nested deeper than {MAX_DEPTH} levels.", position)
            opening = text[position : position + 1]
            value: Any
            if opening == "[":
                position = _skip(text, position + 1)
                value = []
                if text[position : position + 1] != "]":
                    stack.append(value)
                    continue
                position += 1
            elif opening == "{":
                position = _skip(text, position + 1)
                value = {}
                if text[position : position + 1] != "}":
                    stack.append(value)
                    position = self._key(position, keys)
                    continue
                position += 1
            else:
                value, position = self._scalar(position)
            # a value ended here: put it into its parent, and close the parents that end with it
            while True:
                if not stack:
                    return value
                parent = stack[-1]
                position = _skip(text, position)
                following = text[position : position + 1]
                if isinstance(parent, list):
                    parent.append(value)
                    if following not in (",", "]"):
                        self._fail("Missing a comma or ']' after an array element.", position)
                else:
                    key = keys.pop()
                    if key in parent:
                        _twice(key)
                    parent[key] = value
                    if following not in (",", "}"):
                        self._fail("Missing a comma or '}' after an object member.", position)
                position += 1
                if following == ",":
                    position = _skip(text, position)
                    if isinstance(parent, dict):
                        position = self._key(position, keys)
                    break
                value = stack.pop()

    def _key(self, position: int, keys: list[str]) -> int:
        """Reads `"key" :`; returns where its value starts."""
        if self._text[position : position + 1] != '"':
            self._fail("Missing a name for object member.", position)
        key, position = self._string(position)
        position = _skip(self._text, position)
        if self._text[position : position + 1] != ":":
            self._fail("Missing a colon after a name of object member.", position)
        keys.append(key)
        return _skip(self._text, position + 1)

    def _string(self, position: int) -> tuple[str, int]:
        found = _STRING.match(self._text, position)
        if not found:
            self._fail("Missing a closing quotation mark in string.", len(self._text))
        try:
            return json.loads(found.group()), found.end()
        except ValueError:
            self._fail("Invalid escape character in string.", position)

    def _scalar(self, position: int) -> tuple[Any, int]:
        text = self._text
        if text[position : position + 1] == '"':
            return self._string(position)
        found = _NUMBER.match(text, position)
        if found:
            digits = found.group()
            if found.group(1) or found.group(2) or len(digits) > 20:
                return float(digits), found.end()
            return int(digits), found.end()
        for word, value in sorted(_WORDS.items(), key=lambda item: -len(item[0])):
            if text.startswith(word, position):
                return value, position + len(word)
        self._fail("Invalid value.", position)

    def _fail(self, what: str, position: int) -> NoReturn:
        raise InvalidArgument(f"JSON Parse error: {what} at offset: {_offset(self._text, position)}")


def type_name(value: Any) -> str:
    """The kind of a JSON value, in TensorFlow Serving's words."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    names: dict[type, str] = {str: "String", dict: "Object", list: "Array"}
    return names.get(type(value), "Number")


def describe(value: Any) -> str:
    """The value as JSON text, cut at 256 bytes: what an error message repeats of a request."""
    pieces: list[str] = []
    length = 0
    todo: list[Any] = [(value, 0)]
    while todo and length < _DESCRIBED:
        item = todo.pop()
        if isinstance(item, str):
            piece = item
        else:
            inner, depth = item
            if isinstance(inner, list) and inner:
                todo.append("]")
                for number, child in reversed(list(enumerate(inner[:_DESCRIBED]))):
                    todo.append((child, depth + 1))
                    todo.append(", " if number else "")
                piece = "["
            elif isinstance(inner, dict) and inner:
                indent = "\n" + "    " * min(depth + 1, _DESCRIBED)
                todo.append("\n" + "    " * depth + "}")
                for number, (key, child) in reversed(list(enumerate(islice(inner.items(), _DESCRIBED)))):
                    todo.append((child, depth + 1))
                    todo.append(f"{',' if number else ''}{indent}{json.dumps(key[:_DESCRIBED], ensure_ascii=False)}: ")
                piece = "{"
            else:
                shown = inner[:_DESCRIBED] if isinstance(inner, str) else inner
                piece = json.dumps(shown, ensure_ascii=False)
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces).encode("utf-8", "replace")[:_DESCRIBED].decode("utf-8", "ignore")
