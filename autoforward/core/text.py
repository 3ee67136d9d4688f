"""Make foreign text safe for a terminal, a log or a page: labels, folders, process names, errors of programs."""

from __future__ import annotations

import unicodedata

MAX_LINE = 2000
"""Longest line of the log, and of a message."""

MAX_LINE_BYTES = 1024
"""Longest line that a program in the container writes outside a frame or on its stderr."""


def printable(text: str, instead: str = "�") -> str:
    """On one line: each control character (including those that change the writing direction) becomes `instead`."""
    return text if text.isprintable() else "".join(char if char.isprintable() else instead for char in text)


def one_line(text: str, limit: int | None = MAX_LINE) -> str:
    """On one line of at most `limit` characters; unprintable characters are escaped: `\\n`, `\\x1b`, `\\u202e`."""
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


class LineSplitter:
    """Bytes in, lines out, bounded: a line is cut at MAX_LINE_BYTES."""

    def __init__(self) -> None:
        self._partial = b""

    def __repr__(self) -> str:
        return f"<LineSplitter partial={len(self._partial)}>"

    def feed(self, data: bytes) -> list[bytes]:
        *complete, rest = data.split(b"\n")
        lines: list[bytes] = []
        for piece in complete:
            lines.append((self._partial + piece[:MAX_LINE_BYTES])[:MAX_LINE_BYTES])
            self._partial = b""
        self._partial = (self._partial + rest[:MAX_LINE_BYTES])[:MAX_LINE_BYTES]
        return lines


def decoded_line(text: bytes, limit: int = 200) -> str:
    """Text from a container for people: one line, at most `limit` characters, control characters as spaces."""
    decoded = text[: limit * 4].decode("utf-8", "replace")
    return printable(decoded, " ").strip()[:limit]
