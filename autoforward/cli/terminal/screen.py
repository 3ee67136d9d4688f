"""A full-screen terminal: only changed lines are written, and the terminal is always restored."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Sequence

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
"""The other screen, no cursor, no wrapping at the right edge (a character may be wider than we think), nothing there."""

LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""Around a change, so that no half of it is shown. Terminals that do not know it ignore it."""


class Screen:
    """`keyboard` and `display` are descriptors; without a keyboard that is a terminal nothing is read from it.

    `enter` and `leave` are idempotent. `leave` never raises: a terminal that has gone needs nothing back.
    """

    def __init__(self, keyboard: int | None, display: int) -> None:
        self._keyboard = keyboard
        self._display = display
        self._before: list[object] | None = None
        self._entered = False
        self._shown: list[str] = []

    def enter(self) -> None:
        """Keys come one by one and are not shown; Ctrl-C and Ctrl-Z stay signals. Raises OSError, termios.error."""
        if self._entered:
            return
        if self._keyboard is not None:
            before = termios.tcgetattr(self._keyboard)
            changed = [*before]
            changed[3] &= ~(termios.ICANON | termios.ECHO)
            changed[6] = [*before[6]]
            changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
            self._before = before
            termios.tcsetattr(self._keyboard, termios.TCSANOW, changed)
        self._entered = True
        self._shown = []
        self._write(ENTER)

    def leave(self) -> None:
        if self._keyboard is not None and self._before is not None:
            with contextlib.suppress(OSError, termios.error):
                # What was typed ahead is not for the shell.
                termios.tcsetattr(self._keyboard, termios.TCSAFLUSH, self._before)  # type: ignore[arg-type]
            self._before = None
        if self._entered:
            self._entered = False
            with contextlib.suppress(OSError):
                self._write(LEAVE)

    def size(self) -> tuple[int, int]:
        """(columns, lines), 80 by 24 where the terminal does not know."""
        try:
            found = os.get_terminal_size(self._display)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def redraw(self) -> None:
        """Nothing is taken for granted any more: after a resize."""
        self._shown = []
        self._write("\x1b[2J")

    def show(self, lines: Sequence[str]) -> None:
        """These lines, from the top. Only those that differ from what is there are written. Raises OSError."""
        changed = []
        for number, line in enumerate(lines):
            if number >= len(self._shown) or self._shown[number] != line:
                changed.append(f"\x1b[{number + 1};1H{line}\x1b[0m\x1b[K")
        if len(lines) < len(self._shown):
            changed.append(f"\x1b[{len(lines) + 1};1H\x1b[J")
        self._shown = [*lines]
        if changed:
            self._write(BEGIN + "".join(changed) + END)

    def send(self, sequence: str) -> None:
        """For the terminal itself; nothing of it is shown."""
        self._write(sequence)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self._display, data) :]
