"""Ask the engine once whether a silent container is paused."""

from __future__ import annotations

from collections.abc import Callable

PAUSE_ANSWER_TIMEOUT_S = 5.0
"""How long the engine has to answer."""


class PauseQuestion:
    """`ask` calls the function once until there is an answer; the owner resets `is_asked` when the container sends something."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self.is_paused = False
        self.is_asked = False

    def ask(self) -> None:
        if not self.is_asked:
            self.is_asked = True
            self._ask()

    def answer(self, paused: bool) -> bool:
        """Take the engine's answer; False if nothing changed: it was running, and is."""
        if not paused and not self.is_paused:
            return False
        self.is_paused, self.is_asked = paused, False
        return True
