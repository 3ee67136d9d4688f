"""What connections have in common: how many may be open, and how forwards are drained of them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection

from autoforward.dataplane.messages import Drain
from autoforward.dataplane.relay import Relay
from autoforward.net.loop import Loop

MAX_CONNECTIONS = 4096
"""Of one forward; as many as an agent's streams. With fewer descriptors a quarter of those: no forward takes all."""

RESERVED_DESCRIPTORS = 64
"""Kept from clients: for commands, the registry, the engine, new listeners."""


class ConnectionLimits:
    """As of the moment in which it is made: descriptors are raised before the data plane begins."""

    def __init__(self, most: int = MAX_CONNECTIONS) -> None:
        self._descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._of_one = min(most, self._descriptors // 4)

    def refusal_reason(self, descriptor: int, are_open: int) -> str | None:
        """Why a forward with so many open connections cannot have this new one; None: it can.

        The kernel gives the lowest descriptor that is free: a high one says how many are in use.
        """
        if are_open >= self._of_one:
            return f"{are_open} connections are open, and one forward may have no more"
        if descriptor >= self._descriptors - RESERVED_DESCRIPTORS:
            return f"of {self._descriptors} descriptors the last {RESERVED_DESCRIPTORS} are not for connections"
        return None


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
