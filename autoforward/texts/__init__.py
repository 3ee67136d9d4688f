"""Text of others, on its way to a terminal, a log or a page: labels, folders, process names, errors of programs."""

from __future__ import annotations

import unicodedata

MAX_LINE = 2000
"""Characters of a line of the log, and of a line for people."""


def only_printable(text: str, instead: str = " ") -> str:
    """On one line: each control character (also one that changes the direction of writing) becomes `instead`."""
    return text if text.isprintable() else "".join(char if char.isprintable() else instead for char in text)


def one_line(text: str, limit: int | None = MAX_LINE) -> str:
    """On one line of at most `limit` characters; what is not printable can be seen: `\\n`, `\\x1b`, `\\u202e`."""
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    if not text.isprintable():
        text = "".join(map(_visible, text))
        if limit is not None and len(text) > limit:
            text = f"{text[: limit - 1]}…"
    return text


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    return " " if unicodedata.category(char) == "Zs" else char.encode("unicode_escape").decode("ascii")
