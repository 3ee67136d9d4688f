"""Detect that the machine was asleep: every stream may be dead afterwards.

During sleep the monotonic clock stops and the wall clock does not, so their difference jumps. A wall clock that is set
looks the same, and costs an unnecessary ping.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
JUMP_S = 2.0
"""More than clocks are slewed in one interval, and less than a sleep that breaks anything."""


class ClockWatch:
    """Calls `on_jump(seconds)` on the loop that called `start`. `close` is idempotent."""

    def __init__(
        self,
        on_jump: Callable[[float], None],
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_jump = on_jump
        self._wall = wall
        self._monotonic = monotonic
        self._offset_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._offset_s = self._wall() - self._monotonic()
        self._wait()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self.check)

    def check(self) -> None:
        """Compare the clocks now."""
        offset_s = self._wall() - self._monotonic()
        jump_s, self._offset_s = offset_s - self._offset_s, offset_s
        if abs(jump_s) > JUMP_S:
            log.info("the clock jumped by %.0f s: looking whether everything is still there", jump_s)
            self._on_jump(jump_s)
        self._wait()
