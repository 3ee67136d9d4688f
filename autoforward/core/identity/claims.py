"""Whether a container takes over the session of another container with the same identity."""

from __future__ import annotations

from typing import Literal

Holder = Literal["gone", "stopped", "running"]

RUNNING_STATES = frozenset({"running", "paused", "restarting", "stopping"})
GONE_STATES = frozenset({"removing"})


def holder_of(state: str | None) -> Holder:
    """Classify the container that has the session by the engine's word for its state; None: it does not exist."""
    if state is None or state in GONE_STATES:
        return "gone"
    return "running" if state in RUNNING_STATES else "stopped"


def takes_over(holder: Holder, *, by_hand: bool, replace: bool = False) -> bool:
    """A removed one always loses its session (a rebuild); a stopped one to a user's attach; a running one with `replace`."""
    return holder == "gone" or (by_hand and (replace or holder == "stopped"))
