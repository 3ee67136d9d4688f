"""Parse a terminal's input: bytes to names of keys. Sans-IO.

Arrow keys are escape sequences, in one of two forms. Unknown sequences are consumed whole, so that their last letter is
not read as a key.
"""

from __future__ import annotations

import re

_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O\x1b])", re.DOTALL)
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")

MAX_SEQUENCE = 32
"""Longest incomplete sequence; no key is longer."""

_NAMED = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page-up",
    b"\x1b[6~": "page-down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
    b"\r": "enter",
    b"\n": "enter",
}


class KeyReader:
    """`feed` bytes as they come; returns the names of their keys: a character, or one of the names above."""

    def __init__(self) -> None:
        self._rest = b""

    def forget(self) -> None:
        """Drop an incomplete sequence: after a delay it was the escape key, and the next byte begins another key."""
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        data = self._rest + data
        self._rest = b""
        keys = []
        while data:
            if data[0] != 0x1B:
                piece = data[:1]
            elif found := _SEQUENCE.match(data):
                piece = found[0]
            elif _BEGUN.match(data):
                self._rest = data if len(data) < MAX_SEQUENCE else b""
                break
            else:
                piece = data[:1]
            data = data[len(piece) :]
            if name := _NAMED.get(piece):
                keys.append(name)
            elif len(piece) == 1 and 0x20 <= piece[0] < 0x7F:
                keys.append(piece.decode())
        return keys
