"""Limits on open connections, and the reason for a refusal beyond them."""

from __future__ import annotations

import resource

MAX_CONNECTIONS = 4096
"""Of one forward; as many as an agent's streams. With fewer descriptors a quarter of those: no forward takes all."""

RESERVED_DESCRIPTORS = 64
"""Kept from clients: for commands, the registry, the engine, new listeners."""


class ConnectionLimits:
    """As of the moment in which it is made: descriptors are raised before the data plane begins."""

    def __init__(self) -> None:
        self._descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._of_one = min(MAX_CONNECTIONS, self._descriptors // 4)

    def refusal_reason(self, descriptor: int, are_open: int) -> str | None:
        """Why a forward with so many open connections cannot have this new one; None: it can.

        The kernel gives the lowest descriptor that is free: a high one says how many are in use.
        """
        if are_open >= self._of_one:
            return f"{are_open} connections are open, and one forward may have no more"
        if descriptor >= self._descriptors - RESERVED_DESCRIPTORS:
            return f"of {self._descriptors} descriptors the last {RESERVED_DESCRIPTORS} are not for connections"
        return None
