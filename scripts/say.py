"""How the scripts speak: plain lines on stderr, and errors that have a way out."""

from __future__ import annotations

import sys


class SetupError(Exception):
    """Something a person has to do; `hint` says what."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)
