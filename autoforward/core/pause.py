"""Whether a container is paused, for who hears nothing of it: the engine is asked once, and says so or not."""

from __future__ import annotations

from collections.abc import Callable

ENGINE_WORD_S = 5.0
"""How long the engine has to say whether a silent container is paused."""


class PauseQuestion:
    """`ask` is called once until there is an answer; the owner sets `is_asked` back when it hears something."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self.is_paused = False
        self.is_asked = False

    def ask(self) -> None:
        if not self.is_asked:
            self.is_asked = True
            self._ask()

    def answer(self, paused: bool) -> bool:
        """Take what the engine says; False where nothing has changed: it was running, and is."""
        if not paused and not self.is_paused:
            return False
        self.is_paused, self.is_asked = paused, False
        return True
