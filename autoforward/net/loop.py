"""The data plane's event loop: one thread, one poller, timers, and end-of-turn callbacks.

Its owner gives two callables, which run in the loop's thread: `each_turn` after the turn's sockets were handled, and
`at_end` once, before adopted objects are closed. Other threads may only call `start`, `wake` and `stop`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol

from autoforward.net.poller import READ, default_poller

log = logging.getLogger(__name__)


class Closeable(Protocol):
    def close(self) -> None: ...


class Timer:
    """A callable due at a monotonic time; `cancel` is idempotent."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Calls handlers of ready descriptors and due timers. A handler's exception is logged, and the loop continues."""

    def __init__(self, name: str, each_turn: Callable[[], None], at_end: Callable[[], None]) -> None:
        self._each_turn = each_turn
        self._at_end = at_end
        self._poller = default_poller()
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._wake_receive, self._wake_send = socket.socketpair()
        self._wake_receive.setblocking(False)
        self._wake_send.setblocking(False)
        self._timers: list[tuple[float, int, Timer]] = []
        self._timer_numbers = itertools.count(1)
        self._owned: set[Closeable] = set()
        self._turn_ends: list[Callable[[], None]] = []
        self.turns = 0
        """Turns so far: an idle loop makes none."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __repr__(self) -> str:
        return f"<Loop {len(self._watched)} descriptors, {len(self._timers)} timers, {len(self._owned)} adopted>"

    # From any thread.

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Make a turn soon."""
        try:
            self._wake_send.send(b"\0")
        except (BlockingIOError, OSError):  # full: it is awake already; closed: it has ended
            pass

    def stop(self) -> None:
        """End the loop and wait for its thread. Idempotent."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    # In the loop's thread.

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(ready events)` whenever `fd` is ready for `events`; 0 unregisters it.

        An empty mask must unregister: a hang-up is reported even with an empty mask, over and over.
        """
        known = self._watched.get(fd)
        before = known[0] if known is not None else 0
        if events != before:
            self._poller.change(fd, before, events)
        if events:
            self._watched[fd] = (events, handler)
        elif known is not None:
            del self._watched[fd]

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_numbers), timer))
        return timer

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call this once at the end of the turn, so that output of a turn can be written together."""
        self._turn_ends.append(callback)

    def adopt(self, owned: Closeable) -> None:
        """Close this with the loop, unless it is disowned before."""
        self._owned.add(owned)

    def disown(self, owned: Closeable) -> None:
        self._owned.discard(owned)

    def call(self, call: Callable[..., None], *arguments: object) -> bool:
        """Call it; an exception is logged and does not end the loop. Returns whether there was none."""
        try:
            call(*arguments)
        except Exception:
            log.exception("a fault in the data plane: %r %r", call, arguments)
            return False
        return True

    def _run(self) -> None:
        self.watch(self._wake_receive.fileno(), READ, self._on_wake)
        while not self._stopping:
            self.turns += 1
            for fd, events in self._poller.wait(self._next_delay_s()):
                wanted, handler = self._watched.get(fd, (0, _ignore))
                # 0: unregistered by an earlier handler of this turn.
                if events & wanted and not self.call(handler, events & wanted):
                    self.watch(fd, 0, _ignore)  # else it would be reported again at once, for ever
            self._each_turn()
            self._run_timers()
            while self._turn_ends:
                due, self._turn_ends = self._turn_ends, []
                for callback in due:
                    self.call(callback)
        self._at_end()
        for owned in list(self._owned):
            owned.close()
        self._poller.close()
        self._wake_receive.close()
        self._wake_send.close()

    def _next_delay_s(self) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - time.monotonic())

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self.call(callback)

    def _on_wake(self, _events: int) -> None:
        try:
            while len(self._wake_receive.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass


def _ignore(_events: int) -> None:
    """Handler of an unregistered descriptor."""
