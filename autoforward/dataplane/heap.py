"""Return freed heap to the OS (malloc_trim) once connections go quiet.

Bulk goes through buffers of every size in all threads, and what glibc's allocator has freed between two blocks that are
in use it keeps: after a hundred transfers that was 4 to 6 MB of a supervisor of 31 MB, with as many Python objects as
before. `malloc_trim` hands those pages back; it takes a millisecond or three, so that it waits until connections rest.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

from autoforward.net.loop import Loop

QUIET_S = 2.0
"""Without the end of a connection, then the heap is trimmed."""


def trimmer() -> Callable[[], object] | None:
    """What gives free memory back to the system; None where the C library has no such call (musl, macOS)."""
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else lambda: trim(0)


class HeapKeeper:
    """Hears of each connection that ends, and trims the heap once after the last of them. An idle plane makes no turns."""

    def __init__(self, loop: Loop, trim: Callable[[], object] | None) -> None:
        self._loop = loop
        self._trim = trim
        self._ended_s = 0.0
        self._is_due = False

    def connection_ended(self) -> None:
        self._ended_s = time.monotonic()
        if not self._is_due and self._trim is not None:
            self._is_due = True
            self._loop.call_later(QUIET_S, self._check)

    def _check(self) -> None:
        left_s = self._ended_s + QUIET_S - time.monotonic()
        if left_s > 0:
            self._loop.call_later(left_s, self._check)
            return
        self._is_due = False
        if self._trim is not None:
            self._trim()
