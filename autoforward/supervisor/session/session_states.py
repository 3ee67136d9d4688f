"""The states of a session and their transitions."""

from __future__ import annotations

from typing import Literal

from autoforward.core.transitions import Transitions

State = Literal["starting", "watching", "reconnecting", "stopped", "dormant", "failed", "ended"]

SESSION: Transitions[State] = Transitions(
    {
        "starting": ("watching", "reconnecting", "stopped", "failed", "ended"),
        "watching": ("reconnecting", "stopped", "failed", "ended"),
        # A container that stays paused becomes dormant like a stopped one.
        "reconnecting": ("watching", "stopped", "dormant", "failed", "ended"),
        "stopped": ("watching", "reconnecting", "dormant", "failed", "ended"),
        "dormant": ("watching", "reconnecting", "failed", "ended"),
        "failed": ("watching", "reconnecting", "stopped", "ended"),
        "ended": (),
    }
)
