"""TOML after one linear pass over its tokens: bounds before tomllib builds anything, and the lines of its keys. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoforward.foreign.limits import MAX_KEY_PARTS, Counter, TextError

# Possessive throughout: no character is read more than twice, whatever the text.
_TOKEN = re.compile(
    r'''(?P<space>[ \t\r]++)
      | (?P<comment>\#[^\n]*+)
      | (?P<newline>\n)
      | (?P<string>"""(?:[^"\\]++|\\.|"(?!""))*+"""(?:"{0,2}+)
                 | \'\'\'(?:[^']++|'(?!''))*+\'\'\'(?:'{0,2}+)
                 | "(?!"")(?:[^"\\\n]++|\\[^\n])*+"
                 | '(?!'')[^'\n]*+')
      | (?P<mark>[\[\]{}=,.])
      | (?P<word>[^\s"'\#\[\]{}=,.]++)''',
    re.VERBOSE | re.DOTALL,
)
_NUMBER_START = frozenset("+-0123456789")
_CLOSES = {"}": "{", "]": "["}

Path = tuple[str, ...]


@dataclass(slots=True)
class _Scan:
    """The state of the pass. `brackets`: open inline tables and arrays, each with its path."""

    lines: dict[Path, int] = field(default_factory=dict)
    table: Path = ()
    brackets: list[tuple[str, Path]] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    is_header: bool = False
    in_value: bool = False

    @property
    def base(self) -> Path:
        if self.is_header:
            return ()
        return self.brackets[-1][1] if self.brackets else self.table


def parse_toml_text(text: str, depth: int = 2) -> tuple[dict[str, Any], Mapping[Path, int]]:
    """The table, and the first line of each key at most `depth` levels down. Raises TextError."""
    lines = _scan(text, depth)
    try:
        return tomllib.loads(text), lines
    except tomllib.TOMLDecodeError as error:
        raise _translated(error, text) from None
    except (ValueError, RecursionError):  # the bounds above should prevent this; the parser has bounds of its own
        raise TextError(text, 0, "not valid TOML") from None


def _scan(text: str, depth: int) -> Mapping[Path, int]:
    """Errors are left to tomllib, except those that hide a string's end."""
    at, counter = _Scan(), Counter(text)
    offset, line = 0, 1
    while (token := _TOKEN.match(text, offset)) is not None:
        kind, part, start = token.lastgroup, token[0], token.start()
        offset = token.end()
        if kind == "newline":
            if not at.brackets:
                at.key.clear()
                at.is_header = at.in_value = False
        elif kind == "mark":
            _take_mark(at, part, counter, start, text)
        elif kind in ("string", "word"):
            if at.in_value:
                counter.value(start)
                if kind == "word" and part[0] in _NUMBER_START:
                    counter.number(start, offset)
            else:
                at.key.append(part if kind == "word" else part[1:-1])
                if len(at.key) > MAX_KEY_PARTS:
                    raise TextError(text, start, f"a key of more than {MAX_KEY_PARTS} parts")
                counter.key(start)
                path = (*at.base, *at.key)
                if len(path) <= depth:
                    at.lines.setdefault(path, line)
        line += part.count("\n")
    if offset < len(text):
        problem = "a string is not closed" if text[offset] in "\"'" else "an unexpected character"
        raise TextError(text, offset, problem)
    return at.lines


def _take_mark(at: _Scan, part: str, counter: Counter, start: int, text: str) -> None:
    if part == "=":
        at.in_value = True
    elif part == "," and at.brackets:
        at.key.clear()
        at.in_value = at.brackets[-1][0] == "["
    elif part == "[" and not at.in_value and not at.brackets:
        at.is_header = True
    elif part == "]" and at.is_header and not at.brackets:
        at.table = tuple(at.key)
    elif part in "[{":
        counter.key(start)
        at.brackets.append((part, (*at.base, *at.key)))
        counter.depth(at.brackets, start)
        at.key.clear()
        at.in_value = part == "["
    elif part in _CLOSES and at.brackets and at.brackets[-1][0] == _CLOSES[part]:
        at.brackets.pop()
        at.in_value = True


_POSITION = re.compile(r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)")

_TOML_WORDS = (
    ("Cannot declare", "a table is declared twice"),
    ("Cannot overwrite", "cannot overwrite a value"),
    ("Cannot mutate", "cannot add to an inline table or array"),
    ("Cannot redefine", "a table is declared twice"),
    ("Duplicate inline table key", "a key is given twice"),
    ("Expected '='", "'=' is expected after a key"),
    ("Expected newline", "a new line is expected after a value"),
    ("Invalid statement", "neither a key nor a table"),
    ("Invalid initial character", "a key is expected"),
    ("Invalid value", "invalid value"),
    ("Unclosed", "not closed"),
    ("Unterminated string", "a string is not closed"),
)


def _translated(error: tomllib.TOMLDecodeError, text: str) -> TextError:
    """tomllib has the position in its message (attributes since Python 3.14), which may contain text of the file."""
    match = _POSITION.fullmatch(str(error))
    message = match[1] if match is not None else str(error)
    problem = next((words for begin, words in _TOML_WORDS if message.startswith(begin)), "not valid TOML")
    if match is None or match[2] is None:
        return TextError(text, len(text), problem)
    found = TextError(text, 0, problem)
    found.line, found.column = int(match[2]), int(match[3])
    return found
