"""Bounds of a file that a container may have written, checked before its parser builds anything. Table in SPEC.md."""

from __future__ import annotations

from collections.abc import Sequence

MAX_CONFIG_BYTES = 512 * 1024
"""No real configuration comes near."""

MAX_FILE_DEPTH = 64
"""Nested objects, arrays and tables. The parsers recurse; real files have ten levels."""

MAX_FILE_KEYS = 5_000
"""Keys and containers of one file, together."""

MAX_FILE_VALUES = 10_000
"""Values of one file."""

MAX_KEY_PARTS = 16
"""Parts of a dotted TOML key: tomllib is quadratic in them."""

MAX_NUMBER_LENGTH = 100
"""Characters of a number: its conversion is quadratic."""

SMALL_BYTES = 16 * 1024
"""A larger file is parsed in a child: even within the bounds it can take about 20 ms."""

FILE_DEADLINE_S = 1.5
"""For a child to answer. A command fails within two seconds on an unreadable file."""


class TextError(ValueError):
    """A text that is invalid or exceeds a bound. `line` and `column` from 1. `problem` contains nothing of the text."""

    def __init__(self, text: str, offset: int, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = text.count("\n", 0, offset) + 1
        self.column = offset - text.rfind("\n", 0, offset)


def decoded(data: bytes) -> str:
    """UTF-8 text of `data`. Raises TextError."""
    try:
        return data.decode("utf-8").removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        raise TextError(before, len(before), "not UTF-8") from None


class Counter:
    """Counts one text's elements against the bounds; each method raises TextError at `offset`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._keys = 0
        self._values = 0

    def key(self, offset: int) -> None:
        """One more key or container."""
        self._keys += 1
        if self._keys > MAX_FILE_KEYS:
            raise TextError(self._text, offset, f"more than {MAX_FILE_KEYS} keys and tables")

    def value(self, offset: int) -> None:
        self._values += 1
        if self._values > MAX_FILE_VALUES:
            raise TextError(self._text, offset, f"more than {MAX_FILE_VALUES} values")

    def depth(self, stack: Sequence[object], offset: int) -> None:
        if len(stack) > MAX_FILE_DEPTH:
            raise TextError(self._text, offset, f"nested too deeply: more than {MAX_FILE_DEPTH} levels")

    def number(self, start: int, end: int) -> None:
        if end - start > MAX_NUMBER_LENGTH:
            raise TextError(self._text, start, f"a number of more than {MAX_NUMBER_LENGTH} characters")
