"""A container with the identity of a session that another container has: whether it takes the session over."""

from __future__ import annotations

from typing import Literal

Holder = Literal["gone", "stopped", "running"]

RUNNING_STATES = frozenset({"running", "paused", "restarting", "stopping"})
GONE_STATES = frozenset({"removing"})


def holder_of(state: str | None) -> Holder:
    """What the container that has the session is, from its state in the engine's words; None: no such container."""
    if state is None or state in GONE_STATES:
        return "gone"
    return "running" if state in RUNNING_STATES else "stopped"


def takes_over(holder: Holder, *, by_hand: bool, replace: bool = False) -> bool:
    """Once the other one has been removed, always: a rebuild. From a stopped one by hand; from one that runs if asked to."""
    return holder == "gone" or (by_hand and (replace or holder == "stopped"))
