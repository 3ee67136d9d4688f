"""Drain forwards: open connections may finish, for a bounded time."""

from __future__ import annotations

from collections.abc import Callable, Collection

from autoforward.dataplane.messages import Drain
from autoforward.dataplane.relay import Relay
from autoforward.net.loop import Loop


class Drains:
    """`begin` one, `settle` whenever a relay has ended. `open_relays(forward_ids)` says what is open of those."""

    def __init__(self, loop: Loop, open_relays: Callable[[Collection[str]], list[Relay]]) -> None:
        self._loop = loop
        self._open_relays = open_relays
        self._drains: list[Drain] = []

    def begin(self, drain: Drain) -> None:
        self._drains.append(drain)
        self._loop.call_later(drain.timeout_s, lambda: self._end(drain))
        self.settle()

    def settle(self) -> None:
        """Tell those whose last relay has ended."""
        for drain in [drain for drain in self._drains if not self._open_relays(drain.forward_ids)]:
            self._drains.remove(drain)
            drain.done.set_result(True)

    def _end(self, drain: Drain) -> None:
        if drain in self._drains:
            self._drains.remove(drain)
            for relay in self._open_relays(drain.forward_ids):
                relay.cut("not drained in time")
            drain.done.set_result(False)
