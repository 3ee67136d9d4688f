"""Text of somebody else's, on its way to a terminal, a log or a page."""

from __future__ import annotations


def only_printable(text: str, instead: str = " ") -> str:
    """On one line: each control character (also one that changes the direction of writing) becomes `instead`."""
    return text if text.isprintable() else "".join(char if char.isprintable() else instead for char in text)
