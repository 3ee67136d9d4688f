"""A full-screen terminal: only changed lines are written, and the terminal is always restored."""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Sequence

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
"""Alternate screen, no cursor, no wrapping at the right edge (a character may be wider than computed), cleared."""

LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""Synchronized update around a change; other terminals ignore it."""


class Screen:
    """`keyboard` and `display` are descriptors; without a keyboard that is a terminal no input is read.

    `enter` and `leave` are idempotent. `leave` never raises: a closed terminal needs no restoring.
    """

    def __init__(self, keyboard: int | None, display: int) -> None:
        self._keyboard = keyboard
        self._display = display
        self._before: list[object] | None = None
        self._entered = False
        self._shown: list[str] = []

    def enter(self) -> None:
        """Keys arrive one by one and are not echoed; Ctrl-C and Ctrl-Z stay signals. Raises OSError, termios.error."""
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
                # Discard pending input, so that the shell does not run it.
                termios.tcsetattr(self._keyboard, termios.TCSAFLUSH, self._before)  # type: ignore[arg-type]
            self._before = None
        if self._entered:
            self._entered = False
            with contextlib.suppress(OSError):
                self._write(LEAVE)

    def size(self) -> tuple[int, int]:
        """(columns, lines); 80 by 24 if the terminal does not know."""
        try:
            found = os.get_terminal_size(self._display)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def redraw(self) -> None:
        """Draw everything again, as after a resize."""
        self._shown = []
        self._write("\x1b[2J")

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines from the top. Writes only the changed ones. Raises OSError."""
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
        """Send a sequence that displays nothing."""
        self._write(sequence)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self._display, data) :]
