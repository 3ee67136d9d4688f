"""JSON with comments and trailing commas, as devcontainer.json is written, in one linear pass before the plain parser.

What is taken is what VS Code and the official CLI take (jsonc-parser): JSON, `//` and `/* */`, a comma before a closing
bracket; a key without quotation marks as well. Pure.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoforward.foreign.limits import Counter, TextError

# Possessive throughout: whatever the text is, no character is looked at more than twice.
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
    """An object or array that is open, the path that leads to it, and the last key read in it."""

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
    """Offsets, in what came of it, of the quotation marks that the text has not."""
    lines: dict[Path, int] = field(default_factory=dict)

    def add(self, part: str) -> None:
        self.parts.append(part)
        self.length += len(part)


def parse_json(text: str, below: Path = (), depth: int = 2) -> tuple[Any, Mapping[Path, int]]:
    """The value, and on which line each key at most `depth` levels below `below` stands first. Raises TextError."""
    cleaned = _clean(text, below, len(below) + depth)
    plain = "".join(cleaned.parts)
    try:
        return json.loads(plain), cleaned.lines
    except json.JSONDecodeError as error:
        raise TextError(text, error.pos - bisect_left(cleaned.added, error.pos), _words(error.msg)) from None
    except (ValueError, RecursionError):  # there are bounds before; what else the parser has bounds for
        raise TextError(text, 0, "not valid JSON") from None


def _clean(text: str, below: Path, longest: int) -> _Cleaned:
    """One pass over the tokens. What is not valid JSON without comments is left for the plain parser to find."""
    found, counter = _Cleaned(), Counter(text)
    stack: list[_Place] = []
    comma: int | None = None  # the index in `parts` of one that may turn out to be a trailing one
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


def _words(message: str) -> str:
    if message.startswith("Invalid \\"):
        return "an escape that JSON does not know"
    return _JSON_WORDS.get(message, "not valid JSON")
