"""Parse a terminal's input: bytes to names of keys. Sans-IO.

Arrows come as escape sequences, in either of the two forms that terminals use. Sequences that mean nothing here are
taken whole, so that their last letter is not taken for a key.
"""

from __future__ import annotations

import re

_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O\x1b])", re.DOTALL)
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")

MAX_SEQUENCE = 32
"""Bytes of a sequence that has begun and does not end: no key has more."""

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
    """`feed` bytes as they come, get the names of the keys in them: a character, or one of the words above."""

    def __init__(self) -> None:
        self._rest = b""

    def forget(self) -> None:
        """What has begun a while ago does not go on: it was the escape key, and the next key is one of its own."""
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
