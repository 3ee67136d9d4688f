"""A parsed command line: where values end, and how spans are found. Pure.

Texts are `Line`s: arguments separated by NUL if known, else by spaces as in a shell. No expression backtracks
(possessive repeats; a hidden value is not searched again), so that the cost is linear in the length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Span = tuple[int, int]


class Line:
    """A command line: `text`, its quotes, and the programs that it names."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.programs = frozenset(_PROGRAM.findall(text))
        self._quotes = _quotes_of(text)
        self._has_arguments = "\0" in text

    def end_of_value(self, start: int, name_at: int | None = None) -> int:
        """Where the value that starts at `start` ends; `name_at`: where its name starts (`NAME=VALUE`).

        A separate argument, or one that starts with the name, is a value as a whole; so is the rest of an argument
        after `;NAME=`. Elsewhere a shell's rules apply: up to a space, quoted parts included; within quotes up to their
        end.
        """
        text = self.text
        if self._has_arguments and start > 0 and (text[start - 1] == "\0" or (name_at and text[name_at - 1] in "\0;")):
            return index(text, "\0", start)
        if _MASKED.match(text, start):  # already masked
            return start + 3
        if start < len(text) and text[start] in "\"'":
            return self._end_of_quoted(start)
        if escaped := _ESCAPED.match(text, start):  # `\"x\"`: JSON in JSON
            closing = re.compile(rf"(?<!\\){re.escape(escaped[0])}|(?=\0)").search(text, escaped.end())
            return closing.end() if closing else len(text)
        if quote := self._quotes[start] if start < len(text) else "":
            return min(index(text, quote, start), index(text, "\0", start))
        return self._end_of_word(start)

    def end_of_argument(self, start: int) -> int:
        """The end of the surrounding quotes, else of the argument."""
        end = index(self.text, "\0", start)
        quote = self._quotes[start] if start < len(self.text) else ""
        return min(end, index(self.text, quote, start)) if quote else end

    def _end_of_quoted(self, start: int) -> int:
        match = _QUOTED.match(self.text, start)
        end = match.end() if match else start
        # `'it'\''s'` is one word in a shell; `"x","y"` is JSON.
        return end if end >= len(self.text) or self.text[end] in ",}]):&;| \0" else self._end_of_word(end)

    def _end_of_word(self, start: int) -> int:
        text, end = self.text, start
        while True:
            match = _WORD.match(text, end)
            end = match.end() if match else end
            if not text.startswith("$(", end):
                return end
            end = _end_of_substitution(text, end + 1)


_PROGRAM = re.compile(r"""(?<![^ \0"'(;&|/])[\w.+-]++(?![^ \0"');&|])""")
_MASKED = re.compile(r"""\*\*\*(?=[,}\])&;|"' ]|$)""")
_ESCAPED = re.compile(r"""\\{1,7}+["']""")
_QUOTED = re.compile(r""""(?:[^"\\\0$`]|\\[^\0]|\$\([^()\0]*+\)|`[^`\0]*+`|[$`])*+"?+|'[^'\0]*+'?+""")
_WORD = re.compile(rf"(?:{_QUOTED.pattern}|`[^`\0]*+`?+|\\[^\0]|(?!\$\()[^ \0\"'`])++")
_IN_SUBSTITUTION = re.compile(rf"{_QUOTED.pattern}|[()\0]")


def _end_of_substitution(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`: `$(printf %s "x")`."""
    depth = 0
    for match in _IN_SUBSTITUTION.finditer(text, start):
        if match[0] == "\0":
            return match.start()
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return len(text)


def _quotes_of(text: str) -> list[str]:
    """For each character its surrounding quote, or ""."""
    quotes, quote = [], ""
    for char in text:
        if char == "\0" or char == quote:
            quote = ""
            quotes.append("")
        else:
            quotes.append(quote)
            if not quote and char in "\"'":
                quote = char
    return quotes


def index(text: str, char: str, start: int) -> int:
    found = text.find(char, start)
    return len(text) if found < 0 else found


def values_after(
    pattern: str,
    is_secret: Callable[[re.Match[str]], bool] | None = None,
    is_harmless: Callable[[re.Match[str], str], bool] | None = None,
    *,
    programs: frozenset[str] | None = None,
) -> Callable[[Line], Iterator[Span]]:
    """A finder of values that start where `pattern` ends; group 1 is the name, if any.

    Only if `is_secret` accepts the match and `is_harmless` rejects the value; `programs`: one of them is named.
    """
    compiled = re.compile(pattern)

    def find(line: Line) -> Iterator[Span]:
        if programs is not None and not programs & line.programs:
            return
        hidden = 0
        for match in compiled.finditer(line.text):
            if match.start() < hidden or (is_secret is not None and not is_secret(match)):
                continue
            start = match.end()
            end = line.end_of_value(start, match.start(1) if compiled.groups else None)
            if end > start and not (is_harmless is not None and is_harmless(match, line.text[start:end])):
                yield start, end
                hidden = end

    return find


def pieces(pattern: str, is_secret: Callable[[str], bool] = lambda _piece: True) -> Callable[[Line], Iterator[Span]]:
    """A finder of what group 1 of `pattern` matches."""
    compiled = re.compile(pattern)

    def find(line: Line) -> Iterator[Span]:
        return (match.span(1) for match in compiled.finditer(line.text) if is_secret(match[1]))

    return find
