"""JSON with comments and trailing commas, as in devcontainer.json: one linear pass before the plain parser.

Accepts what VS Code and the official CLI accept (https://github.com/microsoft/node-jsonc-parser): JSON, `//` and `/*
*/`, a comma before a closing bracket; also unquoted keys. Pure.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoforward.foreign.limits import Counter, TextError

# Possessive throughout: no character is read more than twice, whatever the text.
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]++)
      | (?P<string>"(?:[^"\\\n]++|\\.)*+")
      | (?P<comment>//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/)
      | (?P<mark>[{}\[\]:,])
      | (?P<word>[^\s"{}\[\]:,/]++)""",
    re.VERBOSE,
)
_NUMBER_START = frozenset("-0123456789")
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*+")
_NO_JSON = frozenset({"NaN", "Infinity", "-Infinity"})
_NOT_NEWLINE = re.compile(r"[^\n]")
_CLOSES = {"}": "{", "]": "["}

Path = tuple[str, ...]


@dataclass(slots=True)
class _Place:
    """An open object or array, its path, and the last key in it."""

    opening: str
    path: Path
    key: str = ""
    expects_key: bool = True


@dataclass(slots=True)
class _Cleaned:
    """Plain JSON, and the lines of the keys below `below`."""

    parts: list[str] = field(default_factory=list)
    length: int = 0
    added: list[int] = field(default_factory=list)
    """Offsets of quotation marks that were added."""
    lines: dict[Path, int] = field(default_factory=dict)

    def add(self, part: str) -> None:
        self.parts.append(part)
        self.length += len(part)


def parse_json(text: str, below: Path = (), depth: int = 2) -> tuple[Any, Mapping[Path, int]]:
    """The value, and the first line of each key at most `depth` levels below `below`. Raises TextError."""
    cleaned = _clean(text, below, len(below) + depth)
    plain = "".join(cleaned.parts)
    try:
        return json.loads(plain), cleaned.lines
    except json.JSONDecodeError as error:
        raise TextError(text, error.pos - bisect_left(cleaned.added, error.pos), _message(error.msg)) from None
    except (ValueError, RecursionError):  # the bounds above should prevent this; the parser has bounds of its own
        raise TextError(text, 0, "not valid JSON") from None


def _clean(text: str, below: Path, longest: int) -> _Cleaned:
    """One pass over the tokens. Other errors are left to the plain parser."""
    found, counter = _Cleaned(), Counter(text)
    stack: list[_Place] = []
    comma: int | None = None  # index in `parts` of a possibly trailing comma
    after_value = False
    offset = line = 0
    while (token := _TOKEN.match(text, offset)) is not None:
        kind, part = token.lastgroup, token[0]
        offset = token.end()
        if kind == "space" or kind == "comment":
            found.add(part if kind == "space" else _NOT_NEWLINE.sub(" ", part))
            line += part.count("\n")
            continue
        here = stack[-1] if stack else None
        is_key = here is not None and here.opening == "{" and here.expects_key
        if kind == "mark":
            if part in _CLOSES:
                if comma is not None:
                    found.parts[comma] = " "
                if stack and stack[-1].opening == _CLOSES[part]:
                    stack.pop()
            elif part in "{[":
                counter.key(token.start())
                path = () if here is None else (*here.path, here.key) if here.opening == "{" else (*here.path, "")
                stack.append(_Place(part, path))
                counter.depth(stack, token.start())
            elif here is not None:
                here.expects_key = part == ","
            comma = len(found.parts) if part == "," and after_value else None
            after_value = part in _CLOSES
            found.add(part)
            continue
        comma, after_value = None, True
        if is_key and here is not None:
            counter.key(token.start())
            here.expects_key = False
            if kind == "word" and _IDENTIFIER.fullmatch(part):
                found.added += [found.length, found.length + len(part) + 1]
                part = f'"{part}"'
            here.key = part[1:-1]
            path = (*here.path, here.key)
            if len(path) <= longest and path[: len(below)] == below[: len(path)]:
                found.lines.setdefault(path, line + 1)
        else:
            counter.value(token.start())
            if kind == "word":
                if part[0] in _NUMBER_START:
                    counter.number(token.start(), token.end())
                if part in _NO_JSON:
                    raise TextError(text, token.start(), "a value is expected")
        found.add(part)
    if offset < len(text):
        raise _unfinished(text, offset)
    return found


def _unfinished(text: str, offset: int) -> TextError:
    if text[offset] == '"':
        end = text.find("\n", offset)
        return TextError(text, end if end >= 0 else len(text), "a string is not closed on its line")
    if text.startswith("/*", offset):
        return TextError(text, offset, "a comment is not closed")
    return TextError(text, offset, "an unexpected character")


_JSON_WORDS = {
    "Expecting value": "a value is expected",
    "Expecting property name enclosed in double quotes": "a key in double quotation marks is expected",
    "Expecting ':' delimiter": "':' is expected",
    "Expecting ',' delimiter": "',' is expected",
    "Extra data": "something follows the end of the object",
    "Invalid control character at": "a control character in a string",
    "Unterminated string starting at": "a string is not closed",
}


def _message(message: str) -> str:
    if message.startswith("Invalid \\"):
        return "an escape that JSON does not know"
    return _JSON_WORDS.get(message, "not valid JSON")
