"""What the data plane tells control, in order: a bounded number in each turn of the control loop.

A callback of the loop for each would do, were it not for containers that have always something to tell: where control does
not keep up, all that came would be one turn, and signals, commands and other sessions would wait for it. Each callback also
wakes the loop by a byte in a pipe with room for some 270, which is the pipe of signals too: SIGTERM was lost where it was full.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from autoforward.dataplane.messages import PlaneEvent

TURN_NOTICES = 128
MANY_NOTICES = 256
"""With so many waiting, the data plane keeps what it can put together or replace: snapshots, and names of processes."""


class NoticeQueue:
    """`put` may be called in any thread; `take` is called in that of the loop, once for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Callable[[PlaneEvent], None]) -> None:
        self._loop = loop
        self._take = take
        self._waiting: deque[PlaneEvent] = deque()
        self._is_due = False

    def put(self, notice: PlaneEvent) -> None:
        self._waiting.append(notice)
        if not self._is_due:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop has closed: no receiver is left
                self._loop.call_soon_threadsafe(self._turn)

    def is_long(self) -> bool:
        return len(self._waiting) >= MANY_NOTICES

    def _turn(self) -> None:
        self._is_due = False  # first: what is put from here on is seen below, or has a turn of its own
        try:
            for _ in range(min(TURN_NOTICES, len(self._waiting))):
                self._take(self._waiting.popleft())
        finally:
            if self._waiting and not self._is_due:
                self._is_due = True
                self._loop.call_soon(self._turn)
