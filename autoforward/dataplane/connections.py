"""What connections share: their limit, and the drain of forwards."""

from __future__ import annotations

import resource
from collections.abc import Callable, Collection

from autoforward.dataplane.messages import Drain
from autoforward.dataplane.relay import Relay
from autoforward.net.loop import Loop

MAX_CONNECTIONS = 4096
"""Per forward: as many as an agent's streams, and at most a quarter of the descriptors, so that no forward takes all."""

RESERVED_DESCRIPTORS = 64
"""Reserved for commands, the registry, the engine and new listeners."""


class ConnectionLimits:
    """Reads the descriptor limit once: it is raised before the data plane starts."""

    def __init__(self, most: int = MAX_CONNECTIONS) -> None:
        self._descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._of_one = min(most, self._descriptors // 4)

    def refusal_reason(self, descriptor: int, are_open: int) -> str | None:
        """Why a forward with `are_open` connections may not have one more; None if it may.

        The kernel assigns the lowest free descriptor: a high one shows how many are in use.
        """
        if are_open >= self._of_one:
            return f"{are_open} connections are open, and one forward may have no more"
        if descriptor >= self._descriptors - RESERVED_DESCRIPTORS:
            return f"of {self._descriptors} descriptors the last {RESERVED_DESCRIPTORS} are not for connections"
        return None


class Drains:
    """`begin` a drain, and `settle` after every relay's end. `open_relays(forward_ids)` returns the open relays."""

    def __init__(self, loop: Loop, open_relays: Callable[[Collection[str]], list[Relay]]) -> None:
        self._loop = loop
        self._open_relays = open_relays
        self._drains: list[Drain] = []

    def begin(self, drain: Drain) -> None:
        self._drains.append(drain)
        self._loop.call_later(drain.timeout_s, lambda: self._end(drain))
        self.settle()

    def settle(self) -> None:
        """Complete the drains whose last relay has ended."""
        for drain in [drain for drain in self._drains if not self._open_relays(drain.forward_ids)]:
            self._drains.remove(drain)
            drain.done.set_result(True)

    def _end(self, drain: Drain) -> None:
        if drain in self._drains:
            self._drains.remove(drain)
            for relay in self._open_relays(drain.forward_ids):
                relay.cut("not drained in time")
            drain.done.set_result(False)
